//! The places beside the slots.

use super::*;

#[test]
fn adm_7_relays_have_their_own_pool() {
    let mut rig = Rig::full(300);
    for n in 1_001..=1_512 {
        assert_eq!(rig.relay(n, n), [Effect::Admitted { session: n }]);
    }
    assert_eq!((rig.counts(), rig.core.pools().relays), ((300, 0, 0), 512));
    let retry = busy(&rig.relay(1_513, 1_513));
    assert!((1_000..10_000).contains(&retry), "{retry}");
    assert_eq!(rig.relay(1_001, 2_000), [Effect::Replaced { session: 1_001 }, Effect::Admitted { session: 2_000 }]);
    rig.gone(1_002, 1_002);
    assert_eq!(rig.relay(1_513, 1_513), [Effect::Admitted { session: 1_513 }]);
}

#[test]
fn adm_7_polls_and_bulk_links_have_their_own_pools() {
    let mut rig = Rig::full(1);
    for n in 101..=164 {
        assert_eq!(rig.ask(n, n, Poll), [Effect::Admitted { session: n }]);
    }
    busy(&rig.ask(165, 165, Poll));
    assert_eq!(rig.ask(101, 101, Poll), [Effect::Already { session: 101 }]);
    rig.gone(101, 101);
    assert_eq!(rig.ask(165, 165, Poll), [Effect::Admitted { session: 165 }]);

    for session in 1_000..1_032 {
        assert_eq!(rig.ask(session / 4, session, Bulk), [Effect::Admitted { session }]);
    }
    busy(&rig.ask(9, 1_032, Bulk));
    rig.gone(250, 1_000);
    assert_eq!(rig.ask(9, 1_032, Bulk), [Effect::Admitted { session: 1_032 }]);
    assert_eq!(rig.core.pools(), Pools { relays: 0, polls: 64, bulk: 32 });
    assert_eq!(rig.counts(), (1, 0, 0));
}

#[test]
fn adm_7_one_child_takes_at_most_four_bulk_places_and_keeps_its_slot() {
    let mut rig = Rig::full(1);
    for session in 10..14 {
        assert_eq!(rig.ask(1, session, Bulk), [Effect::Admitted { session }]);
    }
    busy(&rig.ask(1, 14, Bulk));
    assert_eq!(rig.ask(1, 13, Bulk), [Effect::Already { session: 13 }]);
    assert_eq!(rig.core.persistent_session(node(1)), Some(1));
    assert_eq!(rig.gone(2, 10), [], "another child's word ends nothing");
    assert_eq!(rig.core.pools().bulk, 4);
}

#[test]
fn adm_7_a_closed_pool_is_busy() {
    let mut rig = Rig::with(AdmissionConfig::default().pools(0, 0, 0));
    busy(&rig.relay(1, 1));
    busy(&rig.ask(2, 2, Poll));
    busy(&rig.ask(3, 3, Bulk));
    assert_eq!(rig.ask(4, 4, Persistent), [Effect::Admitted { session: 4 }]);
}

#[test]
fn adm_7_servers_and_gateways_are_nobodys_children() {
    let mut rig = Rig::new(1);
    for role in [Role::Server, Role::Gateway] {
        for want in [Persistent, Poll, Bulk] {
            let effects = rig.event(Event::Ask(Ask { role, ..ask(1, 1, want) }));
            assert_eq!(effects, [Effect::WrongRole { session: 1 }]);
        }
    }
    assert_eq!((rig.counts(), rig.core.pools()), ((0, 0, 0), Pools { relays: 0, polls: 0, bulk: 0 }));
}
