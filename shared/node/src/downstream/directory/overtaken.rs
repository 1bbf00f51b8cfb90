//! Links that are overtaken by what is known from elsewhere: of a node that moved they are dead; of one that is where such a
//! link is, the disk was put back to an older state (DESIGN 5).

use super::Directory;
use branchline_protocol::{
    id::{AttachmentKey, Epoch, NodeId},
    wire::{PresenceEntry, Reach},
};

/// Links in a row that may be refused because of numbers given twice.
pub const REFUSALS_MAX: u8 = 4;

impl Directory {
    /// Links below this node that are overtaken by what these entries of a child relay say, or the other way round: whom to
    /// tell (the child by which the overtaken link is reached, or its node itself), of whom, and what is known of it. A
    /// number that comes from two parents is two links, as a node never gives one twice: then the next number is told, for who
    /// has a link of the very number that it is told of has the link that is meant, and told of it late. What was told from above of a node
    /// counts each time that it is told of with less: whoever was to be told may have been away.
    pub fn overtaken(&self, relay: NodeId, entries: &[PresenceEntry]) -> Vec<(NodeId, NodeId, AttachmentKey)> {
        let away = |reach| matches!(reach, Reach::GoneShutdown | Reach::GoneTimeout | Reach::Awaited);
        let mut overtaken = Vec::new();
        for entry in entries.iter().filter(|entry| entry.node != relay) {
            let kept = self.kept.get(&entry.node).filter(|kept| kept.epoch == entry.key.epoch && **kept > entry.key);
            if let Some(kept) = kept.filter(|_| !away(entry.reach)) {
                overtaken.push((relay, entry.node, *kept));
                continue;
            }
            let Some(known) = self.nodes.get(&entry.node).filter(|known| known.key.epoch == entry.key.epoch) else {
                continue;
            };
            let told_by = entry.via.last().copied().unwrap_or(relay);
            let elsewhere = known.via.last() != Some(&told_by);
            if known.key > entry.key || (known.key == entry.key && elsewhere) {
                if !away(entry.reach) {
                    let twice = known.key == entry.key;
                    overtaken.push((relay, entry.node, if twice { known.key.next() } else { known.key }));
                }
            } else if elsewhere && !away(known.reach) {
                let hop = known.via.first().copied().unwrap_or(entry.node);
                overtaken.push((hop, entry.node, entry.key));
            }
        }
        overtaken
    }

    /// A child relay says how much is written on its disk, in this epoch.
    pub fn aged(&mut self, node: NodeId, epoch: Epoch, age: u64) {
        let known = self.ages.entry(node).or_insert((epoch, 0));
        if *known < (epoch, age) {
            *known = (epoch, age);
        }
    }

    /// Whether a child has told of a newer state of its disk than the one it greets from.
    pub fn has_met_newer(&self, node: NodeId, key: AttachmentKey, age: u64) -> bool {
        self.ages.get(&node).is_some_and(|(epoch, known)| *epoch == key.epoch && *known >= age)
    }

    /// Whether a child greets from an older state of its disk than it has told of. No link of it counts then before it has
    /// heard so: that one and the next are no newer ones, and whoever heard it leaves out a number.
    pub fn is_behind(&mut self, node: NodeId, key: AttachmentKey, age: u64) -> bool {
        let behind = self.has_met_newer(node, key, age);
        if behind {
            self.ages.remove(&node);
            self.keep(node, key.next());
        }
        behind
    }

    /// A link of a child was refused as no newer one. If its number is the newest that is known, it was given twice, which
    /// only an old disk does: the child hears so by that refusal, or, if it was lost, by the next one, for its next number
    /// counts as known from here on, above this node too if the child was here. Whoever heard it leaves out a number. An
    /// older number is a link that was overtaken on its way. After [`REFUSALS_MAX`] in a row nothing more is added: whoever
    /// never hears it must not knock for ever. Answers what is known from here on, if that is news.
    pub fn refused(&mut self, node: NodeId, key: AttachmentKey) -> Option<AttachmentKey> {
        let entry = self.nodes.get_mut(&node);
        let newest = self.kept.get(&node).copied().max(entry.as_ref().map(|known| known.key));
        let next = AttachmentKey { attachment: key.attachment.checked_add(1)?, ..key };
        let refusals = self.refusals.entry(node).or_default();
        if newest.is_some_and(|newest| newest > key) || *refusals == REFUSALS_MAX {
            return None;
        }
        *refusals += 1;
        if let Some(entry) = entry.filter(|known| known.via.is_empty() && known.key == key) {
            entry.key = next;
            self.changed.insert(node);
        }
        self.keep(node, next);
        Some(next)
    }

    /// A child's attachment as this node's disk has it.
    pub fn keep(&mut self, node: NodeId, key: AttachmentKey) {
        self.kept.insert(node, key);
    }

    /// The attachment of a node somewhere below, as this node's parent knows it. Answers the newest that is kept.
    pub fn keep_told(&mut self, node: NodeId, key: AttachmentKey) -> AttachmentKey {
        let kept = self.kept.entry(node).or_insert(key);
        *kept = key.max(*kept);
        *kept
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{attach, key, node, told},
        *,
    };
    use branchline_protocol::id::Role;

