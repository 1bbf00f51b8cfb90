//! The rules one by one. Random sequences against a reference are in `model`.

mod kept;
mod needs;
mod pools;
mod recovery;

use super::*;
use Need::{Keep, Ordinary, Urgent};
use Want::{Bulk, Persistent, Poll};
use uuid::Uuid;

const HOUR: u64 = 3_600_000;

/// An Admission with its own clock; every method answers with the effects of one event.
pub(super) struct Rig {
    pub core: Admission,
    pub at: u64,
}

pub(super) fn node(n: u64) -> NodeId {
    NodeId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + u128::from(n)))
}

pub(super) fn cap(slots: i64) -> Cap {
    Cap::new(slots, false).expect("a cap in range")
}

pub(super) fn now(at: u64) -> Now {
    Now { mono: Mono(at), ..Now::default() }
}

/// Device `n` on a link that is its own session and attachment number.
pub(super) fn ask(n: u64, session: u64, want: Want) -> Ask {
    let key = AttachmentKey { epoch: 1, attachment: session };
    Ask {
        node: node(n),
        role: Role::Agent,
        key,
        session,
        want,
        need: Need::Ordinary,
        wakeable: false,
        poll_interval_ms: None,
        pressing_ms: None,
    }
}

impl Rig {
    fn new(slots: i64) -> Self {
        Rig::with(AdmissionConfig::new(cap(slots)))
    }

    fn with(config: AdmissionConfig) -> Self {
        Rig { core: Admission::new(config), at: 1_000 }
    }

    /// Devices 1 to `slots` on sessions of the same number hold all slots.
    fn full(slots: u64) -> Self {
        let mut rig = Rig::new(slots as i64);
        for n in 1..=slots {
            assert_eq!(rig.ask(n, n, Persistent), [Effect::Admitted { session: n }]);
        }
        rig
    }

    pub fn event(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.core.handle(now(self.at), event, &mut out);
        let gauge = self.core.gauge();
        assert!(gauge.used <= gauge.cap && gauge.reserved <= gauge.used, "{gauge:?}");
        out
    }

    fn ask(&mut self, n: u64, session: u64, want: Want) -> Vec<Effect> {
        self.event(Event::Ask(ask(n, session, want)))
    }

    fn ask_as(&mut self, n: u64, session: u64, need: Need, wakeable: bool) -> Vec<Effect> {
        self.event(Event::Ask(Ask { need, wakeable, ..ask(n, session, Persistent) }))
    }

    fn relay(&mut self, n: u64, session: u64) -> Vec<Effect> {
        self.event(Event::Ask(Ask { role: Role::Relay, ..ask(n, session, Persistent) }))
    }

    fn gone(&mut self, n: u64, session: u64) -> Vec<Effect> {
        self.event(Event::Gone { node: node(n), session })
    }

    fn set_cap(&mut self, slots: i64) -> Vec<Effect> {
        self.event(Event::SetCap { cap: cap(slots) })
    }

    fn wait(&mut self, ms: u64) -> Vec<Effect> {
        self.at += ms;
        self.event(Event::Tick)
    }

    /// These devices have an order in progress.
    fn busy(&mut self, devices: impl IntoIterator<Item = u64>) -> Vec<Effect> {
        let demand = Demand { urgent: false, in_progress: true };
        self.event(Event::Demands(devices.into_iter().map(|n| (node(n), demand)).collect()))
    }

    fn set_need(&mut self, n: u64, need: Need) -> Vec<Effect> {
        self.event(Event::Need { node: node(n), need })
    }

    /// (used, waiting, reserved)
    fn counts(&self) -> (u16, u32, u16) {
        let gauge = self.core.gauge();
        (gauge.used, gauge.waiting, gauge.reserved)
    }
}

/// The number in line that the one answer of `effects` gives.
fn deferred(effects: &[Effect]) -> u32 {
    match effects {
        [Effect::Deferred { lease, .. }] => lease.waiter,
        other => panic!("not deferred: {other:?}"),
    }
}

fn busy(effects: &[Effect]) -> u64 {
    match effects {
        [Effect::Busy { retry_after_ms, .. }] => *retry_after_ms,
        other => panic!("not busy: {other:?}"),
    }
}

