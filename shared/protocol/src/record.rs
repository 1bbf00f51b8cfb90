//! What flows up: numbered, hash-chained records of a stream (DESIGN 5).

use crate::{
    hash::Hash,
    id::{Epoch, NodeId, OrderNumber, TraceId},
    order::Envelope,
    time::Millis,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A lane of a link. Each has its own stream numbers and its own credit window, so that a 16 MB inventory on a
/// slow line delays neither a heartbeat nor an urgent order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Lane {
    /// Documents, acknowledgements, presence.
    Control = 0,
    /// Urgent orders, cancel, withdraw.
    Urgent = 1,
    /// Orders and results.
    Work = 2,
    /// Inventory.
    Inventory = 3,
    /// Operation logs and telemetry.
    Logs = 4,
}

impl Lane {
    /// Every lane, most pressing first: the order in which a writer serves them.
    pub const ALL: [Lane; 5] = [Lane::Control, Lane::Urgent, Lane::Work, Lane::Inventory, Lane::Logs];

    /// The lane's number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The lane with this number.
    pub fn from_number(n: u8) -> Option<Lane> {
        Lane::ALL.get(n as usize).copied()
    }
}

impl Serialize for Lane {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u8(self.number())
    }
}

impl<'de> Deserialize<'de> for Lane {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let n = u8::deserialize(d)?;
        Lane::from_number(n).ok_or_else(|| serde::de::Error::custom("no such lane"))
    }
}

/// The source of a run of numbered records. A node that opens its store anew starts a new incarnation at number 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct StreamId {
    /// The node the records are from.
    pub node: NodeId,
    /// Its epoch when they were written.
    pub epoch: Epoch,
    /// Random at each opening of its store.
    pub incarnation: u64,
    /// The lane they travel on.
    pub lane: Lane,
}

impl StreamId {
    /// 29 bytes that sort by node, epoch, incarnation, lane: the key in every store.
    pub fn key(&self) -> [u8; 29] {
        let mut key = [0; 29];
        key[..16].copy_from_slice(self.node.bytes());
        key[16..20].copy_from_slice(&self.epoch.to_be_bytes());
        key[20..28].copy_from_slice(&self.incarnation.to_be_bytes());
        key[28] = self.lane.number();
        key
    }

    /// The inverse of [`StreamId::key`].
    pub fn from_key(key: &[u8]) -> Option<StreamId> {
        let key: &[u8; 29] = key.try_into().ok()?;
        Some(StreamId {
            node: NodeId(uuid::Uuid::from_slice(&key[..16]).ok()?),
            epoch: u32::from_be_bytes(key[16..20].try_into().ok()?),
            incarnation: u64::from_be_bytes(key[20..28].try_into().ok()?),
            lane: Lane::from_number(key[28])?,
        })
    }
}

/// What a record's body is. A class this build does not know is carried and spooled untouched.
pub mod class {
    /// [`super::JobResult`]: how an order ended on a device. Kept at its origin until settled.
    pub const RESULT: u16 = 1;
    /// [`crate::inventory::Report`].
    pub const INVENTORY: u16 = 2;
    /// [`super::Facts`]: what a relay knows of orders it holds.
    pub const FACTS: u16 = 3;
    /// [`super::Progress`]: an order has begun on a device.
    pub const PROGRESS: u16 = 4;
    /// [`super::Gap`]: records that were dropped, counted.
    pub const GAP: u16 = 5;
    /// [`super::Alert`]: something an administrator should know.
    pub const ALERT: u16 = 6;
    /// What the stream is up to here, signed by the node that wrote it ([`crate::receipt::seal_head`]). Its number is the
    /// next after the head it signs.
    pub const HEAD: u16 = 7;
    /// An operation log entry.
    pub const LOG: u16 = 8;
    /// [`crate::order::OrderMessage`]: an order as it came to a device, for a restored server that may not know it.
    pub const ORDER: u16 = 9;
    /// [`super::RolledBack`]: a device's disk was put back to an older state.
    pub const ROLLED_BACK: u16 = 10;
}

/// One record of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// From 1, without holes.
    pub number: u64,
    /// The predecessor's [`Record::hash`]; zero for number 1.
    pub prev: Hash,
    /// See [`class`].
    pub class: u16,
    /// The trace of the order it belongs to.
    pub trace: Option<TraceId>,
    /// Node time at its origin.
    pub at: Millis,
    /// MessagePack of the class's type.
    pub body: Bytes,
}

impl Record {
    /// The record's own digest within its stream: what the successor's `prev` must equal.
    pub fn hash(&self, stream: &StreamId) -> Hash {
        let trace = self.trace.map(|t| *t.bytes()).unwrap_or_default();
        Hash::of_parts(&[
            &stream.key(),
            &self.number.to_be_bytes(),
            &self.prev.0,
            &self.class.to_be_bytes(),
            &trace,
            &self.at.0.to_be_bytes(),
            &self.body,
        ])
    }

