//! Tables in memory and nothing on disk: for agents of a load test, whose journals are not what is measured.

use super::batch::{Batch, Op, Table};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

type Rows = BTreeMap<(Table, Vec<u8>), Bytes>;

/// What would be in the file. Clones are the same tables.
#[derive(Clone, Default)]
pub(super) struct Memory(Arc<RwLock<Rows>>);

impl Memory {
    /// Applies batches in their order, all before anybody reads again.
    pub(super) fn commit<'a>(&self, batches: impl Iterator<Item = &'a Batch>) {
        let mut rows = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for op in batches.flat_map(|batch| &batch.ops) {
            match op {
                Op::Put { table, key, value } => _ = rows.insert((*table, key.clone()), value.clone()),
                Op::Delete { table, key } => _ = rows.remove(&(*table, key.clone())),
                Op::DeleteRange { from, to_exclusive, .. } if from >= to_exclusive => {}
                Op::DeleteRange { table, from, to_exclusive } => {
                    let range = (*table, from.clone())..(*table, to_exclusive.clone());
                    let gone: Vec<_> = rows.range(range).map(|(key, _)| key.clone()).collect();
                    gone.iter().for_each(|key| _ = rows.remove(key));
                }
            }
        }
    }

    /// The value under a key.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&(table, key.to_vec())).cloned()
    }

    /// At most `limit` rows from a key on.
    pub(super) fn from(&self, table: Table, from: &[u8], limit: usize) -> Vec<(Vec<u8>, Bytes)> {
        let rows = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let range = rows.range((table, from.to_vec())..).take_while(|((of, _), _)| *of == table);
        range.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect()
    }
}
