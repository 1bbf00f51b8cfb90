//! From an opened byte stream to a session: preface, TLS, greeting, checks, admission, welcome (DESIGN 3, 4).
//!
//! Every accept runs as a task of its own with one time limit for all of it. Who a child is comes from its verified
//! certificate alone; the greeting only has to agree.

pub use super::checks::{Facts, Polls, check, reconnect_spread_ms};

use super::{
    admission::{Ask, Need, Want},
    checks::check_preface,
    child::{Child, FromChild},
    door::Door,
    gatekeeper::{Admitted, AskAdmission, Gatekeeper, Registered, SessionGone},
    partials::Partials,
    session::Session,
};
use crate::{
    identity::{PeerIdentity, link_keys, parse_server_name, peer_identity},
    link::{
        BoxStream, LinkHandle,
        codec::FrameCodec,
        engine::{LinkCounters, Side},
        lanes::{Lanes, Partial},
    },
    supervise::{AdoptError, ChildAddr, SuperviseError, Supervision, run},
    time::{NodeTime, timer_now},
};
use actix::prelude::*;
use branchline_protocol::{
    id::{AttachmentKey, NodeId, Role, TenantId},
    order::Envelope,
    refusal::{Refusal, STALE_ATTACHMENT},
    wire::{Contact, Frame, HANDSHAKE_S, PREFACE_ACCEPTED, PREFACE_BUSY, PROTOCOL, Preface, Welcome},
};
use futures_util::{SinkExt, StreamExt, future::LocalBoxFuture};
use metrics::Counter;
use rustls::ServerConfig;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::codec::Framed;

/// Handshakes under way at once on the link port; one more is turned away like one above the rate.
pub const HANDSHAKES_AT_ONCE: usize = 512;
/// Connections at once that have not yet said what they are; one more is closed. They cost a socket and a timer each,
/// and hold up nobody else.
pub const STRANGERS_AT_ONCE: usize = 4_096;

/// What a node's role adds to the reception.
pub trait Host: Send + Sync + 'static {
    /// The TLS configuration for this server name: it names this node and a tenant.
    fn link_tls(&self, node: NodeId, tenant: &TenantId) -> Option<Arc<ServerConfig>>;
    /// Takes an `enrol` stream after its preface was accepted.
    fn enrol(&self, stream: BoxStream, source: Option<SocketAddr>) -> LocalBoxFuture<'static, ()>;
    /// Newest time statement of a tenant.
    fn statement(&self, tenant: &TenantId) -> watch::Receiver<Option<Arc<Envelope>>>;
}

/// Everything an accept needs. One per node; rebuilt with its listener.
pub struct Reception {
    /// This node.
    pub node: NodeId,
    /// Names what this node remembers: with another number it may have forgotten what it stored.
    pub store: u64,
    /// Role-specific parts.
    pub host: Arc<dyn Host>,
    /// See [`Facts`].
    pub facts: watch::Receiver<Facts>,
    /// Node time.
    pub time: NodeTime,
    /// Decides who may begin a handshake.
    pub door: Door,
    /// Decides who stays.
    pub gatekeeper: ChildAddr<Gatekeeper>,
    /// Hears of children.
    pub owner: Recipient<FromChild>,
    /// Adopts sessions.
    pub supervision: Supervision,
    /// Counts of links.
    pub counters: LinkCounters,
    /// `branchline_link_accepts_total` by role.
    pub accepts: BTreeMap<Role, Counter>,
    /// Handshakes that failed: strangers, wrong CAs, revoked certificates.
    pub link_tls_failures: Counter,
    /// Numbers sessions.
    pub sessions: Arc<AtomicU64>,
    /// Bounds connections that have said nothing yet.
    pub strangers: Arc<Semaphore>,
    /// Bounds handshakes.
    pub handshakes: Arc<Semaphore>,
    /// What lost links cut off.
    pub partials: Arc<Mutex<Partials>>,
    /// Bounds enrolments passed on.
    pub enrolments: Arc<Semaphore>,
    /// Where this node hears notices; 0: it sends and hears no datagrams (ADM-15, ADM-18).
    pub notice_port: u16,
}

