//! The store as its users meet it: over a folder, and over a disk with faults.

use super::{batch::VALUE_BYTES_MAX, disk::Disk, *};
use bytes::Bytes;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    fs,
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

mod faults;
mod opening;

const NODE: [u8; 16] = [7; 16];
const FORMAT: u32 = 3;

#[test]
fn rly_7_what_was_acknowledged_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/store.redb");
    let (store, first) = Store::open(&path, options(11)).unwrap();
    assert_eq!(first, Recovered { format: FORMAT, openings: 1, incarnation: 11, previous_incarnation: None });
    for n in 0..50u8 {
        commit(&store, put(Table::Spool, &[n], &[n; 100])).unwrap();
    }
    // A killed process leaves the file as it stands, not closed.
    let killed = folder.path().join("killed/store.redb");
    fs::create_dir(killed.parent().unwrap()).unwrap();
    fs::copy(&path, &killed).unwrap();

    let (after, second) = Store::open(&killed, options(12)).unwrap();
    assert_eq!(second, Recovered { format: FORMAT, openings: 2, incarnation: 12, previous_incarnation: Some(11) });
    let rows = after.scan(Table::Spool, &[], 100).unwrap();
    assert_eq!(rows, (0..50u8).map(|n| (vec![n], Bytes::from(vec![n; 100]))).collect::<Vec<_>>());
    after.stop().unwrap();
    store.stop().unwrap();
}

#[test]
fn a_power_cut_takes_what_was_queued_and_nothing_that_was_acknowledged() {
    let disk = Disk::default();
    let (store, _) = Store::open_with_backend(disk.clone(), options(1)).unwrap();
    commit(&store, put(Table::Journal, b"acknowledged", b"1")).unwrap();
    disk.hold();
    let queued: Vec<_> = (0..10u8).map(|n| queue(&store, put(Table::Journal, &[n], b"2"))).collect();
    disk.wait_until_held();

    let (after, _) = Store::open_with_backend(disk.after_power_cut(), options(2)).unwrap();
    assert_eq!(after.get(Table::Journal, b"acknowledged").unwrap(), Some(Bytes::from_static(b"1")));
    assert_eq!(after.scan(Table::Journal, &[], 100).unwrap().len(), 1);
    assert!(queued.iter().all(|answer| answer.try_recv().is_err()), "answered before the sync");
    disk.release();
    assert!(queued.iter().all(|answer| wait(answer) == Ok(())));
}

#[test]
fn an_opening_after_a_kill_does_not_walk_the_file() {
    // A file that is exactly as long as the bound counts as one that is to be spared; one byte more and it does not.
    let lengths = |quick_repair_bytes: u64| {
        let disk = Disk::default();
        let (store, _) =
            Store::open_with_backend(disk.clone(), StoreOptions { quick_repair_bytes, ..options(1) }).unwrap();
        for n in 0..200u16 {
            commit(&store, put(Table::Spool, &n.to_be_bytes(), &[1; 40_000])).unwrap();
        }
        let killed = disk.after_kill();
        let (after, _) = Store::open_with_backend(killed.clone(), options(2)).unwrap();
        let lengths = (killed.bytes_read(), killed.len());
        assert_eq!(after.scan(Table::Spool, &[], usize::MAX).unwrap().len(), 200);
        lengths
    };
    let (read, whole) = lengths(0);
    assert!(whole > 200 * 40_000 && read < whole / 20, "{read} of {whole} bytes were read");
    let (read, whole) = lengths(QUICK_REPAIR_BYTES);
    assert!(read > whole / 20, "{read} of {whole} bytes were read: a short file is walked through");
    let (read, same) = lengths(whole as u64);
    assert!(same == whole && read < whole / 20, "{read} of {same} bytes were read at the bound");
    let (read, _) = lengths(whole as u64 + 1);
    assert!(read > whole / 20, "{read} of {whole} bytes were read one past it");
}

