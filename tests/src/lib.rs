//! What the scenarios share: a tree of nodes in one process, a tree of real processes, links and processes that fail on
//! command, and nothing that production uses.

pub mod chaos;
pub mod office;
pub mod proxy;
pub mod sim;
pub mod tree;
