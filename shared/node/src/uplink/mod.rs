//! The child's end: what relay and agent have in common. [`spool`] keeps records until the server settled them (pure),
//! [`rhythm`] decides when to dial and [`path`] whom (both pure), [`actor`] holds the link, [`board`] shows how it stands.
//! Nothing here knows who is below.

pub mod actor;
pub mod board;
mod dialling;
mod network;
pub mod path;
pub mod rhythm;
pub mod spool;

pub use crate::link::LinkHandle;
pub use actor::{Uplink, UplinkCommand, UplinkConfig, UplinkEvent};
pub use rhythm::Poke;
