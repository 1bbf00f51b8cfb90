//! The server's one owner of jobs, presence and intake: the shell of [`Core`]. Rebuilt from the store.
//!
//! One commit is under way at a time; what comes meanwhile is gathered into the next, so that 300 results cost a few
//! transactions. What can gather is bounded by the credit windows of the links that brought it.

mod again;
mod changed;
mod datagrams;
mod issue;
mod raise;
mod recovery;
mod version;
mod views;
mod wait;

pub use again::{CancelOrder, ReissueJob};
pub use changed::{DocumentsChanged, NodeChanged, NodeRevoked, TenantMade};
pub use issue::IssueJob;
pub use recovery::EndRecovery;
pub use views::{
    ChooseDevices, CountDevices, FindDevice, FindOrder, ViewContacts, ViewDevices, ViewFigures, ViewNodes,
};
pub use wait::WaitComplete;

use version::version_of;

use crate::{
    dispatch::{Core, Effect, Event, Preloaded, Recovered, Token, disk_key},
    domain::{Office, documents::Change},
    store::{Op, Store},
};
use actix::prelude::*;
use branchline_node::{
    downstream::{
        FromChild,
        beacon::Beacons,
        gatekeeper::{DemandTeller, Gatekeeper, SharedGauge},
        reception,
    },
    link::{
        LinkHandle,
        engine::{LinkCommand, LinkEvent},
    },
    metrics::Metrics,
    node::Ambient,
    supervise::{ChildAddr, Drain, Exit, ExitGuard},
    time::NodeTime,
};
use branchline_protocol::{
    document::{Kind, TimeStatement},
    id::{JobId, NodeId, Role, TenantId},
    inventory::Snapshot,
    order::Envelope,
    record::class,
    refusal::Refusal,
    time::Mono,
    wire::Message as Wire,
};
use bytes::Bytes;
use metrics::Counter;
use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock, atomic::AtomicU64},
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// Seconds between time statements (DESIGN 6).
const STATEMENT_S: u64 = 60;
/// Seconds between looks for what has expired.
const TICK_S: u64 = 1;

/// Newest time statement per tenant: written here, read by every session's heartbeat.
pub type Statements = Arc<RwLock<BTreeMap<TenantId, watch::Sender<Option<Arc<Envelope>>>>>>;

/// What the dispatcher works with; the same for every generation.
#[derive(Clone)]
pub struct Parts {
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// Keys and documents.
    pub office: Office,
    /// Clock and randomness.
    pub ambient: Ambient,
    /// Node time.
    pub time: NodeTime,
    /// What the reception checks.
    pub facts: Arc<watch::Sender<reception::Facts>>,
    /// What heartbeats answer.
    pub statements: Statements,
    /// The gatekeeper's gauge, for the tree.
    pub gauge: SharedGauge,
    /// Wakes and notices.
    pub beacons: Beacons,
    /// Hears what the open orders ask of the slots.
    pub gatekeeper: ChildAddr<Gatekeeper>,
    /// Restarts of the node's actors.
    pub restarts: Arc<AtomicU64>,
    /// Milliseconds that a restored server listens to its children at most.
    pub recovering_max_ms: u64,
    /// Counters.
    pub metrics: Metrics,
}

/// The actor.
pub struct Dispatcher {
    guard: ExitGuard,
    parts: Parts,
    core: Core,
    numbers: BTreeMap<TenantId, u64>,
    links: BTreeMap<NodeId, (u64, LinkHandle)>,
    queue: Vec<(Vec<Op>, Token)>,
    committing: bool,
    /// The store was found to be an older one: this actor ends as soon as that is durable.
    falling_back: bool,
    raising: raise::Raising,
    issuing: BTreeMap<JobId, oneshot::Sender<()>>,
    waiting: BTreeMap<(TenantId, JobId), Vec<oneshot::Sender<()>>>,
    stated_at: Mono,
    demands: DemandTeller,
    malformed: Counter,
    unknown: Counter,
}

impl Dispatcher {
    /// A dispatcher that loads its state from the store before it hears anything.
    pub fn new(guard: ExitGuard, parts: Parts) -> Self {
        let malformed = parts.metrics.counter("branchline_protocol_errors_total", &[]);
        let unknown = parts.metrics.counter("branchline_unknown_messages_total", &[]);
        let demands = DemandTeller::new(parts.gatekeeper.clone());
        Dispatcher {
            guard,
            parts,
            demands,
            core: Core::default(),
            numbers: BTreeMap::new(),
            links: BTreeMap::new(),
            queue: Vec::new(),
            committing: false,
            falling_back: false,
            raising: raise::Raising::default(),
            issuing: BTreeMap::new(),
            waiting: BTreeMap::new(),
            stated_at: Mono(0),
            malformed,
            unknown,
        }
    }

