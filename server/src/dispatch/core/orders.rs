//! Steps of an order on a device, and what goes out to children.

use super::{CANCELLING, Core, Effect, Entered, Issue, OpenJob, TenantState, Work, cancel::target_of};
use crate::dispatch::withdrawals;
use crate::store::{JobDeviceRow, JobRow, NodeRow, Op, ResultRow};
use branchline_node::{
    defects::{Defect, Defects},
    downstream::{
        Child,
        admission::Demand,
        directory::Entry,
        ledger::{Ask, Change, Kept, Row},
    },
};
use branchline_protocol::{
    capability::Declared,
    document::Kind,
    id::{AttachmentKey, NodeId, OrderNumber, Role, TenantId},
    job::{Class, State},
    order::{OrderMessage, Payload},
    record::Lane,
    time::{Millis, Now},
    wire::{Goodbye, Message, Reach},
};
use std::collections::{BTreeMap, BTreeSet};

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
        settings: (0, 0),
        poll_interval_ms: None,
        slot: None,
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
    let cancelled = |d: &&JobDeviceRow| d.reason.as_deref() == Some(CANCELLING);
    let cancelling = devices.iter().filter(cancelled).filter_map(|d| d.device.as_ref().ok().copied()).collect();
    let target = target_of(&job.verb, &job.args);
    let open =
        OpenJob { job: job.id, trace: job.trace, class: job.class, target, open, cancelling, held: BTreeMap::new() };
    let nodes = &state.nodes;
    let holders: BTreeMap<NodeId, (Vec<NodeId>, bool)> = devices
        .into_iter()
        .filter_map(|d| {
            let (id, bound) = (d.device.ok()?, d.epoch);
            Some((id, (d.holders, nodes.get(&id).is_some_and(|row| row.epoch > bound))))
        })
        .collect();
    let keep = |device| {
        let (holders, past) = holders.get(&device).cloned().unwrap_or_default();
        // A device that went on in another epoch is asked again: see `Ledger::raised`.
        let waits = past || *open.open.get(&device)? == State::Queued;
        let row = if waits { Row::Waiting } else { Row::HandedOver };
        open.open.contains_key(&device).then(|| Kept {
            row,
            holders,
            closed: open.cancelling.contains(&device),
            past,
            ..Kept::default()
        })
    };
    state.ledger.add(&job.tenant, payload, message, keep).map_err(|e| format!("job {}: {e}", job.id))?;
    state.orders.insert(job.number, open);
    Ok(())
}

impl<D: Defects> Core<D> {
    /// What the open orders of the server's own children ask of its slots.
    pub fn demands(&self) -> BTreeMap<NodeId, Demand> {
        let of = |state: &TenantState| state.ledger.demands(state.directory.children());
        self.tenants.values().flat_map(of).collect()
    }
}

/// The child by which a device is to be given its orders now; none while it is suspended (JOB-16).
pub(in crate::dispatch) fn way(state: &TenantState, device: NodeId) -> Option<NodeId> {
    let hop = state.directory.live_hop(device).filter(|child| state.links.contains_key(child));
    hop.filter(|_| !state.suspended.contains(&device))
}

/// A new order's rows and its counter, to be written; what goes into the ledger once they are. The way to each device is
/// known, so that its first holder is durable with the order itself.
pub(in crate::dispatch) fn enter(
    state: &mut TenantState,
    issue: Issue,
    target: Option<OrderNumber>,
    work: &mut Work,
) -> Option<Entered> {
    let Issue { job, mut devices, payload, message, .. } = issue;
    let mut open = OpenJob {
        job: job.id,
        trace: job.trace,
        class: job.class,
        target,
        open: BTreeMap::new(),
        cancelling: BTreeSet::new(),
        held: BTreeMap::new(),
    };
    let mut kept = BTreeMap::new();
    for row in devices.iter_mut().filter(|row| !row.state.is_end()) {
        let Ok(device) = row.device else { continue };
        let towards = Kept::towards(way(state, device));
        row.holders.clone_from(&towards.holders);
        open.open.insert(device, row.state);
        kept.insert(device, towards);
    }
    if !open.open.is_empty() {
        state.orders.insert(payload.number, open);
    }
    let counter = job.number.number.to_be_bytes().to_vec();
    work.ops.push(Op::Meta(format!("order/{}", job.tenant), counter.into()));
    work.ops.push(Op::Job(Box::new(job), devices));
    message.map(|message| Entered { payload, message, kept })
}

