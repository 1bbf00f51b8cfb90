//! The parent's end of a link: who may attach below this node, who is there, and what goes to whom. Nothing here knows
//! what a job means, and nothing here dials.
//!
//! ```text
//! listener, or a trunk ─► door ─► reception ─► gatekeeper (slots) ─► session ×n ─► the node's owner of children
//!                         rate (pure)           admission (pure)                    directory, ledger (pure)
//! ```

pub mod admission;
pub mod beacon;
mod checks;
pub mod child;
pub mod directory;
pub mod door;
pub mod gatekeeper;
pub mod ledger;
pub mod listener;
pub mod live_cap;
pub mod partials;
pub mod rate;
pub mod reception;
pub mod session;

#[cfg(all(test, feature = "uplink"))]
mod group_tests;
#[cfg(all(test, feature = "uplink"))]
mod poll_tests;
#[cfg(all(test, feature = "uplink"))]
mod storm_tests;

pub use child::{Child, FromChild};