/// ADM-14: settings govern each device's lease and how long it is waited for, whatever the node's own configuration says.
#[test]
fn adm_14_the_settings_interval_is_in_the_lease_and_in_the_patience() {
    let mut rig = Rig::new(1);
    rig.event(Event::Ask(ask(1, 1, Persistent)));
    let hours = |n: u64| Some(n * 3_600_000);
    let lease = |effects: &[Effect]| match effects {
        [Effect::Deferred { lease, .. }] => *lease,
        other => panic!("{other:?}"),
    };
    let own = lease(&rig.event(Event::Ask(Ask { poll_interval_ms: hours(5), ..ask(2, 2, Persistent) })));
    assert_eq!((own.interval_ms, own.waiter), (5 * 3_600_000, 1));
    assert!(own.phase_ms < own.interval_ms);
    let configured = lease(&rig.event(Event::Ask(ask(3, 3, Persistent))));
    assert_eq!(configured.interval_ms, 3_600_000);
    // Three of its own intervals, not of the configuration's.
    rig.at += 3 * 5 * 3_600_000 - 1;
    rig.event(Event::Tick);
    assert_eq!(rig.core.gauge().waiting, 1);
    rig.at += 1;
    rig.event(Event::Tick);
    assert_eq!(rig.core.gauge().waiting, 0);
    rig.event(Event::Ask(Ask { poll_interval_ms: hours(2), ..ask(4, 4, Poll) }));
    assert_eq!(rig.core.lease(node(4)).interval_ms, 2 * 3_600_000);
}

#[test]
fn adm_2_the_301st_is_deferred_with_a_poll_interval() {
    let mut rig = Rig::full(300);
    assert_eq!(rig.counts(), (300, 0, 0));
    let effects = rig.ask(301, 301, Persistent);
    let [Effect::Deferred { session: 301, lease }] = effects[..] else { panic!("{effects:?}") };
    assert_eq!((lease.interval_ms, lease.waiter), (HOUR, 1));
    assert!(lease.phase_ms < HOUR);
    assert_eq!(rig.counts(), (300, 1, 0));
}

#[test]
fn adm_2_a_thousand_at_once_never_pass_300() {
    let mut rig = Rig::new(300);
    let answers: Vec<_> = (1..=1_000).flat_map(|n| rig.ask(n, n, Persistent)).collect();
    assert_eq!(answers.iter().filter(|e| matches!(e, Effect::Admitted { .. })).count(), 300);
    assert_eq!(answers.iter().filter(|e| matches!(e, Effect::Deferred { .. })).count(), 700);
    let by = |ordinary| ByNeed { ordinary, ..ByNeed::default() };
    let (held_by, waiting_by) = (by(300), by(700));
    let expected = Gauge { used: 300, cap: 300, peak: 300, waiting: 700, reserved: 0, held_by, waiting_by };
    assert_eq!(rig.core.gauge(), expected);
}

#[test]
fn adm_2_a_cap_of_one_holds_one() {
    let mut rig = Rig::full(1);
    assert_eq!(deferred(&rig.ask(2, 2, Persistent)), 1);
    assert_eq!(deferred(&rig.ask(3, 3, Persistent)), 2);
}

#[test]
fn adm_2_the_peak_stays_when_the_gauge_falls() {
    let mut rig = Rig::full(3);
    rig.gone(1, 1);
    let gauge = rig.core.gauge();
    assert_eq!((gauge.used, gauge.cap, gauge.peak, gauge.waiting, gauge.reserved), (2, 3, 3, 0, 0));
    let json = serde_json::to_value(gauge).expect("a gauge is plain numbers");
    let expected = serde_json::json!({
        "used": 2, "cap": 3, "peak": 3, "waiting": 0, "reserved": 0,
        "held_by": {"ordinary": 2, "keep": 0, "urgent": 0}, "waiting_by": {"ordinary": 0, "keep": 0, "urgent": 0},
    });
    assert_eq!(json, expected);
}

