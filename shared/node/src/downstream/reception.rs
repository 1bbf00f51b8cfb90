//! From an opened byte stream to a session: preface, TLS, greeting, checks, admission, welcome (DESIGN 3, 4).
//!
//! Every accept runs as a task of its own with one time limit for all of it. Who a child is comes from its verified
//! certificate alone; the greeting only has to agree.

use super::{
    admission::{Ask, Want},
    child::{Child, FromChild},
    gatekeeper::{Admitted, AskAdmission, Gatekeeper, Registered, SessionGone},
    session::Session,
};
use crate::{
    identity::{PeerIdentity, parse_server_name, peer_identity},
    link::{BoxStream, LinkHandle, codec::FrameCodec, engine::LinkCounters},
    supervise::{ChildAddr, Supervision, run},
    time::NodeTime,
};
use actix::prelude::*;
use branchline_protocol::{
    document::Revocations,
    id::{AttachmentKey, NodeId, Role, TenantId},
    order::Envelope,
    refusal::Refusal,
    wire::{Contact, DEPTH_MAX, Frame, Greeting, HANDSHAKE_S, PREFACE_ACCEPTED, PROTOCOL, Preface, Welcome},
};
use futures_util::{SinkExt, StreamExt, future::LocalBoxFuture};
use metrics::Counter;
use rustls::ServerConfig;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::codec::Framed;

/// Accepts under way at once; more wait in the listener's backlog.
pub const HANDSHAKES_AT_ONCE: usize = 512;

/// What the checks need to know, kept up to date by the owner.
#[derive(Clone, Default)]
pub struct Facts {
    /// This node's ancestors and itself, nearest the server first.
    pub ancestors: Vec<(NodeId, String)>,
    /// Refused identities per tenant.
    pub revocations: BTreeMap<TenantId, Arc<Revocations>>,
    /// Direct children with a link, for the spread of reconnects.
    pub children: u64,
    /// Whether children are taken at all.
    pub open: bool,
}

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
    /// The store's lasting incarnation: another one means a fresh disk.
    pub store: u64,
    /// Role-specific parts.
    pub host: Arc<dyn Host>,
    /// See [`Facts`].
    pub facts: watch::Receiver<Facts>,
    /// Node time.
    pub time: NodeTime,
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
    /// Bounds handshakes.
    pub handshakes: Arc<Semaphore>,
    /// Bounds enrolments passed on.
    pub enrolments: Arc<Semaphore>,
}

type Link = Framed<TlsStream<BoxStream>, FrameCodec>;

impl Reception {
    /// Serves one opened stream to the point where its session runs or it is closed.
    pub async fn serve(self: Arc<Self>, mut stream: BoxStream, source: Option<SocketAddr>, gateway: Option<NodeId>) {
        let Ok(_permit) = self.handshakes.clone().acquire_owned().await else { return };
        let limit = Duration::from_secs(HANDSHAKE_S);
        let preface = async {
            let byte = stream.read_u8().await?;
            let preface = Preface::from_byte(byte).ok_or_else(|| std::io::Error::other("no preface"))?;
            stream.write_all(&[PREFACE_ACCEPTED]).await?;
            stream.flush().await?;
            Ok::<_, std::io::Error>(preface)
        };
        let preface = match timeout(limit, preface).await {
            Ok(Ok(preface)) => preface,
            Ok(Err(e)) => {
                tracing::debug!(?source, error = %e, "a stream without preface");
                return;
            }
            Err(_) => return,
        };
        self.accepted(preface, stream, source, gateway).await;
    }

    /// The same for a stream whose preface was read and answered by a trunk.
    pub async fn accepted(
        self: Arc<Self>,
        preface: Preface,
        stream: BoxStream,
        source: Option<SocketAddr>,
        gateway: Option<NodeId>,
    ) {
        let limit = Duration::from_secs(HANDSHAKE_S);
        match preface {
            Preface::Enrol => {
                let Ok(_permit) = self.enrolments.clone().try_acquire_owned() else { return };
                self.host.enrol(stream, source).await;
            }
            Preface::Link => match timeout(limit, self.clone().greeted(stream, source, gateway)).await {
                Ok(()) => {}
                Err(_) => tracing::debug!(?source, "a handshake took too long"),
            },
            // Bulk content has no use yet, and trunks have a port of their own.
            Preface::Bulk | Preface::Trunk => tracing::debug!(?source, ?preface, "not served here"),
        }
    }

