//! A node's disk: what survives its process. Either an exact model of the store's tables, which is cheap, or the real
//! engine over a faulty [`Platter`].

use super::{chance::Chance, defect::Defect, platter::Platter};
use branchline_node::{
    driver::Commits,
    store::{Batch, Full, InlineStore, OnDone, Op, Recovered, Scan, StoreError, StoreOptions, Table, meta},
};
use bytes::Bytes;
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

/// Rows of every table.
pub type Rows = BTreeMap<(Table, Vec<u8>), Bytes>;

/// Batches that may wait, as [`StoreOptions::queue`] has it.
const QUEUE: usize = 1024;

/// What a crash leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing of it.
    Lost,
    /// Some of it: torn pages, or the first of several transactions.
    Torn,
    /// All of it, but nobody was told.
    Untold,
}

/// A copy of a disk at some instant.
#[derive(Clone)]
pub enum Snapshot {
    /// Of the model.
    Rows(Rows),
    /// Of the engine's file.
    Image(Vec<u8>),
}

/// Clones are the same disk.
#[derive(Clone)]
pub struct Disk(Rc<RefCell<State>>);

struct State {
    media: Media,
    full: bool,
    defect: Option<Defect>,
    /// Told to be durable, and not: with a defect.
    limbo: Vec<Batch>,
}

enum Media {
    Model {
        rows: Rows,
        queue: Vec<(Batch, OnDone)>,
    },
    /// `of`: whose, once it was opened.
    Engine {
        platter: Platter,
        open: Option<InlineStore>,
        of: Option<[u8; 16]>,
    },
}

fn options(node: [u8; 16], incarnation: u64) -> StoreOptions {
    StoreOptions { cache_bytes: 256 * 1024, queue: QUEUE, ..StoreOptions::new(1, incarnation) }.for_node(node)
}

impl Disk {
    /// An empty disk.
    pub fn new(engine: bool, defect: Option<Defect>) -> Disk {
        let media = match engine {
            true => Media::Engine { platter: Platter::default(), open: None, of: None },
            false => Media::Model { rows: Rows::new(), queue: Vec::new() },
        };
        Disk(Rc::new(RefCell::new(State { media, full: false, defect, limbo: Vec::new() })))
    }

    /// Opens the store of a node, as its process does at its start.
    pub fn open(&self, node: [u8; 16], incarnation: u64) -> Result<Recovered, StoreError> {
        let state = &mut *self.0.borrow_mut();
        match &mut state.media {
            Media::Engine { platter, open, of } => {
                *open = None;
                let (store, recovered) = InlineStore::open(platter.clone(), options(node, incarnation))?;
                (*open, *of) = (Some(store), Some(node));
                Ok(recovered)
            }
            Media::Model { rows, queue } => {
                queue.clear();
                if state.full {
                    return Err(StoreError::NoSpace { doing: "opening the store" });
                }
                let number = |rows: &Rows, key: &[u8]| {
                    let bytes = rows.get(&(Table::Meta, key.to_vec()))?;
                    Some(u64::from_be_bytes(bytes[..].try_into().ok()?))
                };
                let openings = number(rows, meta::OPENINGS).unwrap_or(0) + 1;
                let previous_incarnation = number(rows, meta::INCARNATION);
                let mut put = |key: &[u8], value: u64| {
                    rows.insert((Table::Meta, key.to_vec()), Bytes::copy_from_slice(&value.to_be_bytes()));
                };
                put(meta::OPENINGS, openings);
                put(meta::INCARNATION, incarnation);
                Ok(Recovered { format: 1, openings, incarnation, previous_incarnation })
            }
        }
    }

    /// Batches that are not durable.
    pub fn queued(&self) -> usize {
        match &self.0.borrow().media {
            Media::Model { queue, .. } => queue.len(),
            Media::Engine { open, .. } => open.as_ref().map_or(0, InlineStore::queued),
        }
    }

