//! Frames: the unit the writer interleaves. One kind byte, then MessagePack.
//!
//! | kind | frame | direction | when |
//! |---|---|---|---|
//! | 1 | Greeting | up | first |
//! | 2 | Welcome | down | answer to it |
//! | 3 | Refused | both | instead of an answer, or for one message |
//! | 4 | Data | both | a fragment of a lane's message |
//! | 5 | Credit | both | the receiver's store has committed |
//! | 6 | Heartbeat | up | every 30 s |
//! | 7 | Alive | down | answer, with the newest time statement |
//! | 8 | Goodbye | both | orderly end |
//! | 9 | Lease | down | a link is turned to polling, or its poll ends |
//! | 10 | Spread | down | the spread of reconnects has changed since the welcome |
//! | 11 | Resume | down | before the welcome: what the parent holds of messages the last link cut off |
//!
//! Other kinds are counted and passed over.

use crate::{
    capability::Declared,
    document::POLL_S,
    hash::Hash,
    id::{Attachment, Epoch, NodeId, Role, TenantId},
    order::Envelope,
    record::Lane,
    refusal::Refusal,
    time::Millis,
};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The largest frame, kind byte included; one more closes the link.
pub const FRAME_BYTES_MAX: usize = 65_536;

/// What a child wants of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contact {
    /// To stay.
    Persistent,
    /// To exchange what is queued and leave.
    Poll,
}

/// The child's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Newest protocol it speaks.
    pub protocol: u16,
    /// Its build, for people (OPS-2).
    pub build: String,
    /// Its tenant; must be its certificate's.
    pub tenant: TenantId,
    /// Its id; must be its certificate's.
    pub node: NodeId,
    /// Its role; must be its certificate's.
    pub role: Role,
    /// Its epoch; must be its certificate's, or the later one that the newest revocation list gives it.
    pub epoch: Epoch,
    /// +1 durably per link.
    pub attachment: Attachment,
    /// Of its open store: a parent that has not met it must not rely on what the opening before had said.
    pub incarnation: u64,
    /// A relay's disk, the same as long as it is not replaced; an agent's is 0.
    #[serde(default)]
    pub disk: u64,
    /// Batches that a relay has written to that disk, this greeting's included; a parent that was told of as many, or more,
    /// has met a newer state of it. An agent's is 0.
    #[serde(default)]
    pub age: u64,
    /// What it wants.
    pub contact: Contact,
    /// Tiers of relays below it, itself not counted (TOP-20).
    pub depth_below: u8,
    /// Names the parent whose *stored* acknowledgements it remembers, and that parent's incarnation.
    #[serde(default)]
    pub stored_at: Option<(NodeId, u64)>,
    /// Newest (term, version) it has of each document, in [`crate::document::Kind::ALL`] order.
    #[serde(default)]
    pub documents: Vec<(u32, u64)>,
    /// Newest term it has seen.
    #[serde(default)]
    pub term: u32,
    /// UDP port at which it can be woken (ADM-15); 0 is none.
    #[serde(default)]
    pub wake_port: u16,
    /// Signed by the device: id, epoch, attachment, parent (DESIGN 6).
    #[serde(default)]
    pub receipt: Option<Envelope>,
    /// Its platform and capabilities' digest, so that the server can ask when they changed.
    #[serde(default)]
    pub capabilities: Declared,
    /// Seconds to its next poll, stated by a polling device.
    #[serde(default)]
    pub next_poll_s: Option<u64>,
}

/// The parent's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol of this link.
    pub protocol: u16,
    /// The parent's build.
    pub build: String,
    /// The parent.
    pub parent: NodeId,
    /// The parent's store incarnation that outlives restarts: another one means a fresh disk.
    pub store: u64,
    /// The parent's ancestors, nearest the server first, the parent last (TOP-20).
    pub ancestors: Vec<(NodeId, String)>,
    /// Whether the link holds a slot. `None`: persistent. Else it is a poll and this is its lease.
    pub lease: Option<Lease>,
    /// Milliseconds over which children of this parent spread their first reconnect.
    pub reconnect_spread_ms: u64,
    /// UDP port at which it hears that a child goes off (ADM-18); 0 is none.
    #[serde(default)]
    pub notice_port: u16,
}

/// When a device without a slot polls next (ADM-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Milliseconds between polls.
    pub interval_ms: u64,
    /// Milliseconds after the interval's start that are this device's own.
    pub phase_ms: u64,
    /// Its place among those who wait for a slot; 0 when it does not wait.
    pub waiter: u32,
}

impl Lease {
    /// The longest interval that counts, in milliseconds: 7 days (ADM-14). A parent keeps nobody away for ever.
    pub const INTERVAL_MS_MAX: u64 = *POLL_S.end() * 1_000;
    /// A poll is before or after its instant by at most this part of the interval, so that two polls are a tenth further
    /// apart than the interval at most.
    const JITTER_PART: u64 = 20;

