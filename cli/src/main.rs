//! The operator's command.

/// Orders and results are many small values that come and go together: the system's allocator took a fifth of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let code = branchline::run(std::env::args_os(), &branchline::own_executable());
    #[allow(clippy::disallowed_methods, reason = "only main exits")]
    std::process::exit(code);
}
