//! The relay's one owner of spool, ledger and directory: the shell of [`RelayCore`]. One actor, because one transaction
//! closes an order's row and keeps its result. Rebuilt from the disk.

mod ways;

pub use ways::Followed;

use crate::{
    core::{Effect, Event, RelayCore},
    host::Ways,
    upstream::UpstreamSettings,
};
use actix::prelude::*;
use branchline_node::{
    config::Reach,
    downstream::{
        Child, FromChild,
        beacon::Beacons,
        gatekeeper::{DemandTeller, Gatekeeper, SharedGauge},
        reception::{Facts, Polls, stale},
    },
    driver::{Completion, Driver, Notify},
    identity::{Bundle, Identity},
    link::{
        LinkHandle,
        engine::{LinkCommand, LinkEvent},
    },
    metrics::Metrics,
    store::{StoreHandle, Table},
    supervise::{ChildAddr, Drain, Exit, ExitGuard},
    time::NodeTime,
    uplink::{Uplink, UplinkConfig, UplinkEvent, board::Board, spool::Rows},
};
use branchline_protocol::{
    document::Kind,
    id::NodeId,
    order::Envelope,
    refusal::Refusal,
    wire::{Greeting, Message as Wire, MessageFault},
};
use metrics::Counter;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// Milliseconds between ticks: how long presence and facts may gather.
const TICK_MS: u64 = 250;
/// Ticks between two looks whether a full disk has room again.
const LOOK_FOR_SPACE_TICKS: u64 = 40;

/// What the exchange works with; the same for every generation.
#[derive(Clone)]
pub struct Parts {
    /// The disk.
    pub store: StoreHandle,
    /// Node time.
    pub time: NodeTime,
    /// Its identity.
    pub identity: Arc<Identity>,
    /// How the uplink dials; upstreams and TLS are renewed from documents.
    pub uplink_config: UplinkConfig,
    /// What the bundle says of the way up: its parents, and the roots of gateways.
    pub bundled: Arc<Bundle>,
    /// Which routes the configuration allows.
    pub reach: Reach,
    /// What an administrator has set over it (RLY-2).
    pub set: Arc<RwLock<Option<UpstreamSettings>>>,
    /// How the uplink stands.
    pub board: Board,
    /// The uplink's present address.
    pub uplink: ChildAddr<Uplink>,
    /// What the reception checks.
    pub facts: Arc<watch::Sender<Facts>>,
    /// What heartbeats answer.
    pub statement: Arc<watch::Sender<Option<Arc<Envelope>>>>,
    /// TLS and routes for the reception.
    pub ways: Arc<RwLock<Ways>>,
    /// The gatekeeper's gauge.
    pub gauge: SharedGauge,
    /// Wakes and notices.
    pub beacons: Beacons,
    /// Hears what the open orders ask of the slots.
    pub gatekeeper: ChildAddr<Gatekeeper>,
    /// What `/getstatus` shows, kept up to date here.
    pub status: Arc<RwLock<serde_json::Value>>,
    /// Restarts of the node's actors.
    pub restarts: Arc<AtomicU64>,
    /// Counters.
    pub metrics: Metrics,
}

/// The actor.
pub struct Exchange {
    guard: ExitGuard,
    parts: Parts,
    driver: Driver<RelayCore, StoreHandle>,
    documents: Vec<(Kind, Envelope)>,
    parent: Option<LinkHandle>,
    own: Addr<Exchange>,
    links: BTreeMap<NodeId, (u64, LinkHandle)>,
    greetings: BTreeMap<u64, oneshot::Sender<Greeting>>,
    dials: u64,
    figures: String,
    demands: DemandTeller,
    low_space: bool,
    ticks: u64,
    malformed: Counter,
    unknown: Counter,
    bytes_up: Counter,
    bytes_down: Counter,
}

/// A completion of the store's thread.
#[derive(Message)]
#[rtype(result = "()")]
struct Done(Completion);

/// What was read back of the spool, or why it could not be.
#[derive(Message)]
#[rtype(result = "()")]
struct Loaded(Result<Rows, String>);

