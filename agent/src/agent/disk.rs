//! The agent's store: opened at its start, closed at its stop. That of a load test's agent whose journal is in memory is
//! written down as a whole when the agent stops in good order, so that the next run goes on with the same device.

use branchline_node::{
    identity::Identity,
    node::{Ambient, StartFault, exit_code, write_whole},
    store::{Batch, Store, StoreError, StoreHandle, StoreOptions, Table},
};
use bytes::Bytes;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The format of an agent's store that this build writes.
const STORE_FORMAT: u32 = 1;
/// What a store in memory leaves between two runs. While the agent runs there is none: what a process that did not stop
/// in good order knew is gone, and the device must not pass for the one it was.
const ROWS: &str = "agent.rows";

/// Number of its table, key and value.
type Row = (u8, Bytes, Bytes);

/// A store with what becomes of it at a stop.
#[derive(Clone)]
pub(super) struct Disk {
    store: StoreHandle,
    /// Where what it holds in memory is written down; `None` for a store that is a file.
    rows: Option<PathBuf>,
}

impl Disk {
    /// Opens the store of this identity; answers its incarnation as well.
    pub async fn open(
        folder: &Path,
        identity: &Identity,
        ambient: &Ambient,
        in_memory: bool,
    ) -> Result<(Disk, u64), StartFault> {
        let options =
            StoreOptions::new(STORE_FORMAT, ambient.random.next_u64()).for_node(*identity.subject.node.bytes());
        let folder = folder.to_owned();
        let open = move || if in_memory { open_in_memory(&folder, options) } else { open_file(&folder, options) };
        let opened = tokio::task::spawn_blocking(open).await;
        opened.map_err(|e| StartFault::new(exit_code::STATE, "state_unreadable", e.to_string()))?
    }

    /// The store.
    pub fn store(&self) -> &StoreHandle {
        &self.store
    }

    /// Closes it. Nobody commits any more.
    pub async fn stop(self) {
        let stop = move || {
            if let Some(path) = &self.rows
                && let Err(error) = write_down(&self.store, path)
            {
                tracing::error!(%error, "what was in memory could not be written down");
            }
            // The fault that stopped it, if one did, was reported as the node's end.
            let _ = self.store.stop();
        };
        let _ = tokio::task::spawn_blocking(stop).await;
    }
}

fn open_file(folder: &Path, options: StoreOptions) -> Result<(Disk, u64), StartFault> {
    let (store, recovered) = Store::open(&folder.join("agent.redb"), options).map_err(|e| store_fault(&e))?;
    Ok((Disk { store, rows: None }, recovered.incarnation))
}

fn open_in_memory(folder: &Path, options: StoreOptions) -> Result<(Disk, u64), StartFault> {
    let path = folder.join(ROWS);
    let unreadable = |why: String| StartFault::new(exit_code::STATE, "state_unreadable", why);
    let rows: Vec<Row> = match fs::read(&path) {
        Ok(bytes) => rmp_serde::from_slice(&bytes).map_err(|e| unreadable(format!("{}: {e}", path.display())))?,
        // It has run before.
        Err(e) if e.kind() == io::ErrorKind::NotFound && folder.join("node.json").exists() => {
            let message = "this agent's journal was in memory and is gone with its process; use another folder";
            return Err(StartFault::new(exit_code::STATE, "state_lost", message));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(unreadable(format!("{}: {e}", path.display()))),
    };
    let (store, recovered) = Store::volatile(options).map_err(|e| store_fault(&e))?;
    let mut batch = Batch::new();
    let known = !rows.is_empty();
    for (table, key, value) in rows {
        let table = *Table::ALL.get(usize::from(table)).ok_or_else(|| unreadable("a row of no table".into()))?;
        batch.put(table, key.to_vec(), value);
    }
    if known {
        // Answered before it returns: there is no thread that would.
        store.commit(batch, Box::new(|_| {})).map_err(|_| unreadable("too much waits".into()))?;
        fs::remove_file(&path).map_err(|e| unreadable(format!("{}: {e}", path.display())))?;
    }
    Ok((Disk { store, rows: Some(path) }, recovered.incarnation))
}

fn write_down(store: &StoreHandle, path: &Path) -> Result<(), String> {
    let mut rows: Vec<Row> = Vec::new();
    for (number, table) in (0u8..).zip(Table::ALL) {
        let kept = store.scan_all(table, |key, value| rows.push((number, Bytes::copy_from_slice(key), value)));
        kept.map_err(|e| e.to_string())?;
    }
    let bytes = rmp_serde::to_vec(&rows).map_err(|e| e.to_string())?;
    write_whole(path, &bytes).map_err(|e| e.to_string())
}

pub(super) fn store_fault(fault: &StoreError) -> StartFault {
    let (exit, code) = match fault {
        StoreError::InUse { .. } => (exit_code::STATE, "state_in_use"),
        StoreError::OtherNode { .. } => (exit_code::STATE, "other_node"),
        StoreError::NewerFormat { .. } => (exit_code::STATE, "newer_format"),
        StoreError::Corrupt { .. } | StoreError::Damaged { .. } => (exit_code::STATE, "state_unreadable"),
        _ => (exit_code::STORE, "store_failed"),
    };
    StartFault::new(exit, code, fault.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path, incarnation: u64) -> Result<(Disk, u64), StartFault> {
        open_in_memory(folder, StoreOptions::new(STORE_FORMAT, incarnation))
    }

    #[tokio::test]
    async fn a_store_in_memory_is_there_again_after_a_stop_and_never_after_a_loss() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, _) = open(folder.path(), 1).unwrap();
        let mut batch = Batch::new();
        batch.put(Table::Journal, [7], vec![1, 2]).put(Table::Meta, [8], vec![3]);
        disk.store().commit_wait(batch).await.unwrap();
        fs::write(folder.path().join("node.json"), "{}").unwrap();
        disk.stop().await;

        let (disk, incarnation) = open(folder.path(), 2).unwrap();
        assert_eq!(incarnation, 2);
        assert_eq!(disk.store().get(Table::Journal, &[7]).unwrap(), Some(Bytes::from_static(&[1, 2])));
        assert_eq!(disk.store().get(Table::Meta, &[8]).unwrap(), Some(Bytes::from_static(&[3])));
        // That process is killed.
        drop(disk);
        let lost = open(folder.path(), 3).map(|_| ()).unwrap_err();
        assert_eq!((lost.exit_code, lost.code.as_str()), (exit_code::STATE, "state_lost"));
        fs::write(folder.path().join(ROWS), [0xc1]).unwrap();
        let damaged = open(folder.path(), 4).map(|_| ()).unwrap_err();
        assert_eq!(damaged.code, "state_unreadable");
    }
}
