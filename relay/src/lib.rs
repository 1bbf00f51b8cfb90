//! The relay of a branch: connects upward, fans jobs out to what is below, carries results and inventory up, and keeps
//! its site working when the uplink is cut. A relay is a downstream joined to an uplink.

pub mod actors;
pub mod config;
pub mod configure;
pub mod core;
pub mod host;
pub mod node;
pub mod upstream;

pub use config::Config;
pub use node::{Relay, RunningRelay, run_relay as run};
