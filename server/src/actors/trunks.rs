//! The server's end of the trunks: who may hold one, what its streams are, who is connected. What a stream carries is
//! its taker's affair: whoever takes streams gets them with the preface answered, as if each were a TCP connection.
//!
//! ```text
//! trunk port ── 'T' ── TLS, gateway's certificate ── yamux ─┬─ first stream: control (Ping, Pong, LinkTokens)
//!            │                                              └─ others: StreamHeader, 'L' 'B' 'E', '+' ──► taker
//!            └─ 'E' ── '+' ──────────────────────────────────────────────────────────────────────────► taker
//! ```

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, WrapFuture, fut::ActorFutureExt};
use branchline_node::{
    downstream::{door::Door, reception::answer_preface},
    identity::{PeerIdentity, peer_identity},
    link::{BoxStream, ReadAhead},
    metrics::Metrics,
    node::exit_code,
    supervise::{ChildSpec, Drain, Exit, ExitGuard, PastIntensity, run},
    time::NodeTime,
    trunk::{Beat, ControlWriter, Heartbeat, Mux, MuxHandle, MuxLimits, TrunkStream, control, read_header},
};
use branchline_protocol::{
    hash::Hash,
    id::{Epoch, NodeId, Role, TenantId},
    time::Millis,
    wire::{HANDSHAKE_S, PREFACE_ACCEPTED, Preface, StreamHeader, TrunkControl},
};
use rustls::ServerConfig;
use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Connections on the trunk port that have not yet shown what they are; one more is closed. Only gateways and those
/// that become one connect here.
const STRANGERS_MAX: usize = 64;
/// Trunks at once: 16 gateways with 4 each; one more is closed.
const TRUNKS_MAX: usize = 64;
/// Time for everything that comes before the first bytes of a stream.
const HANDSHAKE: Duration = Duration::from_secs(HANDSHAKE_S);
/// Pause after the system refused a connection, usually for want of file handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A stream for the rest of the server. Its preface has been read and answered; its inner TLS has not begun.
pub enum Incoming {
    /// A link or bulk content from a child behind a gateway.
    Link {
        /// The child's bytes.
        stream: BoxStream,
        /// [`Preface::Link`], [`Preface::Uplink`] or [`Preface::Bulk`].
        kind: Preface,
        /// The child's address as the gateway saw it: an untrusted hint.
        source: Option<SocketAddr>,
        /// The link token it showed the gateway: says nothing about identity.
        token: Option<String>,
        /// Which gateway passed it on.
        gateway: NodeId,
    },
    /// An enrolment: through a gateway, or a gateway's own.
    Enrol {
        /// The new node's bytes.
        stream: BoxStream,
        /// Its address; an untrusted hint when it came through a gateway.
        source: Option<SocketAddr>,
        /// Which gateway passed it on; `None` for a gateway that enrols itself.
        gateway: Option<NodeId>,
    },
}

/// Takes streams. Called on an arbiter: it may spawn but not wait.
pub type Taker = Arc<dyn Fn(Incoming) + Send + Sync>;

/// Says whether an identity is revoked.
pub type Revoked = Arc<dyn Fn(NodeId, Epoch) -> bool + Send + Sync>;

/// What the trunk port works with.
#[derive(Clone)]
pub struct TrunkSetup {
    /// TLS that requires a certificate of [`TrunkSetup::tenant`]'s authority.
    pub tls: Arc<ServerConfig>,
    /// The tenant that gateways belong to.
    pub tenant: TenantId,
    /// The server's build, told to gateways.
    pub build: String,
    /// The server's time.
    pub time: NodeTime,
    /// The node's counters.
    pub metrics: Metrics,
    /// blake3 of every link token that may knock; pushed at the start of each trunk and at each change.
    pub tokens: watch::Receiver<Vec<Hash>>,
    /// Asked once per trunk; for later revocations see [`TrunkRegistry::close`].
    pub revoked: Revoked,
    /// Decides who may begin a handshake.
    pub door: Door,
    /// Where streams go.
    pub taker: Taker,
    /// Addresses connections are accepted from; empty is any.
    pub accept_from: Vec<IpAddr>,
}

