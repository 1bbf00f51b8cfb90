//! Who is below this node, and by which child they are reached (pure). Soft state: rebuilt from live sessions and the
//! snapshots of child relays, never from disk (DESIGN 5 "Presence").

mod hops;
mod overtaken;
mod sleeping;
mod slot;

use branchline_protocol::{
    capability::Declared,
    document::Kind,
    id::{AttachmentKey, Epoch, NodeId, Role},
    time::Millis,
    wire::{Lease, PresenceEntry, Reach, SlotStanding},
};
use hops::Hops;
use std::collections::{BTreeMap, BTreeSet};

/// For so long, in milliseconds of node time, a node is awaited that its parent lost sight of without its doing: within
/// it everybody is back after a restart (RLY-11).
pub const AWAITED_MS: i64 = 120_000;
/// A node's last contact alone is told upward this often, in milliseconds (DESIGN 5 "Presence").
const CONTACT_TOLD_EVERY_MS: i64 = 60_000;

/// What is known of a node below.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Agent or relay.
    pub role: Role,
    /// The newest attachment heard of.
    pub key: AttachmentKey,
    /// Relays between this node and it, nearest this node first; empty: it hangs here.
    pub via: Vec<NodeId>,
    /// How it is reached.
    pub reach: Reach,
    /// Node time of its last contact.
    pub last_contact: Millis,
    /// When it is due again.
    pub next_contact: Option<Millis>,
    /// What it declared.
    pub capabilities: Declared,
    /// A relay's own figures, JSON.
    pub figures: Option<String>,
    /// (term, version) of the settings it has on disk; (0, 0) when it has said nothing (ADM-14).
    pub settings: (u32, u64),
    /// Milliseconds between its polls while it holds no slot; `None` when its parent has not said.
    pub poll_interval_ms: Option<u64>,
    /// The slot that it holds or waits for.
    pub slot: Option<SlotStanding>,
}

/// A child that greeted this node.
#[derive(Clone, Debug)]
pub struct Attach {
    /// Who.
    pub node: NodeId,
    /// What.
    pub role: Role,
    /// Its attachment.
    pub key: AttachmentKey,
    /// The link's session here.
    pub session: u64,
    /// When it polls, if it holds no slot.
    pub lease: Option<Lease>,
    /// Whether a wake packet can cause it to call.
    pub wakeable: bool,
    /// When.
    pub at: Millis,
    /// What it declared.
    pub capabilities: Declared,
}

/// Nodes below, by their newest attachment.
#[derive(Default)]
pub struct Directory {
    /// Boxed: a tree's leaves are little more than half full, and an entry has some hundred bytes.
    nodes: BTreeMap<NodeId, Box<Entry>>,
    /// The same by the way to them; [`Directory::put`] and [`Directory::forget`] keep it.
    hops: Hops,
    /// Children with a live link here.
    live: BTreeMap<NodeId, u64>,
    /// Attachments of children that were here, as the disk has them: who went elsewhere or away is not known by them.
    kept: BTreeMap<NodeId, AttachmentKey>,
    /// How many links of a child were refused in a row because it gives numbers that are known; since the start of this node.
    refusals: BTreeMap<NodeId, u8>,
    /// How much children have said to be on their disks, and in which epoch; since the start of this node.
    ages: BTreeMap<NodeId, (Epoch, u64)>,
    /// Since when a relay that hung here has no link.
    cut: BTreeMap<NodeId, Millis>,
    /// Until when to await nodes; nothing yet for those not looked at since they are.
    awaited: BTreeMap<NodeId, Option<Millis>>,
    changed: BTreeSet<NodeId>,
}

