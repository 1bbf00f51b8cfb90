//! An agent as a value: configuration, clock, randomness and platform in, a running agent out (DESIGN 4).

mod disk;
mod drill;

use self::disk::{Disk, store_fault};
use crate::{
    actors::{self, Door, Parts},
    config::AgentConfig,
    decide::{Figures, Me, Rows, WakeKeys},
    platform::Platform,
    status,
};
use branchline_node::{
    config::Reach,
    enrol::{EnrolFault, Enrolled, enrol_or_load},
    identity::{Bundle, outer_client_config},
    link::dial::Dialler,
    metrics::Metrics,
    node::{Addresses, Ambient, EndWatch, NodeEnd, StartFault, Started, exit_code, listen, listen_udp, write_whole},
    process::RunningNode,
    status::Handle as StatusPort,
    store::{Batch, Ended, StoreHandle},
    supervise::Supervision,
    time::NodeTime,
    uplink::{board::Board, path::routes},
};
use branchline_protocol::{document::Kind, id::Role, order::Envelope, wire::DeviceFacts};
use futures_util::future::LocalBoxFuture;
use rustls_pki_types::CertificateDer;
use std::{
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};

/// A server that cannot be reached is asked for so long; then whoever started the agent decides. Ten minutes is longer
/// than a gateway's restart and shorter than anybody waits at a new computer.
const ENROL_PATIENCE_MS: u64 = 600_000;
const ENROL_WAIT_MS_MAX: u64 = 30_000;

/// Actors that do not end in this time are cut.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What an agent cannot know of its own process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentProcess {
    /// Its number, given to scripts as `BRANCHLINE_AGENT_PID`.
    pub pid: u32,
    /// The program that answers to [`crate::shim::main`] with a job's folder as its last argument, and its leading
    /// arguments, e.g. `["/usr/bin/branchline-agent", "shim"]`.
    pub shim: Vec<String>,
}

/// What agents of a load test may be spared, because hundreds of them share processors that in a company each would have to
/// itself. No configuration file says so: a shipped agent is spared nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spared {
    /// It takes orders without checking signature, proof and arguments.
    pub verification: bool,
    /// Its journal and spool are in memory while it runs, and written down when it stops in good order; the identity is on disk.
    pub journal: bool,
}

/// Starts agents.
pub struct Agent;

/// An agent that runs, on the arbiter that started it.
pub struct RunningAgent {
    started: Started,
    end: EndWatch,
    figures: watch::Receiver<Figures>,
    metrics: Metrics,
    supervision: Supervision,
    parts: Arc<Parts>,
    disk: Disk,
    watcher: JoinHandle<()>,
    status: Option<StatusPort>,
}

impl Agent {
    /// Enrols if it has no identity yet, opens the store, starts the actors on the calling thread's arbiter, and writes
    /// `node.json`. Link and inventory come up by themselves afterwards.
    ///
    /// # Errors
    /// `bad_bundle`, `cannot_register_offline` after ten minutes without the server, the server's own refusal at once,
    /// `state_in_use`, `other_node`, `newer_format`, or what the system says. Nothing half-made is left (ENR-2).
    pub async fn start(
        config: AgentConfig,
        ambient: Ambient,
        platform: Arc<dyn Platform>,
        process: AgentProcess,
    ) -> Result<RunningAgent, StartFault> {
        Agent::start_spared(config, ambient, platform, process, Spared::default()).await
    }

