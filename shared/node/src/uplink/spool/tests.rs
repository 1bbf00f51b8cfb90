use super::*;
use crate::store::Op;
use branchline_protocol::{hash::Hash, record::class};
use uuid::Uuid;

mod acks;
mod bounds;
mod memory;

const PARENT: NodeId = NodeId(Uuid::from_u128(99));

fn node(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(n))
}

fn add(spool: &mut Spool, disk: &mut Disk, text: &str) -> Mark {
    let mut batch = Batch::new();
    let body = Bytes::copy_from_slice(text.as_bytes());
    let mark = spool.append(Millis(1), Lane::Work, class::RESULT, None, body, &mut batch);
    disk.apply(batch);
    mark
}

/// A store as a map: what a crash leaves.
#[derive(Default, Clone)]
struct Disk(BTreeMap<(u8, Vec<u8>), Bytes>);

impl Disk {
    fn apply(&mut self, batch: Batch) {
        for op in batch.ops {
            match op {
                Op::Put { table, key, value } => {
                    self.0.insert((table as u8, key), value);
                }
                Op::Delete { table, key } => {
                    self.0.remove(&(table as u8, key));
                }
                Op::DeleteRange { table, from, to_exclusive } => {
                    self.0.retain(|(t, k), _| *t != table as u8 || *k < from || *k >= to_exclusive);
                }
            }
        }
    }

    fn reopen(&self, id: NodeId, incarnation: u64) -> Spool {
        let mut spool = Spool::new(id, 1, incarnation);
        for ((table, key), value) in &self.0 {
            if *table == Table::Meta as u8 {
                spool.recover_meta(key, value).unwrap();
            }
        }
        for ((table, key), value) in &self.0 {
            if *table == Table::Spool as u8 {
                spool.recover_record(key, value).unwrap();
            }
        }
        spool
    }
}

fn bodies(spool: &mut Spool) -> Vec<String> {
    let mut all = Vec::new();
    while let Some((_, runs)) = spool.take() {
        all.extend(runs.into_iter().flat_map(|r| r.records).map(|r| String::from_utf8(r.body.to_vec()).unwrap()));
    }
    all
}

fn ack(stream: StreamId, stored: u64, settled: u64) -> Ack {
    Ack { stream, stored, settled, refused: vec![] }
}

fn own(incarnation: u64) -> StreamId {
    StreamId { node: node(1), epoch: 1, incarnation, lane: Lane::Work }
}

#[test]
fn nothing_leaves_before_it_is_committed() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    spool.link_up(PARENT, 1);
    let mark = add(&mut spool, &mut disk, "a");
    assert!(spool.take().is_none());
    assert_eq!(spool.ack(&own(5)).stored, 0, "nor is it acknowledged");
    spool.committed(&mark);
    assert_eq!(bodies(&mut spool), ["a"]);
    assert!(spool.take().is_none(), "and it is sent once");
}

#[test]
fn stored_stops_sending_and_settled_deletes() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    spool.link_up(PARENT, 1);
    for text in ["a", "b", "c"] {
        let mark = add(&mut spool, &mut disk, text);
        spool.committed(&mark);
    }
    assert_eq!(bodies(&mut spool).len(), 3);
    let mut batch = Batch::new();
    spool.acked(&ack(own(5), 2, 1), &mut batch).unwrap();
    disk.apply(batch);
    spool.link_down();
    spool.link_up(PARENT, 1);
    assert_eq!(bodies(&mut spool), ["c"], "the same parent has a and b");
    spool.link_up(PARENT, 2);
    assert_eq!(bodies(&mut spool), ["b", "c"], "a parent with a fresh disk is offered all that is not settled");
    assert_eq!(spool.figures().spool_records, 2);
}

#[test]
fn rly_7_a_crash_keeps_what_was_committed_and_a_new_incarnation_starts_at_1() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    for text in ["a", "b"] {
        let mark = add(&mut spool, &mut disk, text);
        spool.committed(&mark);
    }
    let mut spool = disk.reopen(node(1), 6);
    let mark = add(&mut spool, &mut disk, "c");
    spool.committed(&mark);
    spool.link_up(PARENT, 1);
    let mut sent = bodies(&mut spool);
    sent.sort();
    assert_eq!(sent, ["a", "b", "c"]);
    let mut batch = Batch::new();
    spool.acked(&ack(own(5), 2, 2), &mut batch).unwrap();
    spool.acked(&ack(own(6), 1, 1), &mut batch).unwrap();
    disk.apply(batch);
    assert!(spool.is_drained());
    assert!(disk.0.keys().all(|(t, _)| *t != Table::Spool as u8), "settled records are gone from disk");
    assert_eq!(disk.0.len(), 1, "and so is the old incarnation's position");
}

