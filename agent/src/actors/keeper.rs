//! The shell of [`AgentCore`]: gives it events with the time, carries its effects out, keeps its timer. Rebuilt from the
//! disk after a fault.

use super::{
    collector::{Collect, Collector},
    executor::{Command, Executor},
    farewell::Farewell,
    root::Parts,
};
use crate::decide::{AgentCore, Counted, Effect, Event, Figures, Rows};
use actix::prelude::*;
use branchline_node::{
    driver::{Completion, DriveFault, Driver, Notify},
    link::engine::{LinkCommand, LinkEvent},
    store::{Batch, StoreHandle},
    supervise::{Drain, Exit, ExitGuard},
    uplink::{LinkHandle, UplinkCommand, UplinkEvent},
};
use branchline_protocol::{
    datagram::LinkKeys,
    time::{Mono, Now},
    wire::{Greeting, Welcome},
};
use jiff::tz::TimeZone;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// The mailbox bound for those who wait for an answer; notices of the store and of children pass over it, and are
/// bounded by the store's queue and by what the core asked for.
const MAILBOX: usize = 64;

/// How often the wall clock and its zone are looked at: timers run on the monotonic clock, which stands still while the
/// machine sleeps and knows nothing of a clock that is set.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A wall clock that moved against the monotonic one by more than this was set.
const MOVED_MS: u64 = 1_000;
/// How often a full disk is looked at for room.
const LOOK_FOR_SPACE: Duration = Duration::from_secs(10);

/// Something happened to a job or to a collection.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Happened(pub Event);

/// A child that works for the keeper lives.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) enum Joined {
    Executor(Addr<Executor>),
    Collector(Addr<Collector>),
}

#[derive(Message)]
#[rtype(result = "()")]
struct Answered(Completion);

/// See the module.
pub(crate) struct Keeper {
    guard: ExitGuard,
    parts: Arc<Parts>,
    driver: Option<Driver<AgentCore, StoreHandle>>,
    link: Option<LinkHandle>,
    dials: u64,
    reply: Option<(u64, oneshot::Sender<Greeting>)>,
    /// Keys of the newest dial.
    dialled: Option<LinkKeys>,
    executor: Option<Addr<Executor>>,
    collector: Option<Addr<Collector>>,
    timer: Option<(Mono, SpawnHandle)>,
    low_space: bool,
    /// The zone, and wall minus monotonic time, as the core last heard.
    surroundings: (TimeZone, i64),
    fsyncs: metrics::Counter,
}

impl Keeper {
    pub(crate) fn new(guard: ExitGuard, parts: Arc<Parts>) -> Self {
        let fsyncs = parts.metrics.counter("branchline_fsyncs_total", &[]);
        Keeper {
            guard,
            parts,
            driver: None,
            link: None,
            dials: 0,
            reply: None,
            dialled: None,
            executor: None,
            collector: None,
            timer: None,
            low_space: false,
            surroundings: (TimeZone::UTC, 0),
            fsyncs,
        }
    }

    fn tell_surroundings(&mut self, ctx: &mut Context<Self>) {
        let (zone, now) = (self.parts.time.zone(), self.parts.time.now());
        self.surroundings = (zone.clone(), now.wall.0 - now.mono.0 as i64);
        self.event(Event::Surroundings { zone, boot: self.parts.boot.clone() }, ctx);
    }

    fn look_at_clock(&mut self, ctx: &mut Context<Self>) {
        let (zone, now) = (self.parts.time.zone(), self.parts.time.now());
        let moved = (now.wall.0 - now.mono.0 as i64).abs_diff(self.surroundings.1) > MOVED_MS;
        if moved || zone != self.surroundings.0 {
            self.tell_surroundings(ctx);
        }
    }

    fn begin(&mut self, core: AgentCore, ctx: &mut Context<Self>) {
        let to = ctx.address();
        // From the store's thread, which must not wait; the store's queue bounds how many there are.
        let notify: Notify = Arc::new(move |done| to.do_send(Answered(done)));
        self.driver = Some(Driver::new(core, self.parts.store.clone(), notify));
        self.tell_surroundings(ctx);
        self.event(Event::Start, ctx);
    }

    fn fail(&mut self, why: impl std::fmt::Display, ctx: &mut Context<Self>) {
        self.guard.set(Exit::failed(why));
        ctx.stop();
    }

    fn event(&mut self, event: Event, ctx: &mut Context<Self>) {
        self.drive(ctx, |driver, now, effects| driver.handle(now, event, |effect| effects.push(effect)));
    }

