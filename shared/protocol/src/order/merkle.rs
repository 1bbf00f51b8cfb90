//! The Merkle tree over an order's targets: one signature for all of them, and for each child of a relay only the
//! leaves below it.
//!
//! Leaf = H(0, tenant, order number, device, epoch), node = H(1, left, right), root = H(2, leaf count, top node), each
//! part preceded by its length. An odd node at the end of a level goes up unchanged: it is never paired with a copy of
//! itself, and because the root binds the leaf count there is only one shape it can be the root of.
//!
//! A proof is climbed level by level. Each level is one row of nodes in order of their index; a row holds whole pairs:
//!
//! ```text
//! row 2                 [0 .............. 1]
//! row 1      [0 ..... 1]          [2 ..... 3]      position: where the computed nodes stand in their row
//! row 0   [0 1]    [2 3]       [4 5]               pair: which pair of the row a node belongs to;
//!                                                  pair j's parent is computed node j of the row above
//! ```

use crate::{
    hash::Hash,
    id::{Epoch, NodeId, OrderNumber, TenantId},
};
use serde::{Deserialize, Serialize};

/// Levels above the leaves of the largest tree a proof may speak of (DESIGN 3).
pub const PROOF_DEPTH_MAX: u32 = 32;

/// A leaf count is a `u32`, so a deeper tree cannot even be written down.
const _: () = assert!(depth(u32::MAX) == PROOF_DEPTH_MAX);

/// Which domain a hash belongs to, so that a leaf can never pass for a node or a node for a root.
const LEAF: [u8; 1] = [0];
const NODE: [u8; 1] = [1];
const ROOT: [u8; 1] = [2];

/// One target of an order: a device in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(NodeId, Epoch)", into = "(NodeId, Epoch)")]
pub struct Leaf {
    /// The agent's node id.
    pub device: NodeId,
    /// Its epoch when the order was issued; an agent of a later epoch does not run it.
    pub epoch: Epoch,
}

impl From<(NodeId, Epoch)> for Leaf {
    fn from((device, epoch): (NodeId, Epoch)) -> Leaf {
        Leaf { device, epoch }
    }
}

impl From<Leaf> for (NodeId, Epoch) {
    fn from(leaf: Leaf) -> (NodeId, Epoch) {
        (leaf.device, leaf.epoch)
    }
}

impl Leaf {
    /// The leaf's hash in the tree of this order.
    fn hash(&self, tenant: &TenantId, number: OrderNumber) -> Hash {
        Hash::of_parts(&[
            &LEAF,
            tenant.as_str().as_bytes(),
            &number.term.to_be_bytes(),
            &number.number.to_be_bytes(),
            self.device.bytes(),
            &self.epoch.to_be_bytes(),
        ])
    }
}

/// Why a proof proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// It names no leaf.
    #[error("the proof has no leaf")]
    Empty,
    /// Leaf indices do not rise strictly.
    #[error("leaf indices of the proof are not sorted or not unique")]
    Unsorted,
    /// A leaf lies outside the tree.
    #[error("leaf {index} of the proof is outside a tree of {leaf_count}")]
    OutOfRange {
        /// The leaf's index.
        index: u32,
        /// The tree's size.
        leaf_count: u32,
    },
    /// A hash on the way to the root is missing.
    #[error("the proof has too few siblings")]
    TooFewSiblings,
    /// Hashes are left over.
    #[error("the proof has too many siblings")]
    TooManySiblings,
    /// It leads to another root.
    #[error("the proof leads to another root")]
    WrongRoot,
}

/// The whole tree of one order, as the server holds it at issue: all levels, about two hashes per leaf.
#[derive(Clone, Debug)]
pub struct Tree {
    leaves: Vec<Leaf>,
    /// From the leaves' hashes to the single top node; empty for no leaves.
    levels: Vec<Vec<Hash>>,
    root: Hash,
}

impl Tree {
    /// Builds the tree over `leaves` in the order given: leaves that share a route should be neighbours, because
    /// neighbours share siblings.
    ///
    /// # Panics
    /// When there are more than `u32::MAX` leaves.
    pub fn build(tenant: &TenantId, number: OrderNumber, leaves: Vec<Leaf>) -> Tree {
        let leaf_count = u32::try_from(leaves.len()).expect("an order has fewer than 2^32 targets");
        let mut levels: Vec<Vec<Hash>> = Vec::new();
        let mut level: Vec<Hash> = leaves.iter().map(|leaf| leaf.hash(tenant, number)).collect();
        while level.len() > 1 {
            let above = level.chunks(2).map(|pair| if let [l, r] = pair { node(l, r) } else { pair[0] }).collect();
            levels.push(std::mem::replace(&mut level, above));
        }
        let root = root(leaf_count, level.first().copied().unwrap_or_default());
        levels.push(level);
        Tree { leaves, levels, root }
    }

