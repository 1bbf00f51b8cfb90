//! What a node's owner of children hears of them, in order per child.

use super::beacon::Reachable;
use crate::link::{LinkHandle, engine::LinkEvent};
use actix::Message;
use branchline_protocol::{
    datagram::LinkKeys,
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
    /// Keys of the link's datagrams; none where this node sends and hears none.
    pub keys: Option<LinkKeys>,
}

impl Child {
    /// What this node needs to wake it and to believe its notice. Only of a device on this node's own network: one that
    /// came through a gateway is sent no datagram (ADM-17).
    pub fn reachable(&self) -> Option<Reachable> {
        let keys = self.keys.filter(|_| self.role == Role::Agent && self.gateway.is_none())?;
        let address = self.source.filter(|_| self.greeting.wake_port != 0);
        let address = address.map(|source| SocketAddr::new(source.ip(), self.greeting.wake_port));
        Some(Reachable { tenant: self.tenant.clone(), key: self.key, keys, address, sleeps: self.lease.is_some() })
    }

    /// Whether it can be woken while it has no slot.
    pub fn is_wakeable(&self) -> bool {
        self.reachable().is_some_and(|reachable| reachable.address.is_some())
    }
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
    /// A slot is kept for it, and a wake may reach it (ADM-3).
    SlotKept {
        /// Who.
        node: NodeId,
    },
    /// Its link was refused before it was up: an attachment that is as new is here.
    Stale {
        /// Whose.
        tenant: TenantId,
        /// Who.
        node: NodeId,
        /// The attachment that was refused.
        key: AttachmentKey,
    },
    /// It said, by a datagram that holds, that it goes off (ADM-18).
    GoesOff {
        /// Whose.
        tenant: TenantId,
        /// Who.
        node: NodeId,
        /// The attachment that it ends.
        key: AttachmentKey,
    },
}