#[test]
fn a_volatile_store_answers_as_a_durable_one_and_keeps_nothing() {
    let open = || Store::volatile(options(1)).unwrap();
    let (store, recovered) = open();
    assert_eq!(recovered, Recovered { format: FORMAT, openings: 1, incarnation: 1, previous_incarnation: None });
    let mut batch = Batch::new();
    for n in 0..5u8 {
        batch.put(Table::Spool, [n], vec![n; 3]).put(Table::Journal, [n], vec![9]);
    }
    commit(&store, batch).unwrap();
    let mut batch = Batch::new();
    batch.delete(Table::Spool, [0]).delete_range(Table::Spool, [2], [4]).delete_range(Table::Spool, [4], [1]);
    commit(&store, batch).unwrap();
    let keys = |table, from: &[u8], limit| -> Vec<u8> {
        store.scan(table, from, limit).unwrap().into_iter().map(|(key, _)| key[0]).collect()
    };
    assert_eq!((keys(Table::Spool, &[], 9), keys(Table::Spool, &[2], 9)), (vec![1, 4], vec![4]));
    assert_eq!((keys(Table::Journal, &[1], 2), keys(Table::Presence, &[], 9)), (vec![1, 2], vec![]));
    assert_eq!(store.get(Table::Spool, &[4]).unwrap(), Some(Bytes::from(vec![4; 3])));
    assert_eq!(store.get(Table::Spool, &[2]).unwrap(), None);
    store.stop().unwrap();
    assert!(open().0.scan(Table::Journal, &[], 9).unwrap().is_empty());
}

#[test]
fn batches_that_wait_are_committed_together() {
    let disk = Disk::default();
    let (store, _) = Store::open_with_backend(disk.clone(), options(1)).unwrap();
    let first = hold_first_commit(&disk, &store);
    let (sender, answers) = channel();
    for n in 0..100u8 {
        let sender = sender.clone();
        let on_done = Box::new(move |result| sender.send((n, result)).unwrap());
        store.commit(put(Table::Spool, &[n], b"x"), on_done).unwrap();
    }
    disk.release();
    wait(&first).unwrap();
    for n in 0..100u8 {
        assert_eq!(answers.recv_timeout(PATIENCE).unwrap(), (n, Ok(())), "answered in the order of queueing");
    }
    assert_eq!(store.fsyncs(), 2, "100 batches in one transaction, after the one that held them up");
    assert_eq!(store.scan(Table::Spool, &[], 1000).unwrap().len(), 101);
}

#[test]
fn a_transaction_takes_one_mebibyte_and_not_a_byte_more() {
    // Two batches: 64 each, 32 for the operation, 1 for the key, and the value.
    for (value_bytes, transactions) in [(524_288 - 97, 1), (524_288 - 96, 2), (2_000_000, 2)] {
        let disk = Disk::default();
        let (store, _) = Store::open_with_backend(disk.clone(), options(1)).unwrap();
        let first = hold_first_commit(&disk, &store);
        let queued: Vec<_> = (0..2u8).map(|n| queue(&store, put(Table::Spool, &[n], &vec![n; value_bytes]))).collect();
        disk.release();
        wait(&first).unwrap();
        assert!(queued.iter().all(|answer| wait(answer) == Ok(())));
        assert_eq!(store.fsyncs(), 1 + transactions, "{value_bytes} bytes each");
        assert_eq!(store.get(Table::Spool, &[1]).unwrap().unwrap().len(), value_bytes);
    }
}

#[test]
fn the_queue_is_full_one_past_its_bound_and_gives_the_batch_back() {
    let disk = Disk::default();
    let (store, _) = Store::open_with_backend(disk.clone(), StoreOptions { queue: 5, ..options(1) }).unwrap();
    let first = hold_first_commit(&disk, &store);
    let queued: Vec<_> = (0..5u8).map(|n| queue(&store, put(Table::Spool, &[n], b"x"))).collect();
    let (sender, answer) = channel();
    let sixth = put(Table::Spool, b"sixth", b"x");
    let full = store.commit(sixth.clone(), Box::new(move |result| sender.send(result).unwrap())).unwrap_err();
    assert_eq!(full.batch, sixth);
    disk.release();
    wait(&first).unwrap();
    assert!(queued.iter().all(|answer| wait(answer) == Ok(())));
    assert!(answer.try_recv().is_err(), "a batch given back is not answered");
    store.commit(full.batch, full.on_done).unwrap();
    wait(&answer).unwrap();
}

