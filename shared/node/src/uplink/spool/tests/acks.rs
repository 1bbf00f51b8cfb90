//! Acknowledgements and repeats where several parents know of one stream.

use super::*;

fn chain(stream: StreamId, count: u64) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    for number in 1..=count {
        let prev = records.last().map_or(Hash::ZERO, |r| r.hash(&stream));
        let body = Bytes::from(format!("{number}"));
        records.push(Record { number, prev, class: class::RESULT, trace: None, at: Millis(number as i64), body });
    }
    records
}

fn of_child(incarnation: u64) -> StreamId {
    StreamId { node: node(2), ..own(incarnation) }
}

fn run(stream: StreamId, records: &[Record], settled: u64) -> Run {
    Run { stream, records: records.to_vec(), settled, receipts: vec![] }
}

/// A relay that took these, durably.
fn relay_with(disk: &mut Disk, runs: impl IntoIterator<Item = Run>) -> Spool {
    let mut relay = Spool::new(node(1), 1, 5);
    relay.link_up(PARENT, 1);
    for run in runs {
        carry(&mut relay, disk, run);
    }
    relay
}

fn carry(relay: &mut Spool, disk: &mut Disk, run: Run) {
    let mut batch = Batch::new();
    let (mark, fault) = relay.carry(run, &mut batch);
    assert_eq!(fault, None);
    disk.apply(batch);
    relay.committed(&mark);
}

fn acked(spool: &mut Spool, disk: &mut Disk, ack: Ack) -> Acked {
    let mut batch = Batch::new();
    let acked = spool.acked(&ack, &mut batch).unwrap();
    disk.apply(batch);
    acked
}

#[test]
fn rly_9_the_server_may_know_more_of_a_device_than_this_relay_ever_had() {
    // Another relay brought all ten; here five went up before the rest came.
    let (stream, mut disk) = (of_child(9), Disk::default());
    let all = chain(stream, 10);
    let mut relay = relay_with(&mut disk, [run(stream, &all[..5], 0)]);
    assert_eq!(bodies(&mut relay).len(), 5);
    acked(&mut relay, &mut disk, ack(stream, 10, 10));
    assert_eq!(relay.figures(), SpoolFigures::default());
    assert_eq!(relay.in_flight(Lane::Work), 0);
    // The child repeats what it has not heard of, and goes on.
    carry(&mut relay, &mut disk, run(stream, &all[5..], 5));
    assert_eq!(bodies(&mut relay).len(), 5);
    acked(&mut relay, &mut disk, ack(stream, 10, 10));
    assert!(relay.is_drained());
    assert!(disk.0.keys().all(|(table, _)| *table != Table::Spool as u8));
}

#[test]
fn rly_9_a_device_that_returns_goes_on_after_what_it_settled_elsewhere() {
    // Five wait here behind a cut uplink; meanwhile the device settled twenty by another relay.
    let (stream, mut disk) = (of_child(9), Disk::default());
    let all = chain(stream, 22);
    let mut relay = relay_with(&mut disk, [run(stream, &all[..5], 0)]);
    let mut batch = Batch::new();
    let (_, fault) = relay.carry(run(stream, &all[20..], 19), &mut batch);
    assert_eq!(fault, Some(SpoolFault::Chain(ChainFault::Hole { held: 5, got: 21 })), "one short: 20 is nowhere");
    assert!(batch.is_empty(), "and nothing is stored");
    carry(&mut relay, &mut disk, run(stream, &all[20..], 20));
    assert_eq!(bodies(&mut relay), ["21", "22"]);
    assert_eq!(relay.ack(&stream), ack(stream, 22, 20));
    let mut again = disk.reopen(node(1), 6);
    again.link_up(PARENT, 1);
    assert_eq!(bodies(&mut again), ["21", "22"], "the disk says the same");
    assert_eq!(again.figures().spool_records, 2);
}

#[test]
fn ops_7_a_relay_put_back_to_an_older_state_is_offered_everything_and_takes_it() {
    let (stream, mut disk) = (of_child(9), Disk::default());
    let all = chain(stream, 9);
    let mut relay = relay_with(&mut disk, [run(stream, &all[..2], 0)]);
    bodies(&mut relay);
    acked(&mut relay, &mut disk, ack(stream, 2, 2));
    let backup = disk.clone();
    carry(&mut relay, &mut disk, run(stream, &all[2..8], 2));

    // The device has settled up to 4 and heard that 8 are stored; the relay's disk is put back.
    let mut restored = backup.reopen(node(1), 6);
    let mut disk = backup;
    restored.link_up(PARENT, 1);
    carry(&mut restored, &mut disk, run(stream, &all[4..], 4));
    assert_eq!(bodies(&mut restored).len(), 5);
    assert_eq!(restored.ack(&stream), ack(stream, 9, 4));
}

#[test]
fn a_parent_that_was_opened_anew_is_offered_all_that_is_not_settled() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    spool.link_up(PARENT, 1);
    for text in ["a", "b"] {
        let mark = add(&mut spool, &mut disk, text);
        spool.committed(&mark);
    }
    bodies(&mut spool);
    acked(&mut spool, &mut disk, ack(own(5), 2, 0));
    spool.link_up(PARENT, 1);
    assert!(spool.take().is_none());
    spool.link_up(PARENT, 2);
    assert_eq!(bodies(&mut spool), ["a", "b"]);
}

