//! The agent on each computer.

pub mod capabilities;
pub mod decide;
pub mod platform;
pub mod shim;
