//! Many branches: each a process in which a whole relay lives with its agents, started a few at a time.

use super::{
    bench::{AGENTS, Bench, told},
    host::{self, Wanted},
    process::{self, Reading},
    snapshot::{RELAYS_WITH_AGENTS, Snapshot},
};
use crate::{
    failure::Failure,
    topology::{Plan, PlannedNode},
    up::fleet::Fleet,
};
use branchline_node::node::Started;
use branchline_protocol::id::Role;
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

/// Branches whose agents are still enrolling or starting. Each enrols a few at once; more would only wait for one another
/// until they are refused.
const STARTING_MAX: usize = 4;
/// How often the starting ones are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Packages in each agent's inventory. A desktop's 300 would fill memory with what a fan-out never touches.
const PACKAGES: usize = 20;
/// Relays, and agents of each.
pub const EACH_MAX: u32 = 300;
/// Source addresses of agents in 127.0.0.0/8: above those that nodes of a plan get.
const OCTET: u32 = 192;

/// Branches that stop at the same time: each writes down what its agents hold in memory, a file for each, and has 10 seconds for it.
const STOPPING_MAX: usize = 4;

/// Ends all branches in good order.
pub async fn stop(plan: &Plan, fleet: &Fleet) {
    let relays: Vec<String> = plan.of(Role::Relay).map(|relay| relay.name.clone()).collect();
    for some in relays.chunks(STOPPING_MAX) {
        fleet.stop(some.to_vec()).await;
    }
}

/// A branch that runs.
pub struct Branch {
    /// Its relay's name, which is the process's too.
    pub relay: String,
    /// Where its agents' figures are told.
    pub figures: SocketAddr,
    /// The thread that commits for the relay.
    store_thread: String,
}

/// An agent's name, unique in the tree and no longer than a device's name may be. Both count from 0.
fn agent_name(relay: u32, agent: u32) -> String {
    format!("pc-{}-{}", relay + 1, agent + 1)
}

/// Its source address: one of its own for each of 300 × 300.
fn agent_ip(relay: u32, agent: u32) -> Ipv4Addr {
    let n = relay * EACH_MAX + agent;
    let byte = |n: u32| u8::try_from(n).expect("below 256 by its making");
    Ipv4Addr::new(127, byte(OCTET + n / 62_500), byte(1 + n % 62_500 / 250), byte(1 + n % 250))
}

/// The folder and files of a relay's agents are kept under this name.
fn agents_of(relay: &str) -> String {
    format!("{relay}-{AGENTS}")
}

impl Bench {
    /// Starts every planned relay with so many agents, and waits until all are online with their inventories and the tree
    /// is quiet.
    pub async fn add_branches(&mut self, agents: u32) -> Result<(), Failure> {
        let plan = self.plan.clone();
        let relays: Vec<&PlannedNode> = plan.of(Role::Relay).collect();
        let mut starting = Vec::new();
        for (number, relay) in (0..).zip(&relays) {
            while starting.len() >= STARTING_MAX {
                self.some_started(&mut starting).await?;
            }
            self.begin(number, relay, agents).await?;
            starting.push(relay.name.clone());
        }
        while !starting.is_empty() {
            self.some_started(&mut starting).await?;
        }
        let relays = 0..relays.len() as u32;
        let names: BTreeSet<String> = relays.flat_map(|r| (0..agents).map(move |a| agent_name(r, a))).collect();
        self.all_ready(None, &names, true).await?;
        self.quiet().await
    }

