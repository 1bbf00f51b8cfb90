use super::*;
use branchline_node::{
    config::LinkRate,
    identity::{Authority, Identity, KeyPair, Subject, child_config, parent_config, server_name},
    link::dial::{Dialler, Route},
    supervise::{Supervision, Supervisor},
    time::SystemClock,
    trunk::{ControlReader, control, write_header},
};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

const SOON: Duration = Duration::from_secs(60);
const DAY_MS: i64 = 86_400_000;

fn id(n: u8) -> NodeId {
    NodeId(branchline_node::random::SeededRandom::shared(u64::from(n)).id(Millis(1)))
}

fn authority(tenant: &str) -> Authority {
    Authority::create(&tenant.parse().unwrap(), now()).unwrap()
}

fn now() -> Millis {
    SystemClock::shared().wall()
}

fn issue(authority: &Authority, role: Role, n: u8) -> Identity {
    let key = KeyPair::generate().unwrap();
    let tenant = authority.tenant().clone();
    let subject = Subject { tenant, role, node: id(n), epoch: 1, dns: vec![], ips: vec![] };
    let (from, until) = (now().plus(-DAY_MS), now().plus(DAY_MS));
    let own = authority.issue_for_key(key.public(), &subject, from, until, u128::from(n)).unwrap();
    Identity::new(vec![own], key).unwrap()
}

struct World {
    system: Authority,
    registry: Arc<TrunkRegistry>,
    incoming: mpsc::UnboundedReceiver<Incoming>,
    tokens: watch::Sender<Vec<Hash>>,
    revoked: Arc<AtomicBool>,
    metrics: Metrics,
    supervision: Supervision,
    address: SocketAddr,
}

impl World {
    async fn start() -> World {
        let system = authority("system");
        // A second authority is trusted by TLS, so that the check of the role and tenant is what refuses.
        let other = OTHER.with(|other| other.clone());
        let time = NodeTime::new(SystemClock::shared());
        let roots = [system.certificate().clone(), other.certificate().clone()];
        let tls = parent_config(&issue(&system, Role::Server, 1), &roots, Arc::new(time.clone())).unwrap();
        let (tokens, watched) = watch::channel(vec![Hash::of(b"first")]);
        let (taken, incoming) = mpsc::unbounded_channel();
        let (metrics, revoked) = (Metrics::new(), Arc::new(AtomicBool::new(false)));
        let asked = Arc::clone(&revoked);
        let setup = TrunkSetup {
            accept_from: Vec::new(),
            tls,
            tenant: TenantId::system(),
            build: "server-build".into(),
            time,
            metrics: metrics.clone(),
            tokens: watched,
            revoked: Arc::new(move |_, _| asked.load(Ordering::SeqCst)),
            door: Door::new(LinkRate::default(), NodeTime::new(SystemClock::shared()), &metrics),
            taker: Arc::new(move |stream| assert!(taken.send(stream).is_ok())),
        };
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let registry = Arc::new(TrunkRegistry::default());
        let supervision = Supervisor::start(SystemClock::shared(), None);
        supervision.start_child(child(socket, setup, Arc::clone(&registry))).await.unwrap();
        World { system, registry, incoming, tokens, revoked, metrics, supervision, address }
    }

    async fn dial(&self, own: &Identity) -> Option<Gateway> {
        let dialler = Dialler::new(branchline_node::link::names::SystemResolver::shared());
        let time = Arc::new(NodeTime::new(SystemClock::shared()));
        let tls = child_config(Some(own), &[self.system.certificate().clone()], time).unwrap();
        let name = server_name(id(1), &TenantId::system());
        let route = Route::Direct(self.address.to_string());
        let tls = dialler.secure(&route, Preface::Trunk, &tls, name).await.ok()?;
        let (mux, _) = Mux::client(tls, MuxLimits::default());
        let mut stream = mux.open().await.ok()?;
        write_header(&mut stream, &StreamHeader { source: None, token: None }, b"").await.ok()?;
        let (reader, writer) = control(stream);
        Some(Gateway { mux, reader, writer })
    }

    /// A gateway whose trunk is registered.
    async fn gateway(&self, n: u8) -> Gateway {
        let mut gateway = self.dial(&issue(&self.system, Role::Gateway, n)).await.unwrap();
        assert_eq!(gateway.hear().await, Some(TrunkControl::LinkTokens(self.tokens.borrow().clone())));
        gateway
    }

    async fn take(&mut self) -> Incoming {
        timeout(SOON, self.incoming.recv()).await.unwrap().unwrap()
    }

    /// Waits until so many connections were refused for this reason.
    async fn wait_refused(&self, reason: &str, times: u32) {
        let line = format!("branchline_trunk_refused_total{{reason=\"{reason}\"}} {times}");
        until(|| self.metrics.render().contains(&line)).await;
    }

