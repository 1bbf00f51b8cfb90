//! What a restored server asks of its children and does with the answers (OPS-7).
//!
//! An order that the store does not know comes back as a job whose outcome is unknown: the order is out, signed, and will
//! run or has run. The agent's own result replaces that, as it replaces every end that the server concluded.

use super::{
    After, CANCELLING, Core, Effect, TenantState, Work,
    cancel::target_of,
    orders::{Over, end, holders_op},
};
use crate::{
    dispatch::recovery::{Recovery, Why},
    store::{JobDeviceRow, JobRow, Op},
};
use branchline_node::{defects::Defects, downstream::Child};
use branchline_protocol::{
    document::{self, Document, Kind, Revocations, Settings, TimeStatement},
    id::{NodeId, OrderNumber, TenantId},
    job::{RunScript, Runnable, State},
    order::{Envelope, OrderMessage, Payload, verify_order},
    record::Lane,
    time::Now,
    trust::TrustDocument,
    wire::{Message, Recall, Recalled},
};

/// Why a job's outcome is unknown that came back from below.
pub const RESTORED: &str = "server_restored";
/// Who ordered such a job: no API token has this name.
const RECALLED: &str = "(recalled)";
/// Characters of a command that people are shown.
const COMMAND_CHARS_MAX: usize = 1_000;

/// What a child is to be asked: everyone while the server recovers, later whoever has not heard of this term, and whoever
/// says that it holds more than the server once said.
pub(super) fn recall_for(recovery: &Option<Recovery>, term: u32, state: &TenantState, child: &Child) -> Option<Recall> {
    let held = |kind: Kind| state.documents.get(&(kind, String::new())).map_or((0, 0), |(version, _)| *version);
    // A statement tells nothing but that a term was.
    let asked = |kinds: &[Kind], term: u32| -> Vec<(Kind, (u32, u64))> {
        let own = |kind: &Kind| if *kind == Kind::Time { (term, u64::MAX) } else { held(*kind) };
        kinds.iter().map(|kind| (*kind, own(kind))).collect()
    };
    if let Some(recovery) = recovery {
        let newest = recovery.newest(&child.tenant)?;
        let documents = asked(&[Kind::Trust, Kind::Revocations, Kind::Settings, Kind::Time], newest.term);
        return Some(Recall { documents, newest });
    }
    let newest = OrderNumber { term, number: u64::MAX };
    if term > 1 && child.greeting.term < term {
        return Some(Recall { documents: vec![(Kind::Revocations, (0, 0))], newest });
    }
    let has = |kind: Kind| {
        let place = Kind::ALL.iter().position(|other| *other == kind)?;
        child.greeting.documents.get(place).copied()
    };
    let mut more: Vec<Kind> = SHOWN.into_iter().filter(|kind| has(*kind).is_some_and(|v| v > held(*kind))).collect();
    more.extend((child.greeting.term > term).then_some(Kind::Time));
    (term > 0 && !more.is_empty()).then(|| Recall { documents: asked(&more, term), newest })
}

/// Documents of which the store has every version that was ever told: they are durable before they are told.
const SHOWN: [Kind; 2] = [Kind::Revocations, Kind::Settings];

/// Documents that the server signed and its store does not know.
fn look_behind(
    state: &TenantState,
    tenant: &TenantId,
    trust: &TrustDocument,
    term: u32,
    documents: &[(Kind, Envelope)],
    work: &mut Work,
) {
    let keys = trust.server_keys();
    for (kind, envelope) in documents {
        let version = match kind {
            Kind::Revocations => document::open::<Revocations>(envelope, tenant, &keys).map(|d| d.version()),
            Kind::Settings => document::open::<Settings>(envelope, tenant, &keys).map(|d| d.version()),
            Kind::Time => document::open::<TimeStatement>(envelope, tenant, &keys).map(|d| (d.term, 0)),
            _ => continue,
        };
        let own = if *kind == Kind::Time {
            (term, 0)
        } else {
            state.documents.get(&(*kind, String::new())).map_or((0, 0), |(version, _)| *version)
        };
        if let Ok(version) = version
            && version > own
            && term > 0
        {
            work.after.push(Effect::Behind(tenant.clone(), *kind, version));
        }
    }
}

