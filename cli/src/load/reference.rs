//! What bare TLS takes on this machine, measured in the same run: as many connections with certificates on both ends, a
//! question and an answer on each, nothing signed and nothing stored; and what this disk takes for a synced write. Beside it
//! stands what Branchline adds.
//!
//! ```text
//! hub (a thread) ══ mutual TLS over loopback ══ leaves (a thread)      256 bytes down, 512 up, on every connection
//! ```

use super::{
    figures::{percentile, rounded},
    host, process,
};
use crate::{
    failure::Failure,
    table::table,
    verbs::load::{Args, Mode},
};
use branchline_node::{
    identity::{Authority, Identity, KeyPair, Subject, child_config, parent_config, server_name},
    random::SystemRandom,
    time::{NodeTime, SystemClock},
};
use branchline_protocol::{
    id::{NodeId, Role, TenantId},
    time::Millis,
};
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use serde_json::{Value, json};
use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Bytes of a question, and of an answer: about what an order and a short result take.
const QUESTION: usize = 256;
const ANSWER: usize = 512;
/// Connections that are being opened at once.
const AT_ONCE: usize = 64;
/// Rounds that are not measured.
const WARM_UP: usize = 5;
/// Synced writes whose median counts.
const SYNCS: usize = 50;
/// What takes longer is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the certificates are good, each way.
const DAY_MS: i64 = 86_400_000;

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reference {
    /// Connections.
    pub links: u32,
    /// Milliseconds until all were open.
    pub handshakes_ms: f64,
    /// Milliseconds of each round, both ways on all of them.
    pub rounds_ms: Vec<f64>,
    /// Seconds of CPU of a thousand answers, both ends together.
    pub cpu_s_per_1000: f64,
    /// Milliseconds of a write of 4 KiB and its sync, the median.
    pub sync_ms: f64,
}

impl Reference {
    /// Measures as many connections and rounds as were asked for, and the disk of this folder.
    pub fn measure(args: &Args, folder: &Path) -> Result<Reference, Failure> {
        host::allow_files_for(args.agents as usize);
        let measured = exchange(args.agents, args.rounds)
            .and_then(|found| Ok(Reference { sync_ms: synced_write_ms(folder)?, ..found }));
        measured.map_err(|fault| Failure::ended("no_reference", format!("the reference cannot be measured: {fault}")))
    }

    /// Adds `reference` and `ratio` to what a mode printed: how many times as much the same took with Branchline.
    pub fn put(&self, mode: Mode, json: &mut Value) {
        let ratios = self.ratios(mode, json);
        json["ratio"] = ratios.into_iter().map(|(key, ratio)| (key.to_string(), json!(rounded(ratio)))).collect();
        json["reference"] = json!({
            "links": self.links,
            "handshakes_ms": rounded(self.handshakes_ms),
            "p50_ms": rounded(percentile(&self.rounds_ms, 0.5)),
            "p99_ms": rounded(percentile(&self.rounds_ms, 0.99)),
            "cpu_s_per_1000": self.cpu_s_per_1000,
            "sync_ms": rounded(self.sync_ms),
        });
    }

    /// For people, beside what a mode printed.
    pub fn text(&self, mode: Mode, json: &Value) -> String {
        let rows = self.ratios(mode, json).into_iter().map(|(key, ratio)| [key.to_string(), format!("{ratio:.1}")]);
        let bare = table(
            ["BARE TLS", "HANDSHAKES MS", "P50 MS", "P99 MS", "CPU S/1000", "SYNCED WRITE MS"],
            [[
                self.links.to_string(),
                format!("{:.1}", self.handshakes_ms),
                format!("{:.2}", percentile(&self.rounds_ms, 0.5)),
                format!("{:.2}", percentile(&self.rounds_ms, 0.99)),
                format!("{:.4}", self.cpu_s_per_1000),
                format!("{:.2}", self.sync_ms),
            ]],
        );
        format!("\n{bare}\n{}", table(["TIMES BARE TLS", ""], rows))
    }

