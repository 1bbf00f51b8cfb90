//! The running tree as a measurement uses it.

use super::{
    host, process,
    snapshot::{PARTS, Snapshot, counter},
};
use crate::{
    client::{Client, metrics},
    failure::Failure,
    topology::{Plan, PlannedNode},
    up::{
        fleet::{Fault, Fleet},
        ports::Book,
        process::Program,
        say::{self, Steps},
        sequence::{Sequence, Server},
        state::State,
    },
    verbs::save_bundle,
};
use branchline_agent::Spared;
use branchline_protocol::id::Role;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

/// How often a state that nobody announces is asked for.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Agents tell a state by themselves within this; a tree that is still busy then is measured busy.
const QUIET_WITHIN: Duration = Duration::from_secs(30);
/// Seconds of CPU that all processes together may use between two looks and still count as quiet.
const QUIET_CPU_S: f64 = 0.03;
/// How long the agents' bundle is good for.
const BUNDLE_LIFE_S: u64 = 3_600;
/// The agents below the relay.
pub const AGENTS: &str = "agents";
/// The agents that dial the gateway.
pub const ROAMING: &str = "roaming";

/// The tree: server, gateway and relay run; agents are added.
pub struct Bench {
    plan: Rc<Plan>,
    state: Rc<State>,
    fleet: Fleet,
    sequence: Sequence,
    exe: PathBuf,
    book: Book,
    server: Server,
    spared: Spared,
    /// Speaks for the only tenant.
    pub client: Client,
    /// Name of each part's process.
    parts: BTreeMap<&'static str, String>,
}

impl Bench {
    /// Starts all but the agents.
    pub async fn start(
        plan: Rc<Plan>,
        state: Rc<State>,
        fleet: Fleet,
        sequence: Sequence,
        exe: &Path,
        spared: Spared,
    ) -> Result<Bench, Failure> {
        let mut book = Book::open(state.folder())?;
        let server = sequence.tiers(&mut book).await.map_err(told)?;
        let client = server.tenants.values().next().cloned();
        let client = client.ok_or_else(|| Failure::ended("internal", "the plan has no tenant"))?;
        let first = |role| plan.of(role).next().map(|n| n.name.clone()).unwrap_or_default();
        let parts = [("server", Role::Server), ("gateway", Role::Gateway), ("relay", Role::Relay)];
        let parts = parts.into_iter().map(|(part, role)| (part, first(role))).collect();
        Ok(Bench { plan, state, fleet, sequence, exe: exe.to_path_buf(), book, server, spared, client, parts })
    }

    /// Starts a process with every planned agent whose parent has this role, and waits until each is online, its
    /// inventory is at the server, and the tree is quiet. `name` is the process's, `AGENTS` or `ROAMING`.
    pub async fn add_agents(&mut self, name: &'static str, parent: Role) -> Result<(), Failure> {
        let plan = self.plan.clone();
        let below = |n: &&PlannedNode| n.parent.as_deref().and_then(|p| plan.node(p)).is_some_and(|p| p.role == parent);
        let agents: Vec<&PlannedNode> = plan.of(Role::Agent).filter(below).collect();
        let first = agents.first().ok_or_else(|| Failure::ended("internal", "the plan has no such agents"))?;
        self.state.make_folders(name)?;
        self.make_bundle(name, first, agents.len()).await?;
        let named: Vec<_> = agents.iter().map(|a| (a.name.clone(), self.book.ip(&a.name))).collect();
        let address = self.book.listen(name, "private");
        let text = host::config_text(&self.state.node(name), &self.state.bundle(name), address, self.spared, &named)?;
        let file = self.state.config(name);
        self.state.write(&file, &text)?;
        let file = file.to_str().ok_or_else(|| Failure::wrong("bad_state", "the state folder's path is not UTF-8"))?;
        let args = ["agent-host", "--config", file].map(str::to_string).to_vec();
        let program = Program { exe: self.exe.clone(), args, log: self.state.log(name) };
        self.fleet.start(name, program, self.state.node(name));
        self.parts.insert(name, name.to_string());
        let names: BTreeSet<String> = named.into_iter().map(|(name, _)| name).collect();
        self.all_ready(name, &names).await?;
        let started = tokio::time::timeout(self.sequence.left(), self.fleet.started(name)).await;
        started.map_err(|_| told(self.sequence.late("the agents do not run", Some(name))))?.map_err(told)?;
        self.quiet().await
    }

    async fn make_bundle(&self, name: &str, agent: &PlannedNode, uses: usize) -> Result<(), Failure> {
        let parent = agent.parent.as_deref().and_then(|p| self.plan.node(p));
        let parent = match parent {
            Some(p) if p.role == Role::Relay => p.name.as_str(),
            _ => "gateway",
        };
        let body = json!({
            "role": "agent", "site": agent.site, "parent": parent, "uses": uses, "life_s": BUNDLE_LIFE_S,
        });
        let client = self.client.clone();
        let bundle = self.sequence.call(move || client.post("/bundles", &[], &body)).await?;
        let text = bundle["bundle"].as_str();
        let text = text.ok_or_else(|| Failure::ended("bad_answer", "the server's answer holds no bundle"))?;
        let path = self.state.bundle(name);
        save_bundle(&path, text)
            .map_err(|e| Failure::ended("unwritable", format!("cannot write {}: {e}", path.display())))
    }

