//! Quotas: what is dropped, in which order, and what is left of it.

use super::*;
use branchline_protocol::record::Gap;

const SMALL: Quotas = Quotas { results: 10_000, inventory: 10_000, logs: 10_000 };

fn spool() -> Spool {
    Spool::new(node(1), 1, 5).with_quotas(SMALL)
}

fn put(spool: &mut Spool, disk: &mut Disk, lane: Lane, class: u16, at: i64, body: Vec<u8>) {
    let mut batch = Batch::new();
    let mark = spool.append(Millis(at), lane, class, None, body.into(), &mut batch);
    disk.apply(batch);
    spool.committed(&mark);
}

fn log(spool: &mut Spool, disk: &mut Disk, at: i64) {
    put(spool, disk, Lane::Logs, class::LOG, at, vec![at as u8; 904]);
}

/// Everything that would be sent, in order.
fn sent(spool: &mut Spool) -> Vec<Run> {
    let mut all = Vec::new();
    while let Some((_, runs)) = spool.take() {
        all.extend(runs);
    }
    all
}

fn gaps(runs: &[Run]) -> Vec<(u64, u64, String)> {
    let records = runs.iter().flat_map(|r| &r.records).filter(|r| r.class == class::GAP);
    let gap = |r: &Record| rmp_serde::from_slice::<Gap>(&r.body).unwrap();
    records.map(gap).map(|g| (g.numbers.0, g.numbers.1, g.reason)).collect()
}

/// A receiver that holds nothing takes all of it, in one chain; the last number it ends at.
fn receive(runs: Vec<Run>) -> u64 {
    let mut receiver = Spool::new(node(3), 1, 1);
    let mut upto = 0;
    for run in runs {
        upto = run.records.last().unwrap().number;
        let (_, fault) = receiver.carry(run, &mut Batch::new());
        assert_eq!(fault, None);
    }
    upto
}

#[test]
fn log_4_the_oldest_logs_go_first_and_leave_one_counted_gap() {
    let (mut spool, mut disk) = (spool(), Disk::default());
    for at in 1..=10 {
        log(&mut spool, &mut disk, at);
    }
    assert_eq!(spool.used(Kind::Logs), 10_000, "at the quota, to the byte");
    assert_eq!(spool.figures().spool_records, 10);
    log(&mut spool, &mut disk, 11);
    assert!(spool.used(Kind::Logs) <= SMALL.low(Kind::Logs), "one past it: an eighth is freed");
    for at in 12..=40 {
        log(&mut spool, &mut disk, at);
        assert!(spool.used(Kind::Logs) <= SMALL.logs);
    }
    spool.link_up(PARENT, 1);
    let runs = sent(&mut spool);
    let records: Vec<_> = runs.iter().flat_map(|r| &r.records).collect();
    let (first, last, reason) = gaps(&runs).remove(0);
    assert_eq!((first, reason.as_str()), (1, "quota"));
    assert_eq!(records.len() as u64, 40 - last + 1, "one gap and all that came after it");
    assert_eq!(records[1].number, last + 1);
    let gap: Gap = rmp_serde::from_slice(&records[0].body).unwrap();
    assert_eq!(gap.bytes, last * 904, "every dropped byte is counted, and once");
    assert_eq!(receive(runs), 40);
    // And after a crash.
    let mut again = disk.reopen(node(1), 6);
    again.link_up(PARENT, 1);
    let after = sent(&mut again);
    assert_eq!(gaps(&after), [(1, last, "quota".to_string())]);
    assert_eq!(again.used(Kind::Logs), spool.used(Kind::Logs));
    assert_eq!(receive(after), 40);
}

#[test]
fn log_4_what_the_parent_stored_goes_first_and_is_not_counted_as_dropped() {
    let (mut spool, mut disk) = (spool(), Disk::default());
    spool.link_up(PARENT, 1);
    for at in 1..=6 {
        log(&mut spool, &mut disk, at);
    }
    sent(&mut spool);
    let logs = StreamId { lane: Lane::Logs, ..own(5) };
    spool.acked(&ack(logs, 6, 0), &mut Batch::new()).unwrap();
    spool.link_down();
    for at in 7..=12 {
        log(&mut spool, &mut disk, at);
    }
    spool.link_up(PARENT, 1);
    let runs = sent(&mut spool);
    assert_eq!(gaps(&runs), [], "the parent that has them sees no gap at all");
    assert_eq!(runs.iter().flat_map(|r| &r.records).count(), 6);
    spool.link_up(PARENT, 2);
    let runs = sent(&mut spool);
    let told = gaps(&runs);
    assert_eq!((told.len(), told[0].0, told[0].2.as_str()), (1, 1, "stored"), "another parent sees where they went");
    assert_eq!(receive(runs), 12);
}

