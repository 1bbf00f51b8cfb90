//! Messages: what a lane carries, whole. One kind byte, then MessagePack.
//!
//! | kind | message | direction | lane |
//! |---|---|---|---|
//! | 1 | Records | up | the records' own |
//! | 2 | Acks | down | control |
//! | 3 | Orders | down | work or urgent |
//! | 4 | Taken | up | control: durable with the child |
//! | 5 | Presence | up | control; soft state |
//! | 6 | Document | down | control |
//! | 7 | Sections | down | control: inventory sections the server lacks (INV-6) |
//! | 8 | Withdraw | down | urgent: signed by the server: these orders are over on these devices, let them go |
//! | 9 | Ancestors | down | control: the chain above changed |
//! | 12 | Versions | up | control: documents the sender now has on disk (ADM-14) |
//! | 13 | Withdrawn | up | control: withdrawals the sender has on disk |
//! | 16 | Left | up | control; soft: orders that stay with the parent for now, and why |
//! | 17 | Newer | down | control: a newer attachment of a node than the receiver's is known |
//! | 18 | Handed | down | control: orders that a device is said to have, so that it sees whether its disk still does |
//! | 20 | Recall | down | control: the server was restored, tell what it may not know |
//! | 21 | Recalled | up | control: signed documents and orders in answer to that |
//! | 22 | Again | down | control: streams that the sender stored and has no more: from what is settled on, once more |
//! | 23 | Disk | up | control: number of the sender's disk, and how much is written on it |
//!
//! Other kinds are counted and passed over.

use super::presence::Presence;
use crate::{
    capability::Declared,
    document::Kind,
    id::{AttachmentKey, Epoch, NodeId, OrderNumber, Role},
    order::{Envelope, OrderMessage},
    record::{Run, StreamId},
    time::Millis,
};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The largest message: one 16 MiB inventory and its wrapping (INV-13). One byte more closes the link.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1_048_576 + 65_536;

/// Acknowledgement of one stream (DESIGN 5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Whose records.
    pub stream: StreamId,
    /// Durable at this hop up to this number: stop sending.
    pub stored: u64,
    /// Durable at the server up to this number: may be deleted.
    pub settled: u64,
    /// Numbers that were refused, each with its code; they count as stored and settled.
    #[serde(default)]
    pub refused: Vec<(u64, String)>,
}

/// How a device is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// It holds a slot.
    Persistent,
    /// No slot, answers a wake packet.
    Wakeable,
    /// It polls.
    Polling,
    /// It said goodbye for good: the machine shut down.
    GoneShutdown,
    /// Its link was lost, or it missed its polls.
    GoneTimeout,
    /// Its parent has lost sight of it without its doing, by a restart say, and gives it time to come back.
    Awaited,
}

/// One node below a relay, as that relay knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceEntry {
    /// The node.
    pub node: NodeId,
    /// Agent or relay.
    pub role: Role,
    /// The newest attachment wins (DESIGN 5).
    pub key: AttachmentKey,
    /// Relays between the sender and the node, nearest the sender first; empty when it hangs on the sender itself.
    pub via: Vec<NodeId>,
    /// How it is reached.
    pub reach: Reach,
    /// Its last contact, node time of its parent.
    pub last_contact: Millis,
    /// When it is due again, if it polls.
    pub next_contact: Option<Millis>,
    /// What it declared (rule P).
    pub capabilities: Declared,
    /// A relay's figures for `tree`; JSON of its gauge and queues.
    pub figures: Option<String>,
    /// (term, version) of the settings it has on disk; (0, 0) when it has said nothing (ADM-14).
    pub settings: (u32, u64),
    /// Milliseconds between its polls while it holds no slot, as its parent leases them; `None` when its parent has not said.
    pub poll_interval_ms: Option<u64>,
    /// The slot that it holds or waits for.
    pub slot: Option<SlotStanding>,
}

/// Since when a device holds a slot of its parent, or waits for one (CON-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStanding {
    /// Node time of its parent.
    pub since: Millis,
    /// Its number in line as it was last told; 0: it holds the slot.
    pub waiter: u32,
}

/// What a restored server asks of its children, and they of theirs (DESIGN 5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    /// Documents of these kinds are told if they are newer than this (term, version).
    pub documents: Vec<(Kind, (u32, u64))>,
    /// Open orders are told that are newer than this one, or of an older term.
    pub newest: OrderNumber,
}

impl Recall {
    /// Whether an open order is to be told.
    pub fn wants(&self, order: OrderNumber) -> bool {
        order > self.newest || order.term < self.newest.term
    }
}

