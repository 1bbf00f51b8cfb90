//! Steering orders that more children must be told than lead to the device: whoever may have a cancelled order, although
//! the device has moved elsewhere since (JOB-14).

use super::{Ledger, Offer, Row};
use branchline_protocol::id::{NodeId, OrderNumber};
use std::collections::BTreeMap;

impl Ledger {
    /// These children are to be told a device's steering order too, until each has taken it. Nothing is kept on disk:
    /// after a restart the same children are named again.
    pub fn also(&mut self, number: OrderNumber, device: NodeId, children: impl IntoIterator<Item = NodeId>) {
        if self.seen(number, device).is_none() {
            return;
        }
        let children = children.into_iter().filter(|child| *child != device);
        let told = self.also.entry((number, device)).or_default();
        children.for_each(|child| {
            told.entry(child).or_insert(false);
        });
        if told.is_empty() {
            self.also.remove(&(number, device));
        }
    }

    /// Offers to such children with a live link that were not told yet.
    pub fn also_offers(&mut self, live: impl Fn(NodeId) -> bool) -> Vec<Offer> {
        let Ledger { orders, also, .. } = self;
        let mut groups: BTreeMap<(OrderNumber, NodeId, usize), Vec<(NodeId, usize)>> = BTreeMap::new();
        for ((number, device), told) in also {
            let Some(entry) = orders.get(number).and_then(|o| o.rows.get(device)) else { continue };
            // The device's next hop is offered it anyway.
            let hop = match entry.row {
                Row::Offered(child) | Row::Held(child) => Some(child),
                Row::Waiting | Row::HandedOver => None,
            };
            let open = told.iter_mut().filter(|(child, offered)| !**offered && Some(**child) != hop && live(**child));
            for (child, offered) in open {
                *offered = true;
                groups.entry((*number, *child, entry.proof)).or_default().push((*device, entry.position));
            }
        }
        let offers = groups.into_iter().filter_map(|((number, child, proof), group)| {
            let order = orders.get(&number)?;
            let positions: Vec<usize> = group.iter().map(|(_, p)| *p).collect();
            let message = order.proofs.get(proof)?.cut(&positions)?;
            let devices = group.into_iter().map(|(d, _)| d).collect();
            Some(Offer { child, payload: order.payload.clone(), message, devices })
        });
        offers.collect()
    }

    pub(super) fn told(&mut self, child: NodeId, number: OrderNumber, device: NodeId) {
        if let Some(told) = self.also.get_mut(&(number, device)) {
            told.remove(&child);
            if told.is_empty() {
                self.also.remove(&(number, device));
            }
        }
    }

    pub(super) fn untold(&mut self, child: NodeId) {
        for told in self.also.values_mut() {
            if let Some(offered) = told.get_mut(&child) {
                *offered = false;
            }
        }
    }
}
