//! Every process of a topology: kept running, counted, ended in order.

use super::{
    process::{self, Program},
    restart::{Next, Restart},
    say,
};
use crate::{failure::Failure, topology::Plan};
use branchline_node::{
    node::{Started, exit_code},
    time::{Clock, SystemClock},
};
use branchline_protocol::id::Role;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{process::Child, sync::watch, task::JoinHandle};

/// How often a starting node's `node.json` is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// One node's process as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// What it told once it listened; of its newest start that got so far.
    pub started: Option<Started>,
    /// Why it was given up: code and message.
    pub given_up: Option<(String, String)>,
}

/// A failure with the node at fault, if one is.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What went wrong.
    pub failure: Failure,
    /// The node's name.
    pub node: Option<String>,
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Fault { failure, node: None }
    }
}

/// All processes. Lives on one thread; clones are the same fleet.
#[derive(Clone)]
pub struct Fleet {
    plan: Rc<Plan>,
    inner: Rc<RefCell<Inner>>,
    clock: Arc<dyn Clock>,
    /// Told of every change of any node.
    change: Rc<watch::Sender<u64>>,
}

#[derive(Default)]
struct Inner {
    nodes: BTreeMap<String, NodeState>,
    keepers: BTreeMap<String, (watch::Sender<bool>, JoinHandle<()>)>,
}

impl Fleet {
    /// No process yet.
    pub fn new(plan: Rc<Plan>) -> Fleet {
        let inner = Rc::new(RefCell::new(Inner::default()));
        Fleet { plan, inner, clock: SystemClock::shared(), change: Rc::new(watch::Sender::new(0)) }
    }

    /// Told of each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.change.subscribe()
    }

    /// Every started node as it is, by name.
    pub fn nodes(&self) -> BTreeMap<String, NodeState> {
        self.inner.borrow().nodes.clone()
    }

    /// Starts a node and keeps it running. `state` is the node's own folder, where `node.json` will appear.
    pub fn start(&self, name: &str, program: Program, state: PathBuf) {
        let (stop, stopped) = watch::channel(false);
        self.set(name, |_| {});
        let keeper = Keeper { fleet: self.clone(), name: name.to_string(), program, state, stopped };
        let task = tokio::task::spawn_local(keeper.run());
        self.inner.borrow_mut().keepers.insert(name.to_string(), (stop, task));
    }

    /// Waits until the node listens; the caller bounds the wait.
    pub async fn started(&self, name: &str) -> Result<Started, Fault> {
        let mut changes = self.changes();
        loop {
            let node = self.inner.borrow().nodes.get(name).cloned().unwrap_or_default();
            if let Some((code, message)) = node.given_up {
                return Err(Fault { failure: Failure::ended(&code, message), node: Some(name.to_string()) });
            }
            if let Some(started) = node.started {
                return Ok(started);
            }
            if changes.changed().await.is_err() {
                return Err(Failure::ended("internal", "the fleet is gone").into());
            }
        }
    }

    /// The first node that was given up, if any was.
    pub fn first_given_up(&self) -> Option<Fault> {
        let inner = self.inner.borrow();
        let find = |(name, node): (&String, &NodeState)| {
            let (code, message) = node.given_up.clone()?;
            Some(Fault { failure: Failure::ended(&code, message), node: Some(name.clone()) })
        };
        inner.nodes.iter().find_map(find)
    }

    /// Ends every process: what is no node of the plan and agents first, the server last, each tier together.
    pub async fn stop_all(&self) {
        let unplanned = |name: &&String| self.plan.node(name).is_none();
        let unplanned: Vec<String> = self.inner.borrow().keepers.keys().filter(unplanned).cloned().collect();
        self.stop(unplanned).await;
        for role in [Role::Agent, Role::Relay, Role::Gateway, Role::Server] {
            self.stop(self.plan.of(role).map(|n| n.name.clone()).collect()).await;
        }
    }

    /// Ends these processes together, those of them that run.
    pub async fn stop(&self, names: Vec<String>) {
        let taken: Vec<_> = {
            let mut inner = self.inner.borrow_mut();
            names.iter().filter_map(|name| inner.keepers.remove(name)).collect()
        };
        for (stop, _) in &taken {
            stop.send_replace(true);
        }
        for (_, task) in taken {
            let _ = task.await; // a keeper that panicked has dropped its child's handle, which kills it with us
        }
    }

    fn set(&self, name: &str, change: impl FnOnce(&mut NodeState)) {
        change(self.inner.borrow_mut().nodes.entry(name.to_string()).or_default());
        self.change.send_modify(|n| *n += 1);
    }
}

/// Keeps one node's process.
struct Keeper {
    fleet: Fleet,
    name: String,
    program: Program,
    state: PathBuf,
    stopped: watch::Receiver<bool>,
}

impl Keeper {
    async fn run(mut self) {
        let mut rule = Restart::default();
        let mut listened = false;
        let told = self.state.join("node.json");
        loop {
            // An older start's file would be taken for this one's.
            let _ = std::fs::remove_file(&told);
            let born = self.fleet.clock.mono();
            let mut child = match process::spawn(&self.program) {
                Ok(child) => child,
                Err(failure) => {
                    self.fleet.set(&self.name, |n| n.given_up = Some((failure.code, failure.message)));
                    return;
                }
            };
            self.fleet.set(&self.name, |n| n.pid = child.id());
            let ended = self.watch(&mut child, &told, &mut listened).await;
            self.fleet.set(&self.name, |n| n.pid = None);
            let Some(status) = ended else { return };
            let lived = Duration::from_millis(self.fleet.clock.mono().since(born));
            match rule.ended(status.code(), lived, listened) {
                Next::GiveUp => {
                    let message = format!(
                        "{} ended with {status} before it listened: {}",
                        self.name,
                        process::tail(&self.program.log)
                    );
                    self.fleet.set(&self.name, |n| n.given_up = Some((code(status.code()).into(), message)));
                    return;
                }
                Next::Again(pause) => {
                    say::line(&format!("{} ended with {status}; it is started again", self.name));
                    tokio::select! {
                        _ = tokio::time::sleep(pause) => {}
                        _ = self.stopped.wait_for(|stop| *stop) => return,
                    }
                    self.fleet.set(&self.name, |n| n.restarts += 1);
                }
            }
        }
    }

