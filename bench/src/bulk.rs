//! Our gateway under bulk: the shipped program between a child and a server's end of the trunk, both of ours with the product's
//! own link, trunk and TLS. Content itself is not measured: the ends make bytes and throw them away.
//!
//! ```text
//! child (this thread) ══ HTTPS, WebSocket ══► branchline-gateway ══ TLS, yamux ══► server's end (a thread)
//!   └────────────────────────── inner TLS, certificates on both ends ──────────────────────────┘
//! ```

use crate::{
    Outcome,
    daemon::{Daemon, free_port, local},
    machine,
    stats::Sample,
};
use branchline_node::{
    enrol::{read_message, write_message},
    identity::{
        Authority, Bundle, Identity, KeyPair, Root, Subject, child_config, enrol_config, outer_client_config,
        parent_config, server_name,
    },
    link::{
        dial::{DialFault, Dialler, Route},
        names::SystemResolver,
    },
    random::SystemRandom,
    time::{NodeTime, SystemClock},
    trunk::{Mux, MuxLimits, TrunkStream, control, read_header},
};
use branchline_protocol::{
    hash::Hash,
    id::{NodeId, Role, TenantId},
    time::Millis,
    trust::{KeyStatus, TrustDocument, TrustedKey},
    wire::{EnrolAnswer, EnrolRequest, PREFACE_ACCEPTED, Preface, TrunkControl},
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

/// What takes longer is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a child shows the gateway.
const KNOCK: &str = "bulk";
/// How long certificates are good, and how far back, in milliseconds.
const DAY_MS: i64 = 86_400_000;
/// Bytes of one write, and of one read.
const BLOCK: usize = 256 << 10;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the server to the child.
    Down,
    /// From the child to the server.
    Up,
}

/// What so many transfers came to.
pub struct Bulk {
    /// MB in a second of each.
    pub rates: Sample,
    /// Seconds of CPU of the gateway for a GB.
    pub gateway_cpu_s: f64,
}

/// A fault that may cross threads.
type Fault = Box<dyn std::error::Error + Send + Sync>;

struct Pki {
    system: Authority,
    tenant: Authority,
    /// Towards gateways.
    server: Identity,
    /// Towards the tenant's devices.
    parent: Identity,
    device: Identity,
}

fn time() -> NodeTime {
    NodeTime::new(SystemClock::shared())
}

fn issue(authority: &Authority, role: Role, serial: u128) -> Outcome<Identity> {
    let key = KeyPair::generate()?;
    let node = NodeId(SystemRandom::shared().id(Millis(1)));
    let subject = Subject { tenant: authority.tenant().clone(), role, node, epoch: 1, dns: vec![], ips: vec![] };
    let now = time().now().wall;
    let own = authority.issue_for_key(key.public(), &subject, now.plus(-DAY_MS), now.plus(DAY_MS), serial)?;
    Ok(Identity::new(vec![own], key)?)
}

impl Pki {
    fn make() -> Outcome<Pki> {
        let now = time().now().wall;
        let system = Authority::create(&TenantId::system(), now)?;
        let tenant = Authority::create(&"main".parse()?, now)?;
        let (server, parent) = (issue(&system, Role::Server, 1)?, issue(&tenant, Role::Server, 2)?);
        let device = issue(&tenant, Role::Agent, 3)?;
        Ok(Pki { system, tenant, server, parent, device })
    }

    /// With which the gateway enrols.
    fn bundle(&self) -> Outcome<String> {
        let (root, signer) = (Root::create()?, self.server.key.signer());
        let trust = TrustDocument {
            tenant: TenantId::system(),
            term: 1,
            version: 1,
            cas: vec![self.system.certificate().to_vec().into()],
            keys: vec![TrustedKey { key: signer.public(), role: "server".into(), status: KeyStatus::Active }],
        };
        let bundle = Bundle {
            version: 1,
            tenant: TenantId::system(),
            site: "dmz".into(),
            role: Role::Gateway,
            token: Some("bench".into()),
            server: self.server.subject.node,
            root_key: root.public(),
            trust: root.sign(&trust),
            upstreams: vec![],
            link_token: String::new(),
            outer_roots: vec![],
            wake_port: 0,
            notice_port: 0,
        };
        Ok(bundle.seal(&signer))
    }
}

