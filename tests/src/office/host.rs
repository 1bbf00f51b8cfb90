//! Many whole agents in one process beside those that `up` started, as `load` has them.

use super::{Office, command, until};
use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// A process full of agents; they end with it.
pub struct AgentHost(Child);

/// Where processes full of agents wait for one another.
pub struct Barrier(TcpListener);

/// The processes that stood behind a barrier, by their names.
pub struct Led(Vec<(String, TcpStream)>);

impl Office {
    /// Starts agents of these names with a bundle that is good for all of them, each with a wake port. They enrol, open
    /// their stores, and wait behind the barrier with their first dial.
    pub fn agent_host(&self, name: &str, bundle: &str, agents: &[String], barrier: &Barrier) -> AgentHost {
        let folder = self.folder().join("hosts").join(name);
        std::fs::create_dir_all(&folder).expect("a folder for the agents");
        let file: PathBuf = self.folder().join("hosts").join(format!("{name}.toml"));
        let mut text = format!(
            "state_dir = {:?}\nbundle = {:?}\nleader = '{}'\nwake = true\n",
            folder.display(),
            self.folder().join(bundle).display(),
            barrier.address()
        );
        agents.iter().for_each(|agent| text += &format!("[[agents]]\nname = '{agent}'\n"));
        std::fs::write(&file, text).expect("the configuration can be written");
        let mut command = Command::new(&self.exe);
        command.args(["agent-host", "--config"]).arg(&file).current_dir(self.folder());
        // Each dial is a line of its log.
        command.env("BRANCHLINE_LOG", "info,branchline_node::uplink=debug");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(self.log_of(name)).expect("a file for its log"));
        AgentHost(command::spawn_mortal(command, libc::SIGTERM).expect("the command starts"))
    }

    fn log_of(&self, host: &str) -> PathBuf {
        self.state().join("logs").join(format!("{host}.log"))
    }

    /// When each agent of a host dialled first, in milliseconds since 1970, by its id.
    pub fn first_dials(&self, host: &str) -> Vec<(String, i64)> {
        let log = std::fs::read_to_string(self.log_of(host)).expect("a host has a log");
        let mut first: Vec<(String, i64)> = Vec::new();
        for line in log.lines().filter(|line| line.contains(" dials ")) {
            let when = line.split_whitespace().next().and_then(|word| word.parse::<jiff::Timestamp>().ok());
            let node = line.split(" node=").nth(1).and_then(|rest| rest.split(' ').next());
            let (Some(when), Some(node)) = (when, node) else { panic!("neither when nor who: {line}") };
            if !first.iter().any(|(known, _)| known == node) {
                first.push((node.to_owned(), when.as_millisecond()));
            }
        }
        first
    }
}

impl Barrier {
    /// A closed one.
    pub fn closed() -> Barrier {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        listener.set_nonblocking(true).expect("it can be asked without waiting");
        Barrier(listener)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("it listens")
    }

    /// Waits until so many hosts stand before it with all their agents, for so many seconds each, then opens it for all.
    pub fn open(self, hosts: usize, secs: u64) -> Led {
        let mut led = Vec::new();
        for n in 1..=hosts {
            let stream = until(&format!("host {n} is there"), secs, || match self.0.accept() {
                Ok((stream, _)) => Ok(stream),
                Err(e) if e.kind() == ErrorKind::WouldBlock => Err("nobody comes".into()),
                Err(e) => panic!("{e}"),
            });
            stream.set_nonblocking(false).expect("it can be waited for");
            stream.set_read_timeout(Some(std::time::Duration::from_secs(secs))).expect("for a time");
            led.push(stream);
        }
        let named = led.into_iter().map(|stream| {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).expect("the host says that its agents are ready");
            (line.strip_suffix(" ready\n").expect("and nothing else").to_owned(), stream)
        });
        let mut led = Led(named.collect());
        led.0.iter_mut().for_each(|(_, stream)| stream.write_all(b"go\n").expect("the host listens"));
        led
    }
}

impl Led {
    /// One agent of a host stops in good order; its host goes on.
    pub fn stop(&mut self, host: &str, agent: &str) {
        let (_, stream) = self.0.iter_mut().find(|(name, _)| name == host).expect("a host of this name");
        stream.write_all(format!("stop {agent}\n").as_bytes()).expect("the host listens");
    }
}

impl Drop for AgentHost {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