    fn drive(
        &mut self,
        ctx: &mut Context<Self>,
        work: impl FnOnce(&mut Driver<AgentCore, StoreHandle>, Now, &mut Vec<Effect>) -> Result<(), DriveFault>,
    ) {
        let now = self.parts.time.now();
        let Some(driver) = &mut self.driver else { return };
        let mut effects = Vec::new();
        let result = work(driver, now, &mut effects);
        for effect in effects {
            self.perform(effect);
        }
        if let Err(fault) = result {
            return self.fail(fault, ctx);
        }
        self.set_timer(ctx);
        self.show();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            // The driver keeps these to itself.
            Effect::Commit(..) => {}
            Effect::Greet(dial, greeting) => {
                if let Some((_, reply)) = self.reply.take_if(|(of, _)| *of == dial) {
                    tracing::debug!(node = %self.parts.me.node, "greets");
                    // The dial may have been given up meanwhile.
                    let _ = reply.send(*greeting);
                }
            }
            Effect::Send(lane, message) => self.ask(LinkCommand::Send(lane, message.encode())),
            Effect::Release(lane, bytes) => self.ask(LinkCommand::Release(lane, bytes)),
            Effect::Goodbye(goodbye) => self.ask(LinkCommand::Goodbye(goodbye)),
            Effect::CloseLink(why) => {
                tracing::warn!(node = %self.parts.me.node, %why, "the parent broke the protocol; the link is closed");
                self.link = None;
            }
            Effect::Redial => {
                tracing::info!(node = %self.parts.me.node, "the link of the earlier epoch is closed");
                self.link = None;
            }
            Effect::Poke(poke) => {
                // A full mailbox holds a poke already, and an uplink that is down dials when it is rebuilt.
                let _ = self.parts.uplink.try_send(UplinkCommand::Poke(poke));
            }
            Effect::WakeKeys(keys) => drop(self.parts.wake.keys.send_replace(keys)),
            Effect::Reconfigure => self.reconfigure(),
            Effect::LearnTime(time) => self.parts.time.learn(time),
            Effect::Start(job) => self.execute(Command::Start(job)),
            Effect::Resume(order) => self.execute(Command::Resume(order)),
            Effect::Kill(order) => self.execute(Command::Kill(order)),
            Effect::RemoveJob(order) => self.execute(Command::Remove(order)),
            Effect::KeepJobs(orders) => self.execute(Command::Keep(orders)),
            Effect::Collect(sections) => {
                if let Some(collector) = &self.collector {
                    // One at a time, as the core asks.
                    collector.do_send(Collect(sections));
                }
            }
            Effect::Note(note) => {
                let (node, reason) = (self.parts.me.node, note.reason.as_deref().unwrap_or_default());
                tracing::info!(%node, order = %note.order, job = %note.job, trace = %note.trace, what = note.what, reason, "order");
            }
            Effect::Count(what) => self.parts.metrics.counter(metric(what), &[]).increment(1),
        }
    }

    /// Whom to tell, should this device go off (ADM-18).
    fn tell_farewell(&self, welcome: &Welcome, peer: Option<SocketAddr>) {
        let port = Some(welcome.notice_port).filter(|port| *port != 0);
        let to = peer.zip(port).map(|(peer, port)| SocketAddr::new(peer.ip(), port));
        let core = self.driver.as_ref().map(Driver::core);
        let farewell = to.zip(self.dialled).zip(core);
        let farewell = farewell.map(|((to, keys), core)| Farewell { to, key: keys.notice, link: core.attachment() });
        self.parts.wake.farewell.send_replace(farewell);
    }

    fn ask(&mut self, command: LinkCommand) {
        if self.link.as_ref().is_some_and(|link| !link.ask(command)) {
            // It is gone or does not keep up: without its handle it ends, and the uplink says so.
            self.link = None;
        }
    }

    fn execute(&mut self, command: Command) {
        if let Some(executor) = &self.executor {
            // Bounded by the jobs that the core lets run at once.
            executor.do_send(command);
        }
    }

    fn reconfigure(&mut self) {
        let Some(driver) = &self.driver else { return };
        match self.parts.uplink_config(driver.core().documents()) {
            Ok(config) => {
                self.parts.keep_uplink_config(config.clone());
                // One that is down takes the kept one when it is rebuilt.
                if let Some(uplink) = self.parts.uplink.get() {
                    // Rare, and its loss would leave the uplink with parents that are no more.
                    uplink.do_send(UplinkCommand::Configure(Box::new(config)));
                }
            }
            Err(fault) => {
                tracing::error!(%fault, "the new trust document makes no tls configuration; the old one stays")
            }
        }
    }

    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        let now = self.parts.time.now();
        let due = self.driver.as_ref().and_then(|driver| driver.core().next_deadline(now));
        if due == self.timer.map(|(at, _)| at) {
            return;
        }
        if let Some((_, handle)) = self.timer.take() {
            ctx.cancel_future(handle);
        }
        if let Some(due) = due {
            let wait = Duration::from_millis(due.since(now.mono));
            let handle = ctx.run_later(wait, |actor, ctx| {
                actor.timer = None;
                actor.event(Event::Tick, ctx);
            });
            self.timer = Some((due, handle));
        }
    }

    fn show(&self) {
        let Some(driver) = &self.driver else { return };
        let figures: Figures = driver.core().figures();
        self.fsyncs.absolute(self.parts.store.fsyncs());
        self.parts.figures.send_if_modified(|shown| {
            let changed = *shown != figures;
            if changed {
                *shown = figures;
            }
            changed
        });
    }

    fn look_at_space(&mut self, ctx: &mut Context<Self>) {
        let low = self.parts.store.low_space();
        if low != self.low_space {
            self.low_space = low;
            self.event(Event::LowSpace(low), ctx);
        }
    }
}

