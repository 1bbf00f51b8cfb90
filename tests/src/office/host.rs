//! Many whole agents in one process beside those that `up` started, as `load` has them.

use super::{Office, command};
use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// A process full of agents; they end with it.
pub struct AgentHost(Child);

impl Office {
    /// Starts agents of these names with a bundle that is good for all of them.
    pub fn agent_host(&self, name: &str, bundle: &str, agents: &[String]) -> AgentHost {
        let folder = self.folder().join("hosts").join(name);
        std::fs::create_dir_all(&folder).expect("a folder for the agents");
        let file: PathBuf = self.folder().join("hosts").join(format!("{name}.toml"));
        let mut text =
            format!("state_dir = {:?}\nbundle = {:?}\n", folder.display(), self.folder().join(bundle).display());
        agents.iter().for_each(|agent| text += &format!("[[agents]]\nname = '{agent}'\n"));
        std::fs::write(&file, text).expect("the configuration can be written");
        let mut command = Command::new(&self.exe);
        command.args(["agent-host", "--config"]).arg(&file).current_dir(self.folder());
        let log = self.state().join("logs").join(format!("{name}.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(log).expect("a file for its log"));
        AgentHost(command::spawn_mortal(command, libc::SIGTERM).expect("the command starts"))
    }
}

impl AgentHost {
    /// Its agents stop in good order, and it ends.
    pub fn stop(mut self) {
        command::signal(self.0.id(), libc::SIGTERM);
        let _ = self.0.wait();
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
