//! Who waits for a slot, in which order, and for whom a freed slot is kept. Knows nothing of who holds one.

use super::{
    event::Ask,
    need::{ByNeed, Need},
};
use branchline_protocol::datagram::WAKE_POLL_EVERY_MS;
use branchline_protocol::id::{AttachmentKey, NodeId};
use branchline_protocol::time::Mono;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The most waiters remembered: at some 200 bytes each, 20 MB. Past it a device is deferred all the same and polls,
/// but is not in line; it may join at a later contact.
pub const WAITERS_MAX: usize = 100_000;
/// Milliseconds after which the one who has waited longest counts as of the next higher need, again and again.
pub const RISE_MS: u64 = 3_600_000;

/// A device that asked for a slot and did not get one.
pub(super) struct Waiter {
    pub key: AttachmentKey,
    /// The link it asked on, while that lives.
    pub session: Option<u64>,
    /// As its settings say, if they do.
    pub poll_interval_ms: Option<u64>,
    /// What it needs by itself, without its orders.
    pub own: Need,
    /// What it needs, with them.
    need: Need,
    /// Not heard of for so long it leaves the line.
    patience_ms: u64,
    /// How often it rose for being the one who had waited longest.
    rises: u8,
    /// Order of waiting within the need: lower came earlier.
    ticket: u64,
    /// When it took its ticket.
    since: Mono,
    wakeable: bool,
    /// A wake packet was tried during this wait and brought nobody: its next slot is kept until its next poll.
    /// Otherwise, where no packet arrives, a slot would run round the line for ever and meet nobody.
    unreachable: bool,
    heard_at: Mono,
    reserved_until: Option<Mono>,
}

/// The order is need (higher first), then ticket (earlier first). A waiter with a reservation has left the order and comes
/// back into it when the reservation lapses, at the end of its own need: it had its chance.
pub(super) struct Line {
    waiters: BTreeMap<NodeId, Waiter>,
    /// The waiters without a reservation, each need sorted by ticket.
    classes: BTreeMap<Reverse<Need>, VecDeque<(u64, NodeId)>>,
    deadlines: BTreeSet<(Mono, NodeId)>,
    waiting: u32,
    /// Waiters with a reservation, by what they stand as.
    reserved: ByNeed,
    next_ticket: u64,
    /// When somebody rose last.
    rose_at: Mono,
    /// Patience with a waiter whose settings say nothing.
    patience_ms: u64,
    /// Polls that a waiter whose settings say something may miss.
    silent_intervals: u64,
}

impl Line {
    pub fn new(patience_ms: u64, silent_intervals: u64) -> Self {
        Line {
            waiters: BTreeMap::new(),
            classes: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            waiting: 0,
            reserved: ByNeed::default(),
            next_ticket: 0,
            rose_at: Mono(0),
            patience_ms,
            silent_intervals,
        }
    }

    pub fn get(&self, node: NodeId) -> Option<&Waiter> {
        self.waiters.get(&node)
    }

    /// Waiters without a reservation.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// The same, by what they stand as.
    pub fn waiting_by(&self, need: Need) -> u32 {
        self.classes.get(&Reverse(need)).map_or(0, |class| class.len() as u32)
    }

    /// Waiters with one; never more than there are slots.
    pub fn reserved(&self) -> u16 {
        (self.waiters.len() - self.waiting as usize) as u16
    }

    /// The same, by what they stand as.
    pub fn reserved_by(&self, need: Need) -> u32 {
        self.reserved[need]
    }

    pub fn next_deadline(&self) -> Option<Mono> {
        self.deadlines.first().map(|(due, _)| *due).into_iter().chain(self.rise().map(|(due, _)| due)).min()
    }

