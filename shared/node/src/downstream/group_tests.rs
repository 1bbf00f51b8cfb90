//! Relays of one site, and a gateway beside the direct way, in virtual time: the real cores of both ends (path and rhythm; rate and admission), no socket.

use super::{
    admission::{Admission, AdmissionConfig, Ask, Cap, Effect, Event, Lease, Need, Want},
    rate::{Caller, Rate},
    reception::reconnect_spread_ms,
};
use crate::{
    config::{LinkRate, Reach},
    link::dial::{CONNECT_S, Route},
    random::{Random, SeededRandom},
    uplink::{
        path::{PROBE_MS, Path, RESTART_DIALS, Way},
        rhythm::Rhythm,
    },
};
use branchline_protocol::{
    document::Upstream,
    id::{AttachmentKey, NodeId, Role},
    time::{Millis, Mono, Now},
    wire,
};
use std::{collections::BTreeSet, sync::Arc};
use uuid::Uuid;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

fn at(ms: u64) -> Now {
    Now { mono: Mono(ms), wall: Millis(ms as i64), node: Millis(ms as i64) }
}

fn id(n: usize) -> NodeId {
    NodeId(Uuid::from_u128(n as u128))
}

struct Device {
    path: Path,
    rhythm: Rhythm,
    attachment: u64,
    /// The parent that served it last, when, and the session of a link that it holds there.
    served: Option<(usize, u64)>,
    held: Option<u64>,
    /// Dials that tried every way, and no parent served it.
    vain: u64,
    /// Dials that were for the parent alone whose link broke.
    waited: u64,
}

struct Parent {
    alive: bool,
    rate: Rate,
    admission: Admission,
}

impl Parent {
    fn fresh(now: u64) -> Parent {
        let cap = Cap::new(300, false).unwrap();
        let admission = Admission::new(AdmissionConfig::new(cap));
        Parent { alive: true, rate: Rate::new(LinkRate::default(), Mono(now)), admission }
    }
}

/// Relays of a site, and the server behind them. A dead parent's address answers nothing, or refuses at once.
struct Site {
    chance: Arc<dyn Random>,
    parents: Vec<Parent>,
    devices: Vec<Device>,
    sessions: u64,
    silent: bool,
    now: u64,
    used_max: u16,
}

impl Site {
    fn of(seed: u64, relays: usize, devices: usize, silent: bool) -> Site {
        Site::with_gateways(seed, relays, devices, silent, Vec::new())
    }

    fn with_gateways(seed: u64, relays: usize, devices: usize, silent: bool, gateways: Vec<String>) -> Site {
        let chance = SeededRandom::shared(seed);
        let upstream = |n: usize| Upstream {
            id: id(n),
            role: if n < relays { Role::Relay } else { Role::Server },
            name: n.to_string(),
            direct: vec![n.to_string()],
            gateways: if n < relays { Vec::new() } else { gateways.clone() },
            near: n < relays,
        };
        let list: Vec<Upstream> = (0..=relays).map(upstream).collect();
        let devices = (0..devices).map(|n| {
            let me = NodeId(Uuid::from_u128((seed as u128) << 64 | (1_000 + n) as u128));
            let mut path = Path::new(me);
            path.configure(at(0), &list, Reach::Any, PROBE_MS, MINUTE, 0);
            // Switched on within ten minutes.
            let mut rhythm = Rhythm::new(at(0));
            rhythm.spread(10 * MINUTE);
            rhythm.lost(at(0), chance.next_u64());
            Device { path, rhythm, attachment: 0, served: None, held: None, vain: 0, waited: 0 }
        });
        let devices = devices.collect();
        let parents = (0..=relays + gateways.len()).map(|_| Parent::fresh(0)).collect();
        Site { chance, parents, devices, sessions: 0, silent, now: 0, used_max: 0 }
    }