#[test]
fn adm_2_leases_spread_evenly_and_stay() {
    let mut tenths = [0u32; 10];
    for n in 0..1_000 {
        let lease = Lease::new(node(n), HOUR, 0);
        assert_eq!(lease, Lease::new(node(n), HOUR, 0));
        tenths[(lease.phase_ms * 10 / HOUR) as usize] += 1;
    }
    assert!(tenths.iter().all(|count| (60..=140).contains(count)), "{tenths:?}");
    assert_eq!(Lease::new(node(1), 1, 0).phase_ms, 0);
}

#[test]
fn adm_3_a_freed_slot_is_reserved_for_the_longest_waiter() {
    let mut rig = Rig::full(300);
    for n in 301..=305 {
        assert_eq!(deferred(&rig.ask(n, n, Persistent)), (n - 300) as u32);
        rig.gone(n, n);
    }
    assert_eq!(rig.gone(7, 7), []);
    assert_eq!(rig.counts(), (300, 4, 1), "exactly one is reserved");
    for (n, number) in [(999, 5), (302, 1), (305, 4)] {
        assert_eq!(deferred(&rig.ask(n, 1_000 + n, Persistent)), number, "{n} is not the first in line");
    }
    assert_eq!(rig.ask(301, 2_000, Persistent), [Effect::Admitted { session: 2_000 }]);
    assert_eq!(rig.counts(), (300, 5, 0));
}

#[test]
fn adm_3_need_goes_before_length_of_wait() {
    let mut rig = Rig::full(1);
    assert_eq!(deferred(&rig.ask_as(2, 2, Ordinary, false)), 1);
    assert_eq!(deferred(&rig.ask_as(3, 3, Urgent, false)), 1);
    assert_eq!(deferred(&rig.ask_as(4, 4, Urgent, false)), 2);
    assert_eq!(deferred(&rig.ask_as(2, 2, Ordinary, false)), 3);
    rig.gone(1, 1);
    assert_eq!(rig.ask_as(3, 3, Urgent, false), [Effect::Admitted { session: 3 }]);
}

#[test]
fn adm_3_a_polling_waiters_reservation_lapses_after_an_interval_and_a_tenth() {
    let mut rig = Rig::full(1);
    rig.ask(2, 2, Persistent);
    rig.at += HOUR;
    rig.ask(3, 3, Persistent);
    rig.gone(1, 1);
    rig.wait(HOUR + HOUR / 10 - 1);
    assert_eq!(deferred(&rig.ask(3, 3, Persistent)), 1);
    rig.wait(1);
    assert_eq!(deferred(&rig.ask(2, 2, Persistent)), 1, "it had its chance and is behind device 3");
    assert_eq!(rig.ask(3, 3, Persistent), [Effect::Admitted { session: 3 }]);
}

#[test]
fn adm_3_a_waiter_silent_for_three_intervals_leaves_the_line() {
    let mut rig = Rig::full(1);
    rig.ask(2, 2, Persistent);
    assert_eq!(rig.core.next_deadline(), Some(Mono(rig.at + HOUR)), "it rises");
    rig.wait(3 * HOUR - 1);
    assert_eq!(rig.core.next_deadline(), Some(Mono(rig.at + 1)));
    assert_eq!(rig.counts(), (1, 1, 0));
    rig.wait(1);
    assert_eq!(rig.counts(), (1, 0, 0));
    assert_eq!(rig.core.next_deadline(), None);

    rig.busy([1]);
    rig.ask(2, 2, Persistent);
    rig.wait(2 * HOUR);
    rig.ask(2, 2, Persistent);
    rig.wait(2 * HOUR);
    assert_eq!(rig.counts(), (1, 1, 0), "any contact counts");
}

#[test]
fn adm_3_a_silent_waiters_reservation_goes_with_it() {
    let mut rig = Rig::full(1);
    rig.ask(2, 2, Persistent);
    rig.wait(3 * HOUR - 1_000);
    rig.gone(1, 1);
    assert_eq!(rig.counts(), (1, 0, 1));
    rig.wait(1_000);
    assert_eq!(rig.counts(), (0, 0, 0));
    assert_eq!(rig.ask(3, 3, Persistent), [Effect::Admitted { session: 3 }]);
}

