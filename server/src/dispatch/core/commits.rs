//! What is written, and what follows once it is durable (pure).

use super::{
    After, Core, Effect, Token, Work,
    orders::{self, end_poll, holders_op, offer},
};
use crate::dispatch::withdrawals;
use branchline_node::defects::Defects;
use branchline_protocol::{
    id::{NodeId, TenantId},
    time::Now,
    wire::Message,
};
use std::collections::BTreeMap;

impl<D: Defects> Core<D> {
    pub(super) fn commit(&mut self, now: Now, tenant: &TenantId, work: Work, mut after: After, out: &mut Vec<Effect>) {
        after.effects = work.after;
        after.over.extend(work.over.into_iter().map(|over| (tenant.clone(), over)));
        let look: Vec<NodeId> = work.look.into_iter().collect();
        if work.ops.is_empty() {
            // What is acknowledged as known may be in a batch that is on its way to the disk: that one's end is awaited.
            let promises = |effect: &Effect| matches!(effect, Effect::Send(_, _, _, Message::Acks(_)));
            let promise = after.effects.iter().any(promises);
            match self.waiting.values_mut().next_back().filter(|_| promise) {
                Some(last) => last.effects.append(&mut after.effects),
                None => self.release(now, after, out),
            }
        } else {
            self.next_token += 1;
            let token = self.next_token;
            self.waiting.insert(token, after);
            out.push(Effect::Commit(work.ops, token));
        }
        // What is in the ledger is durable already: offering it need not wait for this event's own writes.
        self.look(now, tenant, &look, out);
    }

    /// Offers what waits for these devices; to a child that is no holder yet once it durably is.
    pub(super) fn look(&mut self, now: Now, tenant: &TenantId, devices: &[NodeId], out: &mut Vec<Effect>) {
        if devices.is_empty() || self.recovery.is_some() {
            return;
        }
        let Some(state) = self.tenants.get_mut(tenant) else { return };
        let asks = offer(state, now, devices, out);
        if asks.is_empty() {
            return;
        }
        let ops = asks.iter().filter_map(|ask| holders_op(state, tenant, &ask.change)).collect();
        let asks = asks.into_iter().map(|ask| (tenant.clone(), ask)).collect();
        self.commit(now, tenant, Work { ops, ..Work::default() }, After { asks, ..After::default() }, out);
    }

    pub(super) fn committed(&mut self, now: Now, token: Token, out: &mut Vec<Effect>) {
        let Some(after) = self.waiting.remove(&token) else { return };
        for (tenant, device) in &after.inventories {
            if let Some(state) = self.tenants.get_mut(tenant)
                && state.pending_inventory.get(device).is_some_and(|(t, _, _)| *t == token)
            {
                state.pending_inventory.remove(device);
            }
        }
        self.release(now, after, out);
        for state in self.tenants.values_mut() {
            let polls: Vec<NodeId> = state.links.iter().filter(|(_, l)| l.poll && l.done).map(|(n, _)| *n).collect();
            for child in polls {
                end_poll(state, child, self.waiting.len(), out);
            }
        }
    }

    pub(super) fn release(&mut self, now: Now, after: After, out: &mut Vec<Effect>) {
        out.extend(after.effects);
        let mut over: BTreeMap<TenantId, Vec<withdrawals::Over>> = BTreeMap::new();
        for (tenant, one) in after.over {
            over.entry(tenant).or_default().push(one);
        }
        for (tenant, over) in over {
            if let Some(state) = self.tenants.get_mut(&tenant) {
                for child in state.withdrawals.add(now.node, over) {
                    withdrawals::tell(state, &tenant, child, out);
                }
            }
        }
        let mut look: BTreeMap<TenantId, Vec<NodeId>> = BTreeMap::new();
        for (tenant, ask) in after.asks {
            if let Some(state) = self.tenants.get_mut(&tenant) {
                state.ledger.granted(&ask);
                look.entry(tenant).or_default().push(ask.change.device);
            }
        }
        if let Some((tenant, entered)) = after.order
            && let Some(state) = self.tenants.get_mut(&tenant)
        {
            let devices = orders::enlist(state, &tenant, *entered);
            look.entry(tenant).or_default().extend(devices);
        }
        for (tenant, devices) in look {
            self.look(now, &tenant, &devices, out);
        }
    }
}
