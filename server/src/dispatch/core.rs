//! Events, effects and the state of each tenant.

mod cancel;
mod commits;
mod epochs;
mod event;
mod links;
mod messages;
mod orders;
mod recall;
mod sleepers;

pub use cancel::CANCELLING;
pub(super) use cancel::{cancel_told, given_back};
pub(super) use epochs::rolled_back;
pub use event::{CancelJob, CancelPlan, Effect, Event, Issue, OpenJob, Recovered, Token};
pub use orders::disk_key;
pub(super) use orders::{Over, advance, end};
use orders::{end_poll, enter, remember, reopen};
pub(super) use recall::{take_order, trust};
pub use sleepers::WAKE_KEYS;

use super::{
    left,
    receipts::Receipts,
    recovery::Recovery,
    streams::Streams,
    withdrawals::{self, Withdrawals},
};
use crate::store::{AuditRow, NodeRow, Op};
use branchline_node::{
    defects::{Defect, Defects, NoDefects},
    downstream::{
        Child,
        directory::Directory,
        ledger::{Ask, Kept, Ledger},
    },
};
use branchline_protocol::{
    capability::Declared,
    chain::Position,
    document::{Kind, Revocations},
    id::{AttachmentKey, NodeId, OrderNumber, TenantId},
    inventory::Snapshot,
    job::State,
    order::{Envelope, OrderMessage, Payload},
    record::Lane,
    refusal::Refusal,
    time::{Millis, Now},
    wire::Message,
};
use std::collections::{BTreeMap, BTreeSet};

/// A child with a live link.
#[derive(Default)]
pub(super) struct Link {
    pub session: u64,
    pub poll: bool,
    pub done: bool,
    /// It had no room for an order: until when, on the monotonic clock, it is offered none.
    pub full_until: Option<u64>,
    /// Orders it left with us in this session, as shown.
    pub left: BTreeSet<(OrderNumber, NodeId)>,
    /// Whether it can be woken once it has no slot.
    pub wakeable: bool,
}

/// One tenant's part. Nothing of one is ever looked at for another (TOP-22).
#[derive(Default)]
pub struct TenantState {
    /// Nodes as enrolled. Boxed: a tree's leaves are little more than half full, and a row has some hundred bytes.
    pub nodes: BTreeMap<NodeId, Box<NodeRow>>,
    /// Who is where.
    pub directory: Directory,
    /// What still has to be given to whom.
    pub ledger: Ledger,
    /// Orders that are not over.
    pub orders: BTreeMap<OrderNumber, OpenJob>,
    pub(super) streams: Streams,
    /// Who may speak for whom.
    pub(super) receipts: Receipts,
    /// What was refused, by node, code and field: when it was audited last, and how many records since.
    pub(super) refusals: BTreeMap<(NodeId, &'static str, Option<&'static str>), (Millis, u64)>,
    pub(super) links: BTreeMap<NodeId, Link>,
    /// The gateway each child came through last.
    pub(super) gateways: BTreeMap<NodeId, Option<NodeId>>,
    /// Devices that hang on the server itself, as the store knows them.
    pub(super) sleepers: sleepers::Sleepers,
    /// What children may hold although it is over.
    pub(super) withdrawals: Withdrawals,
    /// Numbers of child relays' disks: with another one, what the child held is gone.
    pub(super) disks: BTreeMap<NodeId, u64>,
    /// Openings of child relays' stores that were met since the start: of another one it is not known what it still holds.
    pub(super) openings: BTreeMap<NodeId, u64>,
    /// Devices that said that their disk was put back.
    pub(super) epochs: epochs::Epochs,
    /// Inventories with changes that are not committed yet.
    pub(super) pending_inventory: BTreeMap<NodeId, (Token, Snapshot, Millis)>,
    /// Devices whose sections are asked for (INV-6).
    pub(super) need_full: BTreeSet<NodeId>,
    /// Devices that are given nothing until they are revived (JOB-16).
    pub suspended: BTreeSet<NodeId>,
    /// Devices of which an administrator has said whether they keep their connection (ADM-1).
    pub keep_connection: BTreeMap<NodeId, bool>,
    /// Newest documents by kind and site.
    pub(super) documents: BTreeMap<(Kind, String), ((u32, u64), Envelope)>,
    /// Cancels that came back from below and that the store had not: what each of them cancels (OPS-7).
    pub(super) recalled: BTreeMap<OrderNumber, OrderNumber>,
}

