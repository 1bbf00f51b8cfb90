//! Who is who in the simulated tree.

use branchline_protocol::{hash::Hash, id::NodeId, order::Signer};
use std::fmt;
use uuid::Uuid;

/// A node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The one server.
    Server,
    /// The one gateway.
    Gateway,
    /// A relay by number. Relay 2 hangs below relay 0.
    Relay(usize),
    /// An agent by number.
    Agent(usize),
}

impl Place {
    /// Its id.
    pub fn id(self) -> NodeId {
        NodeId(Uuid::from_u128(match self {
            Place::Server => 1,
            Place::Gateway => 2,
            Place::Relay(n) => 0x100 + n as u128,
            Place::Agent(n) => 0x1000 + n as u128,
        }))
    }

    /// The key of its certificate.
    pub fn signer(self) -> Signer {
        Signer::from_seed(&Hash::of(self.id().bytes()).0)
    }

    /// The node with this id.
    pub fn of(id: NodeId) -> Option<Place> {
        match id.0.as_u128() {
            1 => Some(Place::Server),
            2 => Some(Place::Gateway),
            n @ 0x100..0x1000 => Some(Place::Relay(n as usize - 0x100)),
            n @ 0x1000..0x2000 => Some(Place::Agent(n as usize - 0x1000)),
            _ => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Server => write!(f, "server"),
            Place::Gateway => write!(f, "gateway"),
            Place::Relay(n) => write!(f, "relay{n}"),
            Place::Agent(n) => write!(f, "agent{n}"),
        }
    }
}
