//! The machines and what runs on them: production cores behind the production driver, on a disk of the simulator's.

use super::{
    clock::MachineClock,
    defect::Seeded,
    disk::{Crash, Disk, Snapshot},
    gate::Gate,
    jobs::{Folder, Jobs},
    link::LinkId,
    place::Place,
    server_rows::ServerRows,
};
use branchline_agent::decide::AgentCore;
use branchline_node::{
    driver::{Completion, Driver, Notify},
    time::NodeTime,
    uplink::rhythm::Rhythm,
};
use branchline_protocol::{
    id::{Epoch, JobId, NodeId, OrderNumber},
    order::Envelope,
    time::{Mono, Now},
    wire::{Contact, Lease},
};
use branchline_relay::core::RelayCore;
use branchline_server::{
    dispatch::{Core, Token},
    store::Op,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

/// What every machine has, whatever runs on it.
pub struct Machine {
    /// Its clocks.
    pub clock: Arc<MachineClock>,
    /// The store of its node; idle at server and gateway.
    pub disk: Disk,
    /// Counts the lives of its process: what was meant for an earlier one is idle.
    pub life: u64,
    /// Whether the process lives.
    pub up: bool,
    /// It does nothing before.
    pub frozen_until: u64,
    /// Whether a sync is under way.
    pub syncing: bool,
    /// What happens at its next sync instead of the sync.
    pub armed: Option<Armed>,
    /// Whether nothing fits on the disk.
    pub full: bool,
    /// Its identity's epoch.
    pub epoch: Epoch,
    /// An older state of it.
    pub snapshot: Option<Kept>,
    /// Whether its disk was ever set back.
    pub restored: bool,
    /// Pairs that it, a relay, had handed on when its disk was set back, while it has not been told that and somebody may
    /// notice.
    pub unnoticed: BTreeSet<(OrderNumber, usize)>,
    /// The number of that disk, once it has greeted with it.
    pub disk_put_back: Option<u64>,
    /// Orders that its disk was set back to before, while it has not been told that and somebody may know.
    pub unjudged: BTreeSet<OrderNumber>,
    /// The latest epoch that it had come to when that happened.
    pub put_back_in: Epoch,
}

/// A snapshot of a machine.
#[derive(Clone)]
pub struct Kept {
    /// Of its store.
    pub disk: Snapshot,
    /// Of its jobs' folders.
    pub folders: BTreeMap<OrderNumber, Folder>,
    /// Orders that were over on it.
    pub done: BTreeSet<OrderNumber>,
    /// Orders that it had and had not begun: it begins them anew before anybody can tell it.
    pub received: BTreeSet<OrderNumber>,
    /// Pairs that it, a relay, had as open.
    pub held: BTreeSet<(OrderNumber, usize)>,
    /// When it was taken.
    pub at: u64,
}

/// What happens at a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Armed {
    /// The machine or process is gone.
    Crash(Crash),
    /// The disk is full.
    Full,
}

/// Answers of a store on their way to its node.
#[derive(Clone, Default)]
pub struct Answers(Arc<Mutex<VecDeque<Completion>>>);

impl Answers {
    /// For a driver.
    pub fn notify(&self) -> Notify {
        let to = self.0.clone();
        Arc::new(move |done| to.lock().unwrap_or_else(PoisonError::into_inner).push_back(done))
    }

    /// The oldest.
    pub fn pop(&self) -> Option<Completion> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// Where a node stands on its way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// For the next dial.
    Waiting,
    /// Connected, not welcomed.
    Greeting(LinkId),
    /// Welcomed.
    Up(LinkId),
}

/// What the uplink actor keeps.
pub struct Uplink {
    /// When to dial.
    pub rhythm: Rhythm,
    /// Counts dialling timers: an older one is idle.
    pub timer: u64,
    /// Counts dials.
    pub dials: u64,
    /// Where it stands.
    pub stage: Stage,
    /// The lease given while the link was up.
    pub lease: Option<Lease>,
    /// Whether the poll's bounds were reached.
    pub more: bool,
    /// The spread told last while the link was up.
    pub spread: Option<u64>,
}

impl Uplink {
    /// Dials at once.
    pub fn new(now: Now) -> Uplink {
        Uplink {
            rhythm: Rhythm::new(now),
            timer: 0,
            dials: 0,
            stage: Stage::Waiting,
            lease: None,
            more: false,
            spread: None,
        }
    }
}

/// A device.
pub struct AgentHost {
    /// Its jobs and what they did.
    pub jobs: Jobs,
    /// Where it is: its parent, and whether the gateway lies between.
    pub network: (Place, bool),
    /// Where it was before it moved last.
    pub before: (Place, bool),
    /// Orders that came to its process, and whether they came too late by its own node time.
    pub late: BTreeMap<OrderNumber, bool>,
    /// What it asks of its parents.
    pub contact: Contact,
    /// Changes the inventory.
    pub version: u64,
    /// Counts the lives of the machine.
    pub boot: u64,
    /// The agent, while it lives.
    pub process: Option<AgentProcess>,
}

/// An agent's process.
pub struct AgentProcess {
    /// Its core.
    pub driver: Driver<AgentCore<Seeded>, Disk>,
    /// What its store answered.
    pub answers: Answers,
    /// Its node time.
    pub time: NodeTime,
    /// Its way up.
    pub uplink: Uplink,
    /// The core's deadline, and which timer is for it.
    pub deadline: (Option<Mono>, u64),
    /// Jobs whose end it waits for.
    pub awaits: BTreeSet<OrderNumber>,
}

/// A relay.
pub struct RelayHost {
    /// Who is above it.
    pub parent: Place,
    /// How many slots it has.
    pub slots: i64,
    /// Its disk is new: it has no identity.
    pub must_enrol: bool,
    /// The relay, while it lives.
    pub process: Option<RelayProcess>,
}

/// A relay's process.
pub struct RelayProcess {
    /// Its core.
    pub driver: Driver<RelayCore<Seeded>, Disk>,
    /// What its store answered.
    pub answers: Answers,
    /// Its node time.
    pub time: NodeTime,
    /// Its way up.
    pub uplink: Uplink,
    /// Its slots.
    pub gate: Gate,
    /// Children with a link.
    pub links: BTreeMap<NodeId, (u64, LinkId)>,
    /// What heartbeats are answered with.
    pub statement: Option<Arc<Envelope>>,
    /// Names what it remembers, in its welcomes.
    pub store: u64,
}

/// The server.
#[derive(Default)]
pub struct ServerHost {
    /// What is durable.
    pub rows: ServerRows,
    /// The server, while it lives.
    pub process: Option<ServerProcess>,
}

/// The server's process: what the dispatcher keeps around its core.
pub struct ServerProcess {
    /// Its core.
    pub core: Core<Seeded>,
    /// Its node time.
    pub time: NodeTime,
    /// Its slots.
    pub gate: Gate,
    /// Children with a link.
    pub links: BTreeMap<NodeId, (u64, LinkId)>,
    /// What waits for the commit under way.
    pub queue: Vec<(Vec<Op>, Token)>,
    /// The commit under way.
    pub committing: Option<(Vec<Op>, Vec<Token>)>,
    /// The newest order's number.
    pub number: u64,
    /// Jobs whose issuer waits.
    pub issuing: BTreeSet<JobId>,
    /// What heartbeats are answered with.
    pub statement: Option<Arc<Envelope>>,
    /// When it was made.
    pub stated_at: Option<Mono>,
}