fn metric(what: Counted) -> &'static str {
    match what {
        Counted::OrderRefused => "branchline_orders_refused_total",
        Counted::OrderLate => "branchline_orders_late_total",
        Counted::OrderRepeated => "branchline_orders_repeated_total",
        Counted::OrderLeft => "branchline_orders_left_total",
        Counted::DocumentRefused => "branchline_documents_refused_total",
        Counted::UnknownMessage => "branchline_unknown_total",
        Counted::ProtocolError => "branchline_protocol_errors_total",
        Counted::RecordRefused => "branchline_records_refused_total",
    }
}

/// The core as the disk has it, after everything an earlier keeper left in the store's queue.
async fn recover(parts: Arc<Parts>) -> Result<AgentCore, String> {
    parts.store.commit_wait(Batch::new()).await.map_err(|e| e.to_string())?;
    let work = move || {
        let rows = Rows::read(&parts.store).map_err(|e| e.to_string())?;
        parts.recover(&rows).map_err(|e| e.to_string())
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

impl Actor for Keeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        ctx.run_interval(LOOK_EVERY, |actor, ctx| actor.look_at_clock(ctx));
        ctx.run_interval(LOOK_FOR_SPACE, |actor, ctx| {
            actor.look_at_space(ctx);
            actor.parts.store.look_for_space();
        });
        if let Some(core) = self.parts.take_first_core() {
            return self.begin(core, ctx);
        }
        // No message is handled before it is done.
        ctx.wait(recover(self.parts.clone()).into_actor(self).map(|recovered, actor, ctx| match recovered {
            Ok(core) => actor.begin(core, ctx),
            Err(why) => actor.fail(why, ctx),
        }));
    }
}

impl Handler<Answered> for Keeper {
    type Result = ();
    fn handle(&mut self, Answered(done): Answered, ctx: &mut Self::Context) {
        self.drive(ctx, |driver, now, effects| driver.completed(now, done, |effect| effects.push(effect)));
    }
}

impl Handler<Happened> for Keeper {
    type Result = ();
    fn handle(&mut self, Happened(event): Happened, ctx: &mut Self::Context) {
        self.event(event, ctx);
    }
}

impl Handler<Joined> for Keeper {
    type Result = ();
    fn handle(&mut self, joined: Joined, ctx: &mut Self::Context) {
        match joined {
            Joined::Executor(executor) => {
                self.executor = Some(executor);
                self.event(Event::ExecutorUp, ctx);
            }
            Joined::Collector(collector) => {
                self.collector = Some(collector);
                self.event(Event::CollectorUp, ctx);
            }
        }
    }
}

impl Handler<UplinkEvent> for Keeper {
    type Result = ();
    fn handle(&mut self, event: UplinkEvent, ctx: &mut Self::Context) {
        self.look_at_space(ctx);
        let node = self.parts.me.node;
        match event {
            UplinkEvent::Dialling { reply, parent, keys, .. } => {
                self.dials += 1;
                self.dialled = keys;
                self.event(Event::Keys(keys), ctx);
                self.reply = Some((self.dials, reply));
                self.event(Event::Dialling { dial: self.dials, parent }, ctx);
            }
            UplinkEvent::Up { welcome, route, peer, link } => {
                self.tell_farewell(&welcome, peer);
                tracing::info!(%node, parent = %welcome.parent, ?route, lease = ?welcome.lease, "link up");
                self.link = Some(link);
                self.event(Event::Up(welcome), ctx);
            }
            UplinkEvent::Event(event) => match event {
                LinkEvent::Message(received) => self.event(Event::Received(received), ctx),
                LinkEvent::Lease(lease) => self.event(Event::Lease(lease), ctx),
                LinkEvent::Continue => self.event(Event::Continue, ctx),
                // The uplink keeps it.
                LinkEvent::Spread(_) => {}
                LinkEvent::Alive(statement) => self.event(Event::Alive(statement), ctx),
                LinkEvent::Refused(refusal) => {
                    tracing::warn!(%node, %refusal, "the parent refused something");
                    self.event(Event::Refused(refusal), ctx);
                }
                // Only parents hear this.
                LinkEvent::ChildDone | LinkEvent::Heard => {}
            },
            UplinkEvent::Down { why, refusal, due } => {
                let wait_ms = due.since(self.parts.time.now().mono);
                tracing::info!(%node, %why, refused = refusal.is_some(), wait_ms, "link down");
                self.link = None;
                if refusal.is_some_and(|refusal| refusal.is_stale_attachment()) {
                    self.event(Event::Overtaken, ctx);
                }
                self.event(Event::Down, ctx);
            }
        }
    }
}

impl Handler<Drain> for Keeper {
    type Result = ();
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.event(Event::Stopping, ctx);
        // What is in the store's queue is committed when the store stops.
        self.guard.set(Exit::Stopped);
        ctx.stop();
    }
}