    fn fail(&mut self, why: String, ctx: &mut Context<Self>) {
        tracing::error!(%why, "the dispatcher cannot go on");
        self.guard.set(Exit::Failed(why));
        ctx.stop();
    }

    fn feed(&mut self, event: Event, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        self.core.handle(self.parts.time.now(), event, &mut effects);
        for effect in effects {
            match effect {
                Effect::Learned(learned) => self.keep_learned(*learned, ctx),
                Effect::Revoke(tenant, nodes) => self.revoke_again(tenant, nodes, ctx),
                Effect::Behind(tenant, kind, version) => self.look_behind(&tenant, kind, version, ctx),
                other => self.perform(other),
            }
        }
        if let Some(recovery) = self.core.recovery() {
            self.parts.office.set_recovery(recovery.progress());
        }
        self.raise(ctx);
        self.pump(ctx);
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Commit(ops, token) => self.queue.push((ops, token)),
            Effect::Send(node, session, lane, message) => {
                self.ask(node, session, LinkCommand::Send(lane, message.encode()))
            }
            Effect::Withdraw(node, session, list) => self.withdraw(node, session, list),
            Effect::Release(node, session, lane, bytes) => self.ask(node, session, LinkCommand::Release(lane, bytes)),
            Effect::Goodbye(node, session, goodbye) => self.ask(node, session, LinkCommand::Goodbye(goodbye)),
            Effect::Refuse(node, session, refusal) => self.ask(node, session, LinkCommand::Refuse(refusal.into())),
            Effect::Drop(..) | Effect::Reachable(..) | Effect::Sleeps(_) | Effect::Wake(_) => self.datagram(effect),
            Effect::Raise(tenant, device, epoch) => self.raising.add(tenant, device, epoch),
            Effect::JobChanged(tenant, job) => {
                let complete = self.core.tenant(&tenant).is_none_or(|t| t.orders.values().all(|o| o.job != job));
                if complete && let Some(waiting) = self.waiting.remove(&(tenant, job)) {
                    waiting.into_iter().for_each(|w| {
                        let _ = w.send(());
                    });
                }
            }
            Effect::Issued(job) => {
                if let Some(issuer) = self.issuing.remove(&job) {
                    let _ = issuer.send(());
                }
            }
            Effect::Learned(_) | Effect::Revoke(..) | Effect::Behind(..) => unreachable!("`feed` takes them"),
        }
    }

    fn ask(&mut self, node: NodeId, session: u64, command: LinkCommand) {
        if let Some((live, link)) = self.links.get(&node)
            && *live == session
            && !link.ask(command)
        {
            // Gone or not keeping up: without our handle the link ends, and the child greets anew.
            tracing::info!(%node, "link dropped: it has just ended, or does not keep up");
            self.links.remove(&node);
        }
    }

    /// Starts the next commit with everything that has gathered.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        if self.committing || self.queue.is_empty() {
            return;
        }
        self.committing = true;
        let gathered = std::mem::take(&mut self.queue);
        let tokens: Vec<Token> = gathered.iter().map(|(_, t)| *t).collect();
        let ops: Vec<Op> = gathered.into_iter().flat_map(|(ops, _)| ops).collect();
        let store = self.parts.store.clone();
        let work = async move { store.commit(ops).await };
        ctx.spawn(work.into_actor(self).map(move |done, actor, ctx| {
            actor.committing = false;
            match done {
                Ok(()) => {
                    for token in tokens {
                        actor.feed(Event::Committed(token), ctx);
                    }
                    actor.pump(ctx);
                }
                Err(e) => actor.fail(format!("commit: {e}"), ctx),
            }
        }));
    }

    fn publish_facts(&self) {
        let office = &self.parts.office;
        let mut tenants = office.tenants();
        tenants.push(TenantId::system());
        let revocations = tenants.iter().filter_map(|t| Some((t.clone(), office.revocations(t)?))).collect();
        let ancestors = vec![(office.server_id(), office.server_name())];
        let children = self.core.links();
        let polls = |tenant: &TenantId| Some((tenant.clone(), reception::Polls::of(&office.settings(tenant).ok()?)));
        let polls = office.tenants().iter().filter_map(polls).collect();
        let facts = reception::Facts { ancestors, revocations, children, open: true, polls };
        self.parts.facts.send_replace(facts);
    }

    fn state_time(&mut self, ctx: &mut Context<Self>) {
        let now = self.parts.time.now();
        self.stated_at = now.mono;
        let now = now.wall;
        for tenant in self.parts.office.tenants() {
            let Some(envelope) = self.parts.office.time_statement(&tenant, now, 0) else { continue };
            if let Ok(mut all) = self.parts.statements.write() {
                let newest = all.entry(tenant.clone()).or_insert_with(|| watch::channel(None).0);
                newest.send_replace(Some(Arc::new(envelope.clone())));
            }
            if let Ok(TimeStatement { term, version, .. }) = rmp_serde::from_slice(&envelope.payload) {
                self.feed(Event::Statement(tenant, (term, version), envelope), ctx);
            }
        }
    }

    fn take_documents(&mut self, tenant: &TenantId, ctx: &mut Context<Self>) {
        let office = self.parts.office.clone();
        for site in office.sites(tenant).unwrap_or_default() {
            for (kind, envelope) in office.documents(tenant, &site) {
                if let Some(version) = version_of(kind, &envelope) {
                    let site = if kind == Kind::Upstreams { site.clone() } else { String::new() };
                    self.feed(Event::Document(tenant.clone(), kind, site, version, envelope), ctx);
                }
            }
        }
    }

    fn loaded(&mut self, found: Result<(Recovered, BTreeMap<TenantId, u64>), String>, ctx: &mut Context<Self>) {
        let recovered = found.and_then(|(recovered, numbers)| {
            self.numbers = numbers;
            Core::recover(recovered)
        });
        match recovered {
            Ok(core) => self.core = core,
            Err(why) => return self.fail(format!("load: {why}"), ctx),
        }
        for tenant in self.parts.office.tenants() {
            self.feed(Event::Tenant(tenant.clone()), ctx);
            self.take_documents(&tenant, ctx);
        }
        self.begin_recovery(ctx);
        self.state_time(ctx);
        self.publish_facts();
        ctx.run_interval(Duration::from_secs(STATEMENT_S), |actor, ctx| actor.state_time(ctx));
        ctx.run_interval(Duration::from_secs(TICK_S), |actor, ctx| {
            actor.demands.tell(actor.core.demands());
            actor.feed(Event::Tick, ctx);
        });
        let changes = self.parts.office.changes();
        ctx.add_stream(futures_util::stream::unfold(changes, |mut changes| async move {
            use tokio::sync::broadcast::error::RecvError;
            match changes.recv().await {
                Ok(change) => Some((Some(change), changes)),
                Err(RecvError::Lagged(_)) => Some((None, changes)),
                Err(RecvError::Closed) => None,
            }
        }));
    }
}

