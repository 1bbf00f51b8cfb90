//! What a core asks to be made durable: plain data, no engine.

use bytes::Bytes;

/// A table of the store. One file holds them all, so one batch changes several of them or none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Table {
    /// Counters and documents of the node itself. The keys in [`super::meta`] belong to the store.
    Meta = 0,
    /// Records on their way up.
    Spool = 1,
    /// A relay's orders: what it holds, for whom, and which tombstones.
    Ledger = 2,
    /// An agent's journal: intents and results.
    Journal = 3,
    /// Who is below, as last heard.
    Presence = 4,
    /// Inventory sections and their digests.
    Inventory = 5,
}

impl Table {
    /// Every table, in the order of their numbers.
    pub const ALL: [Table; 6] =
        [Table::Meta, Table::Spool, Table::Ledger, Table::Journal, Table::Presence, Table::Inventory];

    /// The table's name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
            Table::Spool => "spool",
            Table::Ledger => "ledger",
            Table::Journal => "journal",
            Table::Presence => "presence",
            Table::Inventory => "inventory",
        }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Insert, or replace what is under the key.
    Put {
        /// Where.
        table: Table,
        /// Sorted as bytes.
        key: Vec<u8>,
        /// At most [`VALUE_BYTES_MAX`].
        value: Bytes,
    },
    /// Remove the key; nothing happens when it is absent.
    Delete {
        /// Where.
        table: Table,
        /// Sorted as bytes.
        key: Vec<u8>,
    },
    /// Remove every key of `from..to_exclusive`; nothing happens when that is empty or backwards.
    DeleteRange {
        /// Where.
        table: Table,
        /// The first key removed.
        from: Vec<u8>,
        /// The first key kept.
        to_exclusive: Vec<u8>,
    },
}

/// The longest value: twice the largest inventory (INV-13, 16 MB). A longer one is refused before it is queued, because
/// the engine's own refusal comes in the middle of a transaction that others share.
pub const VALUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The longest key. Keys are ids and numbers; this is far above any of them.
pub const KEY_BYTES_MAX: usize = 4 * 1024;
/// What an operation counts for beside its bytes: its share of pages and of the queue.
const OP_BYTES: usize = 32;

/// Changes that become durable together, in this order, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Applied first to last.
    pub ops: Vec<Op>,
}

impl Batch {
    /// No changes. Committed, it is answered after everything committed before it.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Insert or replace.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) -> &mut Self {
        self.ops.push(Op::Put { table, key: key.into(), value: value.into() });
        self
    }

    /// Remove one key.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) -> &mut Self {
        self.ops.push(Op::Delete { table, key: key.into() });
        self
    }

    /// Remove the keys of `from..to_exclusive`.
    pub fn delete_range(
        &mut self,
        table: Table,
        from: impl Into<Vec<u8>>,
        to_exclusive: impl Into<Vec<u8>>,
    ) -> &mut Self {
        self.ops.push(Op::DeleteRange { table, from: from.into(), to_exclusive: to_exclusive.into() });
        self
    }

    /// Append another batch's changes.
    pub fn extend(&mut self, other: Batch) -> &mut Self {
        self.ops.extend(other.ops);
        self
    }

    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes this batch counts for when batches are grouped into a transaction.
    pub fn weight(&self) -> usize {
        self.ops.iter().map(Op::weight).sum()
    }

    /// The first operation whose key or value is beyond its bound: table, bytes, bound.
    pub(super) fn too_large(&self) -> Option<(Table, usize, usize)> {
        self.ops.iter().find_map(|op| {
            let (table, keys, value) = op.parts();
            match keys.into_iter().map(<[u8]>::len).max().unwrap_or(0) {
                key if key > KEY_BYTES_MAX => Some((table, key, KEY_BYTES_MAX)),
                _ if value > VALUE_BYTES_MAX => Some((table, value, VALUE_BYTES_MAX)),
                _ => None,
            }
        })
    }
}

impl Op {
    fn weight(&self) -> usize {
        let (_, keys, value) = self.parts();
        OP_BYTES + value + keys.into_iter().map(<[u8]>::len).sum::<usize>()
    }

    fn parts(&self) -> (Table, [&[u8]; 2], usize) {
        match self {
            Op::Put { table, key, value } => (*table, [key, &[]], value.len()),
            Op::Delete { table, key } => (*table, [key, &[]], 0),
            Op::DeleteRange { table, from, to_exclusive } => (*table, [from, to_exclusive], 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_weighs_its_keys_values_and_operations() {
        let mut batch = Batch::new();
        assert!(batch.is_empty());
        batch.put(Table::Spool, b"key".as_slice(), vec![0; 100]).delete_range(Table::Spool, b"a".as_slice(), "bc");
        let mut other = Batch::new();
        other.delete(Table::Meta, b"k".as_slice());
        batch.extend(other);
        assert_eq!(batch.weight(), 3 * OP_BYTES + 103 + 3 + 1);
        assert_eq!(batch.ops.len(), 3);
    }

    #[test]
    fn keys_and_values_at_the_bound_and_one_past_it() {
        let zeros = Bytes::from(vec![0; VALUE_BYTES_MAX + 1]);
        let with = |key: usize, value: usize| {
            let mut batch = Batch::new();
            batch.put(Table::Journal, vec![0; key], zeros.slice(..value));
            batch.too_large()
        };
        assert_eq!(with(KEY_BYTES_MAX, VALUE_BYTES_MAX), None);
        assert_eq!(with(KEY_BYTES_MAX + 1, 0), Some((Table::Journal, KEY_BYTES_MAX + 1, KEY_BYTES_MAX)));
        assert_eq!(with(0, VALUE_BYTES_MAX + 1), Some((Table::Journal, VALUE_BYTES_MAX + 1, VALUE_BYTES_MAX)));
        let mut range = Batch::new();
        range.delete_range(Table::Spool, vec![], vec![0; KEY_BYTES_MAX + 1]);
        assert_eq!(range.too_large(), Some((Table::Spool, KEY_BYTES_MAX + 1, KEY_BYTES_MAX)));
    }
}