    /// What the payload binds.
    pub fn root(&self) -> Hash {
        self.root
    }

    /// What the payload binds beside the root.
    pub fn leaf_count(&self) -> u32 {
        self.leaves.len() as u32
    }

    /// The leaves in the order given.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// The proof that the leaves at `indices` are in the tree.
    ///
    /// # Panics
    /// When `indices` do not rise strictly or one is outside the tree: they are the server's own, never a peer's.
    pub fn prove(&self, indices: &[u32]) -> MultiProof {
        assert!(indices.is_sorted_by(|a, b| a < b), "leaf indices rise strictly");
        let leaves = indices.iter().map(|&i| (i, self.leaves[i as usize])).collect();
        let mut siblings = Vec::new();
        let mut known = indices.to_vec();
        for level in &self.levels {
            for (k, &index) in known.iter().enumerate() {
                let sibling = index ^ 1;
                let held = (k > 0 && known[k - 1] == sibling) || known.get(k + 1) == Some(&sibling);
                if let (false, Some(hash)) = (held, level.get(sibling as usize)) {
                    siblings.push(*hash);
                }
            }
            known.iter_mut().for_each(|index| *index /= 2);
            known.dedup();
        }
        MultiProof { leaves, siblings }
    }
}

/// Shows that some leaves are among an order's targets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultiProof {
    /// Index in the tree and leaf, by rising index.
    pub leaves: Vec<(u32, Leaf)>,
    /// The hashes that cannot be computed from the leaves: level by level from the bottom, left to right.
    pub siblings: Vec<Hash>,
}

impl MultiProof {
    /// Whether all leaves are in the tree that `root` and `leaf_count` name. The work is bounded by the proof's own
    /// size times [`PROOF_DEPTH_MAX`].
    pub fn verify(
        &self,
        tenant: &TenantId,
        number: OrderNumber,
        root: Hash,
        leaf_count: u32,
    ) -> Result<(), ProofError> {
        let cutter = Cutter::new(self, tenant, number, leaf_count)?;
        if cutter.root() == root { Ok(()) } else { Err(ProofError::WrongRoot) }
    }

    /// The proof for those leaves that `keep` wants, as the server's tree would have made it. `None` when none is kept
    /// or the proof is not well formed. For many subsets of one proof make a [`Cutter`] once.
    pub fn cut(
        &self,
        tenant: &TenantId,
        number: OrderNumber,
        leaf_count: u32,
        keep: &dyn Fn(&Leaf) -> bool,
    ) -> Option<MultiProof> {
        let cutter = Cutter::new(self, tenant, number, leaf_count).ok()?;
        let kept = self.leaves.iter().enumerate().filter(|(_, (_, leaf))| keep(leaf));
        cutter.cut(&kept.map(|(position, _)| position).collect::<Vec<_>>())
    }

    /// Whether this device in this epoch is among the leaves.
    pub fn names(&self, device: NodeId, epoch: Epoch) -> bool {
        self.leaves.iter().any(|(_, leaf)| *leaf == Leaf { device, epoch })
    }
}

/// All nodes that a proof gives away, computed once, so that each subset costs only its own path to the root.
#[derive(Clone, Debug)]
pub struct Cutter {
    leaves: Vec<(u32, Leaf)>,
    rows: Vec<Row>,
    root: Hash,
}

/// What is known of one level: leaves or computed nodes with their siblings, by rising index.
#[derive(Clone, Debug, Default)]
struct Row {
    hashes: Vec<Hash>,
    /// For each hash the number of its pair; a promoted node is a pair by itself.
    pair: Vec<u32>,
    /// For each computed node its place in `hashes`.
    position: Vec<u32>,
}

impl Row {
    fn push(&mut self, hash: Hash, pair: usize) {
        self.hashes.push(hash);
        self.pair.push(pair as u32);
    }

    fn push_computed(&mut self, hash: Hash, pair: usize) {
        self.position.push(self.hashes.len() as u32);
        self.push(hash, pair);
    }

    /// The place of the other half of this node's pair.
    fn sibling(&self, place: u32) -> Option<u32> {
        let pair = |place: u32| self.pair.get(place as usize);
        let beside = [place.checked_sub(1), place.checked_add(1)];
        beside.into_iter().flatten().find(|&other| pair(other).is_some() && pair(other) == pair(place))
    }
}

