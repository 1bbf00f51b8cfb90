//! What a restored server has to know of a ledger, and what it must not take for granted of its own (OPS-7).

use super::{Change, Ledger, OrderMessage, OrderNumber};

impl Ledger {
    /// Open orders as they came, of those numbers that are wanted; one of several parts comes as several.
    pub fn open_orders(&self, wanted: impl Fn(OrderNumber) -> bool) -> Vec<OrderMessage> {
        let orders = self.orders.iter().filter(|(number, _)| wanted(**number));
        orders.flat_map(|(_, order)| order.proofs.iter().map(|proof| OrderMessage::clone(&proof.message))).collect()
    }

    /// This ledger was put back to an older state: whatever waits in it may have gone out since, so each device itself may
    /// have its order. Answers the rows that say more now.
    pub fn doubt(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (number, order) in &mut self.orders {
            for (device, entry) in &mut order.rows {
                if !entry.holders.contains(device) {
                    entry.holders.push(*device);
                    changes.push(entry.change(*number, *device));
                }
            }
        }
        changes
    }
}
