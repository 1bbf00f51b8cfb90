//! What a store can answer instead of "done".

use super::batch::Table;
use std::{io, path::PathBuf};
use uuid::Uuid;

/// Why a store did not open, read or commit. Cloneable, because the one fault that stops a store answers every batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process, or another node of this one, has it open.
    #[error("the store {} is in use", path.display())]
    InUse {
        /// The store's file.
        path: PathBuf,
    },
    /// A newer build wrote it. Nothing was changed.
    #[error("the store has format {found}, this build knows up to {known}")]
    NewerFormat {
        /// The file's.
        found: u32,
        /// This build's.
        known: u32,
    },
    /// The file belongs to another node. Nothing was changed.
    #[error("the store belongs to node {}, not to {}", Uuid::from_bytes(*found), Uuid::from_bytes(*expected))]
    OtherNode {
        /// Whose it is.
        found: [u8; 16],
        /// Who tried to open it.
        expected: [u8; 16],
    },
    /// One stored record is not what was written. It can be deleted or replaced by its key.
    #[error("record {} of table {table} is damaged", Hex(key))]
    Corrupt {
        /// Where.
        table: Table,
        /// Which.
        key: Vec<u8>,
    },
    /// The file's structure is damaged.
    #[error("{doing}: the store's file is damaged: {what}")]
    Damaged {
        /// What was attempted.
        doing: &'static str,
        /// What the engine found.
        what: String,
    },
    /// The disk or the quota is full.
    #[error("{doing}: no space is left on the disk")]
    NoSpace {
        /// What was attempted.
        doing: &'static str,
    },
    /// Any other failed call to the operating system.
    #[error("{doing}: {what}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// What the system said.
        what: String,
    },
    /// A key or value beyond its bound. The batch was not applied; the store goes on.
    #[error("a record of {bytes} bytes for table {table} is above the bound of {bytes_max}")]
    TooLarge {
        /// Where it was to go.
        table: Table,
        /// How long the key or value is.
        bytes: usize,
        /// How long it may be.
        bytes_max: usize,
    },
    /// The store was stopped by its owner.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// An engine's error, with what was attempted.
    pub(super) fn engine(doing: &'static str, error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::Io(error) => StoreError::io(doing, error),
            redb::Error::DatabaseClosed => StoreError::Closed,
            redb::Error::PreviousIo => StoreError::Io { doing, what: "an earlier read or write failed".into() },
            other => StoreError::Damaged { doing, what: other.to_string() },
        }
    }

    /// The operating system's error, with what was attempted.
    pub(super) fn io(doing: &'static str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::NoSpace { doing },
            _ => StoreError::Io { doing, what: error.to_string() },
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
