//! `branchline-server --config FILE`.

use std::path::PathBuf;

/// Orders and results are many small values that come and go together: the system's allocator took a fifth of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut args = std::env::args().skip(1);
    let code = match (args.next().as_deref(), args.next()) {
        (Some("--config"), Some(file)) => branchline_server::run(&PathBuf::from(file)),
        (Some("--version"), None) => {
            println!("branchline-server {}", env!("CARGO_PKG_VERSION"));
            0
        }
        _ => {
            eprintln!("usage: branchline-server --config FILE | --version");
            2
        }
    };
    #[allow(clippy::disallowed_methods, reason = "the process's own end, in its main")]
    std::process::exit(code)
}