impl Directory {
    /// A node greeted us. `false`: an attachment of it that is as new is known, nothing was changed.
    pub fn attach(&mut self, child: Attach) -> bool {
        if self.is_stale(child.node, child.key) {
            return false;
        }
        let known = self.nodes.get(&child.node);
        let (figures, settings) = known.map_or((None, (0, 0)), |e| (e.figures.clone(), e.settings));
        let entry = Entry {
            role: child.role,
            key: child.key,
            via: Vec::new(),
            reach: slot::reach(child.lease, child.wakeable),
            last_contact: child.at,
            next_contact: child.lease.map(|lease| slot::due(lease, child.at)),
            capabilities: child.capabilities,
            figures,
            settings,
            poll_interval_ms: child.lease.map(|lease| lease.interval_ms),
            slot: slot::standing(known.and_then(|e| e.slot), child.role, child.lease, child.at),
        };
        self.put(child.node, entry);
        self.refusals.remove(&child.node);
        self.live.insert(child.node, child.session);
        self.cut.remove(&child.node);
        self.changed.insert(child.node);
        true
    }

    /// A child's link ended. The cleanup of an older session than the live one touches nothing.
    pub fn detach(&mut self, node: NodeId, session: u64, reach: Reach, at: Millis) -> bool {
        if self.live.get(&node) != Some(&session) {
            return false;
        }
        self.live.remove(&node);
        if let Some(entry) = self.get(node).filter(|e| e.via.is_empty()) {
            let entry = Entry { reach, last_contact: at, ..entry.clone() };
            if entry.role == Role::Relay {
                self.cut.insert(node, at);
            }
            self.put(node, entry);
            self.changed.insert(node);
        }
        true
    }

    /// Whether an attachment of this node that is as new is known: then a link of this one is refused. A node gives each
    /// link a number of its own, so the same number twice is no newer one.
    pub fn is_stale(&self, node: NodeId, key: AttachmentKey) -> bool {
        let kept = self.kept.get(&node).is_some_and(|kept| *kept >= key);
        kept || self.nodes.get(&node).is_some_and(|known| known.key >= key)
    }

    /// Time goes on: whoever was awaited for long enough is gone. Answers who.
    pub fn expire(&mut self, now: Millis) -> Vec<NodeId> {
        let mut gone = Vec::new();
        for (node, until) in &mut self.awaited {
            match until {
                None => *until = Some(now.plus(AWAITED_MS)),
                Some(until) if *until <= now => gone.push(*node),
                Some(_) => {}
            }
        }
        for node in &gone {
            if let Some(entry) = self.get(*node) {
                let entry = Entry { reach: Reach::GoneTimeout, ..entry.clone() };
                self.put(*node, entry);
                self.changed.insert(*node);
            }
        }
        gone
    }

    fn put(&mut self, node: NodeId, entry: Entry) {
        if entry.reach == Reach::Awaited {
            self.awaited.entry(node).or_default();
        } else {
            self.awaited.remove(&node);
        }
        let before = self.nodes.get(&node);
        self.hops.moved(node, before.map(|e| &e.via[..]), Some(&entry.via));
        self.nodes.insert(node, Box::new(entry));
    }

    /// A node was heard: its last contact is then. The parent hears of it once a minute at most.
    pub fn heard(&mut self, node: NodeId, at: Millis) {
        if let Some(entry) = self.nodes.get_mut(&node)
            && at > entry.last_contact
        {
            if at.0 - entry.last_contact.0 >= CONTACT_TOLD_EVERY_MS {
                self.changed.insert(node);
            }
            entry.last_contact = at;
        }
    }

    /// A child says which documents it has on disk, in [`Kind::ALL`] order.
    pub fn holds(&mut self, node: NodeId, documents: &[(u32, u64)]) {
        let settings = Kind::ALL.iter().position(|kind| *kind == Kind::Settings).and_then(|at| documents.get(at));
        if let Some(entry) = self.nodes.get_mut(&node)
            && let Some(settings) = settings
            && entry.settings != *settings
        {
            entry.settings = *settings;
            self.changed.insert(node);
        }
    }

    /// A child lost its slot; `wakeable`: a wake can bring it.
    pub fn lease(&mut self, node: NodeId, lease: Lease, wakeable: bool, at: Millis) {
        if let Some(entry) = self.get(node) {
            let (next_contact, poll_interval_ms) = (Some(slot::due(lease, at)), Some(lease.interval_ms));
            let slot = slot::standing(entry.slot, entry.role, Some(lease), at);
            let reach = slot::reach(Some(lease), wakeable);
            let entry = Entry { reach, next_contact, poll_interval_ms, slot, ..entry.clone() };
            self.put(node, entry);
            self.changed.insert(node);
        }
    }

