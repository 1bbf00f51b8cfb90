//! Orders on their way down (pure): which device below still has to be given which order, and by which child. The same
//! rule serves server and relay; each keeps the rows in its own store.
//!
//! ```text
//! waiting ──offer──► offered(child) ──taken by a relay──► held(relay) ──its fact──► handed over
//!    ▲                    │ child gone                        │ moved elsewhere          │
//!    └────────────────────┴───────────────────────────────────┘                        ended: row gone
//! ```
//! An order crosses a link once per child, with one proof cut for all devices behind it (DESIGN 5, 6).
//!
//! Beside where it stands, a row has its *holders*: children to which it was ever offered and that have not given it
//! back. A child becomes one durably before the first send. So a row without holders is one that nobody below can have,
//! and only such a row is given back, expires, or is cancelled on this node's word.

mod demand;
mod recall;
mod row;
mod steer;

pub use row::{Ask, Change, Kept, Offer, Overdue, Round, Row};

use branchline_protocol::{
    id::{Epoch, NodeId, OrderNumber, TenantId},
    order::{Cutter, OrderMessage, Payload, ProofError},
    time::Millis,
};
use row::Entry;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

struct Proof {
    message: Arc<OrderMessage>,
    cutter: Cutter,
}

impl Proof {
    /// The order with the leaves at these positions only.
    fn cut(&self, positions: &[usize]) -> Option<OrderMessage> {
        let proof = self.cutter.cut(positions)?;
        Some(OrderMessage { envelope: self.message.envelope.clone(), args: self.message.args.clone(), proof })
    }
}

struct Order {
    payload: Arc<Payload>,
    proofs: Vec<Proof>,
    rows: BTreeMap<NodeId, Entry>,
}

/// Orders that are not over for every device below.
#[derive(Default)]
pub struct Ledger {
    orders: BTreeMap<OrderNumber, Order>,
    by_device: BTreeMap<NodeId, BTreeSet<OrderNumber>>,
    /// Steering orders that children other than a device's next hop are to be told, and whether each was offered it.
    also: BTreeMap<(OrderNumber, NodeId), BTreeMap<NodeId, bool>>,
}

impl Ledger {
    /// Adds a verified order with a row for each device of its proof for which `keep` says what is known. Devices it has
    /// already keep their rows. Answers the new rows.
    pub fn add(
        &mut self,
        tenant: &TenantId,
        payload: Payload,
        message: OrderMessage,
        mut keep: impl FnMut(NodeId) -> Option<Kept>,
    ) -> Result<Vec<Change>, ProofError> {
        let number = payload.number;
        let cutter = Cutter::new(&message.proof, tenant, number, payload.leaf_count)?;
        let order = self.orders.entry(number).or_insert_with(|| Order {
            payload: Arc::new(payload),
            proofs: Vec::new(),
            rows: BTreeMap::new(),
        });
        let proof = order.proofs.len();
        let mut changes = Vec::new();
        for (position, (_, leaf)) in message.proof.leaves.iter().enumerate() {
            if order.rows.contains_key(&leaf.device) {
                continue;
            }
            let Some(Kept { row, holders, asked, closed, past }) = keep(leaf.device) else { continue };
            let past = if past { leaf.epoch.saturating_add(1) } else { 0 };
            let entry = Entry { proof, position, row, holders, asked: asked.into_iter().collect(), closed, past };
            changes.push(entry.change(number, leaf.device));
            order.rows.insert(leaf.device, entry);
            self.by_device.entry(leaf.device).or_default().insert(number);
        }
        if changes.is_empty() {
            if order.rows.is_empty() {
                self.orders.remove(&number);
            }
        } else {
            order.proofs.push(Proof { message: Arc::new(message), cutter });
        }
        Ok(changes)
    }

