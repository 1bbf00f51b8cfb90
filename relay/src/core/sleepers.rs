//! Devices without a slot that hang here directly: what wakes them, and that they go off (ADM-15 to ADM-18).

use super::{Effect, RelayCore, persist};
use branchline_node::{
    defects::Defects,
    downstream::{Child, beacon::Reachable},
    store::Batch,
};
use branchline_protocol::{
    id::{AttachmentKey, NodeId, Role},
    time::Now,
    wire::{Goodbye, Lease},
};
use std::collections::{BTreeMap, BTreeSet};

/// What the disk knows of devices' last links.
#[derive(Default)]
pub(super) struct Sleepers {
    /// Devices with a row.
    rows: BTreeSet<NodeId>,
    /// As the disk had them at the start, until they are looked at.
    recovered: BTreeMap<NodeId, Reachable>,
}

impl Sleepers {
    pub fn recovered(recovered: BTreeMap<NodeId, Reachable>) -> Sleepers {
        Sleepers { rows: recovered.keys().copied().collect(), recovered }
    }
}

impl<D: Defects> RelayCore<D> {
    /// What the disk had of devices' last links, until the first tick.
    pub fn recovered_sleepers(&self) -> impl Iterator<Item = (&NodeId, &Reachable)> {
        self.sleepers.recovered.iter()
    }

    /// A child greeted: with this batch the disk knows what wakes it.
    pub(super) fn met(&mut self, child: &Child, batch: &mut Batch, out: &mut Vec<Effect>) {
        if child.role != Role::Agent {
            return;
        }
        let reachable = child.reachable();
        let had = match reachable {
            Some(_) => self.sleepers.rows.insert(child.node),
            None => self.sleepers.rows.remove(&child.node),
        };
        if had || reachable.is_some() {
            persist::reachable(child.node, reachable.as_ref(), batch);
        }
        out.push(Effect::Reachable(child.node, reachable));
    }

    /// A child's link lost its slot.
    pub(super) fn displaced(&mut self, now: Now, node: NodeId, lease: Lease, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get_mut(&node) else { return };
        link.poll = true;
        self.directory.lease(node, lease, link.wakeable, now.node);
        out.push(Effect::Sleeps(node));
    }

    /// A device goes off by its own word. Its link, if there still is one, has nobody at its other end.
    pub(super) fn goes_off(&mut self, now: Now, node: NodeId, key: AttachmentKey, out: &mut Vec<Effect>) {
        if !self.directory.goes_off(node, key, now.node) {
            return;
        }
        if let Some(link) = self.links.remove(&node) {
            self.recall_without(node);
            self.renew(node);
            self.ledger.child_gone(node, &[node]);
            out.push(Effect::DropChild(node, link.session));
            out.push(Effect::FactsChanged);
        }
    }

    /// What waited before the start waits still: those that sleep may be woken for it.
    pub(super) fn wake_after_start(&mut self, now: Now, out: &mut Vec<Effect>) {
        let recovered = std::mem::take(&mut self.sleepers.recovered);
        let wanted: Vec<NodeId> = self.ledger.devices().filter(|device| recovered.contains_key(device)).collect();
        if !wanted.is_empty() {
            self.offer(now, Some(&wanted), out);
        }
    }

    /// A poll ends when the child is done, what it was offered is acknowledged, and nothing of it waits for the disk.
    pub(super) fn end_polls(&mut self, out: &mut Vec<Effect>) {
        if !self.waiting.is_empty() {
            return;
        }
        let done: Vec<(NodeId, u64)> =
            self.links.iter().filter(|(_, l)| l.poll && l.done).map(|(n, l)| (*n, l.session)).collect();
        for (child, session) in done {
            if !self.ledger.is_offered(&self.directory.below(child)) {
                out.push(Effect::GoodbyeChild(child, session, Goodbye::Done));
            }
        }
    }
}
