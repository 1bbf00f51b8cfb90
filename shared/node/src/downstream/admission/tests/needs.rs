//! Who needs a slot more: order, displacement, shares, rising (decision 32).

use super::*;

const HELD: u64 = HELD_MS_MIN;

/// Whose slot was taken for the one who asked, by session.
fn displaced(effects: &[Effect], asking: u64) -> u64 {
    match effects {
        [Effect::Displace { session, .. }, Effect::Admitted { session: admitted }] if *admitted == asking => *session,
        other => panic!("nobody displaced for {asking}: {other:?}"),
    }
}

#[test]
fn adm_1_a_device_that_is_to_keep_its_connection_displaces_one_held_ten_minutes_and_not_a_moment_less() {
    let mut rig = Rig::full(1);
    rig.at += HELD - 1;
    assert_eq!(deferred(&rig.ask_as(2, 2, Keep, false)), 1);
    rig.at += 1;
    assert_eq!(displaced(&rig.ask_as(2, 2, Keep, false), 2), 1);
    assert_eq!((rig.counts(), rig.core.gauge().held_by.keep), ((1, 1, 0), 1));
}

#[test]
fn adm_3_nobody_displaces_its_equal_or_better() {
    for (holder, asks) in [(Ordinary, Ordinary), (Keep, Keep), (Urgent, Urgent), (Keep, Ordinary), (Urgent, Keep)] {
        let mut rig = Rig::new(1);
        rig.ask_as(1, 1, holder, false);
        rig.at += HELD;
        assert_eq!(deferred(&rig.ask_as(2, 2, asks, false)), 1, "{asks:?} of {holder:?}");
    }
}

#[test]
fn adm_3_a_holder_with_an_order_in_progress_is_left_alone_until_it_is_over() {
    let mut rig = Rig::full(2);
    rig.at += HELD;
    rig.busy([1]);
    assert_eq!(displaced(&rig.ask_as(3, 3, Keep, false), 3), 2, "the one held longest is busy");
    rig.at += HELD;
    assert_eq!(deferred(&rig.ask_as(4, 4, Keep, false)), 1);
    rig.busy([]);
    assert_eq!(displaced(&rig.ask_as(4, 4, Keep, false), 4), 1);
}

#[test]
fn adm_3_the_lowest_need_is_displaced_first_and_of_it_the_one_held_longest() {
    let mut rig = Rig::new(2);
    rig.ask_as(1, 1, Keep, false);
    rig.ask_as(2, 2, Ordinary, false);
    rig.at += HELD;
    assert_eq!(displaced(&rig.ask_as(3, 3, Urgent, false), 3), 2);
    assert_eq!(displaced(&rig.ask_as(4, 4, Urgent, false), 4), 1);
    let mut rig = Rig::full(2);
    assert_eq!(rig.ask(1, 50, Persistent).len(), 2, "a newer link goes on holding what the older one held");
    rig.at += HELD;
    assert_eq!(displaced(&rig.ask_as(3, 3, Keep, false), 3), 50);
}

#[test]
fn adm_3_who_was_displaced_displaces_nobody_for_ten_minutes() {
    let mut rig = Rig::new(2);
    rig.ask_as(1, 1, Keep, false);
    rig.ask_as(2, 2, Ordinary, false);
    rig.at += HELD;
    rig.busy([2]);
    assert_eq!(displaced(&rig.ask_as(3, 3, Urgent, false), 3), 1);
    rig.busy([]);
    rig.at += HELD - 1;
    assert_eq!(deferred(&rig.ask_as(1, 1, Keep, false)), 1, "though device 2 is lower");
    rig.at += 1;
    assert_eq!(displaced(&rig.ask_as(1, 1, Keep, false), 1), 2);
}

#[test]
fn adm_3_nobody_is_overtaken_by_displacing() {
    let mut rig = Rig::full(2);
    for n in [3, 4, 5] {
        rig.ask_as(n, n, Keep, false);
        rig.gone(n, n);
    }
    rig.at += HELD;
    assert_eq!(deferred(&rig.ask_as(5, 50, Keep, false)), 3, "two slots for three, and the two before it come first");
    assert_eq!(displaced(&rig.ask_as(4, 40, Keep, false), 40), 1, "one is left for device 3");
    assert_eq!(deferred(&rig.ask_as(5, 51, Keep, false)[1..]), 2);
    assert_eq!(displaced(&rig.ask_as(3, 30, Keep, false), 30), 2);
}

#[test]
fn adm_3_each_need_with_waiters_keeps_five_percent() {
    let mut rig = Rig::full(300);
    rig.at += HELD;
    for n in 301..=585 {
        displaced(&rig.ask_as(n, n, Keep, false), n);
    }
    assert_eq!(deferred(&rig.ask_as(586, 586, Keep, false)), 1, "15 of 300 are the ordinary ones'");
    assert_eq!((rig.core.gauge().held_by.ordinary, rig.core.gauge().held_by.keep), (15, 285));
    // One of these leaves: the slot is reserved for the longest-waiting ordinary one, not for the one that needs it more.
    let holder = (1..=300).find(|n| rig.core.persistent_session(node(*n)).is_some()).expect("some hold");
    rig.gone(holder, holder);
    assert_eq!((rig.counts().2, rig.core.line.reserved_by(Ordinary)), (1, 1));
    rig.gone(301, 301);
    assert_eq!(rig.core.line.reserved_by(Keep), 1, "with its share kept, need goes first");
}

#[test]
fn adm_6_a_lowered_cap_leaves_each_need_its_five_percent() {
    let mut rig = Rig::new(300);
    for n in 1..=100 {
        rig.ask_as(n, n, Ordinary, false);
        rig.ask_as(1_000 + n, 1_000 + n, Keep, false);
        rig.ask_as(2_000 + n, 2_000 + n, Urgent, false);
    }
    rig.set_cap(100);
    assert_eq!(rig.core.gauge().held_by, ByNeed { ordinary: 5, keep: 5, urgent: 90 });
}

