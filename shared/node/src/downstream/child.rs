//! What a node's owner of children hears of them, in order per child.

use crate::link::{LinkHandle, engine::LinkEvent};
use actix::Message;
use branchline_protocol::{
    id::{AttachmentKey, NodeId, Role, TenantId},
    wire::{Greeting, Lease},
};
use std::{net::SocketAddr, sync::Arc};

/// A child whose identity was verified and whose greeting was taken.
#[derive(Clone, Debug)]
pub struct Child {
    /// Its link's session here; unique in this process.
    pub session: u64,
    /// Whose.
    pub tenant: TenantId,
    /// Who.
    pub node: NodeId,
    /// Agent or relay.
    pub role: Role,
    /// Its attachment.
    pub key: AttachmentKey,
    /// What it said.
    pub greeting: Arc<Greeting>,
    /// With a lease the link is a poll.
    pub lease: Option<Lease>,
    /// Where it came from: the peer's address, or a gateway's untrusted word.
    pub source: Option<SocketAddr>,
    /// The gateway it came through.
    pub gateway: Option<NodeId>,
}

/// What happens with a child.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub enum FromChild {
    /// Its link is up.
    Up {
        /// Who.
        child: Arc<Child>,
        /// Sends on the link; dropping it ends the link.
        link: LinkHandle,
    },
    /// Something came.
    Event {
        /// From whom.
        child: Arc<Child>,
        /// What.
        event: LinkEvent,
    },
    /// Its link ended.
    Gone {
        /// Who.
        child: Arc<Child>,
        /// How.
        end: crate::link::engine::LinkEnd,
    },
    /// Its link lost the slot and is a poll from here on.
    Displaced {
        /// Who.
        node: NodeId,
        /// Its session.
        session: u64,
        /// Its lease.
        lease: Lease,
    },
}