#[test]
fn adm_3_past_the_longest_line_a_device_is_deferred_but_not_in_line() {
    let mut rig = Rig::full(1);
    let longest = WAITERS_MAX as u64;
    for n in 2..=longest {
        rig.ask(n, n, Persistent);
    }
    assert_eq!(deferred(&rig.ask(longest + 1, longest + 1, Persistent)), longest as u32);
    assert_eq!(deferred(&rig.ask(longest + 2, longest + 2, Persistent)), 0);
    assert_eq!(rig.counts(), (1, longest as u32, 0));
    assert_eq!(deferred(&rig.ask(longest, longest, Persistent)), longest as u32 - 1, "a waiter keeps its place");
}

#[test]
fn adm_5_the_newer_link_replaces_the_older_and_the_gauge_stays() {
    let mut rig = Rig::full(2);
    let effects = rig.ask(1, 50, Persistent);
    assert_eq!(effects, [Effect::Replaced { session: 1 }, Effect::Admitted { session: 50 }]);
    assert_eq!(rig.counts(), (2, 0, 0));
    assert_eq!(rig.gone(1, 1), [], "the late end of the older link touches nothing");
    assert_eq!(rig.core.persistent_session(node(1)), Some(50));
    assert_eq!(rig.counts(), (2, 0, 0));
}

#[test]
fn adm_5_an_older_or_equal_attachment_is_stale_and_touches_nothing() {
    let mut rig = Rig::full(1);
    rig.ask(1, 50, Persistent);
    for want in [Persistent, Poll] {
        for attachment in [49, 50] {
            let key = AttachmentKey { epoch: 1, attachment };
            let effects = rig.event(Event::Ask(Ask { key, ..ask(1, 60, want) }));
            assert_eq!(effects, [Effect::Stale { session: 60 }]);
        }
    }
    assert_eq!(rig.core.persistent_session(node(1)), Some(50));
    let key = AttachmentKey { epoch: 2, attachment: 1 };
    let effects = rig.event(Event::Ask(Ask { key, ..ask(1, 61, Persistent) }));
    assert_eq!(effects, [Effect::Replaced { session: 50 }, Effect::Admitted { session: 61 }], "a later epoch is newer");
}

#[test]
fn adm_5_a_waiters_older_link_is_stale_too() {
    let mut rig = Rig::full(1);
    rig.ask(2, 20, Persistent);
    rig.gone(2, 20);
    assert_eq!(rig.ask(2, 19, Persistent), [Effect::Stale { session: 19 }]);
    assert_eq!(deferred(&rig.ask(2, 21, Persistent)), 1);
    let effects = rig.ask(2, 22, Persistent);
    assert_eq!(effects[0], Effect::Replaced { session: 21 });
    assert_eq!(deferred(&effects[1..]), 1);
}

#[test]
fn adm_5_the_same_session_has_it_already() {
    let mut rig = Rig::full(1);
    assert_eq!(rig.ask(1, 1, Persistent), [Effect::Already { session: 1 }]);
    assert_eq!(rig.counts(), (1, 0, 0));
}

#[test]
fn adm_5_a_link_that_never_asked_holds_nothing() {
    let mut rig = Rig::new(1);
    assert_eq!(rig.gone(1, 1), []);
    assert_eq!(rig.counts(), (0, 0, 0));
    assert_eq!(rig.ask(2, 2, Persistent), [Effect::Admitted { session: 2 }]);
}

/// S-4: 400 devices for 300 slots; 20 leave, the 20 longest waiters are woken and come.
#[test]
fn rly_6_s_4_twenty_leave_and_the_twenty_longest_waiters_hold_their_slots() {
    let mut rig = Rig::new(300);
    for n in 1..=400 {
        rig.ask_as(n, n, Ordinary, true);
    }
    assert_eq!(rig.counts(), (300, 100, 0));
    for n in 1..=20 {
        assert_eq!(rig.gone(n, n), [Effect::Wake { node: node(300 + n) }]);
    }
    assert_eq!(rig.counts(), (300, 80, 20));
    for n in (301..=320).rev() {
        let effects = rig.ask_as(n, 1_000 + n, Ordinary, true);
        assert_eq!(effects, [Effect::Replaced { session: n }, Effect::Admitted { session: 1_000 + n }]);
    }
    assert_eq!((rig.counts(), rig.core.gauge().peak), ((300, 80, 0), 300));
}

