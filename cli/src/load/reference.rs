//! What bare TLS takes on this machine, measured in the same run: as many connections with certificates on both ends, a
//! question and an answer on each, nothing signed and nothing stored; what such a connection takes in memory; and what this
//! disk takes for a synced write. Beside it stands what Branchline adds.
//!
//! ```text
//! hub (a thread) ══ mutual TLS over loopback ══ leaves (a thread)      256 bytes down, 512 up, on every connection
//!                                                                      (23 KiB up where inventories are measured)
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
/// Bytes of an answer beside inventories: about what the first one of 200 packages takes.
const INVENTORY: usize = 23 * 1_024;
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
    /// Resident bytes of one end of an idle connection: half of what both ends take, which are in this one process.
    pub link_bytes: u64,
    /// Milliseconds of a write of 4 KiB and its sync, the median.
    pub sync_ms: f64,
}

impl Reference {
    /// Measures as many connections and rounds as were asked for, and the disk of this folder.
    pub fn measure(args: &Args, folder: &Path) -> Result<Reference, Failure> {
        host::allow_files_for(args.agents as usize);
        let answer = if args.mode == Mode::Inventory { INVENTORY } else { ANSWER };
        let measured = exchange(args.agents, args.rounds, answer)
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
            "rss_per_link_bytes": self.link_bytes,
            "sync_ms": rounded(self.sync_ms),
        });
    }

    /// For people, beside what a mode printed.
    pub fn text(&self, mode: Mode, json: &Value) -> String {
        let rows = self.ratios(mode, json).into_iter().map(|(key, ratio)| [key.to_string(), format!("{ratio:.1}")]);
        let bare = table(
            ["BARE TLS", "HANDSHAKES MS", "P50 MS", "P99 MS", "CPU S/1000", "KIB/LINK", "SYNCED WRITE MS"],
            [[
                self.links.to_string(),
                format!("{:.1}", self.handshakes_ms),
                format!("{:.2}", percentile(&self.rounds_ms, 0.5)),
                format!("{:.2}", percentile(&self.rounds_ms, 0.99)),
                format!("{:.4}", self.cpu_s_per_1000),
                format!("{:.1}", self.link_bytes as f64 / 1_024.0),
                format!("{:.2}", self.sync_ms),
            ]],
        );
        format!("\n{bare}\n{}", table(["TIMES BARE TLS", ""], rows))
    }

    fn ratios(&self, mode: Mode, json: &Value) -> Vec<(&'static str, f64)> {
        let round_ms = percentile(&self.rounds_ms, 0.5);
        let pairs = match mode {
            Mode::Fanout => {
                let parts = json["cpu_s_per_1000"].as_object().into_iter().flat_map(|parts| parts.values());
                let cpu: f64 = parts.filter_map(Value::as_f64).sum();
                vec![
                    ("p50_ms", json["p50_ms"].as_f64(), round_ms),
                    ("p99_ms", json["p99_ms"].as_f64(), percentile(&self.rounds_ms, 0.99)),
                    ("cpu_s_per_1000", Some(cpu), self.cpu_s_per_1000),
                ]
            }
            Mode::Storm => vec![("total_ms", json["total_ms"].as_f64(), self.handshakes_ms)],
            Mode::Links => ["relay", "gateway", "server"]
                .map(|part| (part, json["rss_per_link_bytes"][part].as_f64(), self.link_bytes as f64))
                .to_vec(),
            Mode::Inventory => {
                let of = |step: &str| json[step]["total_ms"].as_f64();
                vec![
                    ("first_full_ms", of("first_full"), round_ms),
                    ("reconnect_ms", of("reconnect"), self.handshakes_ms),
                ]
            }
        };
        let ratio = |(key, ours, bare): (_, Option<f64>, f64)| Some((key, ours.filter(|_| bare > 0.0)? / bare));
        pairs.into_iter().filter_map(ratio).collect()
    }
}

#[allow(clippy::disallowed_methods, reason = "a stopwatch decides nothing, and the node's clock has no microseconds")]
fn now() -> Instant {
    Instant::now()
}

