//! The disk alone, and SQLite alone: what a synced write takes, and what it takes to store the packages of a thousand devices, with
//! nothing around them.

use crate::{Outcome, stats::Sample};
use std::{fs::File, io::Write, path::Path, time::Instant};

/// Milliseconds of so many writes of 4 KiB to the end of a file, each synced.
pub fn synced_writes(folder: &Path, times: usize) -> Outcome<Sample> {
    let path = folder.join("synced");
    let mut file = File::create(&path)?;
    let mut took = Vec::new();
    for _ in 0..times {
        let from = Instant::now();
        file.write_all(&[7; 4_096])?;
        file.sync_data()?;
        took.push(from.elapsed().as_secs_f64() * 1_000.0);
    }
    drop(file);
    std::fs::remove_file(path)?;
    Ok(Sample::of(took))
}

/// Seconds until so many devices with so many packages each are in a table with a key, one transaction a device batch,
/// synced at its end.
pub fn sqlite(folder: &Path, devices: usize, packages: usize) -> Outcome<f64> {
    let file = folder.join("inventory.sqlite");
    let mut base = rusqlite::Connection::open(&file)?;
    base.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE package (device INTEGER, name TEXT, version TEXT, vendor TEXT, PRIMARY KEY (device, name)) WITHOUT ROWID;",
    )?;
    let from = Instant::now();
    for batch in (0..devices).collect::<Vec<_>>().chunks(50) {
        let change = base.transaction()?;
        {
            let mut insert = change.prepare_cached("INSERT INTO package VALUES (?1, ?2, ?3, ?4)")?;
            for device in batch {
                for package in 0..packages {
                    let (name, version) = (format!("package-{package:04}"), format!("1.{package}.{device}-2"));
                    insert.execute(rusqlite::params![*device as i64, name, version, "Example Vendor"])?;
                }
            }
        }
        change.commit()?;
    }
    let took = from.elapsed().as_secs_f64();
    drop(base);
    for name in ["inventory.sqlite", "inventory.sqlite-wal", "inventory.sqlite-shm"] {
        let _ = std::fs::remove_file(folder.join(name));
    }
    Ok(took)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_few_rows_are_stored_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        assert!(super::sqlite(folder.path(), 3, 4).unwrap() > 0.0);
        assert_eq!(super::synced_writes(folder.path(), 3).unwrap().len(), 3);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
