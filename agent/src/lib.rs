//! The agent on each computer: takes signed orders, runs each once, reports what came of it and what the machine is.
//!
//! - [`Agent::start`]: an agent as a value, many to a process
//! - [`decide`]: everything it decides, pure
//! - `actors`: the shells around it
//! - [`platform`]: what only an operating system can do; [`shim`]: the process a job runs under

mod actors;
mod agent;
pub mod capabilities;
mod config;
pub mod decide;
pub mod platform;
pub mod shim;
mod status;

pub use agent::{Agent, AgentProcess, RunningAgent, Spared, run_config as run};
pub use config::{AgentConfig, NAME_CHARS_MAX};
