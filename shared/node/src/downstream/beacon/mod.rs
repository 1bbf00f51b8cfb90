//! The parent's datagrams: wakes to devices without a slot, and devices' notices that they go off (ADM-15 to ADM-18).
//!
//! ```text
//! order waits ─► waker (when, how often; pure) ─┐
//!                                               ├─ actor: one UDP socket ─► wake ─► device
//! notice ─► notices (does it hold? pure) ───────┘        └─► the node's owner of children
//!                    ▲ keyring: what is known of each device's last link
//! ```
//!
//! No datagram is answered, whatever it is. Losing any of them costs a wait until the next poll, or the 90 s of a link
//! that fell silent, and nothing else.

mod actor;
mod notices;
mod waker;

pub use actor::{Beacon, BeaconSetup, Want};
pub use notices::Notices;
pub use waker::{COPIES, WANTED_MAX, Waker};

use super::FromChild;
use crate::supervise::{ChildAddr, ChildSpec, run};
use actix::{Actor, Context, Handler};
use branchline_protocol::{
    datagram::LinkKeys,
    id::{AttachmentKey, NodeId, TenantId},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What a parent keeps of a device's last link: on disk, so that it can wake it after a restart too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reachable {
    /// Whose.
    pub tenant: TenantId,
    /// The link.
    pub key: AttachmentKey,
    /// Its keys.
    pub keys: LinkKeys,
    /// Where it hears wakes; none if it does not.
    pub address: Option<SocketAddr>,
    /// Whether the link was a poll: one that holds a slot, or lost it without a word, dials by itself.
    pub sleeps: bool,
}

impl Reachable {
    /// As a store keeps it.
    pub fn to_bytes(&self) -> Vec<u8> {
        rmp_serde::to_vec(self).expect("plain data")
    }

    /// From what a store kept. `None` costs a wait until the next contact, which brings a new one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Reachable> {
        rmp_serde::from_slice(bytes).ok()
    }
}

/// The owner of children's hands on its beacon. Without one running, nothing is sent.
#[derive(Clone, Default)]
pub struct Beacons {
    /// What is known of devices.
    pub keyring: Keyring,
    /// The beacon's present address.
    pub at: ChildAddr<Beacon>,
}

impl Beacons {
    /// What starts the beacon on this socket; `owner` hears who goes off.
    pub fn child<O>(
        &self,
        needs: &str,
        socket: std::net::UdpSocket,
        setup: BeaconSetup,
        owner: ChildAddr<O>,
    ) -> ChildSpec
    where
        O: Actor<Context = Context<O>> + Handler<FromChild>,
    {
        let (at, missing) = (self.at.clone(), format!("no {needs}"));
        let spec = ChildSpec::new("beacon", move |guard| {
            let owner = owner.get().ok_or(missing.clone())?.recipient();
            let (socket, setup) = (socket.try_clone().map_err(|e| e.to_string())?, setup.clone());
            at.renew(run(guard, move |_, guard| Beacon::new(guard, socket, setup, owner)));
            Ok(())
        });
        spec.needs(needs)
    }

    /// Something waits for a device without a link. Lost with a full mailbox or a beacon that is being rebuilt: the device
    /// polls.
    pub fn want(&self, node: NodeId) {
        let _ = self.at.try_send(Want(node));
    }
}

/// What is known of every device that was here directly: written by the owner of children, read by the beacon; outlives
/// both.
#[derive(Clone, Default)]
pub struct Keyring(Arc<Mutex<BTreeMap<NodeId, Reachable>>>);

impl Keyring {
    /// A device greeted; without `reachable` it is not to be sent anything. An older link than the known one changes
    /// nothing.
    pub fn put(&self, node: NodeId, reachable: Option<Reachable>) {
        let mut all = self.lock();
        match reachable {
            Some(new) if all.get(&node).is_some_and(|known| known.key > new.key) => {}
            Some(new) => drop(all.insert(node, new)),
            None => drop(all.remove(&node)),
        }
    }

    /// A device lost its slot: from here on it polls.
    pub fn sleeps(&self, node: NodeId) {
        if let Some(known) = self.lock().get_mut(&node) {
            known.sleeps = true;
        }
    }

    /// What is known of a device.
    pub fn get(&self, node: NodeId) -> Option<Reachable> {
        self.lock().get(&node).cloned()
    }

    /// Consistent between any two calls, so poison is ignored; never held across an await.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Reachable>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use branchline_protocol::datagram::DatagramKey;
    use uuid::Uuid;

    pub fn node(n: u128) -> NodeId {
        NodeId(Uuid::from_u128(n))
    }

    pub fn reachable(attachment: u64) -> Reachable {
        let byte = attachment as u8;
        Reachable {
            tenant: "acme".parse().unwrap(),
            key: AttachmentKey { epoch: 1, attachment },
            keys: LinkKeys { wake: DatagramKey([byte; 32]), notice: DatagramKey([byte + 100; 32]) },
            address: Some(SocketAddr::from(([127, 0, 0, 1], 15_000))),
            sleeps: true,
        }
    }

    #[test]
    fn the_keyring_keeps_the_newest_link() {
        let ring = Keyring::default();
        ring.put(node(1), Some(reachable(5)));
        ring.put(node(1), Some(reachable(4)));
        assert_eq!(ring.get(node(1)), Some(reachable(5)), "an older one, told late");
        ring.put(node(1), Some(Reachable { sleeps: false, ..reachable(6) }));
        ring.sleeps(node(1));
        assert_eq!(ring.get(node(1)), Some(reachable(6)));
        ring.put(node(1), None);
        assert_eq!(ring.get(node(1)), None, "it came through a gateway");
    }

    #[test]
    fn a_row_comes_back_from_the_disk_and_a_spoiled_one_does_not() {
        let bytes = reachable(5).to_bytes();
        assert_eq!(Reachable::from_bytes(&bytes), Some(reachable(5)));
        assert_eq!(Reachable::from_bytes(&bytes[1..]), None);
    }
}
