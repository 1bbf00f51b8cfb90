//! Orders on their way down (pure): which device below still has to be given which order, and by which child. The same
//! rule serves server and relay; each keeps the rows in its own store.
//!
//! ```text
//! waiting ──offer──► offered(child) ──taken by a relay──► held(relay) ──its fact──► handed over
//!    ▲                    │ child gone                        │ moved elsewhere          │
//!    └────────────────────┴───────────────────────────────────┘                        ended: row gone
//! ```
//! An order crosses a link once per child, with one proof cut for all devices behind it (DESIGN 5, 6).

use branchline_protocol::{
    id::{Epoch, NodeId, OrderNumber, TenantId},
    order::{Cutter, OrderMessage, Payload, ProofError},
    time::Millis,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Where one device's order stands at this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// Not with any child.
    Waiting,
    /// On a link, not acknowledged. Never durable: after a crash it is waiting again.
    Offered(NodeId),
    /// Durable at that child relay.
    Held(NodeId),
    /// The device journalled it.
    HandedOver,
}

/// A row changed, for the owner's store and view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The order.
    pub order: OrderNumber,
    /// The device.
    pub device: NodeId,
    /// Its row now; `None`: it is over, the row is gone.
    pub row: Option<Row>,
}

/// One order for one child, its proof cut for the devices behind that child.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The child.
    pub child: NodeId,
    /// The order's payload.
    pub payload: Arc<Payload>,
    /// What to send.
    pub message: OrderMessage,
    /// The devices it is for.
    pub devices: Vec<NodeId>,
}

struct Proof {
    message: Arc<OrderMessage>,
    cutter: Cutter,
}

struct Order {
    payload: Arc<Payload>,
    proofs: Vec<Proof>,
    /// Device to (which proof, its position there, row).
    rows: BTreeMap<NodeId, (usize, usize, Row)>,
}

/// Orders that are not over for every device below.
#[derive(Default)]
pub struct Ledger {
    orders: BTreeMap<OrderNumber, Order>,
    by_device: BTreeMap<NodeId, BTreeSet<OrderNumber>>,
}