    /// The same, spared work; for load tests.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn start_spared(
        config: AgentConfig,
        ambient: Ambient,
        platform: Arc<dyn Platform>,
        process: AgentProcess,
        spared: Spared,
    ) -> Result<RunningAgent, StartFault> {
        Agent::start_at(config, ambient, platform, process, spared, std::future::ready(())).await
    }

    /// The same, and enrolled with its store open it waits for `begin` before it starts an actor: many then dial together.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn start_at(
        config: AgentConfig,
        ambient: Ambient,
        platform: Arc<dyn Platform>,
        process: AgentProcess,
        spared: Spared,
        begin: impl Future<Output = ()>,
    ) -> Result<RunningAgent, StartFault> {
        let (shim, shim_args) = process.shim.split_first().ok_or_else(|| {
            StartFault::new(exit_code::CONFIGURATION, "no_shim", "no program was given that runs jobs")
        })?;
        make_folder(&config.state_dir)?;
        let bundle = read_bundle(&config.bundle)?;
        let first_trust = bundle.trust_document().map_err(|e| bad_bundle(e.to_string()))?;
        let time = NodeTime::new(ambient.clock.clone());
        let reach = config.reach;
        // Before anything that a taken port would make useless, an enrolment say.
        let private = config.private.map(|address| listen("the private port", address)).transpose()?;
        let dialler = dialler(&config, &bundle, &time, &ambient)?;
        let (facts, mut capabilities, boot) = declared(platform.clone()).await?;
        // Whether a machine was started again is judged by what tells its lives apart.
        if !config.restart || boot.is_none() {
            capabilities.retain(|word| word != crate::capabilities::RESTART);
        }
        let facts = DeviceFacts {
            name: config.name.clone(),
            host_name: facts.host_name,
            platform: facts.platform,
            capabilities: capabilities.clone(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            addresses: here(private.as_ref()),
        };
        let enrolled = enrol(&config, &bundle, reach, &dialler, facts, &time, &ambient).await?;
        let Enrolled { identity, documents } = enrolled;
        let subject = &identity.subject;
        if (subject.role, &subject.tenant) != (Role::Agent, &bundle.tenant) {
            let message = "the identity in the state folder is not this tenant's agent; use another folder";
            return Err(StartFault::new(exit_code::STATE, "other_node", message));
        }
        let me = Me {
            tenant: bundle.tenant.clone(),
            node: subject.node,
            epoch: subject.epoch,
            site: bundle.site.clone(),
            root: bundle.root_key,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            contact: config.contact,
            platform: platform.name(),
            capabilities,
            pid: process.pid,
            signer: Arc::new(identity.key.signer()),
            unverified: spared.verification,
        };
        let wake = door(&config);
        let metrics = Metrics::new();
        let (disk, incarnation) = Disk::open(&config.state_dir, &identity, &ambient, spared.journal).await?;
        let parts = Parts {
            me,
            bundle,
            first_trust,
            identity,
            reach,
            probe_ms: config.probe_interval_s * 1_000,
            board: Board::new(&metrics),
            quotas: config.quotas,
            dialler,
            store: disk.store().clone(),
            incarnation,
            // Where the platform cannot tell, each process counts as a start of the machine.
            boot: boot.unwrap_or_else(|| format!("process {incarnation}")),
            time,
            ambient,
            metrics,
            tools: actors::Tools {
                platform,
                jobs: config.state_dir.join("jobs"),
                shim: PathBuf::from(shim),
                shim_args: shim_args.to_vec(),
            },
            figures: watch::channel(Figures::default()).0,
            uplink: Default::default(),
            keeper: Default::default(),
            wake,
            first_core: Mutex::new(None),
            config: Mutex::new(None),
        };
        // Whatever fails from here on closes the store again, so that a second try can open it.
        match run(&config, parts, disk.clone(), documents, private, begin).await {
            Ok(running) => Ok(running),
            Err(fault) => {
                disk.stop().await;
                Err(fault)
            }
        }
    }
}

/// Where it can be asked from its own machine: its certificate vouches for that address, and for none of elsewhere.
fn here(private: Option<&TcpListener>) -> Vec<String> {
    let address = private.and_then(|listener| listener.local_addr().ok());
    address.filter(|address| address.ip().is_loopback()).map(|address| address.to_string()).into_iter().collect()
}

async fn run(
    config: &AgentConfig,
    parts: Parts,
    disk: Disk,
    documents: Vec<(Kind, Envelope)>,
    private: Option<TcpListener>,
    begin: impl Future<Output = ()>,
) -> Result<RunningAgent, StartFault> {
    let parts = recover(Arc::new(parts), documents).await?;
    let (metrics, figures) = (parts.metrics.clone(), parts.figures.subscribe());
    let id = parts.me.node;
    let hears = parts.wake.socket.as_ref().and_then(|socket| socket.local_addr().ok());
    let addresses = Addresses::from_iter(hears.map(|address| ("wake".to_owned(), address)));
    let mut started = Started { id, name: config.name.clone(), addresses };
    let fault = |e: String| StartFault::new(exit_code::STATE, "private_port", e);
    let status = match private {
        None => None,
        Some(listener) => {
            let address = listener.local_addr().map_err(|e| fault(e.to_string()))?;
            started.addresses.insert("private".into(), address);
            Some(status::serve(listener, &parts).map_err(fault)?)
        }
    };
    begin.await;
    let supervision = actors::start(parts.clone()).await;
    let fault = |e: String| StartFault::new(exit_code::SUPERVISION, "not_started", e);
    let supervision = supervision.map_err(|e| fault(e.to_string()))?;
    let text = serde_json::to_vec(&started).map_err(|e| fault(e.to_string()))?;
    if let Err(e) = write_whole(&config.state_dir.join("node.json"), &text) {
        let _ = supervision.stop(STOP_WITHIN).await;
        return Err(state_fault(&config.state_dir, &e));
    }
    let (ended, end) = watch::channel(None);
    let watcher = actix_rt::spawn(watch_end(supervision.clone(), disk.store().clone(), ended));
    Ok(RunningAgent { started, end, figures, metrics, supervision, parts, disk, watcher, status })
}

