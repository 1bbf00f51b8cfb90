//! One node's process: started, watched, started again when it ends, and signalled only while it is certainly itself.

use crate::office::command::spawn_mortal;
use branchline_node::time::SystemClock;
use branchline_protocol::time::Millis;
use std::{
    fs::OpenOptions,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

/// Between an end and the next start.
const PAUSE: Duration = Duration::from_millis(100);
/// A node that is asked to end gets so long.
const IN_GOOD_ORDER: Duration = Duration::from_secs(30);

/// What is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The executable.
    pub exe: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where stdout and stderr are appended.
    pub log: PathBuf,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// When, wall time.
    pub at: Millis,
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether this process sent that signal or asked for the end.
    pub ours: bool,
}

#[derive(Default)]
struct Inner {
    pid: Option<u32>,
    held: bool,
    closing: bool,
    struck: bool,
    starts: u32,
    env: Vec<(String, String)>,
    ends: Vec<End>,
}

struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'g>(&self, guard: MutexGuard<'g, Inner>, at_most: Duration) -> MutexGuard<'g, Inner> {
        self.changed.wait_timeout(guard, at_most).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A kept process. Dropping it kills it.
pub struct Kept {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Kept {
    /// Starts it and keeps it running.
    pub fn start(program: Program, env: Vec<(String, String)>) -> Kept {
        let inner = Mutex::new(Inner { env, ..Inner::default() });
        let shared = Arc::new(Shared { inner, changed: Condvar::new() });
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || keep(&program, &of_thread));
        Kept { shared, thread: Some(thread) }
    }

    /// Sends a signal; whether there was a process to get it.
    pub fn signal(&self, signal: libc::c_int) -> bool {
        let mut inner = self.shared.lock();
        let Some(pid) = inner.pid else { return false };
        inner.struck |= matches!(signal, libc::SIGKILL | libc::SIGTERM);
        // The keeper reaps under this lock: the number is still the process's.
        send(pid, signal);
        true
    }

    /// Kills it and keeps it down until [`Kept::let_start`]; whether there was a process.
    pub fn hold_down(&self) -> bool {
        self.shared.lock().held = true;
        let there = self.signal(libc::SIGKILL);
        let mut inner = self.shared.lock();
        while inner.pid.is_some() {
            inner = self.shared.wait(inner, PAUSE);
        }
        there
    }

    /// Lets it start again, with this environment beside the usual one.
    pub fn let_start(&self, env: Vec<(String, String)>) {
        let mut inner = self.shared.lock();
        (inner.held, inner.env) = (false, env);
        self.shared.changed.notify_all();
    }

    /// How often it was started, and its ends in order.
    pub fn history(&self) -> (u32, Vec<End>) {
        let inner = self.shared.lock();
        (inner.starts, inner.ends.clone())
    }

    /// Its process now.
    pub fn pid(&self) -> Option<u32> {
        self.shared.lock().pid
    }

    /// The `n`th end from 0, waited for so long.
    pub fn end(&self, n: usize, secs: u64) -> Option<End> {
        let clock = SystemClock::shared();
        let begun = clock.mono();
        let mut inner = self.shared.lock();
        while inner.ends.len() <= n && clock.mono().since(begun) < secs * 1_000 {
            inner = self.shared.wait(inner, PAUSE);
        }
        inner.ends.get(n).copied()
    }

    /// Asks it to end in good order, and kills it if it does not; its last end.
    pub fn stop(mut self) -> Option<End> {
        self.finish(libc::SIGTERM);
        self.shared.lock().ends.last().copied()
    }