impl Ledger {
    /// Adds a verified order with a waiting row for each device of its proof, or only for those in `only`. Devices it
    /// has already keep their rows. Answers the new rows.
    pub fn add(
        &mut self,
        tenant: &TenantId,
        payload: Payload,
        message: OrderMessage,
        only: Option<&BTreeMap<NodeId, Row>>,
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
            let row = match only {
                None => Row::Waiting,
                Some(rows) => match rows.get(&leaf.device) {
                    Some(row) => *row,
                    None => continue,
                },
            };
            if order.rows.contains_key(&leaf.device) {
                continue;
            }
            order.rows.insert(leaf.device, (proof, position, row));
            self.by_device.entry(leaf.device).or_default().insert(number);
            changes.push(Change { order: number, device: leaf.device, row: Some(row) });
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

    /// Offers of all waiting rows whose way is open, one per order and child. `hop` answers the live child by which a
    /// device is reached. Rows past `fetch_by` stay: their end is the server's to conclude.
    pub fn offers(
        &mut self,
        now: Millis,
        devices: Option<&[NodeId]>,
        hop: impl Fn(NodeId) -> Option<NodeId>,
    ) -> Vec<Offer> {
        let numbers: BTreeSet<OrderNumber> = match devices {
            None => self.orders.keys().copied().collect(),
            Some(devices) => devices.iter().filter_map(|d| self.by_device.get(d)).flatten().copied().collect(),
        };
        let mut offers = Vec::new();
        for number in numbers {
            let Some(order) = self.orders.get_mut(&number) else { continue };
            if now > order.payload.fetch_by {
                continue;
            }
            let mut groups: BTreeMap<(NodeId, usize), Vec<(NodeId, usize)>> = BTreeMap::new();
            let mut visit = |device: NodeId, entry: &mut (usize, usize, Row)| {
                if entry.2 == Row::Waiting
                    && let Some(child) = hop(device)
                {
                    entry.2 = Row::Offered(child);
                    groups.entry((child, entry.0)).or_default().push((device, entry.1));
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
                let Some(Proof { message, cutter }) = order.proofs.get_mut(proof) else { continue };
                let positions: Vec<usize> = group.iter().map(|(_, p)| *p).collect();
                let Some(proof) = cutter.cut(&positions) else { continue };
                let message = OrderMessage { envelope: message.envelope.clone(), args: message.args.clone(), proof };
                let devices = group.into_iter().map(|(d, _)| d).collect();
                offers.push(Offer { child, payload: order.payload.clone(), message, devices });
            }
        }
        offers
    }

    /// A child has an order on disk for these devices. Only what was offered to it, or is held by it, changes.
    pub fn taken(&mut self, child: NodeId, number: OrderNumber, devices: &[NodeId]) -> Vec<Change> {
        let Some(order) = self.orders.get_mut(&number) else { return Vec::new() };
        let mut changes = Vec::new();
        for device in devices {
            let Some((_, _, row)) = order.rows.get_mut(device) else { continue };
            let mine = matches!(row, Row::Offered(c) | Row::Held(c) if *c == child);
            let next = if *device == child { Row::HandedOver } else { Row::Held(child) };
            if mine && *row != next {
                *row = next;
                changes.push(Change { order: number, device: *device, row: Some(next) });
            }
        }
        changes
    }

    /// A relay says that the device journalled it.
    pub fn handed_over(&mut self, number: OrderNumber, device: NodeId) -> Option<Change> {
        let (_, _, row) = self.orders.get_mut(&number)?.rows.get_mut(&device)?;
        if *row == Row::HandedOver {
            return None;
        }
        *row = Row::HandedOver;
        Some(Change { order: number, device, row: Some(Row::HandedOver) })
    }

    /// A child's link is gone: what it had not acknowledged waits again. `lost_disk`: so does what it held.
    pub fn child_gone(&mut self, child: NodeId, devices: &[NodeId], lost_disk: bool) -> Vec<Change> {
        let mut changes = Vec::new();
        for device in devices {
            for number in self.by_device.get(device).into_iter().flatten() {
                let Some((_, _, row)) = self.orders.get_mut(number).and_then(|o| o.rows.get_mut(device)) else {
                    continue;
                };
                match *row {
                    Row::Offered(c) if c == child => *row = Row::Waiting,
                    Row::Held(c) if c == child && lost_disk => {
                        *row = Row::Waiting;
                        changes.push(Change { order: *number, device: *device, row: Some(Row::Waiting) });
                    }
                    _ => {}
                }
            }
        }
        changes
    }

    /// A device is reached by another child now: what the old one held goes there too; the device runs it once.
    pub fn moved(&mut self, device: NodeId, hop: Option<NodeId>) -> Vec<Change> {
        let mut changes = Vec::new();
        for number in self.by_device.get(&device).into_iter().flatten() {
            let Some((_, _, row)) = self.orders.get_mut(number).and_then(|o| o.rows.get_mut(&device)) else { continue };
            if let Row::Offered(child) | Row::Held(child) = *row
                && hop.is_some_and(|hop| hop != child)
            {
                let durable = matches!(row, Row::Held(_));
                *row = Row::Waiting;
                if durable {
                    changes.push(Change { order: *number, device, row: Some(Row::Waiting) });
                }
            }
        }
        changes
    }

    /// The order is over on this device.
    pub fn ended(&mut self, number: OrderNumber, device: NodeId) -> Option<Change> {
        let order = self.orders.get_mut(&number)?;
        order.rows.remove(&device)?;
        if order.rows.is_empty() {
            self.orders.remove(&number);
        }
        if let Some(numbers) = self.by_device.get_mut(&device) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_device.remove(&device);
            }
        }
        Some(Change { order: number, device, row: None })
    }

    /// Where a device's order stands here.
    pub fn row(&self, number: OrderNumber, device: NodeId) -> Option<Row> {
        self.orders.get(&number)?.rows.get(&device).map(|(_, _, row)| *row)
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
            self.by_device
                .get(device)
                .into_iter()
                .flatten()
                .any(|n| matches!(self.row(*n, *device), Some(Row::Offered(_))))
        })
    }

    /// Open (order, device) rows.
    pub fn open_rows(&self) -> u64 {
        self.orders.values().map(|o| o.rows.len() as u64).sum()
    }

    /// Orders past their `fetch_by` with rows that no device was handed: what the server concludes as expired.
    pub fn past_fetch(&self, now: Millis) -> Vec<(OrderNumber, NodeId, Row)> {
        let late = self.orders.iter().filter(|(_, o)| now > o.payload.fetch_by);
        late.flat_map(|(n, o)| o.rows.iter().map(|(d, (_, _, row))| (*n, *d, *row)))
            .filter(|(_, _, r)| *r != Row::HandedOver)
            .collect()
    }

    /// The epoch a device's leaf binds.
    pub fn epoch(&self, number: OrderNumber, device: NodeId) -> Option<Epoch> {
        let order = self.orders.get(&number)?;
        let (proof, position, _) = order.rows.get(&device)?;
        order.proofs.get(*proof)?.message.proof.leaves.get(*position).map(|(_, leaf)| leaf.epoch)
    }
}

#[cfg(test)]
mod tests;