impl RunningAgent {
    /// What it shows of itself.
    pub fn figures(&self) -> watch::Receiver<Figures> {
        self.figures.clone()
    }

    /// Its counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How often its store synced the disk, as it goes on counting.
    pub fn fsyncs(&self) -> Arc<AtomicU64> {
        self.disk.store().fsync_counter()
    }

    /// The keys that wake it, for tests.
    pub fn wake_keys(&self) -> WakeKeys {
        self.parts.wake.keys.borrow().clone()
    }

    /// The notice that it would send now, and where to, for tests; none while no parent hears any.
    pub fn notice(&self, counter: u64) -> Option<(SocketAddr, Vec<u8>)> {
        actors::notice(&self.parts, counter).map(|(to, bytes)| (to, bytes.to_vec()))
    }

    /// The state of its actors.
    pub fn supervision(&self) -> &Supervision {
        &self.supervision
    }
}

impl RunningNode for RunningAgent {
    fn started(&self) -> &Started {
        &self.started
    }

    fn end(&self) -> EndWatch {
        self.end.clone()
    }

    fn stop(self) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            if let Some(status) = self.status {
                status.stop(false).await;
            }
            // Not at a fault, only here: a part that is rebuilt says nothing of the machine.
            let (stopped, ()) = tokio::join!(self.supervision.stop(STOP_WITHIN), actors::say_farewell(&self.parts));
            match stopped {
                Ok(report) if !report.is_clean() => tracing::warn!(?report, "not everything stopped in good order"),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the supervisor was gone before the stop"),
            }
            self.watcher.abort();
            self.disk.stop().await;
        })
    }
}

/// The agent as a process of its own, until a signal or its own end; the exit code. `shim` is as in [`AgentProcess`].
pub fn run_config(path: &Path, shim: Vec<String>) -> i32 {
    let path = path.to_owned();
    branchline_node::process::run_process(move || async move {
        let config = AgentConfig::load(&path)
            .map_err(|mistakes| StartFault::new(exit_code::CONFIGURATION, "bad_configuration", mistakes.to_string()))?;
        let process = AgentProcess { pid: std::process::id(), shim };
        Agent::start(config, Ambient::system(), crate::platform::host(), process).await
    })
}

async fn watch_end(supervision: Supervision, store: StoreHandle, ended: watch::Sender<Option<NodeEnd>>) {
    let end = tokio::select! {
        // A store that failed takes the keeper with it: the store is the cause.
        biased;
        stopped = store.stopped() => match stopped {
            Ended::Failed(fault) => NodeEnd { exit_code: exit_code::STORE, first_fault: fault.to_string() },
            Ended::Asked => return,
        },
        end = supervision.must_end() => {
            let first_fault = end.first_fault.map_or_else(|| end.child.clone(), |f| format!("{}: {}", end.child, f.text));
            NodeEnd { exit_code: end.exit_code, first_fault }
        }
    };
    ended.send_replace(Some(end));
}

async fn recover(parts: Arc<Parts>, documents: Vec<(Kind, Envelope)>) -> Result<Arc<Parts>, StartFault> {
    let unreadable = |e: String| StartFault::new(exit_code::STATE, "state_unreadable", e);
    let of = parts.clone();
    let work = move || {
        let rows = Rows::read(&of.store).map_err(|e| e.to_string())?;
        of.recover(&rows).map_err(|e| e.to_string())
    };
    let recovered = tokio::task::spawn_blocking(work).await.map_err(|e| unreadable(e.to_string()))?;
    let mut core = recovered.map_err(unreadable)?;
    let mut batch = Batch::new();
    core.adopt(&documents, &mut batch);
    parts.store.commit_wait(batch).await.map_err(|e| store_fault(&e))?;
    let uplink = parts.uplink_config(core.documents());
    parts.keep_uplink_config(uplink.map_err(|e| bad_bundle(e.to_string()))?);
    *parts.first_core.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(core);
    Ok(parts)
}

