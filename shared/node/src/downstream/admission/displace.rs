//! Slots taken from their holders: for a lower cap, for one who needs it more, or because a device is not to keep it.

use super::{
    Admission, Cap, Effect, Held, Lease, Place,
    event::{Ask, Want},
    need::{self, Demand, Need},
};
use branchline_protocol::id::{NodeId, Role};
use branchline_protocol::time::Mono;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Milliseconds for which a slot is its holder's whoever asks, and for which one who lost a slot displaces nobody: two
/// devices could otherwise take it from each other at every contact.
pub const HELD_MS_MIN: u64 = 600_000;

impl Admission {
    /// An ask with what is certain of it: its interval is that of the most pressing class it can do, and who wants a slot
    /// has at least the ordinary need of one.
    pub(super) fn settled(&self, ask: &Ask) -> Ask {
        let interval_ms = ask.poll_interval_ms.unwrap_or(self.config.poll_interval_ms);
        let pressing = ask.pressing_ms.map(|ms| ms.min(interval_ms));
        let need = if ask.want == Want::Persistent { ask.need.max(Need::Ordinary) } else { Need::None };
        Ask { poll_interval_ms: pressing.or(ask.poll_interval_ms), need, ..ask.clone() }
    }

    /// What a device needs, with its orders.
    pub(super) fn needed(&self, node: NodeId, own: Need) -> Need {
        let urgent = self.demands.get(&node).is_some_and(|demand| demand.urgent);
        if urgent && own > Need::None { Need::Urgent } else { own }
    }

    /// A holder's or waiter's need is looked at anew; a waiter keeps its age, a holder its slot.
    pub(super) fn renew_need(&mut self, node: NodeId, own: Need) {
        let need = self.needed(node, own);
        if let Some(held) = self.held.get_mut(&node) {
            if held.place == Place::Slot {
                self.held_by[held.need] -= 1;
                self.held_by[need] += 1;
            }
            (held.own, held.need) = (own, need);
        }
        if self.line.get(node).is_some() {
            self.line.set_need(node, own, need);
        }
    }

    pub(super) fn set_need(&mut self, node: NodeId, own: Need, out: &mut Vec<Effect>) {
        let holds = self.held.get(&node).is_some_and(|held| held.place == Place::Slot);
        if own == Need::None {
            self.line.remove(node);
            if holds && let Some(held) = self.release(node) {
                // It is not in line, and its own interval is known from its ask alone.
                let interval_ms = held.poll_interval_ms.unwrap_or(self.config.poll_interval_ms);
                out.push(Effect::Displace { session: held.session, lease: Lease::new(node, interval_ms, 0) });
            }
        } else if holds || self.line.get(node).is_some() {
            self.renew_need(node, own);
        }
    }

    pub(super) fn set_demands(&mut self, demands: BTreeMap<NodeId, Demand>) {
        let before = std::mem::replace(&mut self.demands, demands);
        let urgent = |demands: &BTreeMap<NodeId, Demand>, node| demands.get(&node).is_some_and(|d| d.urgent);
        let named: Vec<NodeId> = before.keys().chain(self.demands.keys()).copied().collect();
        for node in named {
            if urgent(&before, node) == urgent(&self.demands, node) {
                continue;
            }
            let held = self.held.get(&node).filter(|held| held.place == Place::Slot).map(|held| held.own);
            if let Some(own) = held.or_else(|| self.line.get(node).map(|waiter| waiter.own)) {
                self.renew_need(node, own);
            }
        }
    }

    /// Whose slot the waiter `node` may take: that of the lowest need and, among these, held longest. None unless each of
    /// those before it in line could take one too, so that nobody is overtaken.
    pub(super) fn displaceable(&self, now: Mono, node: NodeId) -> Option<NodeId> {
        let standing = self.line.get(node)?.standing();
        let (number, share) = (self.line.number(node), need::share(self.config.cap.get()));
        if number == 0 || self.closed_until.is_some() || self.barred.contains_key(&node) {
            return None;
        }
        let lower = Need::SLOTTED.into_iter().filter(|need| *need < standing);
        // What a need has above its share; whoever is displaced waits, so that each of them has waiters.
        let spare = lower.map(|need| (need, self.held_by[need].saturating_sub(share))).filter(|(_, spare)| *spare > 0);
        let (mut first, mut in_all) = (None, 0);
        for (need, spare) in spare {
            let in_progress = |holder: &NodeId| self.demands.get(holder).is_some_and(|demand| demand.in_progress);
            let of_need = self.held.iter().filter(|(holder, held)| {
                let long_held = now.since(held.since) >= HELD_MS_MIN;
                held.place == Place::Slot && held.need == need && long_held && !in_progress(holder)
            });
            let mut longest: Option<(u64, NodeId)> = None;
            let mut count = 0u32;
            for (holder, held) in of_need {
                longest = Some(longest.map_or((held.arrival, *holder), |known| known.min((held.arrival, *holder))));
                count += 1;
            }
            in_all += count.min(spare);
            first = first.or(longest);
        }
        first.filter(|_| in_all >= number).map(|(_, holder)| holder)
    }

    /// Takes a holder's slot; it waits in line from here on.
    pub(super) fn displace(&mut self, now: Mono, node: NodeId, out: &mut Vec<Effect>) {
        let Some(Held { key, session, own, wakeable, poll_interval_ms, .. }) = self.release(node) else { return };
        self.barred.insert(node, now.plus(HELD_MS_MIN));
        let (role, want) = (Role::Agent, Want::Persistent);
        let ask = Ask { node, role, key, session, want, need: own, wakeable, poll_interval_ms, pressing_ms: None };
        self.line.hear_or_join(now, &ask, self.needed(node, own));
        out.push(Effect::Displace { session, lease: self.lease(node) });
    }

    pub(super) fn set_cap(&mut self, now: Mono, cap: Cap, out: &mut Vec<Effect>) {
        self.config.cap = cap;
        while self.used() > cap.get() && self.line.unreserve_last() {}
        let excess = usize::from(self.slots.saturating_sub(cap.get()));
        if excess == 0 {
            return;
        }
        let mut holders: Vec<_> = self.held.iter().filter(|(_, h)| h.place == Place::Slot).collect();
        holders.sort_by_key(|(_, h)| (h.need, Reverse(h.arrival)));
        let (mut left, share) = (self.held_by, need::share(cap.get()));
        // All shares together are no more than the cap, so enough is left above them.
        holders.retain(|(_, h)| {
            let spare = left[h.need] > share;
            left[h.need] -= u32::from(spare);
            spare
        });
        holders.truncate(excess);
        holders.sort_by_key(|(_, h)| h.arrival); // who held longest waits in front
        let displaced: Vec<NodeId> = holders.into_iter().map(|(node, _)| *node).collect();
        for node in displaced {
            self.displace(now, node, out);
        }
    }
}
