//! The shim: a small process of ours that a script runs under, so that the job outlives its agent (DESIGN 4).
//!
//! The agent re-executes itself with the job's folder; the shim leads a session of its own, starts the program in
//! another process group, keeps the first bytes of its output, ends the whole group when the time is up, and leaves
//! the end in `status`, fsynced. Plain threads, no runtime. The folder:
//!
//! | file | by | what |
//! |---|---|---|
//! | `spec`, `script` | agent | what to run |
//! | `pid` | whoever claims the start first | shim and program by number *and* start time |
//! | `cancel` | agent | do not start, or end as cancelled |
//! | `stdout`, `stderr` | shim | the first bytes of each |
//! | `status` | shim | how it ended; there only when whole |
//!
//! A program that leaves its process group by itself (a daemon) is out of the shim's reach.

// It is a process of its own, outside any node: no clock is injected across an exec.
#![allow(clippy::disallowed_methods)]

#[cfg(target_os = "linux")]
mod capture;
#[cfg(target_os = "linux")]
pub(crate) mod files;
#[cfg(target_os = "linux")]
pub(crate) mod process;
#[cfg(target_os = "linux")]
mod run;

use std::path::Path;

/// The shim's whole life. Call it from `main`, on the main thread, before any runtime; its answer is the exit code:
/// 0 when a status was left, 1 otherwise.
pub fn main(job_dir: &Path) -> i32 {
    #[cfg(target_os = "linux")]
    let left = run::run(job_dir).is_ok();
    // Without a backend no agent starts one (rule P).
    #[cfg(not(target_os = "linux"))]
    let left = {
        let _ = job_dir;
        false
    };
    if left { 0 } else { 1 }
}