/// Boxed, because it is handed on from task to task, and each would keep room for it.
type Link = Framed<Box<TlsStream<BoxStream>>, FrameCodec>;

impl Reception {
    /// Serves one opened stream to the point where its session runs or it is closed.
    pub async fn serve(self: Arc<Self>, mut stream: BoxStream, source: Option<SocketAddr>, gateway: Option<NodeId>) {
        let Ok(stranger) = self.strangers.clone().try_acquire_owned() else {
            tracing::info!(?source, "closed: too many that say nothing");
            return;
        };
        let until = timer_now() + Duration::from_secs(HANDSHAKE_S);
        let preface = async {
            let byte = stream.read_u8().await?;
            let preface = Preface::from_byte(byte).ok_or_else(|| std::io::Error::other("no preface"))?;
            let (permit, answer) = match self.handshakes.clone().try_acquire_owned() {
                Ok(permit) => (Some(permit), self.door.knock(preface)),
                Err(_) => (None, self.door.turn_away(preface)),
            };
            let let_in = answer_preface(&mut stream, answer).await?;
            Ok::<_, std::io::Error>(let_in.then_some((preface, permit)))
        };
        let told = timeout_at(until, preface).await;
        drop(stranger);
        match told {
            Ok(Ok(Some((preface, _permit)))) => self.opened(preface, stream, source, gateway, until).await,
            Ok(Ok(None)) => tracing::debug!(?source, "turned away: above the rate"),
            Ok(Err(e)) => tracing::debug!(?source, error = %e, "a stream without preface"),
            Err(_) => {}
        }
    }

    /// The same for a stream whose preface was read and answered by a trunk.
    pub async fn accepted(
        self: Arc<Self>,
        preface: Preface,
        stream: BoxStream,
        source: Option<SocketAddr>,
        gateway: Option<NodeId>,
    ) {
        let until = timer_now() + Duration::from_secs(HANDSHAKE_S);
        self.opened(preface, stream, source, gateway, until).await;
    }

    /// `until`: when a link has to be greeted, counted from its first byte (ADM-5).
    async fn opened(
        self: Arc<Self>,
        preface: Preface,
        stream: BoxStream,
        source: Option<SocketAddr>,
        gateway: Option<NodeId>,
        until: Instant,
    ) {
        match preface {
            Preface::Enrol => {
                let Ok(_permit) = self.enrolments.clone().try_acquire_owned() else { return };
                self.host.enrol(stream, source).await;
            }
            Preface::Link | Preface::Uplink => {
                let greeted = self.clone().greeted(preface, stream, source, gateway);
                if timeout_at(until, greeted).await.is_err() {
                    tracing::debug!(?source, "a handshake took too long");
                }
            }
            // Bulk content has no use yet, and trunks have a port of their own.
            Preface::Bulk | Preface::Trunk => tracing::debug!(?source, ?preface, "not served here"),
        }
    }

