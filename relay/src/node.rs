//! Starts a relay: bundle, identity, store, actor tree.

use crate::{
    actors::exchange::{Exchange, Followed, Parts},
    config::Config,
    core::{Me, Recovered, RelayCore},
    host::{RelayHost, Ways},
    upstream::UpstreamSettings,
};
use branchline_node::{
    config::Stamp,
    downstream::{
        admission::{Admission, AdmissionConfig, Cap},
        beacon::{BeaconSetup, Beacons},
        door::Door,
        gatekeeper::{Gatekeeper, Meters, SharedGauge},
        listener::Listener,
        live_cap::{Following, LiveCap},
        reception::{Facts, HANDSHAKES_AT_ONCE, Reception, STRANGERS_AT_ONCE},
    },
    enrol::{EnrolFault, Enrolled, SPLICES_AT_ONCE, enrol_or_load},
    identity::{Bundle, child_config, https_config, parent_config},
    link::{
        dial::{Dialler, Route},
        engine::LinkCounters,
    },
    metrics::Metrics,
    node::{Addresses, Ambient, EndWatch, NodeEnd, StartFault, Started, exit_code, listen, listen_udp, write_whole},
    process::RunningNode,
    status,
    store::{Ended, Store, StoreError, StoreHandle, StoreOptions},
    supervise::{ChildAddr, ChildSpec, Limit, PastIntensity, Supervision, Supervisor, WorkerLimits, WorkerSpec, run},
    time::NodeTime,
    uplink::{Uplink, UplinkConfig, board::Board, path},
};
use branchline_protocol::{
    id::Role,
    refusal::Refusal,
    wire::{DeviceFacts, Preface},
};
use futures_util::future::LocalBoxFuture;
use rustls::pki_types::CertificateDer;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock, atomic::AtomicBool},
    time::Duration,
};
use tokio::sync::{Semaphore, watch};

/// Format of the relay's store.
pub const STORE_FORMAT: u32 = 1;
/// How often the kept settings of the way up are looked at.
const LOOK_FOR_SETTINGS: Duration = Duration::from_secs(1);
/// Longest pause between tries to enrol while the server is away.
const ENROL_PAUSE_S_MAX: u64 = 30;

/// A relay that runs.
pub struct RunningRelay {
    started: Started,
    end: EndWatch,
    supervision: Supervision,
    status: actix_web::dev::ServerHandle,
    store: StoreHandle,
    door: Door,
    follower: tokio::task::JoinHandle<()>,
    _slots: Following,
}

/// Starts relays.
pub struct Relay;

fn state_fault(e: impl std::fmt::Display) -> StartFault {
    StartFault::new(exit_code::STATE, "state_folder", e.to_string())
}

fn store_fault(e: StoreError) -> StartFault {
    let code = match &e {
        StoreError::InUse { .. } => "state_in_use",
        StoreError::OtherNode { .. } => "other_node",
        StoreError::NewerFormat { .. } => "newer_format",
        StoreError::Corrupt { .. } | StoreError::Damaged { .. } => "state_unreadable",
        _ => "store",
    };
    StartFault::new(exit_code::STATE, code, e.to_string())
}

/// A store that opens and holds what it should not.
fn unreadable(e: Recovered) -> StartFault {
    let code = match e {
        Recovered::Store(StoreError::Io { .. } | StoreError::NoSpace { .. }) => "store",
        _ => "state_unreadable",
    };
    let help = "restore the state folder from a backup, or remove it and enrol anew";
    StartFault::new(exit_code::STATE, code, format!("{e}; {help}"))
}

