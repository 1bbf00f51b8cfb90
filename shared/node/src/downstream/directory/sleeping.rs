//! Devices without a slot: whether a wake may bring them, and that they go off (ADM-15, ADM-18).

use super::{Directory, Entry};
use branchline_protocol::{
    id::{AttachmentKey, NodeId},
    time::Millis,
    wire::Reach,
};

impl Directory {
    /// Whether a device may be waiting for its next poll here: it has no link, and was here last or was not heard of since
    /// this node started. Whether its last link was a poll the keyring knows.
    pub fn may_sleep(&self, node: NodeId) -> bool {
        let rests = |reach| matches!(reach, Reach::Wakeable | Reach::Awaited | Reach::GoneTimeout);
        !self.is_live(node) && self.nodes.get(&node).is_none_or(|e| e.via.is_empty() && rests(e.reach))
    }

    /// How a device is reached once its poll has ended in good order.
    pub fn rests(&self, node: NodeId) -> Reach {
        match self.nodes.get(&node).map(|entry| entry.reach) {
            Some(Reach::Wakeable) => Reach::Wakeable,
            _ => Reach::Polling,
        }
    }

    /// A device goes off and ends this attachment. Answers whether it is its newest one here; an older one touches
    /// nothing.
    pub fn goes_off(&mut self, node: NodeId, key: AttachmentKey, at: Millis) -> bool {
        let news = |entry: &&Entry| entry.via.is_empty() && entry.key == key && entry.reach != Reach::GoneShutdown;
        let Some(entry) = self.get(node).filter(news) else { return false };
        let entry = Entry { reach: Reach::GoneShutdown, last_contact: at, ..entry.clone() };
        self.live.remove(&node);
        self.put(node, entry);
        self.changed.insert(node);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Attach,
            tests::{attach, key, node, told},
        },
        *,
    };
    use branchline_protocol::{id::Role, wire::Lease};

    #[test]
    fn adm_15_who_may_sleep_here() {
        let mut d = Directory::default();
        assert!(d.may_sleep(node(7)), "after a start nothing is known");
        let lease = Some(Lease { interval_ms: 1_000, phase_ms: 0, waiter: 0 });
        d.attach(Attach { lease, wakeable: true, ..attach(7, Role::Agent, 1, 10) });
        assert!(!d.may_sleep(node(7)), "its poll is up");
        let reach = d.rests(node(7));
        d.detach(node(7), 10, reach, Millis(5));
        assert!(d.may_sleep(node(7)));
        d.attach(attach(8, Role::Agent, 1, 11));
        let reach = d.rests(node(8));
        assert_eq!(reach, Reach::Polling);
        d.detach(node(8), 11, reach, Millis(5));
        assert!(!d.may_sleep(node(8)), "it hears nothing");
        d.remember(node(9), Entry { reach: Reach::Awaited, ..d.get(node(7)).unwrap().clone() });
        d.expire(Millis(0));
        assert_eq!(d.expire(Millis(super::super::AWAITED_MS)), [node(9)]);
        assert!(d.may_sleep(node(9)), "its next poll may be far longer after a start");
        d.goes_off(node(9), key(1), Millis(6));
        assert!(!d.may_sleep(node(9)), "it is off");
        d.attach(attach(1, Role::Relay, 1, 12));
        d.presence(node(1), false, vec![told(7, 2, vec![])]);
        assert!(!d.may_sleep(node(7)), "it went to a relay");
    }

    #[test]
    fn adm_18_a_notice_ends_the_newest_attachment_here_and_no_other() {
        let mut d = Directory::default();
        assert!(!d.goes_off(node(7), key(1), Millis(5)), "nobody knows it");
        d.attach(attach(7, Role::Agent, 2, 10));
        assert!(!d.goes_off(node(7), key(1), Millis(5)) && d.is_live(node(7)));
        d.changes();
        assert!(d.goes_off(node(7), key(2), Millis(5)));
        assert!(!d.is_live(node(7)));
        assert_eq!(d.changes()[0].reach, Reach::GoneShutdown);
        assert!(!d.goes_off(node(7), key(2), Millis(6)), "the second copy");
        assert!(!d.detach(node(7), 10, Reach::GoneTimeout, Millis(9)), "the link's own end, later");
        assert_eq!(d.get(node(7)).unwrap().reach, Reach::GoneShutdown);
        assert!(d.attach(attach(7, Role::Agent, 3, 11)));
        assert!(!d.goes_off(node(7), key(2), Millis(12)), "told again after it came back");
        assert_eq!(d.get(node(7)).unwrap().reach, Reach::Persistent);
        d.attach(attach(1, Role::Relay, 1, 12));
        d.presence(node(1), false, vec![told(7, 4, vec![])]);
        assert!(!d.goes_off(node(7), key(4), Millis(13)), "elsewhere it is another's to say");
    }
}