#[tokio::test]
async fn commit_wait_waits_for_room() {
    let disk = Disk::default();
    let (store, _) = Store::open_with_backend(disk.clone(), StoreOptions { queue: 1, ..options(1) }).unwrap();
    let first = hold_first_commit(&disk, &store);
    let queued = queue(&store, put(Table::Spool, b"1", b"x"));
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.commit_wait(put(Table::Spool, b"2", b"x")).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    disk.release();
    waiting.await.unwrap().unwrap();
    assert_eq!((wait(&first), wait(&queued)), (Ok(()), Ok(())));
    assert_eq!(store.get(Table::Spool, b"2").unwrap(), Some(Bytes::from_static(b"x")));
}

#[test]
fn a_flipped_bit_is_never_handed_out() {
    let disk = Disk::default();
    let (store, _) = Store::open_with_backend(disk.clone(), options(1)).unwrap();
    commit(&store, put(Table::Journal, b"a", b"first")).unwrap();
    commit(&store, put(Table::Journal, b"b", b"the value that rots")).unwrap();
    store.stop().unwrap();
    let disk = disk.after_kill();
    assert!(disk.flip(b"the value that rots") > 0);

    let (store, _) = Store::open_with_backend(disk, options(2)).unwrap();
    let corrupt = StoreError::Corrupt { table: Table::Journal, key: b"b".to_vec() };
    assert_eq!(store.get(Table::Journal, b"a").unwrap(), Some(Bytes::from_static(b"first")));
    assert_eq!(store.get(Table::Journal, b"b").unwrap_err(), corrupt);
    assert_eq!(store.scan(Table::Journal, &[], 10).unwrap_err(), corrupt);
    let mut seen = Vec::new();
    assert_eq!(store.scan_all(Table::Journal, |key, _| seen.push(key.to_vec())).unwrap_err(), corrupt);
    assert_eq!(seen, [b"a"]);
    // The key is enough to get rid of it.
    let mut repair = Batch::new();
    repair.delete(Table::Journal, b"b".as_slice());
    commit(&store, repair).unwrap();
    assert_eq!(store.scan(Table::Journal, &[], 10).unwrap().len(), 1);
}

#[tokio::test]
async fn a_failed_sync_stops_the_store_and_nothing_is_acknowledged_after_it() {
    let fault = StoreError::Io { doing: "writing to the store", what: "the disk is gone".into() };
    // A commit syncs once, or twice where it spares the next opening a walk; either may be the one that fails.
    for (quick_repair_bytes, nth) in [(QUICK_REPAIR_BYTES, 1), (0, 1), (0, 2)] {
        let disk = Disk::default();
        let options_of = StoreOptions { quick_repair_bytes, ..options(1) };
        let (store, _) = Store::open_with_backend(disk.clone(), options_of).unwrap();
        for n in 0..20u8 {
            store.commit_wait(put(Table::Spool, &[n], b"acknowledged")).await.unwrap();
        }
        disk.hold();
        disk.fail_sync(nth);
        let queued: Vec<_> = (100..110u8).map(|n| queue(&store, put(Table::Spool, &[n], b"lost"))).collect();
        disk.wait_until_held();
        disk.release();
        assert!(queued.iter().all(|answer| wait(answer) == Err(fault.clone())), "at sync {nth}");
        assert_eq!(store.stopped().await, Ended::Failed(fault.clone()));
        assert_eq!(commit(&store, put(Table::Spool, b"late", b"x")), Err(fault.clone()));
        assert_eq!(store.commit_wait(Batch::new()).await, Err(fault.clone()));
        assert_eq!(store.get(Table::Spool, &[0]), Err(fault.clone()));
        assert_eq!((store.stop(), store.fsyncs()), (Err(fault.clone()), 20));
        assert!(!store.low_space());

        let (after, recovered) = Store::open_with_backend(disk.after_power_cut(), options(2)).unwrap();
        assert_eq!(recovered.openings, 2);
        for n in 0..20u8 {
            assert_eq!(after.get(Table::Spool, &[n]).unwrap(), Some(Bytes::from_static(b"acknowledged")));
        }
        after.stop().unwrap();
    }
}