impl Cutter {
    /// Climbs the proof. It says nothing yet about the root: compare [`Cutter::root`], or call [`MultiProof::verify`].
    pub fn new(
        proof: &MultiProof,
        tenant: &TenantId,
        number: OrderNumber,
        leaf_count: u32,
    ) -> Result<Cutter, ProofError> {
        let leaves = &proof.leaves;
        let last = leaves.last().ok_or(ProofError::Empty)?;
        if !leaves.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(ProofError::Unsorted);
        }
        if last.0 >= leaf_count {
            return Err(ProofError::OutOfRange { index: last.0, leaf_count });
        }
        let mut siblings = proof.siblings.iter().copied();
        let mut sibling = || siblings.next().ok_or(ProofError::TooFewSiblings);
        let mut rows = Vec::with_capacity(depth(leaf_count) as usize + 1);
        let mut known: Vec<(u32, Hash)> = leaves.iter().map(|(i, leaf)| (*i, leaf.hash(tenant, number))).collect();
        let mut size = leaf_count;
        while size > 1 {
            let mut row = Row::default();
            let mut above: Vec<(u32, Hash)> = Vec::with_capacity(known.len());
            let mut nodes = known.iter().copied().peekable();
            while let Some((index, hash)) = nodes.next() {
                let pair = above.len();
                let parent = if index % 2 == 1 {
                    let left = sibling()?;
                    row.push(left, pair);
                    row.push_computed(hash, pair);
                    node(&left, &hash)
                } else if let Some((_, right)) = nodes.next_if(|(next, _)| *next == index + 1) {
                    row.push_computed(hash, pair);
                    row.push_computed(right, pair);
                    node(&hash, &right)
                } else if index + 1 < size {
                    let right = sibling()?;
                    row.push_computed(hash, pair);
                    row.push(right, pair);
                    node(&hash, &right)
                } else {
                    row.push_computed(hash, pair);
                    hash
                };
                above.push((index / 2, parent));
            }
            rows.push(row);
            known = above;
            size = size.div_ceil(2);
        }
        if siblings.next().is_some() {
            return Err(ProofError::TooManySiblings);
        }
        let (_, top) = known[0];
        Ok(Cutter { leaves: leaves.clone(), rows, root: root(leaf_count, top) })
    }

    /// The root the proof leads to.
    pub fn root(&self) -> Hash {
        self.root
    }

    /// The proof's leaves; their positions are what [`Cutter::cut`] takes.
    pub fn leaves(&self) -> &[(u32, Leaf)] {
        &self.leaves
    }

    /// The proof for the leaves at these positions of [`Cutter::leaves`], in any order; a position that does not exist
    /// is no leaf. `None` when nothing is kept. Costs the depth of the tree for each leaf kept.
    pub fn cut(&self, positions: &[usize]) -> Option<MultiProof> {
        let mut kept: Vec<usize> = positions.iter().copied().filter(|&p| p < self.leaves.len()).collect();
        kept.sort_unstable();
        kept.dedup();
        if kept.is_empty() {
            return None;
        }
        let leaves = kept.iter().map(|&p| self.leaves[p]).collect();
        let mut siblings = Vec::new();
        // Numbers of computed nodes; those of row 0 are the leaves' positions.
        let mut computed: Vec<u32> = kept.into_iter().map(|p| p as u32).collect();
        for row in &self.rows {
            let places: Vec<u32> = computed.iter().map(|&number| row.position[number as usize]).collect();
            for (k, &place) in places.iter().enumerate() {
                let Some(other) = row.sibling(place) else { continue };
                let held = (k > 0 && places[k - 1] == other) || places.get(k + 1) == Some(&other);
                if !held {
                    siblings.push(row.hashes[other as usize]);
                }
            }
            computed = places.iter().map(|&place| row.pair[place as usize]).collect();
            computed.dedup();
        }
        Some(MultiProof { leaves, siblings })
    }
}

/// Levels above the leaves.
const fn depth(leaf_count: u32) -> u32 {
    if leaf_count < 2 { 0 } else { u32::BITS - (leaf_count - 1).leading_zeros() }
}

fn node(left: &Hash, right: &Hash) -> Hash {
    Hash::of_parts(&[&NODE, &left.0, &right.0])
}

fn root(leaf_count: u32, top: Hash) -> Hash {
    Hash::of_parts(&[&ROOT, &leaf_count.to_be_bytes(), &top.0])
}

#[cfg(test)]
#[path = "merkle_tests.rs"]
mod tests;