async fn enrol(
    config: &AgentConfig,
    bundle: &Bundle,
    reach: Reach,
    dialler: &Dialler,
    facts: DeviceFacts,
    time: &NodeTime,
    ambient: &Ambient,
) -> Result<Enrolled, StartFault> {
    let folder = config.state_dir.join("identity");
    let ways = routes(&bundle.upstreams, reach);
    let begun = ambient.clock.mono();
    let mut wait_ms = 1_000;
    loop {
        let fault = match enrol_or_load(&folder, bundle, &ways, dialler, facts.clone(), time).await {
            Ok(enrolled) => return Ok(enrolled),
            Err(fault) => fault,
        };
        let asked_to_wait = match &fault {
            EnrolFault::Offline(_) => 0,
            EnrolFault::Refused(refusal) if refusal.retry_after_ms.is_some() => refusal.retry_after_ms.unwrap_or(0),
            _ => return Err(enrol_fault(fault)),
        };
        let wait = (wait_ms * (750 + ambient.random.up_to(500)) / 1_000).max(asked_to_wait);
        if ambient.clock.mono().since(begun).saturating_add(wait) > ENROL_PATIENCE_MS {
            return Err(enrol_fault(fault));
        }
        tracing::warn!(name = %config.name, %fault, wait_ms = wait, "not enrolled yet");
        tokio::time::sleep(Duration::from_millis(wait)).await;
        wait_ms = (wait_ms * 2).min(ENROL_WAIT_MS_MAX);
    }
}

fn enrol_fault(fault: EnrolFault) -> StartFault {
    let (exit, code) = match &fault {
        EnrolFault::Bundle(_) | EnrolFault::BundleFile(..) => (exit_code::CONFIGURATION, "bad_bundle"),
        EnrolFault::NoToken => (exit_code::ENROLMENT, "no_token"),
        EnrolFault::Offline(_) => (exit_code::ENROLMENT, "cannot_register_offline"),
        EnrolFault::Refused(refusal) => (exit_code::ENROLMENT, refusal.code.as_str()),
        EnrolFault::Identity(_) => (exit_code::STATE, "bad_identity"),
    };
    StartFault::new(exit, code, fault.to_string())
}

type Declared = (crate::platform::HostFacts, Vec<String>, Option<String>);

async fn declared(platform: Arc<dyn Platform>) -> Result<Declared, StartFault> {
    let ask = move || (platform.facts(), platform.capabilities(), platform.boot());
    let asked = tokio::task::spawn_blocking(ask).await;
    asked.map_err(|e| StartFault::new(exit_code::STATE, "platform", format!("asking the platform failed: {e}")))
}

fn bad_bundle(why: String) -> StartFault {
    StartFault::new(exit_code::CONFIGURATION, "bad_bundle", format!("{why}; ask for a new bundle"))
}

fn read_bundle(path: &Path) -> Result<Bundle, StartFault> {
    let text = fs::read_to_string(path).map_err(|e| bad_bundle(format!("read {}: {e}", path.display())))?;
    let bundle = Bundle::open(&text).map_err(|e| bad_bundle(format!("{}: {e}", path.display())))?;
    if bundle.role != Role::Agent {
        return Err(bad_bundle(format!("{} is for a {}, not for an agent", path.display(), bundle.role)));
    }
    Ok(bundle)
}

fn dialler(config: &AgentConfig, bundle: &Bundle, time: &NodeTime, ambient: &Ambient) -> Result<Dialler, StartFault> {
    let roots: Vec<CertificateDer<'_>> = bundle.outer_roots.iter().map(|r| CertificateDer::from(r.to_vec())).collect();
    let outer = match roots.is_empty() {
        true => None,
        false => Some(outer_client_config(&roots, Arc::new(time.clone())).map_err(|e| bad_bundle(e.to_string()))?),
    };
    let (bind_source, link_token) = (config.bind_source, bundle.link_token.clone());
    Ok(Dialler { bind_source, outer, link_token, ..Dialler::new(ambient.resolver.clone()) })
}

/// Where wakes are heard. A port that another program has costs waits until the next poll, not the device its work.
fn door(config: &AgentConfig) -> Door {
    let own = config.bind_source.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let socket = config.wake_port.and_then(|port| match listen_udp("the wake port", (own, port).into()) {
        Ok(socket) => Some(socket),
        Err(fault) => {
            tracing::warn!(name = %config.name, %fault, "this device cannot be woken; it polls");
            None
        }
    });
    Door { socket, own, keys: watch::channel(WakeKeys::default()).0, farewell: watch::channel(None).0 }
}

fn state_fault(path: &Path, error: &io::Error) -> StartFault {
    let message = format!("the state folder {} cannot be used: {error}", path.display());
    StartFault::new(exit_code::STATE, "state_folder", message)
}

fn make_folder(path: &Path) -> Result<(), StartFault> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(path).map_err(|e| state_fault(path, &e))
}
