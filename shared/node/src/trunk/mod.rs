//! The trunk between a gateway and a server: many streams over one mutually authenticated connection (DESIGN 3).
//! What flows inside a stream is a link, which is not this module's affair; neither is who dials whom.
//!
//! ```text
//! gateway                                               server
//!    │ 'T' ─────────────────────────────────────────────► │  preface, before TLS
//!    │ ◄───────────────────────────────────────────── '+' │
//!    │ ═════════ TLS 1.3, certificates on both ends ═════ │
//!    │ stream 1: StreamHeader{None, None}, TrunkControl…  │  control: ping every 5 s, dead at 15 s
//!    │ stream n: StreamHeader{source, token}, 'L' ──────► │  one per child
//!    │ ◄───────────────────────────────────────────── '+' │  frees yamux's count of unacknowledged streams
//! ```

mod control;
mod gather;
mod header;
mod heartbeat;
mod mux;

pub use control::{ControlFault, ControlReader, ControlWriter, control};
pub use header::{HeaderFault, STREAM_HEADER_BYTES_MAX, read_header, write_header};
pub use heartbeat::{Beat, Heartbeat};
pub use mux::{Mux, MuxFault, MuxHandle, MuxLimits, TrunkStream};
