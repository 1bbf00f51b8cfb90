//! What an order says, and the message it travels in.

use super::{Envelope, MultiProof};
use crate::{
    hash::Hash,
    id::{JobId, NodeId, OrderNumber, TenantId, TraceId},
    job::Class,
    time::Millis,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The envelope's type of an order.
pub const ORDER_PAYLOAD_TYPE: &str = "application/vnd.branchline.order.v1+msgpack";

/// The largest envelope in bytes; one more is refused (DESIGN 3).
pub const ENVELOPE_BYTES_MAX: usize = 65_536;

/// The signed content of an order. Encoded with field names, so that a later build may add fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// Whose devices.
    pub tenant: TenantId,
    /// One counter per tenant, with the server's term.
    pub number: OrderNumber,
    /// The job as administrators see it.
    pub job: JobId,
    /// From order to result.
    pub trace: TraceId,
    /// A name of [`crate::job::VERBS`].
    pub verb: String,
    /// blake3 of the argument bytes, which travel beside the envelope.
    pub args_hash: Hash,
    /// Its class.
    pub class: Class,
    /// When it was issued, node time.
    pub issued_at: Millis,
    /// Not to be started before, node time.
    pub not_before: Millis,
    /// The last instant at which the agent may journal it, node time.
    pub fetch_by: Millis,
    /// Milliseconds it may run.
    pub run_ms_max: u64,
    /// The newest policy the server had when it issued it.
    pub policy_version: u64,
    /// Root of the Merkle tree over its leaves.
    pub root: Hash,
    /// How many leaves the tree has: without it a shorter tree could pass for the whole.
    pub leaf_count: u32,
    /// The whole list of targets of a destructive verb (at most 25); empty for others.
    #[serde(default)]
    pub targets: Vec<NodeId>,
}

impl Payload {
    /// fetch_by + longest run + 24 h: when silence becomes an end (DESIGN 5).
    pub fn report_by(&self) -> Millis {
        self.fetch_by.plus(self.run_ms_max as i64).plus(86_400_000)
    }
}

/// An order as it crosses a link: once per child, whatever the number of devices below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderMessage {
    /// The signed payload.
    pub envelope: Envelope,
    /// The arguments, bound by the payload's `args_hash`.
    pub args: Bytes,
    /// Which leaves this child is given.
    pub proof: MultiProof,
}
