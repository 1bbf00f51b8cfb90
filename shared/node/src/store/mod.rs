//! The durable memory of a relay or agent: one file, one writing thread, one transaction for many batches (DESIGN 5).
//! What the records mean does not belong here; the cores that write them know.
//!
//! - [`batch`]: what is to be changed, as plain data
//! - [`StoreHandle`]: commit, read, stop
//! - `thread`: groups what is queued, commits it, answers
//! - [`InlineStore`]: the same without a thread, for a simulator
//! - `engine`: the redb file, with a check behind every value
//! - `memory`: the same without a file, for a load test
//! - `reserve`: space held back for deleting on a full disk
//!
//! A failed write or sync ends the store: it is answered to every batch from the failed one on, and the owner learns it
//! from [`StoreHandle::stopped`]. A system may forget a failed sync and call the next one good, so only a new opening,
//! which reads the file again, can tell what is durable.

pub mod batch;
mod engine;
mod error;
mod handle;
mod inline;
mod memory;
mod reserve;
mod thread;

#[cfg(test)]
mod disk;
#[cfg(test)]
mod tests;

pub use batch::{Batch, Op, Table};
pub use error::StoreError;
pub use handle::{Full, StoreHandle};
pub use inline::InlineStore;
pub use redb::StorageBackend;
pub use thread::{Ended, OnDone};

use bytes::Bytes;
use engine::Engine;
use reserve::Reserve;
use std::{path::Path, sync::atomic::Ordering};
use tokio::sync::mpsc;

/// The store's own keys in [`Table::Meta`]. A batch leaves them alone, but for [`meta::FORMAT`] after a migration.
pub mod meta {
    /// The format of the records, u32 big-endian.
    pub const FORMAT: &[u8] = b"format";
    /// Whose store it is, 16 bytes.
    pub const NODE: &[u8] = b"node";
    /// How often it was opened, u64 big-endian.
    pub const OPENINGS: &[u8] = b"openings";
    /// The incarnation of the newest opening, u64 big-endian.
    pub const INCARNATION: &[u8] = b"incarnation";
}

/// How to open a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// The format this build writes. A file of a newer one is refused.
    pub format: u32,
    /// Random, new at each opening: it names the streams that begin with it (DESIGN 5).
    pub incarnation: u64,
    /// Whose store this must be; written down where no owner is yet. `None` does not ask.
    pub node_id: Option<[u8; 16]>,
    /// Memory for pages. 1 MiB, since one process may hold 300 stores.
    pub cache_bytes: usize,
    /// Batches that may wait. 1024: some seconds of a slow disk; beyond that, senders keep their matter.
    pub queue: usize,
    /// Space held back for deleting on a full disk, 1 MiB; 0 holds back none.
    pub reserve_bytes: u64,
    /// From this length of the file on, [`QUICK_REPAIR_BYTES`], a commit also writes what spares the next opening a walk
    /// through the file after a kill. It costs a second sync and as much work again.
    pub quick_repair_bytes: u64,
}

/// A file that is shorter is walked through in some hundredths of a second.
pub const QUICK_REPAIR_BYTES: u64 = 64 * 1024 * 1024;

impl StoreOptions {
    /// The usual sizes, and no owner asked for.
    pub fn new(format: u32, incarnation: u64) -> Self {
        let (cache_bytes, reserve_bytes) = (1024 * 1024, 1024 * 1024);
        let quick_repair_bytes = QUICK_REPAIR_BYTES;
        StoreOptions { format, incarnation, node_id: None, cache_bytes, queue: 1024, reserve_bytes, quick_repair_bytes }
    }

    /// The same for one node's store.
    pub fn for_node(self, node_id: [u8; 16]) -> Self {
        StoreOptions { node_id: Some(node_id), ..self }
    }
}