/// A live trunk, for `tree` and `/getstatus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrunkState {
    /// Whose it is.
    pub gateway: NodeId,
    /// Since when.
    pub since: Millis,
    /// When the gateway was heard last.
    pub heard: Millis,
    /// Where it dialled from.
    pub remote: SocketAddr,
    /// Its build, once it has said.
    pub build: Option<String>,
    /// Children that the whole gateway pipes, as it said last.
    pub links: u32,
}

/// The live trunks. Written by the trunks themselves, read by everyone.
#[derive(Default)]
pub struct TrunkRegistry {
    inner: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    last: u64,
    trunks: BTreeMap<u64, (TrunkState, MuxHandle)>,
}

impl TrunkRegistry {
    /// Every live trunk, the oldest first.
    pub fn list(&self) -> Vec<TrunkState> {
        self.lock().trunks.values().map(|(state, _)| state.clone()).collect()
    }

    /// Ends all trunks of a gateway, and with them every stream it pipes; how many there were. For a revoked gateway,
    /// after the revocation is known: it is refused when it dials again.
    pub fn close(&self, gateway: NodeId) -> usize {
        let lock = self.lock();
        let of = lock.trunks.values().filter(|(state, _)| state.gateway == gateway);
        of.map(|(_, mux)| mux.close()).count()
    }

    fn add(&self, state: TrunkState, mux: MuxHandle) -> Option<u64> {
        let mut lock = self.lock();
        if lock.trunks.len() >= TRUNKS_MAX {
            return None;
        }
        lock.last += 1;
        let number = lock.last;
        lock.trunks.insert(number, (state, mux));
        Some(number)
    }

    /// Ignores poison: every change is one move.
    fn lock(&self) -> MutexGuard<'_, Live> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A trunk's entry; it goes when the trunk does.
struct Registered {
    port: Port,
    number: u64,
}

impl Registered {
    fn new(port: &Port, state: TrunkState, mux: MuxHandle) -> Option<Registered> {
        let number = port.registry.add(state, mux)?;
        port.count_trunks();
        Some(Registered { port: port.clone(), number })
    }

    fn update(&self, change: impl FnOnce(&mut TrunkState)) {
        if let Some((state, _)) = self.port.registry.lock().trunks.get_mut(&self.number) {
            change(state);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // The handle goes after the lock: dropping it wakes the trunk's driver.
        let gone = self.port.registry.lock().trunks.remove(&self.number);
        drop(gone);
        self.port.count_trunks();
    }
}

/// The child that listens on the trunk port.
pub fn child(socket: std::net::TcpListener, setup: TrunkSetup, registry: Arc<TrunkRegistry>) -> ChildSpec {
    ChildSpec::new("trunks", move |guard| {
        // The socket stays open between two generations, so that gateways wait instead of being refused.
        let socket = socket.try_clone().and_then(TcpListener::from_std).map_err(|e| format!("trunk port: {e}"))?;
        let port = Port {
            setup: setup.clone(),
            registry: Arc::clone(&registry),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            stop: CancellationToken::new(),
        };
        run(guard, |_ctx, guard| Trunks { guard, end: port.stop.clone().drop_guard(), start: Some((socket, port)) });
        Ok(())
    })
    .past(PastIntensity::EndProcess(exit_code::SUPERVISION))
}

/// Owns the trunk port. Its connections are tasks, which end with it.
pub struct Trunks {
    guard: ExitGuard,
    /// Ends every connection when the actor goes, however it goes.
    end: DropGuard,
    start: Option<(TcpListener, Port)>,
}

impl Actor for Trunks {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some((socket, port)) = self.start.take() else { return };
        ctx.spawn(accept(socket, port).into_actor(self).map(|(), actor, ctx| {
            actor.guard.set(Exit::failed("the trunk port stopped accepting"));
            ctx.stop();
        }));
    }
}

impl Handler<Drain> for Trunks {
    type Result = ();

