//! Admission rebuilt while sessions live on.

use super::*;

#[test]
fn rly_6_a_rebuilt_admission_is_closed_until_the_live_sessions_are_back() {
    let mut rig = Rig { core: Admission::recovering(AdmissionConfig::new(cap(2)), now(1_000)), at: 1_000 };
    assert_eq!(rig.core.next_deadline(), Some(Mono(6_000)));
    let retry = busy(&rig.ask(3, 3, Persistent));
    assert!((6_000..15_000).contains(&retry), "after it opens again: {retry}");
    assert_eq!(rig.event(Event::Reregister(ask(1, 1, Persistent))), [Effect::Already { session: 1 }]);
    assert_eq!(rig.ask(1, 1, Persistent), [Effect::Already { session: 1 }]);
    for want in [Poll, Bulk] {
        busy(&rig.ask(3, 3, want));
    }
    rig.at = 5_999;
    busy(&rig.ask(3, 3, Persistent));
    assert_eq!(rig.event(Event::Reregister(ask(2, 2, Persistent))), [Effect::Already { session: 2 }]);
    rig.at = 6_000;
    assert_eq!(deferred(&rig.ask(3, 3, Persistent)), 1);
    assert_eq!(rig.core.next_deadline(), Some(Mono(6_000 + HOUR)), "the recovery timer is cleared, a waiter rises");
}

#[test]
fn rly_6_reregistering_never_passes_a_cap_that_was_lowered() {
    let mut rig = Rig { core: Admission::recovering(AdmissionConfig::new(cap(2)), now(0)), at: 0 };
    for n in 1..=2 {
        assert_eq!(rig.event(Event::Reregister(ask(n, n, Persistent))), [Effect::Already { session: n }]);
    }
    let effects = rig.event(Event::Reregister(ask(3, 3, Persistent)));
    assert!(matches!(effects[..], [Effect::Displace { session: 3, .. }]), "{effects:?}");
    rig.gone(1, 1);
    assert_eq!(rig.counts(), (1, 1, 0), "a slot may belong to a live session: none is promised yet");
    assert_eq!(rig.event(Event::Reregister(ask(4, 4, Persistent))), [Effect::Already { session: 4 }]);
    rig.gone(2, 2);
    rig.wait(RECOVERY_MS);
    assert_eq!(rig.counts(), (2, 0, 1));
    assert_eq!(rig.ask(3, 3, Persistent), [Effect::Admitted { session: 3 }]);
}

#[test]
fn rly_6_two_links_of_one_device_reregister_in_either_order() {
    for sessions in [[1, 2], [2, 1]] {
        let mut rig = Rig { core: Admission::recovering(AdmissionConfig::new(cap(2)), now(0)), at: 0 };
        let effects: Vec<_> =
            sessions.iter().flat_map(|s| rig.event(Event::Reregister(ask(1, *s, Persistent)))).collect();
        assert_eq!(rig.core.persistent_session(node(1)), Some(2));
        assert_eq!(rig.counts(), (1, 0, 0));
        let closed =
            effects.iter().any(|e| matches!(e, Effect::Replaced { session: 1 } | Effect::Stale { session: 1 }));
        assert!(closed, "{effects:?}");
    }
}

#[test]
fn rly_6_a_late_reregistration_takes_no_reserved_slot() {
    let mut rig = Rig::full(1);
    rig.ask(2, 2, Persistent);
    rig.gone(1, 1);
    let effects = rig.event(Event::Reregister(ask(3, 3, Persistent)));
    assert!(matches!(effects[..], [Effect::Displace { session: 3, .. }]), "{effects:?}");
    assert_eq!(rig.ask(2, 2, Persistent), [Effect::Admitted { session: 2 }]);
}

#[test]
fn rly_6_relays_polls_and_bulk_links_come_back_to_their_pools() {
    let mut rig = Rig { core: Admission::recovering(AdmissionConfig::new(cap(1)).pools(1, 1, 1), now(0)), at: 0 };
    let relay = |n| Event::Reregister(Ask { role: Role::Relay, ..ask(n, n, Persistent) });
    assert_eq!(rig.event(relay(1)), [Effect::Already { session: 1 }]);
    assert_eq!(rig.event(Event::Reregister(ask(2, 2, Poll))), [Effect::Already { session: 2 }]);
    assert_eq!(rig.event(Event::Reregister(ask(3, 3, Bulk))), [Effect::Already { session: 3 }]);
    busy(&rig.event(relay(4)));
    busy(&rig.event(Event::Reregister(ask(5, 5, Poll))));
    busy(&rig.event(Event::Reregister(ask(6, 6, Bulk))));
    assert_eq!(rig.core.pools(), Pools { relays: 1, polls: 1, bulk: 1 });
}
