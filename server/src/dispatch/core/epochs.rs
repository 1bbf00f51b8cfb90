//! Devices whose disk was put back to an older state (pure): which of them are given another epoch, and what follows
//! (DESIGN 5, decision 25).
//!
//! The device itself says so, because somebody knew more of it than its disk does. The server answers with the next epoch,
//! once for each and at most [`EPOCHS_PER_HOUR`] times an hour: two machines with one identity would ask for ever.

use super::{After, Core, Effect, TenantState, Work, orders::attached_op};
use crate::store::{AuditRow, Op};
use branchline_node::{defects::Defects, downstream::Child};
use branchline_protocol::{
    document::{Kind, Revocations},
    id::{AttachmentKey, Epoch, NodeId, Role, TenantId},
    record::{Lane, RolledBack},
    refusal::{Refusal, STALE_ATTACHMENT},
    time::{Millis, Now},
    wire::{Message, PresenceEntry, Reach},
};
use std::collections::{BTreeMap, BTreeSet};

/// Epochs that one device is given within an hour. One more has to wait: it looks like two machines with one identity.
pub const EPOCHS_PER_HOUR: usize = 10;
const HOUR_MS: i64 = 3_600_000;
/// Milliseconds after which devices are told again what they are said to have: what was said may have been on its way to
/// this server when they came.
const REMIND_EVERY_MS: u64 = 600_000;
/// Milliseconds between two audits of what one device says of its disk in one epoch.
const AUDIT_EVERY_MS: i64 = 60_000;

/// What is known of devices that ask for another epoch. Soft: a device says it again on each link.
#[derive(Default)]
pub struct Epochs {
    /// Whose next epoch is on its way to the store.
    raising: BTreeSet<NodeId>,
    /// Whose next epoch has to wait, or to be tried again.
    waiting: BTreeSet<NodeId>,
    /// Those of them that were audited as clones.
    suspected: BTreeSet<NodeId>,
    /// When each was given an epoch within the last hour.
    given: BTreeMap<NodeId, Vec<Millis>>,
    /// When each was audited last.
    audited: BTreeMap<NodeId, Millis>,
    /// When all were told what they are said to have, on the monotonic clock.
    reminded_at: u64,
}

impl Epochs {
    /// Whether a device was given so many epochs that it is taken for two.
    pub fn suspects(&self, device: NodeId) -> bool {
        self.suspected.contains(&device)
    }

    /// Whether a device may be given another epoch now.
    fn may_give(&mut self, device: NodeId, now: Millis) -> bool {
        let Some(given) = self.given.get_mut(&device) else { return true };
        given.retain(|at| now.0 < at.0.saturating_add(HOUR_MS));
        given.len() < EPOCHS_PER_HOUR
    }
}

/// A device said that its disk was put back. In an epoch that it has left this is over, and it will hear so.
pub(in crate::dispatch) fn rolled_back(
    state: &mut TenantState,
    now: Now,
    device: NodeId,
    told: RolledBack,
    work: &mut Work,
) {
    let Some(row) = state.nodes.get(&device).filter(|row| row.role == Role::Agent) else { return };
    if told.epoch != row.epoch || state.epochs.raising.contains(&device) {
        return;
    }
    let (tenant, name) = (row.tenant.clone(), row.name.clone());
    let audit = |what: &str, detail: String| {
        let (tenant, who) = (tenant.clone(), device.to_string());
        Op::Audit(AuditRow { tenant, at: now.node, who, what: what.into(), detail })
    };
    let due = state.epochs.audited.get(&device).is_none_or(|at| now.node.0 >= at.0.saturating_add(AUDIT_EVERY_MS));
    if due {
        state.epochs.audited.insert(device, now.node);
        let why: String = told.why.chars().take(200).collect();
        work.ops.push(audit("device.rolled_back", format!("{name:?} in epoch {}: {why}", told.epoch)));
    }
    state.epochs.waiting.insert(device);
    match next(state, now, device) {
        Some(raise) => work.after.push(raise),
        None if state.epochs.suspected.insert(device) => {
            let detail = format!("{name:?} was given {EPOCHS_PER_HOUR} epochs within an hour: is it two machines?");
            work.ops.push(audit("device.clone_suspected", detail));
        }
        None => {}
    }
}

/// The next epoch of a device that waits for it, if it may have it now.
fn next(state: &mut TenantState, now: Now, device: NodeId) -> Option<Effect> {
    let row = state.nodes.get(&device).filter(|row| row.revoked_at.is_none())?;
    if !state.epochs.may_give(device, now.node) {
        return None;
    }
    let epoch: Epoch = row.epoch.checked_add(1)?;
    state.epochs.waiting.remove(&device);
    state.epochs.raising.insert(device);
    Some(Effect::Raise(row.tenant.clone(), device, epoch))
}

/// The store did not take it.
pub(super) fn not_raised(state: &mut TenantState, device: NodeId) {
    if state.epochs.raising.remove(&device) {
        state.epochs.waiting.insert(device);
    }
}

/// Devices whose time to wait is over.
pub(super) fn retry(state: &mut TenantState, now: Now, tenant: &TenantId) -> Vec<Effect> {
    let waiting: Vec<NodeId> = state.epochs.waiting.iter().copied().collect();
    let raised: Vec<Effect> = waiting.into_iter().filter_map(|device| next(state, now, device)).collect();
    if !raised.is_empty() {
        tracing::info!(%tenant, devices = raised.len(), "other epochs after a wait");
    }
    raised
}

