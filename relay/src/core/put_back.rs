//! Disks that were put back to an older state (DESIGN 5): this relay's own, and those of devices below it.
//!
//! Of its own: its parents offer it anew what it may have lost (RLY-8); what it handed on since is below and not known
//! here. Of a device: the server's list says in which epoch it goes on; a device of an earlier one is handed that list and
//! nothing else, and what it was ordered in an earlier epoch it is asked for again.

use super::{
    Effect, persist,
    state::{After, RelayCore},
};
use branchline_node::{
    defects::Defects,
    downstream::Child,
    store::{Batch, Table},
};
use branchline_protocol::{
    document::Kind,
    id::{AttachmentKey, Epoch, NodeId, OrderNumber},
    order::OrderMessage,
    record::Lane,
    refusal::{Refusal, STALE_ATTACHMENT},
    time::Now,
    wire::Message,
};
use std::collections::BTreeSet;

/// Doublings of the step by which an attachment number catches up: about a million links in twenty refusals.
const DOUBLINGS_MAX: u32 = 20;

impl<D: Defects> RelayCore<D> {
    /// A parent knows a newer attachment than this relay has ever made as far as its disk knows. The number is this
    /// relay's own to raise; it catches up in growing steps, each durable with the next greeting.
    pub(super) fn overtaken(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.attachment = self.attachment.saturating_add(1 << self.overtaken.min(DOUBLINGS_MAX));
        self.overtaken = self.overtaken.saturating_add(1);
        self.put_back(now, "a parent knows newer links of this relay than its disk does", out);
    }

    /// Each device may have its orders from the state that is gone: none of them is given back on this relay's own word
    /// any more.
    pub(super) fn put_back(&mut self, now: Now, why: &str, out: &mut Vec<Effect>) {
        let mut batch = Batch::new();
        let changes = self.ledger.doubted();
        changes.iter().for_each(|change| persist::row(change, &mut batch));
        // To the parent it is another disk: of what this relay held nobody but the devices can say what became of it. An
        // opening has one number only, and finds this out on its first links.
        let renumbered = self.disk.0 != self.spool.incarnation();
        if renumbered {
            self.disk.0 = self.spool.incarnation();
            batch.put(Table::Meta, persist::DISK.to_vec(), self.disk.0.to_be_bytes().to_vec());
        }
        let disk = Message::Disk(self.disk.0, self.age.next());
        let tell = (renumbered && self.parent_up).then(|| Effect::ToParent(Lane::Control, disk));
        self.commit(now, batch, After { effects: tell.into_iter().collect(), ..After::default() }, out);
        self.alert_rarely(now, "store_rolled_back", why.into(), out);
    }

    /// Whether a child greeted in an epoch that it has left.
    pub(super) fn is_past(&self, child: &Child) -> bool {
        self.shelf.revocations().epoch_of(child.node, child.key.epoch) > child.key.epoch
    }

    /// Hands such a child the list that says so. Nothing else goes to it and nothing is heard of it on this link.
    pub(super) fn hand_list(&self, child: &Child, out: &mut Vec<Effect>) {
        if let Some((_, envelope)) = self.shelf.get(Kind::Revocations) {
            let message = Message::Document(Kind::Revocations, envelope.clone());
            out.push(Effect::ToChild(child.node, child.session, Lane::Control, message));
        }
    }

    /// Devices of an order that have left the epoch it binds.
    pub(super) fn past(&self, message: &OrderMessage) -> BTreeSet<NodeId> {
        let list = self.shelf.revocations();
        let leaves = message.proof.leaves.iter().map(|(_, leaf)| leaf);
        leaves.filter(|leaf| list.epoch_of(leaf.device, leaf.epoch) > leaf.epoch).map(|leaf| leaf.device).collect()
    }

    /// Devices that go on in another epoch are asked again for what they were ordered in earlier ones. Answers them.
    pub(super) fn ask_again(&mut self, batch: &mut Batch) -> Vec<NodeId> {
        let raised = self.shelf.revocations().raised.clone();
        for (device, epoch) in &raised {
            let changes = self.ledger.raised(*device, *epoch, true);
            changes.iter().for_each(|change| persist::row(change, batch));
        }
        raised.into_iter().map(|(device, _)| device).collect()
    }

    /// The parent knows what a device has said it has. A child that is away, as one that polls mostly is, hears it when it
    /// comes; of each child the newest word is kept.
    pub(super) fn handed(&mut self, device: NodeId, epoch: Epoch, orders: Vec<OrderNumber>, out: &mut Vec<Effect>) {
        if let Some((child, session)) = self.hop(device) {
            out.push(Effect::ToChild(child, session, Lane::Control, Message::Handed(device, epoch, orders)));
        } else if self.directory.next_hop(device) == Some(device) {
            self.reminders.insert(device, (epoch, orders));
        }
    }

    /// Tells a device that came what it is said to have: what its disk does not know of that, it has forgotten.
    pub(super) fn remind(&mut self, child: &Child, out: &mut Vec<Effect>) {
        let mut orders = self.ledger.handed(child.node);
        if let Some((epoch, more)) = self.reminders.remove(&child.node)
            && epoch == child.key.epoch
        {
            orders.extend(more);
        }
        if !orders.is_empty() {
            let message = Message::Handed(child.node, child.key.epoch, orders);
            out.push(Effect::ToChild(child.node, child.session, Lane::Control, message));
        }
    }

    /// A link of a child was refused as no newer one. Of a number that was given twice the next one counts as known too, so
    /// that a refusal that is lost is said again.
    pub(super) fn refused_as_stale(&mut self, now: Now, node: NodeId, key: AttachmentKey, out: &mut Vec<Effect>) {
        let Some(next) = self.directory.refused(node, key) else { return };
        let mut batch = Batch::new();
        persist::attached(node, next, &mut batch);
        self.commit(now, batch, After::default(), out);
    }

    /// The parent knows a newer attachment of a node below than this relay told of. Of a child it is kept, so that no later
    /// link passes for a newer one, whatever becomes of the answer. A link of that very number is the one that is meant: what
    /// its node signed on it was there before this relay's word.
    pub(super) fn newer(&mut self, now: Now, node: NodeId, key: AttachmentKey, release: Effect, out: &mut Vec<Effect>) {
        let known = self.directory.get(node).filter(|known| known.key.epoch == key.epoch && known.key < key);
        let hop = known.map(|known| known.via.first().copied().unwrap_or(node));
        let (mut batch, mut after) = (Batch::new(), After::default());
        if let Some(hop) = hop {
            // The relay between may be away: it hears so when it tells of the node again. Of a child the disk knows.
            let kept = self.directory.keep_told(node, key);
            if hop == node {
                persist::attached(node, kept, &mut batch);
            }
            self.overtake(hop, node, key, &mut after.effects);
        }
        after.effects.push(release);
        self.commit(now, batch, after, out);
    }

    /// Ends the link of a node that is not newer than this one, or has the relay between end it. A node that is where this
    /// link is learns that its disk was put back; of one that went elsewhere it was dead anyway.
    pub(super) fn overtake(&self, hop: NodeId, node: NodeId, key: AttachmentKey, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get(&hop) else { return };
        if hop == node {
            let refusal = Refusal::new(409, STALE_ATTACHMENT, "a newer attachment of this node is known elsewhere");
            out.push(Effect::RefuseChild(node, link.session, refusal));
        } else {
            out.push(Effect::ToChild(hop, link.session, Lane::Control, Message::Newer(node, key)));
        }
    }
}
