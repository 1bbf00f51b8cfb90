//! Who may speak for whom (pure; DESIGN 6, RLY-9): a relay for the devices that say, each with its own key, that they
//! attached themselves to it, or to a relay below it; for what a device wrote before it attached itself elsewhere.
//!
//! Nothing is kept on disk: a relay shows the receipts anew on each link, with the first records that need them.

use super::streams::Streams;
use crate::store::NodeRow;
use branchline_protocol::{
    chain::Position,
    hash::Hash,
    id::{AttachmentKey, NodeId, TenantId},
    order::{Envelope, PublicKey},
    receipt::{RECEIPTS_MAX, Receipt, ReceiptFault},
    record::StreamId,
    time::Millis,
    wire::DEPTH_MAX,
};
use std::collections::BTreeMap;

/// Parents of one node whose receipts are remembered; the oldest attachment gives way.
const PARENTS_MAX: usize = 8;
/// Heads of one node that wait for their records; the oldest gives way.
const AHEAD_MAX: usize = 64;
/// Streams of one node of which it is remembered who brought them.
const BROUGHT_MAX: usize = 16;
/// Milliseconds after which the head of records that a relay brought is missing, if more come without one: a device signs
/// every five minutes, and what waits on the way comes in its order.
pub const HEAD_MISSING_MS: i64 = 900_000;

/// One attachment of a node.
struct Held {
    key: AttachmentKey,
    /// Of the envelope: the same one again costs no signature check.
    digest: Hash,
    /// By stream of the node, sorted: the last number written before.
    heads: Vec<(StreamId, u64)>,
    complete: bool,
}

impl Held {
    /// The last number of a stream that was written before this attachment; `None`: it does not say.
    fn head(&self, stream: &StreamId) -> Option<u64> {
        match self.heads.binary_search_by_key(stream, |(of, _)| *of) {
            Ok(at) => Some(self.heads[at].1),
            Err(_) => self.complete.then_some(0),
        }
    }
}

#[derive(Default)]
struct Known {
    key: Option<PublicKey>,
    /// By parent, sorted: nearly always one, for which a tree would hold room for eleven.
    parents: Vec<(NodeId, Held)>,
    /// Heads that the node signed and that the server has not come to, sorted; nearly always none.
    ahead: Vec<(StreamId, u64, Hash)>,
    /// Streams that relays brought, latest last.
    brought: Vec<Brought>,
}

/// A stream that comes by relays.
struct Brought {
    stream: StreamId,
    /// Who brought its newest records.
    by: NodeId,
    /// When the first of its records came that no head covers.
    unsigned: Option<Millis>,
}

impl Known {
    fn parent(&self, parent: NodeId) -> Option<&Held> {
        let at = self.parents.binary_search_by_key(&parent, |(of, _)| *of).ok()?;
        Some(&self.parents[at].1)
    }

    fn attached(&mut self, parent: NodeId, held: Held) {
        match self.parents.binary_search_by_key(&parent, |(of, _)| *of) {
            Ok(at) => self.parents[at].1 = held,
            Err(at) => {
                self.parents.reserve_exact(1);
                self.parents.insert(at, (parent, held));
            }
        }
        if self.parents.len() > PARENTS_MAX
            && let Some(oldest) = (0..self.parents.len()).min_by_key(|at| self.parents[*at].1.key)
        {
            self.parents.remove(oldest);
        }
    }

    fn expect(&mut self, head: (StreamId, u64, Hash)) {
        if let Err(at) = self.ahead.binary_search(&head) {
            self.ahead.insert(at, head);
        }
    }

    /// Everything that came of a stream is signed.
    fn signed(&mut self, stream: &StreamId) {
        if let Some(brought) = self.brought.iter_mut().find(|brought| brought.stream == *stream) {
            brought.unsigned = None;
        }
    }
}

/// What a stream turned out to be other than its node said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The stream.
    pub stream: StreamId,
    /// The number up to which the node signed it.
    pub number: u64,
}

/// A receipt that does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The node it names, if it can be read.
    pub of: Option<NodeId>,
    /// What is wrong with it.
    pub fault: ReceiptFault,
}

/// One tenant's.
#[derive(Default)]
pub struct Receipts {
    nodes: BTreeMap<NodeId, Box<Known>>,
    verified: u64,
}

