//! `load --mode fanout|links|storm|inventory --relays R --agents A`

use crate::{answer::print, args::Global, load};
use branchline_agent::Spared;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// A job to all agents below all relays, again and again: time from the order to the last durable result
    Fanout,
    /// Agents that only hold their link: memory of each process per link
    Links,
    /// All links are lost and every agent dials again, without back-off: handshakes that the parent can do
    Storm,
    /// First full inventories through a relay; then differences, collections without any, and links that come back
    Inventory,
}

/// Whom the agents of a storm dial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Below {
    /// The relay
    #[default]
    Relay,
    /// The server, through the gateway
    Gateway,
}

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is measured
    #[arg(long, value_enum)]
    pub mode: Mode,
    /// How many relays stand below the gateway, 1 to 300; more than one in fanout only
    #[arg(long, default_value_t = 1)]
    pub relays: u32,
    /// How many agents each has below it: 1 to 300, in links and storm to 3000, in inventory to 1000; slots are raised above 300
    #[arg(long, default_value_t = 300)]
    pub agents: u32,
    /// How many jobs are measured in fanout
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// How many agents a second dial in storm, 1 to 100000 [default: as many as get in, 256 under way at once]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(load::RATE_MAX)))]
    pub rate: Option<u32>,
    /// Whom they dial in storm [default: relay]
    #[arg(long, value_enum)]
    pub below: Option<Below>,
    /// Agents take orders unchecked; relay and server check as ever. For comparison with what checks nothing
    #[arg(long)]
    pub unverified_agents: bool,
    /// Agents keep their journals in memory; relay and server commit to disk as ever
    #[arg(long)]
    pub volatile_agents: bool,
    /// Measures bare TLS on this machine first, and shows how many times as much it took; with one relay
    #[arg(long)]
    pub reference: bool,
    /// Bits a second between branches and gateway, in each direction: 8kbit to 10gbit [default: as fast as loopback]
    #[arg(long, value_name = "RATE", value_parser = load::line::rate)]
    pub branch_line: Option<u64>,
    /// How many percent of what crosses that line is late, and by how much, as in 5%:50ms [default: nothing]
    #[arg(long, value_name = "SHARE:TIME", value_parser = load::line::late)]
    pub late: Option<(u8, Duration)>,
    /// Where the nodes keep their state: new, empty, or left by the same mode, relays and agents (with journals on disk), whose
    /// nodes then need not enrol again [default: a folder in .branchline, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How long it may take until all agents are online and quiet [default: 300s and a tenth of a second for each agent]
    #[arg(long, value_name = "TIME", value_parser = crate::args::duration)]
    pub timeout: Option<Duration>,
}

impl Args {
    /// What the agents are spared.
    pub fn spared(&self) -> Spared {
        Spared { verification: self.unverified_agents, journal: self.volatile_agents }
    }

    /// The line between branches and gateway.
    pub fn line(&self) -> load::line::Line {
        load::line::Line { bit_per_s: self.branch_line, late: self.late }
    }

    /// All agents below all relays.
    pub fn devices(&self) -> u32 {
        self.relays.saturating_mul(self.agents)
    }

    /// How long the set-up may take.
    pub fn limit(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(300) + Duration::from_millis(100) * self.devices())
    }
}

/// Measures, and prints what came out. `exe` is started again for every node.
pub fn run(args: &Args, global: &Global, exe: &Path) -> i32 {
    print(load::run(args, exe), global.json)
}