pub(super) fn ms_since(then: Instant) -> f64 {
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

fn exchange(links: u32, rounds: u32, answer: usize) -> Result<Reference, Fault> {
    let (hub, leaf, name) = tls()?;
    let begin = own_rss()?;
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let leaves = std::thread::Builder::new().name("leaves".into()).spawn(move || {
        alone()?.block_on(tokio::task::LocalSet::new().run_until(leaves(leaf, name, address, links, answer)))
    })?;
    let ask = ask(hub, listener, Work { links, rounds, answer, begin });
    let measured = alone()?.block_on(tokio::task::LocalSet::new().run_until(ask));
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
    bytes: usize,
) -> Result<(), Fault> {
    // One for all, so that no link seems to need it.
    let bytes: Arc<[u8]> = vec![7; bytes].into();
    let at_once = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..links {
        let (connector, name, bytes) = (TlsConnector::from(config.clone()), name.clone(), bytes.clone());
        let turn = at_once.clone().acquire_owned().await?;
        tasks.spawn_local(async move {
            let tcp = TcpStream::connect(hub).await?;
            tcp.set_nodelay(true)?;
            let stream = timeout(PATIENCE, connector.connect(name, tcp)).await??;
            drop(turn);
            answer(stream, &bytes).await
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn answer(mut stream: client::TlsStream<TcpStream>, bytes: &[u8]) -> Result<(), Fault> {
    let mut question = [0; QUESTION];
    // Its end is how the hub says that it is over.
    while stream.read_exact(&mut question).await.is_ok() {
        stream.write_all(bytes).await?;
        stream.flush().await?;
    }
    Ok(())
}

/// What is asked of the hub.
struct Work {
    links: u32,
    rounds: u32,
    /// Bytes of each answer.
    answer: usize,
    /// Resident bytes of this process before any connection.
    begin: u64,
}

/// Takes all connections, then asks on each and waits for every answer, again and again.
async fn ask(config: Arc<ServerConfig>, listener: std::net::TcpListener, work: Work) -> Result<Reference, Fault> {
    let Work { links, rounds, answer, begin: empty } = work;
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
    let (mut rounds_ms, mut cpu_s, mut bytes) = (Vec::new(), 0.0, vec![0; answer]);
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
            timeout(PATIENCE, stream.read_exact(&mut bytes)).await??;
        }
        if round >= WARM_UP {
            rounds_ms.push(ms_since(begin));
        }
    }
    let cpu_s = own_cpu_s()? - cpu_s;
    let cpu_s_per_1000 = cpu_s * 1_000.0 / (f64::from(links) * f64::from(rounds));
    let link_bytes = own_rss()?.saturating_sub(empty) / u64::from(links.max(1)) / 2;
    Ok(Reference { links, handshakes_ms, rounds_ms, cpu_s_per_1000, link_bytes, sync_ms: 0.0 })
}

fn own_cpu_s() -> Result<f64, Fault> {
    Ok(process::cpu_s(std::process::id()).map_err(|failure| failure.message)?)
}

fn own_rss() -> Result<u64, Fault> {
    Ok(process::read(std::process::id()).map_err(|failure| failure.message)?.rss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_tls_is_measured_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let reference = exchange(50, 3, ANSWER).unwrap();
        assert_eq!((reference.links, reference.rounds_ms.len()), (50, 3));
        assert!(reference.link_bytes > 0, "{reference:?}");
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
            link_bytes: 4_096,
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
        let mut links = json!({ "rss_per_link_bytes": { "relay": 8_192, "gateway": 4_096, "agents": 9 } });
        reference.put(Mode::Links, &mut links);
        assert_eq!(links["ratio"], json!({ "relay": 2.0, "gateway": 1.0 }));
        assert_eq!(links["reference"]["rss_per_link_bytes"], json!(4_096));
        let mut inventory = json!({ "first_full": { "total_ms": 50.0 }, "reconnect": { "total_ms": 400.0 } });
        reference.put(Mode::Inventory, &mut inventory);
        assert_eq!(inventory["ratio"], json!({ "first_full_ms": 10.0, "reconnect_ms": 2.0 }));
        let nothing = Reference::default().ratios(Mode::Fanout, &json);
        assert!(nothing.is_empty(), "nothing is divided by nothing: {nothing:?}");
    }
}
