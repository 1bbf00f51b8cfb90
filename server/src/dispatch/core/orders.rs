//! Steps of an order on a device, and what goes out to children.

use super::{Effect, OpenJob, TenantState, Work};
use crate::store::{JobDeviceRow, JobRow, NodeRow, Op};
use branchline_node::downstream::{
    Child,
    directory::Entry,
    ledger::{Change, Row},
};
use branchline_protocol::{
    document::Kind,
    id::{AttachmentKey, NodeId, OrderNumber, Role, TenantId},
    job::{Class, State},
    order::{OrderMessage, Payload},
    record::Lane,
    time::{Millis, Now},
    wire::{Goodbye, Message, Reach},
};
use std::collections::BTreeMap;

/// Puts a node's last known route into the directory, so that its orders go where it was last. Until it had time to come
/// back nothing is known of it: the server was away, not the node.
pub(in crate::dispatch) fn remember(state: &mut TenantState, row: &NodeRow) {
    if row.role == Role::Gateway || row.revoked_at.is_some() {
        return;
    }
    let Some(last_contact) = row.last_contact else { return };
    let entry = Entry {
        role: row.role,
        key: AttachmentKey { epoch: row.epoch, attachment: row.attachment },
        via: row.route.clone(),
        reach: Reach::Awaited,
        last_contact,
        next_contact: None,
        capabilities: row.capabilities.clone(),
        figures: None,
    };
    state.directory.remember(row.id, entry);
}

/// Puts a job of the store back into ledger and list.
pub(in crate::dispatch) fn reopen(
    state: &mut TenantState,
    job: JobRow,
    devices: Vec<JobDeviceRow>,
) -> Result<(), String> {
    let payload: Payload = rmp_serde::from_slice(&job.envelope.payload).map_err(|e| format!("job {}: {e}", job.id))?;
    let mut leaves: Vec<_> =
        devices.iter().filter_map(|d| Some((d.leaf?, d.device.as_ref().ok().copied()?, d.epoch))).collect();
    leaves.sort();
    let leaves: Vec<_> =
        leaves.into_iter().map(|(_, device, epoch)| branchline_protocol::order::Leaf { device, epoch }).collect();
    let tree = branchline_protocol::order::Tree::build(&job.tenant, job.number, leaves);
    let all: Vec<u32> = (0..tree.leaf_count()).collect();
    let message = OrderMessage { envelope: job.envelope.clone(), args: job.args.clone(), proof: tree.prove(&all) };
    let open: BTreeMap<NodeId, State> = devices
        .iter()
        .filter(|d| !d.state.is_end())
        .filter_map(|d| d.device.as_ref().ok().map(|id| (*id, d.state)))
        .collect();
    let rows =
        open.iter().map(|(id, s)| (*id, if *s == State::Queued { Row::Waiting } else { Row::HandedOver })).collect();
    state.ledger.add(&job.tenant, payload, message, Some(&rows)).map_err(|e| format!("job {}: {e}", job.id))?;
    state.orders.insert(job.number, OpenJob { job: job.id, trace: job.trace, class: job.class, open });
    Ok(())
}

pub(in crate::dispatch) fn reach_of(child: &Child, now: Now) -> (Reach, Option<Millis>) {
    match child.lease {
        None => (Reach::Persistent, None),
        Some(lease) => {
            let reach = if child.greeting.wake_port != 0 { Reach::Wakeable } else { Reach::Polling };
            (reach, Some(now.node.plus(lease.interval_ms as i64)))
        }
    }
}

pub(in crate::dispatch) fn attached_op(
    tenant: &TenantId,
    node: NodeId,
    key: AttachmentKey,
    route: Vec<NodeId>,
    at: Millis,
    capabilities: &[String],
) -> Op {
    Op::Attached {
        tenant: tenant.clone(),
        node,
        epoch: key.epoch,
        attachment: key.attachment,
        route,
        last_contact: at,
        capabilities: capabilities.to_vec(),
    }
}

