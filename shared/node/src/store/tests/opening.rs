//! What an opening accepts, refuses and leaves alone.

use super::*;
use std::path::PathBuf;

#[test]
fn a_store_in_use_is_not_opened_again_until_it_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (store, _) = Store::open(&path, options(1)).unwrap();
    assert_eq!(Store::open(&path, options(2)).unwrap_err(), StoreError::InUse { path: path.clone() });
    store.stop().unwrap();
    let (store, recovered) = Store::open(&path, options(3)).unwrap();
    assert_eq!((recovered.openings, recovered.previous_incarnation), (2, Some(1)), "the refused one left no trace");
    store.stop().unwrap();
}

#[test]
fn another_nodes_store_is_refused_and_left_as_it_is() {
    let (_folder, path) = stopped_store(options(1));
    let other = options(2).for_node([8; 16]);
    assert_eq!(Store::open(&path, other).unwrap_err(), StoreError::OtherNode { found: NODE, expected: [8; 16] });
    let (_store, recovered) = Store::open(&path, options(3)).unwrap();
    assert_eq!((recovered.openings, recovered.previous_incarnation), (2, Some(1)));
}

#[test]
fn a_newer_format_is_refused_and_left_as_it_is() {
    let (_folder, path) = stopped_store(StoreOptions { format: FORMAT + 1, ..options(1) });
    let error = Store::open(&path, options(2)).unwrap_err();
    assert_eq!(error, StoreError::NewerFormat { found: FORMAT + 1, known: FORMAT });
    let (_store, recovered) = Store::open(&path, StoreOptions { format: FORMAT + 1, ..options(3) }).unwrap();
    assert_eq!((recovered.openings, recovered.previous_incarnation), (2, Some(1)));
}

#[test]
fn an_older_format_is_reported_until_its_owner_has_migrated_it() {
    let (_folder, path) = stopped_store(StoreOptions { format: FORMAT - 1, ..options(1) });
    for _ in 0..2 {
        let (store, recovered) = Store::open(&path, options(2)).unwrap();
        assert_eq!(recovered.format, FORMAT - 1);
        store.stop().unwrap();
    }
    let (store, _) = Store::open(&path, options(3)).unwrap();
    commit(&store, put(Table::Meta, meta::FORMAT, &FORMAT.to_be_bytes())).unwrap();
    store.stop().unwrap();
    assert_eq!(Store::open(&path, options(4)).unwrap().1.format, FORMAT);
}

#[test]
fn a_store_whose_creation_was_cut_off_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("store.new"), [0; 4096]).unwrap();
    let (store, recovered) = Store::open(&folder.path().join("store.redb"), options(1)).unwrap();
    assert_eq!(recovered.openings, 1);
    store.stop().unwrap();
    let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["lock", "reserve", "store.redb"]);
}

#[test]
fn a_file_that_is_no_store_is_an_error_and_no_panic() {
    let (folder, path) = stopped_store(options(1));
    let whole = fs::read(&path).unwrap();
    for (at, len) in [(0, 4096), (0, 9), (9, 300), (4096, 8192)] {
        let mut damaged = whole.clone();
        damaged[at..at + len].fill(0xa5);
        fs::write(&path, &damaged).unwrap();
        let error = Store::open(&path, options(2)).unwrap_err();
        assert!(!matches!(error, StoreError::InUse { .. } | StoreError::NoSpace { .. }), "{at}+{len}: {error}");
    }
    fs::write(&path, b"").unwrap();
    assert!(Store::open(&path, options(2)).is_err(), "an emptied store is not taken for a new one");
    drop(folder);

    let disk = Disk::default();
    Store::open_with_backend(disk.clone(), options(1)).unwrap().0.stop().unwrap();
    disk.overwrite(&[0; 4096]);
    assert!(Store::open_with_backend(disk, options(2)).is_err());
}

fn stopped_store(options: StoreOptions) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    Store::open(&path, options).unwrap().0.stop().unwrap();
    (folder, path)
}
