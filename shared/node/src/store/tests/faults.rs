//! Every call to the disk fails once: refusal or a clean stop, and after reopening nothing acknowledged is missing.

use super::{super::disk::Call, *};
use std::{path::PathBuf, process::Command};

/// Commits until something fails; what was acknowledged, and the fault. Values grow, so that the file does too.
fn fill(store: &StoreHandle, from: u32, upto: u32, value_bytes: usize) -> (u32, Option<StoreError>) {
    for n in from..upto {
        if let Err(fault) = commit(store, put(Table::Spool, &n.to_be_bytes(), &vec![n as u8; value_bytes])) {
            return (n, Some(fault));
        }
    }
    (upto, None)
}

/// Everything acknowledged is there, and the store takes more.
fn check(disk: &Disk, acknowledged: u32, value_bytes: usize, what: &str) {
    let (store, _) = Store::open_with_backend(disk.clone(), options(9)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let rows = store.scan(Table::Spool, &[], usize::MAX).unwrap_or_else(|e| panic!("{what}: {e}"));
    // One more may be there: durable, and its acknowledgement was lost with the fault.
    assert!((acknowledged as usize..=acknowledged as usize + 1).contains(&rows.len()), "{what}: {} rows", rows.len());
    for (n, (key, value)) in rows.iter().enumerate() {
        assert_eq!((key.as_slice(), value.len()), (&(n as u32).to_be_bytes()[..], value_bytes), "{what}");
    }
    commit(&store, put(Table::Spool, b"more", b"x")).unwrap_or_else(|e| panic!("{what}: {e}"));
    store.stop().unwrap();
}

/// With and without what spares a walk through the file: two syncs for a commit, and one.
fn every_nth(call: Call, value_bytes: usize, hits_min: u64) {
    for quick_repair_bytes in [0, QUICK_REPAIR_BYTES] {
        every_nth_with(StoreOptions { quick_repair_bytes, ..options(1) }, call, value_bytes, hits_min);
    }
}

fn every_nth_with(options: StoreOptions, call: Call, value_bytes: usize, hits_min: u64) {
    let mut hits = 0;
    for nth in 1..=200u64 {
        let disk = Disk::default();
        let (store, _) = Store::open_with_backend(disk.clone(), options.clone()).unwrap();
        let (before, fault) = fill(&store, 0, 3, value_bytes);
        assert_eq!(fault, None);
        disk.fail(call, nth);
        let (acknowledged, fault) = fill(&store, before, before + 210, value_bytes);
        let what = format!("{call:?} {nth}");
        if disk.has_failed() {
            hits += 1;
            let fault = fault.unwrap_or_else(|| panic!("{what}: a failed call was passed over"));
            assert!(matches!(fault, StoreError::Io { .. }), "{what}: {fault}");
            // A clean stop: nothing more is taken, read, or acknowledged.
            assert_eq!(commit(&store, put(Table::Spool, b"late", b"x")), Err(fault.clone()), "{what}");
            assert_eq!(store.stop(), Err(fault), "{what}");
        } else {
            // There are no more calls of this kind than these.
            store.stop().unwrap();
            break;
        }
        check(&disk.after_power_cut(), acknowledged, value_bytes, &format!("{what}, power cut"));
        check(&disk.after_kill(), acknowledged, value_bytes, &format!("{what}, kill"));
    }
    assert!(hits >= hits_min, "only {hits} of 200 {call:?} calls were reached");
}

#[test]
fn rly_7_the_nth_write_fails_for_n_to_200() {
    every_nth(Call::Write, 100, 200);
}

#[test]
fn rly_7_the_nth_sync_fails_for_n_to_200() {
    every_nth(Call::Sync, 100, 200);
}

#[test]
fn rly_7_every_growth_of_the_file_fails_once() {
    // The engine doubles its file, so there are few.
    every_nth(Call::SetLen, 300_000, 3);
}

#[test]
fn rly_7_a_fault_while_opening_is_a_refusal_that_loses_nothing() {
    for call in [Call::Write, Call::Sync, Call::SetLen] {
        for nth in 1..=40u64 {
            let disk = Disk::default();
            let (store, _) = Store::open_with_backend(disk.clone(), options(1)).unwrap();
            fill(&store, 0, 5, 100);
            store.stop().unwrap();
            let disk = disk.after_kill();
            disk.fail(call, nth);
            let opened = Store::open_with_backend(disk.clone(), options(2));
            if let Ok((store, _)) = opened {
                // It may fail when it closes instead; what it holds is durable already.
                let _ = store.stop();
            }
            check(&disk.after_power_cut(), 5, 100, &format!("{call:?} {nth} while opening"));
        }
    }
}

/// A file system of its own, gone with the test.
struct Mounted(PathBuf, tempfile::TempDir);

impl Mounted {
    /// Needs the right to mount: without it the test fails.
    fn new(bytes: u64) -> Mounted {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::create_dir(&path).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(&path)
            .status()
            .expect("mount is there");
        assert!(mount.success(), "a tmpfs is mounted: this test needs the right to");
        Mounted(path, folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = &self.1;
    }
}

#[test]
fn rly_10_a_file_system_that_is_full_gives_the_reserve_back_and_deletes_go_through() {
    let disk = Mounted::new(8 << 20);
    let path = disk.0.join("store.redb");
    let (store, _) = Store::open(&path, StoreOptions { reserve_bytes: 1 << 20, ..options(1) }).unwrap();
    assert!(!store.low_space());
    let (acknowledged, fault) = fill(&store, 0, 1_000, 60_000);
    assert_eq!(fault, Some(StoreError::NoSpace { doing: "writing to the store" }));
    assert!(acknowledged > 10, "{acknowledged} fitted");
    assert!(store.low_space() && !disk.0.join("reserve").exists());
    assert_eq!(store.stop(), Err(StoreError::NoSpace { doing: "writing to the store" }));

    let (store, _) = Store::open(&path, StoreOptions { reserve_bytes: 1 << 20, ..options(2) }).unwrap();
    assert!(store.low_space(), "no room for a reserve: no order is taken");
    assert_eq!(store.scan(Table::Spool, &[], usize::MAX).unwrap().len(), acknowledged as usize);
    let mut all = Batch::new();
    all.delete_range(Table::Spool, vec![], vec![0xff; 5]);
    commit(&store, all).unwrap();
    commit(&store, put(Table::Spool, b"new", &[1; 60_000])).unwrap();
    store.stop().unwrap();
}