    /// The interval as it counts, at least a millisecond.
    pub fn interval_ms(&self) -> u64 {
        self.interval_ms.clamp(1, Self::INTERVAL_MS_MAX)
    }

    /// How many milliseconds a poll may come before or after its instant.
    pub fn jitter_ms(&self) -> u64 {
        self.interval_ms() / Self::JITTER_PART
    }

    /// Milliseconds from a contact at this node time to the next poll's instant: of the interval's own instants the first
    /// that this contact may not have been for.
    pub fn next_ms(&self, contact: Millis) -> u64 {
        let interval = self.interval_ms();
        let own = contact.0.saturating_sub_unsigned(self.phase_ms);
        match interval - own.rem_euclid(interval as i64) as u64 {
            early if early <= self.jitter_ms() => early + interval,
            wait => wait,
        }
    }
}

/// The beginning of a message that a lost link cut off: whoever has a message of this length with this beginning sends
/// it from here on (DESIGN 3, resumable fragments).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Its lane.
    pub lane: Lane,
    /// Its whole length in bytes.
    pub total: u32,
    /// Bytes that are held of it.
    pub held: u32,
    /// Of these bytes.
    pub hash: Hash,
}

/// Why an end says goodbye.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goodbye {
    /// The poll is done.
    Done,
    /// The poll's bounds are reached: begin nothing new, say [`Goodbye::Done`] when what is under way is acknowledged,
    /// and come again at once.
    Continue,
    /// The node stops in good order.
    Stopping,
    /// A newer attachment of the same node took over (ADM-5).
    Replaced,
    /// The machine shuts down.
    ShuttingDown,
    /// The child goes on by a better way, which is open already: it greets there next (TOP-4).
    Moving,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First from the child.
    Greeting(Box<Greeting>),
    /// First from the parent.
    Welcome(Box<Welcome>),
    /// A "no".
    Refused(Refusal),
    /// A fragment: lane, message number on this link, offset, total length, bytes.
    Data {
        /// Which lane.
        lane: Lane,
        /// Counts the lane's messages of this link from 1.
        message: u64,
        /// Where these bytes begin.
        offset: u32,
        /// The message's whole length.
        total: u32,
        /// The bytes.
        bytes: Bytes,
    },
    /// The sender may send so many bytes more on the lane.
    Credit {
        /// Which lane.
        lane: Lane,
        /// How many bytes more.
        bytes: u32,
    },
    /// The child lives.
    Heartbeat,
    /// The parent lives; the newest time statement it has.
    Alive(Option<Box<Envelope>>),
    /// Orderly end.
    Goodbye(Goodbye),
    /// The link loses its slot: poll from here on.
    Lease(Lease),
    /// From here on children spread their first reconnect over so many milliseconds.
    Spread(u64),
    /// Messages that need not be sent from their beginning.
    Resume(Vec<Resume>),
}

/// Why bytes are no frame. Closes the link and counts as a protocol error.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameFault {
    /// Over [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes, {FRAME_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// Nothing in it.
    #[error("an empty frame")]
    Empty,
    /// Not what its kind says.
    #[error("malformed frame of kind {kind}: {why}")]
    Malformed {
        /// The kind byte.
        kind: u8,
        /// The decoder's words.
        why: String,
    },
}

/// Bytes of a `Data` frame that are not payload: kind, lane, message, offset, total.
const DATA_HEAD: usize = 1 + 1 + 8 + 4 + 4;

impl Frame {
    /// The most payload bytes one `Data` frame may have.
    pub const DATA_MAX: usize = FRAME_BYTES_MAX - DATA_HEAD;

