//! The actor that holds the link to the parent: dials by its [`Rhythm`], greets, runs the link, says what happens.
//!
//! It decides nothing about content: its owner gives the greeting (after making the attachment number durable), gets
//! every event in order, and sends through the [`LinkHandle`].

use super::{
    network::Network,
    rhythm::{Poke, Reach, Rhythm, routes},
};
use crate::{
    link::{
        LinkHandle,
        codec::FrameCodec,
        dial::{DialFault, Dialler, Route, parent_name},
        engine::{self, LinkCommand, LinkCounters, LinkEnd, LinkEvent, LinkSink, Side},
        lanes::Lanes,
    },
    node::Ambient,
    supervise::{Drain, ExitGuard},
    time::NodeTime,
};
use actix::prelude::*;
use branchline_protocol::{
    document::Upstream,
    id::{NodeId, Role, TenantId},
    refusal::Refusal,
    time::{Mono, Now},
    wire::{Frame, Goodbye, Greeting, HANDSHAKE_S, Lease, Preface, Resume, Welcome},
};
use futures_util::{FutureExt, SinkExt, StreamExt};
use rustls::ClientConfig;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::timeout,
};
use tokio_util::codec::Framed;

/// Who to dial, and how.
#[derive(Clone)]
pub struct UplinkConfig {
    /// Whose node this is.
    pub tenant: TenantId,
    /// What opens a stream: [`Preface::Link`], or [`Preface::Uplink`] of a relay.
    pub preface: Preface,
    /// The only parents there are.
    pub upstreams: Vec<Upstream>,
    /// Which routes may be used.
    pub reach: Reach,
    /// Source address, outer trust, link token.
    pub dialler: Dialler,
    /// Inner TLS with the node's identity.
    pub tls: Arc<ClientConfig>,
}

/// What happens on the way up, in order.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub enum UplinkEvent {
    /// About to greet this parent: answer with the greeting once its attachment number is durable.
    Dialling {
        /// The parent.
        parent: NodeId,
        /// Its role.
        role: Role,
        /// Whether a gateway lies between.
        through_gateway: bool,
        /// Where the greeting goes; dropping it gives this dial up.
        reply: oneshot::Sender<Greeting>,
    },
    /// The parent welcomed us.
    Up {
        /// Its welcome; with a lease the link is a poll.
        welcome: Box<Welcome>,
        /// How it was reached.
        route: Route,
        /// Sends on the link.
        link: LinkHandle,
    },
    /// Something came on the link.
    Event(LinkEvent),
    /// No link now.
    Down {
        /// Why, for logs and status.
        why: String,
        /// The parent's refusal, if it was one.
        refusal: Option<Refusal>,
        /// When the next dial is due.
        due: Mono,
    },
}

/// What the owner asks of the uplink.
#[derive(Message)]
#[rtype(result = "()")]
pub enum UplinkCommand {
    /// Other upstreams, trust or identity: used from the next dial on.
    Configure(Box<UplinkConfig>),
    /// There is something to say: dial soon if the wait allows it.
    Poke(Poke),
}

/// The actor.
pub struct Uplink {
    guard: ExitGuard,
    config: watch::Sender<UplinkConfig>,
    pokes: Arc<Pokes>,
    stop: watch::Sender<bool>,
    parts: Option<Parts>,
}

/// At most one of each kind waits to be seen.
#[derive(Default)]
struct Pokes {
    something: Notify,
    urgent: Notify,
}

impl Pokes {
    async fn next(&self) -> Poke {
        tokio::select! {
            _ = self.urgent.notified() => Poke::Urgent,
            _ = self.something.notified() => Poke::Something,
        }
    }
}

/// What the dialling loop needs.
struct Parts {
    owner: Recipient<UplinkEvent>,
    time: NodeTime,
    ambient: Ambient,
    counters: LinkCounters,
}

impl Uplink {
    /// An uplink that dials as soon as it is started.
    pub fn new(
        guard: ExitGuard,
        config: UplinkConfig,
        owner: Recipient<UplinkEvent>,
        time: NodeTime,
        ambient: Ambient,
        counters: LinkCounters,
    ) -> Self {
        let parts = Some(Parts { owner, time, ambient, counters });
        Uplink { guard, config: watch::channel(config).0, pokes: Arc::default(), stop: watch::channel(false).0, parts }
    }
}

impl Actor for Uplink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(parts) = self.parts.take() else { return };
        let work = dial_for_ever(parts, self.config.subscribe(), self.pokes.clone(), self.stop.subscribe());
        // In the actor's own context: a panic in it is the actor's.
        ctx.spawn(work.into_actor(self).map(|(), actor, ctx| {
            actor.guard.set(crate::supervise::Exit::Stopped);
            ctx.stop();
        }));
    }
}

