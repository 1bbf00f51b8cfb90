//! A world around one gateway: an authority, a server's end of the trunk, children.

use branchline_gateway::{
    Gateway, RunningGateway,
    config::{Config, Limits},
};
use branchline_node::{
    enrol::{read_message, write_message},
    identity::{
        Authority, Bundle, Identity, KeyPair, Root, Subject, enrol_config, outer_client_config, parent_config,
        server_name,
    },
    link::{
        BoxStream,
        dial::{DialFault, Dialler, Route},
        names::SystemResolver,
    },
    node::Ambient,
    time::NodeTime,
    trunk::{Mux, MuxHandle, MuxLimits, TrunkStream, control, read_header},
};
use branchline_protocol::{
    hash::Hash,
    id::{NodeId, Role, TenantId},
    time::Millis,
    trust::{KeyStatus, TrustDocument, TrustedKey},
    wire::{EnrolAnswer, EnrolRequest, LINK_PATH, PREFACE_ACCEPTED, Preface, StreamHeader, TrunkControl},
};
use rustls::pki_types::{CertificateDer, ServerName};
use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// A liveness bound: far longer than anything takes.
pub const SOON: Duration = Duration::from_secs(60);
pub const TOKEN: &str = "knock-knock";
pub const PUBLIC_NAME: &str = "gw.example.com";
const DAY_MS: i64 = 86_400_000;

pub fn time() -> NodeTime {
    NodeTime::new(branchline_node::time::SystemClock::shared())
}

fn id(n: u8) -> NodeId {
    let random = branchline_node::random::SeededRandom::shared(u64::from(n));
    NodeId(random.id(Millis(1)))
}

fn issue(authority: &Authority, role: Role, n: u8) -> Identity {
    let key = KeyPair::generate().unwrap();
    let tenant = authority.tenant().clone();
    let subject = Subject { tenant, role, node: id(n), epoch: 1, dns: vec![], ips: vec![] };
    let now = time().now().wall;
    let until = now.plus(DAY_MS);
    let own = authority.issue_for_key(key.public(), &subject, now.plus(-DAY_MS), until, u128::from(n)).unwrap();
    Identity::new(vec![own], key).unwrap()
}

/// What came to the server's end.
#[derive(Default)]
pub struct Seen {
    /// Gateways that dialled, whatever came of it.
    pub dials: usize,
    pub headers: Vec<(StreamHeader, u8)>,
    pub enrolments: Vec<EnrolRequest>,
}

/// The two tenants' authorities and what is signed by them.
pub struct Pki {
    pub system: Authority,
    pub acme: Authority,
    /// The server's identity towards gateways.
    pub server: Identity,
    /// The server's identity towards acme's devices.
    pub parent: Identity,
    /// A device of acme.
    pub device: Identity,
    bundle: String,
}

impl Pki {
    pub fn new() -> Pki {
        let now = time().now().wall;
        let acme: TenantId = "acme".parse().unwrap();
        let system = Authority::create(&TenantId::system(), now).unwrap();
        let acme = Authority::create(&acme, now).unwrap();
        let server = issue(&system, Role::Server, 1);
        let root = Root::create().unwrap();
        let signer = server.key.signer();
        let trust = TrustDocument {
            tenant: TenantId::system(),
            term: 1,
            version: 1,
            cas: vec![system.certificate().to_vec().into()],
            keys: vec![TrustedKey { key: signer.public(), role: "server".into(), status: KeyStatus::Active }],
        };
        let bundle = Bundle {
            version: 1,
            tenant: TenantId::system(),
            site: "dmz".into(),
            role: Role::Gateway,
            token: Some("let-me-in".into()),
            server: server.subject.node,
            root_key: root.public(),
            trust: root.sign(&trust),
            upstreams: vec![],
            link_token: String::new(),
            outer_roots: vec![],
            wake_port: 0,
            notice_port: 0,
        };
        let bundle = bundle.seal(&signer);
        let (parent, device) = (issue(&acme, Role::Server, 1), issue(&acme, Role::Agent, 9));
        Pki { system, acme, server, parent, device, bundle }
    }
}

