//! The nodes' common life: supervision, time and chance, identity, the store, the link and both of its ends.
//! Nothing here knows a job's meaning, a database of the server or a platform of the agent.
pub mod backup;
pub mod config;
pub mod defects;
#[cfg(feature = "downstream")]
pub mod downstream;
pub mod driver;
pub mod enrol;
pub mod identity;
pub mod link;
pub mod metrics;
pub mod node;
#[cfg(unix)]
pub mod process;
pub mod random;
pub mod status;
pub mod store;
pub mod supervise;
pub mod time;
pub mod trunk;
#[cfg(feature = "uplink")]
pub mod uplink;