    /// Lets time pass until then.
    fn run(&mut self, until: u64) {
        let due = |d: &Device| match d.held {
            Some(_) => d.path.next_probe().map(|at| at.0),
            None => Some(d.rhythm.due().0),
        };
        let entry = |(n, d): (usize, &Device)| due(d).map(|at| (at, n));
        let mut queue: BTreeSet<(u64, usize)> = self.devices.iter().enumerate().filter_map(entry).collect();
        while let Some((instant, n)) = queue.pop_first().filter(|(instant, _)| *instant < until) {
            self.now = self.now.max(instant);
            if self.devices[n].held.is_some() {
                self.probe(n)
            } else {
                self.dial(n)
            }
            queue.extend(due(&self.devices[n]).map(|at| (at.max(self.now + 1), n)));
            let used = self.parents.iter().map(|p| p.admission.gauge().used).max();
            self.used_max = self.used_max.max(used.unwrap_or(0));
        }
        self.now = until;
    }

    fn parent(way: &Way) -> usize {
        let (Route::Direct(address) | Route::Gateway(address)) = &way.route;
        address.trim_start_matches("https://").parse().unwrap()
    }

    /// Each way in turn, as the uplink does.
    fn dial(&mut self, n: usize) {
        let (ways, mut now, chance) = (self.devices[n].path.ways().to_vec(), self.now, self.chance.next_u64());
        for way in ways {
            let parent = &mut self.parents[Site::parent(&way)];
            if !parent.alive {
                if self.silent {
                    now += CONNECT_S * 1_000;
                } else if self.devices[n].path.waits_for(&way) {
                    self.devices[n].waited += 1;
                    return self.devices[n].rhythm.failed(at(now), None, chance);
                }
                continue;
            }
            if let Err(ms) = parent.rate.knock(Mono(now), Caller::Device) {
                self.devices[n].vain += 1;
                return self.devices[n].rhythm.told(at(now), ms, chance);
            }
            return self.greet(n, &way, now);
        }
        self.devices[n].vain += 1;
        self.devices[n].rhythm.failed(at(now), None, chance);
    }

    fn greet(&mut self, n: usize, way: &Way, now: u64) {
        self.sessions += 1;
        let (session, which, chance) = (self.sessions, Site::parent(way), self.chance.next_u64());
        let device = &mut self.devices[n];
        device.attachment += 1;
        let node = NodeId(Uuid::from_u128(1_000_000 + n as u128));
        let ask = Ask {
            node,
            role: Role::Agent,
            key: AttachmentKey { epoch: 1, attachment: device.attachment },
            session,
            want: Want::Persistent,
            need: Need::Ordinary,
            wakeable: false,
            poll_interval_ms: None,
            pressing_ms: None,
        };
        let parent = &mut self.parents[which];
        let mut effects = Vec::new();
        parent.admission.handle(at(now), Event::Ask(ask), &mut effects);
        // Whoever has waited an hour takes the slot of one that has held it.
        let displaced = |effect: &Effect| match effect {
            Effect::Displace { session: other, lease } if *other != session => Some((*other, *lease)),
            _ => None,
        };
        if let Some((other, lease)) = effects.iter().find_map(displaced) {
            self.displaced(other, lease, now);
        }
        effects.retain(|effect| displaced(effect).is_none());
        let (parent, device) = (&mut self.parents[which], &mut self.devices[n]);
        let children = u64::from(parent.admission.gauge().used);
        device.rhythm.welcomed(reconnect_spread_ms(Role::Agent, children));
        device.served = Some((which, now));
        match effects.iter().find(|e| !matches!(e, Effect::Wake { .. })) {
            Some(Effect::Admitted { .. }) => {
                device.path.up(at(now), way, true, chance);
                device.held = Some(session);
            }
            Some(Effect::Deferred { lease: Lease { interval_ms, phase_ms, waiter }, .. }) => {
                device.path.up(at(now), way, false, chance);
                let lease = wire::Lease { interval_ms: *interval_ms, phase_ms: *phase_ms, waiter: *waiter };
                device.rhythm.polled(at(now), lease, false, chance);
                parent.admission.handle(at(now), Event::Gone { node, session }, &mut Vec::new());
            }
            other => panic!("neither a slot nor a lease: {other:?}"),
        }
    }

