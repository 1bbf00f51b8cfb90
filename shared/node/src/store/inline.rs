//! A store without a thread, for one-threaded use: the same engine and the same grouping, but the owner says when what
//! is queued is committed. A simulator drives a node with it in virtual time, over a disk of its own.

use super::{
    Recovered, StoreOptions,
    batch::{Batch, Table},
    engine::Engine,
    error::StoreError,
    handle::Full,
    thread::OnDone,
};
use crate::driver::Commits;
use bytes::Bytes;
use redb::StorageBackend;
use std::cell::RefCell;

/// An open store whose commits its owner carries out.
pub struct InlineStore {
    engine: Engine,
    queued: RefCell<Vec<(Batch, OnDone)>>,
    bound: usize,
}

impl InlineStore {
    /// Opens or creates a store in anything that stores bytes.
    pub fn open(backend: impl StorageBackend, options: StoreOptions) -> Result<(InlineStore, Recovered), StoreError> {
        let engine = Engine::open_backend(backend, &options)?;
        let recovered = engine.recover(&options)?;
        Ok((InlineStore { engine, queued: RefCell::default(), bound: options.queue.max(1) }, recovered))
    }

    /// Batches that wait for [`InlineStore::commit_queued`].
    pub fn queued(&self) -> usize {
        self.queued.borrow().len()
    }

    /// Commits what is queued as one transaction and answers each batch, in order. After an error the store is of no
    /// use: it has to be opened again, as after the end of [`super::StoreHandle`].
    pub fn commit_queued(&self) -> Result<(), StoreError> {
        let group = std::mem::take(&mut *self.queued.borrow_mut());
        let written = match group.iter().all(|(batch, _)| batch.is_empty()) {
            true => Ok(()),
            false => self.engine.commit(group.iter().map(|(batch, _)| batch)),
        };
        group.into_iter().for_each(|(_, on_done)| on_done(written.clone()));
        written
    }

    /// The committed value under a key.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.engine.view()?.get(table, key)
    }
}

impl super::Scan for InlineStore {
    fn scan_all(&self, table: Table, seen: impl FnMut(&[u8], Bytes)) -> Result<(), StoreError> {
        self.engine.view()?.each(table, &[], usize::MAX, seen)
    }
}

impl Commits for InlineStore {
    fn commit(&self, batch: Batch, on_done: OnDone) -> Result<(), Full> {
        if let Some((table, bytes, bytes_max)) = batch.too_large() {
            on_done(Err(StoreError::TooLarge { table, bytes, bytes_max }));
            return Ok(());
        }
        let mut queued = self.queued.borrow_mut();
        if queued.len() >= self.bound {
            return Err(Full { batch, on_done });
        }
        queued.push((batch, on_done));
        Ok(())
    }
}