impl Handler<UplinkCommand> for Uplink {
    type Result = ();
    fn handle(&mut self, command: UplinkCommand, _: &mut Self::Context) {
        match command {
            UplinkCommand::Configure(config) => {
                self.config.send_replace(*config);
            }
            UplinkCommand::Poke(Poke::Something) => self.pokes.something.notify_one(),
            UplinkCommand::Poke(Poke::Urgent) => self.pokes.urgent.notify_one(),
        }
    }
}

impl Handler<Drain> for Uplink {
    type Result = ();
    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.stop.send_replace(true);
    }
}

struct ToOwner {
    owner: Recipient<UplinkEvent>,
    /// Given while the link was up: it is a poll's from there on.
    lease: Option<Lease>,
    /// The poll's bounds were reached: the next one follows at once.
    more: bool,
    /// The spread told last.
    spread_ms: Option<u64>,
}

impl LinkSink for ToOwner {
    async fn deliver(&mut self, event: LinkEvent) {
        match &event {
            LinkEvent::Lease(lease) => self.lease = Some(*lease),
            LinkEvent::Continue => self.more = true,
            LinkEvent::Spread(ms) => self.spread_ms = Some(*ms),
            _ => {}
        }
        // Waits until the owner has handled it: the link reads no faster than its owner works.
        let _ = self.owner.send(UplinkEvent::Event(event)).await;
    }
}

enum Ended {
    /// A link was up and ended.
    Link {
        end: LinkEnd,
        /// With it the link was a poll.
        lease: Option<Lease>,
        /// Whether its slot was lost while it was up.
        displaced: bool,
        /// Whether the poll's bounds were reached.
        more: bool,
    },
    /// No link came up on any route.
    Failed(String, Option<Refusal>),
}

async fn dial_for_ever(
    parts: Parts,
    config: watch::Receiver<UplinkConfig>,
    pokes: Arc<Pokes>,
    mut stop: watch::Receiver<bool>,
) {
    let mut rhythm = Rhythm::new(parts.time.now());
    let mut network = Network::default();
    loop {
        let hosts: Vec<String> = config.borrow().upstreams.iter().flat_map(|up| up.direct.clone()).collect();
        loop {
            let wait = rhythm.due().since(parts.ambient.clock.mono());
            if wait == 0 {
                break;
            }
            tokio::select! {
                _ = tokio::time::sleep(Duration::from_millis(wait)) => {}
                poke = pokes.next() => {
                    rhythm.poke(parts.time.now(), poke, parts.ambient.random.next_u64());
                }
                () = network.came(&hosts), if rhythm.waits_for_network() => {
                    tracing::info!("a network has come");
                    rhythm.network_came(parts.time.now(), parts.ambient.random.next_u64());
                }
                _ = stop.wait_for(|s| *s) => return,
            }
        }
        let current = config.borrow().clone();
        let ended = tokio::select! {
            ended = attempt(&parts, &current, &mut rhythm, stop.clone()) => ended,
            _ = stop_while_dialling(stop.clone(), config.clone()) => return,
        };
        let (now, chance) = (parts.time.now(), parts.ambient.random.next_u64());
        let (why, refusal) = match ended {
            Ended::Link { end, lease, displaced, more } => {
                match (&end, lease) {
                    (LinkEnd::Goodbye(Goodbye::Done), Some(lease)) => rhythm.polled(now, lease, more, chance),
                    // The parent closes when a displaced child has said that it is done, or a poll is over its bounds.
                    (LinkEnd::Lost(_), Some(lease)) if displaced || more => rhythm.polled(now, lease, more, chance),
                    (LinkEnd::Refused(refusal), _) => refused(&mut rhythm, now, refusal, chance),
                    (LinkEnd::Goodbye(Goodbye::Replaced), _) => rhythm.failed(now, None, chance),
                    _ => rhythm.lost(now, chance),
                }
                let refusal = if let LinkEnd::Refused(r) = &end { Some(r.clone()) } else { None };
                (format!("{end:?}"), refusal)
            }
            Ended::Failed(why, refusal) => {
                match &refusal {
                    Some(refusal) => refused(&mut rhythm, now, refusal, chance),
                    None => rhythm.failed(now, None, chance),
                }
                (why, refusal)
            }
        };
        // What was said before the loss is no reason to hurry after it: the owner pokes anew when it hears of it.
        while pokes.next().now_or_never().is_some() {}
        let down = UplinkEvent::Down { why, refusal, due: rhythm.due() };
        if parts.owner.send(down).await.is_err() || *stop.borrow() {
            return;
        }
    }
}

/// A busy parent has given an instant; any other "no" is a failure, though it may ask for a longer wait.
fn refused(rhythm: &mut Rhythm, now: Now, refusal: &Refusal, chance: u64) {
    match (refusal.status, refusal.retry_after_ms) {
        (429, Some(ms)) => rhythm.told(now, ms, chance),
        (_, ms) => rhythm.failed(now, ms, chance),
    }
}

/// While a link is up, stopping goes through the link's goodbye; only a dial under way is cut.
async fn stop_while_dialling(mut stop: watch::Receiver<bool>, _config: watch::Receiver<UplinkConfig>) {
    let _ = stop.wait_for(|s| *s).await;
    // The link, if there is one, says goodbye within this time; a dial is cut after it.
    tokio::time::sleep(Duration::from_secs(2)).await;
}

