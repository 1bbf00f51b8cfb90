//! Starts a server: store, keys, listeners, actor tree, API.

use crate::{
    actors::{
        dispatcher::{Dispatcher, Parts, Statements},
        trunks::{self, Incoming, TrunkRegistry, TrunkSetup},
    },
    api::{self, ApiState},
    backup::{self, DATABASE, ServerBackupFault},
    config::Config,
    domain::{InitWish, Office, OfficeFault, raise_term},
    host::ServerHost,
    steering::Steering,
    store::{Op, SqliteStore, Store, StoreError},
};
use branchline_node::{
    downstream::{
        admission::{Admission, AdmissionConfig, Cap},
        beacon::{BeaconSetup, Beacons},
        door::Door,
        gatekeeper::{Gatekeeper, Meters, SharedGauge},
        listener::Listener,
        live_cap::{Following, LiveCap},
        reception::{Facts, HANDSHAKES_AT_ONCE, Reception, STRANGERS_AT_ONCE},
    },
    enrol::SPLICES_AT_ONCE,
    identity::{https_config, parent_config},
    link::engine::LinkCounters,
    metrics::Metrics,
    node::{Addresses, Ambient, EndWatch, NodeEnd, StartFault, Started, exit_code, listen, listen_udp, write_whole},
    process::RunningNode,
    supervise::{ChildAddr, ChildSpec, Limit, PastIntensity, Supervision, Supervisor, WorkerLimits, WorkerSpec, run},
    time::NodeTime,
};
use branchline_protocol::{
    id::{NodeId, Role, TenantId},
    wire::Preface,
};
use futures_util::future::LocalBoxFuture;
use std::{
    path::Path,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};
use tokio::sync::{Semaphore, watch};

/// The reception of the listener's present generation; trunks reach it here.
type CurrentReception = Arc<RwLock<Option<Arc<Reception>>>>;

/// A server that runs.
pub struct RunningServer {
    started: Started,
    end: EndWatch,
    supervision: Supervision,
    api: actix_web::dev::ServerHandle,
    store: Arc<dyn Store>,
    door: Door,
    _slots: Following,
}

/// Starts servers.
pub struct Server;

fn store_fault(e: StoreError) -> StartFault {
    let code = match &e {
        StoreError::InUse(_) => "state_in_use",
        StoreError::NewerFormat { .. } => "newer_format",
        _ => "store",
    };
    StartFault::new(exit_code::STATE, code, e.to_string())
}

fn office_fault(e: OfficeFault) -> StartFault {
    StartFault::new(exit_code::STATE, "installation", format!("{e}; initialise the state folder, or restore it"))
}

fn mark_fault(e: ServerBackupFault) -> StartFault {
    StartFault::new(exit_code::STATE, e.code(), format!("the mark of a restored folder: {e}"))
}

fn tls_fault(e: impl std::fmt::Display) -> StartFault {
    StartFault::new(exit_code::STATE, "tls", e.to_string())
}

/// Makes the installation in an empty state folder: root key, CA, first trust document per tenant.
pub async fn init(config: &Config, ambient: &Ambient) -> Result<NodeId, StartFault> {
    let (store, office) = open(config, ambient, true).await?;
    store.close().await;
    Ok(office.server_id())
}

async fn open(config: &Config, ambient: &Ambient, init: bool) -> Result<(Arc<dyn Store>, Office), StartFault> {
    let folder = &config.state_dir;
    let cannot =
        |e: std::io::Error| StartFault::new(exit_code::STATE, "state_folder", format!("{}: {e}", folder.display()));
    std::fs::create_dir_all(folder).map_err(cannot)?;
    let store: Arc<dyn Store> = SqliteStore::open(&folder.join(DATABASE)).await.map_err(store_fault)?;
    if let Some(mark) = backup::mark(folder).map_err(mark_fault)? {
        raise_term(&*store, mark, ambient.clock.wall()).await.map_err(office_fault)?;
        backup::unmark(folder).map_err(mark_fault)?;
    }
    let office = if init {
        let api_hosts = vec![config.api.ip().to_string()];
        let wish = InitWish { server_name: config.name.clone(), api_hosts, tenants: config.tenants.clone() };
        Office::open_or_init(folder, store.clone(), ambient.clone(), wish).await
    } else {
        Office::open(folder, store.clone(), ambient.clone()).await
    };
    Ok((store, office.map_err(office_fault)?))
}