#[test]
fn what_is_under_way_is_not_dropped() {
    let (mut spool, mut disk) = (spool(), Disk::default());
    spool.link_up(PARENT, 1);
    for at in 1..=10 {
        log(&mut spool, &mut disk, at);
    }
    sent(&mut spool);
    for at in 11..=30 {
        log(&mut spool, &mut disk, at);
    }
    spool.link_up(PARENT, 1);
    let runs = sent(&mut spool);
    assert_eq!(gaps(&runs)[0].0, 11, "the ten that the parent may be storing are all there");
    assert_eq!(receive(runs), 30);
}

#[test]
fn rly_10_results_are_never_dropped_and_logs_take_no_room_from_them() {
    let (mut spool, mut disk) = (spool(), Disk::default());
    for at in 1..=30 {
        log(&mut spool, &mut disk, at);
        put(&mut spool, &mut disk, Lane::Work, class::RESULT, at, vec![1; 904]);
    }
    assert_eq!(spool.used(Kind::Results), 30_000, "beyond the quota, and all there");
    assert!(!spool.has_room(Kind::Results, 0), "but no order is to be taken for more");
    let mut batch = Batch::new();
    spool.relieve(&mut batch);
    assert_eq!(spool.used(Kind::Results), 30_000);
    assert!(spool.used(Kind::Logs) <= SMALL.logs / 2 + 1_000);
    spool.link_up(PARENT, 1);
    let runs = sent(&mut spool);
    let work = runs.iter().filter(|r| r.stream.lane == Lane::Work);
    assert_eq!(work.flat_map(|r| &r.records).count(), 30);
}

#[test]
fn rly_10_room_is_there_to_the_byte_and_not_one_more() {
    let (mut spool, mut disk) = (spool(), Disk::default());
    put(&mut spool, &mut disk, Lane::Urgent, class::RESULT, 1, vec![1; 904]);
    assert!(spool.has_room(Kind::Results, 9_000));
    assert!(!spool.has_room(Kind::Results, 9_001));
    assert!(spool.has_room(Kind::Logs, 10_000));
}

#[test]
fn rly_10_a_full_report_makes_the_older_ones_needless_and_a_difference_does_not() {
    let report = |kind: &str| {
        let mut body = b"\x82\xa4kind\xa4".to_vec();
        body.extend_from_slice(kind.as_bytes());
        body.resize(3_000, 0);
        body
    };
    let (mut spool, mut disk) = (spool(), Disk::default());
    for (at, kind) in [(1, "full"), (2, "diff"), (3, "diff"), (4, "diff")] {
        put(&mut spool, &mut disk, Lane::Inventory, class::INVENTORY, at, report(kind));
    }
    assert!(spool.used(Kind::Inventory) > SMALL.inventory, "every one of them is needed");
    assert_eq!(spool.figures().spool_records, 4);
    put(&mut spool, &mut disk, Lane::Inventory, class::INVENTORY, 5, report("full"));
    assert_eq!(spool.figures().spool_records, 5, "the full one is not on disk yet when it is added");
    put(&mut spool, &mut disk, Lane::Inventory, class::INVENTORY, 6, report("diff"));
    assert_eq!(spool.figures().spool_records, 3);
    spool.link_up(PARENT, 1);
    let runs = sent(&mut spool);
    assert_eq!(gaps(&runs), [(1, 4, "superseded".to_string())]);
    assert_eq!(receive(runs), 6);
}

#[test]
fn logs_that_a_parent_holds_back_are_in_no_results_way() {
    let mut disk = Disk::default();
    let mut spool = Spool::new(node(1), 1, 5).with_quotas(Quotas { logs: 64 << 20, ..SMALL });
    spool.link_up(PARENT, 1);
    for at in 1..=8 {
        put(&mut spool, &mut disk, Lane::Logs, class::LOG, at, vec![1; 1 << 20]);
    }
    let logs = sent(&mut spool);
    assert_eq!(logs.iter().flat_map(|r| &r.records).count(), 4, "4 MiB of them are under way");
    put(&mut spool, &mut disk, Lane::Work, class::RESULT, 9, vec![1; 10]);
    assert_eq!(sent(&mut spool)[0].stream.lane, Lane::Work);
}
