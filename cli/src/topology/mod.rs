//! Topology files: a whole tree described in one file, for `up`, for tests and for the manual.
//!
//! ```text
//! file ──read──► Described (what was written) ──resolve──► Plan (every node with parent, tenant, site, path)
//! ```
//!
//! Both steps note every mistake; a plan comes out only if there was none.

mod described;
mod plan;
mod resolve;

pub use described::{AcceptFrom, Described, JobPart, JobRun};
pub use plan::{Plan, PlannedNode, PlannedTenant};
pub use resolve::{COMPUTER_NAME_MAX, NAME_MAX, resolve};

use branchline_node::config::{Mistakes, Reader, read_file};
use std::path::Path;

/// The file in a topology's folder.
pub const TOPOLOGY_FILE: &str = "topology.toml";

/// Loads a topology from a file, or from [`TOPOLOGY_FILE`] in a folder.
pub fn load(path: &Path) -> Result<Plan, Mistakes> {
    let file = if path.is_dir() { path.join(TOPOLOGY_FILE) } else { path.to_path_buf() };
    read(&read_file(&file)?)
}

/// Reads and resolves a parsed topology.
pub fn read(table: &toml::Table) -> Result<Plan, Mistakes> {
    let mut mistakes = Mistakes::default();
    let mut reader = Reader::new(table, "", &mut mistakes);
    let described = Described::read(&mut reader);
    reader.finish();
    let plan = resolve(&described, &mut mistakes);
    mistakes.guard(plan)
}

#[cfg(test)]
mod tests;
