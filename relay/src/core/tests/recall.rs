//! A restored server asks through a relay: what the relay holds, what its children hold, and when that is all (OPS-7).

use super::*;
use branchline_protocol::{
    document::{Document, Kind, Revocations, TimeStatement},
    wire::{Recall, Recalled},
};

fn list(version: u64, revoked: &[(u128, u32)]) -> Revocations {
    let revoked = revoked.iter().map(|(n, epoch)| (node(*n), *epoch)).collect();
    Revocations {
        tenant: tenant(),
        term: 1,
        version,
        revoked,
        suspended: vec![],
        raised: vec![],
        keep_connection: vec![],
    }
}

fn ask(version: u64, newest: u64) -> Event {
    let documents = vec![(Kind::Revocations, (1, version)), (Kind::Time, (1, u64::MAX))];
    parent_says(Message::Recall(Recall { documents, newest: OrderNumber { term: 1, number: newest } }))
}

/// What went up in answer: versions of revocation lists, numbers of orders, and whether that was all.
fn told(effects: &[Effect]) -> (Vec<u64>, Vec<u64>, bool) {
    let (mut lists, mut orders, mut last) = (vec![], vec![], false);
    for effect in effects {
        let Effect::ToParent(Lane::Control, Message::Recalled(recalled)) = effect else { continue };
        for (kind, envelope) in &recalled.documents {
            assert_eq!(*kind, Kind::Revocations);
            lists.push(rmp_serde::from_slice::<Revocations>(&envelope.payload).unwrap().version);
        }
        for order in &recalled.orders {
            orders.push(rmp_serde::from_slice::<Payload>(&order.envelope.payload).unwrap().number.number);
        }
        last |= recalled.last;
    }
    (lists, orders, last)
}

fn asked(effects: &[Effect], child: u128) -> Vec<(u32, u64)> {
    let of = |e: &Effect| match e {
        Effect::ToChild(n, _, Lane::Control, Message::Recall(recall)) if *n == node(child) => {
            Some(recall.documents[0].1)
        }
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

fn answer(documents: Vec<(Kind, Envelope)>, last: bool) -> Message {
    Message::Recalled(Recalled { documents, last, ..Recalled::default() })
}

#[test]
fn ops_7_a_relay_tells_newer_documents_and_open_orders_and_waits_for_its_children() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let (first, second) = (child(1, Role::Agent, 1), child(2, Role::Agent, 1));
    bench.child_up(&first);
    bench.child_up(&second);
    bench.feed(Event::Document(Kind::Revocations, list(4, &[(8, 1)]).seal(&server_key())));
    for n in [3, 7] {
        bench.feed(parent_says(Message::Orders(vec![order(n, &[1], &server_key())])));
    }
    let seen = bench.feed(ask(3, 5));
    assert_eq!(told(&seen), (vec![4], vec![7], false), "its own, newer than what the server has");
    assert_eq!((asked(&seen, 1), asked(&seen, 2)), (vec![(1, 4)], vec![(1, 4)]), "children need not repeat it");
    // A child was elsewhere when a later list came.
    let newer = list(6, &[(8, 1), (9, 1)]).seal(&server_key());
    let seen = bench.feed(child_says(&first, answer(vec![(Kind::Revocations, newer)], true)));
    assert_eq!(told(&seen), (vec![6], vec![], false));
    assert!(bench.core.shelf().revocations().covers(node(9), 1), "the relay goes by it at once");
    let handed_on = |e: &Effect| matches!(e, Effect::ToChild(n, _, _, Message::Document(..)) if *n == node(2));
    assert!(seen.iter().any(handed_on));
    let seen = bench.feed(child_says(&second, answer(vec![], true)));
    assert_eq!(told(&seen), (vec![], vec![], true), "all have told");
    // Who comes later is asked as well, before it is given anything.
    let late = child(3, Role::Agent, 1);
    let seen = bench.child_up(&late);
    assert_eq!(asked(&seen, 3), [(1, 6)]);
    let place = |what: fn(&Message) -> bool| {
        seen.iter().position(|e| matches!(e, Effect::ToChild(n, _, _, m) if *n == node(3) && what(m)))
    };
    assert!(place(|m| matches!(m, Message::Recall(_))) < place(|m| matches!(m, Message::Document(..))));
}

#[test]
fn ops_7_a_statement_of_a_higher_term_is_handed_on_at_once_and_others_wait_for_heartbeats() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.child_up(&child(1, Role::Agent, 1));
    let statement = |term, version| {
        let statement = TimeStatement {
            tenant: tenant(),
            time: Millis(version as i64),
            term,
            version,
            order_floor: 0,
            trust_version: 1,
            settings_version: 1,
            revocations_version: 1,
            restored_from: (term > 1).then_some(Millis(1)),
        };
        Event::Alive(statement.seal(&server_key()))
    };
    let handed_on = |effects: &[Effect]| {
        effects.iter().any(|e| matches!(e, Effect::ToChild(_, _, _, Message::Document(Kind::Time, _))))
    };
    assert!(!handed_on(&bench.feed(statement(1, 5))), "the first of all");
    assert!(!handed_on(&bench.feed(statement(1, 6))));
    assert!(handed_on(&bench.feed(statement(2, 7))));
    assert!(!handed_on(&bench.feed(statement(2, 8))));
}

#[test]
fn ops_7_a_child_that_does_not_answer_is_waited_for_ten_seconds() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.child_up(&child(1, Role::Agent, 1));
    assert_eq!(told(&bench.feed(ask(3, 5))), (vec![], vec![], false), "nothing newer");
    let asked_at = bench.clock;
    bench.clock = asked_at + 9_998;
    assert!(!told(&bench.feed(Event::Tick)).2);
    assert!(told(&bench.feed(Event::Tick)).2);
    assert!(!told(&bench.feed(Event::Tick)).2, "once");
}

#[test]
fn ops_7_a_relay_without_children_has_told_all_at_once_and_passes_nothing_unasked_or_forged() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let device = child(1, Role::Agent, 1);
    let newer = (Kind::Revocations, list(6, &[(9, 1)]).seal(&server_key()));
    bench.child_up(&device);
    let seen = bench.feed(child_says(&device, answer(vec![newer], true)));
    assert_eq!(told(&seen), (vec![], vec![], false), "nobody asked");
    let mut alone = Bench::new();
    alone.parent_up(1);
    assert_eq!(told(&alone.feed(ask(3, 5))), (vec![], vec![], true));
    alone.child_up(&device);
    let forged = (Kind::Revocations, list(9, &[(9, 1)]).seal(&Signer::from_seed(&[66; 32])));
    let seen = alone.feed(child_says(&device, answer(vec![forged], true)));
    assert_eq!(told(&seen), (vec![], vec![], false));
    assert!(!alone.core.shelf().revocations().covers(node(9), 1));
    // Another link of the parent begins anew.
    alone.parent_up(1);
    let seen = alone.child_up(&child(2, Role::Agent, 1));
    assert!(asked(&seen, 2).is_empty());
}