    /// Offers of all waiting rows whose way is open, one per order and child, and the rows whose way leads to a child
    /// that is no holder yet. `hop` answers the live child by which a device is reached. Rows past `fetch_by` stay.
    pub fn offers(&mut self, now: Millis, devices: Option<&[NodeId]>, hop: impl Fn(NodeId) -> Option<NodeId>) -> Round {
        let numbers: BTreeSet<OrderNumber> = match devices {
            None => self.orders.keys().copied().collect(),
            Some(devices) => devices.iter().filter_map(|d| self.by_device.get(d)).flatten().copied().collect(),
        };
        let mut round = Round::default();
        for number in numbers {
            let Some(order) = self.orders.get_mut(&number) else { continue };
            let late = now > order.payload.fetch_by;
            let mut groups: BTreeMap<(NodeId, usize), Vec<(NodeId, usize)>> = BTreeMap::new();
            let mut visit = |device: NodeId, entry: &mut Entry| {
                if entry.row != Row::Waiting || ((entry.closed || late) && !entry.is_past()) {
                    return;
                }
                let Some(child) = hop(device) else { return round.unreached.push(device) };
                if entry.holders.contains(&child) {
                    entry.row = Row::Offered(child);
                    groups.entry((child, entry.proof)).or_default().push((device, entry.position));
                } else if !entry.asked.contains(&child) {
                    entry.asked.push(child);
                    round.asks.push(Ask { change: entry.change(number, device), child });
                }
            };
            match devices {
                None => order.rows.iter_mut().for_each(|(device, entry)| visit(*device, entry)),
                Some(devices) => {
                    for device in devices {
                        if let Some(entry) = order.rows.get_mut(device) {
                            visit(*device, entry);
                        }
                    }
                }
            }
            for ((child, proof), group) in groups {
                let positions: Vec<usize> = group.iter().map(|(_, p)| *p).collect();
                let Some(message) = order.proofs.get(proof).and_then(|p| p.cut(&positions)) else { continue };
                let devices = group.into_iter().map(|(d, _)| d).collect();
                round.offers.push(Offer { child, payload: order.payload.clone(), message, devices });
            }
        }
        round
    }

    /// An [`Ask`] is durable.
    pub fn granted(&mut self, ask: &Ask) {
        if let Some(entry) = self.entry(ask.change.order, ask.change.device) {
            entry.asked.retain(|child| *child != ask.child);
            if !entry.holders.contains(&ask.child) {
                entry.holders.push(ask.child);
            }
        }
    }

    /// A child has an order on disk for these devices. Only what was offered to it, or is held by it, changes.
    pub fn taken(&mut self, child: NodeId, number: OrderNumber, devices: &[NodeId]) -> Vec<Change> {
        let mut changes = Vec::new();
        for device in devices {
            self.told(child, number, *device);
            let Some(entry) = self.entry(number, *device) else { continue };
            let mine = matches!(entry.row, Row::Offered(c) | Row::Held(c) if c == child);
            let next = if *device == child { Row::HandedOver } else { Row::Held(child) };
            if mine && entry.row != next {
                entry.row = next;
                changes.push(entry.change(number, *device));
            }
        }
        changes
    }

    /// A relay says that the device journalled it. Of an epoch that the device has left that says nothing: the disk that
    /// had it is no more, and the device answers anew.
    pub fn handed_over(&mut self, number: OrderNumber, device: NodeId) -> Option<Change> {
        let entry = self.entry(number, device)?;
        if entry.row == Row::HandedOver || entry.is_past() {
            return None;
        }
        entry.row = Row::HandedOver;
        Some(entry.change(number, device))
    }

    /// A node says that it does not have the order, never will, and that nobody below it does. That is its last word on
    /// it, and as the reasons hold for everyone (it is cancelled, or late), nobody is offered it any more. The word of one
    /// that never had it counts for nothing (RLY-9): a relay below a holder is heard by that holder.
    pub fn given_back(&mut self, number: OrderNumber, device: NodeId, by: NodeId) -> Option<Change> {
        let entry = self.entry(number, device).filter(|entry| by == device || entry.holders.contains(&by))?;
        entry.closed = true;
        // The device's own word counts whatever was thought of it.
        if by == device || matches!(entry.row, Row::Offered(c) | Row::Held(c) if c == by) {
            entry.row = Row::Waiting;
        }
        let before = entry.holders.len();
        entry.holders.retain(|child| *child != by);
        (entry.holders.len() < before).then(|| entry.change(number, device))
    }

    /// It is cancelled: whoever may have it keeps it, nobody else gets it.
    pub fn close(&mut self, number: OrderNumber, device: NodeId) {
        if let Some(entry) = self.entry(number, device) {
            entry.closed = true;
        }
    }

