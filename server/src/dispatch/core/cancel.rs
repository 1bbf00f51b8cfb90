//! Cancelling: at once where nobody below can have the order, else by a signed order of its own to whoever may (JOB-14).

use super::{
    After, CancelJob, CancelPlan, Core, Effect, TenantState, Work,
    orders::{Over, end, enter, holders_op},
};
use crate::store::{AuditRow, Op};
use branchline_node::defects::{Defect, Defects};
use branchline_protocol::{
    id::{JobId, NodeId, OrderNumber, TenantId},
    job::{CANCEL, Cancel, State},
    time::Now,
};

/// The reason of a device that is not at its end although its job is cancelled.
pub const CANCELLING: &str = "cancelling";

/// The order that a steering order steers.
pub(super) fn target_of(verb: &str, args: &[u8]) -> Option<OrderNumber> {
    let cancel = || rmp_serde::from_slice::<Cancel>(args).ok();
    if verb == CANCEL { cancel().map(|cancel| cancel.target) } else { None }
}

/// Every steering order goes to all who may have its target, wherever the device is now.
pub(super) fn tell_holders(state: &mut TenantState) {
    let TenantState { orders, ledger, .. } = state;
    for (number, open) in orders.iter() {
        let Some(target) = open.target else { continue };
        for device in open.open.keys() {
            let holders = ledger.holders(target, *device).to_vec();
            ledger.also(*number, *device, holders);
        }
    }
}

/// A node gave an order back. If it was the last that may have had it, a cancelled order is over.
pub(in crate::dispatch) fn given_back(
    state: &mut TenantState,
    now: Now,
    order: OrderNumber,
    device: NodeId,
    by: NodeId,
    work: &mut Work,
) {
    let Some(tenant) = state.nodes.get(&device).map(|n| n.tenant.clone()) else { return };
    let change = state.ledger.given_back(order, device, by);
    work.ops.extend(change.and_then(|change| holders_op(state, &tenant, &change)));
    let cancelling = state.orders.get(&order).is_some_and(|o| o.cancelling.contains(&device));
    if cancelling && state.ledger.is_free(order, device) {
        let over = Over::of(State::Cancelled, now.node);
        cancelled(state, now, order, device, over, work);
    }
}

/// What the agent says became of a cancelled order: what it had not begun it never will. Of an order of an epoch that it has
/// left it only knows that it knows nothing: the disk that may have begun it is no more.
pub(in crate::dispatch) fn cancel_told(
    state: &mut TenantState,
    now: Now,
    target: OrderNumber,
    device: NodeId,
    reason: Option<&str>,
    work: &mut Work,
) {
    if reason == Some(branchline_protocol::job::cancel::CANCELLED) {
        let over = match state.ledger.is_past(target, device) {
            true => Over::because(State::OutcomeUnknown, "rolled_back", now.node),
            false => Over::of(State::Cancelled, now.node),
        };
        cancelled(state, now, target, device, over, work);
    }
}

fn cancelled(state: &mut TenantState, now: Now, order: OrderNumber, device: NodeId, over: Over, work: &mut Work) {
    end(state, order, device, over, None, work);
    // Nobody has the order any more, so nobody need be told.
    let steering = state.orders.iter().filter(|(_, o)| o.target == Some(order) && o.open.contains_key(&device));
    let steering: Vec<OrderNumber> = steering.map(|(number, _)| *number).collect();
    for number in steering {
        end(state, number, device, Over::because(State::Cancelled, "withdrawn", now.node), None, work);
    }
}

impl<D: Defects> Core<D> {
    /// What a cancel of this job has to reach; `None` when the job has no device short of its end.
    pub fn cancel_plan(&self, tenant: &TenantId, job: JobId) -> Option<CancelPlan> {
        let state = self.tenant(tenant)?;
        let (target, open) = state.orders.iter().find(|(_, open)| open.job == job)?;
        let report_by = state.ledger.payload(*target)?.report_by();
        let reach = open.open.keys().filter(|device| !open.cancelling.contains(device));
        let steer = reach
            .filter(|device| !state.ledger.is_free(*target, **device))
            .filter_map(|device| Some((*device, state.ledger.epoch(*target, *device)?)))
            .collect();
        Some(CancelPlan { target: *target, report_by, steer })
    }

    pub(super) fn cancel(&mut self, now: Now, cancel: CancelJob, out: &mut Vec<Effect>) {
        let CancelJob { tenant, target, receipt, who, steering } = cancel;
        let Some(state) = self.tenants.get_mut(&tenant) else { return };
        let mut work = Work::default();
        let mut after = After::default();
        if let Some(open) = state.orders.get_mut(&target) {
            let job = open.job;
            let reach: Vec<(NodeId, State)> = open
                .open
                .iter()
                .filter(|(device, _)| !open.cancelling.contains(device))
                .map(|(device, stands)| (*device, *stands))
                .collect();
            let detail = format!("job {job} order {target} on {} devices", reach.len());
            work.ops.push(Op::Audit(AuditRow {
                tenant: tenant.clone(),
                at: now.node,
                who,
                what: "job.cancel".into(),
                detail,
            }));
            for (device, stands) in reach {
                let wrong = D::SEEDED && self.defects.has(Defect::CANCELS_HELD);
                if state.ledger.is_free(target, device) || wrong {
                    continue;
                }
                open.cancelling.insert(device);
                state.ledger.close(target, device);
                let (tenant, reason, at) = (tenant.clone(), Some(CANCELLING.into()), now.node);
                work.ops.push(Op::JobDevice { tenant, job, device, state: stands, reason, at, result: None });
            }
            let free: Vec<NodeId> = open.open.keys().copied().filter(|d| !open.cancelling.contains(d)).collect();
            for device in free {
                end(state, target, device, Over::of(State::Cancelled, now.node), None, &mut work);
            }
        }
        if let Some(issue) = steering {
            after.order = enter(state, issue, Some(target), &mut work).map(|e| (tenant.clone(), Box::new(e)));
        }
        work.after.push(Effect::Issued(receipt));
        self.commit(now, &tenant, work, after, out);
    }
}