#[test]
fn adm_3_the_one_who_waited_longest_rises_with_each_hour() {
    let mut rig = Rig::full(1);
    rig.busy([1]);
    rig.ask_as(2, 2, Ordinary, false);
    rig.at += 1;
    rig.ask_as(3, 3, Ordinary, false);
    assert_eq!(deferred(&rig.ask_as(4, 4, Keep, false)), 1);
    rig.wait(HOUR - 2);
    assert_eq!(deferred(&rig.ask(2, 2, Persistent)), 2);
    rig.wait(1);
    assert_eq!(deferred(&rig.ask(2, 2, Persistent)), 1, "before device 4, which came later");
    assert_eq!(deferred(&rig.ask(3, 3, Persistent)), 3, "one at a time");
    rig.wait(HOUR);
    assert_eq!(rig.core.gauge().waiting_by, ByNeed { ordinary: 1, keep: 1, urgent: 1 }, "the same one again");
    rig.wait(HOUR);
    assert_eq!(rig.core.gauge().waiting_by, ByNeed { ordinary: 0, keep: 2, urgent: 1 }, "then the next");
}

#[test]
fn adm_3_an_ordinary_waiter_has_its_turn_after_an_hour() {
    let mut rig = Rig::full(1);
    rig.ask(2, 2, Persistent);
    rig.wait(HOUR);
    assert_eq!(displaced(&rig.ask(2, 2, Persistent), 2), 1);
    assert_eq!(rig.core.gauge().held_by.ordinary, 1, "a holder counts as what it needs, not as what it rose to");
}

#[test]
fn adm_1_set_and_unset_while_the_link_is_up() {
    let mut rig = Rig::full(2);
    rig.ask_as(3, 3, Ordinary, false);
    rig.ask_as(4, 4, Ordinary, false);
    assert_eq!(rig.set_need(4, Keep), []);
    assert_eq!(rig.core.line.number(node(4)), 1, "its age stays, its need goes first");
    assert_eq!(rig.set_need(1, Keep), []);
    assert_eq!((rig.counts(), rig.core.gauge().held_by.keep), ((2, 2, 0), 1));
    let lost = rig.set_need(1, Need::None);
    assert!(matches!(lost[..], [Effect::Displace { session: 1, lease: Lease { waiter: 0, .. } }]), "{lost:?}");
    assert_eq!(rig.counts(), (2, 1, 1), "it does not wait; its slot is device 4's");
    assert_eq!(rig.set_need(4, Need::None), []);
    assert_eq!(rig.counts(), (2, 0, 1), "and that one's is device 3's");
    assert_eq!(rig.set_need(9, Keep), [], "nobody here");
}

#[test]
fn adm_9_an_urgent_order_lifts_holder_and_waiter_while_it_is_open() {
    let mut rig = Rig::full(1);
    rig.ask_as(2, 2, Keep, false);
    rig.ask_as(3, 3, Ordinary, false);
    let urgent = |devices: &[u64]| {
        let demand = Demand { urgent: true, in_progress: false };
        Event::Demands(devices.iter().map(|n| (node(*n), demand)).collect())
    };
    rig.event(urgent(&[1, 3, 7]));
    assert_eq!(rig.core.gauge().held_by, ByNeed { urgent: 1, ..ByNeed::default() });
    assert_eq!(rig.core.line.number(node(3)), 1);
    rig.at += HELD;
    assert_eq!(deferred(&rig.ask_as(3, 3, Ordinary, false)), 1, "its equal holds");
    rig.event(urgent(&[3]));
    assert_eq!(displaced(&rig.ask_as(3, 3, Ordinary, false), 3), 1);
    rig.event(urgent(&[]));
    assert_eq!(rig.core.gauge().held_by, ByNeed { ordinary: 1, ..ByNeed::default() });
    let poll = rig.event(urgent(&[9])).len() + rig.ask(9, 9, Poll).len();
    assert_eq!((poll, rig.core.pools().polls), (1, 1), "one that polls takes no slot for it");
}

#[test]
fn adm_9_adm_10_the_lease_is_that_of_the_most_pressing_class_and_never_longer_than_the_normal_one() {
    let mut rig = Rig::full(1);
    let lease = |rig: &mut Rig, n: u64, settings: Option<u64>, pressing_ms: Option<u64>| {
        let ask = Ask { poll_interval_ms: settings, pressing_ms, ..ask(n, n, Poll) };
        rig.event(Event::Ask(ask));
        rig.core.lease(node(n)).interval_ms
    };
    assert_eq!(lease(&mut rig, 2, None, None), HOUR);
    assert_eq!(lease(&mut rig, 3, None, Some(600_000)), 600_000);
    assert_eq!(lease(&mut rig, 4, Some(2 * HOUR), Some(900_000)), 900_000);
    assert_eq!(lease(&mut rig, 5, Some(300_000), Some(900_000)), 300_000);
}

#[test]
fn adm_3_a_slot_is_kept_for_a_polling_waiter_as_long_as_its_own_interval_takes() {
    let mut rig = Rig::full(1);
    rig.event(Event::Ask(Ask { pressing_ms: Some(600_000), ..ask(2, 2, Persistent) }));
    rig.gone(1, 1);
    rig.wait(660_000 - 1);
    assert_eq!(rig.counts(), (1, 0, 1));
    rig.wait(1);
    assert_eq!((rig.counts(), rig.core.line.number(node(2))), ((1, 0, 1), 0), "it is the only one, and has it again");
}