async fn load(parts: Parts) -> Result<(Recovered, BTreeMap<TenantId, u64>), String> {
    let store = &parts.store;
    let text = |e: crate::store::StoreError| e.to_string();
    let mut found = Recovered {
        nodes: store.nodes().await.map_err(text)?,
        streams: store.streams().await.map_err(text)?,
        need_full: store.need_full().await.map_err(text)?,
        tenants: parts.office.tenants(),
        reachable: datagrams::load(&parts).await.map_err(text)?,
        ..Recovered::default()
    };
    for job in store.open_jobs().await.map_err(text)? {
        let devices = store.job_devices(&job.tenant, job.id).await.map_err(text)?;
        found.jobs.push((job, devices));
    }
    let number = |stored: Option<Bytes>| stored.and_then(|b| Some(u64::from_be_bytes(b[..].try_into().ok()?)));
    for node in found.nodes.iter().filter(|n| n.role == Role::Relay && n.revoked_at.is_none()) {
        let disk = number(store.meta(&disk_key(&node.tenant, node.id)).await.map_err(text)?);
        found.disks.extend(disk.map(|disk| (node.tenant.clone(), node.id, disk)));
    }
    let mut numbers = BTreeMap::new();
    for tenant in &found.tenants {
        let stored = store.meta(&format!("order/{tenant}")).await.map_err(text)?;
        numbers.insert(tenant.clone(), number(stored).unwrap_or(0));
    }
    Ok((found, numbers))
}

impl Actor for Dispatcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(4096);
        // Nothing is heard before the state is there.
        ctx.wait(load(self.parts.clone()).into_actor(self).map(|found, actor, ctx| actor.loaded(found, ctx)));
    }
}

impl Handler<Drain> for Dispatcher {
    type Result = ();
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.guard.set(Exit::Stopped);
        ctx.stop();
    }
}

