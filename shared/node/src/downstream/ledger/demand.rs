//! What open orders ask of the slots: a device with an urgent one needs to stay attached, and one with an order in progress
//! keeps its slot until that is over.

use super::{Ledger, Row};
use crate::downstream::admission::Demand;
use branchline_protocol::{id::NodeId, job::Class};
use std::collections::BTreeMap;

impl Ledger {
    /// The demands of those of this node's own children that have open orders. An order that nobody is given any more and
    /// that the device does not have asks for nothing.
    pub fn demands(&self, children: impl Iterator<Item = NodeId>) -> BTreeMap<NodeId, Demand> {
        let children = children.filter_map(|child| self.by_device.get_key_value(&child));
        let of = |device: NodeId, number| {
            let order = self.orders.get(number)?;
            let entry = order.rows.get(&device)?;
            let in_progress = entry.row == Row::HandedOver || entry.row == Row::Offered(device);
            let open = in_progress || !entry.closed;
            Some(Demand { urgent: open && order.payload.class == Class::Urgent, in_progress })
        };
        let demands = children.map(|(device, numbers)| {
            let all = numbers.iter().filter_map(|number| of(*device, number));
            let joined = all.fold(Demand::default(), |a, b| Demand {
                urgent: a.urgent || b.urgent,
                in_progress: a.in_progress || b.in_progress,
            });
            (*device, joined)
        });
        demands.filter(|(_, demand)| *demand != Demand::default()).collect()
    }
}
