//! `relay configure`: sets a relay's way up, on the machine where its state is; the same code as `branchline-relay`'s own.

use crate::{answer::Answer, failure::Failure};
use branchline_relay::configure::{Configure, configure, summary};
use serde_json::json;
use std::path::PathBuf;

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do with the relay
    #[command(subcommand)]
    pub action: Action,
}

/// What can be done.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Set where the relay reaches its upstream: checked, dialled, kept, and followed by the running relay
    Configure(Settings),
}

/// What is to be set.
#[derive(Debug, clap::Args)]
pub struct Settings {
    /// The relay's configuration
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Read the settings from a file
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Set nothing any more: the site's signed list says where to go
    #[arg(long)]
    pub reset: bool,
    /// host, port, via_gateway (true or false), ca (a PEM file), upstream (a node's id)
    #[arg(value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

/// Does it.
pub fn run(args: Args) -> Result<Answer, Failure> {
    let Action::Configure(Settings { config, from, reset, settings }) = args.action;
    let set = configure(&Configure { config, settings, from, reset }.checked()?)?;
    let json = json!({
        "set": set.as_ref().map(|set| json!({
            "host": set.host, "port": set.port, "via_gateway": set.via_gateway,
            "upstream": set.upstream, "ca": set.ca_pem.is_some(),
        })),
    });
    Ok(Answer::done(json, format!("{}\n", summary(set.as_ref()))))
}