impl Receipts {
    /// Receipts a child showed with its records. Those that are known, or older than what is known of the same parent,
    /// cost nothing; each other one is verified once. Answers the streams that are not what a node signed, and the first
    /// receipt that is nobody's, with the node it names.
    pub fn take(
        &mut self,
        tenant: &TenantId,
        rows: &BTreeMap<NodeId, Box<NodeRow>>,
        streams: &Streams,
        receipts: &[Envelope],
    ) -> (Vec<Mismatch>, Option<Refused>) {
        let (mut mismatches, mut refused) = (Vec::new(), None);
        for envelope in receipts.iter().take(RECEIPTS_MAX) {
            match self.open(tenant, rows, envelope) {
                Ok(Some(receipt)) => mismatches.extend(self.hold(receipt, Hash::of(&envelope.payload), streams)),
                Ok(None) => {}
                Err(fault) => _ = refused.get_or_insert(fault),
            }
        }
        (mismatches, refused)
    }

    /// A receipt that says something new.
    fn open(
        &mut self,
        tenant: &TenantId,
        rows: &BTreeMap<NodeId, Box<NodeRow>>,
        envelope: &Envelope,
    ) -> Result<Option<Receipt>, Refused> {
        let said = Receipt::read(envelope).map_err(|fault| Refused { of: None, fault })?;
        let refused = |fault| Refused { of: Some(said.node), fault };
        let held = self.nodes.get(&said.node).and_then(|known| known.parent(said.parent));
        if held.is_some_and(|held| held.digest == Hash::of(&envelope.payload) || held.key >= said.attachment_key()) {
            return Ok(None);
        }
        let row = rows.get(&said.node).filter(|row| row.revoked_at.is_none() && said.tenant == *tenant);
        let key_hash = row.map(|row| row.key_hash).ok_or(ReceiptFault::OtherKey).map_err(refused)?;
        self.verified += 1;
        tracing::debug!(node = %said.node, parent = %said.parent, verified = self.verified, "a new receipt");
        Receipt::open(envelope, key_hash).map(Some).map_err(refused)
    }

    /// The receipt a child of this server greeted with; it was verified then.
    pub fn attached(&mut self, envelope: &Envelope, streams: &Streams) -> Vec<Mismatch> {
        let Ok(receipt) = Receipt::read(envelope) else { return Vec::new() };
        self.hold(receipt, Hash::of(&envelope.payload), streams)
    }

    fn hold(&mut self, receipt: Receipt, digest: Hash, streams: &Streams) -> Vec<Mismatch> {
        let key = receipt.attachment_key();
        let node = receipt.node;
        let known = self.nodes.entry(node).or_default();
        known.key = Some(receipt.key);
        let mut heads: Vec<_> = receipt.heads.iter().map(|head| (head.stream(node), head.number)).collect();
        heads.sort();
        known.attached(receipt.parent, Held { key, digest, heads, complete: receipt.complete });
        let mut mismatches = Vec::new();
        for head in receipt.heads.iter().filter(|head| head.number > 0) {
            let stream = head.stream(node);
            match streams.get(&stream) {
                Some(at) if at.upto == head.number => {
                    if at.head != head.hash {
                        mismatches.push(Mismatch { stream, number: head.number });
                    }
                    known.signed(&stream);
                }
                // Only the newest hash is kept: what is past cannot be compared, and was signed again later.
                Some(at) if at.upto > head.number => {}
                _ => known.expect((stream, head.number, head.hash)),
            }
        }
        known.ahead.drain(..known.ahead.len().saturating_sub(AHEAD_MAX));
        mismatches
    }

    /// A stream has come to this position: the heads signed up to there are compared and let go.
    pub fn reached(&mut self, stream: &StreamId, at: Position) -> Option<Mismatch> {
        let ahead = &mut self.nodes.get_mut(&stream.node)?.ahead;
        let from = ahead.partition_point(|(of, ..)| of < stream);
        let to = ahead.partition_point(|(of, number, _)| (of, *number) <= (stream, at.upto));
        // One within a gap is not to be compared.
        let found = ahead.drain(from..to).rfind(|(_, number, hash)| *number == at.upto && *hash != at.head);
        if ahead.is_empty() {
            *ahead = Vec::new();
        }
        found.map(|(_, number, _)| Mismatch { stream: *stream, number })
    }