    fn handle(&mut self, Drain: Drain, ctx: &mut Self::Context) {
        self.guard.set(Exit::Stopped);
        // Replaced, so that the trunks hear of it before the actor's value is dropped.
        drop(std::mem::replace(&mut self.end, CancellationToken::new().drop_guard()));
        ctx.stop();
    }
}

/// What each connection needs.
#[derive(Clone)]
struct Port {
    setup: TrunkSetup,
    registry: Arc<TrunkRegistry>,
    strangers: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Port {
    fn refused(&self, reason: &'static str) {
        self.setup.metrics.counter("branchline_trunk_refused_total", &[("reason", reason)]).increment(1);
    }

    fn count_trunks(&self) {
        let live = self.registry.lock().trunks.len();
        self.setup.metrics.gauge("branchline_trunks", &[]).set(live as f64);
    }
}

async fn accept(socket: TcpListener, port: Port) {
    loop {
        let (stream, remote) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(reason = %e, "accept on the trunk port");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !port.setup.accept_from.is_empty() && !port.setup.accept_from.contains(&remote.ip()) {
            port.refused("address");
            continue;
        }
        let Ok(stranger) = Arc::clone(&port.strangers).try_acquire_owned() else {
            port.refused("strangers");
            continue;
        };
        let port = port.clone();
        tokio::spawn(async move {
            let stop = port.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                // Dropping a trunk's handles lets its driver say goodbye.
                refusal = connection(stream, remote, stranger, &port) => if let Err(reason) = refusal {
                    port.refused(reason);
                    tracing::debug!(%remote, reason, "connection on the trunk port refused");
                }
            }
        });
    }
}

/// One connection on the trunk port; `Err` names why it was refused.
async fn connection(
    mut stream: TcpStream,
    remote: SocketAddr,
    stranger: OwnedSemaphorePermit,
    port: &Port,
) -> Result<(), &'static str> {
    // A connection that cannot be set is closed already.
    let _closed = stream.set_nodelay(true);
    let preface = within(stream.read_u8()).await.map_err(|_| "no_preface")?;
    match Preface::from_byte(preface) {
        Some(Preface::Enrol) => {
            within(stream.write_u8(PREFACE_ACCEPTED)).await.map_err(|_| "no_preface")?;
            (port.setup.taker)(Incoming::Enrol { stream: Box::new(stream), source: Some(remote), gateway: None });
            Ok(())
        }
        Some(Preface::Trunk) => {
            within(stream.write_u8(PREFACE_ACCEPTED)).await.map_err(|_| "no_preface")?;
            let handshake = TlsAcceptor::from(Arc::clone(&port.setup.tls)).accept(ReadAhead::new(stream));
            let tls = within(handshake).await.map_err(|_| "tls")?;
            let peer = gateway(&tls, &port.setup)?;
            drop(stranger);
            hold(tls, peer, remote, port).await
        }
        Some(Preface::Link | Preface::Uplink | Preface::Bulk) | None => Err("preface"),
    }
}

/// The gateway that a certificate names: of our tenant, with that role, not revoked.
fn gateway(tls: &TlsStream<ReadAhead<TcpStream>>, setup: &TrunkSetup) -> Result<PeerIdentity, &'static str> {
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = peer_identity(chain).map_err(|_| "identity")?;
    if peer.tenant != setup.tenant || peer.role != Role::Gateway {
        return Err("role");
    }
    if (setup.revoked)(peer.node, peer.epoch) {
        return Err("revoked");
    }
    Ok(peer)
}