/// Transfers so many MiB so often through one gateway, one after another, each on a link of its own.
pub async fn through(gateway: &Path, folder: &Path, way: Way, times: usize, mib: u32) -> Outcome<Bulk> {
    let state = tempfile::tempdir_in(folder)?;
    let pki = Arc::new(Pki::make()?);
    let trunk = server_end(pki.clone())?;
    let (public, private) = (free_port()?, free_port()?);
    let (bundle, file) = (state.path().join("bundle"), state.path().join("gateway.toml"));
    std::fs::write(&bundle, pki.bundle()?)?;
    let text = format!(
        "name = 'dmz'\nstate_dir = '{}'\npublic = '127.0.0.1:{public}'\nprivate = '127.0.0.1:{private}'\n\
         server_trunk = '127.0.0.1:{trunk}'\nbundle = '{}'\n",
        state.path().display(),
        bundle.display()
    );
    std::fs::write(&file, text)?;
    let program = gateway.to_str().ok_or("the gateway's path is not UTF-8")?;
    let daemon = Daemon::start(program, &["--config", &file.display().to_string()], state.path(), &[public])?;
    let dialler = Dialler {
        outer: Some(outer_client_config(&[pki.system.certificate().clone()], Arc::new(time()))?),
        link_token: KNOCK.into(),
        ..Dialler::new(SystemResolver::shared())
    };
    let route = Route::Gateway(format!("https://127.0.0.1:{public}"));
    let inner = child_config(Some(&pki.device), &[pki.tenant.certificate().clone()], Arc::new(time()))?;
    let name = server_name(pki.parent.subject.node, pki.tenant.tenant());
    let (mut rates, mut cpu_s) = (Vec::new(), 0.0);
    let until = Instant::now() + PATIENCE;
    while rates.len() < times {
        let mut link = match dialler.secure(&route, Preface::Bulk, &inner, name.clone()).await {
            Ok(link) => link,
            // It has no trunk yet.
            Err(DialFault::Gateway { .. }) if rates.is_empty() && Instant::now() < until => {
                sleep(Duration::from_millis(100)).await;
                continue;
            }
            Err(fault) => return Err(fault.into()),
        };
        let (begun, from) = (machine::read(&daemon.pids()), Instant::now());
        let asked = [&[u8::from(way == Way::Up)][..], &mib.to_be_bytes()].concat();
        link.write_all(&asked).await?;
        link.flush().await?;
        match way {
            Way::Down => receive(&mut link, mib).await.map_err(|fault| fault.to_string())?,
            Way::Up => {
                send(&mut link, mib).await.map_err(|fault| fault.to_string())?;
                // The server's end says when it has all.
                timeout(PATIENCE, link.read_u8()).await??;
            }
        }
        rates.push(bytes_of(mib) as f64 / 1e6 / from.elapsed().as_secs_f64());
        cpu_s += machine::read(&daemon.pids()).cpu_s - begun.cpu_s;
    }
    let gigabytes = bytes_of(mib) as f64 / 1e9 * times as f64;
    Ok(Bulk { rates: Sample::of(rates), gateway_cpu_s: cpu_s / gigabytes })
}

fn bytes_of(mib: u32) -> u64 {
    u64::from(mib) << 20
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, mib: u32) -> Result<(), Fault> {
    let block: Vec<u8> = (0..BLOCK as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut left = bytes_of(mib);
    while left > 0 {
        let some = block.len().min(left as usize);
        timeout(PATIENCE, stream.write_all(&block[..some])).await??;
        left -= some as u64;
    }
    Ok(timeout(PATIENCE, stream.flush()).await??)
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S, mib: u32) -> Result<(), Fault> {
    let (mut left, mut buffer) = (bytes_of(mib), vec![0; BLOCK]);
    while left > 0 {
        match timeout(PATIENCE, stream.read(&mut buffer)).await?? {
            0 => return Err("it ended early".into()),
            n => left = left.saturating_sub(n as u64),
        }
    }
    Ok(())
}

/// The server's end of the trunk, on a thread of its own for the life of this program; its port.
fn server_end(pki: Arc<Pki>) -> Outcome<u16> {
    let listener = std::net::TcpListener::bind(local(0))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("server's end".into()).spawn(move || {
        runtime.block_on(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let pki = pki.clone();
                tokio::spawn(async move {
                    if let Err(fault) = connection(stream, pki).await {
                        eprintln!("the server's end: {fault}");
                    }
                });
            }
        });
    })?;
    Ok(port)
}

