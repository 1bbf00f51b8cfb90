//! The actor that holds the link to the parent: its [`super::dialling`] dials, greets, runs the link, says what happens.
//!
//! It decides nothing about content: its owner gives the greeting (after making the attachment number durable), gets
//! every event in order, and sends through the [`LinkHandle`].

use super::{board::Board, dialling, rhythm::Poke};
use crate::{
    config::Reach,
    link::{
        LinkHandle,
        dial::{Dialler, Route},
        engine::{LinkCounters, LinkEvent, LinkSink},
    },
    node::Ambient,
    supervise::{Drain, ExitGuard},
    time::NodeTime,
};
use actix::prelude::*;
use branchline_protocol::{
    datagram::LinkKeys,
    document::Upstream,
    id::{NodeId, Role, TenantId},
    refusal::Refusal,
    time::Mono,
    wire::{Greeting, Lease, Preface, Welcome},
};
use rustls::ClientConfig;
use std::{net::SocketAddr, sync::Arc};
use tokio::sync::{Notify, oneshot, watch};

/// Who to dial, and how.
#[derive(Clone)]
pub struct UplinkConfig {
    /// Whose node this is.
    pub tenant: TenantId,
    /// This node: what orders its parents where they are equals.
    pub node: NodeId,
    /// What opens a stream: [`Preface::Link`], or [`Preface::Uplink`] of a relay.
    pub preface: Preface,
    /// The only parents there are.
    pub upstreams: Vec<Upstream>,
    /// Which routes may be used.
    pub reach: Reach,
    /// A held link by another way than the best looks for a better one at least so often, in milliseconds (TOP-4).
    pub probe_ms: u64,
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
        /// Keys of this link's datagrams; none where no datagram may go (ADM-17).
        keys: Option<LinkKeys>,
        /// Where the greeting goes; dropping it gives this dial up.
        reply: oneshot::Sender<Greeting>,
    },
    /// The parent welcomed us.
    Up {
        /// Its welcome; with a lease the link is a poll.
        welcome: Box<Welcome>,
        /// How it was reached.
        route: Route,
        /// The parent's own address; none behind a gateway.
        peer: Option<SocketAddr>,
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
    /// Other upstreams, trust or identity: used from the next dial on. A link that they no longer allow is moved.
    Configure(Box<UplinkConfig>),
    /// There is something to say: dial soon if the wait allows it.
    Poke(Poke),
    /// For load tests alone: lose the link without a word, and dial no more before [`UplinkCommand::Dial`].
    Lose,
    /// For load tests alone: dial now, whatever a wait was for.
    Dial,
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
pub(super) struct Pokes {
    something: Notify,
    urgent: Notify,
    wake: Notify,
    pub(super) lose: Notify,
    pub(super) dial: Notify,
}

impl Pokes {
    pub(super) async fn next(&self) -> Poke {
        tokio::select! {
            _ = self.urgent.notified() => Poke::Urgent,
            _ = self.wake.notified() => Poke::Wake,
            _ = self.something.notified() => Poke::Something,
        }
    }
}

/// What the dialling loop needs.
pub(super) struct Parts {
    pub(super) owner: Recipient<UplinkEvent>,
    pub(super) time: NodeTime,
    pub(super) ambient: Ambient,
    pub(super) counters: LinkCounters,
    pub(super) board: Board,
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
        board: Board,
    ) -> Self {
        let parts = Some(Parts { owner, time, ambient, counters, board });
        Uplink { guard, config: watch::channel(config).0, pokes: Arc::default(), stop: watch::channel(false).0, parts }
    }
}

impl Actor for Uplink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(parts) = self.parts.take() else { return };
        let work = dialling::for_ever(parts, self.config.subscribe(), self.pokes.clone(), self.stop.subscribe());
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
            UplinkCommand::Poke(Poke::Wake) => self.pokes.wake.notify_one(),
            UplinkCommand::Lose => self.pokes.lose.notify_one(),
            UplinkCommand::Dial => self.pokes.dial.notify_one(),
        }
    }
}

impl Handler<Drain> for Uplink {
    type Result = ();
    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.stop.send_replace(true);
    }
}

pub(super) struct ToOwner {
    pub(super) owner: Recipient<UplinkEvent>,
    /// Given while the link was up: it is a poll's from there on.
    pub(super) lease: Option<Lease>,
    /// The poll's bounds were reached: the next one follows at once.
    pub(super) more: bool,
    /// The spread told last.
    pub(super) spread_ms: Option<u64>,
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