    /// Number in line, from 1; 0 when not in the order.
    pub fn number(&self, node: NodeId) -> u32 {
        let Some(waiter) = self.waiters.get(&node).filter(|w| w.reserved_until.is_none()) else { return 0 };
        let own = Reverse(waiter.standing());
        let before: usize = self.classes.range(..own).map(|(_, class)| class.len()).sum();
        let within = self.classes.get(&own).map_or(0, |class| class.partition_point(|(t, _)| *t < waiter.ticket));
        (before + within + 1) as u32
    }

    /// A waiter asks again, or a new one joins at the end of its need; nothing when the line is full.
    pub fn hear_or_join(&mut self, now: Mono, ask: &Ask, need: Need) {
        let (ticket, since, rises, unreachable) = match self.remove(ask.node) {
            Some(old) => (old.ticket, old.since, old.rises, old.unreachable),
            None if self.waiters.len() >= WAITERS_MAX => return,
            None => (self.take_ticket(), now, 0, false),
        };
        let waiter = Waiter {
            key: ask.key,
            session: Some(ask.session),
            poll_interval_ms: ask.poll_interval_ms,
            own: ask.need,
            need,
            patience_ms: ask.poll_interval_ms.map_or(self.patience_ms, |ms| ms.saturating_mul(self.silent_intervals)),
            rises,
            ticket,
            since,
            wakeable: ask.wakeable,
            unreachable,
            heard_at: now,
            reserved_until: None,
        };
        self.insert(ask.node, waiter);
    }

    /// A waiter needs it otherwise from here on; it keeps its age.
    pub fn set_need(&mut self, node: NodeId, own: Need, need: Need) {
        if let Some(waiter) = self.remove(node) {
            self.insert(node, Waiter { own, need, ..waiter });
        }
    }

    /// A waiter was in contact without asking for a slot.
    pub fn touch(&mut self, now: Mono, node: NodeId) {
        if let Some(waiter) = self.waiters.get_mut(&node) {
            self.deadlines.remove(&(waiter.due(), node));
            waiter.heard_at = now;
            self.deadlines.insert((waiter.due(), node));
        }
    }

    /// The link that a waiter asked on ended; its place in line stays.
    pub fn link_ended(&mut self, node: NodeId, session: u64) {
        if let Some(waiter) = self.waiters.get_mut(&node).filter(|w| w.session == Some(session)) {
            waiter.session = None;
        }
    }

    /// Takes a waiter out, with or without a reservation.
    pub fn remove(&mut self, node: NodeId) -> Option<Waiter> {
        let waiter = self.waiters.remove(&node)?;
        self.deadlines.remove(&(waiter.due(), node));
        if waiter.reserved_until.is_none() {
            self.leave_order(waiter.standing(), waiter.ticket);
        } else {
            self.reserved[waiter.standing()] -= 1;
        }
        Some(waiter)
    }

    /// Takes a waiter out if a slot is reserved for it.
    pub fn take_reservation(&mut self, node: NodeId) -> bool {
        let reserved = self.waiters.get(&node).is_some_and(|w| w.reserved_until.is_some());
        if reserved {
            self.remove(node);
        }
        reserved
    }

    /// Keeps a slot for the first in line, or for the first of the highest need that has less than its share. Answers who
    /// it is and whether to wake it; `None` when nobody waits. `polling_ms` answers for how long a slot is kept for one
    /// that polls at an interval.
    pub fn reserve_first(
        &mut self,
        now: Mono,
        short_of_share: impl Fn(Need) -> bool,
        wakeable_ms: u64,
        polling_ms: impl Fn(Option<u64>) -> u64,
    ) -> Option<(NodeId, bool)> {
        let short = self.classes.iter().find(|(Reverse(need), _)| short_of_share(*need));
        let (_, class) = short.or_else(|| self.classes.first_key_value())?;
        let (_, node) = *class.front()?;
        let mut waiter = self.remove(node)?;
        let wake = waiter.wakes();
        // One that was here a moment ago may hold the poll back that the wake asks for (decision 41).
        let held_back = waiter.heard_at.plus(WAKE_POLL_EVERY_MS).max(now);
        let until = if wake { held_back.plus(wakeable_ms) } else { now.plus(polling_ms(waiter.poll_interval_ms)) };
        waiter.reserved_until = Some(until);
        self.insert(node, waiter);
        Some((node, wake))
    }