async fn attempt(parts: &Parts, config: &UplinkConfig, rhythm: &mut Rhythm, stop: watch::Receiver<bool>) -> Ended {
    let mut faults = Vec::new();
    for (parent, role, route) in routes(&config.upstreams, config.reach) {
        match greet(parts, config, parent, role, &route).await {
            Ok((framed, welcome, resume)) => {
                rhythm.welcomed(welcome.reconnect_spread_ms);
                let (link, commands) = LinkHandle::new();
                // Weak, so that the owner's dropping of its handle still ends the link.
                let farewell = link.weak();
                let up = UplinkEvent::Up { welcome: Box::new(welcome.clone()), route, link };
                if parts.owner.send(up).await.is_err() {
                    return Ended::Link { end: LinkEnd::Orphaned, lease: welcome.lease, displaced: false, more: false };
                }
                let goodbye = async move {
                    let mut stop = stop;
                    let _ = stop.wait_for(|s| *s).await;
                    farewell.ask(LinkCommand::Goodbye(Goodbye::Stopping));
                    std::future::pending::<()>().await
                };
                let mut sink = ToOwner { owner: parts.owner.clone(), lease: None, more: false, spread_ms: None };
                let mut lanes = Lanes::default();
                lanes.resume(resume);
                let link = engine::run_on(&mut lanes, framed, commands, Side::Child, parts.counters.clone(), &mut sink);
                let end = tokio::select! {
                    end = link => end,
                    () = goodbye => LinkEnd::Orphaned,
                };
                if let Some(ms) = sink.spread_ms {
                    rhythm.spread(ms);
                }
                let displaced = sink.lease.is_some();
                return Ended::Link { end, lease: sink.lease.or(welcome.lease), displaced, more: sink.more };
            }
            Err(Greeted::Fault(fault)) => faults.push(fault),
            Err(Greeted::Refused(refusal)) => return Ended::Failed(refusal.to_string(), Some(refusal)),
        }
    }
    if faults.is_empty() {
        return Ended::Failed("no_route: no upstream may be dialled".into(), None);
    }
    Ended::Failed(faults.join("; "), None)
}

enum Greeted {
    Fault(String),
    Refused(Refusal),
}

type Link = Framed<tokio_rustls::client::TlsStream<crate::link::BoxStream>, FrameCodec>;

async fn greet(
    parts: &Parts,
    config: &UplinkConfig,
    parent: NodeId,
    role: Role,
    route: &Route,
) -> Result<(Link, Welcome, Vec<Resume>), Greeted> {
    let fault = |e: String| Greeted::Fault(format!("{route:?}: {e}"));
    let name = parent_name(parent, &config.tenant);
    let stream = match config.dialler.secure(route, config.preface, &config.tls, name).await {
        Ok(stream) => stream,
        Err(DialFault::Gateway { status, retry_after_s: Some(s), url }) => {
            let refusal =
                Refusal::new(status, "gateway_busy", format!("{url} asked to wait")).retry_after(s.min(3_600) * 1_000);
            return Err(Greeted::Refused(refusal));
        }
        Err(DialFault::Busy { wait_ms }) => {
            let busy = Refusal::new(429, "busy", "the parent takes links by a rate and asked to wait");
            return Err(Greeted::Refused(busy.retry_after(wait_ms.into())));
        }
        Err(e) => return Err(fault(e.to_string())),
    };
    let (reply, greeting) = oneshot::channel();
    let through_gateway = matches!(route, Route::Gateway(_));
    let dialling = UplinkEvent::Dialling { parent, role, through_gateway, reply };
    parts.owner.send(dialling).await.map_err(|e| fault(e.to_string()))?;
    let greeting = greeting.await.map_err(|_| fault("no greeting was given".into()))?;
    let mut framed = Framed::with_capacity(stream, FrameCodec, 1024);
    let talk = async {
        framed.send(Frame::Greeting(Box::new(greeting))).await.map_err(|e| fault(e.to_string()))?;
        let (mut answer, mut resume) = (framed.next().await, Vec::new());
        if let Some(Ok(Some(Frame::Resume(list)))) = answer {
            (answer, resume) = (framed.next().await, list);
        }
        match answer {
            Some(Ok(Some(Frame::Welcome(welcome)))) => Ok((*welcome, resume)),
            Some(Ok(Some(Frame::Refused(refusal)))) => Err(Greeted::Refused(refusal)),
            Some(Ok(other)) => Err(fault(format!("instead of a welcome: {other:?}"))),
            Some(Err(e)) => Err(fault(e.to_string())),
            None => Err(fault("the parent closed the stream".into())),
        }
    };
    let (welcome, resume) =
        timeout(Duration::from_secs(HANDSHAKE_S), talk).await.map_err(|_| fault("no welcome in time".into()))??;
    Ok((framed, welcome, resume))
}