/// The list in force gives devices other epochs: what they were ordered in earlier ones they are asked for again. Answers
/// whose orders are to be looked at.
pub(super) fn raise(state: &mut TenantState, now: Now, list: &Revocations) -> Vec<NodeId> {
    let mut raised = Vec::new();
    for (device, epoch) in &list.raised {
        let Some(row) = state.nodes.get_mut(device) else { continue };
        if row.epoch < *epoch {
            tracing::warn!(tenant = %row.tenant, %device, %epoch, "goes on in another epoch");
            (row.epoch, row.attachment) = (*epoch, 0);
            state.epochs.given.entry(*device).or_default().push(now.node);
        }
        state.epochs.raising.remove(device);
        state.epochs.waiting.remove(device);
        state.epochs.suspected.remove(device);
        state.ledger.raised(*device, *epoch, false);
        raised.push(*device);
    }
    raised
}

/// Whether a device greeted in an epoch that it has left.
pub(super) fn is_past(state: &TenantState, child: &Child) -> bool {
    let row = state.nodes.get(&child.node).filter(|row| row.revoked_at.is_none() && row.role == Role::Agent);
    row.is_some_and(|row| row.epoch > child.key.epoch)
}

/// Such a device is handed the list that says so: nothing else goes to it, and nothing
/// is heard of it on this link.
pub(super) fn hand_list(state: &TenantState, child: &Child, out: &mut Vec<Effect>) {
    if let Some((_, envelope)) = state.documents.get(&(Kind::Revocations, String::new())) {
        let message = Message::Document(Kind::Revocations, envelope.clone());
        out.push(Effect::Send(child.node, child.session, Lane::Control, message));
    }
}

/// Tells a device on a new link what it is said to have: what its disk does not know of that, it has forgotten.
pub(super) fn remind(state: &TenantState, child: NodeId, device: NodeId) -> Option<Effect> {
    let handed = Some(state.ledger.handed(device)).filter(|orders| !orders.is_empty())?;
    let (session, epoch) = (state.links.get(&child)?.session, state.nodes.get(&device)?.epoch);
    Some(Effect::Send(child, session, Lane::Control, Message::Handed(device, epoch, handed)))
}

/// The same to every device that can be reached, from time to time.
pub(super) fn remind_all(state: &mut TenantState, now: Now) -> Vec<Effect> {
    if now.mono.0 < state.epochs.reminded_at.saturating_add(REMIND_EVERY_MS) {
        return Vec::new();
    }
    state.epochs.reminded_at = now.mono.0;
    let reached = state.ledger.devices().filter_map(|device| Some((state.directory.live_hop(device)?, device)));
    reached.filter_map(|(child, device)| remind(state, child, device)).collect()
}

/// Ends links that are overtaken by what a relay tells: a node that is where the link is learns that its disk was put
/// back; of one that went elsewhere it was dead anyway.
pub(super) fn overtake(state: &TenantState, relay: NodeId, entries: &[PresenceEntry]) -> Vec<Effect> {
    let overtaken = state.directory.overtaken(relay, entries).into_iter();
    let effects = overtaken.filter_map(|(hop, node, key)| {
        let session = state.links.get(&hop)?.session;
        if hop == node {
            let refusal = Refusal::new(409, STALE_ATTACHMENT, "a newer attachment of this node is known elsewhere");
            return Some(Effect::Refuse(node, session, refusal));
        }
        tracing::info!(relay = %hop, %node, "told of a newer attachment");
        Some(Effect::Send(hop, session, Lane::Control, Message::Newer(node, key)))
    });
    let told: Vec<Effect> = effects.collect();
    // What a node signed for another parent counts as well: the records that showed it may have come before this.
    let away = |reach| matches!(reach, Reach::GoneShutdown | Reach::GoneTimeout | Reach::Awaited);
    let there = entries.iter().filter(|entry| entry.node != relay && !away(entry.reach));
    let signed = there.filter_map(|entry| {
        let (newest, parent) = state.receipts.newest(entry.node)?;
        let elsewhere = parent != entry.via.last().copied().unwrap_or(relay);
        let twice = newest == entry.key && elsewhere;
        let session = state.links.get(&relay)?.session;
        let newest = if twice { newest.next() } else { newest };
        (newest > entry.key && newest.epoch == entry.key.epoch)
            .then(|| Effect::Send(relay, session, Lane::Control, Message::Newer(entry.node, newest)))
    });
    told.into_iter().chain(signed).collect()
}

impl<D: Defects> Core<D> {
    /// A link was refused as no newer one. Of a number that was given twice the next one counts as known too, so that a
    /// refusal that is lost is said again.
    pub(super) fn refused_as_stale(
        &mut self,
        now: Now,
        tenant: &TenantId,
        node: NodeId,
        key: AttachmentKey,
        out: &mut Vec<Effect>,
    ) {
        let Some(state) = self.tenants.get_mut(tenant) else { return };
        if state.receipts.newest(node).is_some_and(|(newest, _)| newest > key) {
            return;
        }
        let Some(next) = state.directory.refused(node, key) else { return };
        let Some(row) = state.nodes.get_mut(&node).filter(|row| row.epoch == key.epoch) else { return };
        row.attachment = next.attachment;
        let at = row.last_contact.unwrap_or(row.enrolled_at);
        let op = attached_op(tenant, node, next, row.route.clone(), at, &row.capabilities);
        self.commit(now, tenant, Work { ops: vec![op], ..Work::default() }, After::default(), out);
    }
}