impl Relay {
    /// Starts a relay; it listens when this returns. While the server is away it waits to enrol.
    pub async fn start(config: Config, ambient: Ambient) -> Result<RunningRelay, StartFault> {
        let socket = listen("the link port", config.link)?;
        let private = listen("the private port", config.private)?;
        let (link, private_address) =
            (socket.local_addr().map_err(state_fault)?, private.local_addr().map_err(state_fault)?);
        let notices = config.notice_port.map(|port| listen_udp("the notice port", (config.link.ip(), port).into()));
        let notices = notices.transpose()?;
        let notice = notices.as_ref().map(|socket| socket.local_addr()).transpose().map_err(state_fault)?;
        std::fs::create_dir_all(&config.state_dir).map_err(state_fault)?;
        let bad = |e: &dyn std::fmt::Display| {
            StartFault::new(exit_code::CONFIGURATION, "bad_bundle", format!("{}: {e}", config.bundle.display()))
        };
        let text = std::fs::read_to_string(&config.bundle).map_err(|e| bad(&e))?;
        let bundle = Bundle::open(&text).map_err(|e| bad(&e))?;
        let trust = bundle.trust_document().map_err(|e| bad(&e))?;
        let time = NodeTime::new(ambient.clock.clone());
        let set = UpstreamSettings::kept(&config.state_dir)
            .map_err(|m| StartFault::new(exit_code::CONFIGURATION, "bad_upstream", m.to_string()))?;
        let stamp = Stamp::of(&UpstreamSettings::file(&config.state_dir));
        let outer = UpstreamSettings::outer(set.as_ref(), &bundle.outer_roots, Arc::new(time.clone()));
        let (bind_source, link_token) = (config.bind_source, bundle.link_token.clone());
        let outer = outer.map_err(|e| bad(&e))?;
        let dialler = Dialler { bind_source, outer, link_token, ..Dialler::new(ambient.resolver.clone()) };
        let over = set.as_ref().and_then(|set| Some((set.reach(), set.over(&bundle.upstreams)?)));
        let (reach, upstreams) = over.unwrap_or((config.reach, bundle.upstreams.clone()));
        let routes: Vec<Route> = path::routes(&upstreams, reach);

        let facts = DeviceFacts {
            name: config.name.clone(),
            host_name: config.name.clone(),
            platform: std::env::consts::OS.into(),
            capabilities: Vec::new(),
            build: env!("CARGO_PKG_VERSION").into(),
            addresses: vec![link.to_string()],
        };
        let enrolled = enrol_patiently(&config, &bundle, &routes, &dialler, facts, &time).await?;
        let identity = Arc::new(enrolled.identity);
        let subject = &identity.subject;
        if subject.role != Role::Relay {
            return Err(StartFault::new(
                exit_code::CONFIGURATION,
                "wrong_role",
                "the bundle or identity is not a relay's",
            ));
        }
        let options = StoreOptions::new(STORE_FORMAT, ambient.random.next_u64()).for_node(*subject.node.bytes());
        let (store, recovered) = Store::open(&config.state_dir.join("relay.redb"), options).map_err(store_fault)?;

        let metrics = Metrics::new();
        let roots: Vec<CertificateDer<'_>> = trust.cas.iter().map(|ca| CertificateDer::from(ca.to_vec())).collect();
        let shared_time = Arc::new(time.clone());
        let ways = Arc::new(RwLock::new(Ways {
            tls: parent_config(&identity, &roots, shared_time.clone()).map_err(state_fault)?,
            routes,
            dialler: dialler.clone(),
        }));
        let uplink: ChildAddr<Uplink> = ChildAddr::new();
        let exchange: ChildAddr<Exchange> = ChildAddr::new();
        let gatekeeper: ChildAddr<Gatekeeper> = ChildAddr::new();
        let (facts_tx, facts) = watch::channel(Facts::default());
        let (statement_tx, statement) = watch::channel(None);
        let wrong = |r: Refusal| StartFault::new(exit_code::CONFIGURATION, &r.code, r.message);
        let cap = Cap::new(i64::from(config.slots), config.allow_above_300).map_err(wrong)?;
        let live_cap = LiveCap::new(cap);
        let mut admission =
            AdmissionConfig::new(cap).poll_interval_ms(config.poll_interval_s * 1_000).map_err(wrong)?;
        if let Some(seconds) = config.reservation_s {
            admission = admission.reservation_ms(3_000, seconds * 1_000);
        }
        let gauge: SharedGauge = Arc::new(Mutex::new(Admission::new(admission.clone()).gauge()));
        let shown = Arc::new(RwLock::new(serde_json::json!({})));
        let beacons = Beacons::default();
        let uplink_config = UplinkConfig {
            tenant: subject.tenant.clone(),
            node: subject.node,
            preface: Preface::Uplink,
            upstreams,
            reach,
            probe_ms: config.probe_interval_s * 1_000,
            dialler,
            tls: child_config(Some(&identity), &roots, shared_time.clone()).map_err(state_fault)?,
        };
        let (set, board) = (Arc::new(RwLock::new(set)), Board::new(&metrics));
        let (restarts, restarted) = metrics.counted("branchline_restarts_total", &[]);
        let parts = Parts {
            store: store.clone(),
            time: time.clone(),
            identity: identity.clone(),
            uplink_config: uplink_config.clone(),
            bundled: Arc::new(bundle.clone()),
            reach: config.reach,
            set: set.clone(),
            board: board.clone(),
            uplink: uplink.clone(),
            facts: Arc::new(facts_tx),
            statement: Arc::new(statement_tx),
            ways: ways.clone(),
            gauge: gauge.clone(),
            beacons: beacons.clone(),
            gatekeeper: gatekeeper.clone(),
            status: shown.clone(),
            restarts: restarted,
            metrics: metrics.clone(),
        };
        let me = Me {
            tenant: subject.tenant.clone(),
            node: subject.node,
            epoch: subject.epoch,
            name: config.name.clone(),
            signer: Arc::new(identity.key.signer()),
        };
        let supervision = Supervisor::start(ambient.clock.clone(), Some(restarts));
        let add = |e: branchline_node::supervise::SuperviseError| {
            StartFault::new(exit_code::SUPERVISION, "supervision", e.to_string())
        };
        let ends = PastIntensity::EndProcess(exit_code::SUPERVISION);

        let (at, root, incarnation) = (exchange.clone(), bundle.root_key, recovered.incarnation);
        // Once before anything runs, so that a disk that cannot be read is told here and not by a failing actor.
        let first = RelayCore::recover(me.clone(), root, trust.clone(), incarnation, &store).map_err(unreadable)?;
        let mut first = Some(first);
        let mut documents = enrolled.documents;
        let quotas = config.quotas;
        let spec = ChildSpec::new("exchange", move |guard| {
            let mut core = match first.take() {
                Some(core) => core,
                None => {
                    flush(&parts.store)?;
                    RelayCore::recover(me.clone(), root, trust.clone(), incarnation, &parts.store)
                        .map_err(|e| e.to_string())?
                }
            };
            core.set_quotas(quotas);
            let (parts, first) = (parts.clone(), std::mem::take(&mut documents));
            at.renew(run(guard, move |ctx, guard| Exchange::new(guard, ctx, parts, core, first)));
            Ok(())
        });
        supervision.start_child(spec.past(ends)).await.map_err(add)?;

        let (at, owner, meters, shared) = (gatekeeper.clone(), exchange.clone(), Meters::new(&metrics), gauge.clone());
        let (clock, chance, first, seen) = (time.clone(), ambient.clone(), AtomicBool::new(true), facts.clone());
        let in_force = live_cap.clone();
        let spec = ChildSpec::new("gatekeeper", move |guard| {
            let owner = owner.get().ok_or("no exchange")?.recipient();
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
        supervision.start_child(spec.needs("exchange").past(ends)).await.map_err(add)?;
        let limits = WorkerLimits { live_max: 100_000, intensity: Limit::default(), past: PastIntensity::Park };
        let sessions =
            WorkerSpec { kind: "session".into(), needs: vec!["exchange".into(), "gatekeeper".into()], limits };
        supervision.add_workers(sessions).await.map_err(add)?;

        let counters = LinkCounters {
            protocol_errors: metrics.counter("branchline_protocol_errors_total", &[]),
            unknown: metrics.counter("branchline_unknown_messages_total", &[]),
        };
        let (at, owner, clock, chance, counted) =
            (uplink, exchange.clone(), time.clone(), ambient.clone(), counters.clone());
        let spec = ChildSpec::new("uplink", move |guard| {
            let owner = owner.get().ok_or("no exchange")?.recipient();
            let (config, time, ambient, counters) =
                (uplink_config.clone(), clock.clone(), chance.clone(), counted.clone());
            let board = board.clone();
            at.renew(run(guard, move |_, guard| Uplink::new(guard, config, owner, time, ambient, counters, board)));
            Ok(())
        });
        supervision.start_child(spec.needs("exchange").past(ends)).await.map_err(add)?;

        if let Some(socket) = notices {
            let generation = u32::try_from(recovered.openings).unwrap_or(u32::MAX);
            let setup = BeaconSetup::new(time.clone(), beacons.keyring.clone(), generation, &metrics);
            let spec = beacons.child("exchange", socket, setup, exchange.clone());
            // Without it devices poll: parked, and reported.
            supervision.start_child(spec).await.map_err(add)?;
        }

        let door = Door::new(config.link_rate, time.clone(), &metrics);
        let host = Arc::new(RelayHost { node: subject.node, tenant: subject.tenant.clone(), ways, statement });
        let accepts = [Role::Agent, Role::Relay]
            .map(|r| (r, metrics.counter("branchline_link_accepts_total", &[("peer_role", r.as_str())])));
        let (node, watched, tls_failures) =
            (subject.node, supervision.clone(), metrics.counter("branchline_link_tls_failures_total", &[]));
        let follower = actix_rt::spawn(follow(config.state_dir.clone(), stamp, set, exchange.clone()));
        let read = |file: &Path| Config::read(file).map(|c| (c.slots, c.allow_above_300));
        let slots = live_cap.follow(config.file.clone(), read, gatekeeper.clone());
        let (owner, keeper, clock, numbers) = (exchange, gatekeeper, time.clone(), Arc::default());
        let (knocked, notice_port) = (door.clone(), notice.map_or(0, |address| address.port()));
        let spec = ChildSpec::new("listener", move |guard| {
            let reception = Arc::new(Reception {
                node,
                // Of this opening, not of the disk: a disk that was put back to an older state looks the same, and
                // children must offer again what it may have forgotten.
                store: incarnation,
                host: host.clone(),
                facts: facts.clone(),
                time: clock.clone(),
                door: knocked.clone(),
                gatekeeper: keeper.clone(),
                owner: owner.get().ok_or("no exchange")?.recipient(),
                supervision: watched.clone(),
                counters: counters.clone(),
                accepts: accepts.clone().into_iter().collect(),
                link_tls_failures: tls_failures.clone(),
                sessions: Arc::clone(&numbers),
                partials: Arc::default(),
                strangers: Arc::new(Semaphore::new(STRANGERS_AT_ONCE)),
                handshakes: Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE)),
                enrolments: Arc::new(Semaphore::new(SPLICES_AT_ONCE)),
                notice_port,
            });
            let socket = socket.try_clone().map_err(|e| e.to_string())?;
            run(guard, move |_, guard| Listener::new(guard, socket, Vec::new(), reception));
            Ok(())
        });
        supervision.start_child(spec.needs("exchange").needs("gatekeeper").past(ends)).await.map_err(add)?;

        let tls = https_config(identity.chain.clone(), identity.private_key(), shared_time).map_err(state_fault)?;
        let show: status::Status = Arc::new(move || shown.read().map(|s| s.clone()).unwrap_or_default());
        let handle = status::serve(private, tls, show, metrics).map_err(state_fault)?;
        let mut addresses = Addresses::from([("link".into(), link), ("private".into(), private_address)]);
        addresses.extend(notice.map(|address| ("notice".into(), address)));
        let started = Started { id: subject.node, name: config.name.clone(), addresses };
        let text = serde_json::to_vec(&started).map_err(state_fault)?;
        write_whole(&config.state_dir.join("node.json"), &text).map_err(state_fault)?;

        let (tx, end) = watch::channel(None);
        let (watched, disk) = (supervision.clone(), store.clone());
        actix_rt::spawn(async move {
            let ended = tokio::select! {
                fault = watched.must_end() => NodeEnd { exit_code: fault.exit_code, first_fault: format!("{:?}", fault.first_fault) },
                Ended::Failed(e) = disk.stopped() => NodeEnd { exit_code: exit_code::STORE, first_fault: e.to_string() },
            };
            tx.send_replace(Some(ended));
        });
        Ok(RunningRelay { started, end, supervision, status: handle, store, door, follower, _slots: slots })
    }
}

