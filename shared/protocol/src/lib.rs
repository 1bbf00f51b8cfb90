//! The nodes' common language: identities, counters, time, the wire, orders and their verification, documents
//! and pure rules. Nothing here knows a socket, a clock, an actor, a file or a database.

pub mod capability;
pub mod chain;
pub mod datagram;
pub mod document;
pub mod hash;
pub mod id;
pub mod inventory;
pub mod job;
pub mod order;
pub mod receipt;
pub mod record;
pub mod refusal;
pub mod schedule;
pub mod selector;
pub mod time;
pub mod trust;
pub mod wire;
