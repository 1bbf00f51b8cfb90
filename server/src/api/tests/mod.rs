//! The API over a real store, with a stand-in for the running server.

mod audit;
mod devices;
mod enrolment;
mod explaining;
mod identity;
mod jobs;
mod jobs_again;
mod keeping;
mod recovery;
mod routing;
mod serving;
mod settings;
mod suspending;
mod tenants;

use super::{
    ApiState, Control, configure,
    control::{NewJob, NodeView, RecoveryFigures, ServerFigures, Standing, TokenWish, Whereabouts},
    select::{Target, names},
};
use crate::store::{ApiTokenRow, JobDeviceRow, JobRow, NodeRow, Op, ResultRow, SqliteStore, Store};
use actix_web::{
    App,
    http::Method,
    test::{TestRequest, call_service, init_service, read_body},
    web,
};
use async_trait::async_trait;
use branchline_node::{
    metrics::Metrics,
    node::Ambient,
    random::SeededRandom,
    time::{Clock, TestClock},
};
use branchline_protocol::{
    capability::Reached,
    document::Settings,
    hash::Hash,
    id::{Epoch, JobId, NodeId, OrderNumber, Role, TenantId, TraceId},
    job::State,
    order::{Envelope, Signer},
    refusal::Refusal,
    time::Millis,
};
use bytes::Bytes;
use serde_json::Value;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use uuid::Uuid;

/// 2026-11-01T09:30:00.250Z.
const NOW: Millis = Millis(1_793_525_400_250);
const DAY_MS: i64 = 86_400_000;

fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

fn id(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(n))
}

/// Tenant `a`: relay osaka (50), pc-1 (1) below it and online, pc-2 (2) direct and offline, pc-3 (3) revoked, and a
/// successor of its name (4). Tenant `b`: pc-9 (9). Sites hq and osaka in `a`, tokyo in `b`.
struct World {
    store: Arc<SqliteStore>,
    control: Arc<FakeControl>,
    clock: Arc<TestClock>,
    metrics: Metrics,
    shared: web::Data<ApiState>,
    _folder: TempDir,
}

impl World {
    async fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("server.db")).await.unwrap();
        let token = |of: &str| {
            let hash = Hash::of(format!("token-{of}").as_bytes());
            Op::ApiToken(ApiTokenRow { hash, tenant: tenant(of), name: format!("admin-{of}") })
        };
        let mut batch = vec![Op::Tenant(TenantId::system()), token("system")];
        for (of, sites) in [("a", vec!["hq", "osaka"]), ("b", vec!["tokyo"])] {
            batch.extend([Op::Tenant(tenant(of)), token(of)]);
            batch.extend(sites.iter().map(|site| Op::Site(tenant(of), (*site).into())));
        }
        let nodes = world_nodes();
        batch.extend(nodes.iter().map(|view| Op::Node(view.node.clone())));
        store.commit(batch).await.unwrap();
        let clock = TestClock::at(NOW);
        let control = Arc::new(FakeControl { store: store.clone(), nodes, ..FakeControl::new(store.clone()) });
        let metrics = Metrics::new();
        let ambient = Ambient { clock: clock.clone(), random: SeededRandom::shared(1), ..Ambient::system() };
        let shared = web::Data::new(ApiState {
            store: store.clone(),
            control: control.clone(),
            metrics: metrics.clone(),
            ambient,
            started_at: clock.mono(),
            server_id: id(7),
        });
        World { store, control, clock, metrics, shared, _folder: folder }
    }

    /// One request: its status, its `Retry-After`, its body as JSON.
    async fn send(&self, request: TestRequest) -> (u16, Option<String>, Value) {
        let shared = self.shared.clone();
        let app = init_service(App::new().configure(|config| configure(config, shared))).await;
        let response = call_service(&app, request.to_request()).await;
        let status = response.status().as_u16();
        let retry = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        let body = read_body(response).await;
        (
            status,
            retry,
            serde_json::from_slice(&body).unwrap_or_else(|_| Value::String(String::from_utf8(body.to_vec()).unwrap())),
        )
    }

    async fn get(&self, of: &str, path: &str) -> (u16, Value) {
        let (status, _, body) = self.send(request(of, Method::GET, path)).await;
        (status, body)
    }

    async fn post(&self, of: &str, path: &str, body: Value) -> (u16, Value) {
        let (status, _, body) = self.send(request(of, Method::POST, path).set_payload(body.to_string())).await;
        (status, body)
    }

    async fn patch(&self, of: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, _, body) = self.send(request(of, Method::PATCH, path).set_payload(body.to_owned())).await;
        (status, body)
    }

    async fn put(&self, of: &str, path: &str, body: Value) -> (u16, Value) {
        let (status, _, body) = self.send(request(of, Method::PUT, path).set_payload(body.to_string())).await;
        (status, body)
    }

    /// A request is refused with this status, code and field, and leaves no trace at the server.
    async fn refused(&self, of: &str, path: &str, body: Value, expected: (u16, &str, Option<&str>)) {
        let before = self.control.said();
        let (status, answer) = self.post(of, path, body.clone()).await;
        let told = (status, answer["code"].as_str().unwrap_or_default(), answer["field"].as_str());
        assert_eq!(told, expected, "{path} {body} → {answer}");
        assert!(answer["message"].as_str().is_some_and(|m| !m.is_empty()), "{answer}");
        assert_eq!(self.control.said(), before, "{path} {body}");
    }
}