    /// Makes what is queued durable and answers it. An error ends the node's process.
    pub fn sync(&self) -> Result<(), StoreError> {
        let answers = {
            let state = &mut *self.0.borrow_mut();
            match &mut state.media {
                Media::Engine { open: Some(store), .. } => return store.commit_queued(),
                Media::Engine { open: None, .. } => return Err(StoreError::Closed),
                Media::Model { rows, queue } => {
                    let group = std::mem::take(queue);
                    let full = state.full && group.iter().any(|(batch, _)| !batch.is_empty());
                    let result = if full { Err(StoreError::NoSpace { doing: "writing to the store" }) } else { Ok(()) };
                    let mut answers = Vec::new();
                    for (batch, on_done) in group {
                        match state.defect {
                            _ if result.is_err() => {}
                            Some(Defect::NoSync) => state.limbo.push(batch),
                            Some(Defect::AttachmentNotKept) => apply(rows, without(batch, b"attachment")),
                            _ => apply(rows, batch),
                        }
                        answers.push(on_done);
                    }
                    (answers, result)
                }
            }
        };
        let (answers, result) = answers;
        answers.into_iter().for_each(|on_done| on_done(result.clone()));
        result
    }

    /// The process is gone in the middle of whatever it did; its file is closed as it is.
    pub fn crash(&self, how: Crash, chance: &mut Chance) {
        let state = &mut *self.0.borrow_mut();
        match &mut state.media {
            Media::Model { rows, queue } => {
                state.limbo.clear();
                let mut group = std::mem::take(queue);
                let kept = match how {
                    Crash::Lost => 0,
                    Crash::Torn => chance.below(group.len() as u64 + 1) as usize,
                    Crash::Untold => group.len(),
                };
                if !state.full {
                    if state.defect == Some(Defect::HalfBatches)
                        && let Some((batch, _)) = group.get_mut(kept)
                    {
                        let half = batch.ops.len() / 2;
                        apply(rows, Batch { ops: batch.ops.drain(..half).collect() });
                    }
                    group.into_iter().take(kept).for_each(|(batch, _)| apply(rows, batch));
                }
            }
            Media::Engine { platter, open, .. } => {
                let Some(store) = open.take() else { return };
                match how {
                    Crash::Lost => platter.set_fuse(0),
                    Crash::Torn => platter.set_fuse(chance.between(1, 24)),
                    Crash::Untold => {}
                }
                // What comes of it nobody hears.
                let _ = store.commit_queued();
                let (mut dice, loss) = (chance.clone(), how == Crash::Lost);
                // Dropping it would close it in good order.
                platter.set_fuse(0);
                drop(store);
                platter.power_cut(|| !loss && dice.one_in(2));
                chance.next();
            }
        }
    }

    /// From now on, or no longer, nothing fits.
    pub fn set_full(&self, full: bool) {
        let state = &mut *self.0.borrow_mut();
        state.full = full;
        if let Media::Engine { platter, .. } = &state.media {
            platter.set_full(full);
        }
    }

    /// What a snapshot of the machine keeps: all that is durable.
    pub fn snapshot(&self) -> Snapshot {
        match &self.0.borrow().media {
            Media::Model { rows, .. } => Snapshot::Rows(rows.clone()),
            Media::Engine { platter, .. } => Snapshot::Image(platter.image()),
        }
    }

    /// The machine's disk is that of the snapshot again. The process must be gone.
    pub fn restore(&self, from: Snapshot) {
        let state = &mut *self.0.borrow_mut();
        match (&mut state.media, from) {
            (Media::Model { rows, queue }, Snapshot::Rows(old)) => {
                queue.clear();
                *rows = old;
            }
            (Media::Engine { platter, open, .. }, Snapshot::Image(image)) => {
                *open = None;
                platter.restore(image);
                platter.set_full(state.full);
            }
            _ => {}
        }
    }

