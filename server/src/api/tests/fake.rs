//! A running server that does what the API can see of one.

use super::*;
use crate::api::control::{Contacts, Devices, RecoveryFigures, ServerFigures, TokenWish};
use crate::{
    api::names::{Names, names},
    dispatch::means,
};

/// One device with the names of the relays it may stand below.
struct Target<'a> {
    view: &'a NodeView,
    names: &'a Names,
}

impl Candidate for Target<'_> {
    fn in_site(&self, site: &str) -> bool {
        self.view.node.site == site
    }

    fn below(&self, relay: &str) -> bool {
        let name = |id: &NodeId| self.names.get(id).map_or("", String::as_str);
        self.view.standing.route.iter().any(|id| means(relay, *id, name(id)))
    }

    fn is(&self, device: &str) -> bool {
        means(device, self.view.node.id, &self.view.node.name)
    }

    fn tagged(&self, tag: &str) -> bool {
        self.view.node.tags.iter().any(|t| t == tag)
    }
}

/// Does of a running server what the API can see: jobs go into the store, online devices answer at once.
pub(super) struct FakeControl {
    pub(super) store: Arc<SqliteStore>,
    pub(super) nodes: Vec<NodeView>,
    pub(super) said: Mutex<Vec<String>>,
    pub(super) jobs: Mutex<Vec<NewJob>>,
    /// Where every order is.
    pub(super) whereabouts: Mutex<Whereabouts>,
    /// Answered to whatever is ordered, if set.
    pub(super) refusal: Mutex<Option<Refusal>>,
    pub(super) settings: Mutex<Settings>,
    pub(super) recovery: Mutex<RecoveryFigures>,
}

impl FakeControl {
    pub(super) fn new(store: Arc<SqliteStore>) -> FakeControl {
        let settings = Mutex::new(Settings::first(tenant("a"), 1));
        let (said, jobs, whereabouts, refusal) = Default::default();
        let recovery = Mutex::new(RecoveryFigures { term: 1, recovering: None });
        FakeControl { store, nodes: vec![], said, jobs, whereabouts, refusal, settings, recovery }
    }

    /// Everything it was told to do, in order.
    pub(super) fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    fn hear(&self, what: String) -> Result<(), Refusal> {
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        self.said.lock().unwrap().push(what);
        Ok(())
    }

    async fn end_open(&self, tenant: &TenantId, job: JobId, state: State) {
        let rows = self.store.job_devices(tenant, job).await.unwrap();
        let open = rows.into_iter().filter(|row| !row.state.is_end());
        let ops = open.map(|row| Op::JobDevice {
            tenant: tenant.clone(),
            job,
            device: row.device.unwrap(),
            state,
            reason: None,
            at: NOW.plus(9),
            result: None,
        });
        self.store.commit(ops.collect()).await.unwrap();
    }

    /// The device's row of a new job.
    fn target(&self, job: JobId, leaf: u32, view: &NodeView) -> JobDeviceRow {
        let online = view.standing.state == "online";
        let result = ResultRow {
            exit_code: Some(0),
            stdout: Bytes::from_static(b"done\n"),
            stderr: Bytes::from_static(&[0xff, 0x00]),
            truncated: false,
            started_at: Some(NOW.plus(1)),
            ended_at: NOW.plus(2),
        };
        JobDeviceRow {
            job,
            leaf: Some(leaf),
            device: Ok(view.node.id),
            epoch: 1,
            state: if online { State::Succeeded } else { State::Queued },
            reason: None,
            changed_at: NOW,
            result: online.then_some(result),
            holders: vec![],
            delivered_at: None,
            late: false,
        }
    }
}

#[async_trait]
impl Control for FakeControl {
    fn recovery(&self) -> RecoveryFigures {
        *self.recovery.lock().unwrap()
    }

    async fn end_recovery(&self, who: &str) -> Result<(), Refusal> {
        self.hear(format!("{who} ends the recovery"))?;
        self.recovery.lock().unwrap().recovering = None;
        Ok(())
    }

