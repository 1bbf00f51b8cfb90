//! The server's actors: thin shells around what `domain` decides.

pub mod dispatcher;
pub mod trunks;
