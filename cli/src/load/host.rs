//! Many whole agents in one process: each with its own keys, link, journal and source address. Only their platform is
//! virtual: a job is answered at once.

use super::{
    branch::Branch,
    control::Control,
    drill::{self, Part},
    process::AGENTS_THREAD,
};
use crate::{failure::Failure, up::generate::quoted};
use actix_rt::{Arbiter, ArbiterHandle};
use branchline_agent::{
    Agent, AgentConfig, AgentProcess, RunningAgent, Spared,
    platform::{VirtualPlatform, Wand},
};
use branchline_node::{
    config::{Mistakes, Reach, Reader, load},
    node::{Addresses, Ambient, EndWatch, NodeEnd, StartFault, Started, exit_code, listen, write_whole},
    process::{RunningNode, allow_files, run_process},
};
use branchline_protocol::wire::Contact;
use futures_util::{StreamExt, TryStreamExt, future::LocalBoxFuture, stream};
use std::{
    collections::BTreeMap,
    io::Read,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
};

/// Arbiters that share the agents.
const ARBITERS: usize = 2;
/// Agents that start at once on each: together as many enrolments as a relay passes on (DESIGN 3).
const STARTS_AT_ONCE: usize = 4;
/// Threads of each that may wait for the disk. They stay, so that what they cost stays to be read.
const BLOCKING_THREADS: usize = 8;
const BLOCKING_LIFE: Duration = Duration::from_secs(86_400);
/// Packages in each one's inventory: a small desktop.
pub const PACKAGES: usize = 300;
/// What a simulated job prints.
const OUTPUT: &[u8] = &[b'.'; 256];
/// Open files each agent needs: link, store, lock, and what it opens meanwhile.
const FILES_EACH: u64 = 8;
/// The host's own open files.
const FILES: u64 = 256;
/// An answer about figures that takes longer is none.
const FIGURES_TIME_OUT: Duration = Duration::from_secs(10);

/// Runs the agents of a configuration file until a signal. `exe` stands where an agent names its shim.
pub fn run(config: &Path, exe: &Path) -> i32 {
    let (config, shim) = (config.to_path_buf(), vec![exe.display().to_string(), "shim".into()]);
    run_process(move || async move {
        let config = Config::read(&config)
            .map_err(|m| StartFault::new(exit_code::CONFIGURATION, "bad_configuration", m.to_string()))?;
        Branch::start(config, shim).await
    })
}

/// Who the agents are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Config {
    pub(super) state_dir: PathBuf,
    pub(super) bundle: PathBuf,
    /// The configuration of a relay that lives in the same process. The agents' bundle may come after its start.
    pub(super) relay: Option<PathBuf>,
    /// How many packages each agent's inventory has.
    packages: usize,
    /// Whether they wait with their first inventory for the leader's word.
    held: bool,
    /// Where figures are told to whoever connects; on loopback, without TLS: they name nobody.
    figures: SocketAddr,
    spared: Spared,
    /// Who says when its agents dial; without one they do at once.
    leader: Option<SocketAddr>,
    /// Each agent hears wakes, on a port of its own.
    wake: bool,
    pub(super) agents: Vec<(String, IpAddr)>,
}

impl Config {
    pub(super) fn read(path: &Path) -> Result<Config, Mistakes> {
        load(path, Config::from_reader)
    }

    fn from_reader(r: &mut Reader<'_>) -> Config {
        let config = Config {
            state_dir: r.required("state_dir"),
            bundle: r.required("bundle"),
            relay: r.optional("relay"),
            packages: r.number_or("packages", PACKAGES, 0..=10_000),
            held: r.or("held", false),
            figures: r.or("figures", SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            spared: Spared { verification: r.or("unverified", false), journal: r.or("volatile", false) },
            leader: r.optional("leader"),
            wake: r.or("wake", false),
            agents: r.tables("agents", |t| (t.required("name"), t.or("address", Ipv4Addr::LOCALHOST.into()))),
        };
        if config.agents.is_empty() {
            r.mistake("agents", "missing", "a host without agents is none");
        }
        config
    }
}

/// What a configuration file says.
pub struct Wanted<'a> {
    /// The agents' folders are in it.
    pub state_dir: &'a Path,
    /// With which they enrol.
    pub bundle: &'a Path,
    /// The configuration of a relay in the same process.
    pub relay: Option<&'a Path>,
    /// Packages in each inventory.
    pub packages: usize,
    /// Whether the first inventories wait for the leader's word.
    pub held: bool,
    /// Who leads them.
    pub leader: Option<SocketAddr>,
    /// Where figures are told.
    pub figures: SocketAddr,
    /// What the agents are spared.
    pub spared: Spared,
    /// Their names and source addresses.
    pub agents: &'a [(String, Ipv4Addr)],
}

