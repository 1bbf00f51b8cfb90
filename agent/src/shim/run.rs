//! The shim's course: claim, start, keep the time, leave the end.

use super::{
    capture::Capture,
    files::{self, Claim, PID, SPEC, STATUS, STDERR, STDOUT, Spec},
    process::{self, Process},
};
use crate::platform::job::{Ended, SpawnFault, Status};
use branchline_protocol::time::Millis;
use std::{
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Between the request to end and the end by force.
const GRACE: Duration = Duration::from_secs(2);
/// How long pipes may stay open after the main process ended: a child in the background may hold them for ever.
const DRAIN: Duration = Duration::from_secs(1);

/// Why no status was left.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the start of this job belongs to another process")]
    Claimed,
    #[error("using the job's folder failed")]
    Folder(#[from] io::Error),
}

/// Runs the job of this folder to its end.
pub(super) fn run(dir: &Path) -> Result<(), Fault> {
    process::lead_session();
    // The program gets an absolute script path and its own working folder.
    let dir = &dir.canonicalize()?;
    let me = Process::find(std::process::id()).ok_or(io::Error::from(io::ErrorKind::NotFound))?;
    let mut claim = Claim { boot: process::boot_id(), shim: Some(me), program: None };
    // A status, or a claim of anyone else's: the job was started before, or given up.
    if dir.join(STATUS).exists() || files::claim(dir, &claim)?.as_ref() != Some(&claim) {
        return Err(Fault::Claimed);
    }
    let status = match files::read::<Spec>(dir, SPEC) {
        Some(_) if files::cancelled(dir) => Status::not_started(SpawnFault::Cancelled, Some(wall())),
        Some(spec) => match start(dir, &spec) {
            Ok(started) => see_through(dir, &spec, started, &mut claim)?,
            Err(fault) => Status::not_started(fault, Some(wall())),
        },
        None => Status::not_started(SpawnFault::Other("the specification is not readable".to_owned()), Some(wall())),
    };
    files::replace(dir, STATUS, &status, true)?;
    Ok(())
}

/// What the threads tell the one that keeps the time.
enum Event {
    Ended,
    PipeClosed,
}

#[derive(Default)]
struct Seen {
    ended: bool,
    pipes_closed: u8,
}

impl Seen {
    fn silent(&self) -> bool {
        self.ended && self.pipes_closed == 2
    }

    /// Takes events until `enough`, at most for `limit`; whether it was enough. A limit beyond the clock is none.
    fn until(&mut self, events: &Receiver<Event>, limit: Duration, enough: impl Fn(&Seen) -> bool) -> bool {
        let deadline = Instant::now().checked_add(limit);
        while !enough(self) {
            let left = deadline.map_or(limit, |d| d.saturating_duration_since(Instant::now()));
            match events.recv_timeout(left) {
                Ok(Event::Ended) => self.ended = true,
                Ok(Event::PipeClosed) => self.pipes_closed += 1,
                Err(_) => return false,
            }
        }
        true
    }
}

/// A program on its way and the files for its output.
struct Started {
    at: Millis,
    child: Child,
    stdout: Capture,
    stderr: Capture,
}

/// Keeps the started program's time and learns its end. An error leaves no status: what it did is then unknown.
fn see_through(dir: &Path, spec: &Spec, started: Started, claim: &mut Claim) -> io::Result<Status> {
    let Started { at, mut child, stdout, stderr } = started;
    let group = child.id();
    claim.program = Process::find(group);
    // A full disk here costs the agent its direct kill, not the job its end: time and status are the shim's.
    let _ = files::replace(dir, PID, claim, false);
    if files::cancelled(dir) {
        signal(group, libc::SIGKILL);
    }

    // Kept to the end: with a sender of its own left, the queue never reports a hang-up before its deadline.
    let (sender, events) = mpsc::channel();
    let watched = watch(&mut child, &stdout, &stderr, spec.output_cap, &sender);
    let mut seen = Seen::default();
    // Threads that could not be started leave a program nobody watches: it ends as if its time were up.
    let in_time = watched.is_ok() && seen.until(&events, Duration::from_millis(spec.time_out_ms), |s| s.ended);
    if !in_time {
        signal(group, libc::SIGTERM);
        seen.until(&events, GRACE, Seen::silent);
        // Not reaped yet, so the number is still this group's, also when only its children are left in it.
        signal(group, libc::SIGKILL);
    }
    // A child left in the background may hold the pipes for ever; it does not hold the shim.
    if watched.is_ok() {
        process::wait_unreaped(group)?;
        seen.ended = true;
        seen.until(&events, DRAIN, Seen::silent);
    }
    let exit = child.wait()?;
    let ended_at = wall();
    let (stdout_bytes, stdout_truncated) = stdout.finish();
    let (stderr_bytes, stderr_truncated) = stderr.finish();
    let ended = match (in_time, exit.code(), exit.signal()) {
        (false, ..) => Ended::TimedOut,
        (true, Some(code), _) => Ended::Exited(code),
        (true, None, signal) => Ended::Signalled(signal.unwrap_or_default()),
    };
    Ok(Status {
        ended,
        started_at: Some(at),
        ended_at: Some(ended_at),
        stdout_bytes,
        stderr_bytes,
        stdout_truncated,
        stderr_truncated,
        cancelled: files::cancelled(dir),
        simulated: false,
    })
}

/// Starts the program in a process group of its own. After an error nothing runs.
fn start(dir: &Path, spec: &Spec) -> Result<Started, SpawnFault> {
    let other = |fault: io::Error| SpawnFault::Other(fault.to_string());
    if !spec.cwd.is_dir() {
        return Err(SpawnFault::Folder);
    }
    let stdout = Capture::create(&dir.join(STDOUT)).map_err(other)?;
    let stderr = Capture::create(&dir.join(STDERR)).map_err(other)?;
    let at = wall();
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .env_clear()
        .envs(&spec.env)
        .current_dir(&spec.cwd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    process::die_with_parent(&mut command);
    let child = command.spawn().map_err(|fault| match fault.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) if spec.interprets => SpawnFault::Interpreter,
        Some(libc::ENOENT | libc::ENOTDIR) => SpawnFault::NotFound,
        Some(libc::EACCES | libc::ENOEXEC | libc::EISDIR) => SpawnFault::NotExecutable,
        _ => other(fault),
    })?;
    Ok(Started { at, child, stdout, stderr })
}

/// Starts the three threads that watch the program: its end and its two outputs.
fn watch(child: &mut Child, stdout: &Capture, stderr: &Capture, cap: u64, events: &Sender<Event>) -> io::Result<()> {
    // The receiver outlives every thread but those that a background child holds at the process's end.
    let tell = |event: Event| {
        let events = events.clone();
        move || drop(events.send(event))
    };
    if let Some(pipe) = child.stdout.take() {
        stdout.read(pipe, cap, tell(Event::PipeClosed))?;
    }
    if let Some(pipe) = child.stderr.take() {
        stderr.read(pipe, cap, tell(Event::PipeClosed))?;
    }
    let (pid, ended) = (child.id(), tell(Event::Ended));
    thread::Builder::new()
        .name("end".to_owned())
        .spawn(move || {
            // An error means that there is no such child any more, which is an end too.
            let _ = process::wait_unreaped(pid);
            ended();
        })
        .map(drop)
}

/// The group is our own unreaped child's: the signal arrives or nothing is left to receive it.
fn signal(group: u32, number: i32) {
    let _ = process::signal_group(group, number);
}

fn wall() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
