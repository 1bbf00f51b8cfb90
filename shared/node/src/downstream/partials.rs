//! Beginnings of messages that lost links cut off (pure): kept until their child's next link, so that a large inventory
//! passes a bad line piece by piece. Soft: whatever is dropped here is sent again from its beginning.

use crate::link::lanes::Partial;
use branchline_protocol::id::NodeId;
use std::collections::BTreeMap;

/// Shorter ones are not worth a word.
pub const PARTIAL_BYTES_MIN: usize = 64 << 10;
/// Bytes kept of all children together: four of the largest messages. The oldest go first.
pub const PARTIALS_BYTES_MAX: usize = 64 << 20;

/// See the module.
#[derive(Default)]
pub struct Partials {
    of_node: BTreeMap<NodeId, (u64, Vec<Partial>)>,
    bytes: usize,
    newest: u64,
}

impl Partials {
    /// A child's link ended.
    pub fn keep(&mut self, node: NodeId, mut partials: Vec<Partial>) {
        partials.retain(|p| p.bytes.len() >= PARTIAL_BYTES_MIN);
        if partials.is_empty() {
            return;
        }
        self.take(node);
        self.newest += 1;
        self.bytes += size(&partials);
        self.of_node.insert(node, (self.newest, partials));
        while self.bytes > PARTIALS_BYTES_MAX {
            let oldest = self.of_node.iter().min_by_key(|(_, (age, _))| *age).map(|(node, _)| *node);
            let Some(oldest) = oldest else { return };
            self.take(oldest);
        }
    }

    /// A child's next link has them from here on.
    pub fn take(&mut self, node: NodeId) -> Vec<Partial> {
        let taken = self.of_node.remove(&node).map(|(_, partials)| partials).unwrap_or_default();
        self.bytes -= size(&taken);
        taken
    }
}

fn size(partials: &[Partial]) -> usize {
    partials.iter().map(|p| p.bytes.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_protocol::record::Lane;
    use bytes::Bytes;
    use uuid::Uuid;

    fn node(n: u128) -> NodeId {
        NodeId(Uuid::from_u128(n))
    }

    fn partial(length: usize) -> Vec<Partial> {
        vec![Partial { lane: Lane::Inventory, total: u32::MAX, bytes: Bytes::from(vec![0; length]) }]
    }

    #[test]
    fn what_is_kept_is_taken_once_and_short_ones_are_not_kept() {
        let mut partials = Partials::default();
        partials.keep(node(1), partial(PARTIAL_BYTES_MIN - 1));
        assert!(partials.take(node(1)).is_empty());
        partials.keep(node(1), partial(PARTIAL_BYTES_MIN));
        partials.keep(node(2), partial(PARTIAL_BYTES_MIN + 2));
        assert_eq!(partials.take(node(1)), partial(PARTIAL_BYTES_MIN));
        assert!(partials.take(node(1)).is_empty());
        assert_eq!(partials.take(node(2)).len(), 1);
        assert_eq!(partials.bytes, 0);
    }

    #[test]
    fn at_the_bound_all_are_kept_and_one_byte_more_drops_the_oldest() {
        let mut partials = Partials::default();
        let quarter = PARTIALS_BYTES_MAX / 4;
        (1..=4).for_each(|n| partials.keep(node(n), partial(quarter)));
        assert_eq!((partials.of_node.len(), partials.bytes), (4, PARTIALS_BYTES_MAX));
        partials.keep(node(1), partial(quarter));
        assert_eq!(partials.of_node.len(), 4, "a child's newer ones replace its older");
        partials.keep(node(5), partial(PARTIAL_BYTES_MIN));
        assert!(partials.take(node(2)).is_empty(), "the oldest");
        assert_eq!(partials.of_node.len(), 4);
    }
}
