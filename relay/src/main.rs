//! `branchline-relay --config FILE`, and `configure`.

use std::path::PathBuf;

/// Orders and results are many small values that come and go together: the system's allocator took a fifth of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut args = std::env::args().skip(1);
    if std::env::args().nth(1).as_deref() == Some("configure") {
        let (text, code) = branchline_relay::configure::command(args.skip(1));
        if code == 0 {
            println!("{text}")
        } else {
            eprintln!("{text}")
        }
        #[allow(clippy::disallowed_methods, reason = "the process's own end, in its main")]
        std::process::exit(code)
    }
    let code = match (args.next().as_deref(), args.next()) {
        (Some("--config"), Some(file)) => branchline_relay::run(&PathBuf::from(file)),
        (Some("--version"), None) => {
            println!("branchline-relay {}", env!("CARGO_PKG_VERSION"));
            0
        }
        _ => {
            eprintln!("usage: branchline-relay --config FILE | {} | --version", branchline_relay::configure::USAGE);
            2
        }
    };
    #[allow(clippy::disallowed_methods, reason = "the process's own end, in its main")]
    std::process::exit(code)
}