/// The server's end: the trunk port, with a choice of what becomes of streams.
pub struct ServerEnd {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
    pub tokens: watch::Sender<Vec<Hash>>,
    pub trunks: Arc<Mutex<Vec<MuxHandle>>>,
    accepting: JoinHandle<()>,
}

/// What the server's end does with a stream whose preface it has answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Serve {
    /// Sends every byte back.
    Echo,
    /// Ends the inner TLS as acme's server, then sends every byte back.
    TlsEcho,
    /// Says nothing at all, not even the answer to the preface.
    Nothing,
}

impl ServerEnd {
    pub async fn start(pki: &Arc<Pki>, at: SocketAddr, serve: Serve) -> ServerEnd {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (tokens, watched) = watch::channel(vec![Hash::of(TOKEN.as_bytes())]);
        let trunks = Arc::new(Mutex::new(Vec::new()));
        let (pki, heard, held) = (Arc::clone(pki), Arc::clone(&seen), Arc::clone(&trunks));
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (pki, heard, held, watched) =
                    (Arc::clone(&pki), Arc::clone(&heard), Arc::clone(&held), watched.clone());
                tokio::spawn(connection(stream, pki, heard, held, watched, serve));
            }
        });
        ServerEnd { address, seen, tokens, trunks, accepting }
    }

    pub fn streams(&self) -> usize {
        self.seen.lock().unwrap().headers.len()
    }

    /// As if the server's process had gone.
    pub async fn vanish(self) -> SocketAddr {
        self.accepting.abort();
        // Once it has ended, the port is free.
        let _cut = self.accepting.await;
        self.trunks.lock().unwrap().drain(..).for_each(|trunk| trunk.close());
        self.address
    }
}

async fn connection(
    mut stream: TcpStream,
    pki: Arc<Pki>,
    seen: Arc<Mutex<Seen>>,
    trunks: Arc<Mutex<Vec<MuxHandle>>>,
    tokens: watch::Receiver<Vec<Hash>>,
    serve: Serve,
) {
    let preface = Preface::from_byte(stream.read_u8().await.unwrap());
    stream.write_u8(PREFACE_ACCEPTED).await.unwrap();
    let time = Arc::new(time());
    if preface == Some(Preface::Enrol) {
        let mut tls = TlsAcceptor::from(enrol_config(&pki.server, time).unwrap()).accept(stream).await.unwrap();
        let ask: EnrolRequest = read_message(&mut tls).await.unwrap();
        let now = self::time().now().wall;
        let ips: Vec<IpAddr> = ask.facts.addresses.iter().filter_map(|a| a.parse().ok()).collect();
        let dns = ask.facts.addresses.iter().filter(|a| a.parse::<IpAddr>().is_err()).cloned().collect();
        let subject = Subject { tenant: TenantId::system(), role: ask.role, node: id(7), epoch: 1, dns, ips };
        let own = pki.system.issue(&ask.request, &subject, now.plus(-DAY_MS), now.plus(DAY_MS), 7).unwrap();
        let answer = EnrolAnswer::Enrolled {
            node: id(7),
            epoch: 1,
            chain: vec![own.to_vec().into(), pki.system.certificate().to_vec().into()],
            documents: vec![],
        };
        seen.lock().unwrap().enrolments.push(ask);
        write_message(&mut tls, &answer).await.unwrap();
        tls.shutdown().await.unwrap();
        return;
    }
    assert_eq!(preface, Some(Preface::Trunk));
    seen.lock().unwrap().dials += 1;
    let roots = [pki.system.certificate().clone()];
    let tls = parent_config(&pki.server, &roots, time).unwrap();
    let Ok(tls) = TlsAcceptor::from(tls).accept(stream).await else { return };
    let (mux, mut incoming) = Mux::server(tls, MuxLimits::default());
    trunks.lock().unwrap().push(mux.clone());
    let mut first = incoming.recv().await.unwrap();
    assert_eq!(read_header(&mut first).await.unwrap(), StreamHeader { source: None, token: None });
    tokio::spawn(answer_control(first, tokens));
    while let Some(stream) = incoming.recv().await {
        tokio::spawn(serve_stream(stream, Arc::clone(&pki), Arc::clone(&seen), serve));
    }
}