async fn connection(mut stream: TcpStream, pki: Arc<Pki>) -> Result<(), Fault> {
    stream.set_nodelay(true)?;
    let preface = Preface::from_byte(stream.read_u8().await?);
    stream.write_u8(PREFACE_ACCEPTED).await?;
    if preface == Some(Preface::Enrol) {
        return enrol(stream, &pki).await;
    }
    let tls = parent_config(&pki.server, &[pki.system.certificate().clone()], Arc::new(time()))?;
    let tls = TlsAcceptor::from(tls).accept(stream).await?;
    let (_mux, mut incoming) = Mux::server(tls, MuxLimits::default());
    let mut first = incoming.recv().await.ok_or("a trunk without a control stream")?;
    read_header(&mut first).await?;
    tokio::spawn(answer_control(first));
    while let Some(stream) = incoming.recv().await {
        let pki = pki.clone();
        tokio::spawn(async move {
            if let Err(fault) = serve(stream, pki).await {
                eprintln!("the server's end: {fault}");
            }
        });
    }
    Ok(())
}

async fn enrol(stream: TcpStream, pki: &Pki) -> Result<(), Fault> {
    let mut tls = TlsAcceptor::from(enrol_config(&pki.server, Arc::new(time()))?).accept(stream).await?;
    let ask: EnrolRequest = read_message(&mut tls).await?;
    let (now, node) = (time().now().wall, NodeId(SystemRandom::shared().id(Millis(1))));
    let ips = ask.facts.addresses.iter().filter_map(|address| address.parse().ok()).collect();
    let subject = Subject { tenant: TenantId::system(), role: ask.role, node, epoch: 1, dns: vec![], ips };
    let own = pki.system.issue(&ask.request, &subject, now.plus(-DAY_MS), now.plus(DAY_MS), 9)?;
    let chain = vec![own.to_vec().into(), pki.system.certificate().to_vec().into()];
    write_message(&mut tls, &EnrolAnswer::Enrolled { node, epoch: 1, chain, documents: vec![] }).await?;
    Ok(tls.shutdown().await?)
}

async fn answer_control(stream: TrunkStream) {
    let (mut reader, mut writer) = control(stream);
    let mut answer = TrunkControl::LinkTokens(vec![Hash::of(KNOCK.as_bytes())]);
    while writer.write(&answer).await.is_ok() {
        let Ok(Some(_)) = reader.read().await else { return };
        answer = TrunkControl::Pong { build: "bench".into(), time: time().now().wall, uptime_s: 1 };
    }
}

async fn serve(mut stream: TrunkStream, pki: Arc<Pki>) -> Result<(), Fault> {
    read_header(&mut stream).await?;
    if Preface::from_byte(stream.read_u8().await?) != Some(Preface::Bulk) {
        return Err("another preface than bulk".into());
    }
    stream.write_u8(PREFACE_ACCEPTED).await?;
    stream.flush().await?;
    let tls = parent_config(&pki.parent, &[pki.tenant.certificate().clone()], Arc::new(time()))?;
    let mut link = TlsAcceptor::from(tls).accept(stream).await?;
    let up = link.read_u8().await? == 1;
    let mib = link.read_u32().await?;
    if up {
        receive(&mut link, mib).await?;
        link.write_u8(1).await?;
        link.flush().await?;
    } else {
        send(&mut link, mib).await?;
    }
    // Whoever asked hangs up first, so that nothing is lost.
    let _gone = timeout(PATIENCE, link.read_u8()).await;
    Ok(())
}