impl Exchange {
    /// Around a recovered core; `documents` are those of a fresh enrolment.
    pub fn new(
        guard: ExitGuard,
        ctx: &mut Context<Self>,
        parts: Parts,
        core: RelayCore,
        documents: Vec<(Kind, Envelope)>,
    ) -> Self {
        let (own, notified) = (ctx.address(), ctx.address());
        // One notice per batch, and batches are bounded by the driver: the mailbox's bound may be passed over.
        let notify: Notify = Arc::new(move |done| notified.do_send(Done(done)));
        let driver = Driver::new(core, parts.store.clone(), notify);
        let m = &parts.metrics;
        let malformed = m.counter("branchline_protocol_errors_total", &[]);
        let unknown = m.counter("branchline_unknown_messages_total", &[]);
        let bytes_up = m.counter("branchline_uplink_bytes_total", &[("dir", "up"), ("kind", "link")]);
        let bytes_down = m.counter("branchline_uplink_bytes_total", &[("dir", "down"), ("kind", "link")]);
        let (links, greetings) = (BTreeMap::new(), BTreeMap::new());
        let demands = DemandTeller::new(parts.gatekeeper.clone());
        Exchange {
            guard,
            parts,
            driver,
            documents,
            parent: None,
            own,
            links,
            greetings,
            dials: 0,
            figures: String::new(),
            demands,
            low_space: false,
            ticks: 0,
            malformed,
            unknown,
            bytes_up,
            bytes_down,
        }
    }

    fn feed(&mut self, event: Event, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        let handled = self.driver.handle(self.parts.time.now(), event, |effect| effects.push(effect));
        effects.into_iter().for_each(|effect| self.perform(effect));
        if let Err(fault) = handled {
            self.fail(fault.to_string(), ctx);
        }
    }

