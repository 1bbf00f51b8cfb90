//! The one test binary of the workspace's scenarios.

mod office;
mod structure;
mod tree;
