//! The one test binary of the workspace's scenarios.

mod chaos;
mod lies;
mod office;
mod paths;
mod schedule;
mod sim;
mod storms;
mod structure;
mod tree;
