//! The running tree as a measurement uses it.

use super::{
    branches::Branch,
    figures::Memory,
    host,
    leader::Leader,
    process,
    snapshot::{PARTS, RELAYS_WITH_AGENTS, Snapshot, counter},
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

/// How agents are added.
pub(super) struct Manner<'a> {
    /// Who leads them.
    pub leader: Option<&'a mut Leader>,
    /// Packages of each.
    pub packages: usize,
    /// Whether their first inventories wait for the leader's word.
    pub held: bool,
}

impl Default for Manner<'_> {
    fn default() -> Self {
        Manner { leader: None, packages: host::PACKAGES, held: false }
    }
}

/// The tree: server, gateway and a single relay run; agents, or branches, are added.
pub struct Bench {
    pub(super) plan: Rc<Plan>,
    pub(super) state: Rc<State>,
    pub(super) fleet: Fleet,
    pub(super) sequence: Sequence,
    exe: PathBuf,
    pub(super) book: Book,
    pub(super) server: Server,
    pub(super) spared: Spared,
    /// Each a relay with its agents in one process; none in a tree with one relay.
    pub(super) branches: Vec<Branch>,
    /// Speaks for the only tenant.
    pub client: Client,
    /// Name of each part's process.
    parts: BTreeMap<&'static str, String>,
}

impl Bench {
    /// Starts all but the agents, and but the relays if there are several.
    pub async fn start(
        plan: Rc<Plan>,
        state: Rc<State>,
        fleet: Fleet,
        sequence: Sequence,
        exe: &Path,
        spared: Spared,
    ) -> Result<Bench, Failure> {
        let mut book = Book::open(state.folder())?;
        let single = plan.of(Role::Relay).count() == 1;
        let server = if single { sequence.tiers(&mut book).await } else { sequence.head(&mut book).await };
        let server = server.map_err(told)?;
        let client = server.tenants.values().next().cloned();
        let client = client.ok_or_else(|| Failure::ended("internal", "the plan has no tenant"))?;
        let first = |role| plan.of(role).next().map(|n| n.name.clone()).unwrap_or_default();
        let parts = [("server", Role::Server), ("gateway", Role::Gateway), ("relay", Role::Relay)];
        let parts = parts.into_iter().filter(|(_, role)| single || *role != Role::Relay);
        let parts = parts.map(|(part, role)| (part, first(role))).collect();
        let (exe, branches) = (exe.to_path_buf(), Vec::new());
        Ok(Bench { plan, state, fleet, sequence, exe, book, server, spared, branches, client, parts })
    }

    /// Starts a process with every planned agent whose parent has this role, and waits until each is online, its
    /// inventory is at the server, and the tree is quiet. `name` is the process's, `AGENTS` or `ROAMING`.
    pub async fn add_agents(&mut self, name: &'static str, parent: Role) -> Result<(), Failure> {
        self.add(name, parent, &mut Manner::default()).await
    }

