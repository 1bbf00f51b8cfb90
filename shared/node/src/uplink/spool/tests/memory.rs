//! Bodies that are on disk only.

use super::*;

const BODY: usize = 904;

fn put(spool: &mut Spool, disk: &mut Disk, lane: Lane, n: u8) {
    let mut batch = Batch::new();
    let mark = spool.append(Millis(1), lane, class::RESULT, None, vec![n; BODY].into(), &mut batch);
    disk.apply(batch);
    spool.committed(&mark);
}

/// Serves what is asked for; how many records that were.
fn load(spool: &mut Spool, disk: &Disk) -> usize {
    let keys = spool.to_load();
    let row = |key: Vec<u8>| (key.clone(), disk.0.get(&(Table::Spool as u8, key)).cloned());
    let rows: Vec<_> = keys.into_iter().map(row).collect();
    let count = rows.len();
    spool.loaded(rows).unwrap();
    count
}

/// Takes all there is, reading back what is missing; the first byte of each, in order.
fn all(spool: &mut Spool, disk: &Disk) -> Vec<u8> {
    let mut bodies = Vec::new();
    loop {
        while let Some((_, runs)) = spool.take() {
            bodies.extend(runs.into_iter().flat_map(|r| r.records).map(|r| r.body[0]));
        }
        if load(spool, disk) == 0 {
            return bodies;
        }
    }
}

#[test]
fn memory_stays_at_its_bound_and_everything_goes_up_in_order() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    spool.set_memory(10_000);
    for n in 1..=200 {
        put(&mut spool, &mut disk, Lane::Work, n);
        assert!(spool.in_memory() <= 10_000, "{n}: {}", spool.in_memory());
    }
    assert_eq!(spool.used(Kind::Results), 200_000);
    assert_eq!(spool.to_load(), Vec::<Vec<u8>>::new(), "without a link nothing is read");
    spool.link_up(PARENT, 1);
    assert_eq!(all(&mut spool, &disk), (1..=200).collect::<Vec<u8>>());
    let mut batch = Batch::new();
    spool.acked(&ack(own(5), 150, 100), &mut batch).unwrap();
    disk.apply(batch);
    assert!(spool.in_memory() <= 60_000, "what is stored is let go, what is under way stays: {}", spool.in_memory());
    spool.link_up(PARENT, 2);
    assert_eq!(all(&mut spool, &disk), (101..=200).collect::<Vec<u8>>(), "another parent is offered the rest again");
}

#[test]
fn a_start_reads_no_more_into_memory_than_the_bound() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    (1..=100).for_each(|n| put(&mut spool, &mut disk, Lane::Work, n));
    let mut again = Spool::new(node(1), 1, 6);
    again.set_memory(10_000);
    for ((table, key), value) in &disk.0 {
        match *table == Table::Meta as u8 {
            true => again.recover_meta(key, value).unwrap(),
            false => again.recover_record(key, value).unwrap(),
        }
    }
    assert_eq!(again.in_memory(), 10_000);
    again.link_up(PARENT, 1);
    assert_eq!(all(&mut again, &disk), (1..=100).collect::<Vec<u8>>());
}

#[test]
fn a_lane_that_waits_for_the_disk_keeps_no_other_waiting() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    spool.set_memory(0);
    put(&mut spool, &mut disk, Lane::Urgent, 1);
    spool.set_memory(usize::MAX);
    put(&mut spool, &mut disk, Lane::Work, 2);
    spool.link_up(PARENT, 1);
    assert_eq!(spool.take().map(|(lane, _)| lane), Some(Lane::Work));
    assert_eq!(spool.take(), None);
    assert_eq!(load(&mut spool, &disk), 1);
    assert_eq!(spool.take().map(|(lane, _)| lane), Some(Lane::Urgent));
}

#[test]
fn what_was_dropped_or_settled_meanwhile_is_passed_over_and_what_is_missing_is_a_fault() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    spool.set_memory(0);
    (1..=4).for_each(|n| put(&mut spool, &mut disk, Lane::Work, n));
    spool.link_up(PARENT, 1);
    let keys = spool.to_load();
    assert_eq!(keys.len(), 4);
    assert_eq!(spool.to_load().len(), 0, "one reading at a time");
    let value = |key: &Vec<u8>| disk.0.get(&(Table::Spool as u8, key.clone())).cloned();
    let rows = |of: &dyn Fn(&Vec<u8>) -> Option<Bytes>| keys.iter().map(|k| (k.clone(), of(k))).collect::<Vec<_>>();
    assert_eq!(spool.loaded(rows(&|_| None)), Err(SpoolFault::Unreadable), "a row that must be there");
    assert_eq!(spool.loaded(rows(&|_| value(&keys[0]))), Err(SpoolFault::Unreadable), "another record in its place");
    assert_eq!(spool.loaded(rows(&|k| value(k))), Ok(()));
    while spool.take().is_some() {}
    let stored = ack(own(5), 4, 4);
    spool.acked(&stored, &mut Batch::new()).unwrap();
    assert_eq!(spool.loaded(rows(&|_| None)), Ok(()), "they are settled, and gone");
    assert_eq!((spool.in_memory(), spool.figures().spool_records), (0, 0));
}

#[test]
fn log_4_what_is_on_disk_only_is_dropped_and_counted_like_the_rest() {
    let (mut spool, mut disk) = (Spool::new(node(1), 1, 5), Disk::default());
    spool.set_quotas(Quotas { logs: 10_000, ..Quotas::AGENT });
    spool.set_memory(0);
    (1..=40).for_each(|n| put(&mut spool, &mut disk, Lane::Logs, n));
    spool.link_up(PARENT, 1);
    let mut receiver = Spool::new(node(3), 1, 1);
    let mut records = 0;
    loop {
        while let Some((_, runs)) = spool.take() {
            for run in runs {
                for record in run.records.iter().filter(|r| r.class == class::GAP) {
                    let gap: branchline_protocol::record::Gap = rmp_serde::from_slice(&record.body).unwrap();
                    assert_eq!(gap.bytes, gap.numbers.1 * BODY as u64);
                }
                records += run.records.len();
                assert_eq!(receiver.carry(run, &mut Batch::new()).1, None);
            }
        }
        if load(&mut spool, &disk) == 0 {
            break;
        }
    }
    assert!(records < 12, "one gap and the newest");
}