    async fn issue(&self, tenant: &TenantId, who: &str, job: NewJob) -> Result<JobId, Refusal> {
        let nodes = self.nodes(tenant, None).await?;
        let names = names(&nodes);
        let agents = nodes.iter().filter(|v| v.node.role == Role::Agent && v.node.revoked_at.is_none());
        let chosen: Vec<_> = agents.filter(|view| job.on.matches(&Target { view, names: &names })).collect();
        let unknown = job
            .on
            .named_devices()
            .into_iter()
            .filter(|words| !nodes.iter().any(|view| Target { view, names: &names }.is(words)));
        let number = self.jobs.lock().unwrap().len() as u64 + 1;
        let id = JobId(Uuid::from_u128(1_000 + u128::from(number)));
        let mut devices: Vec<_> = chosen.iter().zip(0..).map(|(view, leaf)| self.target(id, leaf, view)).collect();
        devices.extend(unknown.map(|words| JobDeviceRow {
            job: id,
            leaf: None,
            device: Err(words.to_owned()),
            epoch: 0,
            state: State::NoSuchDevice,
            reason: None,
            changed_at: NOW,
            result: None,
            holders: vec![],
            delivered_at: None,
            late: false,
        }));
        if devices.is_empty() {
            return Err(Refusal::new(422, "no_targets", "the selector means no device").field("on"));
        }
        self.hear(format!("issue {tenant} {who} {} {}", job.verb, job.on))?;
        let row = JobRow {
            id,
            tenant: tenant.clone(),
            number: OrderNumber { term: 1, number },
            trace: TraceId(id.0),
            verb: job.verb.clone(),
            command: job.command.clone(),
            selector: job.on.to_string(),
            class: job.class.unwrap_or_default(),
            ordered_by: who.into(),
            issued_at: NOW,
            fetch_by: NOW.plus(job.life_ms as i64),
            report_by: NOW.plus(2 * DAY_MS),
            envelope: Envelope::sign("order", &b"p"[..], &Signer::from_seed(&[1; 32])),
            args: job.args.clone(),
            origin: None,
        };
        self.jobs.lock().unwrap().push(job);
        self.store.commit(vec![Op::Job(Box::new(row), devices)]).await.unwrap();
        Ok(id)
    }

    /// What is queued is cancelled at once, as where nobody has it.
    async fn cancel(&self, tenant: &TenantId, who: &str, job: JobId) -> Result<(), Refusal> {
        self.hear(format!("cancel {tenant} {who} {job}"))?;
        self.end_open(tenant, job, State::Cancelled).await;
        Ok(())
    }

    async fn reissue(&self, who: &str, job: JobRow, devices: Vec<NodeId>) -> Result<JobId, Refusal> {
        self.hear(format!("reissue {} {who} {} {devices:?}", job.tenant, job.id))?;
        let number = OrderNumber { term: 1, number: 900 };
        let id = JobId(Uuid::from_u128(9_000));
        let views = self.nodes.iter().filter(|view| devices.contains(&view.node.id));
        let rows = views.zip(0..).map(|(view, leaf)| self.target(id, leaf, view)).collect();
        let new = JobRow { id, number, origin: Some(job.id), ..job };
        self.store.commit(vec![Op::Job(Box::new(new), rows)]).await.unwrap();
        Ok(id)
    }

    async fn whereabouts(&self, _: &TenantId, _: OrderNumber, _: NodeId) -> Result<Whereabouts, Refusal> {
        Ok(self.whereabouts.lock().unwrap().clone())
    }

    async fn nodes(&self, tenant: &TenantId, role: Option<Role>) -> Result<Vec<NodeView>, Refusal> {
        let wanted = |view: &&NodeView| view.node.tenant == *tenant && role.is_none_or(|role| role == view.node.role);
        Ok(self.nodes.iter().filter(wanted).cloned().collect())
    }

    async fn device(&self, tenant: &TenantId, words: &str) -> Result<Option<NodeId>, Refusal> {
        let of_tenant: Vec<NodeView> = self.nodes(tenant, None).await?;
        let rows = of_tenant.into_iter().map(|view| (view.node.id, Box::new(view.node))).collect();
        Ok(crate::dispatch::device(&rows, words).map(|row| row.id))
    }

    async fn chosen(&self, tenant: &TenantId, on: &Selector) -> Result<Vec<NodeId>, Refusal> {
        let nodes = self.nodes(tenant, None).await?;
        let names = names(&nodes);
        let devices = nodes.iter().filter(|view| view.node.role == Role::Agent && view.node.revoked_at.is_none());
        let mut chosen: Vec<_> = devices.filter(|view| on.matches(&Target { view, names: &names })).collect();
        chosen.sort_by_key(|view| view.node.name.clone());
        Ok(chosen.into_iter().map(|view| view.node.id).collect())
    }

