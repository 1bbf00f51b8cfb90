//! `agent-host --config FILE`: many agents in one process. Not for people.

use crate::load::host;
use std::path::{Path, PathBuf};

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Who they are
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Runs them to their end.
pub fn run(args: &Args, exe: &Path) -> i32 {
    host::run(&args.config, exe)
}
