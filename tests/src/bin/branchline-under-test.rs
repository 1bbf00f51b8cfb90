//! The operator's command as the scenarios start it: the same entry as `branchline`, built together with them, with
//! named crash points for its nodes.

use std::path::Path;

fn main() {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let config = args.iter().position(|arg| arg == "--config").and_then(|at| args.get(at + 1));
    if let Some(config) = config.filter(|_| args.get(1).is_some_and(|verb| verb == "node")) {
        branchline_tests::chaos::steps::install(Path::new(config));
    }
    let code = branchline::run(args, &branchline::own_executable());
    #[allow(clippy::disallowed_methods, reason = "only main exits")]
    std::process::exit(code);
}