    /// The last number of a stream that this child may bring; `None`: it does not speak for the stream's node.
    pub fn limit(&self, child: NodeId, stream: &StreamId) -> Option<u64> {
        let known = self.nodes.get(&stream.node)?;
        let through = |parent: &NodeId| *parent == child || self.is_below(*parent, child, DEPTH_MAX);
        let ways = known.parents.iter().filter(|(_, held)| held.key.epoch >= stream.epoch);
        let open = ways.filter(|(parent, _)| through(parent)).map(|(parent, held)| {
            // What it wrote after it had gone elsewhere does not come this way.
            let later = known
                .parents
                .iter()
                .filter(|(other, newer)| other != parent && newer.key.epoch == held.key.epoch && newer.key > held.key);
            later.filter_map(|(_, newer)| newer.head(stream)).min().unwrap_or(u64::MAX)
        });
        open.max()
    }

    /// The newest attachment that a node signed, and the parent it was to.
    pub fn newest(&self, node: NodeId) -> Option<(AttachmentKey, NodeId)> {
        let held = self.nodes.get(&node)?.parents.iter().map(|(parent, held)| (held.key, *parent));
        held.max()
    }

    /// Whether a node has signed an attachment that is as new: a link of this one is of a disk that was put back.
    pub fn is_stale(&self, node: NodeId, key: AttachmentKey) -> bool {
        self.newest(node).is_some_and(|(newest, _)| newest >= key)
    }

    /// Whether a relay said that it is attached to this child, or to a relay that is below it.
    fn is_below(&self, relay: NodeId, child: NodeId, depth: usize) -> bool {
        let Some(known) = self.nodes.get(&relay).filter(|_| depth > 0) else { return false };
        known.parents.iter().any(|(parent, _)| *parent == child || self.is_below(*parent, child, depth - 1))
    }

    /// The key with which a node signs, if it was shown.
    pub fn key_of(&self, node: NodeId) -> Option<PublicKey> {
        self.nodes.get(&node)?.key
    }

    /// A relay brought new records of a stream: whether a head was among them, and whether records follow the last one.
    /// Answers whether a head is missing.
    pub fn came(&mut self, now: Millis, stream: &StreamId, by: NodeId, head: bool, unsigned: bool) -> bool {
        let Some(known) = self.nodes.get_mut(&stream.node) else { return false };
        let at = known.brought.iter().position(|brought| brought.stream == *stream);
        let mut brought = match at {
            Some(at) => known.brought.remove(at),
            None => Brought { stream: *stream, by, unsigned: None },
        };
        let late = |since: Millis| now.0.saturating_sub(since.0) > HEAD_MISSING_MS;
        let missing = !head && unsigned && brought.unsigned.is_some_and(late);
        if head || missing {
            brought.unsigned = None;
        }
        if unsigned {
            brought.unsigned.get_or_insert(now);
        }
        brought.by = by;
        if known.brought.is_empty() {
            known.brought.reserve_exact(1);
        }
        known.brought.push(brought);
        let over = known.brought.len().saturating_sub(BROUGHT_MAX);
        known.brought.drain(..over);
        missing
    }

    /// A stream's position is forgotten: what comes of it from now on is new, and so is the time for which it is unsigned.
    pub fn gone(&mut self, stream: &StreamId) {
        if let Some(known) = self.nodes.get_mut(&stream.node) {
            known.brought.retain(|brought| brought.stream != *stream);
        }
    }

    /// The relay that brought a stream's newest records, if one did.
    pub fn bringer(&self, stream: &StreamId) -> Option<NodeId> {
        let known = self.nodes.get(&stream.node)?;
        known.brought.iter().find(|brought| brought.stream == *stream).map(|brought| brought.by)
    }

    /// Whom a node said it was attached to.
    pub fn parents_of(&self, node: NodeId) -> impl Iterator<Item = NodeId> {
        self.nodes.get(&node).into_iter().flat_map(|known| known.parents.iter().map(|(parent, _)| *parent))
    }

    /// A node is gone for good.
    pub fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// How many signatures of receipts were verified.
    #[cfg(test)]
    pub fn verified(&self) -> u64 {
        self.verified
    }
}