#[test]
fn a_full_disk_releases_the_reserve_and_the_deletes_go_through() {
    let folder = tempfile::tempdir().unwrap();
    let reserve = folder.path().join("reserve");
    let disk = Disk::default();
    let open = |disk: &Disk, incarnation| {
        let engine = Engine::open_backend(disk.clone(), &options(1)).unwrap();
        start(engine, Some(Reserve::beside(&folder.path().join("store.redb"), 4096)), options(incarnation)).unwrap()
    };
    let (store, _) = open(&disk, 1);
    assert!(reserve.exists() && !store.low_space());
    disk.set_capacity(8 << 20);
    let mut acknowledged = 0u16;
    let fault = loop {
        match commit(&store, put(Table::Spool, &acknowledged.to_be_bytes(), &[1; 60_000])) {
            Ok(()) => acknowledged += 1,
            Err(fault) => break fault,
        }
        assert!(acknowledged < 1000, "the disk does not fill up");
    };
    assert_eq!(fault, StoreError::NoSpace { doing: "writing to the store" });
    assert!(store.low_space() && !reserve.exists(), "released before the first answer");
    assert_eq!(store.stop(), Err(fault));

    let disk = disk.after_power_cut();
    disk.set_capacity(9 << 20);
    let (store, _) = open(&disk, 2);
    assert_eq!(store.scan(Table::Spool, &[], usize::MAX).unwrap().len(), acknowledged as usize);
    let mut all = Batch::new();
    all.delete_range(Table::Spool, vec![], vec![0xff; 3]);
    commit(&store, all).unwrap();
    assert_eq!(store.scan(Table::Spool, &[], 1).unwrap(), []);
    commit(&store, put(Table::Spool, b"new", &[1; 60_000])).unwrap();
}

#[test]
fn without_room_for_a_reserve_space_is_low_until_there_is() {
    let folder = tempfile::tempdir().unwrap();
    // A folder of that name stands in for a disk with no room.
    let obstacle = folder.path().join("reserve.new");
    fs::create_dir(&obstacle).unwrap();
    let (store, _) = Store::open(&folder.path().join("store.redb"), options(1)).unwrap();
    assert!(store.low_space());
    fs::remove_dir(&obstacle).unwrap();
    for n in 0..64u8 {
        assert!(store.low_space());
        commit(&store, put(Table::Spool, &[n], b"x")).unwrap();
    }
    store.stop().unwrap();
    assert!(!store.low_space() && folder.path().join("reserve").exists());
}

#[test]
fn whoever_asks_for_space_learns_of_it_without_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let obstacle = folder.path().join("reserve.new");
    fs::create_dir(&obstacle).unwrap();
    let (store, _) = Store::open(&folder.path().join("store.redb"), options(1)).unwrap();
    commit(&store, put(Table::Spool, b"1", b"x")).unwrap();
    store.look_for_space();
    // An empty batch is answered after what was asked before it.
    commit(&store, Batch::new()).unwrap();
    assert!(store.low_space());
    fs::remove_dir(&obstacle).unwrap();
    commit(&store, Batch::new()).unwrap();
    assert!(store.low_space(), "nobody asked");
    store.look_for_space();
    commit(&store, Batch::new()).unwrap();
    assert!(!store.low_space() && folder.path().join("reserve").exists());
    assert_eq!(store.fsyncs(), 1);
}