#[test]
fn ops_7_a_store_put_back_to_an_older_state_learns_it_from_its_parent_and_goes_on() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    let mark = add(&mut spool, &mut disk, "a");
    spool.committed(&mark);
    let backup = disk.clone();
    for text in ["b", "c"] {
        let mark = add(&mut spool, &mut disk, text);
        spool.committed(&mark);
    }
    let mut restored = backup.reopen(node(1), 6);
    let mut disk = backup;
    restored.link_up(PARENT, 1);
    assert_eq!(bodies(&mut restored), ["a"]);
    assert_eq!(acked(&mut restored, &mut disk, ack(own(5), 3, 3)), Acked { rolled_back: true });
    assert!(restored.is_drained());
    let mark = add(&mut restored, &mut disk, "d");
    restored.committed(&mark);
    assert_eq!(bodies(&mut restored), ["d"], "in a stream of its own, from 1");
    assert_eq!(acked(&mut restored, &mut disk, ack(own(6), 1, 1)), Acked::default());
}

#[test]
fn the_same_number_with_another_content_is_refused_and_overwrites_nothing() {
    let (stream, mut disk) = (of_child(9), Disk::default());
    let all = chain(stream, 3);
    let mut relay = relay_with(&mut disk, [run(stream, &all, 0)]);
    for number in 1..=3 {
        let other = Record { body: Bytes::from_static(b"other"), ..all[number - 1].clone() };
        let mut batch = Batch::new();
        let (_, fault) = relay.carry(run(stream, &[other], 0), &mut batch);
        assert_eq!(fault, Some(SpoolFault::Chain(ChainFault::Broken(number as u64))));
        assert!(batch.is_empty());
    }
    assert_eq!(bodies(&mut relay), ["1", "2", "3"]);
}

#[test]
fn of_every_node_and_lane_one_settled_stream_is_remembered() {
    let mut disk = Disk::default();
    let mut relay = relay_with(&mut disk, []);
    for life in 1..=50 {
        let stream = of_child(life * 1_000_003 % 101);
        carry(&mut relay, &mut disk, run(stream, &chain(stream, 2), 0));
        bodies(&mut relay);
        acked(&mut relay, &mut disk, ack(stream, 2, 2));
        // A restart of the relay forgets which was the newest; nothing piles up all the same.
        if life % 7 == 0 {
            relay = disk.reopen(node(1), life);
            relay.link_up(PARENT, life);
        }
    }
    assert_eq!(relay.streams(), 1);
    assert_eq!(disk.0.len(), 1);
    // What comes of a forgotten one again goes up again: the server knows it.
    let old = of_child(1_000_003 % 101);
    carry(&mut relay, &mut disk, run(old, &chain(old, 2)[1..], 1));
    assert_eq!(bodies(&mut relay), ["2"]);
}

#[test]
fn own_streams_of_earlier_lives_do_not_pile_up() {
    let mut disk = Disk::default();
    for life in 1..=20 {
        let mut spool = disk.reopen(node(1), life);
        spool.link_up(PARENT, 1);
        let mark = add(&mut spool, &mut disk, "a");
        spool.committed(&mark);
        // Every third life ends before its record is settled.
        if life % 3 > 0 {
            while let Some((_, runs)) = spool.take() {
                for run in runs {
                    let upto = run.records.last().unwrap().number;
                    acked(&mut spool, &mut disk, ack(run.stream, upto, upto));
                }
            }
        }
    }
    assert_eq!(disk.0.len(), 1, "{:?}", disk.0.keys());
}

#[test]
fn rly_7_a_stream_that_is_not_here_is_not_taken_up_after_what_nobody_settled() {
    let (stream, mut disk) = (of_child(9), Disk::default());
    let all = chain(stream, 5);
    let mut relay = Spool::new(node(1), 1, 5);
    relay.link_up(PARENT, 1);
    let mut batch = Batch::new();
    let (mark, fault) = relay.carry(run(stream, &all[3..], 2), &mut batch);
    assert_eq!(fault, Some(SpoolFault::Chain(ChainFault::Hole { held: 2, got: 4 })));
    assert!(batch.is_empty() && mark == Mark::default());
    carry(&mut relay, &mut disk, run(stream, &all[3..], 3));
    assert_eq!(bodies(&mut relay), ["4", "5"]);
}

#[test]
fn what_a_parent_has_no_more_is_sent_once_more_from_what_is_settled_on() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    spool.link_up(PARENT, 1);
    for text in ["a", "b", "c"] {
        let mark = add(&mut spool, &mut disk, text);
        spool.committed(&mark);
    }
    assert_eq!(bodies(&mut spool).len(), 3);
    acked(&mut spool, &mut disk, ack(own(5), 2, 1));
    spool.again(&own(6));
    assert!(spool.take().is_none(), "of another stream");
    spool.again(&own(5));
    assert_eq!(spool.in_flight(Lane::Work), 0);
    assert_eq!(bodies(&mut spool), ["b", "c"]);
    acked(&mut spool, &mut disk, ack(own(5), 3, 3));
    assert!(spool.is_drained() && spool.in_flight(Lane::Work) == 0);
}
