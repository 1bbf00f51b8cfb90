//! The command line.

use crate::{up, verbs};
use branchline_node::config::parse_duration;
use clap::{Parser, Subcommand};
use std::{path::PathBuf, time::Duration};

/// Manage endpoints over server, gateway, relays and agents.
#[derive(Debug, Parser)]
#[command(name = "branchline", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What every verb takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options that every verb takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Global {
    /// Context file of the installation to speak to [default: that of the newest `up` in this folder]
    #[arg(long, global = true, value_name = "FILE")]
    pub context: Option<PathBuf>,
    /// Tenant to speak for [default: the installation's only or first one]
    #[arg(long, global = true, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Print one line of JSON on stdout
    #[arg(long, global = true)]
    pub json: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Start every node of a topology as its own process, run its job, print what came back
    Up(up::Args),
    /// Run one node in this process
    Node(verbs::node::Args),
    /// List devices
    Devices(verbs::devices::Args),
    /// Show one device
    Device(verbs::device::Args),
    /// Show server, gateways, relays and agents with their slots and queues
    Tree(verbs::tree::Args),
    /// Let a device keep its connection, or not: who does goes before others for a slot
    Keep(verbs::keep::Args),
    /// Suspend a device: it is given nothing, and begins and collects nothing
    Suspend(verbs::device::Args),
    /// Revive a suspended device
    Revive(verbs::device::Args),
    /// Run a command line or a script on devices
    Run(verbs::run::Args),
    /// Start machines again: what was ordered before is done first, what was ordered later waits for them to be back
    Restart(verbs::restart::Args),
    /// Show one job with its results
    Job(verbs::job::Args),
    /// Show where a job is on a device, hop by hop, and why it has not ended
    Explain(verbs::explain::Args),
    /// Cancel a job on every device where it is not at its end
    Cancel(verbs::job::Args),
    /// Issue a job anew for the devices on which it did not succeed
    Reissue(verbs::job::Args),
    /// List jobs
    Jobs(verbs::jobs::Args),
    /// Show a device's inventory
    Inventory(verbs::inventory::Args),
    /// Make a token with which nodes may enrol
    EnrolToken(verbs::enrol_token::Args),
    /// Make a bundle: all that a new node needs to enrol
    Bundle(verbs::bundle::Args),
    /// Show or change what governs devices: poll intervals, what is collected and when
    Settings(verbs::settings::Args),
    /// Set where a relay of this machine reaches its upstream
    Relay(verbs::relay::Args),
    /// Revoke a node: its link is closed and its return refused
    Revoke(verbs::revoke::Args),
    /// Show what was done, and by whom
    Audit(verbs::audit::Args),
    /// Show records that were refused
    DeadLetters(verbs::audit::Args),
    /// Write all that a server knows into one file, its keys included; the server may be running
    Backup(verbs::backup::Args),
    /// Put a backup into a new state folder
    Restore(verbs::restore::Args),
    /// Show or end the recovery of a restored server: it listens to its children before it issues anything
    Recovery(verbs::recovery::Args),
    /// Measure: a tree of real processes with many agents in one
    Load(verbs::load::Args),
    /// Many agents in this process (load starts this)
    #[command(hide = true)]
    AgentHost(verbs::agent_host::Args),
    /// Keep one job's process group (an agent starts this)
    #[command(hide = true)]
    Shim(verbs::shim::Args),
}

/// A length of time for clap.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|e| e.to_string())
}
