//! A tree of real processes, as `branchline up` starts it: each node its own process with its own address.
//!
//! Failures of the set-up panic with what `up` said and the ends of all logs: a scenario that fails on another machine
//! must tell why.

pub(crate) mod command;
mod host;
mod web;

pub use command::Ran;
pub use host::{AgentHost, Barrier, Led};
pub use web::Web;

use branchline_node::time::SystemClock;
use serde_json::Value;
use std::{
    cell::Cell,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

/// How long `up` may take until it prints its report.
const READY: Duration = Duration::from_secs(120);
/// How long `up` may take to end every node.
const END: Duration = Duration::from_secs(60);
/// Bytes of each log that a failure shows.
const LOG_TAIL: usize = 1_500;

/// A running `up` with its own folder.
pub struct Office {
    folder: tempfile::TempDir,
    exe: PathBuf,
    up: Option<Child>,
    report: Value,
}

/// What an `up` that did not stay printed.
#[derive(Debug)]
pub struct NotUp {
    /// Its exit code.
    pub code: Option<i32>,
    /// Its one line of JSON; null if there was none.
    pub report: Value,
    /// Its stderr.
    pub stderr: String,
}

impl Office {
    /// Starts a topology in a fresh folder and waits for its report. Panics, with logs, if it does not come up or
    /// reports a failure.
    pub fn start(exe: &Path, topology: &Path) -> Office {
        let folder = tempfile::tempdir().expect("a folder for the office");
        match Office::try_start(exe, topology, folder) {
            Ok(office) => office,
            Err(e) => panic!("up {} failed: {e:#?}", topology.display()),
        }
    }

    /// The same in a given folder, whose `state` may hold something already.
    pub fn try_start(exe: &Path, topology: &Path, folder: tempfile::TempDir) -> Result<Office, NotUp> {
        let said = folder.path().join("up.err");
        let mut command = Command::new(exe);
        command.arg("up").arg(topology).args(["--json", "--state"]).arg(folder.path().join("state"));
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(std::fs::File::create(&said).expect("a file for stderr"));
        let mut up = command::spawn_mortal(command, libc::SIGTERM).expect("the command starts");
        let stdout = up.stdout.take().expect("a pipe");
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = tell.send(line);
        });
        let line = told.recv_timeout(READY + Duration::from_secs(30)).unwrap_or_default();
        let report: Value = serde_json::from_str(&line).unwrap_or_default();
        let mut office = Office { folder, exe: exe.to_path_buf(), up: Some(up), report };
        if office.report["ok"] == true {
            return Ok(office);
        }
        // It ends by itself once it has said why.
        let code = office.ended().or_else(|| office.end());
        let stderr = std::fs::read_to_string(&said).unwrap_or_default() + &office.logs();
        Err(NotUp { code, report: office.report.take(), stderr })
    }

    /// Ends every node and keeps the folder with all they know; what `up` printed.
    pub fn stop(mut self) -> (tempfile::TempDir, Value) {
        self.end();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder"));
        (folder, self.report.take())
    }

    /// What `up` printed when everything was online and the job done.
    pub fn report(&self) -> &Value {
        &self.report
    }

    /// `up.json` as it is now.
    pub fn now(&self) -> Value {
        let text = std::fs::read(self.state().join("up.json")).expect("up.json is there");
        serde_json::from_slice(&text).expect("up.json is whole")
    }

    /// The process of `up` itself.
    pub fn up_pid(&self) -> u32 {
        self.up.as_ref().expect("up runs").id()
    }

    /// The folder the command is called in; commands called there need no flags.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A node's own state folder.
    pub fn node_state(&self, name: &str) -> PathBuf {
        self.state().join("nodes").join(name)
    }

    /// A node's object of `up.json` as it is now.
    pub fn node(&self, name: &str) -> Value {
        let now = self.now();
        let nodes = now["nodes"].as_array().expect("a list of nodes");
        let node = nodes.iter().find(|n| n["name"] == name);
        node.unwrap_or_else(|| panic!("no node {name} in {now}")).clone()
    }

    /// A node's id.
    pub fn id(&self, name: &str) -> String {
        self.node(name)["id"].as_str().unwrap_or_else(|| panic!("{name} has no id")).to_string()
    }

    /// One of a node's addresses.
    pub fn address(&self, name: &str, listener: &str) -> SocketAddr {
        let node = self.node(name);
        let text = node["addresses"][listener].as_str().unwrap_or_else(|| panic!("no {listener} in {node}"));
        text.trim_start_matches("https://").parse().expect("an address")
    }

    /// The pids of a node that lives.
    pub fn pid(&self, name: &str) -> u32 {
        eventually(&format!("{name} has a process"), 60, || self.node(name)["pid"].as_u64()) as u32
    }

    /// Kills a node's process at once; `up` starts it again. Returns the pid it had.
    pub fn kill(&self, name: &str) -> u32 {
        let pid = self.pid(name);
        // A pid that `up.json` names for a moment too long may be another process's.
        let own = self.state().join("config").join(format!("{name}.toml"));
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(own.to_str().expect("a UTF-8 path")) {
            command::signal(pid, libc::SIGKILL);
        }
        pid
    }

    /// Waits until a node has another process than `old`, which listens.
    pub fn restarted(&self, name: &str, old: u32) {
        eventually(&format!("{name} is started again"), 60, || {
            let pid = self.node(name)["pid"].as_u64()?;
            (pid != u64::from(old) && self.node_state(name).join("node.json").exists()).then_some(())
        });
    }

    /// Kills a node and keeps it from starting again until [`Office::let_start`].
    pub fn hold_down(&self, name: &str) {
        let config = self.state().join("config").join(format!("{name}.toml"));
        std::fs::rename(&config, config.with_extension("held")).expect("the configuration is there");
        let pid = self.kill(name);
        eventually(&format!("{name} is gone"), 30, || {
            (self.node(name)["pid"].as_u64() != Some(u64::from(pid))).then_some(())
        });
    }

    /// Stops a node in good order and keeps it from starting again until [`Office::let_start`].
    pub fn stop_node(&self, name: &str) {
        let config = self.state().join("config").join(format!("{name}.toml"));
        std::fs::rename(&config, config.with_extension("held")).expect("the configuration is there");
        let pid = self.pid(name);
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(String::from_utf8_lossy(&line).contains(config.to_str().expect("a UTF-8 path")), "another's pid");
        command::signal(pid, libc::SIGTERM);
        eventually(&format!("{name} is gone"), 30, || {
            (self.node(name)["pid"].as_u64() != Some(u64::from(pid))).then_some(())
        });
    }

    /// Lets a node that is held down start again.
    pub fn let_start(&self, name: &str) {
        let config = self.state().join("config").join(format!("{name}.toml"));
        std::fs::rename(config.with_extension("held"), &config).expect("it was held down");
    }

    /// Calls the command in the office's folder, as an operator does in a second terminal.
    pub fn command(&self, args: &[&str]) -> Ran {
        command::run(&self.exe, self.folder(), args)
    }

    /// Calls the command with `--json`, asserts that it is done well, and returns what it printed.
    pub fn json(&self, args: &[&str]) -> Value {
        let ran = self.command(&[&["--json"], args].concat());
        assert_eq!(ran.code, 0, "branchline {args:?}: {ran:#?}\n{}", self.logs());
        ran.json()
    }

    /// Orders a command line, not waiting for it; the job's id.
    pub fn order(&self, on: &str, argv: &[&str]) -> String {
        let job = self.json(&[&["run", "--on", on, "--"], argv].concat());
        job["id"].as_str().expect("the job has an id").to_string()
    }

    /// Waits until a job is complete, and returns it. The API may be away meanwhile.
    pub fn completed(&self, job: &str, secs: u64) -> Value {
        until(&format!("job {job} is complete"), secs, || {
            let ran = self.command(&["--json", "job", job]);
            if ran.code == 0 && ran.json()["complete"] == true { Ok(ran.json()) } else { Err(ran.stdout) }
        })
    }

    /// A device as the server shows it.
    pub fn device(&self, device: &str) -> Value {
        self.json(&["device", device])
    }

    /// Waits until `n` devices of a selector are online.
    pub fn online(&self, on: &str, n: usize, secs: u64) {
        until(&format!("{n} devices of {on} are online"), secs, || {
            let ran = self.command(&["--json", "devices", "--on", on]);
            let devices = if ran.code == 0 { ran.json() } else { Value::Null };
            let online = |devices: &Vec<Value>| devices.iter().filter(|d| d["state"] == "online").count();
            if devices.as_array().map(online) == Some(n) { Ok(()) } else { Err(ran.stdout) }
        });
    }

    /// HTTPS by the office's CA.
    pub fn web(&self) -> Web {
        Web::new(Path::new(self.report["ca_file"].as_str().expect("a CA file")))
    }

    /// HTTPS to a tenant's own nodes: a relay's certificate is its tenant's.
    pub fn web_of(&self, tenant: &str) -> Web {
        let ca = self.report["ca_file"].as_str().expect("a CA file");
        let folder = Path::new(ca).parent().expect("it lies in the server's state folder");
        Web::new(&folder.join("tenants").join(tenant).join("ca/ca.pem"))
    }

    /// The API's address.
    pub fn api(&self) -> String {
        let nodes = self.report["nodes"].as_array().expect("nodes");
        let server = nodes.iter().find(|n| n["role"] == "server").expect("a server");
        server["addresses"]["api"].as_str().expect("an API").to_string()
    }

    /// The API token of a tenant.
    pub fn token(&self, tenant: &str) -> String {
        let context = self.report["context_file"].as_str().expect("a context file");
        let context: Value = serde_json::from_slice(&std::fs::read(context).expect("a context")).expect("JSON");
        let file = context["tokens"][tenant].as_str().unwrap_or_else(|| panic!("no token for {tenant}"));
        std::fs::read_to_string(file).expect("a token").trim().to_string()
    }

    /// The ends of all logs that are not empty.
    pub fn logs(&self) -> String {
        let Ok(files) = std::fs::read_dir(self.state().join("logs")) else { return "no logs".into() };
        let mut logs: Vec<String> = files
            .filter_map(|file| {
                let path = file.ok()?.path();
                let bytes = std::fs::read(&path).ok().filter(|b| !b.is_empty())?;
                let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL)..]).into_owned();
                Some(format!("--- {}\n{tail}\n", path.file_name()?.to_string_lossy()))
            })
            .collect();
        logs.sort();
        logs.concat()
    }

    /// The whole log of a node.
    pub fn log(&self, name: &str) -> String {
        let bytes = std::fs::read(self.state().join("logs").join(format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Asks `up` to end and waits for it; its exit code.
    fn end(&mut self) -> Option<i32> {
        let mut up = self.up.take()?;
        if let Ok(Some(status)) = up.try_wait() {
            return status.code();
        }
        command::signal(up.id(), libc::SIGTERM);
        self.up = Some(up);
        let code = self.ended();
        if let Some(mut up) = self.up.take() {
            let _ = up.kill(); // its nodes die with it
            let _ = up.wait();
        }
        code
    }

    /// Waits for `up` to end by itself; its exit code, none if it stays.
    fn ended(&mut self) -> Option<i32> {
        let up = self.up.as_mut()?;
        let clock = SystemClock::shared();
        let start = clock.mono();
        while clock.mono().since(start) < END.as_millis() as u64 {
            if let Ok(Some(status)) = up.try_wait() {
                self.up = None;
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the office's logs:\n{}", self.logs());
            // Long output is cut in the middle by whoever shows it: the reason stands at its end, too.
            if let Some(missed) = MISSED.take() {
                eprintln!("{missed}");
            }
        }
        self.end();
    }
}

thread_local! {
    /// What this thread waited for in vain.
    static MISSED: Cell<Option<String>> = const { Cell::new(None) };
}

/// Asks until there is an answer; panics when it takes longer than `secs`.
pub fn eventually<T>(what: &str, secs: u64, mut ask: impl FnMut() -> Option<T>) -> T {
    until(what, secs, || ask().ok_or_else(String::new))
}

/// The same, where no answer comes with what there is instead.
pub fn until<T>(what: &str, secs: u64, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let clock = SystemClock::shared();
    let start = clock.mono();
    loop {
        let instead = match ask() {
            Ok(answer) => return answer,
            Err(instead) => instead,
        };
        if clock.mono().since(start) >= secs * 1_000 {
            let missed = format!("not within {secs} s: {what}; {instead}");
            MISSED.set(Some(missed.clone()));
            panic!("{missed}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