/// The text of a configuration file.
pub fn config_text(wanted: &Wanted<'_>) -> Result<String, Failure> {
    let Wanted { state_dir, bundle, relay, packages, held, leader, figures, spared, agents } = *wanted;
    let path = |path: &Path| {
        let not_utf_8 = || Failure::wrong("bad_state", format!("{} is not UTF-8; use another --state", path.display()));
        path.to_str().map(quoted).ok_or_else(not_utf_8)
    };
    let mut text = format!("state_dir = {}\nbundle = {}\nfigures = \"{figures}\"\n", path(state_dir)?, path(bundle)?);
    text += &format!("packages = {packages}\nheld = {held}\n");
    if let Some(leader) = leader {
        text += &format!("leader = \"{leader}\"\n");
    }
    if let Some(relay) = relay {
        text += &format!("relay = {}\n", path(relay)?);
    }
    for (key, spared) in [("unverified", spared.verification), ("volatile", spared.journal)] {
        text += &format!("{key} = {spared}\n");
    }
    for (name, ip) in agents {
        text += &format!("[[agents]]\nname = {}\naddress = \"{ip}\"\n", quoted(name));
    }
    Ok(text)
}

/// The arguments with which this executable is a host.
pub fn command(config: &Path) -> Result<Vec<String>, Failure> {
    let config = config.to_str().ok_or_else(|| Failure::wrong("bad_state", "the state folder's path is not UTF-8"))?;
    Ok(["agent-host", "--config", config].map(str::to_string).to_vec())
}

/// Asks a host how often its agents synced their disks.
pub fn fsyncs(host: SocketAddr) -> Result<u64, Failure> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&host, FIGURES_TIME_OUT)?;
        stream.set_read_timeout(Some(FIGURES_TIME_OUT))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let unreachable = |e: &dyn std::fmt::Display| Failure::unreachable(format!("no figures from {host}: {e}"));
    ask().map_err(|e| unreachable(&e))?.trim().parse().map_err(|e| unreachable(&e))
}

/// What an arbiter tells once its agents run.
type Told = Result<(Started, Vec<Arc<AtomicU64>>), StartFault>;

/// The agents of one arbiter.
struct Hand {
    arbiter: ArbiterHandle,
    stop: oneshot::Sender<()>,
    stopped: oneshot::Receiver<()>,
}

/// Running agents.
pub(super) struct Host {
    started: Started,
    end: EndWatch,
    hands: Vec<Hand>,
    figures: JoinHandle<()>,
}

/// Lets this process open as many files as its agents need, and a relay that they all dial.
pub(super) fn allow_files_for(agents: usize) {
    let wanted = FILES + FILES_EACH * agents as u64;
    let allowed = allow_files();
    if allowed < wanted {
        tracing::warn!(wanted, allowed, "so many files cannot be open at once; agents may fail");
    }
}

/// A thread for agents, which bears their name.
#[allow(unsafe_code)]
fn arbiter() -> Arbiter {
    Arbiter::with_tokio_rt(|| {
        let name = std::ffi::CString::new(AGENTS_THREAD).expect("a name without zeros");
        // SAFETY: the kernel copies up to 16 bytes from a pointer that is valid for the call, and ends at its zero.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().thread_name(AGENTS_THREAD);
        runtime.max_blocking_threads(BLOCKING_THREADS).thread_keep_alive(BLOCKING_LIFE);
        runtime.build().expect("a runtime for agents")
    })
}