#[test]
fn adm_1_a_holder_that_polls_gives_its_slot_up() {
    let mut rig = Rig::full(2);
    rig.ask(3, 3, Persistent);
    assert_eq!(rig.ask(1, 1, Poll), [Effect::Admitted { session: 1 }], "the setting was unset on a live link");
    assert_eq!(rig.counts(), (2, 0, 1));
    let effects = rig.ask(2, 9, Poll);
    assert_eq!(effects, [Effect::Replaced { session: 2 }, Effect::Admitted { session: 9 }]);
    assert_eq!((rig.counts(), rig.core.pools().polls), ((1, 0, 1), 2));
}

#[test]
fn adm_1_a_waiter_keeps_its_place_while_served_and_leaves_when_it_wants_no_slot() {
    let mut rig = Rig::full(1);
    rig.ask(2, 2, Persistent);
    assert_eq!(rig.ask(2, 2, Poll), [Effect::Admitted { session: 2 }]);
    assert_eq!(rig.counts(), (1, 1, 0), "a deferred link that is served as a poll stays in line");
    assert_eq!(rig.ask(2, 3, Poll), [Effect::Replaced { session: 2 }, Effect::Admitted { session: 3 }]);
    assert_eq!((rig.counts(), rig.core.pools().polls), ((1, 0, 0), 1));
    assert_eq!(deferred(&rig.ask(2, 3, Persistent)), 1, "set again while it polls");
    rig.gone(1, 1);
    assert_eq!(rig.ask(2, 3, Persistent), [Effect::Admitted { session: 3 }]);
    assert_eq!((rig.counts(), rig.core.pools().polls), ((1, 0, 0), 0));
}

#[test]
fn adm_6_lowered_live_the_rest_is_turned_to_polling() {
    let mut rig = Rig::full(300);
    let effects = rig.set_cap(200);
    let displaced: Vec<u64> = effects
        .iter()
        .map(|e| match e {
            Effect::Displace { session, lease } => {
                assert_eq!(u64::from(lease.waiter), session - 200);
                *session
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(displaced, (201..=300).collect::<Vec<_>>(), "the latest arrivals, longest held first in line");
    assert_eq!(rig.counts(), (200, 100, 0));
    assert_eq!(rig.ask(201, 201, Poll), [Effect::Admitted { session: 201 }], "the live link goes on as a poll");
}

#[test]
fn adm_6_lowering_takes_reservations_first_then_the_lowest_need() {
    let mut rig = Rig::new(4);
    for (n, need) in [(1, Keep), (2, Ordinary), (3, Urgent), (4, Keep), (5, Keep)] {
        rig.ask_as(n, n, need, false);
    }
    rig.gone(4, 4);
    assert_eq!(rig.counts(), (4, 0, 1));
    assert_eq!(rig.set_cap(3), []);
    assert_eq!(rig.counts(), (3, 1, 0));
    let effects = rig.set_cap(2);
    assert!(matches!(effects[..], [Effect::Displace { session: 2, lease: Lease { waiter: 2, .. } }]), "{effects:?}");
    let effects = rig.set_cap(1);
    assert!(matches!(effects[..], [Effect::Displace { session: 1, .. }]), "{effects:?}");
    assert_eq!(rig.core.persistent_session(node(3)), Some(3));
}

#[test]
fn adm_6_raised_live_the_longest_waiters_get_the_new_slots() {
    let mut rig = Rig::full(1);
    for n in 2..=5 {
        rig.ask_as(n, n, Ordinary, true);
    }
    assert_eq!(rig.set_cap(3), [Effect::Wake { node: node(2) }, Effect::Wake { node: node(3) }]);
    assert_eq!(rig.counts(), (3, 2, 2));
    assert_eq!(rig.set_cap(1), []);
    assert_eq!(rig.set_cap(2), [Effect::Wake { node: node(2) }], "the order survived");
}
