//! Receipts of nodes below (DESIGN 6, RLY-9): what lets this relay speak for them. A node's receipts travel with the first
//! run of each of its streams on a link up, ahead of the records that need them; so no order between lanes matters, and
//! nothing is acknowledged twice. Those above judge them; of a node that attached itself here the key is known, and a
//! child relay that brings its records has to show a receipt of that key.

use super::{persist, state::RelayCore};
use branchline_node::{defects::Defects, store::Batch, uplink::spool::Spool};
use branchline_protocol::{
    hash::Hash,
    id::NodeId,
    order::Envelope,
    receipt::{RECEIPT_BYTES_MAX, RECEIPTS_MAX, Receipt},
    record::{Run, StreamId},
};
use std::collections::{BTreeMap, BTreeSet};

/// Children by which one node's records may come; one more takes the place of another.
const WAYS_MAX: usize = 4;

/// What one child showed for one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shown {
    receipts: Vec<Envelope>,
    /// Whether it is in a batch.
    kept: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Receipts {
    /// By node and the child that brings its records: the node's receipts, and those of relays between. Of a child itself
    /// the one it greeted with, which was verified.
    shown: BTreeMap<(NodeId, NodeId), Shown>,
    /// Streams whose receipts went up on this link.
    told: BTreeSet<StreamId>,
    /// Rows of nodes of which nothing is on its way, to be deleted.
    idle: BTreeSet<(NodeId, NodeId)>,
}

impl Receipts {
    /// Rows of the store; those of nodes without records here are let go.
    pub fn recover(rows: Vec<(NodeId, NodeId, Vec<Envelope>)>, spool: &Spool) -> Receipts {
        let needed: BTreeSet<NodeId> = rows.iter().map(|(node, _, _)| *node).filter(|n| spool.holds_of(*n)).collect();
        let ways: BTreeSet<NodeId> =
            rows.iter().filter(|(node, _, _)| needed.contains(node)).map(|(_, child, _)| *child).collect();
        let mut found = Receipts::default();
        for (node, child, receipts) in rows {
            if needed.contains(&node) || (node == child && ways.contains(&child)) {
                found.shown.insert((node, child), Shown { receipts, kept: true });
            } else {
                found.idle.insert((node, child));
            }
        }
        found
    }

    /// A child greeted with this receipt, which was verified.
    pub fn attached(&mut self, child: NodeId, receipt: Option<Envelope>) {
        let receipts: Vec<Envelope> = receipt.into_iter().collect();
        self.shown.insert((child, child), Shown { receipts, kept: false });
        // Nodes below it are spoken for by its receipt too.
        let below: BTreeSet<NodeId> = self.shown.keys().filter(|(_, by)| *by == child).map(|(node, _)| *node).collect();
        self.told.retain(|stream| !below.contains(&stream.node));
    }

    /// Everything that was shown for a node, as its run takes it up.
    fn of(&self, node: NodeId) -> Vec<Envelope> {
        let ways = self.shown.range((node, NodeId(uuid::Uuid::nil()))..).take_while(|((of, _), _)| *of == node);
        let mut all: Vec<Envelope> = Vec::new();
        for ((_, child), shown) in ways {
            let own = self.shown.get(&(*child, *child)).filter(|_| *child != node);
            for receipt in shown.receipts.iter().chain(own.iter().flat_map(|own| &own.receipts)) {
                if !all.contains(receipt) {
                    all.push(receipt.clone());
                }
            }
        }
        all.truncate(RECEIPTS_MAX);
        all
    }

    /// Child relays that have brought records of a node.
    fn relays_of(&self, node: NodeId) -> impl Iterator<Item = NodeId> {
        let ways = self.shown.range((node, NodeId(uuid::Uuid::nil()))..).take_while(move |((of, _), _)| *of == node);
        ways.map(|((_, child), _)| *child).filter(move |child| *child != node)
    }

    /// Children that showed something for a node: itself, and relays that have brought records of it.
    pub fn ways_of(&self, node: NodeId) -> Vec<NodeId> {
        let ways = self.shown.range((node, NodeId(uuid::Uuid::nil()))..).take_while(|((of, _), _)| *of == node);
        ways.map(|((_, child), _)| *child).collect()
    }

