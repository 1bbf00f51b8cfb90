//! What happens to an agent's core, and what it asks for.

use super::WakeKeys;
use crate::platform::JobLeft;
use branchline_node::{driver::Token, identity::RootKey, link::lanes::Received, store::Batch, uplink::Poke};
use branchline_protocol::{
    datagram::LinkKeys,
    id::{AttachmentKey, Epoch, JobId, NodeId, OrderNumber, TenantId, TraceId},
    inventory::Snapshot,
    job::{End, RunScript},
    order::{Envelope, Signer},
    record::Lane,
    refusal::Refusal,
    time::Millis,
    wire::{Contact, Goodbye, Greeting, Lease, Message, Welcome},
};
use jiff::tz::TimeZone;
use std::{collections::BTreeMap, sync::Arc};

/// Who this agent is: fixed for the life of its core.
#[derive(Clone, Debug)]
pub struct Me {
    /// Whose device.
    pub tenant: TenantId,
    /// The device.
    pub node: NodeId,
    /// In which of its lives: its certificate's, or the later one that the server gave it since.
    pub epoch: Epoch,
    /// Where it stands: only this site's upstream list is its own.
    pub site: String,
    /// The tenant's root, pinned by the bundle.
    pub root: RootKey,
    /// Shown to people (OPS-2).
    pub build: String,
    /// What it asks of its parents.
    pub contact: Contact,
    /// The platform's name.
    pub platform: &'static str,
    /// What the platform can do, sorted.
    pub capabilities: Vec<String>,
    /// The agent's process, as scripts see it.
    pub pid: u32,
    /// The key of its certificate: signs receipts and heads of its streams.
    pub signer: Arc<Signer>,
    /// It takes orders on trust, as a load test's agents may: see [`crate::Spared`].
    pub unverified: bool,
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// This batch and every one before it are durable.
    Committed(Token),
    /// Where the machine is and in which of its lives: before [`Event::Start`], and whenever the zone or the wall clock
    /// was changed.
    Surroundings {
        /// What the schedule's hours mean.
        zone: TimeZone,
        /// The same as long as the machine is not started again.
        boot: String,
    },
    /// The core was recovered: what was open goes on.
    Start,
    /// An executor is there, perhaps a fresh one: it is told what runs.
    ExecutorUp,
    /// A collector is there, perhaps a fresh one.
    CollectorUp,
    /// Keys of the link whose greeting is asked for next; none where no datagram may come.
    Keys(Option<LinkKeys>),
    /// A wake that holds asks for a poll; what was heard under each key until now.
    Woken(Vec<(AttachmentKey, u64)>),
    /// The uplink is about to greet a parent.
    Dialling {
        /// Comes back with the greeting.
        dial: u64,
        /// The parent: the receipt names it.
        parent: NodeId,
    },
    /// A parent welcomed us.
    Up(Box<Welcome>),
    /// A message came; its credit is owed.
    Received(Received),
    /// The parent turned the link to polling.
    Lease(Lease),
    /// The poll's bounds are reached: finish what is under way.
    Continue,
    /// The parent's newest time statement.
    Alive(Option<Box<Envelope>>),
    /// The parent would not do something; the link goes on.
    Refused(Refusal),
    /// The newest link was refused, or ended, as older than one that a parent knows: this disk was put back to an older
    /// state.
    Overtaken,
    /// No link.
    Down,
    /// A job is at its end: `Finished`, or `Cut`.
    JobEnded {
        /// Its order.
        order: OrderNumber,
        /// What is left of it.
        left: JobLeft,
    },
    /// A job was not started, and nothing of it runs.
    JobNotStarted {
        /// Its order.
        order: OrderNumber,
        /// How that counts.
        end: End,
        /// Why.
        reason: String,
    },
    /// A load test asks for a collection, as the schedule would: no message does.
    Collect,
    /// A collection is done.
    Collected(Snapshot),
    /// Whether the disk is nearly full: then no order is taken, so that it stays with the parent.
    LowSpace(bool),
    /// A deadline of [`super::AgentCore::next_deadline`] is reached.
    Tick,
    /// The process stops in good order: nothing is heard after this.
    Stopping,
}

/// A job to be started, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStart {
    /// Its order: names its folder.
    pub order: OrderNumber,
    /// The job, for logs.
    pub job: JobId,
    /// The trace, for logs.
    pub trace: TraceId,
    /// What to run; bounds already lowered to the order's and this build's.
    pub args: RunScript,
    /// The machine's own way to start again takes the place of what to run.
    pub restarts: bool,
    /// `BRANCHLINE_DEVICE` and `BRANCHLINE_AGENT_PID`.
    pub env: BTreeMap<String, String>,
}

/// Something that happened to an order, for logs only (OPS-9): never content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The order.
    pub order: OrderNumber,
    /// Its job.
    pub job: JobId,
    /// From order to result.
    pub trace: TraceId,
    /// `taken`, `started`, `resumed`, or the end.
    pub what: &'static str,
    /// Of the end.
    pub reason: Option<String>,
}

/// Events worth counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counted {
    /// An order that was not signed, altered, or not for this device.
    OrderRefused,
    /// An order that came after its last instant.
    OrderLate,
    /// An order that is journalled already, or settled everywhere.
    OrderRepeated,
    /// An order left with the parent: too many are open, the disk is full, or this device is revoked.
    OrderLeft,
    /// A document that was not taken.
    DocumentRefused,
    /// A message of a kind this build does not know, or that is none of an agent's.
    UnknownMessage,
    /// A parent broke the protocol.
    ProtocolError,
    /// A record of ours was refused by the server.
    RecordRefused,
}

/// What the core asks for. Everything but `Commit` is carried out at once.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Make durable; answer [`Event::Committed`].
    Commit(Batch, Token),
    /// The greeting for this dial; its attachment number is durable.
    Greet(u64, Box<Greeting>),
    /// Send on the link that is up.
    Send(Lane, Message),
    /// Give credit back on the link that is up.
    Release(Lane, u32),
    /// Say goodbye on the link that is up.
    Goodbye(Goodbye),
    /// End the link that is up: its parent broke the protocol.
    CloseLink(String),
    /// End the link that is up and dial anew: this device goes on in another epoch.
    Redial,
    /// Dial soon: there is something to say.
    Poke(Poke),
    /// From here on these keys open a wake; they are durable.
    WakeKeys(WakeKeys),
    /// Upstreams or trust changed: [`super::AgentCore::documents`] has them.
    Reconfigure,
    /// A verified statement's time.
    LearnTime(Millis),
    /// Start a job; its intent is durable.
    Start(Box<JobStart>),
    /// Find out what became of a job that was started before, and wait for its end.
    Resume(OrderNumber),
    /// End a job; its end comes all the same.
    Kill(OrderNumber),
    /// The result is durable: the job's folder may go.
    RemoveJob(OrderNumber),
    /// To a fresh executor, before anything else: folders of jobs other than these are left over.
    KeepJobs(Vec<OrderNumber>),
    /// Collect these sections, all when none is named; answer [`Event::Collected`].
    Collect(Vec<String>),
    /// Write to the log.
    Note(Note),
    /// Count.
    Count(Counted),
}