    /// Its link becomes a poll, which ends.
    fn displaced(&mut self, session: u64, lease: Lease, now: u64) {
        let chance = self.chance.next_u64();
        let of = |(_, device): &(usize, &mut Device)| device.held == Some(session);
        let Some((n, device)) = self.devices.iter_mut().enumerate().find(of) else { return };
        device.held = None;
        let Lease { interval_ms, phase_ms, waiter } = lease;
        device.rhythm.polled(at(now), wire::Lease { interval_ms, phase_ms, waiter }, false, chance);
        device.path.down();
        let gone = Event::Gone { node: NodeId(Uuid::from_u128(1_000_000 + n as u128)), session };
        let (which, _) = device.served.expect("it was served");
        self.parents[which].admission.handle(at(now), gone, &mut Vec::new());
    }

    fn probe(&mut self, n: usize) {
        let (now, chance) = (self.now, self.chance.next_u64());
        for way in self.devices[n].path.better(at(now)) {
            let better = &mut self.parents[Site::parent(&way)];
            if better.alive && better.rate.knock(Mono(now), Caller::Device).is_ok() {
                let device = &mut self.devices[n];
                let (Some(session), Some((old, _))) = (device.held.take(), device.served) else { return };
                device.path.down();
                let gone = Event::Gone { node: NodeId(Uuid::from_u128(1_000_000 + n as u128)), session };
                self.parents[old].admission.handle(at(now), gone, &mut Vec::new());
                return self.greet(n, &way, now);
            }
        }
        self.devices[n].path.probed_in_vain(at(now), chance);
    }

    /// Its links break; answers whose.
    fn kill(&mut self, which: usize) -> Vec<usize> {
        let children = u64::from(self.parents[which].admission.gauge().used);
        self.parents[which].alive = false;
        let mut lost = Vec::new();
        for (n, device) in self.devices.iter_mut().enumerate() {
            if device.served.is_some_and(|(at, _)| at == which) && device.held.take().is_some() {
                // Its newest word, with a heartbeat's answer.
                device.rhythm.spread(reconnect_spread_ms(Role::Agent, children));
                device.rhythm.lost(at(self.now), self.chance.next_u64());
                device.path.broke();
                lost.push(n);
            }
        }
        lost
    }

    fn back(&mut self, which: usize) {
        self.parents[which] = Parent::fresh(self.now);
    }

    /// Devices served by each parent last.
    fn load(&self) -> Vec<usize> {
        let mut load = vec![0; self.parents.len()];
        self.devices.iter().filter_map(|d| d.served).for_each(|(which, _)| load[which] += 1);
        load
    }
}

fn even(load: &[usize], devices: usize) -> bool {
    let share = devices / (load.len() - 1);
    load[..load.len() - 1].iter().all(|n| n.abs_diff(share) * 5 <= share) && load[load.len() - 1] == 0
}

/// A relay of the site dies, is away for some time, and comes back.
fn outage(seed: u64, relays: usize, devices: usize, silent: bool) {
    let what = format!("seed {seed}, {devices} devices on {relays} relays, silent {silent}");
    let mut site = Site::of(seed, relays, devices, silent);
    site.run(30 * MINUTE);
    assert!(even(&site.load(), devices), "{what}: at first {:?}", site.load());
    let vain = |site: &Site| site.devices.iter().map(|d| d.vain).sum::<u64>();
    assert_eq!(vain(&site), 0, "{what}");

    let killed = site.now;
    let lost = site.kill(0);
    assert!(lost.len() * relays * 10 >= devices.min(300 * relays) * 8, "{what}: {} lost it", lost.len());
    // Two polls are at most a tenth over the interval apart.
    site.run(killed + HOUR + HOUR / 10 + MINUTE);
    for n in lost {
        let Device { served, waited, .. } = site.devices[n];
        assert!((1..relays).contains(&served.unwrap().0), "{what}: device {n} is at {served:?}");
        assert_eq!(
            waited,
            if silent { 0 } else { RESTART_DIALS.into() },
            "{what}: where a machine refuses, it may restart"
        );
    }
    // Those that polled there find another at their poll, and everybody is served all the time.
    let load = site.load();
    assert_eq!((load[0], load[relays], vain(&site)), (0, 0, 0), "{what}: {load:?}");

    let back = site.now;
    site.back(0);
    site.run(back + HOUR);
    let load = site.load();
    assert!(even(&load, devices), "{what}: an hour after its return {load:?}");
    let slots: Vec<usize> = site.parents.iter().map(|p| usize::from(p.admission.gauge().used)).collect();
    let wanted = (devices / relays).min(300);
    assert!(slots[..relays].iter().all(|n| n.abs_diff(wanted) * 5 <= wanted), "{what}: slots {slots:?}");
    assert_eq!((site.used_max <= 300, vain(&site)), (true, 0), "{what}: never a 301st slot, nobody in vain");
}