    async fn wait_trunks(&self, count: usize) {
        until(|| self.registry.list().len() == count).await;
        until(|| self.metrics.render().contains(&format!("branchline_trunks {count}"))).await;
    }
}

thread_local! {
    static OTHER: Authority = authority("acme");
}

async fn until(good: impl Fn() -> bool) {
    let wait = async {
        while !good() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, wait).await.expect("the value came in time");
}

struct Gateway {
    mux: MuxHandle,
    reader: ControlReader<TrunkStream>,
    writer: ControlWriter<TrunkStream>,
}

impl Gateway {
    async fn hear(&mut self) -> Option<TrunkControl> {
        timeout(SOON, self.reader.read()).await.unwrap().ok().flatten()
    }

    async fn open(&self, preface: u8) -> TrunkStream {
        let mut stream = self.mux.open().await.unwrap();
        write_header(&mut stream, &header(), &[preface]).await.unwrap();
        stream
    }
}

fn header() -> StreamHeader {
    StreamHeader { source: Some("192.0.2.9:4711".parse().unwrap()), token: Some("t".into()) }
}

async fn ends(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut byte = [0; 1];
    let end = timeout(SOON, stream.read(&mut byte)).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[actix_rt::test]
async fn a_gateway_is_answered_listed_and_told_every_change_of_tokens() {
    let world = World::start().await;
    let mut gateway = world.gateway(2).await;
    gateway.writer.write(&TrunkControl::Ping { build: "gateway-build".into(), links: 7 }).await.unwrap();
    let Some(TrunkControl::Pong { build, time, .. }) = gateway.hear().await else { panic!("no pong") };
    assert_eq!(build, "server-build");
    assert!(time.0 > 1_600_000_000_000);
    let [state] = &world.registry.list()[..] else { panic!("{:?}", world.registry.list()) };
    assert_eq!((state.gateway, state.links, state.build.as_deref()), (id(2), 7, Some("gateway-build")));
    assert!(state.heard >= state.since);
    world.tokens.send(vec![Hash::of(b"second")]).unwrap();
    assert_eq!(gateway.hear().await, Some(TrunkControl::LinkTokens(vec![Hash::of(b"second")])));
    drop(gateway);
    world.wait_trunks(0).await;
    world.supervision.stop(SOON).await.unwrap();
}

#[actix_rt::test]
async fn streams_are_handed_on_with_their_preface_answered() {
    let mut world = World::start().await;
    let gateway = world.gateway(2).await;
    for (byte, expected) in [(b'L', Preface::Link), (b'B', Preface::Bulk)] {
        let mut child = gateway.open(byte).await;
        assert_eq!(timeout(SOON, child.read_u8()).await.unwrap().unwrap(), PREFACE_ACCEPTED);
        child.write_all(b"hello").await.unwrap();
        let Incoming::Link { mut stream, kind, source, token, gateway } = world.take().await else { panic!() };
        assert_eq!((kind, gateway), (expected, id(2)));
        assert_eq!((source, token), (header().source, header().token));
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
        stream.write_all(b"there").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut there = Vec::new();
        timeout(SOON, child.read_to_end(&mut there)).await.unwrap().unwrap();
        assert_eq!(there, b"there");
    }
    let _child = gateway.open(b'E').await;
    let Incoming::Enrol { source, gateway, .. } = world.take().await else { panic!() };
    assert_eq!((source, gateway), (header().source, Some(id(2))));
    world.supervision.stop(SOON).await.unwrap();
}

#[actix_rt::test]
async fn a_gateways_own_enrolment_needs_no_certificate() {
    let mut world = World::start().await;
    let dialler = Dialler::new(branchline_node::link::names::SystemResolver::shared());
    let route = Route::Direct(world.address.to_string());
    let mut node = dialler.open(&route, Preface::Enrol).await.unwrap();
    let Incoming::Enrol { mut stream, source, gateway } = world.take().await else { panic!() };
    assert_eq!((source.unwrap().ip(), gateway), (world.address.ip(), None));
    node.write_all(b"ask").await.unwrap();
    let mut ask = [0; 3];
    stream.read_exact(&mut ask).await.unwrap();
    assert_eq!(&ask, b"ask");
    world.supervision.stop(SOON).await.unwrap();
}

#[actix_rt::test]
async fn gw_9_whoever_is_no_enrolled_gateway_gets_no_trunk() {
    let world = World::start().await;
    for (n, role) in [Role::Agent, Role::Relay, Role::Server].into_iter().enumerate() {
        let gateway = world.dial(&issue(&world.system, role, 3)).await;
        world.wait_refused("role", n as u32 + 1).await;
        drop(gateway);
    }
    let foreign = OTHER.with(|other| issue(other, Role::Gateway, 4));
    let gateway = world.dial(&foreign).await;
    world.wait_refused("role", 4).await;
    drop(gateway);
    // An authority nobody trusts: TLS itself refuses.
    let gateway = world.dial(&issue(&authority("system"), Role::Gateway, 5)).await;
    world.wait_refused("tls", 1).await;
    drop(gateway);
    for preface in [b'L', b'B', b'x', 0x16] {
        let mut stranger = TcpStream::connect(world.address).await.unwrap();
        stranger.write_u8(preface).await.unwrap();
        ends(&mut stranger).await;
    }
    world.wait_refused("preface", 4).await;
    assert!(world.registry.list().is_empty());
    world.supervision.stop(SOON).await.unwrap();
}

#[actix_rt::test]
async fn a_revoked_gateway_loses_its_trunks_and_its_streams_and_gets_no_new_one() {
    let mut world = World::start().await;
    let (bad, other_trunk, good) = (world.gateway(2).await, world.gateway(2).await, world.gateway(3).await);
    let mut child = bad.open(b'L').await;
    assert_eq!(child.read_u8().await.unwrap(), PREFACE_ACCEPTED);
    let Incoming::Link { mut stream, .. } = world.take().await else { panic!() };
    world.wait_trunks(3).await;
    world.revoked.store(true, Ordering::SeqCst);
    assert_eq!(world.registry.close(id(2)), 2);
    timeout(SOON, bad.mux.ended()).await.unwrap();
    timeout(SOON, other_trunk.mux.ended()).await.unwrap();
    ends(&mut stream).await;
    ends(&mut child).await;
    world.wait_trunks(1).await;
    assert!(good.mux.is_live());
    let again = world.dial(&issue(&world.system, Role::Gateway, 2)).await;
    world.wait_refused("revoked", 1).await;
    drop(again);
    assert_eq!(world.registry.close(id(9)), 0);
    world.supervision.stop(SOON).await.unwrap();
}

#[actix_rt::test]
async fn bad_streams_are_refused_and_the_trunk_lives() {
    let mut world = World::start().await;
    let gateway = world.gateway(2).await;
    for preface in [b'T', b'x'] {
        ends(&mut gateway.open(preface).await).await;
    }
    let mut garbage = gateway.mux.open().await.unwrap();
    garbage.write_all(&[0xff; 4]).await.unwrap();
    ends(&mut garbage).await;
    world.wait_refused("stream", 3).await;
    let mut child = gateway.open(b'L').await;
    assert_eq!(timeout(SOON, child.read_u8()).await.unwrap().unwrap(), PREFACE_ACCEPTED);
    world.take().await;
    world.supervision.stop(SOON).await.unwrap();
}

#[actix_rt::test]
async fn three_hundred_half_open_streams_do_not_lock_others_out() {
    let mut world = World::start().await;
    let gateway = world.gateway(2).await;
    let mut silent = Vec::new();
    // yamux allows 256 unanswered ones; those that the server gives up by the handshake time make room.
    for _ in 0..300 {
        let mut stream = timeout(SOON, gateway.mux.open()).await.expect("a place came free").unwrap();
        write_header(&mut stream, &header(), b"").await.unwrap();
        silent.push(stream);
    }
    let mut child = timeout(SOON, gateway.open(b'L')).await.unwrap();
    assert_eq!(timeout(SOON, child.read_u8()).await.unwrap().unwrap(), PREFACE_ACCEPTED);
    world.take().await;
    drop(silent);
    world.supervision.stop(SOON).await.unwrap();
}

#[actix_rt::test]
async fn a_silent_stream_ends_by_the_handshake_time() {
    let world = World::start().await;
    let gateway = world.gateway(2).await;
    let mut silent = gateway.mux.open().await.unwrap();
    write_header(&mut silent, &header(), b"").await.unwrap();
    let mut stranger = TcpStream::connect(world.address).await.unwrap();
    ends(&mut silent).await;
    ends(&mut stranger).await;
    world.wait_refused("stream", 1).await;
    world.wait_refused("no_preface", 1).await;
    world.supervision.stop(SOON).await.unwrap();
}

#[actix_rt::test]
async fn a_gateway_that_falls_silent_is_dead_by_its_time() {
    let world = World::start().await;
    let mut gateway = world.gateway(2).await;
    world.wait_trunks(1).await;
    assert_eq!(gateway.hear().await, None, "the server gave the trunk up");
    world.wait_trunks(0).await;
    world.supervision.stop(SOON).await.unwrap();
}

#[actix_rt::test]
async fn stopping_says_goodbye_and_frees_the_port() {
    let world = World::start().await;
    let gateway = world.gateway(2).await;
    world.wait_trunks(1).await;
    world.supervision.stop(SOON).await.unwrap();
    assert_eq!(timeout(SOON, gateway.mux.ended()).await.unwrap(), "closed by the peer");
    world.wait_trunks(0).await;
    let gone = async {
        while TcpStream::connect(world.address).await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, gone).await.unwrap();
}
