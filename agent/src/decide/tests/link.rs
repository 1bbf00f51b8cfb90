//! The link: what is told, when, and to whom.

use super::*;
use crate::decide::Counted;
use branchline_node::uplink::Poke;
use branchline_protocol::{
    record::StreamId,
    wire::{Ack, Goodbye},
};

const POLL: Lease = Lease { interval_ms: 60_000, phase_ms: 1, waiter: 0 };

fn done(effects: &[Effect]) -> usize {
    effects.iter().filter(|e| **e == Effect::Goodbye(Goodbye::Done)).count()
}

fn ack_all(bench: &mut Bench, records: &[(Lane, Record)]) -> Vec<Effect> {
    let stream = |lane| StreamId { node: ME, epoch: 2, incarnation: bench.openings, lane };
    let ack = |(lane, r): &(Lane, Record)| Ack { stream: stream(*lane), stored: r.number, settled: 0, refused: vec![] };
    let acks = records.iter().map(ack).collect();
    let mut effects = bench.settle(message(Lane::Control, Message::Acks(acks)));
    // A poll signs the heads of its streams before it is done.
    let heads: Vec<_> = sent(&effects).into_iter().filter(|(_, record)| record.class == class::HEAD).collect();
    if !heads.is_empty() {
        assert_eq!(done(&effects), 0, "they are to be stored too");
        effects.extend(ack_all(bench, &heads));
    }
    effects
}

#[test]
fn adm_5_the_attachment_number_is_durable_before_any_parent_hears_it() {
    let mut bench = Bench::new();
    assert!(bench.event(Event::Dialling { dial: 3, parent: PARENT }).is_empty());
    let after = bench.commit();
    let [Effect::Greet(3, greeting)] = &after[..] else { panic!("{after:?}") };
    assert_eq!((greeting.attachment, greeting.epoch, greeting.incarnation), (1, 2, 1));
    assert_eq!((greeting.contact, greeting.documents.len()), (Contact::Persistent, 5));
    assert_eq!(greeting.documents[1], (1, 1), "the bundle's trust document");
    assert_eq!(greeting.capabilities[..], me().capabilities);
    bench.event(Event::Dialling { dial: 4, parent: PARENT });
    bench.crash();
    bench.event(Event::Dialling { dial: 5, parent: PARENT });
    let after = bench.commit();
    assert!(matches!(&after[..], [Effect::Greet(5, g)] if g.attachment == 2 && g.incarnation == 2), "{after:?}");
}

#[test]
fn a_poll_says_done_once_and_only_when_everything_is_stored() {
    let mut bench = Bench::new();
    bench.wake();
    bench.settle(Event::Collected(inventory::snapshot(1)));
    let up = bench.connect(Some(POLL));
    let records = sent(&up);
    assert_eq!((records.len(), done(&up)), (1, 0), "sent and not stored yet");
    let orders = bench.deliver(vec![script_order(1)]);
    assert_eq!(done(&orders), 0);
    let stored = ack_all(&mut bench, &records);
    assert_eq!(done(&stored), 1, "all is stored and the order is acknowledged");
    assert_eq!(taken(&stored), [1]);
    let at = |wanted: fn(&Effect) -> bool| stored.iter().position(wanted).unwrap();
    assert!(at(|e| matches!(e, Effect::Send(_, Message::Taken(_)))) < at(|e| matches!(e, Effect::Goodbye(_))));
    let later = bench.settle(ended(1, finished(0)));
    assert_eq!(sent(&later).len(), 1, "the link is still there: the result goes at once");
    assert_eq!(done(&ack_all(&mut bench, &sent(&later))), 0, "said once");
}

#[test]
fn a_poll_at_its_bounds_waits_for_what_is_under_way_and_leaves_the_rest_to_the_next() {
    let mut bench = Bench::running();
    bench.settle(Event::Down);
    let up = bench.connect(Some(POLL));
    bench.deliver(vec![script_order(1)]);
    let under_way = [sent(&up), sent(&bench.settle(ended(1, finished(0))))].concat();
    assert_eq!(under_way.len(), 2, "an inventory and a result");
    assert_eq!(done(&bench.settle(Event::Continue)), 0, "they are not stored yet");
    bench.deliver(vec![script_order(2)]);
    let later = bench.settle(ended(2, finished(0)));
    assert!(sent(&later).is_empty(), "nothing new is begun");
    assert_eq!(done(&ack_all(&mut bench, &under_way)), 1, "what was sent is stored, so nothing is sent twice");
    assert!(bench.settle(Event::Down).contains(&Effect::Poke(Poke::Urgent)));
    let next = sent(&bench.connect(Some(POLL)));
    assert_eq!(next.len(), 1, "the later result alone: {next:?}");
}

