//! The dispatcher's side of wakes and notices (ADM-15 to ADM-18).

use super::{Dispatcher, Parts};
use crate::{
    dispatch::{Effect, WAKE_KEYS},
    store::StoreError,
};
use branchline_node::downstream::beacon::Reachable;
use branchline_protocol::id::NodeId;

impl Dispatcher {
    pub(super) fn datagram(&mut self, effect: Effect) {
        match effect {
            Effect::Drop(node, session) => self.links.retain(|of, (live, _)| *of != node || *live != session),
            Effect::Reachable(node, reachable) => self.parts.beacons.keyring.put(node, reachable),
            Effect::Sleeps(node) => self.parts.beacons.keyring.sleeps(node),
            Effect::Wake(node) => self.parts.beacons.want(node),
            _ => {}
        }
    }
}

/// What the store knows of devices' last links; into the keyring as well, which may have newer ones.
pub(super) async fn load(parts: &Parts) -> Result<Vec<(NodeId, Reachable)>, StoreError> {
    let rows = parts.store.metas(WAKE_KEYS).await?;
    let read = |(key, value): &(String, bytes::Bytes)| {
        let node = key.rsplit('/').next()?.parse().ok()?;
        Some((node, Reachable::from_bytes(value)?))
    };
    let found: Vec<(NodeId, Reachable)> = rows.iter().filter_map(read).collect();
    found.iter().for_each(|(node, reachable)| parts.beacons.keyring.put(*node, Some(reachable.clone())));
    Ok(found)
}