    /// The same in another manner; without their inventories if these are held back.
    pub(super) async fn add(
        &mut self,
        name: &'static str,
        parent: Role,
        manner: &mut Manner<'_>,
    ) -> Result<(), Failure> {
        let plan = self.plan.clone();
        let below = |n: &&PlannedNode| n.parent.as_deref().and_then(|p| plan.node(p)).is_some_and(|p| p.role == parent);
        let agents: Vec<&PlannedNode> = plan.of(Role::Agent).filter(below).collect();
        let first = agents.first().ok_or_else(|| Failure::ended("internal", "the plan has no such agents"))?;
        self.state.make_folders(name)?;
        let folder = self.state.node(name);
        let strangers = agents.iter().filter(|a| !folder.join(&a.name).join("identity").exists()).count();
        if strangers > 0 {
            let parent = first.parent.as_deref().and_then(|p| plan.node(p));
            let parent = parent.filter(|p| p.role == Role::Relay).map_or("gateway", |p| p.name.as_str());
            self.make_bundle(name, first.site.as_deref(), parent, strangers).await?;
        }
        let named: Vec<_> = agents.iter().map(|a| (a.name.clone(), self.book.ip(&a.name))).collect();
        let address = self.book.listen(name, "private");
        let text = host::config_text(&host::Wanted {
            state_dir: &folder,
            bundle: &self.state.bundle(name),
            relay: None,
            packages: manner.packages,
            held: manner.held,
            leader: manner.leader.as_ref().map(|leader| leader.address()).transpose()?,
            figures: address,
            spared: self.spared,
            agents: &named,
        })?;
        let file = self.state.config(name);
        self.state.write(&file, &text)?;
        let program = Program { exe: self.exe.clone(), args: host::command(&file)?, log: self.state.log(name) };
        self.fleet.start(name, program, self.state.node(name));
        self.parts.insert(name, name.to_string());
        let names: BTreeSet<String> = named.into_iter().map(|(name, _)| name).collect();
        if let Some(leader) = &mut manner.leader {
            self.all_enrolled(name, &names, leader).await?;
            leader.go().await?;
        }
        self.all_ready(Some(name), &names, !manner.held).await?;
        let started = tokio::time::timeout(self.sequence.left(), self.fleet.started(name)).await;
        started.map_err(|_| told(self.sequence.late("the agents do not run", Some(name))))?.map_err(told)?;
        self.quiet().await
    }

    /// Makes a bundle for so many agents, whole under its name or not at all.
    pub(super) async fn make_bundle(
        &self,
        name: &str,
        site: Option<&str>,
        parent: &str,
        uses: usize,
    ) -> Result<(), Failure> {
        let body = json!({ "role": "agent", "site": site, "parent": parent, "uses": uses, "life_s": BUNDLE_LIFE_S });
        let client = self.client.clone();
        let bundle = self.sequence.call(move || client.post("/bundles", &[], &body)).await?;
        let text = bundle["bundle"].as_str();
        let text = text.ok_or_else(|| Failure::ended("bad_answer", "the server's answer holds no bundle"))?;
        let path = self.state.bundle(name);
        let part = path.with_extension("part");
        save_bundle(&part, text)
            .and_then(|()| std::fs::rename(&part, &path))
            .map_err(|e| Failure::ended("unwritable", format!("cannot write {}: {e}", path.display())))
    }

    /// Every one of these agents waits for its leader's word.
    async fn all_enrolled(&self, host: &str, names: &BTreeSet<String>, leader: &mut Leader) -> Result<(), Failure> {
        let mut steps = Steps::new("agents enrolled", names.len() as u64);
        loop {
            if let Ok(met) = tokio::time::timeout(ASK_EVERY, leader.met()).await {
                return met;
            }
            let enrolled = names.iter().filter(|name| self.state.node(host).join(name).join("identity").exists());
            let enrolled = enrolled.count();
            steps.at(enrolled as u64);
            self.none_ended()?;
            if self.sequence.left().is_zero() {
                let what = format!("{enrolled} of {} agents are enrolled", names.len());
                return Err(told(self.sequence.late(&what, Some(host))));
            }
        }
    }

