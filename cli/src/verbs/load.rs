//! `load --mode fanout|links --relays 1 --agents N`

use crate::{answer::print, args::Global, load};
use branchline_agent::Spared;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// A job to all agents below a relay, again and again: time from the order to the last durable result
    Fanout,
    /// Agents that only hold their link: memory of each process per link
    Links,
}

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is measured
    #[arg(long, value_enum)]
    pub mode: Mode,
    /// How many relays stand below the gateway
    #[arg(long, default_value_t = 1)]
    pub relays: u32,
    /// How many agents each has below it, 1 to 300
    #[arg(long, default_value_t = 300)]
    pub agents: u32,
    /// How many jobs are measured in fanout
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// Agents take orders unchecked; relay and server check as ever. For comparison with what checks nothing
    #[arg(long)]
    pub unverified_agents: bool,
    /// Agents keep their journals in memory; relay and server commit to disk as ever
    #[arg(long)]
    pub volatile_agents: bool,
    /// Where the nodes keep their state; must be empty [default: a folder in .branchline, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How long it may take until all agents are online and quiet
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = crate::args::duration)]
    pub timeout: Duration,
}

impl Args {
    /// What the agents are spared.
    pub fn spared(&self) -> Spared {
        Spared { verification: self.unverified_agents, journal: self.volatile_agents }
    }
}

/// Measures, and prints what came out. `exe` is started again for every node.
pub fn run(args: &Args, global: &Global, exe: &Path) -> i32 {
    print(load::run(args, exe), global.json)
}
