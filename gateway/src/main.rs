//! `branchline-gateway --config FILE`: the gateway as production installs it.

use std::{path::PathBuf, process::ExitCode};

/// Orders and results are many small values that come and go together: the system's allocator took a fifth of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let config = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--version"] => {
            println!("branchline-gateway {}", branchline_gateway::BUILD);
            return ExitCode::SUCCESS;
        }
        ["--config", file] => PathBuf::from(file),
        _ => {
            eprintln!("usage: branchline-gateway --config FILE | --version");
            return ExitCode::from(2);
        }
    };
    let code = branchline_gateway::run_until(&config, stop());
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// SIGTERM from an init system, or Ctrl-C.
async fn stop() {
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        return;
    }
    // Without a handler the process ends by the signal itself.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
