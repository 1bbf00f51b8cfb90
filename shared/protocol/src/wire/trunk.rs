//! The trunk's control stream between gateway and server: u32 length, big-endian, then MessagePack with field names.
//!
//! yamux does not ping an idle connection, so the control stream has its own heartbeat: a ping every 5 s from the
//! gateway, answered at once, dead at 15 s (DESIGN 3).

use crate::{hash::Hash, time::Millis};
use serde::{Deserialize, Serialize};

/// Seconds between pings.
pub const TRUNK_PING_S: u64 = 5;
/// Seconds of silence after which a trunk is dead.
pub const TRUNK_DEAD_S: u64 = 15;
/// The largest control message.
pub const TRUNK_CONTROL_BYTES_MAX: usize = 1_048_576;

/// One control message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrunkControl {
    /// Gateway to server: alive; its build and figures for the tree.
    Ping {
        /// The gateway's build.
        build: String,
        /// Links piped now.
        links: u32,
    },
    /// Server to gateway: alive.
    Pong {
        /// The server's build.
        build: String,
        /// The server's clock.
        time: Millis,
        /// Seconds since the server started.
        uptime_s: u64,
    },
    /// Server to gateway, at the start and at each change: blake3 of every link token that may knock.
    LinkTokens(Vec<Hash>),
    /// A kind this build does not know.
    #[serde(other)]
    Unknown,
}