#[test]
fn a_persistent_link_does_not_mind_a_polls_bounds() {
    let mut bench = Bench::running();
    bench.settle(Event::Continue);
    bench.deliver(vec![script_order(1)]);
    assert_eq!(sent(&bench.settle(ended(1, finished(0)))).len(), 1);
}

#[test]
fn adm_2_a_link_that_loses_its_slot_is_drained_and_left() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    let result = bench.settle(ended(1, finished(0)));
    let leased = bench.settle(Event::Lease(POLL));
    assert_eq!(done(&leased), 0);
    // The inventory went with the first connection.
    let inventory = vec![(Lane::Inventory, sent(&result)[0].1.clone())];
    ack_all(&mut bench, &inventory);
    assert_eq!(done(&ack_all(&mut bench, &sent(&result))), 1);
    let effects = bench.settle(Event::Dialling { dial: 9, parent: PARENT });
    let greets = effects.iter().any(|e| matches!(e, Effect::Greet(_, g) if g.contact == Contact::Persistent));
    assert!(greets, "it asks for a slot at every contact");
}

#[test]
fn without_a_link_a_new_result_asks_for_a_poll() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    let crossed = "the first report was sent and not stored: it may have crossed with a goodbye";
    assert!(bench.settle(Event::Down).contains(&Effect::Poke(Poke::Something)), "{crossed}");
    assert!(!bench.event(ended(1, finished(0))).contains(&Effect::Poke(Poke::Urgent)), "nothing is durable");
    assert!(bench.commit().contains(&Effect::Poke(Poke::Urgent)));
    assert!(
        bench.settle(Event::Down).contains(&Effect::Poke(Poke::Urgent)),
        "what a link did not take is reason to come again"
    );
}

#[test]
fn credit_and_acknowledgements_of_a_lost_link_are_not_given_to_the_next() {
    let mut bench = Bench::running();
    bench.deliver(vec![script_order(1)]);
    bench.event(Event::Down);
    bench.event(Event::Up(Box::new(welcome(None))));
    let after = bench.commit_all();
    assert_eq!((releases(&after), taken(&after)), (0, vec![]));
    assert_eq!(starts(&after).len(), 1, "the order stays taken");
}

#[test]
fn credit_is_given_back_when_the_matter_is_durable_or_at_once_when_there_is_none() {
    let mut bench = Bench::running();
    let event = message(Lane::Work, Message::Orders(vec![script_order(1)]));
    let Event::Received(received) = &event else { unreachable!() };
    let owed = received.credit;
    assert_eq!(releases(&bench.event(event)), 0);
    assert_eq!(releases(&bench.commit()), owed);
    for nothing in [Message::Ancestors(vec![]), Message::Withdraw(vec![]), Message::Taken(vec![])] {
        assert!(releases(&bench.event(message(Lane::Control, nothing))) > 0);
        assert!(bench.pending.is_empty());
    }
    assert_eq!(bench.core.figures().open_orders, 1, "an unsigned word ends nothing");
}

#[test]
fn a_store_that_never_answers_leaves_everything_unsaid() {
    let mut bench = Bench::running();
    let effects = bench.deliver(vec![script_order(1)]);
    let more = bench.event(Event::Tick);
    let dial = bench.event(Event::Dialling { dial: 1, parent: PARENT });
    let all: Vec<_> = effects.into_iter().chain(more).chain(dial).collect();
    assert!(all.is_empty(), "{all:?}");
}

#[test]
fn unknown_kinds_are_passed_over_and_malformed_ones_close_the_link() {
    let mut bench = Bench::running();
    let raw = |bytes: &'static [u8]| {
        Event::Received(Received { lane: Lane::Logs, bytes: Bytes::from_static(bytes), credit: 9 })
    };
    let effects = bench.event(raw(&[77, 1]));
    assert_eq!(effects, [Effect::Count(Counted::UnknownMessage), Effect::Release(Lane::Logs, 9)]);
    let effects = bench.event(raw(&[3, 0xc1]));
    assert_eq!(effects[0], Effect::Count(Counted::ProtocolError));
    assert!(matches!(&effects[1], Effect::CloseLink(_)) && effects.len() == 2);
    assert!(bench.event(raw(&[77, 1])).is_empty(), "nothing more of that link");
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_closes_the_link() {
    let mut bench = Bench::running();
    let stream = StreamId { node: ME, epoch: 2, incarnation: 1, lane: Lane::Inventory };
    let acks = vec![Ack { stream, stored: 99, settled: 0, refused: vec![] }];
    let effects = bench.settle(message(Lane::Control, Message::Acks(acks)));
    assert!(effects.iter().any(|e| matches!(e, Effect::CloseLink(_))), "{effects:?}");
}
