//! Devices without a slot that hang on the server itself: what wakes them, and that they go off (ADM-15 to ADM-18).

use super::{Core, Effect, TenantState, Work};
use crate::store::Op;
use branchline_node::{
    defects::Defects,
    downstream::{Child, beacon::Reachable},
};
use branchline_protocol::{
    id::{AttachmentKey, NodeId, Role, TenantId},
    time::Now,
};
use bytes::Bytes;
use std::collections::BTreeSet;

/// Where the store keeps what wakes devices; an empty value is none.
pub const WAKE_KEYS: &str = "wake/";

fn wake_key(tenant: &TenantId, node: NodeId) -> String {
    format!("{WAKE_KEYS}{tenant}/{node}")
}

/// What the store knows of devices' last links.
#[derive(Default)]
pub(in crate::dispatch) struct Sleepers {
    /// Devices with a row.
    rows: BTreeSet<NodeId>,
    /// Those that had one at the start, until they are looked at.
    recovered: BTreeSet<NodeId>,
}

impl Sleepers {
    pub fn recover(&mut self, node: NodeId) {
        self.rows.insert(node);
        self.recovered.insert(node);
    }
}

/// A child greeted: with this work the store knows what wakes it.
pub(super) fn met(state: &mut TenantState, child: &Child, work: &mut Work, out: &mut Vec<Effect>) {
    if child.role != Role::Agent {
        return;
    }
    let reachable = child.reachable();
    let had = match reachable {
        Some(_) => state.sleepers.rows.insert(child.node),
        None => state.sleepers.rows.remove(&child.node),
    };
    if had || reachable.is_some() {
        let value = reachable.as_ref().map(Reachable::to_bytes).unwrap_or_default();
        work.ops.push(Op::Meta(wake_key(&child.tenant, child.node), Bytes::from(value)));
    }
    out.push(Effect::Reachable(child.node, reachable));
}

/// What waited before the start waits still: those that sleep may be woken for it.
pub(super) fn after_start(state: &mut TenantState) -> Vec<NodeId> {
    let recovered = std::mem::take(&mut state.sleepers.recovered);
    if recovered.is_empty() {
        return Vec::new();
    }
    state.ledger.devices().filter(|device| recovered.contains(device)).collect()
}

impl<D: Defects> Core<D> {
    /// A device goes off by its own word. Its link, if there still is one, has nobody at its other end.
    pub(super) fn goes_off(
        &mut self,
        now: Now,
        tenant: &TenantId,
        node: NodeId,
        key: AttachmentKey,
        out: &mut Vec<Effect>,
    ) {
        let Some(state) = self.tenants.get_mut(tenant) else { return };
        if !state.directory.goes_off(node, key, now.node) {
            return;
        }
        if let Some(link) = state.links.remove(&node) {
            state.ledger.child_gone(node, &[node]);
            out.push(Effect::Drop(node, link.session));
        }
    }
}
