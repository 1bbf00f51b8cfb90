//! A tree of real processes whose every link runs through a proxy of ours.
//!
//! `up` enrols the nodes and ends; then each node that has children moves to another port, and a proxy takes the
//! address that its children were told. So no node knows of the proxies, and the signed upstream lists hold.

use super::process::{Kept, Program, kill_by_words};
use crate::{
    office::{Office, Web, until},
    proxy::{Proxy, Whom},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

/// An answer of the API that takes longer is none: the server may be stopped just now.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of each log that a failure shows.
const LOG_TAIL: usize = 1_500;

/// A node of the tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// `server`, `gateway`, `relay`, `agent`.
    pub role: String,
    /// Its id.
    pub id: String,
    /// The node it dials, by name.
    pub parent: Option<String>,
    /// Its own address, from which it dials.
    pub ip: IpAddr,
}

/// A running tree. Dropping it ends every process of it, jobs included.
pub struct Plant {
    folder: tempfile::TempDir,
    exe: PathBuf,
    nodes: BTreeMap<String, Node>,
    kept: BTreeMap<String, Kept>,
    proxies: BTreeMap<String, Proxy>,
    api: String,
    token: String,
    web: Web,
}

impl Plant {
    /// Enrols the nodes of a topology, then starts them behind proxies and waits until every device is online.
    pub fn start(exe: &Path, topology: &str) -> Plant {
        let written = tempfile::tempdir().expect("a folder for the topology");
        std::fs::write(written.path().join("topology.toml"), topology).expect("the topology");
        let office = Office::start(exe, written.path());
        let (api, token) = (office.api(), office.token("main"));
        let (folder, report) = office.stop();
        let ca = PathBuf::from(report["ca_file"].as_str().expect("a CA file"));
        let mut plant = Plant {
            nodes: nodes(&folder.path().join("state"), &report),
            folder,
            exe: exe.to_path_buf(),
            kept: BTreeMap::new(),
            proxies: BTreeMap::new(),
            api,
            token,
            web: Web::patient(&ca, PATIENCE),
        };
        let names: Vec<String> = plant.nodes.keys().cloned().collect();
        for name in &names {
            plant.move_behind_a_proxy(name);
        }
        for name in &names {
            plant.kept.insert(name.clone(), Kept::start(plant.program(name), vec![]));
        }
        plant.all_online(120);
        plant
    }

    fn move_behind_a_proxy(&mut self, name: &str) {
        let key = match self.node(name).role.as_str() {
            "server" => "trunk",
            "gateway" => "public",
            "relay" => "link",
            _ => return,
        };
        let file = self.config(name);
        let text = std::fs::read_to_string(&file).expect("a configuration");
        let told = setting(&text, key).unwrap_or_else(|| panic!("no {key} in {text}"));
        let address: SocketAddr = told.parse().expect("an address");
        // Held for a moment only; nobody else of this machine listens on this node's own address.
        let moved = TcpListener::bind((address.ip(), 0)).and_then(|l| l.local_addr()).expect("a free port");
        let text = text.replace(&format!("{key} = \"{told}\""), &format!("{key} = \"{moved}\""));
        // A gateway answers to the name that children know, and that holds the port they were told.
        let text = text.replace(&format!("[\"{}\"]", address.ip()), &format!("[\"{told}\"]"));
        std::fs::write(&file, text).expect("the configuration");
        let proxy = Proxy::start(address, moved).unwrap_or_else(|e| panic!("a proxy at {address}: {e}"));
        self.proxies.insert(name.to_string(), proxy);
    }

    fn program(&self, name: &str) -> Program {
        let config = self.config(name).to_str().expect("a UTF-8 path").to_string();
        let args = ["node", self.node(name).role.as_str(), "--config", config.as_str()].map(String::from).to_vec();
        Program { exe: self.exe.clone(), args, log: self.state().join("logs").join(format!("{name}.log")) }
    }

    /// The state folder, as `up` made it.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The folder around it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A node's own state folder.
    pub fn node_state(&self, name: &str) -> PathBuf {
        self.state().join("nodes").join(name)
    }

    /// A node's configuration file.
    pub fn config(&self, name: &str) -> PathBuf {
        self.state().join("config").join(format!("{name}.toml"))
    }

    /// A node.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.get(name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// The names of all nodes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// Nodes of a role, by name.
    pub fn of<'p>(&'p self, role: &'p str) -> impl Iterator<Item = &'p Node> {
        self.nodes.values().filter(move |n| n.role == role)
    }