    fn fail(&mut self, why: String, ctx: &mut Context<Self>) {
        tracing::error!(%why, "the exchange cannot go on");
        self.guard.set(Exit::Failed(why));
        ctx.stop();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Commit(..) => {}
            Effect::Load(keys) => self.load(keys),
            // To itself, once: it ends by it, and a full mailbox must not keep that from it.
            Effect::Damaged(why) => self.own.do_send(Loaded(Err(why))),
            Effect::Greet(number, greeting) => {
                if let Some(reply) = self.greetings.remove(&number) {
                    let _ = reply.send(*greeting);
                }
            }
            Effect::ToParent(lane, message) => {
                let bytes = message.encode();
                self.bytes_up.increment(bytes.len() as u64);
                self.ask_parent(LinkCommand::Send(lane, bytes));
            }
            Effect::ReleaseParent(lane, bytes) => self.ask_parent(LinkCommand::Release(lane, bytes)),
            Effect::CloseParent(why) => {
                tracing::warn!(why, "uplink closed: the parent broke the rules");
                self.malformed.increment(1);
                self.ask_parent(LinkCommand::Refuse(Refusal::new(409, "protocol", why).into()));
                self.parent = None;
            }
            Effect::ToChild(node, session, lane, message) => {
                self.ask(node, session, LinkCommand::Send(lane, message.encode()))
            }
            Effect::ReleaseChild(node, session, lane, bytes) => {
                self.ask(node, session, LinkCommand::Release(lane, bytes))
            }
            Effect::GoodbyeChild(node, session, goodbye) => self.ask(node, session, LinkCommand::Goodbye(goodbye)),
            Effect::RefuseChild(node, session, refusal) => self.ask(node, session, LinkCommand::Refuse(refusal.into())),
            Effect::DropChild(node, session) => self.links.retain(|of, (live, _)| *of != node || *live != session),
            Effect::Reachable(node, reachable) => self.parts.beacons.keyring.put(node, reachable),
            Effect::Sleeps(node) => self.parts.beacons.keyring.sleeps(node),
            Effect::Wake(node) => self.parts.beacons.want(node),
            Effect::FactsChanged => self.publish_facts(),
            Effect::Reconfigure => self.reconfigure(),
            Effect::LearnTime(time, envelope) => {
                self.parts.time.learn(time);
                self.parts.statement.send_replace(Some(Arc::new(envelope)));
            }
            Effect::Refused(code) => {
                self.parts.metrics.counter("branchline_refused_total", &[("code", code)]).increment(1)
            }
        }
    }

    /// Reads off the arbiter. One at a time: the core asks for more when it has these.
    fn load(&self, keys: Vec<Vec<u8>>) {
        let (store, own) = (self.parts.store.clone(), self.own.clone());
        actix_rt::task::spawn_blocking(move || {
            let row = |key: Vec<u8>| store.get(Table::Spool, &key).map(|value| (key, value));
            let rows = keys.into_iter().map(row).collect::<Result<_, _>>();
            own.do_send(Loaded(rows.map_err(|e| e.to_string())));
        });
    }

    fn ask_parent(&mut self, command: LinkCommand) {
        if self.parent.as_ref().is_some_and(|link| !link.ask(command)) {
            // Without our handle the link ends, and we greet anew: nothing is lost, the spool repeats.
            self.parent = None;
        }
    }

    fn ask(&mut self, node: NodeId, session: u64, command: LinkCommand) {
        if let Some((live, link)) = self.links.get(&node)
            && *live == session
            && !link.ask(command)
        {
            tracing::info!(%node, "link dropped: it has just ended, or does not keep up");
            self.links.remove(&node);
        }
    }

    /// Publishes what the reception and the status page show.
    pub fn publish_facts(&self) {
        let core = self.driver.core();
        let revocations =
            BTreeMap::from([(self.parts.uplink_config.tenant.clone(), core.shelf().revocations().clone())]);
        let polls = core.shelf().settings().map(|held| (self.parts.uplink_config.tenant.clone(), Polls::of(held)));
        let polls = polls.into_iter().collect();
        let (ancestors, children) = (core.chain(), core.links());
        let facts = Facts { ancestors, revocations, children, open: true, polls };
        self.parts.facts.send_replace(facts);
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<Option<Wire>, MessageFault> {
        match Wire::decode(bytes) {
            Ok(message) => Ok(Some(message)),
            Err(MessageFault::Unknown(kind)) => {
                tracing::debug!(kind, "a message of an unknown kind");
                self.unknown.increment(1);
                Ok(None)
            }
            Err(fault) => {
                self.malformed.increment(1);
                Err(fault)
            }
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(LOOK_FOR_SPACE_TICKS) {
            self.parts.store.look_for_space();
        }
        let low = self.parts.store.low_space();
        if low != self.low_space {
            self.low_space = low;
            self.feed(Event::LowSpace(low), ctx);
        }
        let core = self.driver.core();
        self.demands.tell(core.demands());
        let spool = core.spool().figures();
        let gauge = self.parts.gauge.lock().map(|g| *g).ok();
        let figures = serde_json::json!({
            "slots": gauge,
            "queues": {
                "spool_records": spool.spool_records,
                "spool_bytes": spool.spool_bytes,
                "oldest_unsettled_at": spool.oldest_unsettled_at,
                "ledger_open": core.ledger().open_rows(),
            },
            "links": core.links(),
            "restarts": self.parts.restarts.load(Ordering::Relaxed),
        });
        self.parts.metrics.counter("branchline_fsyncs_total", &[]).absolute(self.parts.store.fsyncs());
        if let Ok(mut status) = self.parts.status.write() {
            *status = serde_json::json!({
                "build": env!("CARGO_PKG_VERSION"),
                "upstream": if core.parent_up() { "reachable" } else { "unreachable" },
                "uplink": self.parts.board.standing(),
                "set": self.parts.set.read().ok().and_then(|set| set.as_ref().map(|set| format!("{:?}", set.route()))),
                "figures": figures.clone(),
            });
        }
        let text = figures.to_string();
        if text != self.figures {
            self.figures.clone_from(&text);
            self.feed(Event::Figures(text), ctx);
        }
        self.feed(Event::Tick, ctx);
    }

    fn child_message(&mut self, child: Arc<Child>, event: LinkEvent, ctx: &mut Context<Self>) {
        match event {
            LinkEvent::Message(received) => match self.decode(&received.bytes) {
                Ok(Some(message)) => self.feed(Event::ChildSaid(child, message, received.lane, received.credit), ctx),
                Ok(None) => self.ask(child.node, child.session, LinkCommand::Release(received.lane, received.credit)),
                Err(fault) => {
                    let refusal = Refusal::new(400, "malformed", fault.to_string());
                    self.ask(child.node, child.session, LinkCommand::Refuse(refusal.into()));
                }
            },
            LinkEvent::ChildDone => self.feed(Event::ChildDone(child), ctx),
            LinkEvent::Heard => self.feed(Event::Heard(child.node), ctx),
            other => tracing::debug!(node = %child.node, event = ?other, "passed over"),
        }
    }
}

impl Actor for Exchange {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(4096);
        // Node time never goes back, and orders expire at the same node time everywhere (JOB-4).
        if let Some(kept) = self.driver.core().kept_time() {
            self.parts.time.learn(kept);
        }
        let statement = self.driver.core().shelf().get(Kind::Time).map(|(_, envelope)| envelope.clone());
        if let Some(envelope) = statement {
            self.parts.statement.send_if_modified(|held| {
                let first = held.is_none();
                held.get_or_insert_with(|| Arc::new(envelope));
                first
            });
        }
        for (node, reachable) in self.driver.core().recovered_sleepers() {
            self.parts.beacons.keyring.put(*node, Some(reachable.clone()));
        }
        for (kind, envelope) in std::mem::take(&mut self.documents) {
            self.feed(Event::Document(kind, envelope), ctx);
        }
        // Before the first order, which may come sooner than the first tick.
        self.low_space = self.parts.store.low_space();
        if self.low_space {
            self.feed(Event::LowSpace(true), ctx);
        }
        self.reconfigure();
        self.publish_facts();
        ctx.run_interval(Duration::from_millis(TICK_MS), |actor, ctx| actor.tick(ctx));
    }
}