    /// A child's link is gone: what it had not acknowledged waits again.
    pub fn child_gone(&mut self, child: NodeId, devices: &[NodeId]) {
        for device in devices {
            for number in self.by_device.get(device).into_iter().flatten() {
                let entry = self.orders.get_mut(number).and_then(|o| o.rows.get_mut(device));
                if let Some(entry) = entry.filter(|e| e.row == Row::Offered(child)) {
                    entry.row = Row::Waiting;
                }
            }
        }
        self.untold(child);
    }

    /// A child relay's disk was replaced: what it held it may have handed on, so each device itself may have its order.
    pub fn child_lost(&mut self, child: NodeId) -> Vec<Change> {
        let mut changes = Vec::new();
        for (number, order) in &mut self.orders {
            for (device, entry) in &mut order.rows {
                let waits = matches!(entry.row, Row::Offered(c) | Row::Held(c) if c == child);
                if waits {
                    entry.row = Row::Waiting;
                }
                let held = entry.holders.contains(&child) && *device != child;
                if held {
                    entry.holders.retain(|c| c != &child);
                    if !entry.holders.contains(device) {
                        entry.holders.push(*device);
                    }
                }
                if held || waits {
                    changes.push(entry.change(*number, *device));
                }
            }
        }
        changes
    }

    /// A child relay has opened its store anew, perhaps on a disk that was put back to an older state: what it held it is
    /// offered again, and what it has still it passes over (RLY-8). It stays a holder.
    pub fn child_reopened(&mut self, child: NodeId) -> Vec<Change> {
        let mut changes = Vec::new();
        for (number, order) in &mut self.orders {
            for (device, entry) in order.rows.iter_mut().filter(|(_, entry)| entry.row == Row::Held(child)) {
                entry.row = Row::Waiting;
                changes.push(entry.change(*number, *device));
            }
        }
        changes
    }

    /// This node's own disk was put back to an older state: what is open here each device may have already.
    pub fn doubted(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (number, order) in &mut self.orders {
            for (device, entry) in order.rows.iter_mut().filter(|(device, entry)| !entry.holders.contains(device)) {
                entry.holders.push(*device);
                changes.push(entry.change(*number, *device));
            }
        }
        changes
    }

    /// A device goes on in this epoch: its disk was put back to an older state. Whatever was said of its orders of earlier
    /// epochs, it is asked for them again, also for those that are late or cancelled: it answers with what it has, or that
    /// it knows no more (DESIGN 5).
    ///
    /// With `doubt` the device counts as a holder from here on: a relay knows nothing of what it was given elsewhere.
    pub fn raised(&mut self, device: NodeId, epoch: Epoch, doubt: bool) -> Vec<Change> {
        let mut changes = Vec::new();
        for number in self.by_device.get(&device).into_iter().flatten() {
            let Some(order) = self.orders.get_mut(number) else { continue };
            let Some(entry) = order.rows.get_mut(&device) else { continue };
            let leaf = order.proofs.get(entry.proof).and_then(|p| p.message.proof.leaves.get(entry.position));
            if entry.past >= epoch || leaf.is_none_or(|(_, leaf)| leaf.epoch >= epoch) {
                continue;
            }
            entry.past = epoch;
            let doubted = doubt && !entry.holders.contains(&device);
            if doubted {
                entry.holders.push(device);
            }
            if entry.row != Row::Waiting || doubted {
                entry.row = Row::Waiting;
                changes.push(entry.change(*number, device));
            }
        }
        changes
    }

    /// A device is reached by another child now: what the old one held goes there too; the device runs it once.
    pub fn moved(&mut self, device: NodeId, hop: Option<NodeId>) -> Vec<Change> {
        let mut changes = Vec::new();
        for number in self.by_device.get(&device).into_iter().flatten() {
            let Some(entry) = self.orders.get_mut(number).and_then(|o| o.rows.get_mut(&device)) else { continue };
            if let Row::Offered(child) | Row::Held(child) = entry.row
                && hop.is_some_and(|hop| hop != child)
            {
                let durable = matches!(entry.row, Row::Held(_));
                entry.row = Row::Waiting;
                if durable {
                    changes.push(entry.change(*number, device));
                }
            }
        }
        changes
    }

