//! The one test binary of the workspace's scenarios.

mod office;
mod schedule;
mod structure;
mod tree;