/// Puts a durable order into the ledger, as far as it is not over meanwhile; answers its devices.
pub(in crate::dispatch) fn enlist(state: &mut TenantState, tenant: &TenantId, entered: Entered) -> Vec<NodeId> {
    let Entered { payload, message, mut kept } = entered;
    let (number, TenantState { orders, ledger, .. }) = (payload.number, &mut *state);
    let Some(open) = orders.get(&number) else { return Vec::new() };
    let keep = |device| {
        let kept = kept.remove(&device).filter(|_| open.open.contains_key(&device))?;
        Some(Kept { closed: open.cancelling.contains(&device), ..kept })
    };
    match ledger.add(tenant, payload, message, keep) {
        Ok(changes) => {
            if let Some(target) = open.target {
                for change in &changes {
                    let holders = ledger.holders(target, change.device).to_vec();
                    ledger.also(number, change.device, holders);
                }
            }
            changes.into_iter().map(|change| change.device).collect()
        }
        Err(fault) => {
            tracing::error!(%number, %fault, "our own proof does not hold");
            Vec::new()
        }
    }
}

/// Where a child's disk number is kept.
pub fn disk_key(tenant: &TenantId, node: NodeId) -> String {
    format!("disk/{tenant}/{node}")
}

/// The number of a child relay's disk. With another one what it held is gone, or it does not know any more what it handed on
/// of it.
pub(super) fn child_disk<D: Defects>(
    defects: &D,
    state: &mut TenantState,
    now: Now,
    child: &Child,
    disk: u64,
    work: &mut Work,
) {
    let before = state.disks.insert(child.node, disk);
    if before != Some(disk) {
        work.ops.push(disk_op(&child.tenant, child.node, disk));
    }
    let overlooked = D::SEEDED && defects.has(Defect::OVERLOOKS_NEW_DISK);
    if before.is_some_and(|before| before != disk) && !overlooked {
        let changes = state.ledger.child_lost(child.node);
        work.ops.extend(changes.iter().filter_map(|change| holders_op(state, &child.tenant, change)));
        work.look.extend(changes.iter().map(|change| change.device));
        note(state, now, changes, work);
    }
}

fn disk_op(tenant: &TenantId, node: NodeId, disk: u64) -> Op {
    Op::Meta(disk_key(tenant, node), disk.to_be_bytes().to_vec().into())
}

/// Who may have a device's order, to be written.
pub(in crate::dispatch) fn holders_op(state: &TenantState, tenant: &TenantId, change: &Change) -> Option<Op> {
    let job = state.orders.get(&change.order)?.job;
    Some(Op::Holders { tenant: tenant.clone(), job, device: change.device, holders: change.holders.clone() })
}

