//! What a device signs of itself: its attachments, and the heads of its streams (DESIGN 6, RLY-9).

use super::*;
use branchline_node::uplink::spool::HEADS_EVERY_MS;
use branchline_protocol::{
    receipt::{Head, Receipt, open_head},
    record::StreamId,
    wire::{Ack, Goodbye},
};

const POLL: Lease = Lease { interval_ms: 60_000, phase_ms: 1, waiter: 0 };

fn receipt(bench: &mut Bench, dial: u64) -> Receipt {
    let effects = bench.settle(Event::Dialling { dial, parent: PARENT });
    let greeting = effects.iter().find_map(|effect| match effect {
        Effect::Greet(_, greeting) => Some(greeting.clone()),
        _ => None,
    });
    let key = Hash::of(&me().signer.public().0);
    Receipt::open(greeting.unwrap().receipt.as_ref().unwrap(), key).unwrap()
}

fn store(bench: &mut Bench, records: &[(Lane, Record)]) -> Vec<Effect> {
    let stream = |lane| StreamId { node: ME, epoch: 2, incarnation: bench.openings, lane };
    let ack = |(lane, r): &(Lane, Record)| {
        let number = r.number;
        Ack { stream: stream(*lane), stored: number, settled: number, refused: vec![] }
    };
    let acks = records.iter().map(ack).collect();
    bench.settle(message(Lane::Control, Message::Acks(acks)))
}

fn heads(bench: &Bench) -> Vec<Head> {
    let key = me().signer.public();
    let head = |record: &Record| {
        let head = open_head(&record.body, &tenant(), ME, &key).unwrap();
        assert_eq!((head.number, head.hash), (record.number - 1, record.prev), "of the record before it");
        head
    };
    bench.disk.records(class::HEAD).iter().map(head).collect()
}

#[test]
fn rly_9_every_greeting_bears_a_receipt_for_its_parent_and_names_where_the_streams_stand() {
    let mut bench = Bench::new();
    let first = receipt(&mut bench, 1);
    assert_eq!((first.tenant.clone(), first.node, first.epoch, first.parent), (tenant(), ME, 2, PARENT));
    assert_eq!((first.attachment, first.heads.len(), first.complete), (1, 0, true));
    bench.wake();
    bench.settle(Event::Collected(inventory::snapshot(1)));
    let second = receipt(&mut bench, 2);
    assert_eq!((second.attachment, second.heads.len()), (2, 1));
    assert_eq!((second.heads[0].lane, second.heads[0].number), (Lane::Inventory, 1));
    // What an earlier opening wrote is told by every later one, although it is settled.
    bench.crash();
    let up = bench.connect(None);
    store(&mut bench, &[]);
    assert!(!sent(&up).is_empty());
    let third = receipt(&mut bench, 3);
    assert!(third.heads.contains(&second.heads[0]), "{third:?}");
}

#[test]
fn heads_are_signed_every_five_minutes_of_traffic() {
    let mut bench = Bench::running();
    bench.deliver(vec![script_order(1)]);
    bench.settle(ended(1, finished(0)));
    bench.pass(HEADS_EVERY_MS as u64 - 1);
    bench.settle(Event::Tick);
    assert!(heads(&bench).is_empty());
    let due = bench.core.next_deadline(bench.now).unwrap();
    assert_eq!(due.since(bench.now.mono), 1, "the timer is for the head");
    bench.pass(1);
    let seen = bench.settle(Event::Tick);
    let lanes: Vec<Lane> = heads(&bench).iter().map(|head| head.lane).collect();
    assert_eq!(lanes, [Lane::Work, Lane::Inventory], "each stream with records");
    assert_eq!(sent(&seen).len(), 2);
    bench.pass(3 * HEADS_EVERY_MS as u64);
    bench.settle(Event::Tick);
    assert_eq!(heads(&bench).len(), 2, "without traffic nothing is signed");
}

#[test]
fn a_poll_signs_before_it_says_that_it_is_done() {
    let mut bench = Bench::new();
    bench.wake();
    bench.settle(Event::Collected(inventory::snapshot(1)));
    let up = bench.connect(Some(POLL));
    let done = |effects: &[Effect]| effects.contains(&Effect::Goodbye(Goodbye::Done));
    let stored = store(&mut bench, &sent(&up));
    assert_eq!((heads(&bench).len(), sent(&stored).len(), done(&stored)), (1, 1, false));
    assert!(done(&store(&mut bench, &sent(&stored))));
    bench.settle(Event::Down);
    let up = bench.connect(Some(POLL));
    assert!(done(&up) && heads(&bench).len() <= 1, "a poll without traffic signs nothing");
}

#[test]
fn a_stop_signs_what_is_left_and_the_next_start_sends_it() {
    let mut bench = Bench::running();
    bench.deliver(vec![script_order(1)]);
    bench.settle(ended(1, finished(0)));
    bench.settle(Event::Stopping);
    let signed = heads(&bench);
    assert_eq!(signed.len(), 2, "results and inventory: {signed:?}");
    bench.crash();
    bench.wake();
    let sent = sent(&bench.connect(None));
    assert_eq!(sent.iter().filter(|(_, record)| record.class == class::HEAD).count(), 2);
}