/// All tenants, and what waits for commits.
#[derive(Default)]
pub struct Core<D: Defects = NoDefects> {
    /// What is wrong on purpose: nothing, save in a simulator.
    defects: D,
    tenants: BTreeMap<TenantId, TenantState>,
    next_token: Token,
    waiting: BTreeMap<Token, After>,
    /// The server's term.
    term: u32,
    /// While a restored server listens to its children: nothing goes down (OPS-7).
    recovery: Option<Recovery>,
}

/// What happens once a commit is durable.
#[derive(Default)]
struct After {
    effects: Vec<Effect>,
    order: Option<(TenantId, Box<Entered>)>,
    /// Holders that are durable with it.
    asks: Vec<(TenantId, Ask)>,
    inventories: Vec<(TenantId, NodeId)>,
    /// Ends that are durable with it.
    over: Vec<(TenantId, withdrawals::Over)>,
}

/// An order that goes into the ledger once it is durable.
pub(super) struct Entered {
    pub payload: Payload,
    pub message: OrderMessage,
    pub kept: BTreeMap<NodeId, Kept>,
}

/// One event's work: writes now, effects once they are durable.
#[derive(Default)]
pub(super) struct Work {
    pub ops: Vec<Op>,
    pub after: Vec<Effect>,
    /// Devices whose offers are to be looked at, once durable.
    pub look: BTreeSet<NodeId>,
    /// Children that may still have an order which is over on a device.
    pub over: Vec<withdrawals::Over>,
}

impl TenantState {
    /// The gateway by which a node's first hop came.
    pub fn gateway_of(&self, node: NodeId) -> Option<NodeId> {
        let hop = self.directory.next_hop(node)?;
        self.gateways.get(&hop).copied().flatten()
    }

    /// Whether the node's first hop was here since the start, so that it is known by which way it came.
    pub fn is_way_known(&self, node: NodeId) -> bool {
        self.directory.next_hop(node).is_some_and(|hop| self.gateways.contains_key(&hop))
    }
}

impl Core {
    /// From what the store holds. Jobs whose stored envelope cannot be read are answered as faults.
    pub fn recover(found: Recovered) -> Result<Core, String> {
        Core::recover_with(NoDefects, found)
    }
}

impl<D: Defects> Core<D> {
    /// The same with defects, for the simulator.
    pub fn recover_with(defects: D, found: Recovered) -> Result<Self, String> {
        let mut core = Core { defects, ..Core::default() };
        for tenant in found.tenants {
            core.tenants.entry(tenant).or_default();
        }
        // Nodes of one kind declare the same: one text for all of them.
        let mut declared: BTreeSet<Declared> = BTreeSet::new();
        for mut row in found.nodes {
            match declared.get(&row.capabilities) {
                Some(same) => row.capabilities = same.clone(),
                None => drop(declared.insert(row.capabilities.clone())),
            }
            let state = core.tenants.entry(row.tenant.clone()).or_default();
            remember(state, &row);
            state.nodes.insert(row.id, Box::new(row));
        }
        for (tenant, row) in found.streams {
            let at = Position { upto: row.upto, head: row.hash };
            core.tenants.entry(tenant).or_default().streams.put(row.stream, at);
        }
        for (tenant, node) in found.need_full {
            core.tenants.entry(tenant).or_default().need_full.insert(node);
        }
        for (node, reachable) in found.reachable {
            core.tenants.entry(reachable.tenant.clone()).or_default().sleepers.recover(node);
        }
        for (tenant, node, disk) in found.disks {
            core.tenants.entry(tenant).or_default().disks.insert(node, disk);
        }
        for (job, devices) in found.jobs {
            let state = core.tenants.entry(job.tenant.clone()).or_default();
            reopen(state, job, devices)?;
        }
        // Once every order is there: a steering order goes to those who may have its target.
        core.tenants.values_mut().for_each(cancel::tell_holders);
        Ok(core)
    }

    /// One tenant's state, for views.
    pub fn tenant(&self, tenant: &TenantId) -> Option<&TenantState> {
        self.tenants.get(tenant)
    }

    /// Every tenant's state.
    pub fn tenants(&self) -> impl Iterator<Item = (&TenantId, &TenantState)> {
        self.tenants.iter()
    }

