//! What an agent decides, pure: events and `now` in, effects out. No socket, clock, file, process or actor.
//!
//! ```text
//!   link ──► orders ──► journal ──► Start, Collect, result ─┐
//!        ──► documents ─► LearnTime, Reconfigure            ├─► one batch ─► Commit ─► Committed ─► Send, Release, Start …
//!   schedule ─► Collect                                     │
//!   jobs, collections ─► result, report ─► spool ───────────┘
//! ```
//!
//! Whatever tells somebody something, or starts something, waits for the batch that remembers it (DESIGN 5).

mod core;
mod documents;
mod event;
mod figures;
mod inventory;
mod journal;
mod kept;
mod link;
mod orders;
mod recall;
mod recover;
mod restart;
mod rolled_back;
mod schedule;
#[cfg(test)]
mod tests;
mod untold;
mod wake;
mod wakeful;

pub use self::core::AgentCore;
pub use documents::{Documents, Taken as TakenDocument};
pub use event::{Counted, Effect, Event, JobStart, Me, Note};
pub use figures::Figures;
pub use inventory::{Inventory, Request as InventoryRequest};
pub use journal::{JOBS_AT_ONCE, Journal, OPEN_MAX, Open, key_of as journal_key, number_of as journal_number};
pub use orders::OUTPUT_CAP_MAX;
pub use recover::{RecoverFault, Rows};
pub use restart::RESTART_WITHIN_MS;
pub use schedule::SPREAD_MS as INVENTORY_SPREAD_MS;
pub use untold::TAKEN_WAITS_MS;
pub use wake::{WakeKey, WakeKeys};
pub use wakeful::{Heard, Wakeful};
