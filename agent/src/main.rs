//! The agent's executable: thin, everything is in the library.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [verb, job_dir] if verb == "shim" => ExitCode::from(branchline_agent::shim::main(Path::new(job_dir)) as u8),
        _ => {
            eprintln!("usage: branchline-agent shim JOB_FOLDER");
            ExitCode::from(2)
        }
    }
}
