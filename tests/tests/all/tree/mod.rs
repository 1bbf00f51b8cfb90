//! Scenarios on a tree of nodes in one process.

mod drain;
mod fanout;
mod floods;
mod inventory;
mod jobs;
mod keeping;
mod nodes;
mod notices;
mod polls;
mod restart;
mod restore;
mod rolled_back;
mod separation;
mod settings;
mod slots;
mod space;
mod supervision;
mod wakes;

/// What agents start for each job.
const SHIM: &str = env!("CARGO_BIN_EXE_shim");
/// The tenant of scenarios that need only one.
const MAIN: &str = "main";