    /// Until the process ends (its status) or was ended by the operator (none).
    async fn watch(&mut self, child: &mut Child, told: &Path, listened: &mut bool) -> Option<std::process::ExitStatus> {
        let mut look = tokio::time::interval(LOOK);
        let mut known = false;
        loop {
            tokio::select! {
                status = child.wait() => return status.ok(),
                _ = self.stopped.wait_for(|stop| *stop) => {
                    if let Err(e) = process::end(child).await {
                        say::line(&format!("{} cannot be ended: {e}", self.name));
                    }
                    return None;
                }
                _ = look.tick(), if !known => {
                    if let Some(started) = read(told) {
                        (known, *listened) = (true, true);
                        self.fleet.set(&self.name, |n| n.started = Some(started));
                    }
                }
            }
        }
    }
}

fn read(told: &Path) -> Option<Started> {
    serde_json::from_slice(&std::fs::read(told).ok()?).ok()
}

/// The word for a node's exit code.
fn code(exit: Option<i32>) -> &'static str {
    match exit {
        Some(exit_code::CONFIGURATION) => "bad_configuration",
        Some(exit_code::ENROLMENT) => "enrolment_failed",
        Some(exit_code::STATE) => "state_in_use",
        Some(exit_code::LISTEN) => "port_in_use",
        _ => "node_failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology;

    fn plan() -> Rc<Plan> {
        let text = "[topology]\nname='t'\n[server]\nname='hq'\n[[agents]]\nname='pc'\n[job]\nargv=['true']\n";
        Rc::new(topology::read(&text.parse().unwrap()).unwrap())
    }

    /// A node made of a shell script, which gets its state folder as `$0`.
    fn start(fleet: &Fleet, name: &str, folder: &Path, script: &str) {
        let state = folder.join(name);
        std::fs::create_dir_all(&state).unwrap();
        let args = vec!["-c".to_string(), script.to_string(), state.display().to_string()];
        fleet.start(name, Program { exe: "/bin/sh".into(), args, log: folder.join(format!("{name}.log")) }, state);
    }

    const LISTEN: &str = r#"echo '{"id":"0190f0e0-0000-7000-8000-000000000001","name":"x","addresses":{}}' > "$0/node.part"
        mv "$0/node.part" "$0/node.json""#;

    async fn until(fleet: &Fleet, name: &str, what: impl Fn(&NodeState) -> bool) -> NodeState {
        let wait = async {
            let mut changes = fleet.changes();
            loop {
                if let Some(node) = fleet.nodes().get(name).filter(|n| what(n)) {
                    return node.clone();
                }
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the node never got there")
    }

    fn on_one_thread(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn a_node_that_dies_is_started_again_and_counted() {
        on_one_thread(async {
            let folder = tempfile::tempdir().unwrap();
            let fleet = Fleet::new(plan());
            start(&fleet, "hq", folder.path(), &format!("{LISTEN}; exec sleep 600"));
            fleet.started("hq").await.unwrap();
            let first = until(&fleet, "hq", |n| n.pid.is_some()).await.pid.unwrap();
            #[allow(unsafe_code)]
            // SAFETY: the pid is of a child of this process that nobody has waited for.
            unsafe {
                libc::kill(first as libc::pid_t, libc::SIGKILL)
            };
            let again = until(&fleet, "hq", |n| n.restarts == 1 && n.pid.is_some_and(|pid| pid != first)).await;
            assert!(again.given_up.is_none());
            fleet.stop_all().await;
            assert_eq!(fleet.nodes()["hq"].pid, None);
        });
    }

    #[test]
    fn ops_1_a_node_that_cannot_listen_is_given_up_with_its_own_words() {
        on_one_thread(async {
            let folder = tempfile::tempdir().unwrap();
            let fleet = Fleet::new(plan());
            start(&fleet, "hq", folder.path(), "echo port_in_use: link cannot listen >&2; exit 6");
            let fault = fleet.started("hq").await.unwrap_err();
            assert_eq!((fault.node.as_deref(), fault.failure.code.as_str()), (Some("hq"), "port_in_use"));
            assert!(fault.failure.message.contains("link cannot listen"), "{}", fault.failure);
            assert_eq!(fleet.nodes()["hq"].restarts, 0);
            assert!(fleet.first_given_up().is_some());
        });
    }

    #[test]
    fn agents_end_before_the_server() {
        on_one_thread(async {
            let folder = tempfile::tempdir().unwrap();
            let fleet = Fleet::new(plan());
            let order = folder.path().join("order");
            let script = |name: &str| {
                let path = order.display();
                format!("trap 'echo {name} >> {path}; exit 0' TERM; {LISTEN}; while :; do sleep 0.05; done")
            };
            start(&fleet, "hq", folder.path(), &script("hq"));
            start(&fleet, "pc", folder.path(), &script("pc"));
            fleet.started("hq").await.unwrap();
            fleet.started("pc").await.unwrap();
            fleet.stop_all().await;
            assert_eq!(std::fs::read_to_string(&order).unwrap(), "pc\nhq\n");
        });
    }
}
