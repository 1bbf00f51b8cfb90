//! The API over a real store, with a stand-in for the running server.

mod audit;
mod devices;
mod enrolment;
mod explaining;
mod fake;
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
    control::{NewJob, NodeView, RecoveryFigures, Standing, Whereabouts},
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
    selector::{Candidate, Selector},
    time::Millis,
};
use bytes::Bytes;
use fake::FakeControl;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
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
        capabilities: ["run_script".into()].into(),
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
