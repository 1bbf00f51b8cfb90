//! The server's decisions about what goes down and what comes up (pure): which child is sent which order, what a record
//! changes, what may be acknowledged. Events and `now` in, effects out; nothing is sent or acknowledged before the
//! store has committed what it rests on (DESIGN 4, 5). Nothing here knows a socket, a database or an HTTP request.

mod core;
mod intake;
mod left;
mod promise;
mod receipts;
pub mod recovery;
mod select;
mod standing;
mod streams;
#[cfg(test)]
mod tests;
mod withdrawals;

pub use self::core::{
    CANCELLING, CancelJob, CancelPlan, Core, Effect, Event, Issue, OpenJob, Recovered, TenantState, Token, WAKE_KEYS,
    disk_key,
};
pub use intake::Preloaded;
pub use promise::{PERSISTENT_MS, Promise};
pub use select::{Seen, chosen, counts, device, means};
pub use standing::{contacts, standing};
