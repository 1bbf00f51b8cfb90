//! `branchline-relay --config FILE`.

use std::path::PathBuf;

fn main() {
    let mut args = std::env::args().skip(1);
    let code = match (args.next().as_deref(), args.next()) {
        (Some("--config"), Some(file)) => branchline_relay::run(&PathBuf::from(file)),
        (Some("--version"), None) => {
            println!("branchline-relay {}", env!("CARGO_PKG_VERSION"));
            0
        }
        _ => {
            eprintln!("usage: branchline-relay --config FILE | --version");
            2
        }
    };
    #[allow(clippy::disallowed_methods, reason = "the process's own end, in its main")]
    std::process::exit(code)
}
