//! The children's end: what a relay's or an agent's uplink decides by, and what became of it.

use branchline_node::{
    downstream::admission::{Ask, Need, Want},
    uplink::{
        path::{Path, Way},
        rhythm::Rhythm,
    },
};
use branchline_protocol::{
    id::{AttachmentKey, NodeId, Role},
    refusal::Refusal,
    wire::Lease,
};
use std::net::IpAddr;

/// How it is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Down,
    /// To a parent; by the gateway or not.
    Up {
        parent: usize,
        gateway: bool,
        session: u64,
    },
    /// The same for as long as a poll takes.
    Poll {
        parent: usize,
        gateway: bool,
        session: u64,
        lease: Lease,
    },
}

/// A dial under way: it tries one way after the other.
pub struct Dial {
    pub ways: Vec<Way>,
    pub next: usize,
    pub refusal: Option<Refusal>,
}

/// One child.
pub struct Child {
    pub node: NodeId,
    pub role: Role,
    /// Where the gateway sees it come from.
    pub source: IpAddr,
    pub path: Path,
    pub rhythm: Rhythm,
    pub link: Link,
    pub dial: Option<Dial>,
    pub need: Need,
    pub pressing_ms: Option<u64>,
    pub attachment: u64,
    /// When it has something to do next; never while its machine is off.
    pub next: Option<u64>,
    /// When its dials began.
    pub dials: Vec<u64>,
    /// Since when it has been served by nobody although it wanted to be.
    pub away_since: Option<u64>,
    /// When it was served again after it had been away, by which parent, and by a link that it keeps.
    pub back: Vec<(u64, usize, bool)>,
}

impl Child {
    pub fn session(&self) -> Option<(usize, bool, u64)> {
        match self.link {
            Link::Down => None,
            Link::Up { parent, gateway, session } | Link::Poll { parent, gateway, session, .. } => {
                Some((parent, gateway, session))
            }
        }
    }

    pub fn ask(&self, session: u64) -> Ask {
        Ask {
            node: self.node,
            role: self.role,
            key: AttachmentKey { epoch: 1, attachment: self.attachment },
            session,
            want: Want::Persistent,
            need: self.need,
            wakeable: false,
            poll_interval_ms: None,
            pressing_ms: self.pressing_ms,
        }
    }

    pub fn served(&mut self, now: u64, parent: usize, keeps: bool) {
        if self.away_since.take().is_some() {
            self.back.push((now, parent, keeps));
        }
    }
}