/// What an opening found and began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The format of the records in the file. If it is older than the one asked for, the owner migrates them and puts
    /// the new number under [`meta::FORMAT`] in the same batch.
    pub format: u32,
    /// How often this store has been opened, this time included. 1: it is new, and remembers nothing.
    pub openings: u64,
    /// As passed in; durable.
    pub incarnation: u64,
    /// Of the opening before.
    pub previous_incarnation: Option<u64>,
}

/// What a recovery reads: every committed record of a table, as of one instant, in the order of their keys.
pub trait Scan {
    /// Shows them; ends with an error at the first record that is damaged.
    fn scan_all(&self, table: Table, seen: impl FnMut(&[u8], Bytes)) -> Result<(), StoreError>;
}

impl Scan for StoreHandle {
    fn scan_all(&self, table: Table, seen: impl FnMut(&[u8], Bytes)) -> Result<(), StoreError> {
        StoreHandle::scan_all(self, table, seen)
    }
}

/// Opens stores.
pub struct Store;

impl Store {
    /// Opens the file at `path`, or makes it, and its folder. Beside it lie `lock`, `reserve` and, while it is being
    /// made, a file with the extension `new`: one store to a folder. Blocks.
    ///
    /// Errors: [`StoreError::InUse`], [`StoreError::NewerFormat`], [`StoreError::OtherNode`], a damaged file, and
    /// whatever the operating system refuses.
    pub fn open(path: &Path, options: StoreOptions) -> Result<(StoreHandle, Recovered), StoreError> {
        let engine = Engine::open_file(path, &options)?;
        let reserve = (options.reserve_bytes > 0).then(|| Reserve::beside(path, options.reserve_bytes));
        start(engine, reserve, options)
    }

    /// The same over any storage, without a folder and so without a reserve: a simulator puts a faulty disk here.
    pub fn open_with_backend(
        backend: impl StorageBackend,
        options: StoreOptions,
    ) -> Result<(StoreHandle, Recovered), StoreError> {
        start(Engine::open_backend(backend, &options)?, None, options)
    }

    /// A store that keeps nothing: what is committed is gone with the process. It has no thread, and answers a batch on the
    /// caller's before it returns. For agents of a load test alone, of which one machine may hold more than it may threads.
    pub fn volatile(options: StoreOptions) -> Result<(StoreHandle, Recovered), StoreError> {
        let engine = Engine::Memory(Default::default());
        let recovered = engine.recover(&options)?;
        Ok((StoreHandle::at_once(thread::Shared::new(engine)), recovered))
    }
}

fn start(
    engine: Engine,
    reserve: Option<Reserve>,
    options: StoreOptions,
) -> Result<(StoreHandle, Recovered), StoreError> {
    let recovered = match engine.recover(&options) {
        Ok(recovered) => recovered,
        Err(error) => {
            // A full disk must not keep the store from opening for the deletes that would make room.
            if let (StoreError::NoSpace { .. }, Some(Err(error))) = (&error, reserve.as_ref().map(Reserve::release)) {
                tracing::error!(%error, "the store's reserve could not be released");
            }
            return Err(error);
        }
    };
    let shared = thread::Shared::new(engine);
    if let Some(Err(error)) = reserve.as_ref().map(Reserve::build) {
        tracing::warn!(%error, "the store has no reserve: the disk is nearly full");
        shared.low_space.store(true, Ordering::Release);
    }
    let (sender, queue) = mpsc::channel(options.queue.max(1));
    let of_thread = shared.clone();
    let thread = std::thread::Builder::new()
        .name(thread_name(options.node_id))
        .stack_size(256 * 1024)
        .spawn(move || thread::run(queue, of_thread, reserve))
        .map_err(|error| StoreError::io("starting the store's thread", error))?;
    Ok((StoreHandle::new(shared, sender, thread), recovered))
}

/// Linux shows 15 bytes of a thread's name; the last four of an id tell nodes apart that were enrolled together.
fn thread_name(node_id: Option<[u8; 16]>) -> String {
    match node_id {
        Some([.., a, b, c, d]) => format!("store-{a:02x}{b:02x}{c:02x}{d:02x}"),
        None => "store".into(),
    }
}
