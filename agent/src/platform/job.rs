//! A job's life as the agent sees it: what to start, how to wait, what was left (JOB-9, DESIGN 4).

use crate::capabilities::{INTERPRETER, Unsupported};
use branchline_protocol::{
    job::{End, RunScript, Runnable},
    time::Millis,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

/// Everything a platform needs to start one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSpec {
    /// The job's own folder: made here, used once, removed by the caller after its result is journalled.
    pub dir: PathBuf,
    /// The executable that answers [`JobSpec::shim_args`] and the folder with [`crate::shim::main`].
    pub shim: PathBuf,
    /// Its leading arguments, e.g. `shim`; the folder is the last one.
    pub shim_args: Vec<String>,
    /// What to run.
    pub run: Runnable,
    /// Set on top of `PATH`, `HOME` and `LANG`; nothing of the agent's own environment is passed on.
    pub env: BTreeMap<String, String>,
    /// The working folder; `None` is a fresh one inside [`JobSpec::dir`].
    pub cwd: Option<PathBuf>,
    /// Milliseconds after which the whole process group is killed.
    pub time_out_ms: u64,
    /// Bytes kept of each of stdout and stderr.
    pub output_cap: u64,
}

impl JobSpec {
    /// From the order's arguments.
    pub fn of(dir: PathBuf, shim: PathBuf, shim_args: Vec<String>, args: RunScript) -> JobSpec {
        let RunScript { run, time_out_ms, output_cap } = args;
        JobSpec { dir, shim, shim_args, run, env: BTreeMap::new(), cwd: None, time_out_ms, output_cap }
    }

    /// A command line with the usual bounds: ten minutes, 64 KiB, leading argument `shim`.
    pub fn argv(dir: PathBuf, shim: PathBuf, argv: &[&str]) -> JobSpec {
        let run = Runnable::Argv(argv.iter().map(|a| a.to_string()).collect());
        JobSpec::of(dir, shim, vec!["shim".to_owned()], RunScript { run, time_out_ms: 600_000, output_cap: 65_536 })
    }
}

/// Why a job was not started. Nothing runs after any of these.
#[derive(Debug, thiserror::Error)]
pub enum StartFault {
    /// No backend (rule P).
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The command line is empty.
    #[error("the command line is empty")]
    Empty,
    /// The script is over its bound.
    #[error("the script has {0} bytes")]
    TooLarge(usize),
    /// The folder was used for a start before.
    #[error("the job's folder {0} was used before")]
    Used(PathBuf),
    /// The folder could not be made ready.
    #[error("preparing {path} failed")]
    Prepare {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The shim could not be started.
    #[error("starting the shim {path} failed")]
    Shim {
        /// The executable.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StartFault {
    /// The end and the reason to report for it.
    pub fn verdict(&self) -> (End, String) {
        match self {
            StartFault::Unsupported(answer) => (End::Unsupported, answer.reason()),
            StartFault::Empty => (End::Failed, "empty_command".to_owned()),
            StartFault::TooLarge(_) => (End::Refused, "too_large".to_owned()),
            StartFault::Used(_) => (End::OutcomeUnknown, "started_before".to_owned()),
            StartFault::Prepare { .. } | StartFault::Shim { .. } => (End::Failed, "not_started".to_owned()),
        }
    }
}

/// Why a program did not start under its shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpawnFault {
    /// The script's interpreter is not on this machine (JOB-9).
    Interpreter,
    /// No such program.
    NotFound,
    /// It is there and cannot be executed.
    NotExecutable,
    /// The working folder is missing or closed.
    Folder,
    /// Cancelled before it began.
    Cancelled,
    /// Anything else, in the system's words.
    Other(String),
}

/// How a job's main process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// Killed with its whole process group when its time was up.
    TimedOut,
    /// It never began.
    NotStarted(SpawnFault),
}

/// What a shim leaves of a job. Durable before anyone reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// How it ended.
    pub ended: Ended,
    /// When the program was started, wall time; `None` when it was not, or by a stand-in without a clock.
    pub started_at: Option<Millis>,
    /// When its end was seen, wall time; `None` from a stand-in without a clock.
    pub ended_at: Option<Millis>,
    /// Bytes kept of stdout.
    pub stdout_bytes: u64,
    /// Bytes kept of stderr.
    pub stderr_bytes: u64,
    /// Whether stdout was cut at its cap.
    pub stdout_truncated: bool,
    /// Whether stderr was cut at its cap.
    pub stderr_truncated: bool,
    /// Whether [`JobHandle::kill`] was called before its end.
    pub cancelled: bool,
    /// Set by stand-ins only (rule P).
    #[serde(default)]
    pub simulated: bool,
}

impl Status {
    /// A job that never began.
    pub fn not_started(fault: SpawnFault, at: Option<Millis>) -> Status {
        Status {
            cancelled: fault == SpawnFault::Cancelled,
            ended: Ended::NotStarted(fault),
            started_at: None,
            ended_at: at,
            stdout_bytes: 0,
            stderr_bytes: 0,
            stdout_truncated: false,
            stderr_truncated: false,
            simulated: false,
        }
    }

    /// Whether either output was cut.
    pub fn truncated(&self) -> bool {
        self.stdout_truncated || self.stderr_truncated
    }

    /// The exit code, where a process ran to its end.
    pub fn exit_code(&self) -> Option<i32> {
        match self.ended {
            Ended::Exited(code) => Some(code),
            _ => None,
        }
    }