/// A part of the answer. Everything in it bears the server's or the root's own signature, so that nobody's word is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recalled {
    /// Documents as they are held.
    pub documents: Vec<(Kind, Envelope)>,
    /// Open orders with the proofs of those they are for below the sender.
    pub orders: Vec<OrderMessage>,
    /// Whether the sender has told what it knows. What it learns later it tells all the same.
    pub last: bool,
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Records of several streams: results, inventory, facts, logs.
    Records(Vec<Run>),
    /// What is stored and settled.
    Acks(Vec<Ack>),
    /// Orders, each with the proof cut for this child.
    Orders(Vec<OrderMessage>),
    /// Orders the child has on disk: a relay for some devices below it, an agent for itself.
    Taken(Vec<(OrderNumber, Vec<NodeId>)>),
    /// Who is below. `snapshot`: whoever is not listed is not there.
    Presence {
        /// Whether it is the whole.
        snapshot: bool,
        /// The entries.
        entries: Vec<PresenceEntry>,
    },
    /// A signed document.
    Document(Kind, Envelope),
    /// The server lacks these sections of a device's inventory; empty means all.
    Sections(NodeId, Vec<String>),
    /// Envelopes of [`crate::order::Withdrawal`].
    Withdraw(Vec<Envelope>),
    /// The sender's ancestors and itself, nearest the server first.
    Ancestors(Vec<(NodeId, String)>),
    /// (term, version) of each document the sender has on disk, in [`Kind::ALL`] order as in its greeting.
    Versions(Vec<(u32, u64)>),
    /// What is withdrawn, durably with the child.
    Withdrawn(Vec<(OrderNumber, Vec<NodeId>)>),
    /// Orders the child did not take for these devices and why, e.g. `no_space`: they stay with the parent, which offers
    /// them again later.
    Left(Vec<(OrderNumber, Vec<NodeId>, String)>),
    /// A node's attachment that the sender knows from elsewhere: a link of it below the receiver that is not newer is stale.
    Newer(NodeId, AttachmentKey),
    /// Orders of which a device, or a relay above it, has said in this epoch that it has them, and that are not over: told on
    /// each link.
    Handed(NodeId, Epoch, Vec<OrderNumber>),
    /// The server was restored to an older state.
    Recall(Recall),
    /// What a node below knows that it may not.
    Recalled(Recalled),
    /// Streams of which the sender does not have what it acknowledged as stored: those above did not take them from it.
    Again(Vec<StreamId>),
    /// A relay's disk as its greetings name it from here on: the number, which is another one once it turned out that the
    /// disk was put back to an older state, and how many batches are on it.
    Disk(u64, u64),
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MessageFault {
    /// Nothing in it.
    #[error("an empty message")]
    Empty,
    /// A kind this build does not know: passed over, counted, not an error of the link.
    #[error("unknown message kind {0}")]
    Unknown(u8),
    /// Not what its kind says.
    #[error("malformed message of kind {kind}: {why}")]
    Malformed {
        /// The kind byte.
        kind: u8,
        /// The decoder's words.
        why: String,
    },
}

impl Message {
    /// The message's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(256);
        match self {
            Message::Records(v) => put(1, v, &mut out),
            Message::Acks(v) => put(2, v, &mut out),
            Message::Orders(v) => put(3, v, &mut out),
            Message::Taken(v) => put(4, v, &mut out),
            Message::Presence { snapshot, entries } => put(5, &Presence::of(*snapshot, entries), &mut out),
            Message::Document(kind, envelope) => put(6, &(kind, envelope), &mut out),
            Message::Sections(node, sections) => put(7, &(node, sections), &mut out),
            Message::Withdraw(v) => put(8, v, &mut out),
            Message::Ancestors(v) => put(9, v, &mut out),
            Message::Versions(v) => put(12, v, &mut out),
            Message::Withdrawn(v) => put(13, v, &mut out),
            Message::Left(v) => put(16, v, &mut out),
            Message::Newer(node, key) => put(17, &(node, key), &mut out),
            Message::Handed(node, epoch, orders) => put(18, &(node, epoch, orders), &mut out),
            Message::Recall(v) => put(20, v, &mut out),
            Message::Recalled(v) => put(21, v, &mut out),
            Message::Again(v) => put(22, v, &mut out),
            Message::Disk(number, age) => put(23, &(number, age), &mut out),
        }
        out.freeze()
    }

    /// The message in these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Message, MessageFault> {
        let (&kind, body) = bytes.split_first().ok_or(MessageFault::Empty)?;
        Ok(match kind {
            1 => Message::Records(get(kind, body)?),
            2 => Message::Acks(get(kind, body)?),
            3 => Message::Orders(get(kind, body)?),
            4 => Message::Taken(get(kind, body)?),
            5 => {
                let told: Presence = get(kind, body)?;
                let (snapshot, entries) = told.entries().map_err(|why| MessageFault::Malformed { kind, why })?;
                Message::Presence { snapshot, entries }
            }
            6 => {
                let (kind, envelope) = get(kind, body)?;
                Message::Document(kind, envelope)
            }
            7 => {
                let (node, sections) = get(kind, body)?;
                Message::Sections(node, sections)
            }
            8 => Message::Withdraw(get(kind, body)?),
            9 => Message::Ancestors(get(kind, body)?),
            12 => Message::Versions(get(kind, body)?),
            13 => Message::Withdrawn(get(kind, body)?),
            16 => Message::Left(get(kind, body)?),
            17 => {
                let (node, key) = get(kind, body)?;
                Message::Newer(node, key)
            }
            18 => {
                let (node, epoch, orders) = get(kind, body)?;
                Message::Handed(node, epoch, orders)
            }
            20 => Message::Recall(get(kind, body)?),
            21 => Message::Recalled(get(kind, body)?),
            22 => Message::Again(get(kind, body)?),
            23 => {
                let (number, age) = get(kind, body)?;
                Message::Disk(number, age)
            }
            other => return Err(MessageFault::Unknown(other)),
        })
    }
}