#[test]
fn a_range_is_deleted_from_its_first_key_up_to_its_end() {
    let disk = Disk::default();
    let (store, _) = Store::open_with_backend(disk, options(1)).unwrap();
    let mut batch = Batch::new();
    for n in 0..10u8 {
        batch.put(Table::Ledger, vec![n], vec![n]).put(Table::Presence, vec![n], vec![n]);
    }
    batch.delete_range(Table::Ledger, vec![3], vec![7]);
    // Empty and backwards ranges delete nothing; what comes later in the batch holds.
    batch.delete_range(Table::Ledger, vec![1], vec![1]).delete_range(Table::Ledger, vec![9], vec![0]);
    batch.put(Table::Ledger, vec![5], vec![55]).delete(Table::Ledger, vec![200]);
    commit(&store, batch).unwrap();
    let keys = |table| store.scan(table, &[], 100).unwrap().into_iter().map(|(key, _)| key[0]).collect::<Vec<_>>();
    assert_eq!(keys(Table::Ledger), [0, 1, 2, 5, 7, 8, 9]);
    assert_eq!(keys(Table::Presence).len(), 10, "another table is not touched");
    assert_eq!(store.scan(Table::Ledger, &[2], 2).unwrap().last().unwrap().0, [5], "from a key on, to the limit");
}

#[test]
fn a_value_too_large_is_refused_alone() {
    let (store, _) = Store::open_with_backend(Disk::default(), options(1)).unwrap();
    commit(&store, put(Table::Inventory, b"at the bound", &vec![1; VALUE_BYTES_MAX])).unwrap();
    let error = commit(&store, put(Table::Inventory, b"past it", &vec![1; VALUE_BYTES_MAX + 1])).unwrap_err();
    let bytes = VALUE_BYTES_MAX + 1;
    assert_eq!(error, StoreError::TooLarge { table: Table::Inventory, bytes, bytes_max: VALUE_BYTES_MAX });
    commit(&store, put(Table::Inventory, b"next", b"x")).unwrap();
    assert_eq!(store.get(Table::Inventory, b"at the bound").unwrap().unwrap().len(), VALUE_BYTES_MAX);
}

#[test]
fn stop_commits_what_is_queued_and_refuses_what_comes_later() {
    let disk = Disk::default();
    let (store, _) = Store::open_with_backend(disk.clone(), options(1)).unwrap();
    let first = hold_first_commit(&disk, &store);
    let queued: Vec<_> = (0..10u8).map(|n| queue(&store, put(Table::Spool, &[n], b"x"))).collect();
    let stopping = std::thread::spawn({
        let store = store.clone();
        move || store.stop()
    });
    disk.release();
    stopping.join().unwrap().unwrap();
    assert_eq!(wait(&first), Ok(()));
    assert!(queued.iter().all(|answer| wait(answer) == Ok(())));
    assert_eq!(store.ended(), Some(Ended::Asked));
    assert_eq!(commit(&store, put(Table::Spool, b"late", b"x")), Err(StoreError::Closed));
    assert_eq!(store.get(Table::Spool, &[0]), Err(StoreError::Closed));
    assert_eq!(store.stop(), Ok(()), "stopping twice is stopping once");
    let (after, _) = Store::open_with_backend(disk.after_power_cut(), options(2)).unwrap();
    assert_eq!(after.scan(Table::Spool, &[], 100).unwrap().len(), 11);
}

#[test]
fn the_last_handle_dropped_commits_what_is_queued() {
    let disk = Disk::default();
    let (store, _) = Store::open_with_backend(disk.clone(), options(1)).unwrap();
    let first = hold_first_commit(&disk, &store);
    let queued = queue(&store, put(Table::Spool, b"queued", b"x"));
    drop(store);
    disk.release();
    assert_eq!((wait(&first), wait(&queued)), (Ok(()), Ok(())));
}

#[test]
fn an_empty_batch_is_answered_after_what_came_before_and_costs_no_sync() {
    let disk = Disk::default();
    let (store, _) = Store::open_with_backend(disk.clone(), options(1)).unwrap();
    let first = hold_first_commit(&disk, &store);
    let empty = queue(&store, Batch::new());
    assert!(empty.try_recv().is_err());
    disk.release();
    assert_eq!((wait(&first), wait(&empty)), (Ok(()), Ok(())));
    assert_eq!(store.fsyncs(), 1);
}

