//! The agent's actors: thin shells around [`crate::decide`] and [`crate::platform`].
//!
//! ```text
//!              Supervisor
//!    ┌───────────┼───────────┬────────────┐
//!  keeper ◄─── uplink     executor     collector      all three need the keeper
//!  (AgentCore,  (link)     (jobs)      (inventory)
//!   store)
//! ```

mod collector;
mod executor;
mod keeper;
mod root;

pub(crate) use executor::Tools;
pub(crate) use root::{Parts, start};
