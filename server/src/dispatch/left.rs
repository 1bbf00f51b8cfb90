//! Orders that a child leaves here because it has no room for their results (pure): they stay queued, with the reason.

use super::core::{Effect, Link, TenantState, Work};
use crate::store::Op;
use branchline_node::downstream::Child;
use branchline_protocol::{
    id::{NodeId, OrderNumber},
    job::State,
    time::Now,
};

/// Milliseconds until a child that had no room is offered orders again.
pub const LEFT_FOR_MS: u64 = 15_000;
/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 64;

/// A child left these orders here, for itself or for devices below it; for others it does not speak (RLY-9).
pub(super) fn left(
    state: &mut TenantState,
    now: Now,
    child: &Child,
    left: Vec<(OrderNumber, Vec<NodeId>, String)>,
    work: &mut Work,
) {
    let below = state.directory.below(child.node);
    for (order, devices, why) in left {
        let mine: Vec<NodeId> = devices.into_iter().filter(|d| *d == child.node || below.contains(d)).collect();
        state.ledger.child_gone(child.node, &mine);
        let Some(link) = state.links.get_mut(&child.node) else { return };
        link.full_until = Some(now.mono.0 + LEFT_FOR_MS);
        let Some(open) = state.orders.get(&order) else { continue };
        let job = open.job;
        for device in mine {
            // That its job is being cancelled is the weightier reason, and after a restart the only word of it.
            if open.cancelling.contains(&device) {
                continue;
            }
            // Told once a session: a child that is full says so each time it is asked.
            if open.open.get(&device) != Some(&State::Queued) || !link.left.insert((order, device)) {
                continue;
            }
            let (tenant, reason) = (child.tenant.clone(), Some(why.chars().take(REASON_CHARS_MAX).collect()));
            let (state, at) = (State::Queued, now.node);
            work.ops.push(Op::JobDevice { tenant: tenant.clone(), job, device, state, reason, at, result: None });
            work.after.push(Effect::JobChanged(tenant, job));
        }
    }
}

/// Devices below children whose time is over: they are to be offered their orders again.
pub(super) fn retry(state: &mut TenantState, now: Now) -> Vec<NodeId> {
    let due = |link: &Link| link.full_until.is_some_and(|at| at <= now.mono.0);
    let due: Vec<NodeId> = state.links.iter().filter(|(_, link)| due(link)).map(|(child, _)| *child).collect();
    let mut devices = Vec::new();
    for child in due {
        if let Some(link) = state.links.get_mut(&child) {
            link.full_until = None;
        }
        devices.extend(state.directory.below(child));
        devices.push(child);
    }
    devices
}
