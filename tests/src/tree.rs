//! The tree builder: server, gateways, relays and agents as values in one process, on one actix system, each with a
//! temporary folder of its own and ports the system chose. Tokens and bundles come from the server's HTTP API, as an
//! operator would get them.

pub mod api;
pub mod logs;
pub mod platform;
mod restore;
pub mod ways;

use api::Api;
use branchline_agent::{Agent, AgentConfig, AgentProcess, RunningAgent, platform::Platform};
use branchline_gateway::RunningGateway;
use branchline_node::{
    config::Reach,
    identity::Bundle,
    node::{Ambient, StartFault, Started},
    process::RunningNode,
    supervise::Supervision,
    uplink::spool::Quotas,
};
use branchline_protocol::{
    id::{JobId, NodeId, TenantId},
    wire::Contact,
};
use branchline_relay::{Relay, RunningRelay};
use branchline_server::{RunningServer, Server};
use serde_json::{Value, json};
use std::{cell::RefCell, collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tempfile::TempDir;

/// Nothing a scenario waits for may take longer: a bound for liveness, far from any expectation.
pub const BOUND: Duration = Duration::from_secs(60);
/// No scenario may take longer.
const SCENARIO_BOUND: Duration = Duration::from_secs(240);
/// How often a value is looked at that nobody announces.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The site of those that have no relay above them.
pub const SITE: &str = "hq";

/// Runs a scenario on an actix system of its own.
pub fn scenario(run: impl Future<Output = ()>) {
    logs::keep();
    actix_rt::System::new().block_on(async {
        let ended = tokio::time::timeout(SCENARIO_BOUND, run).await;
        ended.unwrap_or_else(|_| panic!("the scenario did not end within {SCENARIO_BOUND:?}"));
    });
}

/// Asks until the answer is `Ok`. What `Err` tells is what was seen instead; the last is shown when time is up.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let seen = RefCell::new(String::new());
    let answered = async {
        loop {
            match ask().await {
                Ok(value) => return value,
                Err(instead) => drop(seen.replace(instead)),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let answered = tokio::time::timeout(BOUND, answered).await;
    answered.unwrap_or_else(|_| panic!("{what}: not within {BOUND:?}; last seen: {}", seen.borrow()))
}

/// `Ok` where it holds, else what was seen.
pub fn holds(good: bool, seen: impl std::fmt::Debug) -> Result<(), String> {
    if good { Ok(()) } else { Err(format!("{seen:?}")) }
}

/// How a relay is to be.
#[derive(Clone, Copy, Debug)]
pub struct RelayWish {
    /// Persistent device links.
    pub slots: u16,
    /// Seconds between the polls of those without one.
    pub poll_interval_s: u64,
    /// Seconds a freed slot waits for its waiter.
    pub reservation_s: Option<u64>,
}

impl Default for RelayWish {
    fn default() -> Self {
        RelayWish { slots: 300, poll_interval_s: 3_600, reservation_s: None }
    }
}

struct Device {
    config: AgentConfig,
    platform: Arc<dyn Platform>,
    ambient: Ambient,
    running: Option<RunningAgent>,
}

/// The tree; see the module. Stop it with [`Tree::stop`].
pub struct Tree {
    folder: TempDir,
    shim: String,
    /// `None` only while it is stopped to be restored.
    server: Option<RunningServer>,
    server_config: branchline_server::Config,
    apis: BTreeMap<String, Api>,
    gateways: BTreeMap<String, RunningGateway>,
    relays: BTreeMap<String, RunningRelay>,
    relay_configs: BTreeMap<String, branchline_relay::Config>,
    devices: BTreeMap<String, Device>,
    cas: Vec<PathBuf>,
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn reach(parent: &str) -> Reach {
    if parent == "gateway" { Reach::Gateway } else { Reach::Direct }
}

impl Tree {
    /// A server with these tenants. `shim` is the program agents start for each job.
    pub async fn start(shim: &str, tenants: &[&str]) -> Tree {
        Tree::with_slots(shim, tenants, 300).await
    }

    /// The same with another number of persistent device links at the server.
    pub async fn with_slots(shim: &str, tenants: &[&str], slots: u16) -> Tree {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let state = folder.path().join("server");
        let config = branchline_server::Config {
            file: Some(folder.path().join("server.toml")),
            name: "server".into(),
            state_dir: state.clone(),
            link: local(),
            trunk: local(),
            api: local(),
            accept_from: Vec::new(),
            slots,
            allow_above_300: false,
            poll_interval_s: 3_600,
            notice_port: Some(0),
            link_rate: Default::default(),
            advertise_link: Vec::new(),
            recovering_max_s: 600,
            init_if_new: true,
            tenants: tenants.iter().map(|t| (tenant(t), vec![SITE.to_string()])).collect(),
        };
        let mut server_config = config.clone();
        let server = Server::start(config, Ambient::system()).await.expect("the server starts");
        let bound = &server.started().addresses;
        (server_config.link, server_config.trunk, server_config.api) = (bound["link"], bound["trunk"], bound["api"]);
        // A relay's private port shows a certificate of its tenant's CA.
        let ca_of = |tenant: &&str| state.join("tenants").join(tenant).join("ca").join("ca.pem");
        let cas: Vec<_> = std::iter::once(state.join("ca.pem")).chain(tenants.iter().map(ca_of)).collect();
        let open = Api::new(server.started().addresses["api"], &cas[..1], None);
        let token = |name: &str| {
            let text = std::fs::read_to_string(state.join("tokens").join(name)).expect("the server wrote its tokens");
            open.with_token(text.trim().to_string())
        };
        let apis = tenants.iter().chain(&["system"]).map(|name| (name.to_string(), token(name))).collect();
        let (gateways, relays, relay_configs, devices) = Default::default();
        let server = Some(server);
        Tree { folder, shim: shim.into(), server, server_config, apis, gateways, relays, relay_configs, devices, cas }
    }

    /// The running server.
    pub fn server(&self) -> &RunningServer {
        self.server.as_ref().expect("a running server")
    }

    /// The API with a tenant's token, or the system's.
    pub fn api(&self, tenant: &str) -> Api {
        self.apis[tenant].clone()
    }

    /// Where a server's or relay's configuration is looked for while it runs; nothing is there unless a scenario writes it.
    pub fn file_of(&self, node: &str) -> PathBuf {
        self.folder.path().join(format!("{node}.toml"))
    }

    /// The folder of a node.
    pub fn folder(&self, node: &str) -> PathBuf {
        self.folder.path().join(node)
    }

    /// Starts a relay at a site of its own name and waits until the server sees it. `parent` is `server`, `gateway` or
    /// a relay's name. Each relay has its own site because a site's upstream list decides who its devices' parents are.
    pub async fn relay(&mut self, tenant: &str, name: &str, parent: &str, wish: RelayWish) {
        self.api(tenant).post("/api/v1/sites", json!({ "name": name })).await.good();
        self.relay_at(tenant, name, name, parent, wish).await;
    }

    /// The same at a site that is there.
    pub async fn relay_at(&mut self, tenant: &str, name: &str, site: &str, parent: &str, wish: RelayWish) {
        let body = json!({ "role": "relay", "site": site, "parent": parent, "uses": 1, "life_s": 3_600 });
        let config = branchline_relay::Config {
            file: Some(self.file_of(name)),
            name: name.into(),
            state_dir: self.folder(name),
            link: local(),
            private: local(),
            slots: wish.slots,
            allow_above_300: false,
            poll_interval_s: wish.poll_interval_s,
            reservation_s: wish.reservation_s,
            notice_port: Some(0),
            link_rate: Default::default(),
            bundle: self.bundle(tenant, name, body).await,
            bind_source: None,
            reach: reach(parent),
            probe_interval_s: 900,
            quotas: Quotas::RELAY,
        };
        self.relay_configs.insert(name.into(), config);
        self.start_relay(name).await;
        eventually("the relay is online", async || {
            let node = self.tree_node(name, tenant).await;
            holds(node["state"] == "online", node)
        })
        .await;
    }

    /// Starts a relay that was stopped, with the same folder and at the same address.
    pub async fn start_relay(&mut self, name: &str) {
        let config = self.relay_configs.get_mut(name).expect("a relay of this tree");
        let relay = Relay::start(config.clone(), Ambient::system()).await.expect("the relay starts");
        config.link = relay.started().addresses["link"];
        self.relays.insert(name.into(), relay);
    }

    /// Restarts a relay whose datagrams are switched off, or blocked.
    pub async fn silence_relay(&mut self, name: &str) {
        self.stop_relay(name).await;
        self.relay_configs.get_mut(name).expect("a relay of this tree").notice_port = None;
        self.start_relay(name).await;
    }

    /// The same for one that may not start; it is not kept.
    pub async fn try_start_relay(&mut self, name: &str) -> Result<(), StartFault> {
        let config = self.relay_configs[name].clone();
        let relay = Relay::start(config, Ambient::system()).await?;
        relay.stop().await;
        Ok(())
    }

    /// Stops a relay in good order.
    pub async fn stop_relay(&mut self, name: &str) {
        self.relays.remove(name).expect("a running relay").stop().await;
    }

    /// The actor tree of a relay, or of `server`.
    pub fn supervision(&self, node: &str) -> &Supervision {
        self.relays.get(node).map_or_else(|| self.server().supervision(), RunningRelay::supervision)
    }

    /// Starts an agent at its parent's site; its link comes up by itself. `parent` as for relays.
    pub async fn agent(&mut self, tenant: &str, name: &str, parent: &str, platform: Arc<dyn Platform>) {
        self.agent_that(tenant, name, parent, platform, Contact::Persistent).await;
    }

    /// The same with what it asks of its parents.
    pub async fn agent_that(
        &mut self,
        tenant: &str,
        name: &str,
        parent: &str,
        platform: Arc<dyn Platform>,
        contact: Contact,
    ) {
        self.agent_with(tenant, name, parent, platform, |config| config.contact = contact).await;
    }

    /// The same with whatever its configuration is to say.
    pub async fn agent_with(
        &mut self,
        tenant: &str,
        name: &str,
        parent: &str,
        platform: Arc<dyn Platform>,
        wish: impl FnOnce(&mut AgentConfig),
    ) {
        let site = if matches!(parent, "server" | "gateway") { SITE } else { parent };
        let body = json!({ "role": "agent", "site": site, "parent": parent, "uses": 1, "life_s": 3_600 });
        let bundle = self.bundle(tenant, name, body).await;
        let (name, state_dir, reach) = (name.to_string(), self.folder(name), reach(parent));
        let mut config = AgentConfig {
            name: name.clone(),
            state_dir,
            bundle,
            bind_source: Some(local().ip()),
            reach,
            probe_interval_s: 900,
            private: None,
            contact: Contact::Persistent,
            wake_port: None,
            quotas: Quotas::AGENT,
            restart: true,
        };
        wish(&mut config);
        self.devices.insert(name.clone(), Device { config, platform, ambient: Ambient::system(), running: None });
        self.start_agent(&name).await;
    }

    /// Starts an agent that was stopped, with the same folder.
    pub async fn start_agent(&mut self, name: &str) {
        self.may_start_agent(name).await.expect("the agent starts");
    }

    /// The same for one whose disk may be too full for it.
    pub async fn may_start_agent(&mut self, name: &str) -> Result<(), StartFault> {
        let process = AgentProcess { pid: std::process::id(), shim: vec![self.shim.clone()] };
        let device = self.devices.get_mut(name).expect("a device of this tree");
        let started =
            Agent::start(device.config.clone(), device.ambient.clone(), device.platform.clone(), process).await;
        device.running = Some(started?);
        Ok(())
    }

    /// The same for one that may not start; it is not kept.
    pub async fn try_start_agent(&mut self, name: &str) -> Result<(), StartFault> {
        let process = AgentProcess { pid: std::process::id(), shim: vec![self.shim.clone()] };
        let device = &self.devices[name];
        let agent =
            Agent::start(device.config.clone(), device.ambient.clone(), device.platform.clone(), process).await?;
        agent.stop().await;
        Ok(())
    }

    /// Stops an agent in good order.
    pub async fn stop_agent(&mut self, name: &str) {
        let running = self.devices.get_mut(name).and_then(|d| d.running.take());
        running.expect("a running agent").stop().await;
    }

    /// A running agent.
    pub fn running(&self, name: &str) -> &RunningAgent {
        self.devices[name].running.as_ref().expect("a running agent")
    }

    /// The id of an agent, relay or gateway.
    pub fn id(&self, name: &str) -> NodeId {
        let device = self.devices.get(name).and_then(|d| d.running.as_ref()).map(|r| r.started().id);
        let relay = self.relays.get(name).map(|r| r.started().id);
        let gateway = self.gateways.get(name).map(|g| g.started.id);
        device.or(relay).or(gateway).unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// A tenant's devices by name.
    pub async fn devices(&self, tenant: &str) -> BTreeMap<String, Value> {
        let answer = self.api(tenant).get("/api/v1/devices?on=all").await.good();
        let devices = answer["devices"].as_array().cloned().unwrap_or_default();
        devices.into_iter().map(|d| (d["name"].as_str().unwrap_or_default().to_string(), d)).collect()
    }

    /// Waits until these devices are online.
    pub async fn online(&self, tenant: &str, names: impl IntoIterator<Item = impl AsRef<str>>) {
        let names: Vec<String> = names.into_iter().map(|n| n.as_ref().to_string()).collect();
        eventually("all devices are online", async || {
            let devices = self.devices(tenant).await;
            let away = |name: &&String| devices.get(*name).is_none_or(|d| d["state"] != "online");
            let away: Vec<_> = names.iter().filter(away).collect();
            holds(away.is_empty(), away)
        })
        .await;
    }

    /// A node of the tree as the administrator of everything sees it; null while there is none.
    pub async fn tree_node(&self, name: &str, tenant: &str) -> Value {
        let answer = self.api("system").get(format!("/api/v1/tree?tenant={tenant}")).await.good();
        let nodes = answer["nodes"].as_array().cloned().unwrap_or_default();
        nodes.into_iter().find(|n| n["name"] == name).unwrap_or_default()
    }

    /// `/getstatus` of a gateway, a relay, an agent with a private port, or `server`.
    pub async fn status(&self, node: &str) -> Value {
        self.private(node).get("/getstatus").await.good()
    }

    /// One value of a node's `/metrics`, by its name and a part of its labels; 0 while there is none.
    pub async fn metric(&self, node: &str, name: &str, labels: &str) -> f64 {
        let page = self.private(node).get("/metrics").await.good();
        let page = page.as_str().unwrap_or_default().to_string();
        let line = page.lines().find(|line| line.starts_with(name) && line.contains(labels));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    fn private(&self, node: &str) -> Api {
        let of = |started: &Started, key: &str| started.addresses[key];
        let agent = self.devices.get(node).and_then(|device| device.running.as_ref());
        let address = match (self.gateways.get(node), self.relays.get(node), agent) {
            (Some(gateway), ..) => of(&gateway.started, "private"),
            (_, Some(relay), _) => of(relay.started(), "private"),
            (.., Some(agent)) => of(agent.started(), "private"),
            _ => of(self.server().started(), "api"),
        };
        Api::new(address, &self.cas, None)
    }

    /// Orders a job; answers its object.
    pub async fn order(&self, tenant: &str, on: &str, args: Value, time_out_s: u64) -> Value {
        let body = json!({ "on": on, "verb": "run_script", "args": args, "time_out_s": time_out_s });
        self.api(tenant).post("/api/v1/jobs", body).await.good()
    }

    /// Waits until a job has no device short of its end.
    pub async fn completed(&self, tenant: &str, job: &Value) -> Value {
        let id = job["id"].as_str().expect("a job's id").to_string();
        eventually("the job is complete", async || {
            let job = self.api(tenant).get(format!("/api/v1/jobs/{id}?wait_ms=5000")).await.good();
            if job["complete"] == true { Ok(job) } else { Err(job["counts"].to_string()) }
        })
        .await
    }

    /// Orders a command line and waits for its end everywhere.
    pub async fn run(&self, tenant: &str, on: &str, argv: &[&str]) -> Value {
        let job = self.order(tenant, on, json!({ "argv": argv }), 60).await;
        self.completed(tenant, &job).await
    }

    /// The trace that the server gave a job.
    pub async fn trace(&self, of: &str, job: &Value) -> String {
        let id: JobId = job["id"].as_str().and_then(|id| id.parse().ok()).expect("a job's id");
        let row = self.server().store().job(&tenant(of), id).await.expect("the store answers");
        row.expect("the job is stored").trace.to_string()
    }

    async fn bundle(&self, tenant: &str, name: &str, body: Value) -> PathBuf {
        let answer = self.api(tenant).post("/api/v1/bundles", body).await.good();
        let text = answer["bundle"].as_str().expect("a bundle");
        Bundle::open(text).expect("a bundle that is whole");
        let path = self.folder.path().join(format!("{name}.bundle"));
        std::fs::write(&path, text).expect("the temporary folder can be written");
        path
    }

    /// Where a node's bundle lies.
    pub fn bundle_file(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.bundle"))
    }

    /// Stops every node, children first.
    pub async fn stop(self) {
        let agents = self.devices.into_values().filter_map(|d| d.running).map(RunningNode::stop);
        futures_util::future::join_all(agents).await;
        for (_, relay) in self.relays.into_iter().rev() {
            relay.stop().await;
        }
        for (_, gateway) in self.gateways {
            gateway.stop().await;
        }
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

/// A tenant's id.
pub fn tenant(name: &str) -> TenantId {
    name.parse().expect("a tenant's name")
}

/// How many devices of a job are in a state.
pub fn count(job: &Value, state: &str) -> u64 {
    job["counts"][state].as_u64().unwrap_or_else(|| panic!("no count of {state}: {job}"))
}

/// How many targets a job has, by its counts.
pub fn targets(job: &Value) -> u64 {
    job["counts"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum()
}

/// The row of a device, by id or by the administrator's words.
pub fn row(job: &Value, device: impl std::fmt::Display) -> Value {
    let device = device.to_string();
    let rows = job["results"].as_array().into_iter().flatten();
    let mut rows = rows.filter(|r| r["device"] == device.as_str());
    let row = rows.next().cloned().unwrap_or_else(|| panic!("no row of {device}: {job}"));
    assert!(rows.next().is_none(), "two rows of {device}: {job}");
    row
}

/// A script as the API takes it.
pub fn script(text: &str) -> Value {
    use base64::{Engine, prelude::BASE64_STANDARD};
    json!({ "script_base64": BASE64_STANDARD.encode(text) })
}