#[test]
fn when_a_relay_of_the_site_dies_the_others_serve_its_devices_within_60_s_each_within_its_cap() {
    for seed in 1..=10 {
        for (relays, devices) in [(2, 1_000), (3, 1_000), (3, 600)] {
            for silent in [false, true] {
                let mut site = Site::of(seed, relays, devices, silent);
                site.run(30 * MINUTE);
                let killed = site.now;
                let lost = site.kill(0);
                assert!(lost.len() >= 150);
                site.run(killed + MINUTE);
                for n in lost {
                    let (which, when) = site.devices[n].served.unwrap();
                    assert!(which != 0 && when >= killed, "seed {seed}, silent {silent}: device {n} is not served");
                    assert!(which < relays, "seed {seed}: device {n} went past the site's relays");
                }
                assert!(site.used_max <= 300);
            }
        }
    }
}

#[test]
fn within_an_hour_of_a_relays_return_the_load_is_even_again() {
    for seed in 1..=10 {
        for (relays, devices) in [(2, 1_000), (3, 1_000), (3, 600), (2, 500)] {
            outage(seed, relays, devices, seed % 2 == 0);
        }
    }
}

#[test]
fn devices_drift_back_to_a_relay_that_returned_slowly_and_not_in_a_crowd() {
    let mut site = Site::of(1, 3, 450, false);
    site.run(30 * MINUTE);
    site.kill(0);
    site.run(site.now + 30 * MINUTE);
    site.back(0);
    let back = site.now;
    // Probes lie between half and the whole of a quarter of an hour after the last one, each device's at its own moment.
    let mut most = 0;
    for minute in 1..=16 {
        let before = site.parents[0].admission.gauge().used;
        site.run(back + minute * MINUTE);
        most = most.max(site.parents[0].admission.gauge().used - before);
    }
    let used = site.parents[0].admission.gauge().used;
    assert!((120..=180).contains(&used), "all of its share is back: {used}");
    assert!(most <= 40, "{most} of {used} came within a minute, where 10 to 20 are the mean");
}

#[test]
fn top_4_a_full_house_whose_direct_way_is_blocked_is_on_the_gateway_within_60_s_and_back_at_the_probe() {
    for seed in 1..=10 {
        for silent in [false, true] {
            // The server itself at 0, and at 1 through its gateway.
            let mut site = Site::with_gateways(seed, 0, 300, silent, vec!["https://1".into()]);
            site.run(30 * MINUTE);
            assert_eq!(site.load(), [300, 0], "both ways are open: nobody is at the gateway");
            let blocked = site.now;
            assert_eq!(site.kill(0).len(), 300);
            site.run(blocked + MINUTE);
            assert_eq!(site.load(), [0, 300], "seed {seed}, silent {silent}");
            site.run(blocked + HOUR);
            assert_eq!(site.load(), [0, 300], "it stays blocked, and nobody is without a link");
            site.back(0);
            site.run(blocked + HOUR + PROBE_MS + 1);
            assert_eq!(site.load(), [300, 0], "seed {seed}, silent {silent}: back within the interval");
        }
    }
}