    /// The order is over on this device. The change names who may still have it.
    pub fn ended(&mut self, number: OrderNumber, device: NodeId) -> Option<Change> {
        let order = self.orders.get_mut(&number)?;
        let entry = order.rows.remove(&device)?;
        if order.rows.is_empty() {
            self.orders.remove(&number);
        }
        if let Some(numbers) = self.by_device.get_mut(&device) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_device.remove(&device);
            }
        }
        self.also.remove(&(number, device));
        Some(Change { row: None, ..entry.change(number, device) })
    }

    /// Devices with open rows.
    pub fn devices(&self) -> impl Iterator<Item = NodeId> {
        self.by_device.keys().copied()
    }

    /// Orders that a device is said to have in its present epoch.
    pub fn handed(&self, device: NodeId) -> Vec<OrderNumber> {
        let numbers = self.by_device.get(&device).into_iter().flatten().copied();
        let has = |number: &OrderNumber| self.seen(*number, device).is_some_and(|entry| entry.row == Row::HandedOver);
        numbers.filter(has).collect()
    }

    fn entry(&mut self, number: OrderNumber, device: NodeId) -> Option<&mut Entry> {
        self.orders.get_mut(&number)?.rows.get_mut(&device)
    }

    fn seen(&self, number: OrderNumber, device: NodeId) -> Option<&Entry> {
        self.orders.get(&number)?.rows.get(&device)
    }

    /// Where a device's order stands here.
    pub fn row(&self, number: OrderNumber, device: NodeId) -> Option<Row> {
        self.seen(number, device).map(|entry| entry.row)
    }

    /// Children that may have a device's order.
    pub fn holders(&self, number: OrderNumber, device: NodeId) -> &[NodeId] {
        self.seen(number, device).map_or(&[], |entry| &entry.holders)
    }

    /// Whether a device's order is open here, of an epoch that the device has left.
    pub fn is_past(&self, number: OrderNumber, device: NodeId) -> bool {
        self.seen(number, device).is_some_and(Entry::is_past)
    }

    /// Whether a device's order is open here and nobody below can have it.
    pub fn is_free(&self, number: OrderNumber, device: NodeId) -> bool {
        self.seen(number, device).is_some_and(Entry::is_free)
    }

    /// An order's payload while it is open here.
    pub fn payload(&self, number: OrderNumber) -> Option<&Arc<Payload>> {
        self.orders.get(&number).map(|o| &o.payload)
    }

    /// Whether an order is open here for any device.
    pub fn contains(&self, number: OrderNumber) -> bool {
        self.orders.contains_key(&number)
    }

    /// Whether something for these devices is on a link and not acknowledged: a poll must not end yet.
    pub fn is_offered(&self, devices: &[NodeId]) -> bool {
        devices.iter().any(|device| {
            let numbers = self.by_device.get(device).into_iter().flatten();
            numbers
                .filter_map(|n| self.seen(*n, *device))
                .any(|entry| matches!(entry.row, Row::Offered(_)) || !entry.asked.is_empty())
        })
    }

    /// Open (order, device) rows.
    pub fn open_rows(&self) -> u64 {
        self.orders.values().map(|o| o.rows.len() as u64).sum()
    }

    /// Rows past the last instant at which an agent may journal them, by this node's time (JOB-4).
    pub fn overdue(&self, now: Millis) -> Vec<Overdue> {
        let late = self.orders.iter().filter(|(_, o)| now > o.payload.fetch_by);
        let rows = late.flat_map(|(n, o)| o.rows.iter().map(|(d, e)| (*n, *d, now > o.payload.report_by(), e)));
        let overdue = rows.map(|(order, device, silent, entry)| Overdue {
            order,
            device,
            handed_over: entry.row == Row::HandedOver || (entry.is_past() && !entry.holders.is_empty()),
            free: entry.is_free(),
            silent,
        });
        overdue.collect()
    }

    /// The epoch a device's leaf binds.
    pub fn epoch(&self, number: OrderNumber, device: NodeId) -> Option<Epoch> {
        let order = self.orders.get(&number)?;
        let entry = order.rows.get(&device)?;
        order.proofs.get(entry.proof)?.message.proof.leaves.get(entry.position).map(|(_, leaf)| leaf.epoch)
    }
}

#[cfg(test)]
mod tests;