impl StreamHandler<Option<Change>> for Dispatcher {
    /// `None`: some were missed, so everything may have changed.
    fn handle(&mut self, change: Option<Change>, ctx: &mut Self::Context) {
        let tenants = change.map_or_else(|| self.parts.office.tenants(), |c| vec![c.tenant]);
        for tenant in tenants {
            self.take_documents(&tenant, ctx);
        }
        self.publish_facts();
    }

    fn finished(&mut self, _: &mut Self::Context) {}
}

impl Handler<FromChild> for Dispatcher {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, said: FromChild, ctx: &mut Self::Context) -> Self::Result {
        let done = || Box::pin(actix::fut::ready(()));
        match said {
            FromChild::Up { child, link } if self.core.is_stale(&child) => {
                // It was overtaken between its admission and here.
                let _gone = link.ask(LinkCommand::Refuse(reception::stale().into()));
                tracing::info!(node = %child.node, attachment = child.key.attachment, "an older link came up late");
                self.feed(Event::Stale(child.tenant.clone(), child.node, child.key), ctx);
            }
            FromChild::Up { child, link } => {
                tracing::info!(node = %child.node, role = %child.role, attachment = child.key.attachment, poll = child.lease.is_some(), "child up");
                self.links.insert(child.node, (child.session, link));
                // A statement sent with the greeting is at most a second old, so that a child's node time starts right.
                if self.parts.time.now().mono.since(self.stated_at) >= 1_000 {
                    self.state_time(ctx);
                }
                self.feed(Event::Up(child), ctx);
                self.publish_facts();
            }
            FromChild::Gone { child, end } => {
                tracing::info!(node = %child.node, ?end, "child gone");
                if self.links.get(&child.node).is_some_and(|(session, _)| *session == child.session) {
                    self.links.remove(&child.node);
                }
                self.feed(Event::Gone(child, end), ctx);
                self.publish_facts();
            }
            FromChild::Displaced { node, session, lease } => {
                if self.links.get(&node).is_some_and(|(live, _)| *live == session) {
                    self.feed(Event::Displaced(node, lease), ctx);
                }
            }
            FromChild::SlotKept { node } => self.parts.beacons.want(node),
            FromChild::Stale { tenant, node, key } => self.feed(Event::Stale(tenant, node, key), ctx),
            FromChild::GoesOff { tenant, node, key } => self.feed(Event::GoesOff(tenant, node, key), ctx),
            FromChild::Event { child, event: LinkEvent::ChildDone } => self.feed(Event::Done(child), ctx),
            FromChild::Event { child, event: LinkEvent::Heard } => self.feed(Event::Heard(child), ctx),
            FromChild::Event { child, event: LinkEvent::Message(received) } => {
                let (lane, credit) = (received.lane, received.credit);
                let message = match Wire::decode(&received.bytes) {
                    Ok(message) => message,
                    Err(branchline_protocol::wire::MessageFault::Unknown(kind)) => {
                        tracing::debug!(node = %child.node, kind, "a message of an unknown kind");
                        self.unknown.increment(1);
                        self.ask(child.node, child.session, LinkCommand::Release(lane, credit));
                        return done();
                    }
                    Err(fault) => {
                        self.malformed.increment(1);
                        let refusal = Refusal::new(400, "malformed", fault.to_string());
                        self.ask(child.node, child.session, LinkCommand::Refuse(refusal.into()));
                        return done();
                    }
                };
                let reports = inventories_in(&message);
                if reports.is_empty() {
                    self.feed(Event::Said { child, message, lane, credit, preloaded: Preloaded::new() }, ctx);
                    return done();
                }
                let (store, tenant) = (self.parts.store.clone(), child.tenant.clone());
                let preload = async move {
                    let mut loaded = Preloaded::new();
                    for device in reports {
                        if let Some(row) = store.inventory(&tenant, device).await? {
                            loaded.insert(device, (Snapshot { sections: row.sections }, row.collected_at));
                        }
                    }
                    Ok::<_, crate::store::StoreError>(loaded)
                };
                return Box::pin(preload.into_actor(self).map(move |loaded, actor, ctx| match loaded {
                    Ok(preloaded) => actor.feed(Event::Said { child, message, lane, credit, preloaded }, ctx),
                    Err(e) => actor.fail(format!("read inventory: {e}"), ctx),
                }));
            }
            FromChild::Event { child, event } => tracing::debug!(node = %child.node, ?event, "passed over"),
        }
        done()
    }
}

fn inventories_in(message: &Wire) -> Vec<NodeId> {
    let Wire::Records(runs) = message else { return Vec::new() };
    runs.iter().filter(|r| r.records.iter().any(|r| r.class == class::INVENTORY)).map(|r| r.stream.node).collect()
}