    async fn greeted(
        self: Arc<Self>,
        preface: Preface,
        stream: BoxStream,
        source: Option<SocketAddr>,
        gateway: Option<NodeId>,
    ) {
        let (stream, peer) = match self.secure(stream).await {
            Ok(secured) => secured,
            Err(e) => {
                self.link_tls_failures.increment(1);
                tracing::debug!(?source, error = %e, "a link handshake failed");
                return;
            }
        };
        let keys = link_keys(stream.get_ref().1).filter(|_| self.notice_port != 0);
        let mut framed = Framed::with_capacity(Box::new(stream), FrameCodec, 1024);
        let greeting = match framed.next().await {
            Some(Ok(Some(Frame::Greeting(greeting)))) => greeting,
            Some(Err(e)) => {
                self.counters.protocol_errors.increment(1);
                tracing::debug!(?source, error = %e, "no greeting");
                return;
            }
            other => {
                if other.is_some() {
                    self.counters.protocol_errors.increment(1);
                }
                return;
            }
        };
        let facts = self.facts.borrow().clone();
        let told = check_preface(preface, &peer).and_then(|()| check(self.node, &facts, &peer, &greeting));
        if let Err(refusal) = told {
            tracing::info!(node = %peer.node, role = %peer.role, ?source, %refusal, "link refused");
            refuse(framed, refusal).await;
            return;
        }
        let session = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let node = peer.node;
        let key = AttachmentKey { epoch: greeting.epoch, attachment: greeting.attachment };
        let polls = facts.polls.get(&peer.tenant);
        let ask = Ask {
            node,
            role: peer.role,
            key,
            session,
            want: if greeting.contact == Contact::Persistent { Want::Persistent } else { Want::Poll },
            need: Need::Ordinary, // the gatekeeper looks at the lists
            wakeable: greeting.wake_port != 0 && keys.is_some() && gateway.is_none() && source.is_some(),
            poll_interval_ms: polls.and_then(|polls| polls.normal_ms),
            pressing_ms: polls.and_then(|polls| polls.pressing_ms(&greeting.capabilities)),
        };
        let gatekeeper = self.gatekeeper.living().await;
        // Whatever happens from here on, also when this task is cut at its limit, the session is reported gone.
        let mut admittance = Admittance(Some((gatekeeper.clone(), SessionGone { node, session })));
        let lease =
            match gatekeeper.send(AskAdmission { ask, tenant: peer.tenant.clone(), contact: greeting.contact }).await {
                Ok(Ok(Admitted::Persistent)) => None,
                Ok(Ok(Admitted::Poll(lease))) => Some(lease),
                Ok(Err(refusal)) => {
                    tracing::info!(%node, %refusal, "not admitted");
                    drop(admittance);
                    if refusal.is_stale_attachment() {
                        let stale = FromChild::Stale { tenant: peer.tenant, node, key };
                        // An owner that is just being restarted has closed all links, the newer one too.
                        let _ = self.owner.send(stale).await;
                    }
                    refuse(framed, refusal).await;
                    return;
                }
                Err(_) => return,
            };
        // Taken on before the welcome, so that a child whose sessions are parked hears of it.
        let guard = match self.supervision.adopt("session", &node.to_string()).await {
            Ok(guard) => guard,
            Err(e) => {
                tracing::warn!(%node, error = %e, "session refused by the supervisor");
                drop(admittance);
                refuse(framed, not_taken_on(&e)).await;
                return;
            }
        };
        let welcome = Welcome {
            protocol: greeting.protocol.min(*PROTOCOL.end()),
            build: env!("CARGO_PKG_VERSION").into(),
            parent: self.node,
            store: self.store,
            ancestors: facts.ancestors.clone(),
            lease,
            reconnect_spread_ms: reconnect_spread_ms(peer.role, facts.children),
            notice_port: if gateway.is_none() { self.notice_port } else { 0 },
        };
        let held = self.partials.lock().unwrap_or_else(PoisonError::into_inner).take(node);
        let mut lanes = Lanes::default();
        let welcomed = async {
            if !held.is_empty() {
                framed.feed(Frame::Resume(held.iter().map(Partial::resume).collect())).await?;
            }
            framed.send(Frame::Welcome(Box::new(welcome))).await
        };
        if let Err(e) = welcomed.await {
            tracing::debug!(%node, error = %e, "lost before the welcome");
            return;
        }
        if let Some(counter) = self.accepts.get(&peer.role) {
            counter.increment(1);
        }
        let child = Arc::new(Child {
            session,
            tenant: peer.tenant,
            node,
            role: peer.role,
            key,
            greeting: Arc::from(greeting),
            lease,
            source,
            gateway,
            keys,
        });
        lanes.hold(held);
        let (link, commands) = LinkHandle::new();
        let statement = self.host.statement(&child.tenant);
        if gatekeeper.send(Registered { node, session, link: link.weak() }).await.is_err() {
            return;
        }
        let side = Side::Parent { statement, spread: self.spread(peer.role), poll: lease.is_some() };
        let (owner, counters, partials) = (self.owner.clone(), self.counters.clone(), self.partials.clone());
        // The session reports its own end.
        admittance.0 = None;
        run(guard, move |_, guard| {
            let gatekeeper = gatekeeper.recipient();
            Session::new(guard, child, framed, link, commands, side, owner, gatekeeper, counters, lanes, partials)
        });
    }