impl Handler<Done> for Exchange {
    type Result = ();
    fn handle(&mut self, Done(done): Done, ctx: &mut Self::Context) {
        let mut effects = Vec::new();
        let handled = self.driver.completed(self.parts.time.now(), done, |effect| effects.push(effect));
        effects.into_iter().for_each(|effect| self.perform(effect));
        if let Err(fault) = handled {
            self.fail(fault.to_string(), ctx);
        }
    }
}

impl Handler<Loaded> for Exchange {
    type Result = ();
    fn handle(&mut self, Loaded(rows): Loaded, ctx: &mut Self::Context) {
        match rows {
            Ok(rows) => self.feed(Event::Loaded(rows), ctx),
            Err(why) => self.fail(format!("read the spool: {why}"), ctx),
        }
    }
}

impl Handler<FromChild> for Exchange {
    type Result = ();

    fn handle(&mut self, said: FromChild, ctx: &mut Self::Context) {
        match said {
            FromChild::Up { child, link } if self.driver.core().is_stale(&child) => {
                // It was overtaken between its admission and here.
                let _gone = link.ask(LinkCommand::Refuse(stale().into()));
                tracing::info!(node = %child.node, attachment = child.key.attachment, "an older link came up late");
                self.feed(Event::Stale(child.node, child.key), ctx);
            }
            FromChild::Up { child, link } => {
                tracing::info!(node = %child.node, role = %child.role, attachment = child.key.attachment, poll = child.lease.is_some(), "child up");
                self.links.insert(child.node, (child.session, link));
                self.feed(Event::ChildUp(child), ctx);
            }
            FromChild::Gone { child, end } => {
                tracing::info!(node = %child.node, ?end, "child gone");
                if self.links.get(&child.node).is_some_and(|(session, _)| *session == child.session) {
                    self.links.remove(&child.node);
                }
                self.feed(Event::ChildGone(child, end), ctx);
                self.publish_facts();
            }
            FromChild::Displaced { node, session, lease } => {
                if self.links.get(&node).is_some_and(|(live, _)| *live == session) {
                    self.feed(Event::Displaced(node, lease), ctx);
                }
            }
            FromChild::Event { child, event } => self.child_message(child, event, ctx),
            FromChild::SlotKept { node } => self.parts.beacons.want(node),
            FromChild::Stale { node, key, .. } => self.feed(Event::Stale(node, key), ctx),
            FromChild::GoesOff { node, key, .. } => self.feed(Event::GoesOff(node, key), ctx),
        }
    }
}

impl Handler<UplinkEvent> for Exchange {
    type Result = ();

    fn handle(&mut self, event: UplinkEvent, ctx: &mut Self::Context) {
        match event {
            UplinkEvent::Dialling { reply, parent, .. } => {
                self.dials += 1;
                self.greetings.retain(|_, r| !r.is_closed());
                self.greetings.insert(self.dials, reply);
                self.feed(Event::Dialling(self.dials, parent), ctx);
            }
            UplinkEvent::Up { welcome, route, link, .. } => {
                tracing::info!(parent = %welcome.parent, ?route, "uplink up");
                self.parent = Some(link);
                self.feed(Event::ParentUp(welcome), ctx);
            }
            UplinkEvent::Event(LinkEvent::Message(received)) => {
                self.bytes_down.increment(received.bytes.len() as u64);
                match self.decode(&received.bytes) {
                    Ok(Some(message)) => self.feed(Event::ParentSaid(message, received.lane, received.credit), ctx),
                    Ok(None) => self.ask_parent(LinkCommand::Release(received.lane, received.credit)),
                    Err(fault) => {
                        tracing::warn!(%fault, "uplink closed: malformed message");
                        self.parent = None;
                    }
                }
            }
            UplinkEvent::Event(LinkEvent::Alive(Some(envelope))) => self.feed(Event::Alive(*envelope), ctx),
            UplinkEvent::Event(other) => tracing::debug!(event = ?other, "passed over"),
            UplinkEvent::Down { why, refusal, .. } => {
                tracing::info!(why, "uplink down");
                self.parent = None;
                if refusal.is_some_and(|refusal| refusal.is_stale_attachment()) {
                    self.feed(Event::Overtaken, ctx);
                }
                self.feed(Event::ParentDown, ctx);
            }
        }
    }
}

impl Handler<Drain> for Exchange {
    type Result = ();
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.feed(Event::Stopping, ctx);
        self.guard.set(Exit::Stopped);
        ctx.stop();
    }
}