    #[test]
    fn rolled_back_links_that_others_overtake_are_told_to_whom_they_hang_on() {
        let mut d = Directory::default();
        d.attach(attach(1, Role::Relay, 1, 10));
        d.attach(attach(2, Role::Relay, 1, 11));
        d.presence(node(1), false, vec![told(7, 5, vec![node(3)])]);
        let by = |relay, entry| d.overtaken(node(relay), &[entry]);
        assert_eq!(by(1, told(7, 5, vec![node(3)])), [], "the same link, told again");
        assert_eq!(by(1, told(7, 6, vec![node(3)])), [], "a newer one at the same relay");
        assert_eq!(by(2, told(7, 4, vec![])), [(node(2), node(7), key(5))]);
        assert_eq!(by(2, told(7, 5, vec![])), [(node(2), node(7), key(6))], "one number is one link");
        assert_eq!(by(1, told(7, 6, vec![])), [(node(1), node(7), key(6))], "below the same child, at another relay");
        assert_eq!(by(2, told(7, 6, vec![])), [(node(1), node(7), key(6))]);
        let gone = PresenceEntry { reach: Reach::GoneTimeout, ..told(7, 4, vec![]) };
        assert_eq!(by(2, gone), [], "a link that is gone need not end");
        let mut other = told(7, 4, vec![]);
        other.key.epoch = 2;
        assert_eq!(by(2, other), [], "of another epoch the list speaks");
        d.attach(attach(7, Role::Agent, 9, 20));
        assert_eq!(d.overtaken(node(2), &[told(7, 10, vec![])]), [(node(7), node(7), key(10))], "a link of our own");
    }

    #[test]
    fn rolled_back_what_the_parent_knows_is_told_each_time_less_is_told_of_a_node() {
        let mut d = Directory::default();
        d.attach(attach(1, Role::Relay, 1, 10));
        d.presence(node(1), false, vec![told(7, 6, vec![])]);
        d.keep_told(node(7), key(7));
        d.keep_told(node(7), key(5));
        let by = |d: &Directory, relay, entry| d.overtaken(node(relay), &[entry]);
        for _ in 0..2 {
            assert_eq!(by(&d, 1, told(7, 6, vec![])), [(node(1), node(7), key(7))], "the same link, told again");
        }
        assert_eq!(by(&d, 1, told(7, 7, vec![])), [], "that one");
        let gone = PresenceEntry { reach: Reach::GoneTimeout, ..told(7, 6, vec![]) };
        assert_eq!(by(&d, 1, gone), [], "a link that is gone need not end");
        let mut other = told(7, 6, vec![]);
        other.key.epoch = 2;
        assert_eq!(by(&d, 1, other), [], "of another epoch the list speaks");
    }

    #[test]
    fn rolled_back_an_attachment_that_was_kept_is_no_newer_one_again() {
        let mut d = Directory::default();
        d.keep(node(7), key(5));
        assert!(d.is_stale(node(7), key(4)) && d.is_stale(node(7), key(5)) && !d.is_stale(node(7), key(6)));
        assert!(!d.attach(attach(7, Role::Agent, 5, 10)));
        assert!(d.get(node(7)).is_none(), "nobody is shown by it");
        assert!(d.attach(attach(7, Role::Agent, 6, 11)));
    }

    #[test]
    fn rolled_back_a_number_given_twice_makes_the_next_one_known_until_the_child_has_heard() {
        let mut d = Directory::default();
        d.attach(attach(7, Role::Agent, 5, 10));
        assert!(d.changes().len() == 1 && d.refused(node(7), key(4)).is_none(), "overtaken on its way");
        assert!(!d.is_stale(node(7), key(6)) && d.changes().is_empty());
        assert_eq!(d.refused(node(7), key(5)), Some(key(6)), "the same number twice");
        assert!(d.is_stale(node(7), key(6)) && !d.is_stale(node(7), key(7)), "whoever heard it leaves out a number");
        assert_eq!(d.changes().iter().map(|e| e.key).collect::<Vec<_>>(), [key(6)], "told above");
        assert_eq!(d.refused(node(7), key(6)), Some(key(7)), "lost again");
        assert!(d.refused(node(7), key(5)).is_none());
        assert!(d.attach(attach(7, Role::Agent, 8, 20)));
        d.presence(node(1), false, vec![told(7, 9, vec![])]);
        assert_eq!(d.refused(node(7), key(9)), Some(key(10)), "known from elsewhere, as told");
        assert!(
            d.is_stale(node(7), key(10)) && d.get(node(7)).is_some_and(|known| known.key == key(9)),
            "the relay's word"
        );
        let mut known = 10;
        while let Some(next) = d.refused(node(7), key(known)) {
            known = next.attachment;
        }
        assert_eq!(known, 9 + u64::from(REFUSALS_MAX), "one that never hears it is let in at last");
        assert!(d.is_stale(node(7), key(known)) && !d.is_stale(node(7), key(known + 1)));
        d.attach(attach(7, Role::Agent, known + 1, 30));
        assert!(d.refused(node(7), key(known + 1)).is_some(), "and counted anew");
        let last = AttachmentKey { epoch: 1, attachment: u64::MAX };
        assert!(d.refused(node(8), last).is_none(), "there is no next");
    }

    #[test]
    fn rolled_back_a_relay_that_has_told_of_more_than_is_on_its_disk_is_not_met_before_it_heard_so() {
        let at = |age| {
            let mut d = Directory::default();
            d.aged(node(7), 1, 9);
            d.aged(node(7), 1, 8);
            let behind = d.is_behind(node(7), key(3), age);
            (behind, d)
        };
        assert!(!at(10).0, "what it greets with is newer than all it told of");
        let (behind, mut d) = at(9);
        assert!(behind);
        assert!(d.is_stale(node(7), key(4)) && !d.is_stale(node(7), key(5)), "whoever heard it leaves out a number");
        assert!(!d.is_behind(node(7), key(5), 1), "once");
        let (_, mut d) = at(10);
        assert!(!d.is_behind(node(7), AttachmentKey { epoch: 2, attachment: 1 }, 1), "enrolled anew, on another disk");
        assert!(!Directory::default().is_behind(node(7), key(1), 0), "it has told nothing");
    }
}