    async fn device_counts(&self, tenant: &TenantId, on: &Selector) -> Result<BTreeMap<&'static str, u64>, Refusal> {
        let mut counts = BTreeMap::from([("offline", 0), ("online", 0), ("suspended", 0), ("unknown", 0)]);
        for device in self.devices(tenant, self.chosen(tenant, on).await?).await?.views {
            *counts.get_mut(device.standing.state).unwrap() += 1;
        }
        Ok(counts)
    }

    async fn devices(&self, tenant: &TenantId, devices: Vec<NodeId>) -> Result<Devices, Refusal> {
        let nodes = self.nodes(tenant, None).await?;
        let views = devices.iter().filter_map(|id| nodes.iter().find(|view| view.node.id == *id).cloned()).collect();
        Ok(Devices { views, names: names(&nodes) })
    }

    async fn contacts(&self, tenant: &TenantId, devices: Vec<NodeId>) -> Result<Contacts, Refusal> {
        let asked = |view: &&NodeView| view.node.tenant == *tenant && devices.contains(&view.node.id);
        let mut contacts = Contacts::default();
        for NodeView { node, standing } in self.nodes.iter().filter(asked) {
            contacts.next.extend(standing.next_contact.map(|at| (node.id, at)));
            contacts.suspended.extend((standing.state == "suspended").then_some(node.id));
        }
        Ok(contacts)
    }

    async fn figures(&self) -> Result<ServerFigures, Refusal> {
        Ok(ServerFigures {
            id: id(7).to_string(),
            name: "hq".into(),
            slots: serde_json::json!({"used": 2, "cap": 300, "peak": 2, "waiting": 0, "reserved": 0}),
            queues: serde_json::json!({"spool_records": 0}),
            links: 5,
            restarts: 0,
            gateways: vec![(id(60), "dmz".into(), 2, 3), (id(61), "dmz-2".into(), 0, 0)],
        })
    }

    /// Everything queued is done by the time the wait is over.
    async fn wait_complete(&self, tenant: &TenantId, job: JobId, ms: u64) -> Result<(), Refusal> {
        self.hear(format!("wait {tenant} {ms}"))?;
        self.end_open(tenant, job, State::Expired).await;
        Ok(())
    }

    async fn revoke(&self, tenant: &TenantId, who: &str, node: NodeId) -> Result<Epoch, Refusal> {
        self.hear(format!("revoke {tenant} {who} {node}"))?;
        Ok(3)
    }

    async fn suspend(&self, tenant: &TenantId, who: &str, device: NodeId, suspended: bool) -> Result<(), Refusal> {
        self.hear(format!("suspend {tenant} {who} {device} {suspended}"))
    }

    async fn keep_connection(
        &self,
        tenant: &TenantId,
        who: &str,
        device: NodeId,
        keep: Option<bool>,
    ) -> Result<(), Refusal> {
        self.hear(format!("keep {tenant} {who} {device} {keep:?}"))
    }

    async fn enrol_token(&self, tenant: &TenantId, who: &str, wish: TokenWish) -> Result<(String, Millis), Refusal> {
        self.hear(format!("token {tenant} {who} {} {:?} {} {}", wish.role, wish.site, wish.uses, wish.life_ms))?;
        Ok(("secret".into(), NOW.plus(wish.life_ms as i64)))
    }

    async fn bundle(&self, tenant: &TenantId, who: &str, wish: TokenWish) -> Result<(String, Millis), Refusal> {
        self.hear(format!("bundle {tenant} {who} {} {:?} {} {}", wish.role, wish.site, wish.parent, wish.uses))?;
        Ok(("text".into(), NOW.plus(wish.life_ms as i64)))
    }

    async fn tenant(&self, who: &str, name: TenantId, sites: Vec<String>) -> Result<String, Refusal> {
        self.hear(format!("tenant {who} {name} {sites:?}"))?;
        Ok("tenant-secret".into())
    }

    async fn site(&self, tenant: &TenantId, who: &str, name: String) -> Result<(), Refusal> {
        self.hear(format!("site {tenant} {who} {name}"))
    }

    async fn settings(&self, _: &TenantId) -> Result<Settings, Refusal> {
        Ok(self.settings.lock().unwrap().clone())
    }

    async fn set_settings(&self, tenant: &TenantId, who: &str, wanted: Settings) -> Result<Settings, Refusal> {
        self.hear(format!("settings {tenant} {who} {wanted:?}"))?;
        let mut held = self.settings.lock().unwrap();
        *held = Settings { version: wanted.version + 1, ..wanted };
        Ok(held.clone())
    }

    async fn gateway_address(&self, who: &str, public: String, outer_root: Option<Bytes>) -> Result<(), Refusal> {
        self.hear(format!("gateway {who} {public} {}", outer_root.is_some()))
    }
}
