//! The agent's executable: thin, everything is in the library.

use std::{path::Path, process::ExitCode};

const USAGE: &str = "usage: branchline-agent --config FILE | shim JOB_FOLDER | --version";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [verb, job_dir] if verb == "shim" => ExitCode::from(branchline_agent::shim::main(Path::new(job_dir)) as u8),
        [flag, file] if flag == "--config" => {
            let own = std::env::current_exe().ok().and_then(|path| path.into_os_string().into_string().ok());
            let Some(own) = own else {
                eprintln!("the program's own path cannot be told, so no job could be run");
                return ExitCode::from(2);
            };
            ExitCode::from(branchline_agent::run(Path::new(file), vec![own, "shim".to_owned()]) as u8)
        }
        [flag] if flag == "--version" => {
            println!("branchline-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
