//! Processes by number and start time, and the few system calls on them.

use serde::{Deserialize, Serialize};
use std::{fs, io, os::unix::process::CommandExt, process::Command};

/// A process, named beyond the reuse of its number within one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its number.
    pub pid: u32,
    /// Clock ticks from boot to its start: field 22 of `/proc/PID/stat`.
    pub start: u64,
}

/// State letter and start time from `/proc/PID/stat`. The name in parentheses may hold anything, so the fields count
/// from the last closing one.
fn parse_stat(text: &str) -> Option<(char, u64)> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

fn stat(pid: u32) -> Option<(char, u64)> {
    // The name is not necessarily UTF-8.
    let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&bytes))
}

/// The boot's random id; start times mean nothing in another one.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Process {
    /// The process with this number now, ended but not reaped ones included.
    pub fn find(pid: u32) -> Option<Process> {
        stat(pid).map(|(_, start)| Process { pid, start })
    }

    /// Whether it runs: not when it only waits to be reaped.
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|(state, start)| start == self.start && !matches!(state, 'Z' | 'X'))
    }

    /// Whether its number still stands for it, so that its group may be signalled.
    pub fn is_there(&self) -> bool {
        stat(self.pid).is_some_and(|(_, start)| start == self.start)
    }
}

/// Signals a whole process group. No such group is fine: nothing is left to signal.
#[allow(unsafe_code)]
pub(crate) fn signal_group(leader: u32, signal: i32) -> io::Result<()> {
    // 0 and 1 would be our own group and, negated, every process of the machine.
    let group = i32::try_from(leader).ok().filter(|g| *g > 1).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: kill takes two integers and touches no memory of ours.
    if unsafe { libc::kill(-group, signal) } == 0 {
        return Ok(());
    }
    let fault = io::Error::last_os_error();
    if fault.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(fault) }
}

/// Makes this process leader of a session of its own, away from the agent's terminal and group, and able to learn its
/// children's ends even where whoever started the agent ignored them.
#[allow(unsafe_code)]
pub(crate) fn lead_session() {
    // SAFETY: setsid has no arguments, signal takes integers; neither touches memory of ours. setsid fails only where
    // this process leads a group already, started by hand; then it has one of its own as it should.
    unsafe {
        libc::setsid();
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// Lets the kernel kill the program when the thread that starts it dies: without its shim nobody would keep the job's
/// time or learn its end.
#[allow(unsafe_code)]
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let before_exec = move || {
        // SAFETY: prctl with integers and getppid are async-signal-safe and touch no memory of ours.
        let orphaned = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 && u32::try_from(libc::getppid()) != Ok(parent)
        };
        if orphaned { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
    };
    // SAFETY: the closure runs between fork and exec; it allocates nothing, takes no lock and only makes system calls.
    unsafe { command.pre_exec(before_exec) };
}

/// Waits until a child has ended and leaves it unreaped, so that its number, and its group's, are not given away yet.
#[allow(unsafe_code)]
pub(crate) fn wait_unreaped(pid: u32) -> io::Result<()> {
    loop {
        // SAFETY: siginfo_t is plain data for which all zeros is valid, and waitid writes at most one.
        let answer = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid, &mut info, libc::WEXITED | libc::WNOWAIT)
        };
        if answer == 0 {
            return Ok(());
        }
        let fault = io::Error::last_os_error();
        if fault.kind() != io::ErrorKind::Interrupted {
            return Err(fault);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_whatever_the_name() {
        let rest = "S 1 2 3 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 98765 1 2";
        assert_eq!(parse_stat(&format!("12 (sh) {rest}")), Some(('S', 98765)));
        assert_eq!(parse_stat(&format!("12 (a) Z 1 (b) {rest}")), Some(('S', 98765)));
    }

    #[test]
    fn malformed_lines_are_nobody() {
        for text in
            ["", "12", "12 (sh", "12 (sh)", "12 (sh) S 1 2", "12 (sh) S 1 2 3 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 x"]
        {
            assert_eq!(parse_stat(text), None, "{text}");
        }
    }

    #[test]
    fn another_start_time_is_another_process() {
        let me = Process::find(std::process::id()).unwrap();
        assert!(me.is_alive() && me.is_there());
        let earlier = Process { start: me.start - 1, ..me };
        assert!(!earlier.is_alive() && !earlier.is_there());
    }

    #[test]
    fn the_whole_machine_is_no_group() {
        for leader in [0, 1, u32::MAX] {
            assert_eq!(signal_group(leader, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