#[test]
fn a_callback_may_panic_commit_and_stop_without_harm() {
    let disk = Disk::default();
    let (store, _) = Store::open_with_backend(disk.clone(), options(1)).unwrap();
    store.commit(put(Table::Spool, b"1", b"x"), Box::new(|_| panic!("a callback's bug"))).unwrap();
    let (sender, answer) = channel();
    let again = store.clone();
    let on_done = Box::new(move |_| {
        let on_done = Box::new(move |result| sender.send(result).unwrap());
        again.commit(put(Table::Spool, b"3", b"x"), on_done).unwrap();
        again.stop().unwrap();
    });
    store.commit(put(Table::Spool, b"2", b"x"), on_done).unwrap();
    assert_eq!(wait(&answer), Ok(()));
    store.stop().unwrap();
    assert_eq!(store.ended(), Some(Ended::Asked));
    let (after, _) = Store::open_with_backend(disk.after_power_cut(), options(2)).unwrap();
    assert_eq!(after.scan(Table::Spool, &[], 10).unwrap().len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Batches in any order, with power cuts between, leave what a map would hold.
    #[test]
    fn the_store_agrees_with_a_map(batches in prop::collection::vec((prop::collection::vec(op(), 0..8), any::<bool>()), 1..12)) {
        let mut model = BTreeMap::new();
        let mut disk = Disk::default();
        let (mut store, _) = Store::open_with_backend(disk.clone(), options(1)).unwrap();
        for (ops, power_cut) in batches {
            ops.iter().for_each(|op| apply(&mut model, op));
            commit(&store, Batch { ops }).unwrap();
            if power_cut {
                disk = disk.after_power_cut();
                store = Store::open_with_backend(disk.clone(), options(2)).unwrap().0;
            }
        }
        for table in [Table::Spool, Table::Ledger] {
            let expected = model.iter().filter(|((of, _), _)| *of == table);
            let expected: Vec<_> = expected.map(|((_, key), value)| (key.clone(), Bytes::clone(value))).collect();
            prop_assert_eq!(store.scan(table, &[], usize::MAX).unwrap(), expected);
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let table = prop_oneof![Just(Table::Spool), Just(Table::Ledger)];
    let key = || prop::collection::vec(0..4u8, 0..3);
    (table, key(), key(), 0..6u8, 0..5000usize).prop_map(|(table, key, to_exclusive, kind, len)| match kind {
        0 => Op::DeleteRange { table, from: key, to_exclusive },
        1 => Op::Delete { table, key },
        _ => Op::Put { table, key, value: vec![kind; len].into() },
    })
}

fn apply(model: &mut BTreeMap<(Table, Vec<u8>), Bytes>, op: &Op) {
    match op.clone() {
        Op::Put { table, key, value } => drop(model.insert((table, key), value)),
        Op::Delete { table, key } => drop(model.remove(&(table, key))),
        Op::DeleteRange { table, from, to_exclusive } => {
            model.retain(|(of, key), _| *of != table || *key < from || *key >= to_exclusive);
        }
    }
}

/// A liveness bound, far above anything a commit takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn options(incarnation: u64) -> StoreOptions {
    StoreOptions::new(FORMAT, incarnation).for_node(NODE)
}

fn put(table: Table, key: &[u8], value: &[u8]) -> Batch {
    let mut batch = Batch::new();
    batch.put(table, key, value.to_vec());
    batch
}

fn queue(store: &StoreHandle, batch: Batch) -> Receiver<Result<(), StoreError>> {
    let (sender, answer) = channel();
    // A test that is over may have dropped its end.
    store.commit(batch, Box::new(move |result| drop(sender.send(result)))).unwrap();
    answer
}

fn wait(answer: &Receiver<Result<(), StoreError>>) -> Result<(), StoreError> {
    answer.recv_timeout(PATIENCE).unwrap()
}

fn commit(store: &StoreHandle, batch: Batch) -> Result<(), StoreError> {
    wait(&queue(store, batch))
}

/// Commits one batch and returns while its sync waits for the disk to be released.
fn hold_first_commit(disk: &Disk, store: &StoreHandle) -> Receiver<Result<(), StoreError>> {
    disk.hold();
    let first = queue(store, put(Table::Spool, b"the first", b"x"));
    disk.wait_until_held();
    first
}
