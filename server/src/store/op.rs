//! What is written: each step names all that it changes.

use super::{ApiTokenRow, AuditRow, DeadLetterRow, JobDeviceRow, JobRow, NodeRow, ResultRow, StreamRow, TokenRow};
use branchline_protocol::{
    capability::Declared,
    document::Kind,
    hash::Hash,
    id::{Attachment, Epoch, JobId, NodeId, OrderNumber, TenantId},
    inventory::Items,
    job::State,
    order::Envelope,
    record::StreamId,
    time::Millis,
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// One write.
#[derive(Clone, Debug)]
pub enum Op {
    /// A tenant; the batch fails with [`StoreError::Conflict`] when it exists.
    Tenant(TenantId),
    /// A site of an existing tenant; a conflict when it exists.
    Site(TenantId, String),
    /// A node, new or changed; a conflict when another node of its tenant and role that is not revoked bears its name.
    Node(NodeRow),
    /// A node's newest attachment. An older (epoch, attachment) than the node's own changes nothing.
    Attached {
        /// Whose.
        tenant: TenantId,
        /// The node.
        node: NodeId,
        /// Its epoch.
        epoch: Epoch,
        /// Its attachment.
        attachment: Attachment,
        /// Relays above it.
        route: Vec<NodeId>,
        /// Last contact.
        last_contact: Millis,
        /// What it declares now.
        capabilities: Declared,
    },
    /// A new enrolment token.
    Token(TokenRow),
    /// Uses one of a token's enrolments; the batch fails with [`StoreError::Conflict`] when none is left.
    UseToken(Hash),
    /// An API token, new or renamed.
    ApiToken(ApiTokenRow),
    /// A new job with all its devices, as they stand at issue.
    Job(Box<JobRow>, Vec<JobDeviceRow>),
    /// A job of the server's own that its store does not know, with devices of it: it came back from below (OPS-7). What
    /// is there already stays as it is; where another job has its number nothing is kept.
    Recalled(Box<JobRow>, Vec<JobDeviceRow>),
    /// One device of a job changed. Written as told: whether an end may change is the caller's rule. A device that is
    /// not of the job changes nothing, and its result is not kept.
    JobDevice {
        /// Whose.
        tenant: TenantId,
        /// The job.
        job: JobId,
        /// The device.
        device: NodeId,
        /// Where it stands now.
        state: State,
        /// Why.
        reason: Option<String>,
        /// When.
        at: Millis,
        /// With the agent's report, if this is one; without one an earlier report stays.
        result: Option<ResultRow>,
    },
    /// Who may have a device's order. A device that is not of the job changes nothing.
    Holders {
        /// Whose.
        tenant: TenantId,
        /// The job.
        job: JobId,
        /// The device.
        device: NodeId,
        /// All of them.
        holders: Vec<NodeId>,
    },
    /// An agent's result for an order that is over at the server. It replaces an end that was concluded from silence,
    /// `expired` or `outcome_unknown` without a report, once, and is marked late; anything else it leaves as it is.
    LateResult {
        /// Whose.
        tenant: TenantId,
        /// The order.
        order: OrderNumber,
        /// The device.
        device: NodeId,
        /// How it ended.
        state: State,
        /// Why.
        reason: Option<String>,
        /// When the result came.
        at: Millis,
        /// The report.
        result: ResultRow,
    },
    /// How far a stream is held.
    Stream(TenantId, StreamRow),
    /// A stream is forgotten.
    StreamGone(TenantId, StreamId),
    /// A refused record. The newest [`DEAD_LETTERS_MAX`] of a tenant are kept.
    DeadLetter(DeadLetterRow),
    /// A device's inventory: replaced sections only; sections named in `gone` are removed.
    Inventory {
        /// Whose.
        tenant: TenantId,
        /// The device.
        device: NodeId,
        /// New content of changed sections.
        put: BTreeMap<String, Items>,
        /// Sections that are gone.
        gone: Vec<String>,
        /// Digest of the whole.
        digest: Hash,
        /// See [`InventoryRow`].
        collected_at: Millis,
        /// See [`InventoryRow`].
        settings_version: u64,
        /// See [`InventoryRow`].
        need_full: bool,
        /// See [`InventoryRow`].
        clock_skew: bool,
    },
    /// A report kept as history: what could not be applied, or was older (INV-13). The newest
    /// [`INVENTORY_HISTORY_MAX`] of a device are kept.
    InventoryHistory {
        /// Whose.
        tenant: TenantId,
        /// The device.
        device: NodeId,
        /// When it was collected.
        collected_at: Millis,
        /// MessagePack of the report.
        report: Bytes,
    },
    /// Asks for a device's inventory anew (INV-6).
    NeedFull(TenantId, NodeId),
    /// A document's newest signed form: tenant, kind, site (for upstream lists, else empty), (term, version), envelope.
    /// An older version than the one held changes nothing.
    Document(TenantId, Kind, String, (u32, u64), Envelope),
    /// A value of the installation: counters, addresses.
    Meta(String, Bytes),
    /// An audited act.
    Audit(AuditRow),
}
