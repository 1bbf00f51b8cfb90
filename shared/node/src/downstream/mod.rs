//! The parent's end of a link: who may attach below this node, who is there, and what goes to whom. Nothing here knows
//! what a job means, and nothing here dials.
//!
//! ```text
//! listener, or a trunk ─► reception ─► gatekeeper (slots) ─► session ×n ─► the node's owner of children
//!                                       admission (pure)                    directory, ledger (pure)
//! ```

pub mod admission;
pub mod child;
pub mod directory;
pub mod gatekeeper;
pub mod ledger;
pub mod listener;
pub mod reception;
pub mod session;

pub use child::{Child, FromChild};