    async fn greeted(self: Arc<Self>, stream: BoxStream, source: Option<SocketAddr>, gateway: Option<NodeId>) {
        let (stream, peer) = match self.secure(stream).await {
            Ok(secured) => secured,
            Err(e) => {
                self.link_tls_failures.increment(1);
                tracing::debug!(?source, error = %e, "a link handshake failed");
                return;
            }
        };
        let mut framed = Framed::with_capacity(stream, FrameCodec, 1024);
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
        if let Err(refusal) = check(self.node, &facts, &peer, &greeting) {
            tracing::info!(node = %peer.node, role = %peer.role, ?source, %refusal, "link refused");
            refuse(framed, refusal).await;
            return;
        }
        let session = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let node = peer.node;
        let key = AttachmentKey { epoch: peer.epoch, attachment: greeting.attachment };
        let ask = Ask {
            node,
            role: peer.role,
            key,
            session,
            want: if greeting.contact == Contact::Persistent { Want::Persistent } else { Want::Poll },
            priority: 0,
            wakeable: greeting.wake_port != 0,
        };
        let gatekeeper = self.gatekeeper.living().await;
        let lease = match gatekeeper.send(AskAdmission(ask)).await {
            Ok(Ok(Admitted::Persistent)) => None,
            Ok(Ok(Admitted::Poll(lease))) => Some(lease),
            Ok(Err(refusal)) => {
                tracing::info!(%node, %refusal, "not admitted");
                refuse(framed, refusal).await;
                return;
            }
            Err(_) => return,
        };
        // From here on the session has to be reported gone, whatever happens.
        let welcome = Welcome {
            protocol: greeting.protocol.min(*PROTOCOL.end()),
            build: env!("CARGO_PKG_VERSION").into(),
            parent: self.node,
            store: self.store,
            ancestors: facts.ancestors.clone(),
            lease,
            reconnect_spread_ms: reconnect_spread_ms(peer.role, facts.children),
        };
        let gone = SessionGone { node, session };
        if let Err(e) = framed.send(Frame::Welcome(Box::new(welcome))).await {
            tracing::debug!(%node, error = %e, "lost before the welcome");
            gatekeeper.do_send(gone); // one per admitted session
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
        });
        let guard = match self.supervision.adopt("session", &node.to_string()).await {
            Ok(guard) => guard,
            Err(e) => {
                tracing::warn!(%node, error = %e, "session refused by the supervisor");
                gatekeeper.do_send(gone); // one per admitted session
                return;
            }
        };
        let (link, commands) = LinkHandle::new();
        let statement = self.host.statement(&child.tenant);
        if gatekeeper.send(Registered { node, session, link: link.weak() }).await.is_err() {
            return;
        }
        let (owner, counters) = (self.owner.clone(), self.counters.clone());
        run(guard, move |_, guard| {
            Session::new(guard, child, framed, link, commands, statement, owner, gatekeeper.recipient(), counters)
        });
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

async fn refuse(mut framed: Link, refusal: Refusal) {
    if framed.send(Frame::Refused(refusal)).await.is_ok() {
        // The peer closes after reading it; without this the refusal may be lost to a reset.
        let _ = timeout(Duration::from_secs(2), framed.next()).await;
    }
}

/// What a greeting must satisfy; the refusals of REQUIREMENTS TOP-20, ENR-7, ENR-9, GW-10.
pub fn check(me: NodeId, facts: &Facts, peer: &PeerIdentity, greeting: &Greeting) -> Result<(), Refusal> {
    if !facts.open {
        return Err(Refusal::new(503, "not_ready", "this node takes no children yet").retry_after(1_000));
    }
    let said = (&greeting.tenant, greeting.node, greeting.role, greeting.epoch);
    if said != (&peer.tenant, peer.node, peer.role, peer.epoch) {
        return Err(Refusal::new(401, "foreign_identity", "the greeting names another node than the certificate"));
    }
    if !matches!(peer.role, Role::Agent | Role::Relay) {
        let what = format!("a {} has no parent; enrol this host as agent or relay", peer.role);
        return Err(Refusal::new(403, "wrong_role", what).field("role"));
    }
    if greeting.protocol < *PROTOCOL.start() {
        let wanted = format!("protocol {} to {} is spoken here", PROTOCOL.start(), PROTOCOL.end());
        return Err(Refusal::new(409, "incompatible", wanted).field("protocol"));
    }
    if facts.revocations.get(&peer.tenant).is_some_and(|r| r.covers(peer.node, peer.epoch)) {
        return Err(Refusal::new(401, "revoked", "this identity was revoked; enrol anew with a new token"));
    }
    if peer.node == me || facts.ancestors.iter().any(|(a, _)| *a == peer.node) {
        return Err(Refusal::new(409, "loop", "this relay is above or is the node it attaches to").field("node"));
    }
    let below = if peer.role == Role::Relay { 1 + usize::from(greeting.depth_below) } else { 0 };
    let depth = facts.ancestors.len() + below;
    if depth > DEPTH_MAX {
        let what = format!("the tree would be {depth} tiers deep, {DEPTH_MAX} are allowed");
        return Err(Refusal::new(422, "too_deep", what).field("depth"));
    }
    Ok(())
}

/// 150 ms a child, so that 300 children come back over 45 s and 20 over 3 s; at most 5 min; relays 0 to 5 s (DESIGN 3).
pub fn reconnect_spread_ms(role: Role, children: u64) -> u64 {
    if role == Role::Relay { 5_000 } else { (150 * children).min(300_000) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_protocol::time::Millis;
    use uuid::Uuid;

    fn node(n: u128) -> NodeId {
        NodeId(Uuid::from_u128(n))
    }

    fn peer(role: Role) -> PeerIdentity {
        PeerIdentity {
            tenant: "acme".parse().unwrap(),
            role,
            node: node(5),
            epoch: 2,
            serial_hex: "1".into(),
            not_before: Millis(0),
            not_after: Millis(1),
        }
    }

    fn greeting(peer: &PeerIdentity) -> Greeting {
        Greeting {
            protocol: 1,
            build: "0".into(),
            tenant: peer.tenant.clone(),
            node: peer.node,
            role: peer.role,
            epoch: peer.epoch,
            attachment: 1,
            incarnation: 1,
            contact: Contact::Persistent,
            depth_below: 0,
            stored_at: None,
            documents: vec![],
            term: 1,
            wake_port: 0,
            receipt: None,
            capabilities: vec![],
            next_poll_s: None,
        }
    }

    fn facts(ancestors: u128) -> Facts {
        let ancestors = (100..100 + ancestors).map(|n| (node(n), "r".into())).collect();
        Facts { ancestors, open: true, ..Facts::default() }
    }

    fn code(facts: &Facts, peer: &PeerIdentity, greeting: &Greeting) -> Option<(u16, String)> {
        check(node(1), facts, peer, greeting).err().map(|r| (r.status, r.code))
    }

    #[test]
    fn gw_10_another_devices_id_inside_a_valid_session_is_401() {
        let peer = peer(Role::Agent);
        assert_eq!(code(&facts(1), &peer, &greeting(&peer)), None);
        let others = [
            Greeting { node: node(6), ..greeting(&peer) },
            Greeting { epoch: 3, ..greeting(&peer) },
            Greeting { role: Role::Relay, ..greeting(&peer) },
            Greeting { tenant: "other".parse().unwrap(), ..greeting(&peer) },
        ];
        for other in others {
            assert_eq!(code(&facts(1), &peer, &other), Some((401, "foreign_identity".into())));
        }
    }

    #[test]
    fn enr_7_a_gateway_or_server_certificate_is_no_childs() {
        for role in [Role::Gateway, Role::Server] {
            let peer = peer(role);
            assert_eq!(code(&facts(1), &peer, &greeting(&peer)), Some((403, "wrong_role".into())));
        }
    }

    #[test]
    fn top_20_loops_are_409_and_the_ninth_tier_is_422() {
        let relay = peer(Role::Relay);
        let hello = greeting(&relay);
        let mut above = facts(2);
        above.ancestors.push((node(5), "itself".into()));
        assert_eq!(code(&above, &relay, &hello), Some((409, "loop".into())));
        assert_eq!(check(node(5), &facts(2), &relay, &hello).unwrap_err().code, "loop");
        assert_eq!(code(&facts(7), &relay, &hello), None, "the eighth tier");
        assert_eq!(code(&facts(8), &relay, &hello), Some((422, "too_deep".into())));
        let deep = Greeting { depth_below: 3, ..hello };
        assert_eq!(code(&facts(4), &relay, &deep), None);
        assert_eq!(code(&facts(5), &relay, &deep), Some((422, "too_deep".into())));
        let agent = peer(Role::Agent);
        assert_eq!(code(&facts(8), &agent, &greeting(&agent)), None, "an agent is no tier");
    }

    #[test]
    fn enr_9_a_revoked_epoch_is_refused_and_the_next_one_is_not() {
        let peer = peer(Role::Agent);
        let mut facts = facts(1);
        let list =
            |epoch| Revocations { tenant: peer.tenant.clone(), term: 1, version: 1, revoked: vec![(peer.node, epoch)] };
        facts.revocations.insert(peer.tenant.clone(), Arc::new(list(2)));
        assert_eq!(code(&facts, &peer, &greeting(&peer)), Some((401, "revoked".into())));
        facts.revocations.insert(peer.tenant.clone(), Arc::new(list(1)));
        assert_eq!(code(&facts, &peer, &greeting(&peer)), None);
    }

    #[test]
    fn rly_11_the_spread_follows_the_number_of_children() {
        assert_eq!(reconnect_spread_ms(Role::Agent, 300), 45_000);
        assert_eq!(reconnect_spread_ms(Role::Agent, 20), 3_000);
        assert_eq!(reconnect_spread_ms(Role::Agent, 1_000_000), 300_000);
        assert_eq!(reconnect_spread_ms(Role::Relay, 300), 5_000);
    }
}