    /// A child relay tells who is below it. Answers the nodes whose route or reach changed. Whom a snapshot does not list
    /// the relay has not heard of since it started, which says nothing of the node: it is awaited.
    pub fn presence(&mut self, relay: NodeId, snapshot: bool, entries: Vec<PresenceEntry>) -> Vec<NodeId> {
        let mut touched = Vec::new();
        let listed: BTreeSet<NodeId> = entries.iter().map(|e| e.node).collect();
        for entry in entries {
            let mut via = vec![relay];
            via.extend(&entry.via);
            if entry.node == relay {
                // A relay speaks of itself for its figures only.
                if let Some(own) = self.nodes.get_mut(&relay) {
                    own.figures = entry.figures;
                    self.changed.insert(relay);
                }
                continue;
            }
            if let Some(known) = self.nodes.get(&entry.node) {
                let elsewhere = known.via.first() != Some(&relay);
                if known.key > entry.key || (known.key == entry.key && elsewhere && self.is_live(entry.node)) {
                    continue;
                }
            }
            let new = Entry {
                role: entry.role,
                key: entry.key,
                via,
                reach: entry.reach,
                last_contact: self
                    .nodes
                    .get(&entry.node)
                    .filter(|known| known.key == entry.key)
                    .map_or(entry.last_contact, |known| known.last_contact.max(entry.last_contact)),
                next_contact: entry.next_contact,
                capabilities: entry.capabilities,
                figures: entry.figures,
                settings: entry.settings,
                poll_interval_ms: entry.poll_interval_ms,
                slot: entry.slot,
            };
            if self.get(entry.node) != Some(&new) {
                self.put(entry.node, new);
                self.changed.insert(entry.node);
                touched.push(entry.node);
            }
        }
        if snapshot {
            let unlisted: Vec<NodeId> = self.behind(relay).filter(|node| !listed.contains(node)).collect();
            for node in unlisted {
                let Some(entry) = self.nodes.get_mut(&node) else { continue };
                if !matches!(entry.reach, Reach::GoneShutdown | Reach::GoneTimeout | Reach::Awaited) {
                    entry.reach = Reach::Awaited;
                    self.awaited.insert(node, None);
                    self.changed.insert(node);
                    touched.push(node);
                }
            }
        }
        touched
    }

    /// Restores a route from disk, so that orders find a device that has not been heard of since the start.
    pub fn remember(&mut self, node: NodeId, entry: Entry) {
        if !self.nodes.contains_key(&node) {
            self.put(node, entry);
        }
    }

    /// A node left the tenant or was revoked.
    pub fn forget(&mut self, node: NodeId) {
        let before = self.nodes.remove(&node);
        self.hops.moved(node, before.as_ref().map(|e| &e.via[..]), None);
        self.live.remove(&node);
        self.cut.remove(&node);
        self.awaited.remove(&node);
        self.ages.remove(&node);
    }

    /// What is known of a node.
    pub fn get(&self, node: NodeId) -> Option<&Entry> {
        self.nodes.get(&node).map(Box::as_ref)
    }

    /// Every node.
    pub fn all(&self) -> impl Iterator<Item = (NodeId, &Entry)> {
        self.nodes.iter().map(|(n, e)| (*n, e.as_ref()))
    }

    /// The child by which a node is reached: itself, or the first relay on its way.
    pub fn next_hop(&self, node: NodeId) -> Option<NodeId> {
        let entry = self.nodes.get(&node)?;
        Some(entry.via.first().copied().unwrap_or(node))
    }

    /// The same, if that child has a live link.
    pub fn live_hop(&self, node: NodeId) -> Option<NodeId> {
        self.next_hop(node).filter(|hop| self.is_live(*hop))
    }

