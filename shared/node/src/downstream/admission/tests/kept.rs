//! Slots that are kept for waiters which a wake may bring.

use super::*;

#[test]
fn adm_3_a_wakeable_waiter_is_woken_and_the_next_one_when_it_does_not_come() {
    let mut rig = Rig::full(1);
    rig.ask_as(2, 2, Ordinary, true);
    rig.ask_as(3, 3, Ordinary, true);
    rig.at += 5_000;
    assert_eq!(rig.gone(1, 1), [Effect::Wake { node: node(2) }]);
    assert_eq!(rig.core.next_deadline(), Some(Mono(rig.at + 3_000)));
    assert_eq!(rig.wait(2_999), []);
    assert_eq!(rig.wait(1), [Effect::Wake { node: node(3) }]);
    assert_eq!(rig.ask_as(3, 3, Ordinary, true), [Effect::Admitted { session: 3 }]);
    assert_eq!(rig.counts(), (1, 1, 0));
}

#[test]
fn adm_3_s_14_a_slot_is_kept_for_a_waiter_that_was_just_here_until_a_wake_may_bring_it_again() {
    for (ago, kept) in [(0, 8_000), (1, 7_999), (4_999, 3_001), (5_000, 3_000), (60_000, 3_000)] {
        let mut rig = Rig::full(1);
        rig.ask_as(2, 2, Ordinary, true);
        rig.ask_as(3, 3, Ordinary, true);
        rig.at += ago;
        assert_eq!(rig.gone(1, 1), [Effect::Wake { node: node(2) }]);
        assert_eq!(rig.wait(kept - 1), [], "{ago}");
        assert_eq!(rig.wait(1), [Effect::Wake { node: node(3) }], "{ago}");
    }
}

#[test]
fn adm_3_where_no_wake_packet_arrives_the_slot_waits_for_a_poll() {
    let mut rig = Rig::full(1);
    for n in 2..=4 {
        rig.ask_as(n, n, Ordinary, true);
    }
    rig.at += 5_000;
    rig.gone(1, 1);
    for _ in 0..3 {
        rig.wait(3_000);
    }
    // Each was tried once; the slot stays with device 2 until its poll instead of running round the three.
    assert_eq!(rig.wait(HOUR / 2), []);
    assert_eq!(deferred(&rig.ask_as(3, 3, Ordinary, true)), 1);
    assert_eq!(rig.ask_as(2, 2, Ordinary, true), [Effect::Admitted { session: 2 }]);
}

#[test]
fn adm_3_reservations_that_lapse_together_keep_their_order() {
    let mut rig = Rig::full(3);
    for n in [9, 8, 7] {
        rig.ask_as(n, n, Ordinary, true);
    }
    rig.ask_as(6, 6, Ordinary, false);
    rig.at += 5_000;
    for n in 1..=3 {
        rig.gone(n, n);
    }
    rig.wait(3_000);
    assert_eq!(rig.counts(), (3, 1, 3), "6, 9 and 8 have the slots");
    assert_eq!(deferred(&rig.ask_as(7, 7, Ordinary, true)), 1);
}