async fn answer_control(stream: TrunkStream, mut tokens: watch::Receiver<Vec<Hash>>) {
    let (mut reader, mut writer) = control(stream);
    let list = tokens.borrow_and_update().clone();
    writer.write(&TrunkControl::LinkTokens(list)).await.unwrap();
    loop {
        let answer = tokio::select! {
            read = reader.read() => match read {
                Ok(Some(_)) => TrunkControl::Pong { build: "server-build".into(), time: Millis(0), uptime_s: 1 },
                _ => return,
            },
            changed = tokens.changed() => match changed {
                Ok(()) => TrunkControl::LinkTokens(tokens.borrow_and_update().clone()),
                Err(_) => return,
            },
        };
        if writer.write(&answer).await.is_err() {
            return;
        }
    }
}

async fn serve_stream(mut stream: TrunkStream, pki: Arc<Pki>, seen: Arc<Mutex<Seen>>, serve: Serve) {
    let Ok(header) = read_header(&mut stream).await else { return };
    let Ok(kind) = stream.read_u8().await else { return };
    seen.lock().unwrap().headers.push((header, kind));
    if serve == Serve::Nothing {
        let mut rest = Vec::new();
        let _gone = stream.read_to_end(&mut rest).await;
        return;
    }
    stream.write_all(&[PREFACE_ACCEPTED]).await.unwrap();
    if serve == Serve::TlsEcho {
        let roots = [pki.acme.certificate().clone()];
        let tls = parent_config(&pki.parent, &roots, Arc::new(time())).unwrap();
        let Ok(tls) = TlsAcceptor::from(tls).accept(stream).await else { return };
        echo(tls).await;
    } else {
        echo(stream).await;
    }
}

async fn echo(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite) {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut buffer = vec![0; 16_384];
    while let Ok(n @ 1..) = read.read(&mut buffer).await {
        if write.write_all(&buffer[..n]).await.is_err() || write.flush().await.is_err() {
            return;
        }
    }
    let _gone = write.shutdown().await;
}

/// A gateway, its server's end and its state.
pub struct World {
    pub pki: Arc<Pki>,
    pub server: ServerEnd,
    pub gateway: RunningGateway,
    pub state: TempDir,
}

impl World {
    pub async fn start(serve: Serve) -> World {
        World::with(serve, |_| {}).await
    }

    /// With a changed configuration; waits until the gateway has a trunk and the tokens.
    pub async fn with(serve: Serve, change: impl FnOnce(&mut Config)) -> World {
        let pki = Arc::new(Pki::new());
        let server = ServerEnd::start(&pki, "127.0.0.1:0".parse().unwrap(), serve).await;
        let state = tempfile::tempdir().unwrap();
        let mut config = config(state.path().into(), server.address);
        change(&mut config);
        std::fs::write(&config.bundle, &pki.bundle).unwrap();
        let trunks = config.trunks as u64;
        let gateway = Gateway::start(config, Ambient::system()).await.unwrap();
        let world = World { pki, server, gateway, state };
        world.wait_status(|s| s["trunks"] == trunks).await;
        world
    }

    pub fn public(&self) -> SocketAddr {
        self.gateway.started.addresses["public"]
    }

    pub fn private(&self) -> SocketAddr {
        self.gateway.started.addresses["private"]
    }

    /// A child's way in.
    pub fn dialler(&self, token: &str) -> Dialler {
        let roots = [self.pki.system.certificate().clone()];
        let outer = outer_client_config(&roots, Arc::new(time())).unwrap();
        Dialler { outer: Some(outer), link_token: token.into(), ..Dialler::new(SystemResolver::shared()) }
    }

    pub fn route(&self) -> Route {
        Route::Gateway(format!("https://{}", self.public()))
    }