    /// Agents at or below a node.
    pub fn below(&self, name: &str) -> Vec<&Node> {
        let mut below = Vec::new();
        for agent in self.of("agent") {
            let mut at = Some(agent.name.as_str());
            while let Some(node) = at {
                if node == name {
                    below.push(agent);
                }
                at = self.node(node).parent.as_deref();
            }
        }
        below
    }

    /// A node's process.
    pub fn process(&self, name: &str) -> &Kept {
        self.kept.get(name).unwrap_or_else(|| panic!("{name} is not kept"))
    }

    /// The link of a child to its parent: the parent's proxy, and whose bytes on it are the child's.
    pub fn link(&self, child: &str) -> (&Proxy, Whom) {
        let node = self.node(child);
        let parent = node.parent.as_deref().unwrap_or_else(|| panic!("{child} has no parent"));
        (&self.proxies[parent], Whom::From(node.ip))
    }

    /// What stands before a node that has children.
    pub fn proxy(&self, name: &str) -> &Proxy {
        self.proxies.get(name).unwrap_or_else(|| panic!("no proxy before {name}"))
    }

    /// A device may go by the gateway too, and looks for a better way every second. It starts anew with that.
    pub fn let_roam(&self, agent: &str) {
        let kept = self.process(agent);
        kept.hold_down();
        let text = std::fs::read_to_string(self.config(agent)).expect("a configuration");
        let text = text.replace("reach = \"direct\"", "reach = \"any\"\nprobe_interval_s = 1");
        assert!(text.contains("probe_interval_s"), "it was held to one way: {text}");
        std::fs::write(self.config(agent), text).expect("the configuration");
        kept.let_start(vec![]);
    }

    /// A new device beside another one, with a bundle of its own: it enrols as soon as it runs.
    pub fn add_agent(&mut self, name: &str, beside: &str) {
        let parent = self.node(beside).parent.clone().expect("an agent has a parent");
        let wish = json!({ "role": "agent", "parent": parent, "site": parent, "uses": 1, "life_s": 3_600 });
        let (status, answer) = self.tell("/bundles", &wish).expect("the server answers");
        let bundle = answer["bundle"].as_str().unwrap_or_else(|| panic!("{status} {answer}"));
        std::fs::write(self.state().join("bundles").join(name), bundle).expect("a bundle");
        let text = std::fs::read_to_string(self.config(beside)).expect("a configuration");
        // The ports are the other one's.
        let ports = |line: &&str| line.starts_with("private") || line.starts_with("wake_port");
        let mut text: String = text.lines().filter(|line| !ports(line)).map(|line| format!("{line}\n")).collect();
        text.insert_str(0, "private = 'off'\nwake = false\n");
        std::fs::write(self.config(name), text.replace(beside, name)).expect("a configuration");
        let node = Node { name: name.into(), id: String::new(), ..self.node(beside).clone() };
        self.nodes.insert(name.into(), node);
        self.kept.insert(name.into(), Kept::start(self.program(name), vec![]));
    }

    /// Waits until a new device is online, and learns its id.
    pub fn enrolled(&mut self, name: &str, secs: u64) {
        let id = until(&format!("{name} is online"), secs, || {
            let devices = self.ask("/devices").unwrap_or_default();
            let list = devices["devices"].as_array().cloned().unwrap_or_default();
            let own: Vec<&Value> = list.iter().filter(|d| d["name"] == name).collect();
            assert!(own.len() <= 1, "{name} is there {} times: {own:?}", own.len());
            let found = own.first().filter(|d| d["state"] == "online").and_then(|d| d["id"].as_str());
            found.map(String::from).ok_or_else(|| format!("{own:?}"))
        });
        self.nodes.get_mut(name).expect("it was added").id = id;
    }

    /// The power of a device fails: its agent and all that runs for it are gone at once. The agent starts again.
    pub fn cut_power(&self, agent: &str) -> bool {
        let kept = self.process(agent);
        let there = kept.hold_down();
        self.kill_jobs(agent);
        kept.let_start(vec![]);
        there
    }

    /// Kills the shims of an agent, whose programs die with them.
    fn kill_jobs(&self, agent: &str) {
        let jobs = self.node_state(agent).join("jobs");
        let jobs = jobs.canonicalize().unwrap_or(jobs);
        // A shim that is being started shows its command line a moment later.
        let words = format!(" shim {}/", jobs.display());
        while kill_by_words(&words) > 0 {}
    }

