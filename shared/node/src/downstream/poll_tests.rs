//! ADM-8 to ADM-12 in virtual time: the real cores of both ends (rhythm and admission), many devices, no socket.

use super::{
    admission::{Admission, AdmissionConfig, Ask, Cap, Effect, Event, Lease, Need, Want},
    reception::Polls,
};
use crate::{
    random::{Random, SeededRandom},
    uplink::rhythm::{NETWORK_SPREAD_MS, Rhythm},
};
use branchline_protocol::{
    document::Settings,
    id::{AttachmentKey, NodeId, Role},
    time::{Millis, Mono, Now},
    wire,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use uuid::Uuid;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
/// What is promised of a device that holds a slot (ADM-13).
const PERSISTENT_MS: u64 = 5_000;
/// How long a poll takes.
const POLL_MS: u64 = 200;

fn at(ms: u64) -> Now {
    Now { mono: Mono(ms), wall: Millis(ms as i64), node: Millis(ms as i64) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down,
    Up,
    Poll(wire::Lease),
}

struct Device {
    need: Need,
    pressing_ms: Option<u64>,
    rhythm: Rhythm,
    link: Link,
    session: u64,
    polls: Vec<u64>,
    /// When the order that it has not got was issued.
    ordered_at: Option<u64>,
    /// Whether it held a slot then.
    held_then: bool,
    /// The longest that an order took which was issued while it polled, and while it held a slot.
    took_ms: BTreeMap<bool, u64>,
}

/// One parent and its devices, which all start at 0.
struct World {
    chance: Arc<dyn Random>,
    core: Admission,
    devices: Vec<Device>,
    /// (when, which, whether a poll ends; else it dials).
    due: BTreeSet<(u64, usize, bool)>,
    sessions: u64,
    now: u64,
    polls_max: u16,
}

impl World {
    /// With this many slots; each device has a need and capabilities.
    fn new(seed: u64, slots: i64, devices: impl IntoIterator<Item = (Need, &'static str)>) -> World {
        let polls = Polls::of(&Settings::first("acme".parse().unwrap(), 1));
        let device = |(need, capability): (Need, &str)| Device {
            need,
            pressing_ms: polls.pressing_ms(&[capability.to_string()]),
            rhythm: Rhythm::new(at(0)),
            link: Link::Down,
            session: 0,
            polls: vec![],
            ordered_at: None,
            held_then: false,
            took_ms: BTreeMap::new(),
        };
        let devices: Vec<Device> = devices.into_iter().map(device).collect();
        let due = devices.iter().enumerate().map(|(n, d)| (d.rhythm.due().0, n, false)).collect();
        let core = Admission::new(AdmissionConfig::new(Cap::new(slots, false).unwrap()));
        World { chance: SeededRandom::shared(seed), core, devices, due, sessions: 0, now: 0, polls_max: 0 }
    }

    fn run_until(&mut self, end: u64) {
        while let Some((now, n, poll_ends)) = self.due.first().copied().filter(|(now, ..)| *now <= end) {
            self.due.pop_first();
            self.now = now;
            if poll_ends { self.end_poll(n) } else { self.dial(n) }
        }
        self.now = end;
    }

    /// An order for every device: those with a link have it at once.
    fn order(&mut self) {
        for n in 0..self.devices.len() {
            self.devices[n].ordered_at = Some(self.now);
            self.devices[n].held_then = self.devices[n].link == Link::Up;
            if self.devices[n].link != Link::Down {
                self.deliver(n);
            }
        }
    }

    fn deliver(&mut self, n: usize) {
        let device = &mut self.devices[n];
        if let Some(ordered_at) = device.ordered_at.take() {
            let took = device.took_ms.entry(device.held_then).or_default();
            *took = (*took).max(self.now - ordered_at);
        }
    }

    fn event(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.core.handle(at(self.now), event, &mut effects);
        let gauge = self.core.gauge();
        assert!(gauge.used <= gauge.cap, "{gauge:?}");
        self.polls_max = self.polls_max.max(self.core.pools().polls);
        effects
    }

    fn dial(&mut self, n: usize) {
        self.sessions += 1;
        let device = &mut self.devices[n];
        device.session = self.sessions;
        device.rhythm.welcomed(0);
        let ask = Ask {
            node: NodeId(Uuid::from_u128(n as u128 + 1)),
            role: Role::Agent,
            key: AttachmentKey { epoch: 1, attachment: self.sessions },
            session: self.sessions,
            want: if device.need == Need::None { Want::Poll } else { Want::Persistent },
            need: device.need,
            wakeable: false,
            poll_interval_ms: None,
            pressing_ms: device.pressing_ms,
        };
        let effects = self.event(Event::Ask(ask.clone()));
        for effect in effects {
            match effect {
                Effect::Admitted { .. } if ask.want == Want::Poll => self.poll(n, self.core.lease(ask.node)),
                Effect::Admitted { .. } => {
                    self.devices[n].link = Link::Up;
                    self.deliver(n);
                }
                Effect::Deferred { lease, .. } => {
                    match self.event(Event::Ask(Ask { want: Want::Poll, ..ask.clone() }))[..] {
                        [Effect::Admitted { .. }] => self.poll(n, lease),
                        [Effect::Busy { retry_after_ms, .. }] => self.told(n, retry_after_ms),
                        ref other => panic!("{other:?}"),
                    }
                }
                Effect::Busy { retry_after_ms, .. } => self.told(n, retry_after_ms),
                Effect::Displace { session, lease } => {
                    let holder = self.devices.iter().position(|d| d.session == session).expect("it holds a slot");
                    assert_eq!(self.devices[holder].link, Link::Up);
                    self.devices[holder].link = Link::Poll(of(lease));
                    self.due.insert((self.now + POLL_MS, holder, true));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn poll(&mut self, n: usize, lease: Lease) {
        self.devices[n].link = Link::Poll(of(lease));
        self.devices[n].polls.push(self.now);
        self.deliver(n);
        self.due.insert((self.now + POLL_MS, n, true));
    }

    fn told(&mut self, n: usize, retry_after_ms: u64) {
        let chance = self.chance.next_u64();
        let device = &mut self.devices[n];
        device.rhythm.told(at(self.now), retry_after_ms, chance);
        self.due.insert((device.rhythm.due().0, n, false));
        let (node, session) = (NodeId(Uuid::from_u128(n as u128 + 1)), device.session);
        self.event(Event::Gone { node, session });
    }

    fn end_poll(&mut self, n: usize) {
        let chance = self.chance.next_u64();
        let device = &mut self.devices[n];
        let Link::Poll(lease) = std::mem::replace(&mut device.link, Link::Down) else { panic!("no poll of {n}") };
        device.rhythm.polled(at(self.now), lease, false, chance);
        self.due.insert((device.rhythm.due().0, n, false));
        let (node, session) = (NodeId(Uuid::from_u128(n as u128 + 1)), device.session);
        self.event(Event::Gone { node, session });
    }
}

fn of(lease: Lease) -> wire::Lease {
    wire::Lease { interval_ms: lease.interval_ms, phase_ms: lease.phase_ms, waiter: lease.waiter }
}

#[test]
fn adm_8_five_hours_are_five_polls_and_each_interval_is_within_a_tenth() {
    let mut world = World::new(1, 1, [(Need::None, "run_script"); 60]);
    world.run_until(40 * HOUR);
    for device in &world.devices {
        // After the poll at start, which comes when the device does, each is about its own instant.
        let regular = &device.polls[1..];
        for pair in regular.windows(2) {
            let gap = pair[1] - pair[0];
            assert!(gap.abs_diff(HOUR) <= HOUR / 10 + POLL_MS, "{gap}");
        }
        for begin in &regular[..20] {
            // From between two polls.
            let window = begin + HOUR / 2..begin + HOUR / 2 + 5 * HOUR;
            assert_eq!(regular.iter().filter(|poll| window.contains(poll)).count(), 5);
        }
    }
}

/// The longest that an order took that was issued a moment after a poll.
fn longest_ms(capability: &'static str) -> u64 {
    let mut world = World::new(7, 1, [(Need::None, capability); 20]);
    let mut longest = 0;
    while world.now < 100 * HOUR {
        let Some((now, n, false)) = world.due.first().copied() else {
            let (now, ..) = *world.due.first().expect("a device is always due");
            world.run_until(now);
            continue;
        };
        world.run_until(now);
        world.run_until(now + POLL_MS);
        world.devices[n].ordered_at = Some(world.now);
        longest = longest.max(world.devices[n].took_ms.remove(&false).unwrap_or(0));
    }
    longest
}

#[test]
fn adm_9_adm_10_an_order_issued_just_after_a_poll_comes_in_the_time_of_its_class() {
    for (capability, interval, bound) in [
        ("lock", 10 * MINUTE, 11 * MINUTE),
        ("delete_path", 15 * MINUTE, 16 * MINUTE + MINUTE / 2),
        ("run_script", 60 * MINUTE, 66 * MINUTE),
    ] {
        let longest = longest_ms(capability);
        assert!(longest <= bound, "{capability}: {longest}");
        assert!(longest > interval, "the worst case was met: {capability}: {longest}");
    }
}

#[test]
fn adm_12_a_device_polls_at_its_start_and_what_waits_for_it_comes_with_that_poll() {
    let mut world = World::new(3, 1, [(Need::None, "run_script"); 40]);
    world.order();
    world.run_until(5_000);
    assert!(world.devices.iter().all(|d| d.polls.len() == 1 && d.took_ms[&false] <= 5_000));
    // Without a network dials fail; one that comes is noticed within a second.
    for came_at in [0, 3_000, 70_000, 4 * HOUR] {
        let mut rhythm = Rhythm::new(at(0));
        while rhythm.due().0 < came_at {
            let now = rhythm.due();
            rhythm.failed(at(now.0), None, world.chance.next_u64());
        }
        rhythm.network_came(at(came_at + 999), world.chance.next_u64());
        assert!(rhythm.due().0 <= came_at + 999 + NETWORK_SPREAD_MS, "{came_at}");
        assert!(rhythm.due().0 <= came_at + 5_000);
    }
}

#[test]
fn adm_2_adm_9_a_thousand_devices_share_three_hundred_slots_and_each_has_its_jobs_in_the_promised_time() {
    let device = |n: u64| match n % 10 {
        0 | 1 => (Need::Keep, "run_script"),
        2 => (Need::Ordinary, "lock"),
        3 => (Need::Ordinary, "delete_path"),
        4 => (Need::None, "run_script"),
        _ => (Need::Ordinary, "run_script"),
    };
    // Those that need it most come last.
    let mut world = World::new(5, 300, (0..1_000).rev().map(device));
    for hour in 1..=8 {
        world.run_until(hour * HOUR);
        world.order();
    }
    world.run_until(10 * HOUR);
    assert_eq!((world.core.gauge().peak, world.core.gauge().used), (300, 300));
    assert!(world.polls_max <= 64);
    assert_eq!(world.core.gauge().held_by.keep, 200, "all that are to keep their connection do");
    assert!(world.core.gauge().held_by.ordinary >= 15);
    for (n, device) in world.devices.iter().enumerate() {
        let interval = device.pressing_ms.unwrap_or(HOUR);
        assert_eq!(device.ordered_at, None, "device {n} had every order");
        for (holds, took) in &device.took_ms {
            let promised = if *holds { PERSISTENT_MS } else { interval + interval / 10 };
            assert!(*took <= promised, "device {n}, with a slot {holds}: {took} of {promised}");
        }
    }
    let polled = world.devices.iter().filter(|d| d.took_ms.contains_key(&false)).count();
    assert!(polled >= 700, "{polled} had one by a poll");
}
