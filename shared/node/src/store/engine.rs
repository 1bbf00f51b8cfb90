//! The redb file: tables, checks on every value, and what is verified and written when it is opened.

use super::{
    Recovered, StoreOptions,
    batch::{Batch, Op, Table},
    error::StoreError,
    memory::Memory,
    meta,
};
use bytes::Bytes;
use redb::{
    Builder, Database, DatabaseError, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend,
    TableDefinition, WriteTransaction,
};
use std::{
    fs::{self, File, TryLockError},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Bytes of the check behind every value.
const CHECK: usize = 8;

const OPENING: &str = "opening the store";
const WRITING: &str = "writing to the store";
const READING: &str = "reading the store";

type Raw = TableDefinition<'static, &'static [u8], &'static [u8]>;
type WriteTable<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;
type ReadTable = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// An open store.
pub(super) enum Engine {
    /// In a file.
    File(OpenFile),
    /// Nowhere: see [`Memory`].
    Memory(Memory),
}

/// An open file.
pub(super) struct OpenFile {
    db: Database,
    size: Size,
    /// See [`StoreOptions::quick_repair_bytes`].
    quick_repair_bytes: u64,
    /// Held as long as the file is open. redb's own lock lies on the file, which does not exist yet when two nodes
    /// meet in an empty folder.
    _folder: Option<File>,
}

/// How long the file is.
enum Size {
    File(PathBuf),
    Backend(Arc<AtomicU64>),
}

impl Size {
    /// What cannot be told counts as large.
    fn bytes(&self) -> u64 {
        match self {
            Size::File(path) => fs::metadata(path).map_or(u64::MAX, |data| data.len()),
            Size::Backend(bytes) => bytes.load(Ordering::Acquire),
        }
    }
}

/// A backend whose length is known to others too.
#[derive(Debug)]
struct Sized<B>(B, Arc<AtomicU64>);

impl<B: StorageBackend> StorageBackend for Sized<B> {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)?;
        self.1.store(len, Ordering::Release);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

impl Engine {
    /// Opens or creates a store in the file system.
    pub(super) fn open_file(path: &Path, options: &StoreOptions) -> Result<Engine, StoreError> {
        let io = |error| StoreError::io(OPENING, error);
        let folder = path.parent().ok_or_else(|| io(std::io::ErrorKind::InvalidInput.into()))?;
        fs::create_dir_all(folder).map_err(io)?;
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock")).map_err(io)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::InUse { path: path.into() },
            TryLockError::Error(error) => io(error),
        })?;
        if !fs::exists(path).map_err(io)? {
            create(path, folder)?;
        }
        let db = guarded(OPENING, || builder(options.cache_bytes).open(path).map_err(|error| opening(path, error)))?;
        let quick_repair_bytes = options.quick_repair_bytes;
        Ok(Engine::File(OpenFile { db, size: Size::File(path.into()), quick_repair_bytes, _folder: Some(lock) }))
    }

    /// Opens or creates a store in anything that stores bytes.
    pub(super) fn open_backend(backend: impl StorageBackend, options: &StoreOptions) -> Result<Engine, StoreError> {
        let size = Arc::new(AtomicU64::new(backend.len().unwrap_or(u64::MAX)));
        let backend = Sized(backend, size.clone());
        let made = || builder(options.cache_bytes).create_with_backend(backend);
        let db = guarded(OPENING, || made().map_err(|error| opening(Path::new("(backend)"), error)))?;
        let quick_repair_bytes = options.quick_repair_bytes;
        Ok(Engine::File(OpenFile { db, size: Size::Backend(size), quick_repair_bytes, _folder: None }))
    }

    /// Verifies whose store this is, counts the opening and keeps its incarnation, all in one transaction.
    pub(super) fn recover(&self, options: &StoreOptions) -> Result<Recovered, StoreError> {
        let StoreOptions { format, incarnation, .. } = *options;
        match self {
            Engine::File(file) => file.recover(options),
            Engine::Memory(_) => Ok(Recovered { format, openings: 1, incarnation, previous_incarnation: None }),
        }
    }

    /// Makes several batches durable in one transaction, in order. After an error the file takes no more writes.
    pub(super) fn commit<'a>(&self, batches: impl Iterator<Item = &'a Batch>) -> Result<(), StoreError> {
        match self {
            Engine::File(file) => file.commit(batches),
            Engine::Memory(memory) => {
                memory.commit(batches);
                Ok(())
            }
        }
    }

    /// A view of what is committed. It outlives [`Engine::close`], but then answers [`StoreError::Closed`].
    pub(super) fn view(&self) -> Result<View, StoreError> {
        match self {
            Engine::File(file) => {
                file.db.begin_read().map(View::File).map_err(|error| StoreError::engine(READING, error))
            }
            Engine::Memory(memory) => Ok(View::Memory(memory.clone())),
        }
    }

    /// Writes the engine's own state, so that the next opening has nothing to repair, and releases the locks.
    pub(super) fn close(self) -> Result<(), StoreError> {
        let close = |file: OpenFile| file.db.close().map_err(|error| StoreError::engine("closing the store", error));
        match self {
            Engine::File(file) => guarded("closing the store", || close(file)),
            Engine::Memory(_) => Ok(()),
        }
    }
}