    /// The end to report, and the reason for every end but `succeeded` (JOB-9).
    pub fn verdict(&self) -> (End, Option<String>) {
        let reason = match &self.ended {
            Ended::Exited(0) => return (End::Succeeded, None),
            Ended::NotStarted(SpawnFault::Interpreter) => {
                return (End::Unsupported, Some(INTERPRETER.to_owned()));
            }
            Ended::NotStarted(SpawnFault::NotFound) => "not_found",
            Ended::NotStarted(SpawnFault::NotExecutable) => "not_executable",
            Ended::NotStarted(SpawnFault::Folder) => "no_working_folder",
            Ended::NotStarted(SpawnFault::Other(_)) => "not_started",
            Ended::NotStarted(SpawnFault::Cancelled) => "cancelled",
            Ended::TimedOut => "time_out",
            Ended::Signalled(_) if self.cancelled => "cancelled",
            Ended::Signalled(_) => "signal",
            Ended::Exited(_) => "exit_code",
        };
        (End::Failed, Some(reason.to_owned()))
    }
}

/// What is left of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobLeft {
    /// It ended: its status, stdout and stderr.
    Finished(Status, Bytes, Bytes),
    /// Its shim lives.
    Running {
        /// The shim's process.
        shim: u32,
        /// The program's process and the number of its group; `None` in the instant before it starts.
        program: Option<u32>,
    },
    /// No status and no shim: it may or may not have had its effect (`outcome_unknown`).
    Cut,
}

/// A job that was started or found again. Dropping it leaves the job alone.
#[derive(Debug)]
pub struct JobHandle {
    dir: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Our own child: the flag turns true when the shim was reaped, or its sender is gone.
    #[cfg(target_os = "linux")]
    Child(tokio::sync::watch::Receiver<bool>),
    /// Somebody else's child: its folder is looked at.
    #[cfg(target_os = "linux")]
    Attached,
    /// Known already.
    Done(JobLeft),
}

impl JobHandle {
    /// A job whose end is known.
    pub fn done(dir: &Path, left: JobLeft) -> JobHandle {
        JobHandle { dir: dir.to_owned(), source: Source::Done(left) }
    }

    /// The job's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{JobHandle, JobLeft, Source};
    use crate::platform::linux::jobs;
    use std::{io, path::Path, time::Duration};
    use tokio::sync::watch;

    /// How often a job of an earlier agent process is looked at.
    const POLL: Duration = Duration::from_millis(200);

    impl JobHandle {
        pub(crate) fn child(dir: &Path, reaped: watch::Receiver<bool>) -> JobHandle {
            JobHandle { dir: dir.to_owned(), source: Source::Child(reaped) }
        }

        pub(crate) fn attached(dir: &Path) -> JobHandle {
            JobHandle { dir: dir.to_owned(), source: Source::Attached }
        }

        /// Waits for the end: `Finished` or `Cut`. May be called again and dropped at any time. Needs a tokio runtime;
        /// nothing of it blocks the arbiter.
        pub async fn wait(&self) -> JobLeft {
            match &self.source {
                Source::Done(left) => return left.clone(),
                Source::Attached => {}
                Source::Child(reaped) => {
                    // An error means that nobody reaps any more: the folder says the rest.
                    let _ = reaped.clone().wait_for(|gone| *gone).await;
                }
            }
            loop {
                let dir = self.dir.clone();
                // A panic in there would be a bug of ours and tells nothing of the job: unknown is the honest answer.
                let left = tokio::task::spawn_blocking(move || jobs::inspect(&dir)).await.unwrap_or(JobLeft::Cut);
                if !matches!(left, JobLeft::Running { .. }) {
                    return left;
                }
                tokio::time::sleep(POLL).await;
            }
        }

        /// Kills the program's process group, or keeps it from starting. The end still comes from
        /// [`JobHandle::wait`]; a job that has ended already is left as it is. Blocks shortly.
        pub fn kill(&self) -> io::Result<()> {
            match &self.source {
                Source::Done(_) => Ok(()),
                Source::Child(_) | Source::Attached => jobs::kill(&self.dir),
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl JobHandle {
    /// Waits for the end.
    pub async fn wait(&self) -> JobLeft {
        let Source::Done(left) = &self.source;
        left.clone()
    }

    /// Without a backend there is nothing to kill.
    pub fn kill(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(ended: Ended) -> Status {
        Status { ended, ..Status::not_started(SpawnFault::NotFound, None) }
    }

    #[test]
    fn job_9_every_end_has_its_verdict() {
        let cases = [
            (Ended::Exited(0), End::Succeeded, None),
            (Ended::Exited(3), End::Failed, Some("exit_code")),
            (Ended::Signalled(11), End::Failed, Some("signal")),
            (Ended::TimedOut, End::Failed, Some("time_out")),
            (Ended::NotStarted(SpawnFault::Interpreter), End::Unsupported, Some("interpreter")),
            (Ended::NotStarted(SpawnFault::NotFound), End::Failed, Some("not_found")),
            (Ended::NotStarted(SpawnFault::NotExecutable), End::Failed, Some("not_executable")),
            (Ended::NotStarted(SpawnFault::Folder), End::Failed, Some("no_working_folder")),
            (Ended::NotStarted(SpawnFault::Other("x".into())), End::Failed, Some("not_started")),
            (Ended::NotStarted(SpawnFault::Cancelled), End::Failed, Some("cancelled")),
        ];
        for (ended, end, reason) in cases {
            assert_eq!(status(ended).verdict(), (end, reason.map(str::to_owned)));
        }
        let killed = Status { cancelled: true, ..status(Ended::Signalled(9)) };
        assert_eq!(killed.verdict().1.as_deref(), Some("cancelled"));
        assert_eq!(status(Ended::Exited(3)).exit_code(), Some(3));
        assert_eq!(status(Ended::TimedOut).exit_code(), None);
    }
}