    /// The frame's bytes, without the length that precedes it on the wire.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Frame::Greeting(g) => named(1, g, out),
            Frame::Welcome(w) => named(2, w, out),
            Frame::Refused(r) => named(3, r, out),
            Frame::Data { lane, message, offset, total, bytes } => {
                out.reserve(DATA_HEAD + bytes.len());
                out.put_u8(4);
                out.put_u8(lane.number());
                out.put_u64(*message);
                out.put_u32(*offset);
                out.put_u32(*total);
                out.put_slice(bytes);
            }
            Frame::Credit { lane, bytes } => {
                out.put_u8(5);
                out.put_u8(lane.number());
                out.put_u32(*bytes);
            }
            Frame::Heartbeat => out.put_u8(6),
            Frame::Alive(statement) => named(7, statement, out),
            Frame::Goodbye(g) => named(8, g, out),
            Frame::Lease(l) => named(9, l, out),
            Frame::Spread(ms) => named(10, ms, out),
            Frame::Resume(list) => named(11, list, out),
        }
    }

    /// The frame in these bytes; `Ok(None)` for a kind this build does not know.
    pub fn decode(bytes: Bytes) -> Result<Option<Frame>, FrameFault> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(FrameFault::TooLarge(bytes.len()));
        }
        let (&kind, body) = bytes.split_first().ok_or(FrameFault::Empty)?;
        let short = || FrameFault::Malformed { kind, why: "too short".into() };
        let lane_at = |at: usize| {
            let lane = *body.get(at).ok_or_else(short)?;
            Lane::from_number(lane).ok_or(FrameFault::Malformed { kind, why: "no such lane".into() })
        };
        let u32_at = |at: usize| {
            body.get(at..at + 4).map(|b| u32::from_be_bytes(b.try_into().expect("four bytes"))).ok_or_else(short)
        };
        Ok(Some(match kind {
            1 => Frame::Greeting(unnamed(kind, body)?),
            2 => Frame::Welcome(unnamed(kind, body)?),
            3 => Frame::Refused(unnamed(kind, body)?),
            4 => {
                let lane = lane_at(0)?;
                let message = body.get(1..9).map(|b| u64::from_be_bytes(b.try_into().expect("eight bytes")));
                let (message, offset, total) = (message.ok_or_else(short)?, u32_at(9)?, u32_at(13)?);
                Frame::Data { lane, message, offset, total, bytes: bytes.slice(DATA_HEAD..) }
            }
            5 => Frame::Credit { lane: lane_at(0)?, bytes: u32_at(1)? },
            6 => Frame::Heartbeat,
            7 => Frame::Alive(unnamed(kind, body)?),
            8 => Frame::Goodbye(unnamed(kind, body)?),
            9 => Frame::Lease(unnamed(kind, body)?),
            10 => Frame::Spread(unnamed(kind, body)?),
            11 => Frame::Resume(unnamed(kind, body)?),
            _ => return Ok(None),
        }))
    }
}

fn named<T: Serialize>(kind: u8, value: &T, out: &mut BytesMut) {
    out.put_u8(kind);
    rmp_serde::encode::write_named(&mut out.writer(), value).expect("frames are plain data and memory is the writer");
}

fn unnamed<T: DeserializeOwned>(kind: u8, body: &[u8]) -> Result<T, FrameFault> {
    rmp_serde::from_slice(body).map_err(|e| FrameFault::Malformed { kind, why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(frame: Frame) {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        assert_eq!(Frame::decode(out.freeze()).unwrap(), Some(frame));
    }

    #[test]
    fn every_kind_comes_back_as_it_went() {
        there_and_back(Frame::Refused(Refusal::new(409, "loop", "a relay below itself").field("node")));
        there_and_back(Frame::Data {
            lane: Lane::Work,
            message: 9,
            offset: 7,
            total: 12,
            bytes: Bytes::from_static(b"hello"),
        });
        there_and_back(Frame::Data { lane: Lane::Logs, message: 1, offset: 0, total: 0, bytes: Bytes::new() });
        there_and_back(Frame::Credit { lane: Lane::Inventory, bytes: 77 });
        there_and_back(Frame::Heartbeat);
        there_and_back(Frame::Alive(None));
        there_and_back(Frame::Goodbye(Goodbye::Continue));
        there_and_back(Frame::Lease(Lease { interval_ms: 1, phase_ms: 2, waiter: 3 }));
        there_and_back(Frame::Spread(45_000));
        let hash = Hash::of(b"its beginning");
        there_and_back(Frame::Resume(vec![Resume { lane: Lane::Inventory, total: 9_000_000, held: 13, hash }]));
    }

    #[test]
    fn a_frame_at_the_bound_passes_and_one_byte_more_is_refused() {
        let data = |n: usize| {
            let mut out = BytesMut::new();
            let bytes = Bytes::from(vec![0; n]);
            Frame::Data { lane: Lane::Work, message: 1, offset: 0, total: n as u32, bytes }.encode(&mut out);
            Frame::decode(out.freeze())
        };
        assert!(data(Frame::DATA_MAX).is_ok());
        assert_eq!(data(Frame::DATA_MAX + 1), Err(FrameFault::TooLarge(FRAME_BYTES_MAX + 1)));
    }

    #[test]
    fn malformed_bytes_are_faults_and_unknown_kinds_are_passed_over() {
        assert_eq!(Frame::decode(Bytes::new()), Err(FrameFault::Empty));
        assert_eq!(Frame::decode(Bytes::from_static(&[200, 1, 2])), Ok(None));
        for kind in [1u8, 2, 3, 4, 5, 7, 8, 9, 10, 11] {
            assert!(matches!(Frame::decode(Bytes::from(vec![kind])), Err(FrameFault::Malformed { .. })), "{kind}");
        }
        assert!(Frame::decode(Bytes::from_static(&[5, 99, 0, 0, 0, 1])).is_err(), "no lane 99");
    }
}