    fn ratios(&self, mode: Mode, json: &Value) -> Vec<(&'static str, f64)> {
        let pairs = match mode {
            Mode::Fanout => {
                let parts = json["cpu_s_per_1000"].as_object().into_iter().flat_map(|parts| parts.values());
                let cpu: f64 = parts.filter_map(Value::as_f64).sum();
                vec![
                    ("p50_ms", json["p50_ms"].as_f64(), percentile(&self.rounds_ms, 0.5)),
                    ("p99_ms", json["p99_ms"].as_f64(), percentile(&self.rounds_ms, 0.99)),
                    ("cpu_s_per_1000", Some(cpu), self.cpu_s_per_1000),
                ]
            }
            Mode::Storm => vec![("total_ms", json["total_ms"].as_f64(), self.handshakes_ms)],
            Mode::Links | Mode::Inventory => vec![],
        };
        let ratio = |(key, ours, bare): (_, Option<f64>, f64)| Some((key, ours.filter(|_| bare > 0.0)? / bare));
        pairs.into_iter().filter_map(ratio).collect()
    }
}

#[allow(clippy::disallowed_methods, reason = "a stopwatch decides nothing, and the node's clock has no microseconds")]
fn now() -> Instant {
    Instant::now()
}

fn ms_since(then: Instant) -> f64 {
    then.elapsed().as_secs_f64() * 1_000.0
}

fn synced_write_ms(folder: &Path) -> Result<f64, Fault> {
    let path = folder.join("reference.sync");
    let mut file = std::fs::File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let begin = now();
        file.write_all(&[7; 4_096])?;
        file.sync_data()?;
        times.push(ms_since(begin));
    }
    drop(file);
    std::fs::remove_file(path)?;
    Ok(percentile(&times, 0.5))
}

/// Both ends' TLS, as a parent and its child have it, and the parent's name.
fn tls() -> Result<(Arc<ServerConfig>, Arc<ClientConfig>, ServerName<'static>), Fault> {
    let time = Arc::new(NodeTime::new(SystemClock::shared()));
    let (wall, tenant): (Millis, TenantId) = (time.now().wall, "reference".parse()?);
    let authority = Authority::create(&tenant, wall)?;
    let random = SystemRandom::shared();
    let identity = |role, serial| -> Result<Identity, Fault> {
        let (key, node) = (KeyPair::generate()?, NodeId(random.id(wall)));
        let subject = Subject { tenant: tenant.clone(), role, node, epoch: 1, dns: vec![], ips: vec![] };
        let (from, until) = (wall.plus(-DAY_MS), wall.plus(DAY_MS));
        Ok(Identity::new(vec![authority.issue_for_key(key.public(), &subject, from, until, serial)?], key)?)
    };
    let (parent, child) = (identity(Role::Relay, 1)?, identity(Role::Agent, 2)?);
    let roots = [authority.certificate().clone()];
    let name = server_name(parent.subject.node, &tenant);
    Ok((parent_config(&parent, &roots, time.clone())?, child_config(Some(&child), &roots, time)?, name))
}

fn exchange(links: u32, rounds: u32) -> Result<Reference, Fault> {
    let (hub, leaf, name) = tls()?;
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let leaves = std::thread::Builder::new()
        .name("leaves".into())
        .spawn(move || alone()?.block_on(tokio::task::LocalSet::new().run_until(leaves(leaf, name, address, links))))?;
    let measured = alone()?.block_on(tokio::task::LocalSet::new().run_until(ask(hub, listener, links, rounds)));
    // The leaves end when the hub has hung up.
    let ended = leaves.join().map_err(|_| "the leaves panicked")?;
    measured.and_then(|reference| ended.map(|()| reference))
}

