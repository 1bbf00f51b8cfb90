//! `node ROLE --config FILE`: the same entry that the production binaries call.

use branchline_node::process::init_logs;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What it is
    #[arg(value_parser = ["server", "gateway", "relay", "agent"])]
    pub role: String,
    /// Its configuration
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Runs the node in this process to its end. `exe` is what an agent starts as `shim` for each job.
pub fn run(args: &Args, exe: &Path) -> i32 {
    match args.role.as_str() {
        "server" => branchline_server::run(&args.config),
        "relay" => branchline_relay::run(&args.config),
        "agent" => branchline_agent::run(&args.config, vec![exe.display().to_string(), "shim".into()]),
        _ => {
            init_logs(false);
            branchline_gateway::run_until(&args.config, operator_ends())
        }
    }
}

/// Returns at SIGTERM or Ctrl-C. Where neither can be listened for, they end the process by themselves.
async fn operator_ends() {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}
