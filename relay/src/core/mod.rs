//! The relay's decisions (pure): a downstream joined to an uplink. Orders are verified, made durable and handed to the
//! children they are for; records are made durable, acknowledged to the child, and carried up until the server settled
//! them; nothing is told before it is on disk (DESIGN 4, 5). Nothing here knows a socket, a clock or an actor.

mod above;
mod again;
mod age;
mod back;
mod below;
mod bounds;
mod event;
mod gather;
mod owed;
mod persist;
mod put_back;
mod recall;
mod receipts;
mod shelf;
mod sleepers;
mod state;
#[cfg(test)]
mod tests;

pub use bounds::{LEFT_FOR_MS, RESULT_ROOM};
pub use event::{Effect, Event};
pub use persist::Recovered;
pub use shelf::Shelf;
pub use state::{Me, RelayCore};
