//! `shim DIR`: what an agent starts for each job. Not for people.

use std::path::PathBuf;

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job's folder
    pub job_dir: PathBuf,
}

/// Keeps the job's process group to its end.
pub fn run(args: &Args) -> i32 {
    branchline_agent::shim::main(&args.job_dir)
}