    /// Starts a relay, waits until it has enrolled, and lets its agents enrol.
    async fn begin(&mut self, number: u32, relay: &PlannedNode, agents: u32) -> Result<(), Failure> {
        let name = agents_of(&relay.name);
        self.state.make_folders(&name)?;
        let (folder, bundle) = (self.state.node(&name), self.state.bundle(&name));
        let agents: Vec<_> = (0..agents).map(|n| (agent_name(number, n), agent_ip(number, n))).collect();
        let strangers = agents.iter().filter(|(agent, _)| !folder.join(agent).join("identity").exists()).count();
        // What an earlier start told is not this one's, and a bundle that was used up lets nobody in.
        gone(&folder.join("node.json"))?;
        if strangers > 0 {
            gone(&bundle)?;
        }
        let file = self.state.config(&name);
        let text = host::config_text(&Wanted {
            state_dir: &folder,
            bundle: &bundle,
            relay: Some(&self.state.config(&relay.name)),
            packages: PACKAGES,
            held: false,
            leader: None,
            figures: SocketAddr::from((self.book.ip(&relay.name), 0)),
            spared: self.spared,
            agents: &agents,
        })?;
        self.state.write(&file, &text)?;
        let args = host::command(&file)?;
        self.sequence.relay_in(args, relay, &self.server, &mut self.book).await.map_err(told)?;
        if strangers > 0 {
            self.make_bundle(&name, relay.site.as_deref(), &relay.name, strangers).await?;
        }
        Ok(())
    }

    /// Moves the branches whose agents run by now from the starting ones to the running, after a while if there is none.
    async fn some_started(&mut self, starting: &mut Vec<String>) -> Result<(), Failure> {
        let mut waiting = Vec::new();
        for relay in std::mem::take(starting) {
            match self.running(&relay) {
                Some(branch) => self.branches.push(branch),
                None => waiting.push(relay),
            }
        }
        let first = waiting.first().cloned();
        *starting = waiting;
        self.none_ended()?;
        if let Some(relay) = first {
            if self.sequence.left().is_zero() {
                return Err(told(self.sequence.late("its agents do not run", Some(&relay))));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    fn running(&self, relay: &str) -> Option<Branch> {
        let figures = std::fs::read(self.state.node(&agents_of(relay)).join("node.json")).ok()?;
        let figures: Started = serde_json::from_slice(&figures).ok()?;
        let figures = figures.addresses.get("private").copied()?;
        let id = self.fleet.nodes().get(relay)?.started.as_ref()?.id;
        Some(Branch { relay: relay.to_owned(), figures, store_thread: process::store_thread(id) })
    }

    /// Adds what the branches' processes used, their relays and agents told apart by thread; memory is one for both.
    pub fn add_readings(&self, snapshot: &mut Snapshot) -> Result<(), Failure> {
        let (mut relay, mut agents, mut both) = (Reading::default(), Reading::default(), Reading::default());
        for branch in &self.branches {
            let pid = self.pid(&branch.relay)?;
            let all = process::read(pid)?;
            let theirs = process::agents_cpu_s(pid, &branch.store_thread)?;
            agents.cpu_s += theirs;
            relay.cpu_s += all.cpu_s - theirs;
            both.rss += all.rss;
            both.pss += all.pss;
        }
        if !self.branches.is_empty() {
            snapshot.processes.extend([("relay", relay), (AGENTS, agents), (RELAYS_WITH_AGENTS, both)]);
        }
        Ok(())
    }
}

fn gone(file: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::ended("unwritable", format!("cannot remove {}: {e}", file.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_agent_of_the_largest_tree_has_a_name_and_an_address_of_its_own() {
        let all = || (0..EACH_MAX).flat_map(|relay| (0..EACH_MAX).map(move |agent| (relay, agent)));
        let addresses: BTreeSet<Ipv4Addr> = all().map(|(relay, agent)| agent_ip(relay, agent)).collect();
        assert_eq!(addresses.len(), 90_000);
        // A state's book gives addresses from 127.64.0.0 to 127.191.255.255, and the ends of a network are nobody's.
        assert!(addresses.iter().all(|ip| ip.octets()[1] >= 192 && ip.octets()[3] > 0 && ip.octets()[3] < 255));
        let names: BTreeSet<String> = all().map(|(relay, agent)| agent_name(relay, agent)).collect();
        assert_eq!(names.len(), 90_000);
        assert!(names.iter().all(|name| name.len() <= 15), "a device's name has at most 15 characters");
    }

    #[test]
    fn what_is_gone_already_need_not_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        std::fs::write(&file, "").unwrap();
        gone(&file).unwrap();
        gone(&file).unwrap();
        assert!(gone(folder.path()).is_err(), "a folder is no file");
    }
}