/// Follows what `configure` keeps. A file that cannot be read, or holds mistakes, changes nothing.
async fn follow(
    state_dir: PathBuf,
    mut seen: Stamp,
    set: Arc<RwLock<Option<UpstreamSettings>>>,
    exchange: ChildAddr<Exchange>,
) {
    loop {
        tokio::time::sleep(LOOK_FOR_SETTINGS).await;
        let (folder, last) = (state_dir.clone(), seen.clone());
        let look = move || {
            let now = Stamp::of(&UpstreamSettings::file(&folder));
            (now != last).then(|| (now, UpstreamSettings::kept(&folder)))
        };
        let Ok(Some((now, kept))) = tokio::task::spawn_blocking(look).await else { continue };
        seen = now;
        match kept {
            Ok(kept) => {
                tracing::info!(set = kept.is_some(), "the way up is set anew");
                if let Ok(mut set) = set.write() {
                    *set = kept;
                }
                // One that is down reads it when it is rebuilt. Rare, and its loss would leave the relay where it is.
                if let Some(exchange) = exchange.get() {
                    exchange.do_send(Followed);
                }
            }
            Err(mistakes) => tracing::error!(%mistakes, "the set way up is unusable; the former one is followed"),
        }
    }
}

/// Waits until everything an earlier exchange left in the store's queue is on disk, so that the next one does not start
/// from less. Blocks for as long as the disk takes.
fn flush(store: &StoreHandle) -> Result<(), String> {
    let (done, answer) = std::sync::mpsc::channel();
    let on_done = Box::new(move |result| drop(done.send(result)));
    // A full queue gives the callback back, and with it the sender: the exchange is started again later.
    store.commit(branchline_node::store::Batch::new(), on_done).map_err(|_| "the store's queue is full")?;
    match answer.recv() {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the store is gone".into()),
    }
}

