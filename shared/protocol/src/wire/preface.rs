//! The first byte of a stream, and what the gateway tells the server about a stream it pipes.

use serde::{Deserialize, Serialize};

/// What a stream is for. Written by whoever opens it, before the inner ClientHello; the acceptor answers
/// [`PREFACE_ACCEPTED`] or [`PREFACE_BUSY`] at once, which also frees yamux's count of unacknowledged streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Preface {
    /// A link or a poll.
    Link = b'L',
    /// A relay's link: an untrusted hint, so that a parent keeps a part of its rate for relays before it knows any
    /// certificate. One that is no relay's is refused.
    Uplink = b'U',
    /// Bulk content.
    Bulk = b'B',
    /// Enrolment: spliced blindly upwards by relay and gateway.
    Enrol = b'E',
    /// A gateway's trunk, on the server's trunk port only.
    Trunk = b'T',
}

/// The acceptor's answer.
pub const PREFACE_ACCEPTED: u8 = b'+';

/// The acceptor's answer above its rate, followed by the milliseconds to wait (u32, big-endian) and the stream's end:
/// a turned-away child costs no handshake.
pub const PREFACE_BUSY: u8 = b'!';

/// ALPN of a link: protocol and version.
pub const LINK_ALPN: &[u8] = b"branchline/1";

/// The gateway's only device path. GET with an upgrade to WebSocket; everything else is 404 (GW-2).
pub const LINK_PATH: &str = "/branchline/v1/link";

/// The header with the opaque link token of the bundle. Says that a stranger may knock, never who it is.
pub const TOKEN_HEADER: &str = "x-branchline-link-token";

impl Preface {
    /// The preface with this byte.
    pub fn from_byte(byte: u8) -> Option<Preface> {
        [Preface::Link, Preface::Uplink, Preface::Bulk, Preface::Enrol, Preface::Trunk]
            .into_iter()
            .find(|p| *p as u8 == byte)
    }

    /// Its byte.
    pub fn byte(self) -> u8 {
        self as u8
    }
}

/// What the gateway writes at the head of each trunk stream, before the child's bytes: length (u16, big-endian) and
/// MessagePack with field names. The control stream has `source: None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHeader {
    /// The child's address as the gateway saw it: an untrusted hint for logs and limits.
    pub source: Option<std::net::SocketAddr>,
    /// The link token it showed.
    pub token: Option<String>,
}