/// Starts the agents and, when all run, says so in `node.json`.
pub(super) async fn start(config: Config, shim: Vec<String>) -> Result<Host, StartFault> {
    allow_files_for(config.agents.len());
    // Where every branch is a process, cores are shared already.
    let arbiters = if config.relay.is_some() { 1 } else { ARBITERS };
    let figures = listen("figures", config.figures)?;
    let (ended, end) = watch::channel(None);
    let ended = Arc::new(ended);
    let (tell, mut told) = mpsc::channel::<Told>(arbiters);
    let mut hands = Vec::new();
    let name = config.state_dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let wand = Wand::closed();
    if !config.held {
        wand.open();
    }
    let hands_at_work = arbiters.min(config.agents.len());
    let control = Control::start(config.leader, name, (config.agents.len(), hands_at_work), wand.clone());
    for hand in 0..arbiters {
        let mine = |(i, a): (usize, &(String, IpAddr))| (i % arbiters == hand).then(|| (i as u64, a.clone()));
        let agents: Vec<_> = config.agents.iter().enumerate().filter_map(mine).collect();
        if agents.is_empty() {
            continue;
        }
        let (stop, asked) = oneshot::channel();
        let (done, stopped) = oneshot::channel();
        let (config, shim, tell, ended) = (config.clone(), shim.clone(), tell.clone(), ended.clone());
        let (control, wand) = (control.clone(), wand.clone());
        let part = Part { hand, hands: hands_at_work };
        let arbiter = arbiter().handle();
        arbiter.spawn_fn(move || {
            actix_rt::spawn(async move {
                tend(&config, agents, shim, tell, ended, (asked, control, wand, part)).await;
                // Nobody waits for it any more if the process ends by itself.
                let _ = done.send(());
            });
        });
        hands.push(Hand { arbiter, stop, stopped });
    }
    drop(tell);
    let (mut first, mut fsyncs) = (None, Vec::new());
    while let Some(told) = told.recv().await {
        let (started, counters) = told?;
        first.get_or_insert(started);
        fsyncs.extend(counters);
    }
    let unstarted = || StartFault::new(exit_code::SUPERVISION, "not_started", "an arbiter ended while agents started");
    if fsyncs.len() != config.agents.len() {
        return Err(unstarted());
    }
    let fault = |e: std::io::Error| {
        StartFault::new(exit_code::STATE, "bad_state", format!("{}: {e}", config.state_dir.display()))
    };
    let address = figures.local_addr().map_err(fault)?;
    let figures = tokio::net::TcpListener::from_std(figures).map_err(fault)?;
    // A journal in memory commits and syncs nothing.
    let synced = if config.spared.journal { Vec::new() } else { fsyncs };
    let figures = actix_rt::spawn(tell_figures(figures, synced));
    let addresses = Addresses::from([("private".to_string(), address)]);
    // Its id is its first agent's: a host is no node.
    let started = Started { id: first.ok_or_else(unstarted)?.id, name: "agents".into(), addresses };
    let text = serde_json::to_vec(&started).expect("plain data");
    write_whole(&config.state_dir.join("node.json"), &text).map_err(fault)?;
    Ok(Host { started, end, hands, figures })
}

impl RunningNode for Host {
    fn started(&self) -> &Started {
        &self.started
    }

    fn end(&self) -> EndWatch {
        self.end.clone()
    }

    fn stop(self) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            self.figures.abort();
            let (stops, rest): (Vec<_>, Vec<_>) =
                self.hands.into_iter().map(|h| (h.stop, (h.arbiter, h.stopped))).unzip();
            for stop in stops {
                // One whose agents ended already has nothing to stop.
                let _ = stop.send(());
            }
            for (arbiter, stopped) in rest {
                let _ = stopped.await;
                arbiter.stop();
            }
        })
    }
}

/// Starts its agents, tells so, keeps them until it is asked to stop.
async fn tend(
    config: &Config,
    agents: Vec<(u64, (String, IpAddr))>,
    shim: Vec<String>,
    tell: mpsc::Sender<Told>,
    ended: Arc<watch::Sender<Option<NodeEnd>>>,
    (mut asked, mut control, wand, part): (oneshot::Receiver<()>, Control, Arc<Wand>, Part),
) {
    let (count, starts) = (agents.len(), Arc::new(Semaphore::new(STARTS_AT_ONCE)));
    let starting = agents.into_iter().map(|(number, agent)| {
        let (starts, control, shim) = (starts.clone(), control.clone(), shim.clone());
        let wand = wand.clone();
        async move {
            let turn = starts.acquire_owned().await;
            let begin = async {
                drop(turn);
                control.may_go().await;
            };
            one(config, number, agent, (shim, wand), begin).await
        }
    });
    let running: Result<Vec<RunningAgent>, StartFault> =
        stream::iter(starting).buffer_unordered(count).try_collect().await;
    let running = match running {
        Ok(running) => running,
        Err(fault) => {
            // Without a listener the host is gone already.
            let _ = tell.send(Err(fault)).await;
            return;
        }
    };
    for agent in &running {
        let (mut end, name, ended) = (agent.end(), agent.started().name.clone(), ended.clone());
        actix_rt::spawn(async move {
            if let Ok(Some(mut end)) = end.wait_for(Option::is_some).await.map(|e| e.clone()) {
                end.first_fault = format!("{name}: {}", end.first_fault);
                ended.send_replace(Some(end));
            }
        });
    }
    if let Some(first) = running.first() {
        let counters = running.iter().map(RunningAgent::fsyncs).collect();
        let _ = tell.send(Ok((first.started().clone(), counters))).await;
    }
    drop(tell);
    let mut running: BTreeMap<String, RunningAgent> =
        running.into_iter().map(|agent| (agent.started().name.clone(), agent)).collect();
    let mut drilled = 0;
    loop {
        let said = tokio::select! {
            // A host that is gone asks as well.
            _ = &mut asked => break,
            said = control.said() => said,
        };
        let leaving = said.stop.iter().filter_map(|name| running.remove(name)).collect::<Vec<_>>();
        stream::iter(leaving).for_each_concurrent(None, RunningNode::stop).await;
        if let Some((number, task, begun)) = said.drill.filter(|(number, ..)| *number != drilled) {
            drilled = number;
            let agents: Vec<&RunningAgent> = running.values().collect();
            tokio::select! {
                _ = &mut asked => break,
                report = drill::carry_out(task, begun, part, &agents) => control.report(report).await,
            }
        }
    }
    stream::iter(running.into_values()).for_each_concurrent(None, RunningNode::stop).await;
}