/// A child's answer.
pub(super) fn recalled(
    recovery: &mut Option<Recovery>,
    term: u32,
    state: &mut TenantState,
    now: Now,
    child: &Child,
    recalled: Recalled,
    work: &mut Work,
) {
    let Recalled { documents, orders, last } = recalled;
    let Some(trust) = trust(state) else { return };
    for order in orders {
        match verify_order(&order, &child.tenant, &trust) {
            Ok(verified) => {
                let number = verified.payload.number;
                recovery.iter_mut().for_each(|r| r.order(&child.tenant, number));
                // The present term's orders are all here.
                if recovery.is_some() || number.term < term {
                    take_order(state, now, &child.tenant, verified.payload, order, work);
                }
            }
            Err(fault) => tracing::warn!(child = %child.node, %fault, "a recalled order does not verify"),
        }
    }
    match recovery {
        Some(recovery) => {
            for (kind, fault) in recovery.told(&child.tenant, documents) {
                tracing::warn!(child = %child.node, ?kind, %fault, "a recalled document does not verify");
            }
            if last {
                recovery.heard(&child.tenant, child.node);
            }
        }
        None => {
            revoke_again(state, &child.tenant, &trust, &documents, work);
            look_behind(state, &child.tenant, &trust, term, &documents, work);
        }
    }
}

/// A list that the server signed in an earlier term: whoever is revoked in it stays revoked, and whom it gave another epoch
/// goes on in that.
fn revoke_again(
    state: &TenantState,
    tenant: &TenantId,
    trust: &TrustDocument,
    documents: &[(Kind, Envelope)],
    work: &mut Work,
) {
    let own = state.documents.get(&(Kind::Revocations, String::new()));
    let Some(own) = own.and_then(|(_, e)| rmp_serde::from_slice::<Revocations>(&e.payload).ok()) else { return };
    for (_, envelope) in documents.iter().filter(|(kind, _)| *kind == Kind::Revocations) {
        let Ok(list) = document::open::<Revocations>(envelope, tenant, &trust.server_keys()) else { continue };
        let lost: Vec<_> = list.revoked.into_iter().filter(|(node, epoch)| !own.covers(*node, *epoch)).collect();
        if list.term >= own.version().0 {
            continue;
        }
        let later = list.raised.into_iter().filter(|(device, epoch)| own.epoch_of(*device, 0) < *epoch);
        work.after.extend(later.map(|(device, epoch)| Effect::Raise(tenant.clone(), device, epoch)));
        if !lost.is_empty() {
            work.after.push(Effect::Revoke(tenant.clone(), lost));
        }
    }
}

/// What the tenant's trust document says; it was verified when it came into the store.
pub(in crate::dispatch) fn trust(state: &TenantState) -> Option<TrustDocument> {
    let (_, envelope) = state.documents.get(&(Kind::Trust, String::new()))?;
    rmp_serde::from_slice(&envelope.payload).ok()
}

/// An order of the server's that is below. If it is not in the store it comes into it now; a cancel cancels again.
pub(in crate::dispatch) fn take_order(
    state: &mut TenantState,
    now: Now,
    tenant: &TenantId,
    payload: Payload,
    message: OrderMessage,
    work: &mut Work,
) {
    if state.orders.contains_key(&payload.number) {
        return;
    }
    let target = target_of(&payload.verb, &message.args);
    let devices: Vec<NodeId> = message.proof.leaves.iter().map(|(_, leaf)| leaf.device).collect();
    let rows = message.proof.leaves.iter().map(|(place, leaf)| JobDeviceRow {
        job: payload.job,
        leaf: Some(*place),
        device: Ok(leaf.device),
        epoch: leaf.epoch,
        state: State::OutcomeUnknown,
        reason: Some(RESTORED.into()),
        changed_at: now.node,
        result: None,
        holders: Vec::new(),
        delivered_at: None,
        late: false,
    });
    let rows = rows.collect();
    let job = JobRow {
        id: payload.job,
        tenant: tenant.clone(),
        number: payload.number,
        trace: payload.trace,
        verb: payload.verb.clone(),
        command: command(&payload.verb, &message.args),
        selector: String::new(),
        class: payload.class,
        ordered_by: RECALLED.into(),
        issued_at: payload.issued_at,
        fetch_by: payload.fetch_by,
        report_by: payload.report_by(),
        envelope: message.envelope,
        args: message.args,
        origin: target.and_then(|target| state.orders.get(&target)).map(|open| open.job),
    };
    tracing::info!(trace = %job.trace, job = %job.id, order = %job.number, devices = devices.len(), "recalled");
    let (number, id) = (job.number, job.id);
    work.ops.push(Op::Recalled(Box::new(job), rows));
    work.after.push(Effect::JobChanged(tenant.clone(), id));
    if let Some(target) = target {
        state.recalled.insert(number, target);
        cancel_again(state, now, tenant, target, devices, work);
    }
}