    /// A stream begins once more: its next run needs what lets this relay bring it.
    pub fn untold(&mut self, stream: &StreamId) {
        self.told.remove(stream);
    }

    /// A new link up: whoever is above may know none of them.
    pub fn link_up(&mut self) {
        self.told.clear();
    }

    /// Adds to runs that go up what their streams need and were not sent on this link.
    pub fn accompany(&mut self, me: NodeId, runs: &mut [Run]) {
        for run in runs.iter_mut().filter(|run| run.stream.node != me) {
            if self.told.insert(run.stream) {
                run.receipts = self.of(run.stream.node);
            }
        }
    }

    /// Rows that nobody needs any more go with this batch.
    pub fn sweep(&mut self, batch: &mut Batch) {
        std::mem::take(&mut self.idle).into_iter().for_each(|(node, child)| persist::receipts_gone(node, child, batch));
    }

    /// What a child shows with a run of a node's stream; durable with the records. `false`: it is not that node's word,
    /// and nothing of the run counts.
    pub fn brought(&mut self, node: NodeId, child: NodeId, receipts: Vec<Envelope>, batch: &mut Batch) -> bool {
        if node != child {
            if !receipts.is_empty() && self.shown.get(&(node, child)).is_none_or(|shown| shown.receipts != receipts) {
                if !self.is_plausible(node, &receipts) {
                    return false;
                }
                self.show(node, child, receipts, batch);
            }
            if self.key_of(node).is_some() && !self.shown.contains_key(&(node, child)) {
                return false;
            }
        }
        for way in [(node, child), (child, child)] {
            if let Some(shown) = self.shown.get_mut(&way).filter(|shown| !shown.kept) {
                shown.kept = true;
                self.idle.remove(&way);
                persist::receipts(way.0, way.1, &shown.receipts, batch);
            }
        }
        true
    }

    fn show(&mut self, node: NodeId, child: NodeId, receipts: Vec<Envelope>, batch: &mut Batch) {
        self.shown.insert((node, child), Shown { receipts, kept: false });
        self.told.retain(|stream| stream.node != node);
        let ways: Vec<NodeId> =
            self.shown.keys().filter(|(of, _)| *of == node).map(|(_, by)| *by).filter(|by| *by != node).collect();
        if ways.len() > WAYS_MAX
            && let Some(other) = ways.into_iter().find(|by| *by != child)
        {
            self.shown.remove(&(node, other));
            persist::receipts_gone(node, other, batch);
        }
    }

    /// The key of a node that attached itself here.
    fn key_of(&self, node: NodeId) -> Option<Hash> {
        let own = self.shown.get(&(node, node))?.receipts.first()?;
        Receipt::read(own).ok().map(|receipt| Hash::of(&receipt.key.0))
    }

    /// Whether these are within bounds and, as far as the node's key is known here, the node's.
    fn is_plausible(&self, node: NodeId, receipts: &[Envelope]) -> bool {
        if receipts.len() > RECEIPTS_MAX || receipts.iter().any(|r| r.payload.len() > RECEIPT_BYTES_MAX) {
            return false;
        }
        let Some(key) = self.key_of(node) else { return true };
        let mut own = receipts.iter().filter(|r| Receipt::read(r).is_ok_and(|r| r.node == node)).peekable();
        own.peek().is_some() && own.all(|receipt| Receipt::open(receipt, key).is_ok())
    }
}

impl<D: Defects> RelayCore<D> {
    /// Child relays with a live link that have brought records of a node.
    pub(super) fn brought_by(&self, node: NodeId) -> Vec<(NodeId, u64)> {
        self.receipts.relays_of(node).filter_map(|c| self.links.get(&c).map(|link| (c, link.session))).collect()
    }

    /// What lets this parent, and those above it, bring this relay's own records.
    pub(super) fn receipt(&self, parent: NodeId) -> Receipt {
        let (heads, complete) = self.spool.own_heads();
        Receipt {
            tenant: self.me.tenant.clone(),
            node: self.me.node,
            key: self.me.signer.public(),
            epoch: self.me.epoch,
            attachment: self.attachment,
            parent,
            heads,
            complete,
        }
    }
}
