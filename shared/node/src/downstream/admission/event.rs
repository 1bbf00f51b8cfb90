//! What is told to an [`Admission`](super::Admission) and what it asks to be done.

use super::{
    config::Cap,
    need::{ByNeed, Demand, Need},
};
use branchline_protocol::hash::Hash;
use branchline_protocol::id::{AttachmentKey, NodeId, Role};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a child wants of the link it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// To stay attached: one of the node's slots for a device, a place of the reserved pool for a relay (ADM-7).
    Persistent,
    /// A short link: fetch what is queued, hand over what is ready, end.
    Poll,
    /// A short link that only moves content; it says nothing about the child's presence.
    Bulk,
}

/// An authenticated child's wish. Identity comes from its certificate; before that a link holds nothing (ADM-5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The child.
    pub node: NodeId,
    /// What the child is: a relay or an agent.
    pub role: Role,
    /// Orders this link among the child's links: the newest wins.
    pub key: AttachmentKey,
    /// This link, unique within the process.
    pub session: u64,
    /// What the child wants **at this contact**. A device that wants a slot asks for it at every contact; a poll on
    /// a newer link says that it wants none and gives up slot and place in line (ADM-1).
    pub want: Want,
    /// How much it needs a slot, without its orders; counts only for devices that want one.
    pub need: Need,
    /// Whether a wake packet can cause the child to call.
    pub wakeable: bool,
    /// Milliseconds between polls as its tenant's settings say; the node's own configuration without them (ADM-14).
    pub poll_interval_ms: Option<u64>,
    /// Milliseconds that the most pressing class of what it can do allows between polls (ADM-9, ADM-10).
    pub pressing_ms: Option<u64>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A child wants something; answered by exactly one effect that names its session, after any `Replaced`.
    Ask(Ask),
    /// A session that was live before Admission was rebuilt says what it had. Answered like `Ask`, but with
    /// `Already` where it keeps its place and `Displace` where there is no slot for it.
    Reregister(Ask),
    /// A link ended, for whatever reason. Of an older link than the child's present one: touches nothing.
    Gone {
        /// The child.
        node: NodeId,
        /// The link that ended.
        session: u64,
    },
    /// The documents of its parent say otherwise from here on how much a device needs a slot. With [`Need::None`] it loses
    /// its slot, or its place in line.
    Need {
        /// The device.
        node: NodeId,
        /// Without its orders.
        need: Need,
    },
    /// What the open orders of the node's own children ask for, all of them; who is not named has none.
    Demands(BTreeMap<NodeId, Demand>),
    /// The number of slots was changed.
    SetCap {
        /// The new number.
        cap: Cap,
    },
    /// The instant of `next_deadline` was reached. Early or late ticks do no harm.
    Tick,
}

/// Something to do, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The link has what it asked for.
    Admitted {
        /// The asking link.
        session: u64,
    },
    /// The link had it already.
    Already {
        /// The asking link.
        session: u64,
    },
    /// No slot is free: poll by this lease. To be served as a poll on this same link, ask again with `Want::Poll`;
    /// the place in line is kept.
    Deferred {
        /// The asking link.
        session: u64,
        /// When to poll.
        lease: Lease,
    },
    /// A pool is full, or admission is closed while live sessions re-register.
    Busy {
        /// The asking link.
        session: u64,
        /// Milliseconds to wait before another try.
        retry_after_ms: u64,
    },
    /// The child has opened a newer link: close this one (ADM-5).
    Replaced {
        /// The older link.
        session: u64,
    },
    /// The child has a link as new as this one or newer: refuse this one; nothing else changed.
    Stale {
        /// The asking link.
        session: u64,
    },
    /// The link's slot was taken away, for a lower cap, for one who needs it more, or because it is not to keep it: turn it
    /// to polling, letting what is under way finish (ADM-1, ADM-6).
    Displace {
        /// The link.
        session: u64,
        /// When to poll.
        lease: Lease,
    },
    /// Only relays and agents may be below another node.
    WrongRole {
        /// The asking link.
        session: u64,
    },
    /// A slot is reserved for this waiter and a wake packet may reach it.
    Wake {
        /// The waiter.
        node: NodeId,
    },
}

/// When a device without a slot polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Lease {
    /// Milliseconds from one poll to the next.
    pub interval_ms: u64,
    /// Offset of the polls within the interval, 0 to `interval_ms` - 1: the device polls when its node time modulo
    /// the interval equals it. From the node id alone, so that devices spread evenly and stay where they are.
    pub phase_ms: u64,
    /// Number in line for a slot, from 1; 0 when not in line (not wanted, or the line is full).
    pub waiter: u32,
}

impl Lease {
    /// The lease of `node` at an interval of at least 1 ms.
    pub(super) fn new(node: NodeId, interval_ms: u64, waiter: u32) -> Self {
        Lease { interval_ms, phase_ms: spread(&[node.bytes()], interval_ms), waiter }
    }
}

/// A number below `range` (at least 1) that depends on nothing but `parts`. Hashed, because node ids that were given
/// one after another share their first bytes.
pub(super) fn spread(parts: &[&[u8]], range: u64) -> u64 {
    let Hash(digest) = Hash::of_parts(parts);
    let number = digest[..8].iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
    number % range.max(1)
}

/// The node's slots as tests, metrics and operators see them (CON-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gauge {
    /// Slots held or reserved; never above `cap`.
    pub used: u16,
    /// Slots there are.
    pub cap: u16,
    /// The highest `used` since this Admission was built.
    pub peak: u16,
    /// Devices in line for which no slot is reserved.
    pub waiting: u32,
    /// Of `used`, the slots kept for a waiter that has not come yet.
    pub reserved: u16,
    /// Of `used`, the slots held, by what their holders need.
    pub held_by: ByNeed,
    /// Of `waiting`, by what the waiters stand as: their need, and what they rose.
    pub waiting_by: ByNeed,
}

/// Places in use beside the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pools {
    /// Relay uplinks.
    pub relays: u16,
    /// Polls.
    pub polls: u16,
    /// Bulk links.
    pub bulk: u16,
}