    /// Whether a child has a live link here.
    pub fn is_live(&self, child: NodeId) -> bool {
        self.live.contains_key(&child)
    }

    /// Live links.
    pub fn links(&self) -> usize {
        self.live.len()
    }

    /// The first relay on the way that cannot be reached, and since when.
    pub fn cut_off(&self, node: NodeId) -> Option<(NodeId, Millis)> {
        let entry = self.nodes.get(&node)?;
        let relay = entry.via.iter().find(|r| {
            let away = |e: &Entry| matches!(e.reach, Reach::GoneShutdown | Reach::GoneTimeout | Reach::Awaited);
            let gone = self.get(**r).is_none_or(away);
            gone || (self.next_hop(**r) == Some(**r) && !self.is_live(**r))
        })?;
        let since = self.cut.get(relay).copied();
        Some((*relay, since.or_else(|| self.nodes.get(relay).map(|e| e.last_contact)).unwrap_or_default()))
    }

    /// Tiers of relays below this node: 0 when there are none.
    pub fn depth_below(&self) -> u8 {
        let relays = self.nodes.values().filter(|e| e.role == Role::Relay);
        relays.map(|e| e.via.len() as u8 + 1).max().unwrap_or(0)
    }

    /// Entries changed since the last call, for the parent.
    pub fn changes(&mut self) -> Vec<PresenceEntry> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().filter_map(|node| self.nodes.get(&node).map(|e| entry_of(node, e))).collect()
    }

    /// Everything, for a parent that was just greeted.
    pub fn snapshot(&mut self) -> Vec<PresenceEntry> {
        self.changed.clear();
        self.nodes.iter().map(|(node, e)| entry_of(*node, e)).collect()
    }
}