fn put<T: Serialize>(kind: u8, value: &T, out: &mut BytesMut) {
    out.put_u8(kind);
    rmp_serde::encode::write(&mut out.writer(), value).expect("messages are plain data and memory is the writer");
}

fn get<T: DeserializeOwned>(kind: u8, body: &[u8]) -> Result<T, MessageFault> {
    rmp_serde::from_slice(body).map_err(|e| MessageFault::Malformed { kind, why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hash::Hash,
        id::TraceId,
        record::{Lane, Record, class},
    };
    use uuid::Uuid;

    #[test]
    fn records_and_acks_come_back_as_they_went() {
        let stream = StreamId { node: NodeId(Uuid::from_u128(1)), epoch: 1, incarnation: 2, lane: Lane::Work };
        let record = Record {
            number: 1,
            prev: Hash::ZERO,
            class: class::RESULT,
            trace: Some(TraceId(Uuid::from_u128(4))),
            at: Millis(9),
            body: Bytes::from_static(b"\x00\xffbody"),
        };
        let acks = vec![Ack { stream, stored: 3, settled: 2, refused: vec![(2, "foreign".into())] }];
        for message in [
            Message::Records(vec![Run { stream, records: vec![record], settled: 0, receipts: vec![] }]),
            Message::Acks(acks),
            Message::Taken(vec![(OrderNumber { term: 1, number: 2 }, vec![NodeId(Uuid::from_u128(1))])]),
            Message::Sections(NodeId(Uuid::from_u128(1)), vec!["os".into()]),
            Message::Left(vec![(
                OrderNumber { term: 1, number: 2 },
                vec![NodeId(Uuid::from_u128(1))],
                "no_space".into(),
            )]),
            Message::Presence { snapshot: true, entries: vec![] },
            Message::Versions(vec![(1, 2), (0, 0)]),
            Message::Handed(NodeId(Uuid::from_u128(1)), 2, vec![OrderNumber { term: 1, number: 2 }]),
            Message::Newer(NodeId(Uuid::from_u128(1)), AttachmentKey { epoch: 2, attachment: 7 }),
            Message::Recall(Recall {
                documents: vec![(Kind::Revocations, (1, 4))],
                newest: OrderNumber { term: 1, number: 9 },
            }),
            Message::Recalled(Recalled { last: true, ..Recalled::default() }),
            Message::Again(vec![stream]),
            Message::Disk(u64::MAX, 7),
            Message::Withdraw(vec![]),
            Message::Withdrawn(vec![(OrderNumber { term: 1, number: 2 }, vec![NodeId(Uuid::from_u128(1))])]),
        ] {
            assert_eq!(Message::decode(&message.encode()).unwrap(), message);
        }
    }

    #[test]
    fn ops_7_orders_after_the_newest_known_one_and_those_of_older_terms_are_told() {
        let order = |term, number| OrderNumber { term, number };
        let recall = Recall { documents: vec![], newest: order(2, 10) };
        assert!(!recall.wants(order(2, 10)));
        assert!(!recall.wants(order(2, 1)));
        assert!(recall.wants(order(2, 11)));
        assert!(recall.wants(order(3, 1)));
        assert!(recall.wants(order(1, 5)), "an older term's may never have been heard of");
    }

    #[test]
    fn strange_bytes_are_faults_never_panics() {
        assert_eq!(Message::decode(&[]), Err(MessageFault::Empty));
        assert_eq!(Message::decode(&[77, 1]), Err(MessageFault::Unknown(77)));
        for kind in (1..=9u8).chain([12, 13, 16, 17, 18, 20, 21, 22, 23]) {
            assert!(matches!(Message::decode(&[kind, 0xc1]), Err(MessageFault::Malformed { .. })));
        }
    }
}
