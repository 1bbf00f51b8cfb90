//! The child's end: what relay and agent have in common. [`spool`] keeps records until the server settled them (pure),
//! [`rhythm`] decides when to dial whom (pure), [`actor`] holds the link. Nothing here knows who is below.

pub mod actor;
mod network;
pub mod rhythm;
pub mod spool;

pub use crate::link::LinkHandle;
pub use actor::{Uplink, UplinkCommand, UplinkConfig, UplinkEvent};
pub use rhythm::Poke;