    /// The spread that a child of this role is to know of, as it is when it is asked for.
    fn spread(&self, role: Role) -> Box<dyn Fn() -> u64 + Send> {
        let facts = self.facts.clone();
        Box::new(move || reconnect_spread_ms(role, facts.borrow().children))
    }

    async fn secure(&self, stream: BoxStream) -> Result<(TlsStream<BoxStream>, PeerIdentity), String> {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await;
        let start = start.map_err(|e| e.to_string())?;
        let name = start.client_hello().server_name().and_then(parse_server_name).ok_or("no server name of ours")?;
        let config = self.host.link_tls(name.0, &name.1).ok_or("a server name of nobody here")?;
        let stream = start.into_stream(config).await.map_err(|e| e.to_string())?;
        let chain = stream.get_ref().1.peer_certificates().ok_or("no certificate")?;
        let peer = peer_identity(chain).map_err(|e| e.to_string())?;
        if peer.tenant != name.1 {
            return Err("a certificate of another tenant".into());
        }
        Ok((stream, peer))
    }
}

/// Answers a preface; whether it was let in.
pub async fn answer_preface<S: AsyncWrite + Unpin>(stream: &mut S, knock: Result<(), u32>) -> std::io::Result<bool> {
    match knock {
        Ok(()) => stream.write_all(&[PREFACE_ACCEPTED]).await?,
        Err(wait_ms) => {
            let [a, b, c, d] = wait_ms.to_be_bytes();
            stream.write_all(&[PREFACE_BUSY, a, b, c, d]).await?;
            stream.shutdown().await?;
        }
    }
    stream.flush().await.map(|()| knock.is_ok())
}

/// Told to a link when a newer attachment of its node is known.
pub fn stale() -> Refusal {
    Refusal::new(409, STALE_ATTACHMENT, "a newer attachment of this node is here")
}

/// Reports a session gone that was asked for and did not come up.
struct Admittance(Option<(Addr<Gatekeeper>, SessionGone)>);

impl Drop for Admittance {
    fn drop(&mut self) {
        if let Some((gatekeeper, gone)) = self.0.take() {
            gatekeeper.do_send(gone); // one per greeting, and losing it would hold a slot for ever
        }
    }
}

/// Milliseconds until a parked child's next try: nothing changes before an operator releases it.
const PARKED_RETRY_MS: u64 = 300_000;

fn not_taken_on(fault: &SuperviseError) -> Refusal {
    match fault {
        SuperviseError::Adopt(AdoptError::Parked) => {
            let what = "this node's sessions failed too often here; an operator has to release it";
            Refusal::new(503, "parked", what).retry_after(PARKED_RETRY_MS)
        }
        _ => Refusal::new(503, "not_ready", "this node takes no children at present").retry_after(1_000),
    }
}

async fn refuse(mut framed: Link, refusal: Refusal) {
    if framed.send(Frame::Refused(refusal)).await.is_ok() {
        // The peer closes after reading it; without this the refusal may be lost to a reset.
        let _ = timeout(Duration::from_secs(2), framed.next()).await;
    }
}

#[cfg(test)]
#[path = "reception_tests.rs"]
mod tests;