async fn one(
    config: &Config,
    number: u64,
    (name, address): (String, IpAddr),
    (shim, wand): (Vec<String>, Arc<Wand>),
    begin: impl Future<Output = ()>,
) -> Result<RunningAgent, StartFault> {
    let platform = VirtualPlatform::new(number, config.packages).with_output(OUTPUT.into()).with_wand(wand);
    let agent = AgentConfig {
        state_dir: config.state_dir.join(&name),
        name: name.clone(),
        bundle: config.bundle.clone(),
        bind_source: Some(address),
        reach: Reach::Any,
        probe_interval_s: 900,
        // Hundreds of them share this process.
        private: None,
        contact: Contact::Persistent,
        wake_port: config.wake.then_some(0),
        quotas: branchline_node::uplink::spool::Quotas::AGENT,
        restart: false,
    };
    let process = AgentProcess { pid: std::process::id(), shim };
    let started = Agent::start_at(agent, Ambient::system(), Arc::new(platform), process, config.spared, begin).await;
    started.map_err(|fault| StartFault { message: format!("{name}: {}", fault.message), ..fault })
}

/// Writes the sum to whoever connects.
async fn tell_figures(listener: tokio::net::TcpListener, fsyncs: Vec<Arc<AtomicU64>>) {
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let sum: u64 = fsyncs.iter().map(|n| n.load(Ordering::SeqCst)).sum();
                // One who asks and goes needs no answer.
                let _ = stream.write_all(format!("{sum}\n").as_bytes()).await;
            }
            Err(error) => {
                tracing::warn!(%error, "figures cannot be told");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_configuration_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agents.toml");
        let agents =
            [("pc-1".to_string(), Ipv4Addr::new(127, 70, 1, 2)), ("pc-2".into(), Ipv4Addr::new(127, 70, 1, 3))];
        let figures = "127.70.1.1:0".parse().unwrap();
        let spared = Spared { verification: true, journal: false };
        let (state_dir, bundle, relay) = (Path::new("/s \"x\""), Path::new("/b"), Some(Path::new("/r")));
        let leader = Some("127.70.1.9:7".parse().unwrap());
        let wanted =
            Wanted { state_dir, bundle, relay, packages: 7, held: true, leader, figures, spared, agents: &agents };
        let text = config_text(&wanted).unwrap();
        std::fs::write(&file, text).unwrap();
        let read = Config::read(&file).unwrap();
        let agents = agents.map(|(name, ip)| (name, IpAddr::from(ip))).to_vec();
        let (state_dir, bundle, relay) = (state_dir.into(), bundle.into(), relay.map(PathBuf::from));
        assert_eq!(
            read,
            Config { state_dir, bundle, relay, packages: 7, held: true, figures, spared, leader, wake: false, agents }
        );
        std::fs::write(&file, "state_dir = 's'\nbundle = 'b'\nagent = 1").unwrap();
        let told = Config::read(&file).unwrap_err().to_string();
        assert!(told.contains("a host without agents") && told.contains("agent"), "{told}");
    }

    #[tokio::test]
    async fn figures_are_the_sum_over_all_agents() {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let counters = [3, 4].map(|n| Arc::new(AtomicU64::new(n))).to_vec();
        let task = tokio::spawn(tell_figures(listener, counters));
        assert_eq!(tokio::task::spawn_blocking(move || fsyncs(address)).await.unwrap().unwrap(), 7);
        task.abort();
    }
}