pub(in crate::dispatch) fn attached_op(
    tenant: &TenantId,
    node: NodeId,
    key: AttachmentKey,
    route: Vec<NodeId>,
    at: Millis,
    capabilities: &Declared,
) -> Op {
    Op::Attached {
        tenant: tenant.clone(),
        node,
        epoch: key.epoch,
        attachment: key.attachment,
        route,
        last_contact: at,
        capabilities: capabilities.clone(),
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
    for Change { order, device, row, .. } in changes {
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
    let reason = open.cancelling.contains(&device).then(|| CANCELLING.into());
    work.ops.push(Op::JobDevice { tenant: tenant.clone(), job, device, state: to, reason, at, result: None });
    work.after.push(Effect::JobChanged(tenant, job));
}

/// How an order ended on a device.
pub(in crate::dispatch) struct Over {
    pub state: State,
    pub reason: Option<String>,
    pub at: Millis,
    /// The agent's report.
    pub result: Option<ResultRow>,
}

impl Over {
    pub fn of(state: State, at: Millis) -> Over {
        Over { state, reason: None, at, result: None }
    }

    pub fn because(state: State, reason: &str, at: Millis) -> Over {
        Over { reason: Some(reason.into()), ..Over::of(state, at) }
    }
}

/// An order is over on a device. Once it is, nothing changes it but a late result. Whoever may still have it is told,
/// save the child that brought the news.
pub(in crate::dispatch) fn end(
    state: &mut TenantState,
    order: OrderNumber,
    device: NodeId,
    over: Over,
    by: Option<NodeId>,
    work: &mut Work,
) -> bool {
    let until = state.ledger.payload(order).map(|payload| payload.report_by());
    let change = state.ledger.ended(order, device);
    let Some(open) = state.orders.get_mut(&order) else { return false };
    if open.open.remove(&device).is_none() {
        return false;
    }
    open.cancelling.remove(&device);
    open.held.remove(&device);
    let (job, trace) = (open.job, open.trace);
    if open.open.is_empty() {
        state.orders.remove(&order);
        tracing::info!(%trace, %job, %order, "ended everywhere");
    }
    let Some(tenant) = state.nodes.get(&device).map(|n| n.tenant.clone()) else { return false };
    let Over { state: to, reason, at, result } = over;
    // A fleet's worth of lines for one job: who needs them has them in the database.
    tracing::debug!(%trace, %job, %order, %device, state = %to, reason, "ended");
    work.ops.push(Op::JobDevice { tenant: tenant.clone(), job, device, state: to, reason, at, result });
    work.after.push(Effect::JobChanged(tenant, job));
    let holders = change.into_iter().flat_map(|change| change.holders);
    let others = holders.filter(|child| Some(*child) != by && *child != device);
    let until = until.unwrap_or_default();
    work.over.extend(others.map(|child| withdrawals::Over { child, order, device, until }));
    true
}

/// Offers what waits, grouped per child; answers what has to be durable first.
pub(in crate::dispatch) fn offer(
    state: &mut TenantState,
    now: Now,
    devices: &[NodeId],
    out: &mut Vec<Effect>,
) -> Vec<Ask> {
    let TenantState { directory, ledger, links, suspended, .. } = state;
    let takes = |child: &NodeId| links.get(child).is_some_and(|link| link.full_until.is_none());
    let hop = |device| directory.live_hop(device).filter(takes);
    let round = ledger.offers(now.node, Some(devices), |d| hop(d).filter(|_| !suspended.contains(&d)));
    let also = ledger.also_offers(|child| links.contains_key(&child));
    let sleeps = |device: &NodeId| directory.may_sleep(*device) && !suspended.contains(device);
    out.extend(round.unreached.iter().copied().filter(sleeps).map(Effect::Wake));
    for offer in round.offers.into_iter().chain(also) {
        let Some(link) = links.get(&offer.child) else { continue };
        tracing::info!(trace = %offer.payload.trace, order = %offer.payload.number, child = %offer.child, devices = offer.devices.len(), "sent");
        let lane = if offer.payload.class == Class::Normal { Lane::Work } else { Lane::Urgent };
        out.push(Effect::Send(offer.child, link.session, lane, Message::Orders(vec![offer.message])));
    }
    round.asks
}

/// A poll ends when the child is done, nothing offered is unacknowledged and nothing of it waits for the disk.
pub(in crate::dispatch) fn end_poll(state: &TenantState, child: NodeId, uncommitted: usize, out: &mut Vec<Effect>) {
    let Some(link) = state.links.get(&child).filter(|l| l.poll && l.done) else { return };
    if uncommitted == 0 && !state.ledger.is_offered(&state.directory.below(child)) {
        out.push(Effect::Goodbye(child, link.session, Goodbye::Done));
    }
}

impl TenantState {
    /// Relays below other relays that told that they had this order for this device, and when.
    pub fn held(&self, order: OrderNumber, device: NodeId) -> Vec<(NodeId, Millis)> {
        self.orders.get(&order).and_then(|open| open.held.get(&device)).cloned().unwrap_or_default()
    }

    /// A relay on the device's way has the order on disk. For `explain` alone: nothing is decided by it.
    pub(in crate::dispatch) fn is_held(&mut self, order: OrderNumber, device: NodeId, by: NodeId, at: Millis) {
        let on_the_way = self.directory.get(device).is_some_and(|entry| entry.via.contains(&by));
        let open = self.orders.get_mut(&order).filter(|open| on_the_way && open.open.contains_key(&device));
        if let Some(open) = open {
            let held = open.held.entry(device).or_default();
            held.retain(|(relay, _)| *relay != by);
            held.push((by, at));
        }
    }
}