impl OpenFile {
    fn recover(&self, options: &StoreOptions) -> Result<Recovered, StoreError> {
        guarded(OPENING, || {
            let txn = self.write()?;
            let recovered = {
                // Every table exists from the first opening on, so that no read meets a missing one.
                for table in Table::ALL {
                    txn.open_table(definition(table)).map_err(|error| StoreError::engine(OPENING, error))?;
                }
                let mut tables = Tables::of(&txn);
                let found = tables.meta(meta::FORMAT)?.map(u32::from_be_bytes);
                if let Some(found) = found.filter(|found| *found > options.format) {
                    return Err(StoreError::NewerFormat { found, known: options.format });
                }
                if found.is_none() {
                    tables.put(Table::Meta, meta::FORMAT, &options.format.to_be_bytes())?;
                }
                match (tables.meta(meta::NODE)?, options.node_id) {
                    (Some(found), Some(expected)) if found != expected => {
                        return Err(StoreError::OtherNode { found, expected });
                    }
                    (None, Some(id)) => tables.put(Table::Meta, meta::NODE, &id)?,
                    _ => {}
                }
                let openings = tables.meta(meta::OPENINGS)?.map_or(0, u64::from_be_bytes) + 1;
                tables.put(Table::Meta, meta::OPENINGS, &openings.to_be_bytes())?;
                let previous_incarnation = tables.meta(meta::INCARNATION)?.map(u64::from_be_bytes);
                tables.put(Table::Meta, meta::INCARNATION, &options.incarnation.to_be_bytes())?;
                Recovered {
                    format: found.unwrap_or(options.format),
                    openings,
                    incarnation: options.incarnation,
                    previous_incarnation,
                }
            };
            txn.commit().map_err(|error| StoreError::engine(OPENING, error))?;
            Ok(recovered)
        })
    }

    fn commit<'a>(&self, batches: impl Iterator<Item = &'a Batch>) -> Result<(), StoreError> {
        guarded(WRITING, || {
            let txn = self.write()?;
            let mut tables = Tables::of(&txn);
            for op in batches.flat_map(|batch| &batch.ops) {
                tables.apply(op)?;
            }
            drop(tables);
            txn.commit().map_err(|error| StoreError::engine(WRITING, error))
        })
    }

    fn write(&self) -> Result<WriteTransaction, StoreError> {
        let mut txn = self.db.begin_write().map_err(|error| StoreError::engine(WRITING, error))?;
        txn.set_quick_repair(self.size.bytes() >= self.quick_repair_bytes);
        Ok(txn)
    }
}

/// What was committed when the view was taken.
pub(super) enum View {
    File(ReadTransaction),
    /// What is committed when it is read.
    Memory(Memory),
}

impl View {
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let file = match self {
            View::File(file) => file,
            View::Memory(memory) => return Ok(memory.get(table, key)),
        };
        guarded(READING, || match open(file, table)?.get(key).map_err(|error| StoreError::engine(READING, error))? {
            Some(stored) => checked(table, key, stored.value()).map(Bytes::copy_from_slice).map(Some),
            None => Ok(None),
        })
    }

    pub(super) fn each(
        &self,
        table: Table,
        from: &[u8],
        limit: usize,
        mut seen: impl FnMut(&[u8], Bytes),
    ) -> Result<(), StoreError> {
        let file = match self {
            View::File(file) => file,
            View::Memory(memory) => {
                memory.from(table, from, limit).into_iter().for_each(|(key, value)| seen(&key, value));
                return Ok(());
            }
        };
        // The visitor is the caller's code, so the guard against the engine's panics is around each step beside it.
        let open = || open(file, table)?.range(from..).map_err(|error| StoreError::engine(READING, error));
        let mut rows = guarded(READING, open)?;
        for _ in 0..limit {
            let step = || rows.next().transpose().map_err(|error| StoreError::engine(READING, error));
            let Some((key, stored)) = guarded(READING, step)? else { break };
            seen(key.value(), Bytes::copy_from_slice(checked(table, key.value(), stored.value())?));
        }
        Ok(())
    }
}