    /// Every one of these devices is online and, where it is wanted, told its inventory.
    pub(super) async fn all_ready(
        &self,
        host: Option<&str>,
        names: &BTreeSet<String>,
        inventory: bool,
    ) -> Result<(), Failure> {
        // The list of all devices is work for the server, which it may need for letting them in.
        let pause = ASK_EVERY.max(Duration::from_millis(names.len() as u64 / 20));
        let what = if inventory { "agents online with inventory" } else { "agents online" };
        let mut steps = Steps::new(what, names.len() as u64);
        loop {
            let client = self.client.clone();
            let counted =
                self.sequence.call(move || client.get("/devices", &[("on", "all"), ("results", "none")])).await?;
            let online = counted["counts"]["online"].as_u64().unwrap_or(0);
            if online < names.len() as u64 {
                // The list cannot be complete, and making it is more work than counting.
                self.none_ended()?;
                if self.sequence.left().is_zero() {
                    let what = format!("{online} of {} agents are online", names.len());
                    return Err(told(self.sequence.late(&what, host)));
                }
                tokio::time::sleep(ASK_EVERY).await;
                continue;
            }
            let client = self.client.clone();
            let answer = self.sequence.call(move || client.get("/devices", &[("on", "all")])).await?;
            let told_all = |d: &Value| !inventory || !d["inventory"]["collected_at"].is_null();
            let ready = |d: &&Value| d["state"] == "online" && told_all(d);
            let devices = answer["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
            let ready = devices.iter().filter(ready).filter_map(|d| d["name"].as_str());
            let ready = ready.filter(|name| names.contains(*name)).count();
            steps.at(ready as u64);
            if ready == names.len() {
                return Ok(());
            }
            self.none_ended()?;
            if self.sequence.left().is_zero() {
                let what = format!("{} of {} agents are online with their inventory", ready, names.len());
                return Err(told(self.sequence.late(&what, host)));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Waits until nobody works any more: inventories, acknowledgements and ends of earlier work are not to be counted
    /// to the next.
    pub async fn quiet(&self) -> Result<(), Failure> {
        let (mut last, mut in_a_row) = (self.cpu_s_all()?, 0);
        for _ in 0..QUIET_WITHIN.as_millis() / ASK_EVERY.as_millis() {
            tokio::time::sleep(ASK_EVERY).await;
            let now = self.cpu_s_all()?;
            in_a_row = if now - last <= QUIET_CPU_S { in_a_row + 1 } else { 0 };
            if in_a_row == 3 {
                return Ok(());
            }
            last = now;
        }
        say::line("the tree does not become quiet; it is measured as it is");
        Ok(())
    }

    /// The process of a node or host.
    pub(super) fn pid(&self, name: &str) -> Result<u32, Failure> {
        let pid = self.fleet.nodes().get(name).and_then(|n| n.pid);
        pid.ok_or_else(|| Failure::ended("node_restarted", format!("{name} is not running any more")))
    }

    /// Seconds of CPU that all processes used.
    fn cpu_s_all(&self) -> Result<f64, Failure> {
        let names = self.parts.values().chain(self.branches.iter().map(|branch| &branch.relay));
        names.map(|name| process::cpu_s(self.pid(name)?)).sum()
    }

    fn processes(&self) -> Result<Snapshot, Failure> {
        let mut snapshot = Snapshot::default();
        for (part, name) in &self.parts {
            snapshot.processes.insert(*part, process::read(self.pid(name)?)?);
        }
        self.add_readings(&mut snapshot)?;
        Ok(snapshot)
    }

    /// Each process's memory; where a relay and its agents share one, theirs together.
    pub fn memory(&self, at: &Snapshot) -> BTreeMap<&'static str, Memory> {
        let shared = ["server", "gateway", RELAYS_WITH_AGENTS];
        let parts = if self.branches.is_empty() { &PARTS[..] } else { &shared[..] };
        parts.iter().map(|part| (*part, Memory::of(at, part))).collect()
    }

    /// Everything as it is now.
    pub async fn snapshot(&self) -> Result<Snapshot, Failure> {
        let unasked = self.processes()?.processes.into_iter().map(|(part, reading)| (part, reading.cpu_s)).collect();
        let nodes = self.fleet.nodes();
        let told = |name: &String| {
            let address = nodes.get(name).and_then(|n| n.started.as_ref()?.addresses.get("private").copied());
            address.ok_or_else(|| Failure::ended("no_address", format!("{name} told no private address")))
        };
        let private = |name: &String| Ok(format!("https://{}", told(name)?));
        let (server, ca) = (self.server.api.clone(), self.server.ca_file.clone());
        // A relay shows a certificate of its tenant's CA, which the server keeps beside its other keys.
        let tenant = self.plan.of(Role::Relay).next().map(|relay| relay.tenant.to_string()).unwrap_or_default();
        let tenant_ca = ca.with_file_name("tenants").join(tenant).join("ca").join("ca.pem");
        let gateway = self.parts.get("gateway").map(private).transpose()?;
        let relays = self.parts.get("relay").into_iter().chain(self.branches.iter().map(|branch| &branch.relay));
        let relays = relays.map(private).collect::<Result<Vec<_>, Failure>>()?;
        let alone = [AGENTS, ROAMING].into_iter().filter_map(|part| Some((part, self.parts.get(part)?)));
        let alone = alone.map(|(part, name)| Ok((part, told(name)?))).collect::<Result<Vec<_>, Failure>>()?;
        let hosts: Vec<_> = alone.into_iter().chain(self.branches.iter().map(|b| (AGENTS, b.figures))).collect();
        let asked = self.sequence.call(move || {
            let fsyncs = |text: &str| counter(text, "branchline_fsyncs_total", None);
            let text = metrics(&ca, &server)?;
            let mut synced = BTreeMap::from([("server", fsyncs(&text)), ("relay", 0)]);
            let mut refused = refused_in(&text);
            let mut wire =
                BTreeMap::from(["relay_up", "relay_down", "gateway_up", "gateway_down"].map(|line| (line, 0)));
            let add = |to: &mut BTreeMap<_, u64>, key, more| *to.entry(key).or_default() += more;
            for relay in relays {
                let text = metrics(&tenant_ca, &relay)?;
                add(&mut synced, "relay", fsyncs(&text));
                refused += refused_in(&text);
                for (line, dir) in [("relay_up", "up"), ("relay_down", "down")] {
                    add(&mut wire, line, counter(&text, "branchline_uplink_bytes_total", Some(("dir", dir))));
                }
            }
            if let Some(gateway) = gateway {
                let text = metrics(&ca, &gateway)?;
                refused += refused_in(&text);
                for (line, dir) in [("gateway_up", "up"), ("gateway_down", "down")] {
                    add(&mut wire, line, counter(&text, "branchline_gateway_bytes_total", Some(("direction", dir))));
                }
            }
            for (part, address) in hosts {
                add(&mut synced, part, host::fsyncs(address)?);
            }
            Ok((synced, wire, refused))
        });
        let (fsyncs, wire, refused) = asked.await?;
        Ok(Snapshot { fsyncs, wire, refused, cpu_s_unasked: unasked, ..self.processes()? })
    }

    /// A process that was started again has no figures of its whole life, and one that is gone none.
    pub fn still_the_same(&self) -> Result<(), Failure> {
        self.none_ended()?;
        self.fleet.nodes().keys().try_for_each(|name| self.pid(name).map(drop))
    }

    /// No node was given up or had to be started again.
    pub(super) fn none_ended(&self) -> Result<(), Failure> {
        if let Some(fault) = self.fleet.first_given_up() {
            return Err(told(fault));
        }
        match self.fleet.nodes().into_iter().find(|(_, node)| node.restarts > 0) {
            Some((name, _)) => {
                let log = self.state.log(&name);
                let message = format!("{name} ended and was started again; its log is {}", log.display());
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

/// Links that a node turned away or that failed in its handshake, by its own figures.
fn refused_in(text: &str) -> u64 {
    let names = [
        "branchline_links_turned_away_total",
        "branchline_link_tls_failures_total",
        "branchline_gateway_refused_total",
    ];
    names.iter().map(|name| counter(text, name, None)).sum()
}

/// A fault as the failure of the whole, with its node's name.
pub(super) fn told(fault: Fault) -> Failure {
    match fault.node {
        Some(node) => Failure { message: format!("{node}: {}", fault.failure.message), ..fault.failure },
        None => fault.failure,
    }
}

/// The four that are always shown, with zero for what was not there.
pub fn of_parts<T>(value: impl Fn(&'static str) -> T) -> BTreeMap<&'static str, T> {
    PARTS.into_iter().map(|part| (part, value(part))).collect()
}