    /// The name of the parent that a device of acme expects.
    pub fn parent(&self) -> ServerName<'static> {
        server_name(self.pki.parent.subject.node, self.pki.acme.tenant())
    }

    pub async fn tls(&self, to: SocketAddr) -> TlsStream<TcpStream> {
        let roots = [self.pki.system.certificate().clone()];
        https(to, &roots).await
    }

    /// Sends a request as it stands, reads to the end of the connection and answers the status with the whole text.
    pub async fn ask(&self, request: &str) -> (u16, String) {
        let mut tls = self.tls(self.public()).await;
        // The gateway may answer and close before it has read everything: the rest of the writing fails then.
        let _cut = tls.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _cut = timeout(SOON, tls.read_to_end(&mut answer)).await.expect("the gateway closes");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, answer)
    }

    pub async fn get_private(&self, path: &str) -> (u16, String) {
        let mut tls = self.tls(self.private()).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.private());
        tls.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(SOON, tls.read_to_end(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub async fn status(&self) -> serde_json::Value {
        let (status, body) = self.get_private("/getstatus").await;
        assert_eq!(status, 200);
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"))
    }

    /// Waits until the status is as it should be.
    pub async fn wait_status(&self, good: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        until(async || Some(self.status().await).filter(|status| good(status))).await
    }
}

/// Asks until there is an answer.
pub async fn until<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    let wait = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, wait).await.expect("the value came in time")
}

pub fn config(state: PathBuf, server: SocketAddr) -> Config {
    Config {
        name: "dmz".into(),
        public: "127.0.0.1:0".parse().unwrap(),
        private: "127.0.0.1:0".parse().unwrap(),
        public_names: vec![PUBLIC_NAME.into()],
        server_trunk: server.to_string(),
        bundle: state.join("bundle"),
        bind_source: None,
        certificate: None,
        trunks: 2,
        limits: Limits::default(),
        state_dir: state,
    }
}

pub async fn https(to: SocketAddr, roots: &[CertificateDer<'_>]) -> TlsStream<TcpStream> {
    let tls = outer_client_config(roots, Arc::new(time())).unwrap();
    let tcp = TcpStream::connect(to).await.unwrap();
    let name = ServerName::from(to.ip());
    timeout(SOON, TlsConnector::from(tls).connect(name, tcp)).await.unwrap().unwrap()
}

/// A proper upgrade with this first line and host.
pub fn upgrade(first: &str, host: &str) -> String {
    format!(
        "{first}\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Branchline-Link-Token: {TOKEN}\r\n\r\n"
    )
}

/// Sends the bytes and reads as many back.
pub async fn echoed(stream: BoxStream, bytes: Arc<Vec<u8>>) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let (sent, length) = (Arc::clone(&bytes), bytes.len());
    let sending = tokio::spawn(async move {
        for chunk in sent.chunks(100_000) {
            write.write_all(chunk).await.unwrap();
        }
        write.flush().await.unwrap();
        write
    });
    let mut received = vec![0; length];
    timeout(SOON, read.read_exact(&mut received)).await.unwrap().unwrap();
    let mut write = sending.await.unwrap();
    let _closing = write.shutdown().await;
    received
}

/// Bytes that do not repeat.
pub fn payload(length: usize) -> Arc<Vec<u8>> {
    Arc::new((0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 23) as u8).collect())
}

/// Status and `Retry-After` of a refusal.
pub fn refused(fault: Result<BoxStream, DialFault>) -> (u16, Option<u64>) {
    match fault {
        Err(DialFault::Gateway { status, retry_after_s, .. }) => (status, retry_after_s),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("let in"),
    }
}

/// An upgraded connection that says nothing more.
pub async fn silent(world: &World) -> TlsStream<TcpStream> {
    let mut tls = world.tls(world.public()).await;
    let request = upgrade(&format!("GET {LINK_PATH} HTTP/1.1"), PUBLIC_NAME);
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    timeout(SOON, tls.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    tls
}
