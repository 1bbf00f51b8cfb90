//! The agent's actors: thin shells around [`crate::decide`] and [`crate::platform`].
//!
//! ```text
//!              Supervisor
//!    ┌───────────┼───────────┬────────────┬───────────┐
//!  keeper ◄─── uplink     executor     collector   doorbell      all four need the keeper
//!  (AgentCore,  (link)     (jobs)      (inventory)   (wakes)
//!   store)
//! ```

mod collector;
mod doorbell;
mod executor;
mod farewell;
mod keeper;
mod root;

pub(crate) use doorbell::Door;
pub(crate) use executor::Tools;
pub(crate) use farewell::{notice, say_farewell};
pub(crate) use keeper::Happened;
pub(crate) use root::{Parts, start};
