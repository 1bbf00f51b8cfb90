//! A node as a process of its own: logs to stderr, signals, exit code. Used by the production binaries and by
//! `branchline node`; nothing else may exit a process.

use crate::node::{EndWatch, StartFault, Started};
use futures_util::future::LocalBoxFuture;
use std::future::Future;
use tokio::signal::unix::{SignalKind, signal};

/// A started node.
pub trait RunningNode: 'static {
    /// What it told when it came up.
    fn started(&self) -> &Started;
    /// Its end, should it end by itself.
    fn end(&self) -> EndWatch;
    /// Stops in good order: children are told, stores are committed.
    fn stop(self) -> LocalBoxFuture<'static, ()>;
}

/// Logs go to stderr, one line each; `BRANCHLINE_LOG` filters (default `info`), e.g. `branchline_node::link=trace`.
pub fn init_logs(json: bool) {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_from_env("BRANCHLINE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // A second call in one process keeps the first subscriber.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
}

/// Lets this process open as many files as the system allows it at all: usually it may have 1,024 unless it asks for more,
/// and each link is one. Answers how many it may open now. What it starts inherits that, so a node that runs other people's
/// programs does not ask.
pub fn allow_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = if raised.is_ok() { maximum } else { current };
    // Without a limit there is no number.
    let limit = limit.unwrap_or(u64::MAX);
    tracing::debug!(limit, "open files");
    limit
}

/// Runs a node until a signal or its own end; answers the process's exit code.
pub fn run_process<N, F>(start: impl FnOnce() -> F) -> i32
where
    N: RunningNode,
    F: Future<Output = Result<N, StartFault>>,
{
    init_logs(false);
    actix_rt::System::new().block_on(async move {
        let (mut term, mut int) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(term), Ok(int)) => (term, int),
            _ => {
                tracing::error!("cannot listen for signals");
                return 1;
            }
        };
        let starting = start();
        let node = tokio::select! {
            node = starting => node,
            _ = term.recv() => return 0,
            _ = int.recv() => return 0,
        };
        let node = match node {
            Ok(node) => node,
            Err(fault) => {
                tracing::error!(code = %fault.code, message = %fault.message, "the node did not start");
                return fault.exit_code;
            }
        };
        tracing::info!(id = %node.started().id, name = %node.started().name, addresses = ?node.started().addresses, "started");
        let mut end = node.end();
        let ended = tokio::select! {
            ended = end.wait_for(|e| e.is_some()) => ended.ok().and_then(|e| e.clone()),
            _ = term.recv() => None,
            _ = int.recv() => None,
        };
        node.stop().await;
        match ended {
            Some(end) => {
                tracing::error!(exit_code = end.exit_code, first_fault = %end.first_fault, "the node ended by itself");
                end.exit_code
            }
            None => 0,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    #[test]
    fn as_many_files_may_be_open_as_the_system_allows_at_all() {
        // One less is in no other test's way.
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: maximum.map(|most| most - 1), maximum }).unwrap();
        let allowed = allow_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(allowed, limit.current.unwrap_or(u64::MAX));
    }
}
