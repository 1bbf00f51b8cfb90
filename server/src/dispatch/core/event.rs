//! What the dispatcher's core hears and what it asks for.

use crate::{
    dispatch::{
        Preloaded,
        recovery::{Learned, Recovery},
    },
    store::{JobDeviceRow, JobRow, NodeRow, Op, StreamRow},
};
use branchline_node::{
    downstream::{Child, beacon::Reachable},
    link::engine::LinkEnd,
};
use branchline_protocol::{
    document::Kind,
    id::{AttachmentKey, Epoch, JobId, NodeId, OrderNumber, TenantId, TraceId},
    job::{Class, State},
    order::{Envelope, OrderMessage, Payload, Withdrawal},
    record::Lane,
    refusal::Refusal,
    time::Millis,
    wire::{Goodbye, Lease, Message},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Names one commit.
pub type Token = u64;

/// What happens.
pub enum Event {
    /// A child's link is up.
    Up(Arc<Child>),
    /// It ended.
    Gone(Arc<Child>, LinkEnd),
    /// A child said something; `bytes` of credit on `lane` are owed for it.
    Said {
        /// Who.
        child: Arc<Child>,
        /// What.
        message: Message,
        /// On which lane.
        lane: Lane,
        /// Bytes of credit.
        credit: u32,
        /// Inventories of devices whose reports are in it, as the store holds them.
        preloaded: Preloaded,
    },
    /// A polling child has nothing more to say.
    Done(Arc<Child>),
    /// A child's heartbeat.
    Heard(Arc<Child>),
    /// A child's link was turned to polling.
    Displaced(NodeId, Lease),
    /// A device says, by a datagram that holds, that it goes off and ends this attachment (ADM-18).
    GoesOff(TenantId, NodeId, AttachmentKey),
    /// A link with this attachment of a node was refused before it was up, as no newer one.
    Stale(TenantId, NodeId, AttachmentKey),
    /// An order was signed.
    Issue(Box<Issue>),
    /// A job is cancelled.
    Cancel(Box<CancelJob>),
    /// A node enrolled, or its row changed.
    Node(Box<NodeRow>),
    /// A document has a newer version; the text is the site it is for, empty for all.
    Document(TenantId, Kind, String, (u32, u64), Envelope),
    /// The newest time statement: children get it with their greeting and their heartbeats.
    Statement(TenantId, (u32, u64), Envelope),
    /// A device's next epoch could not be made durable: it is tried again.
    NotRaised(TenantId, NodeId),
    /// A node was revoked.
    Revoked(TenantId, NodeId),
    /// A new tenant.
    Tenant(TenantId),
    /// A commit is durable.
    Committed(Token),
    /// Time to look for what has expired.
    Tick,
    /// The server's term.
    Term(u32),
    /// The server was restored: it listens before it speaks (OPS-7).
    Recover(Box<Recovery>),
    /// An operator does not want to wait for it.
    EndRecovery,
    /// What [`Effect::Learned`] brought is durable, and so is this term.
    Recovered(u32),
}

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Make these durable, then feed [`Event::Committed`].
    Commit(Vec<Op>, Token),
    /// Send to a child, if that session is its live one.
    Send(NodeId, u64, Lane, Message),
    /// Sign these and send them to a child, if that session is its live one.
    Withdraw(NodeId, u64, Vec<Withdrawal>),
    /// Credit for what is durable.
    Release(NodeId, u64, Lane, u32),
    /// Say goodbye and end the link.
    Goodbye(NodeId, u64, Goodbye),
    /// Refuse and end the link.
    Refuse(NodeId, u64, Refusal),
    /// Let go of a child's link without a word: its other end is gone.
    Drop(NodeId, u64),
    /// What there is to wake a device and to believe its notice; none: it is sent no datagram.
    Reachable(NodeId, Option<Reachable>),
    /// A device lost its slot: from here on a wake may be what brings it.
    Sleeps(NodeId),
    /// Something waits for a device without a link.
    Wake(NodeId),
    /// Give a device this epoch: durable in its row and in the tenant's list, which comes back as [`Event::Document`]; else
    /// [`Event::NotRaised`].
    Raise(TenantId, NodeId, Epoch),
    /// A job changed: whoever waits for it looks again.
    JobChanged(TenantId, JobId),
    /// An order, or what a cancel brought, is durable: whoever asked may be told.
    Issued(JobId),
    /// The recovery is over: make what was learned durable, then feed [`Event::Recovered`].
    Learned(Box<Learned>),
    /// A child holds a document of this (term, version), signed by the server, which is newer than the one here: unless it
    /// came into the store meanwhile, the store was put back to an older state without a restore.
    Behind(TenantId, Kind, (u32, u64)),
    /// The server once revoked these nodes up to these epochs, and does not know it any more.
    Revoke(TenantId, Vec<(NodeId, Epoch)>),
}

/// A signed order with its rows.
pub struct Issue {
    /// The job.
    pub job: JobRow,
    /// Its devices.
    pub devices: Vec<JobDeviceRow>,
    /// What is signed.
    pub payload: Payload,
    /// The order with the proof of all its leaves; `None` when no target is a device.
    pub message: Option<OrderMessage>,
    /// Who ordered it, for the audit.
    pub who: String,
}

/// A cancelled job, with the order that steers the devices which may have it already.
pub struct CancelJob {
    /// Whose.
    pub tenant: TenantId,
    /// The job's order.
    pub target: OrderNumber,
    /// Comes back in [`Effect::Issued`].
    pub receipt: JobId,
    /// Who cancelled it, for the audit.
    pub who: String,
    /// The steering order, unless nobody below can have the job's.
    pub steering: Option<Issue>,
}

/// What a cancel of a job has to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelPlan {
    /// The job's order.
    pub target: OrderNumber,
    /// Until when the cancel must be known.
    pub report_by: Millis,
    /// Devices whose order may be below, with the epoch it binds.
    pub steer: Vec<(NodeId, Epoch)>,
}

/// An order that is not over everywhere.
#[derive(Clone, Debug)]
pub struct OpenJob {
    /// The job.
    pub job: JobId,
    /// From order to result.
    pub trace: TraceId,
    /// Its class.
    pub class: Class,
    /// The order that it steers.
    pub target: Option<OrderNumber>,
    /// Devices short of their end, and where they stand.
    pub open: BTreeMap<NodeId, State>,
    /// Those of them for which it is cancelled.
    pub cancelling: BTreeSet<NodeId>,
    /// Relays below other relays that told, since the start, that they had it on disk for a device, and when that was.
    pub held: BTreeMap<NodeId, Vec<(NodeId, Millis)>>,
}

/// What the store held at the start.
#[derive(Default)]
pub struct Recovered {
    /// Every node.
    pub nodes: Vec<NodeRow>,
    /// Every open job with its devices.
    pub jobs: Vec<(JobRow, Vec<JobDeviceRow>)>,
    /// Stream positions.
    pub streams: Vec<(TenantId, StreamRow)>,
    /// Devices whose inventory is asked for anew.
    pub need_full: Vec<(TenantId, NodeId)>,
    /// Every tenant.
    pub tenants: Vec<TenantId>,
    /// Numbers of child relays' disks.
    pub disks: Vec<(TenantId, NodeId, u64)>,
    /// What wakes the devices that hang on the server itself.
    pub reachable: Vec<(NodeId, Reachable)>,
}
