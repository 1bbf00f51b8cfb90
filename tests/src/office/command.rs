//! Processes: the command called and waited for, `up` started so that it cannot outlive the tests.

use serde_json::Value;
use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{LazyLock, mpsc},
};

/// What a finished call of the command left.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said beside.
    pub stderr: String,
}

impl Ran {
    /// stdout as its one line of JSON.
    pub fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "one line of JSON and nothing else: {self:#?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }
}

/// Calls the command in a folder.
pub fn run(exe: &Path, folder: &Path, args: &[&str]) -> Ran {
    let output = Command::new(exe).args(args).current_dir(folder).stdin(Stdio::null()).output();
    let output = output.expect("the command starts");
    Ran {
        code: output.status.code().unwrap_or_else(|| panic!("branchline {args:?} was killed: {output:?}")),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The one thread that starts every `up`: the kernel ties a child's life to the thread that started it, and a test's
/// own thread ends with the test.
static STARTER: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
    let (jobs, todo) = mpsc::channel::<Job>();
    std::thread::spawn(move || todo.into_iter().for_each(|job| job()));
    jobs
});

/// Starts a process that gets a signal when the tests' process ends, in whatever way.
pub fn spawn_mortal(mut command: Command, at_our_end: libc::c_int) -> std::io::Result<Child> {
    #[allow(unsafe_code)]
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe; nothing is allocated.
    unsafe {
        command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, at_our_end as libc::c_ulong) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let (answer, answered) = mpsc::channel();
    let job: Job = Box::new(move || {
        let _ = answer.send(command.spawn());
    });
    STARTER.send(job).expect("the starter runs as long as the tests");
    answered.recv().expect("the starter answers")
}

/// Sends a signal to a process whose pid is known to be that process's.
pub fn signal(pid: u32, signal: libc::c_int) {
    #[allow(unsafe_code)]
    // SAFETY: kill has no memory effects.
    unsafe {
        libc::kill(pid as libc::pid_t, signal);
    }
}
