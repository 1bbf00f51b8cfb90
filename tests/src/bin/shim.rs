//! What agents in a test's own process start for each job: the same shim that production re-executes itself as.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: shim DIR");
        return ExitCode::from(2);
    };
    match branchline_agent::shim::main(Path::new(&folder)) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
