//! The relay's own actors; what it shares with server and agent is in `branchline_node`.

pub mod exchange;
