//! What the agent's actors share, and who needs whom.

use super::{
    collector::Collector,
    doorbell::{Door, Doorbell},
    executor::{Executor, Tools},
    keeper::Keeper,
};
use crate::decide::{AgentCore, Documents, Figures, Me, RecoverFault, Rows};
use branchline_node::{
    config::Reach,
    identity::{Bundle, Identity, TlsFault, child_config},
    link::{dial::Dialler, engine::LinkCounters},
    metrics::Metrics,
    node::{Ambient, exit_code},
    store::StoreHandle,
    supervise::{ChildAddr, ChildSpec, PastIntensity, SuperviseError, Supervision, Supervisor, run},
    time::NodeTime,
    uplink::{Uplink, UplinkConfig, board::Board, spool::Quotas},
};
use branchline_protocol::{trust::TrustDocument, wire::Preface};
use rustls_pki_types::CertificateDer;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Everything an agent's actors are made of; outlives each of them.
pub(crate) struct Parts {
    pub me: Me,
    pub bundle: Bundle,
    /// The bundle's own, checked when it was opened.
    pub first_trust: TrustDocument,
    pub identity: Identity,
    pub reach: Reach,
    pub probe_ms: u64,
    pub board: Board,
    pub quotas: Quotas,
    pub dialler: Dialler,
    pub store: StoreHandle,
    pub incarnation: u64,
    /// The life of the machine in which this process runs.
    pub boot: String,
    pub time: NodeTime,
    pub ambient: Ambient,
    pub metrics: Metrics,
    pub tools: Tools,
    pub figures: watch::Sender<Figures>,
    pub uplink: ChildAddr<Uplink>,
    pub keeper: ChildAddr<Keeper>,
    /// Wakes and notices.
    pub wake: Door,
    /// For the first keeper: recovered at the start, so that a disk that cannot be read is told there.
    pub first_core: Mutex<Option<AgentCore>>,
    /// For an uplink that is rebuilt.
    pub config: Mutex<Option<UplinkConfig>>,
}

impl Parts {
    pub(crate) fn recover(&self, rows: &Rows) -> Result<AgentCore, RecoverFault> {
        let (trust, upstreams) = (self.first_trust.clone(), self.bundle.upstreams.clone());
        let mut core = AgentCore::recover(self.me.clone(), trust, upstreams, self.incarnation, rows)?;
        core.set_quotas(self.quotas);
        let socket = self.wake.socket.as_ref();
        core.set_wake_port(socket.and_then(|socket| socket.local_addr().ok()).map_or(0, |address| address.port()));
        Ok(core)
    }

    pub(crate) fn take_first_core(&self) -> Option<AgentCore> {
        self.first_core.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn uplink_config(&self, documents: &Documents) -> Result<UplinkConfig, TlsFault> {
        let cas = &documents.trust().cas;
        let roots: Vec<CertificateDer<'_>> = cas.iter().map(|ca| CertificateDer::from(ca.to_vec())).collect();
        Ok(UplinkConfig {
            tenant: self.me.tenant.clone(),
            node: self.me.node,
            preface: Preface::Link,
            upstreams: documents.upstreams().to_vec(),
            reach: self.reach,
            probe_ms: documents.settings().map_or(self.probe_ms, |s| self.probe_ms.min(s.poll_normal_s * 1_000)),
            dialler: self.dialler.clone(),
            tls: child_config(Some(&self.identity), &roots, Arc::new(self.time.clone()))?,
        })
    }

    pub(crate) fn keep_uplink_config(&self, config: UplinkConfig) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Some(config);
    }

    fn kept_uplink_config(&self) -> Option<UplinkConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Starts the actors on the calling thread's arbiter.
pub(crate) async fn start(parts: Arc<Parts>) -> Result<Supervision, SuperviseError> {
    let restarts = parts.metrics.counter("branchline_restarts_total", &[]);
    let supervision = Supervisor::start(parts.ambient.clock.clone(), Some(restarts));
    let essential = PastIntensity::EndProcess(exit_code::SUPERVISION);

    let shared = parts.clone();
    let keeper = ChildSpec::new("keeper", move |guard| {
        let parts = shared.clone();
        shared.keeper.renew(run(guard, move |_, guard| Keeper::new(guard, parts)));
        Ok(())
    });
    supervision.start_child(keeper.past(essential)).await?;

    let shared = parts.clone();
    let uplink = ChildSpec::new("uplink", move |guard| {
        let owner = shared.keeper.get().ok_or("the keeper is down")?.recipient();
        let config = shared.kept_uplink_config().ok_or("nobody is known to dial")?;
        let counters = LinkCounters {
            protocol_errors: shared.metrics.counter("branchline_protocol_errors_total", &[]),
            unknown: shared.metrics.counter("branchline_unknown_total", &[]),
        };
        let (time, ambient, board) = (shared.time.clone(), shared.ambient.clone(), shared.board.clone());
        let make = move |_: &mut _, guard| Uplink::new(guard, config, owner, time, ambient, counters, board);
        shared.uplink.renew(run(guard, make));
        Ok(())
    });
    supervision.start_child(uplink.needs("keeper").past(essential)).await?;

    let shared = parts.clone();
    let executor = ChildSpec::new("executor", move |guard| {
        let keeper = shared.keeper.get().ok_or("the keeper is down")?;
        let tools = shared.tools.clone();
        run(guard, move |_, guard| Executor::new(guard, tools, keeper));
        Ok(())
    });
    supervision.start_child(executor.needs("keeper").past(essential)).await?;

    let shared = parts.clone();
    // Without it the device polls: parked, and reported.
    let doorbell = ChildSpec::new("doorbell", move |guard| {
        let keeper = shared.keeper.get().ok_or("the keeper is down")?;
        let parts = shared.clone();
        run(guard, move |_, guard| Doorbell::new(guard, parts, keeper));
        Ok(())
    });
    supervision.start_child(doorbell.needs("keeper")).await?;

    let shared = parts;
    // Without inventory the device still runs jobs: parked, and reported.
    let collector = ChildSpec::new("collector", move |guard| {
        let keeper = shared.keeper.get().ok_or("the keeper is down")?;
        let platform = shared.tools.platform.clone();
        run(guard, move |_, guard| Collector::new(guard, platform, keeper));
        Ok(())
    });
    supervision.start_child(collector.needs("keeper")).await?;
    Ok(supervision)
}