fn alone() -> Result<tokio::runtime::Runtime, Fault> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Opens all connections, and answers on each until it is closed.
async fn leaves(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    hub: SocketAddr,
    links: u32,
) -> Result<(), Fault> {
    let at_once = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..links {
        let (connector, name) = (TlsConnector::from(config.clone()), name.clone());
        let turn = at_once.clone().acquire_owned().await?;
        tasks.spawn_local(async move {
            let tcp = TcpStream::connect(hub).await?;
            tcp.set_nodelay(true)?;
            let stream = timeout(PATIENCE, connector.connect(name, tcp)).await??;
            drop(turn);
            answer(stream).await
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn answer(mut stream: client::TlsStream<TcpStream>) -> Result<(), Fault> {
    let mut question = [0; QUESTION];
    // Its end is how the hub says that it is over.
    while stream.read_exact(&mut question).await.is_ok() {
        stream.write_all(&[7; ANSWER]).await?;
        stream.flush().await?;
    }
    Ok(())
}

/// Takes all connections, then asks on each and waits for every answer, again and again.
async fn ask(
    config: Arc<ServerConfig>,
    listener: std::net::TcpListener,
    links: u32,
    rounds: u32,
) -> Result<Reference, Fault> {
    let listener = TcpListener::from_std(listener)?;
    let begin = now();
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..links {
        let (tcp, _) = timeout(PATIENCE, listener.accept()).await??;
        let acceptor = TlsAcceptor::from(config.clone());
        opening.spawn_local(async move {
            tcp.set_nodelay(true)?;
            Ok::<_, Fault>(timeout(PATIENCE, acceptor.accept(tcp)).await??)
        });
    }
    let mut streams: Vec<server::TlsStream<TcpStream>> = Vec::new();
    while let Some(opened) = opening.join_next().await {
        streams.push(opened??);
    }
    let handshakes_ms = ms_since(begin);
    let (mut rounds_ms, mut cpu_s) = (Vec::new(), 0.0);
    for round in 0..WARM_UP + rounds as usize {
        if round == WARM_UP {
            cpu_s = own_cpu_s()?;
        }
        let begin = now();
        for stream in &mut streams {
            stream.write_all(&[7; QUESTION]).await?;
            stream.flush().await?;
        }
        for stream in &mut streams {
            timeout(PATIENCE, stream.read_exact(&mut [0; ANSWER])).await??;
        }
        if round >= WARM_UP {
            rounds_ms.push(ms_since(begin));
        }
    }
    let cpu_s = own_cpu_s()? - cpu_s;
    let cpu_s_per_1000 = cpu_s * 1_000.0 / (f64::from(links) * f64::from(rounds));
    Ok(Reference { links, handshakes_ms, rounds_ms, cpu_s_per_1000, sync_ms: 0.0 })
}

fn own_cpu_s() -> Result<f64, Fault> {
    Ok(process::cpu_s(std::process::id()).map_err(|failure| failure.message)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_tls_is_measured_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let reference = exchange(5, 3).unwrap();
        assert_eq!((reference.links, reference.rounds_ms.len()), (5, 3));
        assert!(reference.handshakes_ms > 0.0 && reference.rounds_ms.iter().all(|ms| *ms > 0.0), "{reference:?}");
        assert!(synced_write_ms(folder.path()).unwrap() > 0.0);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_ratio_says_how_many_times_bare_tls_it_took() {
        let reference = Reference {
            links: 300,
            handshakes_ms: 200.0,
            rounds_ms: vec![4.0, 5.0, 10.0],
            cpu_s_per_1000: 0.02,
            sync_ms: 1.0,
        };
        let cpu = json!({ "server": 0.1, "gateway": 0.01, "relay": 0.1, "agents": 0.19 });
        let mut json = json!({ "p50_ms": 80.0, "p99_ms": 100.0, "cpu_s_per_1000": cpu });
        reference.put(Mode::Fanout, &mut json);
        assert_eq!(json["ratio"], json!({ "p50_ms": 16.0, "p99_ms": 10.0, "cpu_s_per_1000": 20.0 }));
        assert_eq!((&json["reference"]["p50_ms"], &json["reference"]["sync_ms"]), (&json!(5.0), &json!(1.0)));
        assert!(reference.text(Mode::Fanout, &json).contains("16.0"));
        let mut storm = json!({ "total_ms": 1_000.0 });
        reference.put(Mode::Storm, &mut storm);
        assert_eq!(storm["ratio"], json!({ "total_ms": 5.0 }));
        let nothing = Reference::default().ratios(Mode::Fanout, &json);
        assert!(nothing.is_empty(), "nothing is divided by nothing: {nothing:?}");
    }
}
