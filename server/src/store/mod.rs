//! What the server keeps, behind one interface (DESIGN 7). Every row bears its tenant.
//!
//! Writes come as batches of [`Op`] and are durable when `commit` returns: one transaction per batch, several waiting
//! batches in one transaction (group commit). Reads see everything committed before them.

mod codec;
mod heads;
mod op;
mod read;
mod snapshot;
mod sqlite;
mod summary;
mod targets;
mod write;
mod writer;

#[cfg(test)]
mod tests;

pub use heads::{InventorySummary, JobHead};
pub use op::Op;
pub use snapshot::Snapshot;
pub use sqlite::SqliteStore;
pub use summary::{Summary, summary};

use async_trait::async_trait;
use branchline_protocol::{
    capability::Declared,
    document::Kind,
    hash::Hash,
    id::{Attachment, Epoch, JobId, NodeId, OrderNumber, Role, TenantId, TraceId},
    inventory::Items,
    job::{Class, State},
    order::Envelope,
    record::StreamId,
    time::Millis,
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A node as enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its id.
    pub id: NodeId,
    /// Whose.
    pub tenant: TenantId,
    /// Gateway, relay or agent.
    pub role: Role,
    /// Its site; empty for gateways.
    pub site: String,
    /// Name shown to people, unique per tenant and role ignoring case.
    pub name: String,
    /// Full host name.
    pub host_name: String,
    /// `linux`, …
    pub platform: String,
    /// What it declared.
    pub capabilities: Declared,
    /// `lan` or `wan` (TOP-16): whether its bundle leads through a gateway.
    pub kind: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// Newest attachment seen in this epoch.
    pub attachment: Attachment,
    /// Relays between the server and it at that attachment, nearest the server first.
    pub route: Vec<NodeId>,
    /// Last contact, node time.
    pub last_contact: Option<Millis>,
    /// When it enrolled.
    pub enrolled_at: Millis,
    /// Refused everywhere since then.
    pub revoked_at: Option<Millis>,
    /// blake3 of its public key, so that a repeated enrolment with token and key is recognised.
    pub key_hash: Hash,
    /// Tags.
    pub tags: Vec<String>,
}

/// A one-time or few-times secret that lets a node enrol (ENR-1). Only its hash is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// blake3 of the secret.
    pub hash: Hash,
    /// Whose.
    pub tenant: TenantId,
    /// What may enrol with it.
    pub role: Role,
    /// Where.
    pub site: String,
    /// `lan` or `wan`.
    pub kind: String,
    /// How many more nodes.
    pub uses_left: u32,
    /// Until when.
    pub expires_at: Millis,
}

/// One job with its signed order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRow {
    /// Its id.
    pub id: JobId,
    /// Whose.
    pub tenant: TenantId,
    /// The order's number.
    pub number: OrderNumber,
    /// Its trace.
    pub trace: TraceId,
    /// The verb.
    pub verb: String,
    /// The command line or script name, for people.
    pub command: String,
    /// The selector as given.
    pub selector: String,
    /// Its class.
    pub class: Class,
    /// Who ordered it: an API token's name.
    pub ordered_by: String,
    /// When.
    pub issued_at: Millis,
    /// Last instant an agent may journal it.
    pub fetch_by: Millis,
    /// When silence becomes an end.
    pub report_by: Millis,
    /// The signed envelope.
    pub envelope: Envelope,
    /// The argument bytes.
    pub args: Bytes,
    /// The job that this one steers, if its verb is [`branchline_protocol::job::CANCEL`]; else the job that it was issued
    /// anew from.
    pub origin: Option<JobId>,
}

/// One device of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobDeviceRow {
    /// The job.
    pub job: JobId,
    /// Its place among the Merkle leaves; `None` for a target that got no leaf (no such device).
    pub leaf: Option<u32>,
    /// The device: its id, or the words the administrator used for one that does not exist.
    pub device: Result<NodeId, String>,
    /// The epoch its leaf binds.
    pub epoch: Epoch,
    /// Where it stands.
    pub state: State,
    /// Why.
    pub reason: Option<String>,
    /// When the state last changed.
    pub changed_at: Millis,
    /// What the agent reported.
    pub result: Option<ResultRow>,
    /// Children that may have the order for this device (DESIGN 5).
    pub holders: Vec<NodeId>,
    /// When the server learned that the device has it. Kept by the store; what is given at issue counts for nothing.
    pub delivered_at: Option<Millis>,
    /// The result replaced an end that the server had concluded. Kept by the store.
    pub late: bool,
}

