//! When a parent is told that orders were taken: with their results, if those come soon (pure; decision 48).

use super::{core::AgentCore, event::Effect};
use branchline_node::defects::Defects;
use branchline_protocol::{
    id::OrderNumber,
    record::Lane,
    time::{Mono, Now},
    wire::Message,
};
use std::collections::BTreeSet;

/// Milliseconds for which that word waits for a short job's result, which says the same and more.
pub const TAKEN_WAITS_MS: u64 = 200;

/// Orders that are on this disk and whose parent was not told so on this link.
#[derive(Default)]
pub(super) struct Untold {
    orders: BTreeSet<OrderNumber>,
    /// When the first of them was taken.
    since: Mono,
}

impl Untold {
    /// These are on the disk.
    pub fn taken(&mut self, orders: impl IntoIterator<Item = OrderNumber>, now: Mono) {
        if self.orders.is_empty() {
            self.since = now;
        }
        self.orders.extend(orders);
    }

    /// Its result says it.
    pub fn answered(&mut self, order: OrderNumber) {
        self.orders.remove(&order);
    }

    /// The link is over; on the next one the parent offers again what it does not know to be taken.
    pub fn forget(&mut self) {
        self.orders.clear();
    }

    /// When they are to be told.
    pub fn due(&self) -> Option<Mono> {
        (!self.orders.is_empty()).then(|| self.since.plus(TAKEN_WAITS_MS))
    }

    /// Those to tell now, if it is time or they cannot wait; none otherwise.
    pub fn take(&mut self, now: Mono, at_once: bool) -> BTreeSet<OrderNumber> {
        if at_once || self.due().is_some_and(|due| due <= now) {
            return std::mem::take(&mut self.orders);
        }
        BTreeSet::new()
    }
}

impl<D: Defects> AgentCore<D> {
    /// What a parent is told of orders that are on this disk.
    pub(super) fn taken(&self, orders: impl IntoIterator<Item = OrderNumber>) -> Message {
        Message::Taken(orders.into_iter().map(|order| (order, vec![self.me.node])).collect())
    }

    /// Tells what is due; a poll waits for no result.
    pub(super) fn tell_taken(&mut self, now: Now, out: &mut Vec<Effect>) {
        let polls = self.link.as_ref().is_some_and(|link| link.poll);
        let orders = self.untold.take(now.mono, polls);
        if !orders.is_empty() {
            out.push(Effect::Send(Lane::Control, self.taken(orders)));
        }
    }
}
