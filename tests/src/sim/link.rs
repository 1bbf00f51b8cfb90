//! One link between a child and its parent: the production lanes at both ends, and an ordered pipe in each direction.
//! Frames of one direction never overtake one another, as in a TLS stream; which frame is written next the lanes say.

use super::place::Place;
use branchline_node::{downstream::Child, link::engine::LinkEnd, link::lanes::Lanes};
use branchline_protocol::wire::{Frame, Welcome};
use std::{collections::VecDeque, sync::Arc};

/// Numbers links of one run.
pub type LinkId = u64;

/// Frames of one direction that are under way at once: what a socket's buffers hold.
pub const FLYING_MAX: usize = 8;

/// An end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that dialled.
    Child = 0,
    /// The other.
    Parent = 1,
}

impl Side {
    /// The other end.
    pub fn other(self) -> Side {
        match self {
            Side::Child => Side::Parent,
            Side::Parent => Side::Child,
        }
    }
}

/// What one end holds.
#[derive(Default)]
pub struct End {
    /// Whether its owner has it.
    pub open: bool,
    /// The lanes.
    pub lanes: Lanes,
    /// Frames that go before those of the lanes.
    pub control: VecDeque<Frame>,
    /// When anything came last.
    pub heard_at: u64,
    /// How it ends once what is queued is written.
    pub closing: Option<LinkEnd>,
}

/// What one end wrote and the other has not read.
#[derive(Default)]
pub struct Pipe {
    /// Frames under way, oldest first.
    pub flying: VecDeque<Frame>,
    /// When the last of them arrives.
    pub last_at: u64,
    /// Nothing arrives before.
    pub stalled_until: u64,
}

/// See the module.
pub struct Link {
    /// Who dialled.
    pub child: Place,
    /// Whom.
    pub parent: Place,
    /// Whether the gateway lies between.
    pub gateway: bool,
    /// By [`Side`].
    pub ends: [End; 2],
    /// What each side wrote.
    pub pipes: [Pipe; 2],
    /// What the parent knows of the child, once it was greeted.
    pub session: Option<Arc<Child>>,
    /// What the parent said, once it was.
    pub welcome: Option<Welcome>,
    /// Whether the parent asked a poll to end.
    pub asked_to_end: bool,
    /// The spread of reconnects that the parent told last.
    pub spread: u64,
    /// The dial it came from.
    pub dial: u64,
    /// The connection is gone: nothing that flies arrives.
    pub cut: bool,
    /// Nothing arrives any more, and nobody is told.
    pub silent: bool,
    /// Cut at the next arrival, before it is read (`false`) or after it (`true`).
    pub armed: Option<bool>,
}

impl Link {
    /// A connection that was just accepted; nothing is greeted yet.
    pub fn new(child: Place, parent: Place, gateway: bool, dial: u64) -> Link {
        let mut ends = [End::default(), End::default()];
        ends.iter_mut().for_each(|end| end.open = true);
        Link {
            child,
            parent,
            gateway,
            ends,
            pipes: Default::default(),
            session: None,
            welcome: None,
            asked_to_end: false,
            spread: 0,
            dial,
            cut: false,
            silent: false,
            armed: None,
        }
    }

    /// Who is at an end.
    pub fn at(&self, side: Side) -> Place {
        match side {
            Side::Child => self.child,
            Side::Parent => self.parent,
        }
    }

    /// Frames under way, both directions.
    pub fn flying(&self) -> usize {
        self.pipes.iter().map(|pipe| pipe.flying.len()).sum()
    }

    /// Whether both ends count on it.
    pub fn is_up(&self) -> bool {
        self.ends.iter().all(|end| end.open) && self.welcome.is_some()
    }
}
