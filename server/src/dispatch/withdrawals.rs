//! Orders that are over on a device while children may still hold them (pure): each such child is told in the server's
//! signed words, when it is there, until it says that it knows (DESIGN 5).
//!
//! Kept in memory only: what a restart forgets stays with that child until `report_by` and changes nothing, because an
//! end stays and a device starts an order once.

use super::core::{Effect, TenantState};
use branchline_protocol::{
    id::{NodeId, OrderNumber, TenantId},
    order::{WITHDRAWAL_DEVICES_MAX, Withdrawal},
    time::Millis,
};
use std::collections::{BTreeMap, BTreeSet};

/// (order, device) that wait for one child; what is beyond is not told.
pub const WAITING_MAX: usize = 8_192;

/// A child that may still have an order which is over on a device, and until when that matters.
pub struct Over {
    pub child: NodeId,
    pub order: OrderNumber,
    pub device: NodeId,
    pub until: Millis,
}

/// What children were not told yet, or did not confirm.
#[derive(Default)]
pub struct Withdrawals {
    waiting: BTreeMap<NodeId, BTreeMap<OrderNumber, (Millis, BTreeSet<NodeId>)>>,
}

impl Withdrawals {
    /// These ends are durable; answers the children concerned. What is past its time by now everybody lets go by itself.
    pub fn add(&mut self, now: Millis, over: Vec<Over>) -> BTreeSet<NodeId> {
        let mut children = BTreeSet::new();
        for Over { child, order, device, until } in over.into_iter().filter(|over| now <= over.until) {
            let orders = self.waiting.entry(child).or_default();
            if orders.values().map(|(_, devices)| devices.len()).sum::<usize>() < WAITING_MAX {
                orders.entry(order).or_insert_with(|| (until, BTreeSet::new())).1.insert(device);
                children.insert(child);
            }
        }
        children
    }

    /// What a child is to be told, to be signed.
    pub fn of(&self, tenant: &TenantId, child: NodeId) -> Vec<Withdrawal> {
        let orders = self.waiting.get(&child).into_iter().flatten();
        let told = orders.flat_map(|(target, (until, devices))| {
            let devices: Vec<NodeId> = devices.iter().copied().collect();
            let part = |devices: &[NodeId]| Withdrawal {
                tenant: tenant.clone(),
                target: *target,
                devices: devices.to_vec(),
                until: *until,
            };
            devices.chunks(WITHDRAWAL_DEVICES_MAX).map(part).collect::<Vec<_>>()
        });
        told.collect()
    }

    /// A child has it on disk that these are over.
    pub fn known(&mut self, child: NodeId, list: &[(OrderNumber, Vec<NodeId>)]) {
        let Some(orders) = self.waiting.get_mut(&child) else { return };
        for (order, devices) in list {
            if let Some((_, waiting)) = orders.get_mut(order) {
                devices.iter().for_each(|device| _ = waiting.remove(device));
            }
        }
        orders.retain(|_, (_, devices)| !devices.is_empty());
        if orders.is_empty() {
            self.waiting.remove(&child);
        }
    }

    /// By now every node has let these go by itself.
    pub fn expire(&mut self, now: Millis) {
        self.waiting.retain(|_, orders| {
            orders.retain(|_, (until, _)| now <= *until);
            !orders.is_empty()
        });
    }
}

/// Tells a child with a live link what waits for it.
pub(super) fn tell(state: &TenantState, tenant: &TenantId, child: NodeId, out: &mut Vec<Effect>) {
    let Some(link) = state.links.get(&child) else { return };
    let list = state.withdrawals.of(tenant, child);
    if !list.is_empty() {
        out.push(Effect::Withdraw(child, link.session, list));
    }
}
