//! One child process: started so that it cannot outlive this one, ended through its own handle.

use crate::failure::Failure;
use std::{
    fs::OpenOptions,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::process::Child;

/// How long a process may take to end by itself.
const END_TIME_OUT: Duration = Duration::from_secs(10);

/// What is started for a node.
#[derive(Clone, Debug)]
pub struct Program {
    /// This executable.
    pub exe: PathBuf,
    /// `node ROLE --config FILE`.
    pub args: Vec<String>,
    /// Where stdout and stderr are appended.
    pub log: PathBuf,
}

/// Starts it. Must be called on the thread that lives as long as this process.
pub fn spawn(program: &Program) -> Result<Child, Failure> {
    let failed =
        |e: std::io::Error| Failure::ended("cannot_start", format!("cannot start {}: {e}", program.exe.display()));
    let log = OpenOptions::new().create(true).append(true).open(&program.log).map_err(failed)?;
    let mut command = std::process::Command::new(&program.exe);
    command.args(&program.args).stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    // A group of its own: Ctrl-C reaches `up` alone, which then ends the nodes in order.
    command.process_group(0);
    dies_with_us(&mut command);
    tokio::process::Command::from(command).spawn().map_err(failed)
}

/// The kernel kills the child when the thread that starts it ends, in whatever way.
#[allow(unsafe_code)]
fn dies_with_us(command: &mut std::process::Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made (prctl, getppid), nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have ended before prctl: then nobody would send the signal.
            if libc::getppid() as u32 != parent {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// Asks the process to end, and kills it if it does not.
pub async fn end(child: &mut Child) -> std::io::Result<ExitStatus> {
    ask_to_end(child);
    match tokio::time::timeout(END_TIME_OUT, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            child.start_kill()?;
            child.wait().await
        }
    }
}

#[allow(unsafe_code)]
fn ask_to_end(child: &Child) {
    // `id` is none once the child was waited for, so the pid cannot be another process's.
    if let Some(pid) = child.id() {
        // SAFETY: kill has no memory effects; the pid is of a child that was not waited for.
        unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) };
    }
}

/// The last lines of a log, for a message.
pub fn tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(4_096)..]).into_owned();
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(folder: &Path, script: &str) -> Program {
        Program { exe: "/bin/sh".into(), args: vec!["-c".into(), script.into()], log: folder.join("log") }
    }

    #[tokio::test]
    async fn a_process_is_asked_to_end_first() {
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready");
        let script = format!("trap 'echo bye; exit 7' TERM; : > {}; while :; do sleep 0.05; done", ready.display());
        let mut child = spawn(&shell(folder.path(), &script)).unwrap();
        for _ in 0..400 {
            if ready.exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        assert!(ready.exists(), "the shell never set its trap");
        assert_eq!(end(&mut child).await.unwrap().code(), Some(7));
        assert_eq!(tail(&folder.path().join("log")), "bye");
    }

    #[test]
    fn a_process_dies_with_the_thread_that_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let program = shell(folder.path(), "trap '' TERM; exec sleep 600");
        let pid = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _context = runtime.enter();
            spawn(&program).unwrap().id().unwrap()
        });
        let pid = pid.join().unwrap();
        // Dead means gone or waiting to be reaped by this process, whose child it is.
        let dead = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
            Err(_) => true,
        };
        let ended = (0..400).any(|_| {
            std::thread::sleep(Duration::from_millis(25));
            dead()
        });
        assert!(ended, "process {pid} outlived its keeper");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let program = Program { exe: folder.path().join("absent"), args: vec![], log: folder.path().join("log") };
        let failure = spawn(&program).unwrap_err();
        assert_eq!((failure.exit, failure.code.as_str()), (1, "cannot_start"));
        assert!(failure.message.contains("absent"), "{failure}");
    }
}