fn request(of: &str, method: Method, path: &str) -> TestRequest {
    let path = if path.starts_with("/api") || path.starts_with("/get") || path.starts_with("/metrics") {
        path.to_owned()
    } else {
        format!("/api/v1{path}")
    };
    let request = TestRequest::with_uri(&path).method(method);
    if of.is_empty() { request } else { request.insert_header(("authorization", format!("Bearer token-{of}"))) }
}

fn world_nodes() -> Vec<NodeView> {
    let node = |of: &str, n: u128, role: Role, site: &str, name: &str, kind: &str| NodeRow {
        id: id(n),
        tenant: tenant(of),
        role,
        site: site.into(),
        name: name.into(),
        host_name: name.into(),
        platform: "linux".into(),
        capabilities: vec!["run_script".into()],
        kind: kind.into(),
        epoch: 1,
        attachment: 1,
        route: vec![],
        last_contact: None,
        enrolled_at: NOW,
        revoked_at: None,
        key_hash: Hash::ZERO,
        tags: vec![],
    };
    let online = Standing {
        gateway: None,
        state: "online",
        reason: None,
        link: "persistent",
        route: vec![],
        reached: Some(Reached::Direct),
        last_contact: Some(NOW),
        next_contact: None,
        unreachable_since: None,
        figures: None,
        settings: (0, 0),
        slot: None,
        keep_connection: None,
        promise: None,
    };
    let offline = Standing {
        gateway: None,
        state: "offline",
        reason: Some("timeout".into()),
        link: "polling",
        next_contact: Some(NOW.plus(3_600_000)),
        reached: None,
        ..online.clone()
    };
    let figures = serde_json::json!({
        "slots": {"used": 1, "cap": 300, "peak": 1, "waiting": 0, "reserved": 0},
        "queues": {"spool_records": 0, "spool_bytes": 0, "oldest_unsettled_at": null, "ledger_open": 0},
        "links": 1, "restarts": 0
    });
    let relay = Standing { figures: Some(figures), ..online.clone() };
    let below = Standing { route: vec![id(50)], reached: Some(Reached::Relay), settings: (1, 1), ..online.clone() };
    let mut tagged = node("a", 2, Role::Agent, "hq", "PC-2", "wan");
    tagged.tags = vec!["desk".into()];
    let mut revoked = node("a", 3, Role::Agent, "hq", "PC-3", "lan");
    revoked.revoked_at = Some(NOW);
    vec![
        NodeView { node: node("a", 50, Role::Relay, "osaka", "osaka", "wan"), standing: relay },
        NodeView { node: node("a", 1, Role::Agent, "osaka", "PC-1", "lan"), standing: below },
        NodeView { node: tagged, standing: offline.clone() },
        NodeView { node: revoked, standing: offline.clone() },
        NodeView { node: node("a", 4, Role::Agent, "hq", "PC-3", "lan"), standing: offline.clone() },
        NodeView { node: node("b", 9, Role::Agent, "tokyo", "PC-9", "lan"), standing: offline },
    ]
}

/// Does of a running server what the API can see: jobs go into the store, online devices answer at once.
struct FakeControl {
    store: Arc<SqliteStore>,
    nodes: Vec<NodeView>,
    said: Mutex<Vec<String>>,
    jobs: Mutex<Vec<NewJob>>,
    /// Where every order is.
    whereabouts: Mutex<Whereabouts>,
    /// Answered to whatever is ordered, if set.
    refusal: Mutex<Option<Refusal>>,
    settings: Mutex<Settings>,
    recovery: Mutex<RecoveryFigures>,
}

impl FakeControl {
    fn new(store: Arc<SqliteStore>) -> FakeControl {
        let settings = Mutex::new(Settings::first(tenant("a"), 1));
        let (said, jobs, whereabouts, refusal) = Default::default();
        let recovery = Mutex::new(RecoveryFigures { term: 1, recovering: None });
        FakeControl { store, nodes: vec![], said, jobs, whereabouts, refusal, settings, recovery }
    }

    /// Everything it was told to do, in order.
    fn said(&self) -> Vec<String> {
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
        let unknown = job.on.named_devices().into_iter().filter(|words| {
            use branchline_protocol::selector::Candidate;
            !nodes.iter().any(|view| Target { view, names: &names }.is(words))
        });
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
