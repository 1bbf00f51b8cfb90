//! A link between a child and its parent: frames over an inner TLS session, whatever carries the bytes (DESIGN 3).
//!
//! [`lanes`] decides what is written next and what may be received (pure); [`engine`] moves the bytes; [`dial`] makes
//! the byte stream on the child's side, with [`names`] resolved; [`carrier`] turns a WebSocket into one, and [`ReadAhead`] reads from connections in large pieces while much comes. Nothing here knows what a message says.

pub mod carrier;
pub mod codec;
pub mod dial;
pub mod engine;
mod handle;
pub mod lanes;
pub mod names;
mod read_ahead;

pub use handle::{LINK_COMMANDS_MAX, LinkHandle, WeakLink};
pub use read_ahead::{AHEAD_BYTES, ReadAhead};
use tokio::io::{AsyncRead, AsyncWrite};

/// Anything a link can run over.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A byte stream whose kind no longer matters.
pub type BoxStream = Box<dyn Stream>;
