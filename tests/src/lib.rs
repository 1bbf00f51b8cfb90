//! What the scenarios share: a tree of nodes in one process, a tree of real processes, and nothing that production uses.

pub mod office;
pub mod tree;