    /// GET below `/api/v1`; none while there is no good answer.
    pub fn ask(&self, path: &str) -> Option<Value> {
        let answer = self.web.try_get(&format!("{}/api/v1{path}", self.api), &self.token);
        answer.ok().filter(|(status, _)| *status == 200).map(|(_, body)| body)
    }

    /// POST below `/api/v1`: status and body, or why there is no answer.
    pub fn tell(&self, path: &str, body: &Value) -> Result<(u16, Value), String> {
        self.web.try_post(&format!("{}/api/v1{path}", self.api), &self.token, body)
    }

    /// Waits until a job is complete, and returns it.
    pub fn completed(&self, job: &str, secs: u64) -> Value {
        until(&format!("job {job} is complete"), secs, || {
            let job = self.ask(&format!("/jobs/{job}")).unwrap_or(json!("no answer"));
            if job["complete"] == true { Ok(job) } else { Err(job["counts"].to_string()) }
        })
    }

    /// Waits until every device is online.
    pub fn all_online(&self, secs: u64) {
        until("every device is online", secs, || {
            let devices = self.ask("/devices").unwrap_or(json!("no answer"));
            let Some(list) = devices["devices"].as_array() else { return Err(devices.to_string()) };
            let away: Vec<String> = list
                .iter()
                .filter(|d| d["state"] != "online")
                .map(|d| format!("{} is {} ({})", d["name"], d["state"], d["state_reason"]))
                .collect();
            if away.is_empty() { Ok(()) } else { Err(away.join(", ")) }
        });
    }

    /// Ends that nobody ordered: a node that panicked, whose store failed, or that gave up. A SIGKILL is always ordered:
    /// by this process or by the node's own crash point.
    pub fn unordered_ends(&self) -> Vec<String> {
        let of = |(name, kept): (&String, &Kept)| {
            let ends = kept.history().1.into_iter().filter(|end| !end.ours && end.signal != Some(libc::SIGKILL));
            ends.map(|end| format!("{name} ended by itself: {end:?}")).collect::<Vec<_>>()
        };
        self.kept.iter().flat_map(of).collect()
    }

    /// Ends every process in good order, agents first, so that the stores can be opened.
    pub fn stop(&mut self) {
        for role in ["agent", "relay", "gateway", "server"] {
            let names: Vec<String> = self.of(role).map(|n| n.name.clone()).collect();
            let threads: Vec<_> = names
                .iter()
                .filter_map(|name| self.kept.remove(name))
                .map(|kept| std::thread::spawn(move || kept.stop()))
                .collect();
            for thread in threads {
                let _ = thread.join();
            }
        }
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let of = |name: &String| {
            let bytes = std::fs::read(self.state().join("logs").join(format!("{name}.log"))).unwrap_or_default();
            let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL)..]).into_owned();
            format!("--- {name}\n{tail}\n")
        };
        self.nodes.keys().map(of).collect()
    }

    /// The lines of a node's log that hold each of these words.
    pub fn log_lines(&self, name: &str, words: &[&str]) -> Vec<String> {
        let bytes = std::fs::read(self.state().join("logs").join(format!("{name}.log"))).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.lines().filter(|line| words.iter().all(|word| line.contains(word))).map(String::from).collect()
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        self.kept.clear();
        let agents: Vec<String> = self.of("agent").map(|n| n.name.clone()).collect();
        agents.iter().for_each(|agent| self.kill_jobs(agent));
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("the plant's logs end so; all of it stays in {}\n{}", self.folder.path().display(), self.logs());
        }
    }
}

/// The nodes of `up`'s report, with the addresses of its book.
fn nodes(state: &Path, report: &Value) -> BTreeMap<String, Node> {
    let book: Value = serde_json::from_slice(&std::fs::read(state.join("ports.json")).expect("a book")).expect("JSON");
    let text = |v: &Value, key: &str| v[key].as_str().map(String::from);
    let of = |n: &Value| {
        let name = text(n, "name").expect("a name");
        let ip = book["nodes"][&name]["ip"].as_str().expect("an address").parse().expect("an address");
        let (role, id) = (text(n, "role").expect("a role"), text(n, "id").expect("an id"));
        // An agent or relay that dials a gateway has it as its parent; a gateway's is the server.
        let node = Node { name: name.clone(), role, id, parent: text(n, "parent"), ip };
        (name, node)
    };
    report["nodes"].as_array().expect("nodes").iter().map(of).collect()
}

fn setting(text: &str, key: &str) -> Option<String> {
    let start = format!("{key} = \"");
    let line = text.lines().find(|line| line.starts_with(&start))?;
    Some(line[start.len()..].trim_end_matches('"').to_string())
}