impl Server {
    /// Starts a server; it listens when this returns.
    pub async fn start(config: Config, ambient: Ambient) -> Result<RunningServer, StartFault> {
        let link_socket = listen("the link port", config.link)?;
        let trunk_socket = listen("the trunk port", config.trunk)?;
        let api_socket = listen("the api port", config.api)?;
        let notices = config.notice_port.map(|port| listen_udp("the notice port", (config.link.ip(), port).into()));
        let notices = notices.transpose()?;
        let (store, office) = open(&config, &ambient, config.init_if_new).await?;
        let bound = |socket: &std::net::TcpListener| {
            socket.local_addr().map_err(|e| StartFault::new(exit_code::LISTEN, "cannot_listen", e.to_string()))
        };
        let (link, trunk, api_address) = (bound(&link_socket)?, bound(&trunk_socket)?, bound(&api_socket)?);
        let advertise =
            if config.advertise_link.is_empty() { vec![link.to_string()] } else { config.advertise_link.clone() };
        let refused = |r: branchline_protocol::refusal::Refusal| {
            StartFault::new(exit_code::CONFIGURATION, "advertise", r.to_string())
        };
        office.set_advertised(advertise, vec![trunk.to_string()]).await.map_err(refused)?;

        let time = NodeTime::new(ambient.clock.clone());
        let metrics = Metrics::new();
        let (restarts, restarted) = metrics.counted("branchline_restarts_total", &[]);
        let supervision = Supervisor::start(ambient.clock.clone(), Some(restarts));
        let dispatcher: ChildAddr<Dispatcher> = ChildAddr::new();
        let gatekeeper: ChildAddr<Gatekeeper> = ChildAddr::new();
        let statements: Statements = Arc::default();
        let beacons = Beacons::default();
        let (facts, facts_seen) = watch::channel(Facts::default());
        let (admission, live_cap) = admission_config(&config)?;
        let read = |file: &Path| Config::read(file).map(|c| (c.slots, c.allow_above_300));
        let slots = live_cap.follow(config.file.clone(), read, gatekeeper.clone());
        let gauge: SharedGauge = Arc::new(Mutex::new(Admission::new(admission.clone()).gauge()));
        let parts = Parts {
            store: store.clone(),
            office: office.clone(),
            ambient: ambient.clone(),
            time: time.clone(),
            facts: Arc::new(facts),
            statements: statements.clone(),
            gauge: gauge.clone(),
            beacons: beacons.clone(),
            gatekeeper: gatekeeper.clone(),
            restarts: restarted,
            recovering_max_ms: config.recovering_max_s * 1_000,
            metrics: metrics.clone(),
        };
        let add = |e: branchline_node::supervise::SuperviseError| {
            StartFault::new(exit_code::SUPERVISION, "supervision", e.to_string())
        };

        let at = dispatcher.clone();
        let spec = ChildSpec::new("dispatcher", move |guard| {
            let parts = parts.clone();
            at.renew(run(guard, move |_, guard| Dispatcher::new(guard, parts)));
            Ok(())
        });
        supervision.start_child(spec.past(PastIntensity::EndProcess(exit_code::SUPERVISION))).await.map_err(add)?;

        let (at, owner, meters) = (gatekeeper.clone(), dispatcher.clone(), Meters::new(&metrics));
        let (clock, chance, shared, first) = (time.clone(), ambient.clone(), gauge.clone(), AtomicBool::new(true));
        let (seen, in_force) = (facts_seen.clone(), live_cap.clone());
        let spec = ChildSpec::new("gatekeeper", move |guard| {
            let owner = owner.get().ok_or("no dispatcher")?.recipient();
            let admission = in_force.of(&admission);
            let core = if first.swap(false, std::sync::atomic::Ordering::SeqCst) {
                Admission::new(admission)
            } else {
                Admission::recovering(admission, clock.now())
            };
            let (time, ambient, gauge, meters) = (clock.clone(), chance.clone(), shared.clone(), meters.clone());
            let facts = seen.clone();
            let make = move |guard| Gatekeeper::new(guard, core, time, ambient, owner, facts, (gauge, meters));
            at.renew(run(guard, move |_, guard| make(guard)));
            Ok(())
        });
        supervision
            .start_child(spec.needs("dispatcher").past(PastIntensity::EndProcess(exit_code::SUPERVISION)))
            .await
            .map_err(add)?;
        let limits = WorkerLimits { live_max: 100_000, intensity: Limit::default(), past: PastIntensity::Park };
        let sessions =
            WorkerSpec { kind: "session".into(), needs: vec!["dispatcher".into(), "gatekeeper".into()], limits };
        supervision.add_workers(sessions).await.map_err(add)?;

        let notice = notices.as_ref().map(|socket| socket.local_addr()).transpose().map_err(tls_fault)?;
        if let Some(socket) = notices {
            let generation = next_start(&*store).await.map_err(store_fault)?;
            let setup = BeaconSetup::new(time.clone(), beacons.keyring.clone(), generation, &metrics);
            // Without it devices poll: parked, and reported.
            let spec = beacons.child("dispatcher", socket, setup, dispatcher.clone());
            supervision.start_child(spec).await.map_err(add)?;
        }
        let current: CurrentReception = Arc::default();
        let host = Arc::new(ServerHost { office: office.clone(), dispatcher: dispatcher.clone(), statements });
        // Another one after a restore: children offer what is not settled once more.
        let store_id = u64::from_be_bytes(office.server_id().bytes()[..8].try_into().expect("8 of 16 bytes"))
            ^ u64::from(office.term());
        let door = Door::new(config.link_rate, time.clone(), &metrics);
        let make = ReceptionMaker {
            door: door.clone(),
            node: office.server_id(),
            store: store_id,
            host,
            facts: facts_seen,
            time: time.clone(),
            gatekeeper,
            dispatcher: dispatcher.clone(),
            supervision: supervision.clone(),
            metrics: metrics.clone(),
            sessions: Arc::default(),
            notice_port: notice.map_or(0, |address| address.port()),
        };
        let (accept_from, slot) = (config.accept_from.clone(), current.clone());
        let spec = ChildSpec::new("listener", move |guard| {
            let reception = make.make()?;
            *slot.write().map_err(|e| e.to_string())? = Some(reception.clone());
            let socket = link_socket.try_clone().map_err(|e| e.to_string())?;
            let accept_from = accept_from.clone();
            run(guard, move |_, guard| Listener::new(guard, socket, accept_from, reception));
            Ok(())
        });
        let spec = spec.needs("dispatcher").needs("gatekeeper");
        supervision.start_child(spec.past(PastIntensity::EndProcess(exit_code::SUPERVISION))).await.map_err(add)?;

        let registry = Arc::new(TrunkRegistry::default());
        let system = TenantId::system();
        let own = office.tenant_tls(&system).ok_or_else(|| tls_fault("no system tenant"))?;
        let revoking = office.clone();
        let arbiter = actix_rt::Arbiter::current();
        let setup = TrunkSetup {
            accept_from: config.accept_from.clone(),
            tls: parent_config(&own.identity, std::slice::from_ref(&own.ca), Arc::new(time.clone()))
                .map_err(tls_fault)?,
            tenant: system,
            build: env!("CARGO_PKG_VERSION").into(),
            time: time.clone(),
            metrics: metrics.clone(),
            tokens: office.link_tokens(),
            revoked: Arc::new(move |node, epoch| {
                revoking.revocations(&TenantId::system()).is_some_and(|r| r.covers(node, epoch))
            }),
            door: door.clone(),
            taker: Arc::new(move |incoming| {
                let Some(reception) = current.read().ok().and_then(|c| c.clone()) else { return };
                let (kind, stream, source, gateway) = match incoming {
                    Incoming::Link { stream, kind, source, gateway, .. } => (kind, stream, source, Some(gateway)),
                    Incoming::Enrol { stream, source, gateway } => (Preface::Enrol, stream, source, gateway),
                };
                // Trunks run outside the arbiter's local tasks; sessions run inside.
                arbiter.spawn_fn(move || {
                    actix_rt::spawn(reception.accepted(kind, stream, source, gateway));
                });
            }),
        };
        supervision.start_child(trunks::child(trunk_socket, setup, registry.clone())).await.map_err(add)?;

        let steering = Steering { dispatcher, office: office.clone(), trunks: registry };
        let state = ApiState {
            store: store.clone(),
            control: Arc::new(steering),
            metrics,
            ambient: ambient.clone(),
            started_at: ambient.clock.mono(),
            server_id: office.server_id(),
        };
        let tls =
            https_config(own.identity.chain.clone(), own.identity.private_key(), Arc::new(time)).map_err(tls_fault)?;
        let server = api::serve(api_socket, Arc::new(tls), state)
            .map_err(|e| StartFault::new(exit_code::LISTEN, "cannot_listen", e.to_string()))?;
        let handle = server.handle();
        actix_rt::spawn(server);

        let mut addresses =
            Addresses::from([("link".into(), link), ("trunk".into(), trunk), ("api".into(), api_address)]);
        addresses.extend(notice.map(|address| ("notice".into(), address)));
        let started = Started { id: office.server_id(), name: config.name.clone(), addresses };
        let text = serde_json::to_vec(&started).map_err(tls_fault)?;
        write_whole(&config.state_dir.join("node.json"), &text).map_err(tls_fault)?;
        let (tx, end) = watch::channel(None);
        let (watched, kept) = (supervision.clone(), store.clone());
        actix_rt::spawn(async move {
            let end = tokio::select! {
                // A store that failed takes the dispatcher with it: the store is the cause.
                biased;
                why = kept.stopped() => NodeEnd { exit_code: exit_code::STORE, first_fault: why },
                fault = watched.must_end() => NodeEnd {
                    exit_code: fault.exit_code,
                    first_fault: format!("{:?}", fault.first_fault),
                },
            };
            tx.send_replace(Some(end));
        });
        Ok(RunningServer { started, end, supervision, api: handle, store, door, _slots: slots })
    }
}

