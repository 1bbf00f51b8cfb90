//! The management server: orders jobs, keeps inventory, policy and certificates. `main` is thin; everything is here so
//! that tests can start a server as a value.

pub mod actors;
pub mod api;
pub mod backup;
pub mod config;
pub mod dispatch;
pub mod domain;
pub mod host;
pub mod node;
pub mod steering;
pub mod store;

pub use config::Config;
pub use node::{RunningServer, Server, run_server as run};