/// A cancel that was forgotten: whoever may have its target keeps it, and nobody else gets it.
fn cancel_again(
    state: &mut TenantState,
    now: Now,
    tenant: &TenantId,
    target: OrderNumber,
    devices: Vec<NodeId>,
    work: &mut Work,
) {
    for device in devices {
        let Some(open) = state.orders.get_mut(&target) else { return };
        let Some(stands) = open.open.get(&device).copied() else { continue };
        if state.ledger.is_free(target, device) {
            end(state, target, device, Over::of(State::Cancelled, now.node), None, work);
        } else if open.cancelling.insert(device) {
            state.ledger.close(target, device);
            let (tenant, job, reason, at) = (tenant.clone(), open.job, Some(CANCELLING.into()), now.node);
            work.ops.push(Op::JobDevice { tenant, job, device, state: stands, reason, at, result: None });
        }
    }
}

/// The command line as far as the arguments tell it.
fn command(verb: &str, args: &[u8]) -> String {
    let text = match rmp_serde::from_slice::<RunScript>(args).map(|script| script.run) {
        Ok(Runnable::Argv(argv)) => argv.join(" "),
        Ok(Runnable::Script { .. }) => "script".into(),
        Err(_) => verb.into(),
    };
    text.chars().take(COMMAND_CHARS_MAX).collect()
}

impl<D: Defects> Core<D> {
    /// How far the recovery is, while there is one.
    pub fn recovery(&self) -> Option<&Recovery> {
        self.recovery.as_ref()
    }

    /// The server was restored. What its backup holds as waiting may have gone out since: each device itself may have it.
    pub(super) fn recover_by(&mut self, now: Now, recovery: Recovery, out: &mut Vec<Effect>) {
        self.recovery = Some(recovery);
        let tenants: Vec<TenantId> = self.tenants.keys().cloned().collect();
        for tenant in tenants {
            let Some(state) = self.tenants.get_mut(&tenant) else { continue };
            let changes = state.ledger.doubt();
            let ops = changes.iter().filter_map(|change| holders_op(state, &tenant, change)).collect();
            self.commit(now, &tenant, Work { ops, ..Work::default() }, After::default(), out);
        }
        self.look_at_recovery(now, out);
    }

    /// Asks for what was learned to be kept, once the recovery is over and everything it rests on is durable.
    pub(super) fn look_at_recovery(&mut self, now: Now, out: &mut Vec<Effect>) {
        if let Some(recovery) = &mut self.recovery
            && let Some(why) = recovery.over(now.mono)
            && recovery.close()
        {
            out.push(Effect::Learned(Box::new(recovery.learned(why))));
        }
    }

    /// From here on the server speaks again.
    pub(super) fn recovered(&mut self, now: Now, term: u32, out: &mut Vec<Effect>) {
        self.term = term;
        // What was told after the end of listening is no less true.
        let learned = self.recovery.take().map(|recovery| recovery.learned(Why::Heard));
        for (tenant, of) in learned.into_iter().flat_map(|learned| learned.tenants) {
            out.extend(of.raised.iter().map(|(device, epoch)| Effect::Raise(tenant.clone(), *device, *epoch)));
            if !of.revoked.is_empty() {
                out.push(Effect::Revoke(tenant, of.revoked.into_iter().collect()));
            }
        }
        let all: Vec<(TenantId, Vec<NodeId>)> =
            self.tenants.iter().map(|(t, state)| (t.clone(), state.nodes.keys().copied().collect())).collect();
        for (tenant, devices) in all {
            let Some(state) = self.tenants.get_mut(&tenant) else { continue };
            super::cancel::tell_holders(state);
            // At once: what children tell a server of this term they tell when they hear of it.
            if let Some((_, statement)) = state.documents.get(&(Kind::Time, String::new())) {
                let told = |(child, link): (&NodeId, &super::Link)| {
                    let message = Message::Document(Kind::Time, statement.clone());
                    Effect::Send(*child, link.session, Lane::Control, message)
                };
                out.extend(state.links.iter().map(told));
            }
            self.look(now, &tenant, &devices, out);
        }
    }
}