/// Documents newer than the child's, in order of application: revocations first.
pub(in crate::dispatch) fn send_documents(state: &TenantState, child: &Child, out: &mut Vec<Effect>) {
    let site = state.nodes.get(&child.node).map(|n| n.site.clone()).unwrap_or_default();
    for (index, kind) in Kind::ALL.into_iter().enumerate() {
        let own = state.documents.get(&(kind, site.clone())).or_else(|| state.documents.get(&(kind, String::new())));
        let Some((version, envelope)) = own else { continue };
        if child.greeting.documents.get(index).is_none_or(|has| has < version) {
            let message = Message::Document(kind, envelope.clone());
            out.push(Effect::Send(child.node, child.session, Lane::Control, message));
        }
    }
}

/// Ledger changes as the store and the view see them.
pub(in crate::dispatch) fn note(state: &mut TenantState, now: Now, changes: Vec<Change>, work: &mut Work) {
    for Change { order, device, row } in changes {
        if row == Some(Row::HandedOver) {
            advance(state, order, device, State::Delivered, now.node, work);
        }
    }
}

/// A step that is no end: never backwards, never after an end.
pub(in crate::dispatch) fn advance(
    state: &mut TenantState,
    order: OrderNumber,
    device: NodeId,
    to: State,
    at: Millis,
    work: &mut Work,
) {
    let Some(open) = state.orders.get_mut(&order) else { return };
    let Some(stands) = open.open.get_mut(&device) else { return };
    if *stands >= to {
        return;
    }
    *stands = to;
    let Some(tenant) = state.nodes.get(&device).map(|n| n.tenant.clone()) else { return };
    let job = open.job;
    work.ops.push(Op::JobDevice { tenant: tenant.clone(), job, device, state: to, reason: None, at, result: None });
    work.after.push(Effect::JobChanged(tenant, job));
}

/// An order is over on a device. Once it is, nothing changes it.
#[allow(clippy::too_many_arguments, reason = "one row of the store, spelled out")]
pub(in crate::dispatch) fn end(
    state: &mut TenantState,
    order: OrderNumber,
    device: NodeId,
    to: State,
    reason: Option<String>,
    at: Millis,
    result: Option<crate::store::ResultRow>,
    work: &mut Work,
) -> bool {
    let held_by = match state.ledger.row(order, device) {
        Some(Row::Held(child) | Row::Offered(child)) => Some(child),
        _ => None,
    };
    state.ledger.ended(order, device);
    let Some(open) = state.orders.get_mut(&order) else { return false };
    if open.open.remove(&device).is_none() {
        return false;
    }
    let (job, trace) = (open.job, open.trace);
    if open.open.is_empty() {
        state.orders.remove(&order);
    }
    let Some(tenant) = state.nodes.get(&device).map(|n| n.tenant.clone()) else { return false };
    tracing::info!(%trace, %job, %order, %device, state = %to, reason, "ended");
    work.ops.push(Op::JobDevice { tenant: tenant.clone(), job, device, state: to, reason, at, result });
    work.after.push(Effect::JobChanged(tenant, job));
    if let Some(child) = held_by
        && let Some(link) = state.links.get(&child)
    {
        work.after.push(Effect::Send(child, link.session, Lane::Control, Message::Ended(vec![(order, vec![device])])));
    }
    true
}

/// Offers what waits, grouped per child.
pub(in crate::dispatch) fn offer(state: &mut TenantState, now: Now, devices: Option<&[NodeId]>, out: &mut Vec<Effect>) {
    let TenantState { directory, ledger, links, .. } = state;
    let offers = ledger.offers(now.node, devices, |d| directory.live_hop(d).filter(|c| links.contains_key(c)));
    for offer in offers {
        let Some(link) = links.get(&offer.child) else { continue };
        tracing::info!(trace = %offer.payload.trace, order = %offer.payload.number, child = %offer.child, devices = offer.devices.len(), "sent");
        let lane = if offer.payload.class == Class::Normal { Lane::Work } else { Lane::Urgent };
        out.push(Effect::Send(offer.child, link.session, lane, Message::Orders(vec![offer.message])));
    }
}

/// A poll ends when the child is done, nothing offered is unacknowledged and nothing of it waits for the disk.
pub(in crate::dispatch) fn end_poll(state: &TenantState, child: NodeId, uncommitted: usize, out: &mut Vec<Effect>) {
    let Some(link) = state.links.get(&child).filter(|l| l.poll && l.done) else { return };
    if uncommitted == 0 && !state.ledger.is_offered(&state.directory.below(child)) {
        out.push(Effect::Goodbye(child, link.session, Goodbye::Done));
    }
}
