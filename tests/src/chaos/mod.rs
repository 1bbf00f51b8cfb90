//! Real processes that are killed, stopped and cut off while they work, and the accounts that must agree afterwards.
//!
//! ```text
//! seed ─► Plan (faults, jobs) ─► drive(Plant) ─► rest ─► stop ─► Accounts: server rows, journals, files
//! ```

pub mod accounts;
pub mod driver;
pub mod plan;
pub mod plant;
pub mod process;
pub mod steps;
pub mod witness;
pub mod work;

pub use accounts::{Accounts, Pair};
pub use driver::{Done, Fault, Ordered, drive, rest};
pub use plan::{Amount, Plan, Step, What};
pub use plant::{Node, Plant};
pub use witness::Seen;
pub use work::{Sort, Work};