    fn finish(&mut self, signal: libc::c_int) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.lock().closing = true;
        // One that is stopped hears nothing.
        self.signal(libc::SIGCONT);
        self.signal(signal);
        self.shared.changed.notify_all();
        let clock = SystemClock::shared();
        let begun = clock.mono();
        while !thread.is_finished() {
            if clock.mono().since(begun) > IN_GOOD_ORDER.as_millis() as u64 {
                self.signal(libc::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = thread.join();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.finish(libc::SIGKILL);
    }
}

fn keep(program: &Program, shared: &Shared) {
    let clock = SystemClock::shared();
    loop {
        let mut inner = shared.lock();
        while inner.held && !inner.closing {
            inner = shared.wait(inner, PAUSE);
        }
        if inner.closing {
            return;
        }
        let mut child = spawn(program, &inner.env);
        (inner.pid, inner.struck) = (Some(child.id()), false);
        inner.starts += 1;
        drop(inner);
        wait_unreaped(child.id());
        let mut inner = shared.lock();
        let status: ExitStatus = child.wait().expect("a child of ours");
        let (code, signal) = (status.code(), status.signal());
        let end = End { at: clock.wall(), code, signal, ours: inner.struck };
        inner.pid = None;
        inner.ends.push(end);
        shared.changed.notify_all();
        if inner.closing {
            return;
        }
        drop(inner);
        std::thread::sleep(PAUSE);
    }
}

fn spawn(program: &Program, env: &[(String, String)]) -> Child {
    let log = OpenOptions::new().create(true).append(true).open(&program.log).expect("a log");
    let mut command = Command::new(&program.exe);
    command.args(&program.args).envs(env.iter().cloned()).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("a second handle")).stderr(log);
    spawn_mortal(command, libc::SIGKILL).expect("the node's program starts")
}

#[allow(unsafe_code)]
fn send(pid: u32, signal: libc::c_int) {
    // SAFETY: kill takes two integers and touches no memory of ours.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// Waits for a child's end and leaves it to be reaped, so that its number stays its own.
#[allow(unsafe_code)]
fn wait_unreaped(pid: u32) {
    loop {
        // SAFETY: an all-zero siginfo_t is a valid one to be written over; the call keeps no pointer to it.
        let result = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid, &mut info, libc::WEXITED | libc::WNOWAIT)
        };
        if result == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return;
        }
    }
}

/// Kills every process whose command line holds these words in a row; how many there were. Each is looked at through a
/// handle, so that a number in new hands is never hit.
#[allow(unsafe_code)]
pub fn kill_by_words(words: &str) -> usize {
    let numbers = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<libc::pid_t>().ok());
    pids.filter(|pid| {
        // SAFETY: the calls take integers and a null pointer; the descriptor is closed below and used by nobody else.
        unsafe {
            let handle = libc::syscall(libc::SYS_pidfd_open, *pid, 0) as libc::c_int;
            if handle < 0 {
                return false;
            }
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let meant = line.contains(words);
            let null = std::ptr::null::<libc::siginfo_t>();
            let hit = meant && libc::syscall(libc::SYS_pidfd_send_signal, handle, libc::SIGKILL, null, 0) == 0;
            libc::close(handle);
            hit
        }
    })
    .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::office::eventually;

    fn shell(folder: &std::path::Path, script: &str) -> Program {
        Program { exe: "/bin/sh".into(), args: vec!["-c".into(), script.into()], log: folder.join("log") }
    }

    #[test]
    fn a_process_that_is_killed_starts_again_and_one_that_ends_by_itself_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::start(shell(folder.path(), "exec sleep 600"), vec![]);
        eventually("it runs", 30, || kept.pid());
        assert!(kept.signal(libc::SIGKILL));
        let end = kept.end(0, 30).unwrap();
        assert_eq!((end.code, end.signal, end.ours), (None, Some(libc::SIGKILL), true));
        eventually("it runs again", 30, || (kept.pid().is_some() && kept.history().0 == 2).then_some(()));
        assert!(kept.hold_down());
        assert_eq!((kept.pid(), kept.hold_down()), (None, false));
        kept.let_start(vec![("CODE".into(), "7".into())]);
        eventually("it runs with what it was given", 30, || kept.pid());
        kept.stop();
        let by_itself = Kept::start(shell(folder.path(), "exit $CODE"), vec![("CODE".into(), "7".into())]);
        let end = by_itself.end(0, 30).unwrap();
        assert_eq!((end.code, end.ours), (Some(7), false));
    }

    #[test]
    fn only_the_named_process_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let script = |word: &str| format!("exec sleep 600 # {word}");
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let start = |path: &std::path::Path| {
            let words = path.display().to_string();
            let mut program = shell(folder.path(), &script(&words));
            // The words are an argument of the process itself, as a job's folder is one of its shim.
            program.args = vec!["-c".into(), "sleep 600; true".into(), words];
            Kept::start(program, vec![])
        };
        let (first, second) = (start(&a), start(&b));
        eventually("both run", 30, || first.pid().and(second.pid()));
        let hit = eventually("it is seen", 30, || Some(kill_by_words(a.to_str().unwrap())).filter(|n| *n > 0));
        assert_eq!((hit, first.end(0, 30).unwrap().signal), (1, Some(libc::SIGKILL)));
        assert!(second.history().1.is_empty());
    }
}