/// How often this store was started with, counted durably: no two processes give a wake the same number.
async fn next_start(store: &dyn Store) -> Result<u32, StoreError> {
    const STARTS: &str = "starts";
    let before = store.meta(STARTS).await?.and_then(|value| Some(u32::from_be_bytes(value[..].try_into().ok()?)));
    let starts = before.unwrap_or(0).saturating_add(1);
    store.commit(vec![Op::Meta(STARTS.into(), starts.to_be_bytes().to_vec().into())]).await?;
    Ok(starts)
}

fn admission_config(config: &Config) -> Result<(AdmissionConfig, LiveCap), StartFault> {
    let wrong =
        |r: branchline_protocol::refusal::Refusal| StartFault::new(exit_code::CONFIGURATION, &r.code, r.message);
    let cap = Cap::new(i64::from(config.slots), config.allow_above_300).map_err(wrong)?;
    let admission = AdmissionConfig::new(cap).poll_interval_ms(config.poll_interval_s * 1_000).map_err(wrong)?;
    Ok((admission, LiveCap::new(cap)))
}

struct ReceptionMaker {
    door: Door,
    node: NodeId,
    store: u64,
    host: Arc<ServerHost>,
    facts: watch::Receiver<Facts>,
    time: NodeTime,
    gatekeeper: ChildAddr<Gatekeeper>,
    dispatcher: ChildAddr<Dispatcher>,
    supervision: Supervision,
    metrics: Metrics,
    sessions: Arc<AtomicU64>,
    notice_port: u16,
}