/// What the agent reported of its run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultRow {
    /// The process's exit code.
    pub exit_code: Option<i32>,
    /// Standard output.
    pub stdout: Bytes,
    /// Standard error.
    pub stderr: Bytes,
    /// Whether either was cut.
    pub truncated: bool,
    /// When it began.
    pub started_at: Option<Millis>,
    /// When it ended.
    pub ended_at: Millis,
}

/// A job that a device had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The job.
    pub job: JobId,
    /// Its class.
    pub class: Class,
    /// When it was issued.
    pub issued_at: Millis,
    /// When the server learned that the device had it.
    pub delivered_at: Millis,
}

/// A device's inventory as the server holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct InventoryRow {
    /// Every section.
    pub sections: BTreeMap<String, Items>,
    /// Their digest.
    pub digest: Hash,
    /// INV-4: when it last changed.
    pub collected_at: Millis,
    /// The settings it was collected under.
    pub settings_version: u64,
    /// Whether the server lacks sections and has asked for them (INV-6).
    pub need_full: bool,
    /// Whether `collected_at` was more than 24 h ahead of the server when the record came (INV-13).
    pub clock_skew: bool,
}

/// An API token: only its hash is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiTokenRow {
    /// blake3 of the secret.
    pub hash: Hash,
    /// Whose; the system tenant's may act for every tenant.
    pub tenant: TenantId,
    /// Its name, as audits show it.
    pub name: String,
}

/// How far the server holds a stream: everything up to `upto`, whose hash is `hash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRow {
    /// Whose records.
    pub stream: StreamId,
    /// The last number held.
    pub upto: u64,
    /// That record's hash: the next one's `prev` must equal it.
    pub hash: Hash,
}

/// One audited act (JOB-15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// Whose.
    pub tenant: TenantId,
    /// When.
    pub at: Millis,
    /// Who: an API token's name or a node.
    pub who: String,
    /// What: `job.issue`, `node.revoke`, `node.enrol`, `record.refused` …
    pub what: String,
    /// On what, with which outcome.
    pub detail: String,
}

/// A record that was refused: kept for an administrator to look at, and blocking nothing (DESIGN 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterRow {
    /// Whose.
    pub tenant: TenantId,
    /// When it was refused.
    pub at: Millis,
    /// The child that brought it.
    pub via: NodeId,
    /// Its stream.
    pub stream: StreamId,
    /// Its number.
    pub number: u64,
    /// Its class.
    pub class: u16,
    /// Why: `revoked`, `foreign`, `malformed`, `too_large`, `hole`, `rollback`, `gap_not_allowed`.
    pub code: String,
    /// How long its body is.
    pub bytes: u64,
    /// The first [`DEAD_LETTER_BYTES_MAX`] bytes of its body.
    pub body: Bytes,
}

/// Bytes kept of a refused record.
pub const DEAD_LETTER_BYTES_MAX: usize = 65_536;
/// Refused records kept of a tenant, newest first to stay: 64 MiB at most.
pub const DEAD_LETTERS_MAX: u32 = 1_024;

/// Reports kept as history per device. A device that sends nothing but what cannot be applied fills this and no more.
pub const INVENTORY_HISTORY_MAX: u32 = 64;

/// Why the store did not do it. Nothing of the batch was kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A condition of the batch did not hold.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The store is of a newer build.
    #[error("the store has format {found}, this build knows {known}: start the build that wrote it")]
    NewerFormat {
        /// What it is.
        found: u32,
        /// What this build knows.
        known: u32,
    },
    /// Another process has it open.
    #[error("{0} is in use by another process")]
    InUse(String),
    /// The database failed.
    #[error("database: {0}")]
    Database(String),
    /// A write failed earlier; nothing is acknowledged any more.
    #[error("the store has stopped: {0}")]
    Stopped(String),
}