    /// Whether a link of a child is not newer than what is known of it: it must not take the newer one's place. One of an
    /// epoch that the child has left is let in, to hear so.
    pub fn is_stale(&self, child: &Child) -> bool {
        let past = |state: &TenantState| epochs::is_past(state, child);
        !self.tenants.get(&child.tenant).is_some_and(past) && self.knows(&child.tenant, child.node, child.key)
    }

    /// Whether an attachment of a node that is as new is known: it was told, or the node signed it and a relay showed that.
    pub fn knows(&self, tenant: &TenantId, node: NodeId, key: AttachmentKey) -> bool {
        self.tenants.get(tenant).is_some_and(|t| t.directory.is_stale(node, key) || t.receipts.is_stale(node, key))
    }

    /// Commits that are not durable yet.
    pub fn uncommitted(&self) -> usize {
        self.waiting.len()
    }

    /// Live links of all tenants.
    pub fn links(&self) -> u64 {
        self.tenants.values().map(|t| t.links.len() as u64).sum()
    }

    /// One event.
    pub fn handle(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Up(child) => self.up(now, child, out),
            Event::Gone(child, end) => self.gone(now, &child, &end, out),
            Event::Stale(tenant, node, key) => self.refused_as_stale(now, &tenant, node, key, out),
            Event::GoesOff(tenant, node, key) => self.goes_off(now, &tenant, node, key, out),
            Event::Said { child, message, lane, credit, preloaded } => {
                self.said(now, &child, message, (lane, credit), preloaded, out);
            }
            Event::Done(child) => {
                let Some(state) = self.tenants.get_mut(&child.tenant) else { return };
                if let Some(link) = state.links.get_mut(&child.node).filter(|l| l.session == child.session) {
                    link.done = true;
                }
                end_poll(state, child.node, self.waiting.len(), out);
            }
            Event::Heard(child) => {
                if let Some(state) = self.tenants.get_mut(&child.tenant) {
                    state.directory.heard(child.node, now.node);
                }
            }
            Event::Displaced(node, lease) => {
                for state in self.tenants.values_mut() {
                    if let Some(link) = state.links.get_mut(&node) {
                        link.poll = true;
                        state.directory.lease(node, lease, link.wakeable, now.node);
                        out.push(Effect::Sleeps(node));
                    }
                }
            }
            Event::Issue(issue) => self.issue(now, *issue, out),
            Event::Cancel(cancel) => self.cancel(now, *cancel, out),
            Event::Node(row) => {
                let state = self.tenants.entry(row.tenant.clone()).or_default();
                remember(state, &row);
                state.nodes.insert(row.id, row);
            }
            Event::Tenant(tenant) => {
                self.tenants.entry(tenant).or_default();
            }
            Event::Document(tenant, kind, site, version, envelope) => {
                let state = self.tenants.entry(tenant.clone()).or_default();
                let known = state.documents.get(&(kind, site.clone())).map(|(v, _)| *v);
                if known.is_some_and(|v| v >= version) {
                    return;
                }
                for (child, link) in &state.links {
                    let meant = site.is_empty() || state.nodes.get(child).is_some_and(|n| n.site == site);
                    if meant {
                        let message = Message::Document(kind, envelope.clone());
                        out.push(Effect::Send(*child, link.session, Lane::Control, message));
                    }
                }
                let mut revived = Vec::new();
                if kind == Kind::Revocations
                    && let Ok(list) = rmp_serde::from_slice::<Revocations>(&envelope.payload)
                {
                    revived.extend(epochs::raise(state, now, &list));
                    state.keep_connection = list.keep_connection.iter().copied().collect();
                    let now_suspended = list.suspended.into_iter().collect();
                    let before = std::mem::replace(&mut state.suspended, now_suspended);
                    if !(D::SEEDED && self.defects.has(Defect::REVIVES_SILENTLY)) {
                        revived.extend(before.difference(&state.suspended).copied());
                    }
                }
                state.documents.insert((kind, site), (version, envelope));
                self.look(now, &tenant, &revived, out);
            }
            Event::Statement(tenant, version, envelope) => {
                let documents = &mut self.tenants.entry(tenant).or_default().documents;
                documents.insert((Kind::Time, String::new()), (version, envelope));
            }
            Event::NotRaised(tenant, node) => {
                if let Some(state) = self.tenants.get_mut(&tenant) {
                    epochs::not_raised(state, node);
                }
            }
            Event::Revoked(tenant, node) => self.revoked(now, &tenant, node, out),
            Event::Committed(token) => self.committed(now, token, out),
            Event::Tick => self.tick(now, out),
            Event::Term(term) => self.term = term,
            Event::Recover(recovery) => self.recover_by(now, *recovery, out),
            Event::EndRecovery => {
                self.recovery.iter_mut().for_each(Recovery::end);
                self.look_at_recovery(now, out);
            }
            Event::Recovered(term) => self.recovered(now, term, out),
        }
    }

    fn issue(&mut self, now: Now, issue: Issue, out: &mut Vec<Effect>) {
        let (id, tenant) = (issue.job.id, issue.job.tenant.clone());
        let state = self.tenants.entry(tenant.clone()).or_default();
        let mut work = Work::default();
        work.ops.push(Op::Audit(AuditRow {
            tenant: tenant.clone(),
            at: now.node,
            who: issue.who.clone(),
            what: "job.issue".into(),
            detail: format!(
                "job {id} order {} {} on {} to {} devices",
                issue.job.number,
                issue.job.verb,
                issue.job.selector,
                issue.devices.len()
            ),
        }));
        let mut order = enter(state, issue, None, &mut work).map(|entered| (tenant.clone(), Box::new(entered)));
        if D::SEEDED && self.defects.has(Defect::SENDS_BEFORE_COMMIT) {
            self.release(now, After { order: order.take(), ..After::default() }, out);
        }
        let early = D::SEEDED && self.defects.has(Defect::ACCEPTS_BEFORE_COMMIT);
        let told = if early { &mut *out } else { &mut work.after };
        told.push(Effect::Issued(id));
        self.commit(now, &tenant, work, After { order, ..After::default() }, out);
    }

    fn revoked(&mut self, now: Now, tenant: &TenantId, node: NodeId, out: &mut Vec<Effect>) {
        let Some(state) = self.tenants.get_mut(tenant) else { return };
        if let Some(row) = state.nodes.get_mut(&node) {
            row.revoked_at = Some(now.node);
        }
        self.recovery.iter_mut().for_each(|recovery| recovery.gone(tenant, node));
        if let Some(link) = state.links.remove(&node) {
            let refusal = Refusal::new(401, "revoked", "this identity was revoked; enrol anew with a new token");
            out.push(Effect::Refuse(node, link.session, refusal));
        }
        state.directory.forget(node);
        state.receipts.forget(node);
        let mut work = Work::default();
        let open: Vec<OrderNumber> =
            state.orders.iter().filter(|(_, o)| o.open.contains_key(&node)).map(|(n, _)| *n).collect();
        for number in open {
            let over = Over::because(State::Cancelled, "revoked", now.node);
            end(state, number, node, over, None, &mut work);
        }
        self.commit(now, &tenant.clone(), work, After::default(), out);
    }

    /// Orders whose time is over (JOB-4): `expired` when nobody below can have it. What may be below is waited for until
    /// `report_by`; then silence is an end, which a result that comes all the same replaces.
    fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        let tenants: Vec<TenantId> = self.tenants.keys().cloned().collect();
        for tenant in tenants {
            let Some(state) = self.tenants.get_mut(&tenant) else { continue };
            state.directory.expire(now.node);
            state.withdrawals.expire(now.node);
            let mut work = Work::default();
            work.look.extend(left::retry(state, now));
            if self.recovery.is_none() {
                work.look.extend(sleepers::after_start(state));
            }
            out.extend(epochs::retry(state, now, &tenant));
            out.extend(epochs::remind_all(state, now));
            // What came to an end below may not have been told yet.
            let overdue = if self.recovery.is_some() { Vec::new() } else { state.ledger.overdue(now.node) };
            for row in overdue {
                let open = state.orders.get(&row.order);
                let free = row.free || (D::SEEDED && self.defects.has(Defect::EXPIRES_HELD));
                let cancelling = open.is_some_and(|o| o.cancelling.contains(&row.device));
                let over = match (row.handed_over, free) {
                    (false, true) if cancelling => Over::of(State::Cancelled, now.node),
                    (false, true) => Over::because(State::Expired, "not_fetched", now.node),
                    (true, _) if row.silent => Over::because(State::OutcomeUnknown, "silent", now.node),
                    (false, false) if row.silent => Over::because(State::Expired, "silent", now.node),
                    _ => continue,
                };
                end(state, row.order, row.device, over, None, &mut work);
            }
            if !work.ops.is_empty() || !work.look.is_empty() {
                self.commit(now, &tenant, work, After::default(), out);
            }
        }
        self.look_at_recovery(now, out);
    }
}
