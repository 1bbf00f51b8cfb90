//! The gateway's actors. Their parent is the node's supervisor.
//!
//! ```text
//! Supervisor ─┬─ trunk-1 … trunk-n   dial the server, hold the control stream, reconnect
//!             ├─ public              one path; each accepted upgrade is a pipe: a task on the listener's worker
//!             └─ private             /getstatus, /metrics
//! ```
//!
//! Pipes are tasks on the worker that accepted them, not actors: a pipe
//! holds nothing that would have to be rebuilt. A pipe ends with its child or its trunk.

pub mod listener;
pub mod pipe;
pub mod private;
pub mod public;
pub mod socket;
pub mod trunk;