/// Holds a trunk until it ends.
async fn hold(
    tls: TlsStream<ReadAhead<TcpStream>>,
    peer: PeerIdentity,
    remote: SocketAddr,
    port: &Port,
) -> Result<(), &'static str> {
    let setup = &port.setup;
    let (mux, mut incoming) = Mux::server(tls, MuxLimits::default());
    let first = async {
        let mut stream = incoming.recv().await.ok_or(io::ErrorKind::UnexpectedEof)?;
        let header = read_header(&mut stream).await.map_err(io::Error::other)?;
        Ok::<_, io::Error>((stream, header))
    };
    let (stream, header) = within(first).await.map_err(|_| "no_control")?;
    if header != (StreamHeader { source: None, token: None }) {
        return Err("no_control");
    }
    let (mut reader, mut writer) = control(stream);
    let now = setup.time.now();
    let state = TrunkState { gateway: peer.node, since: now.wall, heard: now.wall, remote, build: None, links: 0 };
    let entry = Registered::new(port, state, mux.clone()).ok_or("trunks")?;
    tracing::info!(gateway = %peer.node, %remote, "trunk is up");

    let mut tokens = setup.tokens.clone();
    let mut beat = Heartbeat::answering(now.mono);
    let first_word = TrunkControl::LinkTokens(tokens.borrow_and_update().clone());
    let mut said = say(&mut writer, &first_word).await;
    let reason = loop {
        if let Err(reason) = said {
            break reason;
        }
        let Beat::Wait(wait_ms) = beat.beat(setup.time.now().mono) else { break "it sent nothing for too long".into() };
        said = tokio::select! {
            message = reader.read() => match message {
                Ok(Some(message)) => {
                    let now = setup.time.now();
                    beat.heard(now.mono);
                    match message {
                        TrunkControl::Ping { build, links } => {
                            entry.update(|state| {
                                (state.heard, state.build, state.links) = (now.wall, Some(build), links);
                            });
                            // The server's monotonic clock starts with the server.
                            let uptime_s = now.mono.0 / 1000;
                            say(&mut writer, &TrunkControl::Pong { build: setup.build.clone(), time: now.wall, uptime_s }).await
                        }
                        _ => {
                            setup.metrics.counter("branchline_trunk_control_ignored_total", &[]).increment(1);
                            Ok(())
                        }
                    }
                }
                Ok(None) => break "it ended the control stream".into(),
                Err(e) => break e.to_string(),
            },
            () = changed(&mut tokens) => {
                let message = TrunkControl::LinkTokens(tokens.borrow_and_update().clone());
                say(&mut writer, &message).await
            }
            stream = incoming.recv() => match stream {
                Some(stream) => {
                    // Each is bounded in time; their number is bounded by yamux.
                    tokio::spawn(introduce(stream, peer.node, port.clone()));
                    Ok(())
                }
                None => break mux.ended().await,
            },
            () = sleep(Duration::from_millis(wait_ms)) => Ok(()),
        };
    };
    mux.close();
    drop(entry);
    tracing::warn!(gateway = %peer.node, %remote, reason, "trunk is down");
    Ok(())
}

/// Reads the head of a stream and hands it on.
async fn introduce(mut stream: TrunkStream, gateway: NodeId, port: Port) {
    let head = async {
        let header = read_header(&mut stream).await.map_err(io::Error::other)?;
        let preface = Preface::from_byte(stream.read_u8().await?);
        let good = matches!(preface, Some(Preface::Link | Preface::Uplink | Preface::Bulk | Preface::Enrol));
        let kind = preface.filter(|_| good).ok_or(io::ErrorKind::InvalidData)?;
        // Answered at once, also because it frees yamux's count of unacknowledged streams.
        let let_in = answer_preface(&mut stream, port.setup.door.knock(kind)).await?;
        Ok::<_, io::Error>((header, let_in.then_some(kind)))
    };
    let Ok((StreamHeader { source, token }, kind)) = within(head).await else {
        port.refused("stream");
        return;
    };
    let Some(kind) = kind else {
        tracing::debug!(?source, %gateway, "turned away: above the rate");
        return;
    };
    let stream: BoxStream = Box::new(stream);
    let incoming = match kind {
        Preface::Enrol => Incoming::Enrol { stream, source, gateway: Some(gateway) },
        kind => Incoming::Link { stream, kind, source, token, gateway },
    };
    port.setup.metrics.counter("branchline_trunk_streams_total", &[]).increment(1);
    (port.setup.taker)(incoming);
}

async fn say(writer: &mut ControlWriter<TrunkStream>, message: &TrunkControl) -> Result<(), String> {
    // A gateway that takes nothing is as dead as one that says nothing.
    match timeout(HANDSHAKE, writer.write(message)).await {
        Ok(written) => written.map_err(|e| e.to_string()),
        Err(_) => Err("it takes nothing".into()),
    }
}

/// Waits for other tokens; for ever once nobody can change them.
async fn changed(tokens: &mut watch::Receiver<Vec<Hash>>) {
    if tokens.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn within<T, E>(work: impl Future<Output = Result<T, E>>) -> Result<T, ()> {
    timeout(HANDSHAKE, work).await.map_err(|_| ())?.map_err(|_| ())
}

#[cfg(test)]
#[path = "trunks_tests.rs"]
mod tests;