async fn enrol_patiently(
    config: &Config,
    bundle: &Bundle,
    routes: &[Route],
    dialler: &Dialler,
    facts: DeviceFacts,
    time: &NodeTime,
) -> Result<Enrolled, StartFault> {
    let folder = config.state_dir.join("identity");
    let mut pause = 1;
    loop {
        match enrol_or_load(&folder, bundle, routes, dialler, facts.clone(), time).await {
            Ok(enrolled) => return Ok(enrolled),
            Err(EnrolFault::Offline(why)) => {
                tracing::warn!(why, pause_s = pause, "cannot_register_offline: trying again");
                tokio::time::sleep(Duration::from_secs(pause)).await;
                pause = (pause * 2).min(ENROL_PAUSE_S_MAX);
            }
            Err(EnrolFault::Refused(r)) => return Err(StartFault::new(exit_code::ENROLMENT, &r.code, r.message)),
            Err(e) => return Err(StartFault::new(exit_code::ENROLMENT, "enrolment", e.to_string())),
        }
    }
}

impl RunningRelay {
    /// The actor tree, for tests and status.
    pub fn supervision(&self) -> &Supervision {
        &self.supervision
    }
}

impl RunningNode for RunningRelay {
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
            self.follower.abort();
            self.status.stop(false).await;
            if let Ok(report) = self.supervision.stop(Duration::from_secs(10)).await {
                tracing::info!(?report, "stopped");
            }
            let store = self.store;
            if let Ok(Err(e)) = actix_web::rt::task::spawn_blocking(move || store.stop()).await {
                tracing::error!(error = %e, "the store did not close in good order");
            }
        })
    }
}

