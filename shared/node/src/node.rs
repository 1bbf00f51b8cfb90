//! A node is a value: configuration, clock, randomness and a state folder in; a running node out (DESIGN 4).
//! No statics, no signal handlers, no exit: many nodes of one role run in one process.

use crate::{
    link::names::{Resolve, SystemResolver},
    random::Random,
    time::Clock,
};
use branchline_protocol::id::NodeId;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};
use tokio::sync::watch;

/// What a node does not decide for itself.
#[derive(Clone)]
pub struct Ambient {
    /// Its clock.
    pub clock: Arc<dyn Clock>,
    /// Its randomness.
    pub random: Arc<dyn Random>,
    /// Who resolves names for it.
    pub resolver: Arc<dyn Resolve>,
}

impl Ambient {
    /// The machine's clock, randomness and resolver.
    pub fn system() -> Self {
        Ambient {
            clock: crate::time::SystemClock::shared(),
            random: crate::random::SystemRandom::shared(),
            resolver: SystemResolver::shared(),
        }
    }
}

/// The addresses a node really listens on, ports filled in: `link`, `trunk`, `api`, `public`, `private`.
pub type Addresses = BTreeMap<String, SocketAddr>;

/// A node ended by itself: a part of it is past its restart intensity or its store stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEnd {
    /// The process's exit code, if the node is all there is in the process.
    pub exit_code: i32,
    /// The first fault, not its casualties.
    pub first_fault: String,
}

/// What a started node tells its owner. Written as JSON to `node.json` in its state folder once it listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub addresses: Addresses,
}

/// The end of a node as its owner awaits it: `None` while it runs.
pub type EndWatch = watch::Receiver<Option<NodeEnd>>;

/// Exit codes of a node's process.
pub mod exit_code {
    /// The configuration is wrong.
    pub const CONFIGURATION: i32 = 2;
    /// Enrolment was refused or impossible.
    pub const ENROLMENT: i32 = 4;
    /// The state folder is in use, another node's, or of a newer format.
    pub const STATE: i32 = 5;
    /// A listener could not be opened.
    pub const LISTEN: i32 = 6;
    /// The store stopped: a write or fsync failed.
    pub const STORE: i32 = 70;
    /// A singleton is past its restart intensity.
    pub const SUPERVISION: i32 = 71;
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct StartFault {
    /// Stable word: `port_in_use`, `state_in_use`, `other_node`, `bad_bundle`, `cannot_register_offline` …
    pub code: String,
    /// For people: what was wrong and what to do.
    pub message: String,
    /// The process's exit code.
    pub exit_code: i32,
}

impl StartFault {
    /// A fault with its exit code.
    pub fn new(exit_code: i32, code: &str, message: impl Into<String>) -> Self {
        StartFault { code: code.into(), message: message.into(), exit_code }
    }
}

/// Opens a listener, or says which address is taken (OPS-1).
pub fn listen(what: &str, address: SocketAddr) -> Result<std::net::TcpListener, StartFault> {
    let fault = |e: std::io::Error| {
        let code = if e.kind() == std::io::ErrorKind::AddrInUse { "port_in_use" } else { "cannot_listen" };
        StartFault::new(
            exit_code::LISTEN,
            code,
            format!("{what} cannot listen on {address}: {e}; free the port or configure another"),
        )
    };
    let listener = std::net::TcpListener::bind(address).map_err(fault)?;
    listener.set_nonblocking(true).map_err(fault)?;
    Ok(listener)
}

/// Opens a UDP port, or says which one is taken.
pub fn listen_udp(what: &str, address: SocketAddr) -> Result<std::net::UdpSocket, StartFault> {
    let fault = |e: std::io::Error| {
        let code = if e.kind() == std::io::ErrorKind::AddrInUse { "port_in_use" } else { "cannot_listen" };
        let help = "free the port, configure another, or switch it off";
        StartFault::new(exit_code::LISTEN, code, format!("{what} cannot listen on {address}/udp: {e}; {help}"))
    };
    let socket = std::net::UdpSocket::bind(address).map_err(fault)?;
    socket.set_nonblocking(true).map_err(fault)?;
    Ok(socket)
}

/// Writes a file so that a crash leaves the old or the new content, never a part.
pub fn write_whole(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let part = path.with_extension("part");
    let mut file = std::fs::File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
