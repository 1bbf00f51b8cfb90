//! The operator's command as the scenarios start it: the same entry as `branchline`, built together with them.

fn main() {
    let code = branchline::run(std::env::args_os(), &branchline::own_executable());
    #[allow(clippy::disallowed_methods, reason = "only main exits")]
    std::process::exit(code);
}