    /// The disk is replaced by an empty one.
    pub fn replace(&self) {
        let empty = match &self.0.borrow().media {
            Media::Model { .. } => Snapshot::Rows(Rows::new()),
            Media::Engine { .. } => Snapshot::Image(Vec::new()),
        };
        self.restore(empty);
    }

    /// A durable row.
    pub fn get(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        match &self.0.borrow().media {
            Media::Model { rows, .. } => rows.get(&(table, key.to_vec())).cloned(),
            Media::Engine { open, .. } => open.as_ref().and_then(|store| store.get(table, key).ok().flatten()),
        }
    }

    /// Whether a durable row begins with this key.
    pub fn has_prefix(&self, table: Table, prefix: &[u8]) -> bool {
        match &self.0.borrow().media {
            Media::Model { rows, .. } => rows
                .range((table, prefix.to_vec())..)
                .next()
                .is_some_and(|((t, key), _)| *t == table && key.starts_with(prefix)),
            Media::Engine { open: Some(store), .. } => {
                let mut found = false;
                let _ = store.scan_all(table, |key, _| found |= key.starts_with(prefix));
                found
            }
            Media::Engine { open: None, .. } => false,
        }
    }
}

impl Scan for Disk {
    fn scan_all(&self, table: Table, mut seen: impl FnMut(&[u8], Bytes)) -> Result<(), StoreError> {
        match &self.0.borrow().media {
            Media::Model { rows, .. } => {
                let of_table = rows.range((table, Vec::new())..).take_while(|((t, _), _)| *t == table);
                of_table.for_each(|((_, key), value)| seen(key, value.clone()));
                Ok(())
            }
            Media::Engine { open: Some(store), .. } => store.scan_all(table, seen),
            // Whose process is gone is read from a copy, which opening may change.
            Media::Engine { platter, open: None, of: Some(node) } => {
                let copy = Platter::default();
                copy.restore(platter.image());
                InlineStore::open(copy, options(*node, 0))?.0.scan_all(table, seen)
            }
            Media::Engine { open: None, of: None, .. } => Err(StoreError::Closed),
        }
    }
}

impl Commits for Disk {
    fn commit(&self, batch: Batch, on_done: OnDone) -> Result<(), Full> {
        let state = &mut *self.0.borrow_mut();
        let early = state.defect == Some(Defect::TellsBeforeSync);
        match &mut state.media {
            Media::Model { queue, .. } if early => {
                queue.push((batch, Box::new(|_| {})));
                on_done(Ok(()));
                Ok(())
            }
            Media::Model { queue, .. } if queue.len() >= QUEUE => Err(Full { batch, on_done }),
            Media::Model { queue, .. } => {
                queue.push((batch, on_done));
                Ok(())
            }
            Media::Engine { open: Some(store), .. } => store.commit(batch, on_done),
            Media::Engine { open: None, .. } => {
                on_done(Err(StoreError::Closed));
                Ok(())
            }
        }
    }
}

/// The batch without what it puts under a key.
fn without(batch: Batch, under: &[u8]) -> Batch {
    let other = |op: &Op| !matches!(op, Op::Put { key, .. } if key == under);
    Batch { ops: batch.ops.into_iter().filter(other).collect() }
}

fn apply(rows: &mut Rows, batch: Batch) {
    for op in batch.ops {
        match op {
            Op::Put { table, key, value } => {
                rows.insert((table, key), value);
            }
            Op::Delete { table, key } => {
                rows.remove(&(table, key));
            }
            Op::DeleteRange { table, from, to_exclusive } if from < to_exclusive => {
                let gone: Vec<_> = rows
                    .range((table, from)..(table, to_exclusive))
                    .map(|((table, key), _)| (*table, key.clone()))
                    .collect();
                for key in gone {
                    rows.remove(&key);
                }
            }
            Op::DeleteRange { .. } => {}
        }
    }
}
