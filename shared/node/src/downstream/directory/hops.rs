//! By which child each node is reached: whom one child answers for is asked with its every coming and going, and there may
//! be a hundred thousand nodes that it does not.

use super::Directory;
use branchline_protocol::id::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// The nodes by the first hop of their way.
#[derive(Default)]
pub(super) struct Hops {
    /// Nodes that hang here themselves.
    children: BTreeSet<NodeId>,
    /// Nodes behind a child.
    behind: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

impl Hops {
    /// A node's way changed, from what was known of it to what is.
    pub fn moved(&mut self, node: NodeId, from: Option<&[NodeId]>, to: Option<&[NodeId]>) {
        let (from, to) = (from.map(<[NodeId]>::first), to.map(<[NodeId]>::first));
        if from == to {
            return;
        }
        match from {
            Some(Some(hop)) => {
                let empty = self.behind.get_mut(hop).is_some_and(|behind| behind.remove(&node) && behind.is_empty());
                if empty {
                    self.behind.remove(hop);
                }
            }
            Some(None) => _ = self.children.remove(&node),
            None => {}
        }
        match to {
            Some(Some(hop)) => _ = self.behind.entry(*hop).or_default().insert(node),
            Some(None) => _ = self.children.insert(node),
            None => {}
        }
    }
}

impl Directory {
    /// Nodes that hang here, whether their links live or not.
    pub fn children(&self) -> impl Iterator<Item = NodeId> {
        self.hops.children.iter().copied()
    }

    /// Nodes behind this child, without itself.
    pub(super) fn behind(&self, child: NodeId) -> impl Iterator<Item = NodeId> {
        self.hops.behind.get(&child).into_iter().flatten().copied()
    }

    /// Nodes reached by this child, itself included if it is known, by their ids.
    pub fn below(&self, child: NodeId) -> Vec<NodeId> {
        let mut below: Vec<NodeId> = self.behind(child).collect();
        if self.nodes.contains_key(&child)
            && let Err(at) = below.binary_search(&child)
        {
            below.insert(at, child);
        }
        below
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{attach, node, told},
        *,
    };
    use branchline_protocol::{id::Role, time::Millis, wire::Reach};

    /// What the index answers is what a look at every node would find.
    fn check(d: &Directory, children: &[u128]) {
        for child in children.iter().map(|n| node(*n)) {
            let all = d.all().filter(|(n, e)| *n == child || e.via.first() == Some(&child));
            assert_eq!(d.below(child), all.map(|(n, _)| n).collect::<Vec<_>>(), "{child}");
        }
        let here: Vec<NodeId> = d.all().filter(|(_, e)| e.via.is_empty()).map(|(n, _)| n).collect();
        assert_eq!(d.children().collect::<Vec<_>>(), here);
    }

    #[test]
    fn whom_a_child_answers_for_follows_every_move() {
        let mut d = Directory::default();
        d.attach(attach(2, Role::Relay, 1, 10));
        d.attach(attach(5, Role::Relay, 1, 11));
        d.attach(attach(7, Role::Agent, 1, 12));
        d.presence(node(5), true, vec![told(1, 1, vec![]), told(8, 1, vec![]), told(9, 1, vec![node(8)])]);
        assert_eq!(d.below(node(5)), [1, 5, 8, 9].map(node), "itself stands among them by its id");
        assert_eq!(d.below(node(8)), [node(8)], "who is behind another child is nobody's first hop");
        check(&d, &[2, 5, 7, 8, 99]);
        d.presence(node(2), false, vec![told(7, 2, vec![]), told(8, 2, vec![])]);
        assert_eq!((d.below(node(2)), d.below(node(5))), ([2, 7, 8].map(node).into(), [1, 5, 9].map(node).into()));
        check(&d, &[2, 5, 7, 8]);
        d.attach(attach(9, Role::Agent, 2, 13));
        d.detach(node(5), 11, Reach::GoneTimeout, Millis(3));
        check(&d, &[2, 5, 9]);
        d.forget(node(1));
        d.forget(node(7));
        d.forget(node(99));
        assert_eq!((d.below(node(1)), d.below(node(5))), (vec![], vec![node(5)]));
        check(&d, &[1, 2, 5, 7]);
        assert!(d.hops.behind.keys().eq([&node(2)]), "nothing stays of a child without anybody behind it");
    }
}