fn entry_of(node: NodeId, e: &Entry) -> PresenceEntry {
    PresenceEntry {
        node,
        role: e.role,
        key: e.key,
        via: e.via.clone(),
        reach: e.reach,
        last_contact: e.last_contact,
        next_contact: e.next_contact,
        capabilities: e.capabilities.clone(),
        figures: e.figures.clone(),
        settings: e.settings,
        poll_interval_ms: e.poll_interval_ms,
        slot: e.slot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    pub(super) fn node(n: u128) -> NodeId {
        NodeId(Uuid::from_u128(n))
    }

    pub(super) fn key(attachment: u64) -> AttachmentKey {
        AttachmentKey { epoch: 1, attachment }
    }

    pub(super) fn attach(n: u128, role: Role, attachment: u64, session: u64) -> Attach {
        Attach {
            node: node(n),
            role,
            key: key(attachment),
            session,
            lease: None,
            wakeable: false,
            at: Millis(attachment as i64),
            capabilities: Declared::default(),
        }
    }

    pub(super) fn told(n: u128, attachment: u64, via: Vec<NodeId>) -> PresenceEntry {
        PresenceEntry {
            node: node(n),
            role: Role::Agent,
            key: key(attachment),
            via,
            reach: Reach::Persistent,
            last_contact: Millis(0),
            next_contact: None,
            capabilities: Declared::default(),
            figures: None,
            settings: (0, 0),
            poll_interval_ms: None,
            slot: None,
        }
    }

    #[test]
    fn adm_14_settings_on_disk_are_told_upward_and_a_new_attachment_keeps_what_is_known() {
        let mut d = Directory::default();
        d.attach(attach(7, Role::Agent, 1, 10));
        d.changes();
        let documents = [(1, 9), (1, 9), (1, 9), (1, 2), (0, 0)];
        d.holds(node(7), &documents);
        assert_eq!(d.changes()[0].settings, (1, 2));
        d.holds(node(7), &documents);
        d.holds(node(7), &[]);
        d.holds(node(8), &documents);
        assert!(d.changes().is_empty(), "nothing new, nothing known, nobody here");
        d.attach(attach(7, Role::Agent, 2, 11));
        assert_eq!(d.get(node(7)).unwrap().settings, (1, 2));
        let mut above = Directory::default();
        above.attach(attach(1, Role::Relay, 1, 20));
        above.presence(node(1), true, d.snapshot());
        assert_eq!(above.get(node(7)).unwrap().settings, (1, 2));
    }

    #[test]
    fn rly_9_the_newest_attachment_wins_and_late_cleanup_touches_nothing() {
        let mut d = Directory::default();
        d.attach(attach(1, Role::Relay, 1, 10));
        d.presence(node(1), true, vec![told(7, 5, vec![])]);
        assert_eq!(d.next_hop(node(7)), Some(node(1)));
        assert!(d.attach(attach(7, Role::Agent, 6, 20)), "it moved here");
        assert_eq!(d.next_hop(node(7)), Some(node(7)));
        d.presence(node(1), false, vec![told(7, 5, vec![])]);
        assert_eq!(d.next_hop(node(7)), Some(node(7)), "the old relay's word is older");
        assert!(!d.attach(attach(7, Role::Agent, 5, 21)), "an older attachment is no attachment");
        assert!(d.attach(attach(7, Role::Agent, 7, 22)));
        assert!(!d.detach(node(7), 20, Reach::GoneTimeout, Millis(9)), "the old session's end");
        assert_eq!(d.get(node(7)).unwrap().reach, Reach::Persistent);
    }

    #[test]
    fn a_cut_relay_cuts_off_everything_below_it_and_its_return_ends_that() {
        let mut d = Directory::default();
        d.attach(attach(1, Role::Relay, 1, 10));
        let nested = PresenceEntry { role: Role::Relay, ..told(2, 1, vec![]) };
        d.presence(node(1), true, vec![nested, told(7, 1, vec![node(2)])]);
        assert_eq!((d.cut_off(node(7)), d.depth_below()), (None, 2));
        d.detach(node(1), 10, Reach::GoneTimeout, Millis(50));
        assert_eq!(d.cut_off(node(7)), Some((node(1), Millis(50))));
        assert_eq!(d.live_hop(node(7)), None);
        d.attach(attach(1, Role::Relay, 2, 11));
        assert_eq!(d.cut_off(node(7)), None);
        assert_eq!(d.live_hop(node(7)), Some(node(1)));
    }

    #[test]
    fn rly_11_whom_a_snapshot_does_not_list_is_awaited_and_gone_two_minutes_later() {
        let mut d = Directory::default();
        d.attach(attach(1, Role::Relay, 1, 10));
        d.presence(node(1), true, vec![told(7, 1, vec![]), told(8, 1, vec![])]);
        d.changes();
        let touched = d.presence(node(1), true, vec![told(8, 1, vec![])]);
        assert_eq!(touched, [node(7)]);
        assert_eq!(d.get(node(7)).unwrap().reach, Reach::Awaited);
        assert_eq!(d.changes().len(), 1);
        assert!(d.changes().is_empty());
        assert!(d.expire(Millis(1_000)).is_empty(), "the wait begins when it is looked at first");
        assert!(d.expire(Millis(1_000 + AWAITED_MS - 1)).is_empty());
        assert_eq!(d.expire(Millis(1_000 + AWAITED_MS)), [node(7)]);
        assert_eq!(d.get(node(7)).unwrap().reach, Reach::GoneTimeout);
        assert_eq!(d.changes().len(), 1);
        assert!(d.expire(Millis(i64::MAX - AWAITED_MS)).is_empty(), "once");
    }

    #[test]
    fn whoever_comes_back_is_awaited_no_longer() {
        let mut d = Directory::default();
        d.attach(attach(1, Role::Relay, 1, 10));
        d.presence(node(1), true, vec![told(7, 1, vec![]), told(8, 1, vec![])]);
        d.presence(node(1), true, vec![]);
        d.expire(Millis(0));
        d.presence(node(1), false, vec![told(7, 2, vec![])]);
        d.attach(attach(8, Role::Agent, 2, 20));
        assert!(d.expire(Millis(AWAITED_MS)).is_empty());
        assert_eq!([d.get(node(7)), d.get(node(8))].map(|e| e.unwrap().reach), [Reach::Persistent; 2]);
    }
}
