//! What crosses a link, inside the inner TLS session (DESIGN 3).
//!
//! | layer | type | bound |
//! |---|---|---|
//! | preface, before the ClientHello | one byte, answered by one byte | [`Preface`] |
//! | frame | length-delimited, [`Frame`] | 64 KiB |
//! | message | one or more `Data` frames of a lane, [`Message`] | 16 MiB + 64 KiB |
//!
//! Protocol numbers, newest last. A peer says the newest it knows; the link speaks the smaller of the two.
//!
//! | number | date | what a peer with it understands |
//! |---|---|---|
//! | 1 | 2026-11 | everything in `v1` |

mod enrol;
mod frame;
mod message;
mod preface;
mod presence;
mod trunk;

pub use enrol::{ENROL_BYTES_MAX, EnrolAnswer, EnrolRequest, Facts as DeviceFacts};
pub use frame::{Contact, FRAME_BYTES_MAX, Frame, FrameFault, Goodbye, Greeting, Lease, Resume, Welcome};
pub use message::{
    Ack, MESSAGE_BYTES_MAX, Message, MessageFault, PresenceEntry, Reach, Recall, Recalled, SlotStanding,
};
pub use preface::{LINK_ALPN, LINK_PATH, PREFACE_ACCEPTED, PREFACE_BUSY, Preface, StreamHeader, TOKEN_HEADER};
pub use presence::CAPABILITIES_BYTES_MAX;
pub use trunk::{TRUNK_CONTROL_BYTES_MAX, TRUNK_DEAD_S, TRUNK_PING_S, TrunkControl};

/// The newest protocol this build speaks, and the oldest.
pub const PROTOCOL: std::ops::RangeInclusive<u16> = 1..=1;

/// Bytes a lane may send before the receiver's store has committed any (DESIGN 3).
pub const CREDIT_START: u32 = 256 * 1024;
/// Seconds between a child's heartbeats.
pub const HEARTBEAT_S: u64 = 30;
/// Seconds of silence after which a link is dead (ADM-4).
pub const DEAD_AFTER_S: u64 = 90;
/// Seconds a handshake may take, greeting included (ADM-5).
pub const HANDSHAKE_S: u64 = 10;
/// Tiers a tree may have (TOP-20).
pub const DEPTH_MAX: usize = 8;