#[test]
fn rly_8_a_child_that_repeats_itself_is_kept_once() {
    let mut child = Spool::new(node(2), 1, 7);
    let mut relay = Spool::new(node(1), 1, 5);
    let mut child_disk = Disk::default();
    for text in ["a", "b"] {
        let mark = add(&mut child, &mut child_disk, text);
        child.committed(&mark);
    }
    for round in 0..5 {
        child.link_up(PARENT, round);
        while let Some((_, runs)) = child.take() {
            for run in runs {
                let mut batch = Batch::new();
                let (mark, fault) = relay.carry(run, &mut batch);
                assert_eq!(fault, None);
                relay.committed(&mark);
            }
        }
    }
    relay.link_up(PARENT, 1);
    assert_eq!(bodies(&mut relay), ["a", "b"]);
}

#[test]
fn a_hole_and_a_broken_chain_are_named_and_what_came_before_is_kept() {
    let stream = StreamId { node: node(2), ..own(9) };
    let record = |number, prev| Record { number, prev, class: 1, trace: None, at: Millis(0), body: Bytes::new() };
    let first = record(1, Hash::ZERO);
    let mut relay = Spool::new(node(1), 1, 5);
    let mut batch = Batch::new();
    let run = Run { stream, records: vec![first.clone(), record(3, Hash::ZERO)], settled: 0, receipts: vec![] };
    let (mark, fault) = relay.carry(run, &mut batch);
    assert_eq!(fault, Some(SpoolFault::Chain(ChainFault::Hole { held: 1, got: 3 })));
    relay.committed(&mark);
    assert_eq!(relay.ack(&stream).stored, 1);
    let forged = Run { stream, records: vec![record(2, Hash::of(b"other"))], settled: 0, receipts: vec![] };
    assert_eq!(relay.carry(forged, &mut batch).1, Some(SpoolFault::Chain(ChainFault::Broken(2))));
    let good = Run { stream, records: vec![record(2, first.hash(&stream))], settled: 0, receipts: vec![] };
    assert_eq!(relay.carry(good, &mut batch).1, None);
}

#[test]
fn an_acknowledgement_beyond_what_was_sent_is_a_fault_and_changes_nothing() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    let mark = add(&mut spool, &mut disk, "a");
    spool.committed(&mark);
    spool.link_up(PARENT, 1);
    assert_eq!(bodies(&mut spool), ["a"]);
    let mut batch = Batch::new();
    let fault = spool.acked(&ack(own(5), 2, 0), &mut batch);
    assert_eq!(fault, Err(SpoolFault::BeyondSent { acked: 2, sent: 1 }));
    let unused = StreamId { lane: Lane::Logs, ..own(5) };
    let of_nothing = spool.acked(&ack(unused, 1, 0), &mut batch);
    assert_eq!(of_nothing, Err(SpoolFault::BeyondSent { acked: 1, sent: 0 }), "nor of a stream that never was");
    assert!(batch.is_empty());
    assert!(spool.acked(&ack(own(5), 1, 0), &mut batch).is_ok(), "exactly what was sent is fine");
}

#[test]
fn a_device_that_moved_may_have_brought_its_stream_further_by_another_way() {
    let stream = StreamId { node: node(2), ..own(9) };
    let record = |number, prev| Record { number, prev, class: 1, trace: None, at: Millis(0), body: Bytes::new() };
    let mut relay = Spool::new(node(1), 1, 5);
    let mut batch = Batch::new();
    let (mark, _) =
        relay.carry(Run { stream, records: vec![record(1, Hash::ZERO)], settled: 0, receipts: vec![] }, &mut batch);
    relay.committed(&mark);
    relay.link_up(PARENT, 1);
    assert!(relay.take().is_some());
    assert!(relay.acked(&ack(stream, 7, 7), &mut batch).is_ok(), "the server has it from somebody else");
    assert_eq!(relay.figures().spool_records, 0);
    assert!(relay.is_drained());
    // It comes back, and goes on where the server has it.
    let (mark, fault) =
        relay.carry(Run { stream, records: vec![record(8, Hash::of(b"7"))], settled: 7, receipts: vec![] }, &mut batch);
    assert_eq!(fault, None);
    relay.committed(&mark);
    assert_eq!(relay.ack(&stream).stored, 8);
}

#[test]
fn a_store_put_back_to_an_older_state_hears_of_what_it_has_forgotten() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    let mark = add(&mut spool, &mut disk, "a");
    spool.committed(&mark);
    let mut again = disk.reopen(node(1), 6);
    again.link_up(PARENT, 1);
    assert_eq!(bodies(&mut again), ["a"]);
    assert!(again.acked(&ack(own(5), 4, 4), &mut Batch::new()).is_ok(), "of an earlier opening");
    assert_eq!(again.figures().spool_records, 0);
}

#[test]
fn the_flight_is_bounded_and_goes_on_when_the_parent_stores() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    spool.link_up(PARENT, 1);
    let big = "x".repeat(1 << 20);
    for _ in 0..6 {
        let mark = add(&mut spool, &mut disk, &big);
        spool.committed(&mark);
    }
    assert_eq!(bodies(&mut spool).len(), 4);
    let mut batch = Batch::new();
    spool.acked(&ack(own(5), 2, 0), &mut batch).unwrap();
    assert_eq!(bodies(&mut spool).len(), 2);
}
