//! The gateway: the blind pipe in the DMZ (DESIGN 1, 3). It ends the children's outer TLS, allows one path and method,
//! limits rates and copies bytes into streams of its trunks. It holds no key that decrypts, enrols or signs.
//!
//! ```text
//! child ──HTTPS, one upgrade──► public ──pipe──► stream of a trunk ──mTLS──► server
//!                                 │ 404 · 429 · 503
//!                     private: /getstatus · /metrics
//! ```

mod actors;
mod anchor;
pub mod backoff;
pub mod board;
pub mod config;
pub mod flood;
mod gate;
pub mod limits;
mod node;

pub use gate::BUILD;
pub use node::{Gateway, RunningGateway};

use branchline_node::node::{Ambient, exit_code};
use std::{future::Future, path::Path};

/// Runs a gateway from a configuration file until it ends by itself or `stop` is ready; the process's exit code. `stop`
/// is the caller's: libraries handle no signals.
pub fn run_until(config: &Path, stop: impl Future<Output = ()>) -> i32 {
    #[cfg(unix)]
    branchline_node::process::allow_files();
    let runner = actix_rt::System::new();
    runner.block_on(async {
        let started = match config::Config::read(config) {
            Ok(config) => Gateway::start(config, Ambient::system()).await,
            Err(fault) => Err(fault),
        };
        let gateway = match started {
            Ok(gateway) => gateway,
            Err(fault) => {
                tracing::error!(code = %fault.code, "{}", fault.message);
                return fault.exit_code;
            }
        };
        let mut end = gateway.end.clone();
        let code = tokio::select! {
            () = stop => 0,
            ended = end.wait_for(Option::is_some) => match ended {
                Ok(ended) => ended.as_ref().map_or(exit_code::SUPERVISION, |end| end.exit_code),
                Err(_) => exit_code::SUPERVISION,
            },
        };
        gateway.stop().await;
        code
    })
}
