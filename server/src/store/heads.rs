//! What lists show of jobs and inventories, without loading them.

use branchline_protocol::{
    hash::Hash,
    id::JobId,
    job::{Class, State},
    time::Millis,
};
use std::collections::BTreeMap;

/// What a list of jobs shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobHead {
    /// The job.
    pub id: JobId,
    /// The verb.
    pub verb: String,
    /// For people.
    pub command: String,
    /// Its class.
    pub class: Class,
    /// Who ordered it.
    pub ordered_by: String,
    /// When.
    pub issued_at: Millis,
    /// Last instant an agent may journal it.
    pub fetch_by: Millis,
    /// Devices per state; states without a device are missing.
    pub counts: BTreeMap<State, u64>,
}

/// What a device list shows of an inventory.
#[derive(Clone, Debug, PartialEq)]
pub struct InventorySummary {
    /// INV-4.
    pub collected_at: Millis,
    /// Digest of the whole.
    pub digest: Hash,
    /// Pretty name of the OS, or `not_available`.
    pub os: String,
    /// CPU model, or `not_available`.
    pub cpu: String,
    /// Bytes of memory, if known.
    pub memory_bytes: Option<u64>,
    /// Number of packages.
    pub packages: u64,
    /// See [`super::InventoryRow`].
    pub settings_version: u64,
    /// See [`super::InventoryRow`].
    pub clock_skew: bool,
}