/// Runs a relay as a process of its own; answers the exit code.
pub fn run_relay(config: &Path) -> i32 {
    let config = match Config::read(config) {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return exit_code::CONFIGURATION;
        }
    };
    branchline_node::process::allow_files();
    branchline_node::process::run_process(move || Relay::start(config, Ambient::system()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_node::store::Table;

    #[test]
    fn what_is_wrong_with_a_store_has_a_code_of_its_own() {
        let corrupt = StoreError::Corrupt { table: Table::Spool, key: vec![0xab] };
        let told = store_fault(corrupt.clone());
        assert_eq!((told.exit_code, told.code.as_str()), (exit_code::STATE, "state_unreadable"));
        let told = unreadable(Recovered::Store(corrupt));
        assert_eq!((told.exit_code, told.code.as_str()), (exit_code::STATE, "state_unreadable"));
        assert!(told.message.starts_with("record ab of table spool is damaged; restore"), "{}", told.message);
        let newer = store_fault(StoreError::NewerFormat { found: STORE_FORMAT + 1, known: STORE_FORMAT });
        assert_eq!((newer.exit_code, newer.code.as_str()), (exit_code::STATE, "newer_format"));
        assert_eq!(newer.message, "the store has format 2, this build knows up to 1");
    }

    #[test]
    fn a_relay_opens_no_store_of_a_newer_build_and_changes_nothing_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.redb");
        Store::open(&path, StoreOptions::new(STORE_FORMAT + 1, 1)).unwrap().0.stop().unwrap();
        let fault = Store::open(&path, StoreOptions::new(STORE_FORMAT, 2)).map_err(store_fault).err().unwrap();
        assert_eq!(fault.code, "newer_format");
        let (store, found) = Store::open(&path, StoreOptions::new(STORE_FORMAT + 1, 3)).unwrap();
        assert_eq!((found.openings, found.previous_incarnation), (2, Some(1)), "the refused opening left no trace");
        store.stop().unwrap();
    }
}