fn open(file: &ReadTransaction, table: Table) -> Result<ReadTable, StoreError> {
    file.open_table(definition(table)).map_err(|error| StoreError::engine(READING, error))
}

/// The tables a transaction has touched, each opened once.
struct Tables<'txn> {
    txn: &'txn WriteTransaction,
    open: [Option<WriteTable<'txn>>; Table::ALL.len()],
}

impl<'txn> Tables<'txn> {
    fn of(txn: &'txn WriteTransaction) -> Self {
        Tables { txn, open: Default::default() }
    }

    fn table(&mut self, table: Table) -> Result<&mut WriteTable<'txn>, StoreError> {
        let slot = &mut self.open[table as usize];
        match slot {
            Some(open) => Ok(open),
            None => {
                let opened = self.txn.open_table(definition(table));
                Ok(slot.insert(opened.map_err(|error| StoreError::engine(WRITING, error))?))
            }
        }
    }

    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::Put { table, key, value } => self.put(*table, key, value),
            Op::Delete { table, key } => {
                self.table(*table)?.remove(key.as_slice()).map_err(|error| StoreError::engine(WRITING, error))?;
                Ok(())
            }
            Op::DeleteRange { from, to_exclusive, .. } if from >= to_exclusive => Ok(()),
            Op::DeleteRange { table, from, to_exclusive } => self
                .table(*table)?
                .retain_in(from.as_slice()..to_exclusive.as_slice(), |_, _| false)
                .map_err(|error| StoreError::engine(WRITING, error)),
        }
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let check = check(table, key, value);
        let open = self.table(table)?;
        let mut place =
            open.insert_reserve(key, value.len() + CHECK).map_err(|error| StoreError::engine(WRITING, error))?;
        let (body, end) = place.as_mut().split_at_mut(value.len());
        body.copy_from_slice(value);
        end.copy_from_slice(&check);
        Ok(())
    }

    /// One of the store's own entries; one of the wrong length means that something else wrote the file.
    fn meta<const N: usize>(&mut self, key: &[u8]) -> Result<Option<[u8; N]>, StoreError> {
        let table = self.table(Table::Meta)?;
        let Some(stored) = table.get(key).map_err(|error| StoreError::engine(OPENING, error))? else { return Ok(None) };
        let value = checked(Table::Meta, key, stored.value())?;
        let value = value.try_into().map_err(|_| StoreError::Damaged {
            doing: OPENING,
            what: format!("entry {} has {} bytes, not {N}", String::from_utf8_lossy(key), value.len()),
        })?;
        Ok(Some(value))
    }
}

/// Makes a new file under another name and renames it when it is whole: a node that is killed while its store is
/// being made must find none at its next start, not one that the engine takes for a foreign file.
fn create(path: &Path, folder: &Path) -> Result<(), StoreError> {
    const CREATING: &str = "creating the store";
    let io = |error| StoreError::io(CREATING, error);
    let unfinished = path.with_extension("new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let made = Builder::new().set_cache_size(0).create(&unfinished).map_err(|error| opening(path, error))?;
    made.close().map_err(|error| StoreError::engine(CREATING, error))?;
    fs::rename(&unfinished, path).map_err(io)?;
    // The name must be as durable as the first record acknowledged from under it.
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

fn builder(cache_bytes: usize) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(cache_bytes);
    builder
}

fn opening(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::InUse { path: path.into() }
        }
        other => StoreError::engine(OPENING, other),
    }
}

fn definition(table: Table) -> Raw {
    TableDefinition::new(table.name())
}

/// Covers table and key as well, so that a value found under another key is as wrong as an altered one.
fn check(table: Table, key: &[u8], value: &[u8]) -> [u8; CHECK] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[table as u8]).update(&(key.len() as u64).to_be_bytes()).update(key).update(value);
    let mut check = [0; CHECK];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK]);
    check
}

/// The value without its check, if the check holds.
fn checked<'a>(table: Table, key: &[u8], stored: &'a [u8]) -> Result<&'a [u8], StoreError> {
    match stored.split_last_chunk::<CHECK>() {
        Some((value, end)) if *end == check(table, key, value) => Ok(value),
        _ => Err(StoreError::Corrupt { table, key: key.to_vec() }),
    }
}

/// The engine panics on some kinds of damaged file; here that is one more error.
fn guarded<T>(doing: &'static str, run: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let what = panic.downcast_ref::<String>().cloned();
        let what = what.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Err(StoreError::Damaged { doing, what: what.unwrap_or_else(|| "the engine panicked".into()) })
    })
}