/// The server's store.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes the batch durably, all or nothing.
    async fn commit(&self, batch: Vec<Op>) -> Result<(), StoreError>;
    /// Returns, with the reason, once a write has failed and nothing is taken any more; never otherwise. The process is
    /// to end then: only a new opening can tell what is durable.
    async fn stopped(&self) -> String {
        std::future::pending().await
    }
    /// How many transactions were synced.
    fn fsyncs(&self) -> u64;

    /// Every tenant.
    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError>;
    /// A tenant's sites.
    async fn sites(&self, tenant: &TenantId) -> Result<Vec<String>, StoreError>;
    /// Every node of every tenant.
    async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError>;
    /// One of a tenant.
    async fn node(&self, tenant: &TenantId, id: NodeId) -> Result<Option<NodeRow>, StoreError>;
    /// An enrolment token by the hash of its secret.
    async fn token(&self, hash: Hash) -> Result<Option<TokenRow>, StoreError>;
    /// An API token by the hash of its secret.
    async fn api_token(&self, hash: Hash) -> Result<Option<ApiTokenRow>, StoreError>;
    /// Newest first, at most `limit`, without envelopes and arguments. Steering orders are no jobs of a list.
    async fn jobs(&self, tenant: &TenantId, limit: u32) -> Result<Vec<JobHead>, StoreError>;
    /// One job.
    async fn job(&self, tenant: &TenantId, job: JobId) -> Result<Option<JobRow>, StoreError>;
    /// A job's devices in leaf order, those without a leaf last.
    async fn job_devices(&self, tenant: &TenantId, job: JobId) -> Result<Vec<JobDeviceRow>, StoreError>;
    /// One of them.
    async fn job_device(
        &self,
        tenant: &TenantId,
        job: JobId,
        device: NodeId,
    ) -> Result<Option<JobDeviceRow>, StoreError>;
    /// Devices per state of a job.
    async fn job_counts(&self, tenant: &TenantId, job: JobId) -> Result<BTreeMap<State, u64>, StoreError>;
    /// Orders that steer this job, oldest first.
    async fn steering(&self, tenant: &TenantId, job: JobId) -> Result<Vec<JobRow>, StoreError>;
    /// Jobs and steering orders that have devices which are not at their end.
    async fn open_jobs(&self) -> Result<Vec<JobRow>, StoreError>;
    /// Every stream position.
    async fn streams(&self) -> Result<Vec<(TenantId, StreamRow)>, StoreError>;
    /// Refused records, newest first, at most `limit`.
    async fn dead_letters(&self, tenant: &TenantId, limit: u32) -> Result<Vec<DeadLetterRow>, StoreError>;
    /// A device's inventory.
    async fn inventory(&self, tenant: &TenantId, device: NodeId) -> Result<Option<InventoryRow>, StoreError>;
    /// The last job that each of these devices of the tenant had.
    async fn last_deliveries(
        &self,
        tenant: &TenantId,
        devices: &[NodeId],
    ) -> Result<BTreeMap<NodeId, Delivery>, StoreError>;
    /// What lists show of these devices' inventories, without loading them.
    async fn inventory_summaries(
        &self,
        tenant: &TenantId,
        devices: &[NodeId],
    ) -> Result<BTreeMap<NodeId, InventorySummary>, StoreError>;
    /// Reports kept as history, oldest first.
    async fn inventory_history(&self, tenant: &TenantId, device: NodeId) -> Result<Vec<(Millis, Bytes)>, StoreError>;
    /// Devices whose inventory is asked for anew.
    async fn need_full(&self) -> Result<Vec<(TenantId, NodeId)>, StoreError>;
    /// Newest document of a kind; the text is the site for upstream lists, else empty.
    async fn documents(&self, tenant: &TenantId) -> Result<Vec<(Kind, String, Envelope)>, StoreError>;
    /// A value of the installation.
    async fn meta(&self, key: &str) -> Result<Option<Bytes>, StoreError>;
    /// Values of the installation whose keys begin so, in their order.
    async fn metas(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StoreError>;
    /// Newest audited acts first, at most `limit`.
    async fn audit(&self, tenant: &TenantId, limit: u32) -> Result<Vec<AuditRow>, StoreError>;
    /// Finishes what is queued and closes.
    async fn close(&self);
}