    /// Takes back the reservation of the one who would be last in line; it returns to where it stood.
    pub fn unreserve_last(&mut self) -> bool {
        let reserved = self.waiters.iter().filter(|(_, w)| w.reserved_until.is_some());
        let Some(node) = reserved.max_by_key(|(_, w)| (Reverse(w.standing()), w.ticket)).map(|(node, _)| *node) else {
            return false;
        };
        if let Some(mut waiter) = self.remove(node) {
            waiter.reserved_until = None;
            self.insert(node, waiter);
        }
        true
    }

    /// Lets go of waiters that fell silent and ends reservations that lapsed.
    pub fn expire(&mut self, now: Mono) {
        let mut lapsed = Vec::new();
        while let Some(&(due, node)) = self.deadlines.first()
            && due <= now
        {
            let Some(waiter) = self.remove(node) else { break };
            if waiter.heard_at.plus(waiter.patience_ms) > now {
                lapsed.push((waiter.ticket, node, waiter));
            }
        }
        // Reservations made together lapse together: among themselves they keep their order.
        lapsed.sort_by_key(|(ticket, node, _)| (*ticket, *node));
        for (_, node, mut waiter) in lapsed {
            waiter.unreachable |= waiter.wakeable;
            waiter.reserved_until = None;
            (waiter.ticket, waiter.since, waiter.rises) = (self.take_ticket(), now, 0);
            self.insert(node, waiter);
        }
    }

    /// The one who has waited longest rises, once for each hour: otherwise those of a higher need could keep it waiting for
    /// ever.
    pub fn raise(&mut self, now: Mono) {
        while let Some((due, node)) = self.rise().filter(|(due, _)| *due <= now) {
            let Some(waiter) = self.remove(node) else { return };
            self.rose_at = due;
            self.insert(node, Waiter { rises: waiter.rises + 1, ..waiter });
        }
    }

    /// Who rises next, and when: the earliest ticket below the highest need, an hour after it was taken and after anybody
    /// rose.
    fn rise(&self) -> Option<(Mono, NodeId)> {
        let below = self.classes.iter().filter(|(Reverse(need), _)| *need < Need::Urgent);
        let (_, node) = *below.filter_map(|(_, class)| class.front()).min()?;
        let since = self.waiters.get(&node)?.since;
        Some((since.max(self.rose_at).plus(RISE_MS), node))
    }

    fn insert(&mut self, node: NodeId, waiter: Waiter) {
        self.deadlines.insert((waiter.due(), node));
        if waiter.reserved_until.is_none() {
            let class = self.classes.entry(Reverse(waiter.standing())).or_default();
            let at = class.partition_point(|(ticket, _)| *ticket < waiter.ticket);
            class.insert(at, (waiter.ticket, node));
            self.waiting += 1;
        } else {
            self.reserved[waiter.standing()] += 1;
        }
        self.waiters.insert(node, waiter);
    }

    fn leave_order(&mut self, standing: Need, ticket: u64) {
        let Some(class) = self.classes.get_mut(&Reverse(standing)) else { return };
        let at = class.partition_point(|(t, _)| *t < ticket);
        class.remove(at);
        self.waiting -= 1;
        if class.is_empty() {
            self.classes.remove(&Reverse(standing));
        }
    }

    fn take_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }
}

impl Waiter {
    /// What it counts as: its need, and what it rose.
    pub fn standing(&self) -> Need {
        self.need.raised(self.rises)
    }

    fn wakes(&self) -> bool {
        self.wakeable && !self.unreachable
    }

    fn due(&self) -> Mono {
        let leaves_at = self.heard_at.plus(self.patience_ms);
        self.reserved_until.map_or(leaves_at, |until| until.min(leaves_at))
    }
}