impl ReceptionMaker {
    fn make(&self) -> Result<Arc<Reception>, String> {
        let m = &self.metrics;
        let accepts = [Role::Agent, Role::Relay]
            .map(|r| (r, m.counter("branchline_link_accepts_total", &[("peer_role", r.as_str())])));
        Ok(Arc::new(Reception {
            node: self.node,
            store: self.store,
            host: self.host.clone(),
            facts: self.facts.clone(),
            time: self.time.clone(),
            door: self.door.clone(),
            gatekeeper: self.gatekeeper.clone(),
            owner: self.dispatcher.get().ok_or("no dispatcher")?.recipient(),
            supervision: self.supervision.clone(),
            counters: LinkCounters {
                protocol_errors: m.counter("branchline_protocol_errors_total", &[]),
                unknown: m.counter("branchline_unknown_messages_total", &[]),
            },
            accepts: accepts.into_iter().collect(),
            link_tls_failures: m.counter("branchline_link_tls_failures_total", &[]),
            sessions: self.sessions.clone(),
            partials: Arc::default(),
            strangers: Arc::new(Semaphore::new(STRANGERS_AT_ONCE)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE)),
            enrolments: Arc::new(Semaphore::new(SPLICES_AT_ONCE * 8)),
            notice_port: self.notice_port,
        }))
    }
}

impl RunningServer {
    /// The actor tree, for tests and status.
    pub fn supervision(&self) -> &Supervision {
        &self.supervision
    }

    /// The store, for tests.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}

impl RunningNode for RunningServer {
    fn started(&self) -> &Started {
        &self.started
    }

    fn end(&self) -> EndWatch {
        self.end.clone()
    }

    fn stop(self) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            // Children that are told to go do not come back to a node that is going.
            self.door.close();
            self.api.stop(false).await;
            if let Ok(report) = self.supervision.stop(Duration::from_secs(10)).await {
                tracing::info!(?report, "stopped");
            }
            self.store.close().await;
        })
    }
}

/// Runs a server as a process of its own; answers the exit code.
pub fn run_server(config: &Path) -> i32 {
    let config = match Config::read(config) {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return exit_code::CONFIGURATION;
        }
    };
    branchline_node::process::allow_files();
    branchline_node::process::run_process(move || Server::start(config, Ambient::system()))
}