    /// Every one of these devices is online and told its inventory.
    async fn all_ready(&self, host: &str, names: &BTreeSet<String>) -> Result<(), Failure> {
        let mut steps = Steps::new("agents online with inventory", names.len() as u64);
        loop {
            let client = self.client.clone();
            let answer = self.sequence.call(move || client.get("/devices", &[("on", "all")])).await?;
            let ready = |d: &&Value| d["state"] == "online" && !d["inventory"]["collected_at"].is_null();
            let devices = answer["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
            let ready = devices.iter().filter(ready).filter_map(|d| d["name"].as_str());
            let ready = ready.filter(|name| names.contains(*name)).count();
            steps.at(ready as u64);
            if ready == names.len() {
                return Ok(());
            }
            if let Some(fault) = self.fleet.first_given_up() {
                return Err(told(fault));
            }
            if self.sequence.left().is_zero() {
                let what = format!("{} of {} agents are online with their inventory", ready, names.len());
                return Err(told(self.sequence.late(&what, Some(host))));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Waits until nobody works any more: inventories, acknowledgements and ends of earlier work are not to be counted
    /// to the next.
    pub async fn quiet(&self) -> Result<(), Failure> {
        let (mut last, mut in_a_row) = (self.processes()?, 0);
        for _ in 0..QUIET_WITHIN.as_millis() / ASK_EVERY.as_millis() {
            tokio::time::sleep(ASK_EVERY).await;
            let now = self.processes()?;
            in_a_row = if now.cpu_s_all() - last.cpu_s_all() <= QUIET_CPU_S { in_a_row + 1 } else { 0 };
            if in_a_row == 3 {
                return Ok(());
            }
            last = now;
        }
        say::line("the tree does not become quiet; it is measured as it is");
        Ok(())
    }

    fn processes(&self) -> Result<Snapshot, Failure> {
        let nodes = self.fleet.nodes();
        let mut snapshot = Snapshot::default();
        for (part, name) in &self.parts {
            let pid = nodes.get(name).and_then(|n| n.pid);
            let pid = pid.ok_or_else(|| Failure::ended("node_restarted", format!("{name} is not running any more")))?;
            snapshot.processes.insert(*part, process::read(pid)?);
        }
        Ok(snapshot)
    }

    /// Everything as it is now.
    pub async fn snapshot(&self) -> Result<Snapshot, Failure> {
        let nodes = self.fleet.nodes();
        let told = |part: &str| {
            let address = nodes.get(self.parts.get(part)?)?.started.as_ref()?.addresses.get("private").copied();
            address.map(|a| format!("https://{a}"))
        };
        let missing = |part: &str| Failure::ended("no_address", format!("the {part} told no private address"));
        let (server, ca) = (self.server.api.clone(), self.server.ca_file.clone());
        // A relay shows a certificate of its tenant's CA, which the server keeps beside its other keys.
        let tenant = self.plan.of(Role::Relay).next().map(|relay| relay.tenant.to_string()).unwrap_or_default();
        let tenant_ca = ca.with_file_name("tenants").join(tenant).join("ca").join("ca.pem");
        let gateway = told("gateway").ok_or_else(|| missing("gateway"))?;
        let relay = told("relay").ok_or_else(|| missing("relay"))?;
        let host = |part: &str| nodes.get(part)?.started.as_ref()?.addresses.get("private").copied();
        let hosts: Vec<_> = [AGENTS, ROAMING].into_iter().filter_map(|p| Some((p, host(p)?))).collect();
        let asked = self.sequence.call(move || {
            let server = metrics(&ca, &server)?;
            let gateway = metrics(&ca, &gateway)?;
            let relay = metrics(&tenant_ca, &relay)?;
            let fsyncs = |text: &str| counter(text, "branchline_fsyncs_total", None);
            let mut synced = BTreeMap::from([("server", fsyncs(&server)), ("relay", fsyncs(&relay))]);
            for (part, address) in hosts {
                synced.insert(part, host::fsyncs(address)?);
            }
            let uplink = |dir| counter(&relay, "branchline_uplink_bytes_total", Some(("dir", dir)));
            let piped = |dir| counter(&gateway, "branchline_gateway_bytes_total", Some(("direction", dir)));
            let wire = [
                ("relay_up", uplink("up")),
                ("relay_down", uplink("down")),
                ("gateway_up", piped("up")),
                ("gateway_down", piped("down")),
            ];
            Ok((synced, BTreeMap::from(wire)))
        });
        let (fsyncs, wire) = asked.await?;
        Ok(Snapshot { fsyncs, wire, ..self.processes()? })
    }

    /// A process that was started again has no figures of its whole life.
    pub fn still_the_same(&self) -> Result<(), Failure> {
        let again = self.fleet.nodes().into_iter().find(|(_, n)| n.restarts > 0 || n.pid.is_none());
        match again {
            Some((name, _)) => {
                let message =
                    format!("{name} ended during the measurement; its log is {}", self.state.log(&name).display());
                Err(Failure::ended("node_restarted", message))
            }
            None => Ok(()),
        }
    }

    /// Seconds since the start.
    pub fn elapsed_s(&self) -> f64 {
        self.sequence.elapsed_ms() as f64 / 1_000.0
    }

    /// A blocking call, on a thread of its own.
    pub async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        self.sequence.call(call).await
    }
}

/// A fault as the failure of the whole, with its node's name.
fn told(fault: Fault) -> Failure {
    match fault.node {
        Some(node) => Failure { message: format!("{node}: {}", fault.failure.message), ..fault.failure },
        None => fault.failure,
    }
}

/// The four that are always shown, with zero for what was not there.
pub fn of_parts<T>(value: impl Fn(&'static str) -> T) -> BTreeMap<&'static str, T> {
    PARTS.into_iter().map(|part| (part, value(part))).collect()
}