    /// What a record counts for beside its body.
    pub const OVERHEAD: usize = 96;

    /// Bytes this record counts for in windows and quotas.
    pub fn weight(&self) -> usize {
        self.body.len() + Record::OVERHEAD
    }
}

/// How an order ended on one device: asserted by the agent alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobResult {
    /// The order.
    pub order: OrderNumber,
    /// `succeeded`, `failed`, `unsupported`, `refused` or `outcome_unknown`.
    pub end: crate::job::End,
    /// Why, for every end but `succeeded`: e.g. `exit_code`, `time_out`, `bad_signature`.
    pub reason: Option<String>,
    /// The process's exit code, where one ran to its end.
    pub exit_code: Option<i32>,
    /// Standard output, capped.
    pub stdout: Bytes,
    /// Standard error, capped.
    pub stderr: Bytes,
    /// Whether either was cut at its cap.
    pub truncated: bool,
    /// When the process started, node time.
    pub started_at: Option<Millis>,
    /// When it ended, node time.
    pub ended_at: Millis,
    /// Set by recording backends of test builds only (platform rule P).
    #[serde(default)]
    pub simulated: bool,
}

/// A device knows that its disk was put back to an older state: a parent or the server remembers more of it than that disk
/// does (DESIGN 5). Said again on each link until the server has given it another epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// The epoch in which it was found. In a later one it is over.
    pub epoch: Epoch,
    /// Who knew more, for people.
    pub why: String,
}

/// What a relay asserts of an order: facts, never ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// In the relay's ledger, durably. Said by a relay below another: of the one below the server itself *taken* says it.
    Held,
    /// The device journalled it.
    HandedOver,
    /// The relay gave it up before the device had it.
    GivenBack,
    /// The relay could not verify it and did not pass it on (RLY-13).
    RefusedBadSignature,
}

/// Facts about several devices of several orders in one record: aggregated, never merged (RLY-5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// (order, fact, the devices it holds for).
    pub facts: Vec<(OrderNumber, Fact, Vec<NodeId>)>,
}

/// An order has begun on the device and is not yet at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The order.
    pub order: OrderNumber,
    /// When it began, node time.
    pub started_at: Millis,
}

/// Records of a stream that were dropped on purpose, counted (LOG-4, RLY-10).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// First and last number dropped.
    pub numbers: (u64, u64),
    /// How many bytes they held.
    pub bytes: u64,
    /// Why: `quota`, `superseded`, or `stored` for what the parent had taken before it was freed.
    pub reason: String,
    /// The hash of the last one dropped: what its successor names (decision 14).
    pub hash: Hash,
}

/// Something an administrator should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Stable word, e.g. `order_refused`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// A run of one stream's records, as they travel and as a relay spools them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Whose records.
    pub stream: StreamId,
    /// In rising order of number.
    pub records: Vec<Record>,
    /// The sender knows these to be durable at the server, up to this number, and may not have them any more. A receiver
    /// that lacks them goes on after them: it was rolled back, or never saw them.
    #[serde(default)]
    pub settled: u64,
    /// What lets the sender speak for the stream's node: the node's receipts and those of relays between, with the first
    /// run of the stream on a link. Empty from the node itself.
    #[serde(default)]
    pub receipts: Vec<Envelope>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_key_sorts_and_comes_back() {
        let stream = StreamId { node: NodeId(uuid::Uuid::from_u128(7)), epoch: 3, incarnation: 99, lane: Lane::Work };
        assert_eq!(StreamId::from_key(&stream.key()), Some(stream));
        assert!(StreamId { epoch: 4, ..stream }.key() > stream.key());
        assert_eq!(StreamId::from_key(&[0; 28]), None);
    }

    #[test]
    fn the_hash_covers_every_field() {
        let stream = StreamId { node: NodeId(uuid::Uuid::from_u128(7)), epoch: 1, incarnation: 1, lane: Lane::Work };
        let base = Record {
            number: 1,
            prev: Hash::ZERO,
            class: class::RESULT,
            trace: None,
            at: Millis(5),
            body: Bytes::from_static(b"x"),
        };
        let h = base.hash(&stream);
        let altered = [
            Record { number: 2, ..base.clone() },
            Record { prev: Hash::of(b"p"), ..base.clone() },
            Record { class: 9, ..base.clone() },
            Record { trace: Some(TraceId(uuid::Uuid::from_u128(1))), ..base.clone() },
            Record { at: Millis(6), ..base.clone() },
            Record { body: Bytes::from_static(b"y"), ..base.clone() },
        ];
        assert!(altered.iter().all(|r| r.hash(&stream) != h));
        assert_ne!(base.hash(&StreamId { epoch: 2, ..stream }), h);
    }
}
