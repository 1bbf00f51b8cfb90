//! From nothing to a finished job: server, gateways, relays from the top down, agents, all online, the job.

use super::{
    fleet::{Fault, Fleet},
    generate,
    ports::Book,
    process::Program,
    say::{self, Steps},
    state::State,
};
use crate::{
    client::{Client, getstatus},
    context::{Context, SCHEMA, SYSTEM},
    failure::{Failure, exit_code},
    load::line::{self, Line},
    topology::{JobRun, Plan, PlannedNode},
    verbs::{Shown, all_succeeded, for_completion, save_bundle},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use branchline_node::{config::duration_text, node::Started, time::Clock};
use branchline_protocol::{
    id::{Role, TenantId},
    time::Mono,
};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

/// How often a state that nobody announces is asked for.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// Inventories travel beside the job's results; they are waited for this long, and shown as they then are.
const INVENTORY_WAIT: Duration = Duration::from_secs(15);
/// How long a bundle made for a node of this run is good for.
const BUNDLE_LIFE_S: u64 = 3_600;

/// What a finished sequence knows.
#[derive(Clone, Debug)]
pub struct Done {
    /// The product's CA.
    pub ca_file: PathBuf,
    /// Device objects of every tenant.
    pub devices: Vec<Value>,
    /// Each tenant's job, in the plan's order.
    pub jobs: Vec<(TenantId, Value)>,
    /// Milliseconds until all devices were online.
    pub ready_ms: u64,
    /// Milliseconds from the first order to the last result.
    pub job_ms: u64,
}

impl Done {
    /// Whether every row of every tenant's job succeeded.
    pub fn succeeded(&self) -> bool {
        !self.jobs.is_empty() && self.jobs.iter().all(|(_, job)| all_succeeded(job))
    }
}

/// The steps, with what each learns for the next.
pub struct Sequence {
    plan: Rc<Plan>,
    state: Rc<State>,
    fleet: Fleet,
    exe: PathBuf,
    clock: Arc<dyn Clock>,
    begin: Mono,
    limit: Duration,
    line: Line,
    /// Where the line to the gateway that is started begins.
    end: Cell<Option<SocketAddr>>,
}

/// The running server, as the later steps use it.
pub struct Server {
    trunk: SocketAddr,
    /// Base of its API, whose port also serves its figures.
    pub api: String,
    /// The product's CA.
    pub ca_file: PathBuf,
    system: Client,
    /// A client of each tenant.
    pub tenants: BTreeMap<TenantId, Client>,
}

impl Sequence {
    /// Nothing is started yet. `limit` is for the whole of it.
    pub fn new(
        plan: Rc<Plan>,
        state: Rc<State>,
        fleet: Fleet,
        exe: &Path,
        clock: Arc<dyn Clock>,
        limit: Duration,
    ) -> Self {
        let begin = clock.mono();
        Sequence {
            plan,
            state,
            fleet,
            exe: exe.to_path_buf(),
            clock,
            begin,
            limit,
            line: Line::default(),
            end: Cell::new(None),
        }
    }

    /// The same, with this line before every gateway.
    pub fn by_line(self, line: Line) -> Self {
        Sequence { line, ..self }
    }

    /// Carries all of it out.
    pub async fn run(&mut self) -> Result<Done, Fault> {
        let plan = self.plan.clone();
        let mut book = Book::open(self.state.folder())?;
        let server = self.tiers(&mut book).await?;
        for agent in plan.of(Role::Agent) {
            self.give_bundle(agent, &server).await?;
            self.start(agent, Some(server.trunk), &mut book, None)?;
        }
        book.save()?;
        self.all_online(&server).await?;
        // What agents tell in their folders may be seen a moment after the server saw them; the report names their ids.
        for agent in plan.of(Role::Agent) {
            self.listening(agent, Some(server.trunk), &mut book).await?;
        }
        let ready_ms = self.elapsed_ms();
        let jobs = self.jobs(&server).await?;
        let job_ms = self.elapsed_ms() - ready_ms;
        let devices = self.devices_with_inventory(&server).await?;
        Ok(Done { ca_file: server.ca_file, devices, jobs, ready_ms, job_ms })
    }

    /// Starts server, gateways and relays, each once the one above it serves.
    pub async fn tiers(&self, book: &mut Book) -> Result<Server, Fault> {
        let server = self.head(book).await?;
        for relay in self.plan.of(Role::Relay) {
            self.relay(relay, &server, book).await?;
        }
        Ok(server)
    }

    /// Starts server and gateways.
    pub async fn head(&self, book: &mut Book) -> Result<Server, Fault> {
        // Every node's address is fixed before the first starts: the server is told whom to accept.
        self.plan.nodes.iter().for_each(|node| {
            book.ip(&node.name);
        });
        book.save()?;
        let server = self.server(book).await?;
        for gateway in self.plan.of(Role::Gateway) {
            self.gateway(gateway, &server, book).await?;
        }
        Ok(server)
    }

    async fn server(&self, book: &mut Book) -> Result<Server, Fault> {
        let plan = self.plan.clone();
        let node = plan.of(Role::Server).next().ok_or_else(|| Failure::wrong("missing", "the plan has no server"))?;
        self.start(node, None, book, None)?;
        let started = self.listening(node, None, book).await?;
        let at_fault = |failure: Failure| Fault { failure, node: Some(node.name.clone()) };
        let address = |listener: &str| {
            let told = started.addresses.get(listener).copied();
            told.ok_or_else(|| {
                at_fault(Failure::ended("no_address", format!("{} told no {listener} address", node.name)))
            })
        };
        let folder = self.state.node(&node.name);
        let tokens = plan.tenants.iter().map(|t| t.name.to_string()).chain([SYSTEM.to_string()]);
        let context = Context {
            schema: SCHEMA,
            api: format!("https://{}", address("api")?),
            ca_file: folder.join("ca.pem"),
            tokens: tokens.map(|t| (t.clone(), folder.join("tokens").join(t))).collect(),
            default_tenant: plan.tenants.first().map(|t| t.name.to_string()),
            pid: Some(std::process::id()),
        };
        self.state.publish(&context)?;
        let system = Client::new(&context, Some(SYSTEM)).map_err(at_fault)?;
        let client = |tenant: &TenantId| Ok((tenant.clone(), Client::new(&context, Some(tenant.as_str()))?));
        let tenants: Result<_, Failure> = plan.tenants.iter().map(|t| client(&t.name)).collect();
        say::line(&format!("server {} serves its API at {}", node.name, context.api));
        let tenants = tenants.map_err(at_fault)?;
        Ok(Server { trunk: address("trunk")?, api: context.api, ca_file: context.ca_file, system, tenants })
    }

    async fn gateway(&self, node: &PlannedNode, server: &Server, book: &mut Book) -> Result<(), Fault> {
        let at_fault = |failure: Failure| Fault { failure, node: Some(node.name.clone()) };
        self.give_bundle(node, server).await?;
        let end =
            self.line.is_some().then(|| line::End::at(book.ip(&node.name).into())).transpose().map_err(at_fault)?;
        // The gateway answers to the names that its children know, and they know the line's.
        self.end.set(end.as_ref().map(|end| end.address));
        self.start(node, Some(server.trunk), book, None)?;
        let started = self.listening(node, Some(server.trunk), book).await?;
        let missing = |l: &str| at_fault(Failure::ended("no_address", format!("{} told no {l} address", node.name)));
        let mut public = *started.addresses.get("public").ok_or_else(|| missing("public"))?;
        if let Some(end) = end {
            let before = end.address;
            end.lay(self.line, public).map_err(at_fault)?;
            public = before;
        }
        let public = format!("https://{public}");
        let private = format!("https://{}", started.addresses.get("private").ok_or_else(|| missing("private"))?);
        // Children that knock before the trunk stands are only sent away.
        let what = format!("gateway {} does not reach the server", node.name);
        let ca_file = server.ca_file.clone();
        self.until(&what, Some(&node.name), move || {
            let status = getstatus(&ca_file, &private)?;
            Ok((status["server"] == "reachable").then_some(()))
        })
        .await?;
        let (system, body) = (server.system.clone(), json!({ "public": public }));
        self.call(move || system.post("/gateways", &[], &body)).await.map_err(at_fault)?;
        say::line(&format!("gateway {} listens at {public}", node.name));
        Ok(())
    }

    /// Starts a process in which a relay runs beside others, and waits until the relay has enrolled and listens.
    pub async fn relay_in(
        &self,
        args: Vec<String>,
        node: &PlannedNode,
        server: &Server,
        book: &mut Book,
    ) -> Result<(), Fault> {
        self.give_bundle(node, server).await?;
        self.start(node, Some(server.trunk), book, Some(args))?;
        self.listening(node, Some(server.trunk), book).await.map(drop)
    }

    async fn relay(&self, node: &PlannedNode, server: &Server, book: &mut Book) -> Result<(), Fault> {
        self.give_bundle(node, server).await?;
        self.start(node, Some(server.trunk), book, None)?;
        self.listening(node, Some(server.trunk), book).await?;
        // Its children's bundles name the address that it tells the server.
        let (client, name) = (self.tenant(server, &node.tenant)?.clone(), node.name.clone());
        self.until(&format!("relay {} is not online", node.name), Some(&node.name), move || {
            let tree = client.get("/tree", &[])?;
            let online = |n: &Value| n["name"] == name.as_str() && n["state"] == "online";
            Ok(tree["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(online)).then_some(()))
        })
        .await?;
        say::line(&format!("relay {} is online", node.name));
        Ok(())
    }

    /// Asks for a bundle unless the node enrolled in an earlier run.
    async fn give_bundle(&self, node: &PlannedNode, server: &Server) -> Result<(), Fault> {
        self.state.make_folders(&node.name)?;
        if self.state.has_identity(&node.name) {
            return Ok(());
        }
        let parent = node.parent.as_deref().and_then(|p| self.plan.node(p));
        let parent = match parent {
            Some(p) if p.role == Role::Relay => p.name.as_str(),
            Some(p) if p.role == Role::Gateway => "gateway",
            _ => "server",
        };
        let mut body = json!({ "role": node.role.as_str(), "parent": parent, "uses": 1, "life_s": BUNDLE_LIFE_S });
        if let Some(site) = &node.site {
            body["site"] = json!(site);
        }
        let client = match node.role {
            Role::Gateway => server.system.clone(),
            _ => self.tenant(server, &node.tenant)?.clone(),
        };
        let at_fault = |failure: Failure| Fault { failure, node: Some(node.name.clone()) };
        let bundle = self.call(move || client.post("/bundles", &[], &body)).await.map_err(at_fault)?;
        let text = bundle["bundle"].as_str();
        let text = text.ok_or_else(|| at_fault(Failure::ended("bad_answer", "the server's answer holds no bundle")))?;
        let path = self.state.bundle(&node.name);
        save_bundle(&path, text)
            .map_err(|e| at_fault(Failure::ended("unwritable", format!("cannot write {}: {e}", path.display()))))
    }

    /// Writes the node's configuration and starts its process, with these arguments or its own.
    fn start(
        &self,
        node: &PlannedNode,
        trunk: Option<SocketAddr>,
        book: &mut Book,
        args: Option<Vec<String>>,
    ) -> Result<(), Fault> {
        self.state.make_folders(&node.name)?;
        let file = self.configure(node, trunk, book)?;
        let config =
            file.to_str().ok_or_else(|| Failure::wrong("bad_state", "the state folder's path is not UTF-8"))?;
        let own = || ["node", node.role.as_str(), "--config", config].map(str::to_string).to_vec();
        let args = args.unwrap_or_else(own);
        let program = Program { exe: self.exe.clone(), args, log: self.state.log(&node.name) };
        self.fleet.start(&node.name, program, self.state.node(&node.name));
        Ok(())
    }

    fn configure(&self, node: &PlannedNode, trunk: Option<SocketAddr>, book: &mut Book) -> Result<PathBuf, Failure> {
        let file = self.state.config(&node.name);
        let text = generate::config(&self.plan, node, &self.state, book, trunk, self.end.get())?;
        self.state.write(&file, &text)?;
        Ok(file)
    }

    async fn listening(
        &self,
        node: &PlannedNode,
        trunk: Option<SocketAddr>,
        book: &mut Book,
    ) -> Result<Started, Fault> {
        let started = tokio::time::timeout(self.left(), self.fleet.started(&node.name)).await;
        let started = started.map_err(|_| self.late(&format!("{} does not listen", node.name), Some(&node.name)))??;
        book.learn(&node.name, &started.addresses)?;
        // A node that dies is started again from this file: its children look for it on the port of its first start.
        self.configure(node, trunk, book)?;
        Ok(started)
    }

    async fn all_online(&self, server: &Server) -> Result<(), Fault> {
        let mut steps = Steps::new("devices online", self.plan.of(Role::Agent).count() as u64);
        loop {
            let devices = self.devices(server).await?;
            let online = |d: &&PlannedNode| {
                let is = |v: &&Value| v["name"] == d.name.as_str() && v["tenant"] == d.tenant.as_str();
                devices.iter().find(is).is_some_and(|v| v["state"] == "online")
            };
            let missing: Vec<&str> =
                self.plan.of(Role::Agent).filter(|d| !online(d)).map(|d| d.name.as_str()).collect();
            steps.at((self.plan.of(Role::Agent).count() - missing.len()) as u64);
            if missing.is_empty() {
                return Ok(());
            }
            if let Some(fault) = self.fleet.first_given_up() {
                return Err(fault);
            }
            if self.left().is_zero() {
                let named = missing[..missing.len().min(10)].join(", ");
                let more = if missing.len() > 10 { ", …" } else { "" };
                let what = format!("{} devices are not online: {named}{more}", missing.len());
                return Err(self.late(&what, missing.first().copied()));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn devices(&self, server: &Server) -> Result<Vec<Value>, Fault> {
        let clients: Vec<(TenantId, Client)> = server.tenants.iter().map(|(t, c)| (t.clone(), c.clone())).collect();
        let names: Vec<String> = self.plan.of(Role::Agent).map(|n| n.name.clone()).collect();
        let devices = self.call(move || {
            let mut all = vec![];
            for (tenant, client) in clients {
                let mut answer = client.get("/devices", &[("on", "all")])?;
                let devices = answer["devices"].as_array_mut().map(std::mem::take).unwrap_or_default();
                all.extend(devices.into_iter().map(|mut d| {
                    // Under `up` a device's node bears its name, and a tenant's client sees that tenant only.
                    if d["node"].is_null() && names.iter().any(|n| d["name"] == n.as_str()) {
                        d["node"] = d["name"].clone();
                    }
                    if d["tenant"].is_null() {
                        d["tenant"] = json!(tenant);
                    }
                    d
                }));
            }
            Ok(all)
        });
        Ok(devices.await?)
    }

    async fn jobs(&self, server: &Server) -> Result<Vec<(TenantId, Value)>, Fault> {
        let args = match &self.plan.job.run {
            JobRun::Argv(argv) => json!({ "argv": argv }),
            JobRun::Script { text, interpreter } => {
                let mut args = json!({ "script_base64": BASE64_STANDARD.encode(text) });
                if let Some(interpreter) = interpreter {
                    args["interpreter"] = json!(interpreter);
                }
                args
            }
        };
        let time_out_s = self.plan.job.time_out.as_millis().div_ceil(1_000) as u64;
        let body = json!({ "on": self.plan.job.on, "verb": "run_script", "args": args, "time_out_s": time_out_s });
        let mut ordered = vec![];
        for tenant in self.plan.tenants.iter().filter(|t| self.plan.devices(&t.name).next().is_some()) {
            let (client, body) = (self.tenant(server, &tenant.name)?.clone(), body.clone());
            let job = self.call(move || client.post("/jobs", &[("results", "none")], &body)).await?;
            let id = job["id"].as_str().ok_or_else(|| Failure::ended("bad_answer", "the job has no id"))?;
            ordered.push((tenant.name.clone(), id.to_string()));
        }
        let mut jobs = vec![];
        for (tenant, id) in ordered {
            let client = self.tenant(server, &tenant)?.clone();
            let left = self.left();
            let job = self.call(move || for_completion(&client, &id, left, &mut Shown::on_stderr()));
            let job = job.await?;
            jobs.push((tenant, job));
        }
        Ok(jobs)
    }

    /// Devices as they are once each told its inventory, or after a while.
    async fn devices_with_inventory(&self, server: &Server) -> Result<Vec<Value>, Fault> {
        let begin = self.clock.mono();
        loop {
            let devices = self.devices(server).await?;
            let lacking = devices.iter().filter(|d| d["inventory"]["collected_at"].is_null()).count();
            let waited = Duration::from_millis(self.clock.mono().since(begin));
            if lacking == 0 || waited >= INVENTORY_WAIT || self.left().is_zero() {
                if lacking > 0 {
                    say::line(&format!("{lacking} devices told no inventory yet"));
                }
                return Ok(devices);
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    fn tenant<'s>(&self, server: &'s Server, tenant: &TenantId) -> Result<&'s Client, Failure> {
        let client = server.tenants.get(tenant);
        client.ok_or_else(|| Failure::wrong("unknown_tenant", format!("the plan has no tenant {tenant}")))
    }

    /// Asks until there is an answer; an API or node that is not there yet counts as no answer.
    async fn until<T: Send + 'static>(
        &self,
        what: &str,
        node: Option<&str>,
        ask: impl Fn() -> Result<Option<T>, Failure> + Clone + Send + 'static,
    ) -> Result<T, Fault> {
        loop {
            match self.call(ask.clone()).await {
                Ok(Some(answer)) => return Ok(answer),
                Err(failure) if failure.exit != exit_code::UNREACHABLE => {
                    return Err(Fault { failure, node: node.map(str::to_string) });
                }
                Err(failure) if self.left().is_zero() => {
                    return Err(self.late(&format!("{what}: {failure}"), node));
                }
                _ => {}
            }
            if let Some(fault) = self.fleet.first_given_up() {
                return Err(fault);
            }
            if self.left().is_zero() {
                return Err(self.late(what, node));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// A blocking call, on a thread of its own.
    pub async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let done = tokio::task::spawn_blocking(call).await;
        done.unwrap_or_else(|e| Err(Failure::ended("internal", format!("a call to the API broke off: {e}"))))
    }

    /// Milliseconds since the start.
    pub fn elapsed_ms(&self) -> u64 {
        self.clock.mono().since(self.begin)
    }

    /// What is left of the time.
    pub fn left(&self) -> Duration {
        self.limit.saturating_sub(Duration::from_millis(self.elapsed_ms()))
    }

    /// The time is over before `what`.
    pub fn late(&self, what: &str, node: Option<&str>) -> Fault {
        let log = node.map(|n| format!("; its log is {}", self.state.log(n).display())).unwrap_or_default();
        let message = format!("{what} after {}{log}", duration_text(self.limit));
        Fault { failure: Failure::ended("timed_out", message), node: node.map(str::to_string) }
    }
}
