//! What the kernel says of a process.

use crate::failure::Failure;
use branchline_protocol::id::NodeId;
use std::path::PathBuf;

/// The name of the threads on which agents run, their commits excepted.
pub const AGENTS_THREAD: &str = "agents";
/// How the names of threads begin on which nodes commit.
const STORE_THREADS: &str = "store-";

/// What a branch of many runs at, as `nice` says it.
const BRANCH_NICE: libc::c_int = 19;

/// This thread, and those that it starts, leave the processor to server and gateway when these want it. Where those stand
/// alone they need not wait for hundreds of branches to have had their turns.
#[allow(unsafe_code)]
pub fn leave_the_processor() {
    // SAFETY: setpriority changes how the calling thread is scheduled and touches no memory of ours.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, BRANCH_NICE) } == 0;
    if !done {
        tracing::warn!(error = %std::io::Error::last_os_error(), "this branch keeps its priority");
    }
}

/// One reading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Seconds of CPU since its start, user and system, all threads.
    pub cpu_s: f64,
    /// Resident memory.
    pub rss: u64,
    /// Resident memory, with pages that several processes share counted by parts.
    pub pss: u64,
}

/// Reads a process of this machine.
pub fn read(pid: u32) -> Result<Reading, Failure> {
    let stat = file(pid, "stat")?;
    let memory = file(pid, "smaps_rollup")?;
    let (cpu, rss, pss) = (ticks(&stat), kilobytes(&memory, "Rss"), kilobytes(&memory, "Pss"));
    match (cpu, rss, pss) {
        (Some(ticks), Some(rss), Some(pss)) => Ok(Reading { cpu_s: ticks as f64 / ticks_per_second(), rss, pss }),
        _ => Err(Failure::ended("unreadable", format!("what /proc/{pid} says is not understood"))),
    }
}

/// Seconds of CPU of a process since its start.
pub fn cpu_s(pid: u32) -> Result<f64, Failure> {
    let ticks = ticks(&file(pid, "stat")?);
    let ticks =
        ticks.ok_or_else(|| Failure::ended("unreadable", format!("what /proc/{pid} says is not understood")))?;
    Ok(ticks as f64 / ticks_per_second())
}

/// Seconds of CPU of the threads in a process on which its agents run; `own_store` is the one thread that commits for another.
pub fn agents_cpu_s(pid: u32, own_store: &str) -> Result<f64, Failure> {
    let folder = format!("/proc/{pid}/task");
    let unreadable = |e: std::io::Error| Failure::ended("unreadable", format!("cannot read {folder}: {e}"));
    let mut sum = 0;
    for thread in std::fs::read_dir(&folder).map_err(unreadable)? {
        // A thread may end between two looks.
        let Ok(stat) = std::fs::read_to_string(thread.map_err(unreadable)?.path().join("stat")) else { continue };
        if of_agents(&stat, own_store) {
            sum += ticks(&stat).unwrap_or(0);
        }
    }
    Ok(sum as f64 / ticks_per_second())
}

fn of_agents(stat: &str, own_store: &str) -> bool {
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).map_or("", |(name, _)| name);
    name == AGENTS_THREAD || (name.starts_with(STORE_THREADS) && name != own_store)
}

/// The name of the thread that commits for a node.
pub fn store_thread(node: NodeId) -> String {
    let [.., a, b, c, d] = *node.bytes();
    format!("{STORE_THREADS}{a:02x}{b:02x}{c:02x}{d:02x}")
}

fn file(pid: u32, name: &str) -> Result<String, Failure> {
    let path = PathBuf::from(format!("/proc/{pid}/{name}"));
    std::fs::read_to_string(&path)
        .map_err(|e| Failure::ended("unreadable", format!("cannot read {}: {e}", path.display())))
}

/// utime and stime of `stat`. The program's name before them may hold spaces and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// A line of `smaps_rollup`, in bytes.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1_024)
}

#[allow(unsafe_code)]
fn ticks_per_second() -> f64 {
    // SAFETY: sysconf reads a constant of the system and touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_program_name() {
        let rest = "S 1 2 3 0 -1 4194560 100 0 0 0 250 50 7 9 20 0 4 0 12345 0 0";
        for name in ["(branchline)", "(a b)", "(x) y)"] {
            assert_eq!(ticks(&format!("42 {name} {rest}")), Some(300), "{name}");
        }
        assert_eq!(ticks("42 (x) S 1 2"), None);
    }

    #[test]
    fn a_thread_that_leaves_the_processor_starts_others_that_do() {
        let nice = |()| {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let mut fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace();
            fields.nth(16).unwrap().parse::<libc::c_int>().unwrap()
        };
        let before = nice(());
        let branch = std::thread::spawn(move || {
            leave_the_processor();
            (nice(()), std::thread::spawn(move || nice(())).join().unwrap())
        });
        assert_eq!(branch.join().unwrap(), (BRANCH_NICE.max(before), BRANCH_NICE.max(before)));
        assert_eq!(nice(()), before, "others keep theirs");
    }

    #[test]
    fn threads_of_agents_are_known_by_name() {
        let relay = NodeId("abababab-abab-abab-abab-abababababab".parse().unwrap());
        let own = store_thread(relay);
        assert_eq!(own, "store-abababab");
        for (name, theirs) in [
            ("agents", true),
            ("store-01020304", true),
            (own.as_str(), false),
            ("branchline", false),
            ("a) (gents", false),
        ] {
            assert_eq!(of_agents(&format!("7 ({name}) S 1"), &own), theirs, "{name}");
        }
    }

    #[test]
    fn only_the_named_threads_of_a_process_are_counted() {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (said, burnt) = std::sync::mpsc::channel();
        let burn = move || {
            let mut sum = 0u64;
            while agents_cpu_s(std::process::id(), "").unwrap() == 0.0 {
                sum = (0..100_000).fold(sum, u64::wrapping_add);
            }
            said.send(sum).unwrap();
            wait.recv().unwrap_err();
        };
        let thread = std::thread::Builder::new().name(AGENTS_THREAD.into()).spawn(burn).unwrap();
        burnt.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        let (agents, all) = (agents_cpu_s(std::process::id(), "").unwrap(), cpu_s(std::process::id()).unwrap());
        assert!(agents > 0.0 && agents <= all, "{agents} of {all}");
        drop(done);
        thread.join().unwrap();
    }

    #[test]
    fn memory_is_told_in_kilobytes() {
        let text = "00-ff ---p 0 00:00 0 [rollup]\nRss:     1024 kB\nPss:      512 kB\nPss_Anon:  1 kB\n";
        assert_eq!((kilobytes(text, "Rss"), kilobytes(text, "Pss")), (Some(1_048_576), Some(524_288)));
        assert_eq!(kilobytes(text, "Swap"), None);
    }

    #[test]
    fn this_process_uses_memory_and_time_that_only_grows() {
        let first = read(std::process::id()).unwrap();
        assert!(first.rss > 0 && first.pss > 0 && first.pss <= first.rss, "{first:?}");
        let mut sum = 0u64;
        while read(std::process::id()).unwrap().cpu_s <= first.cpu_s {
            sum = sum.wrapping_add(1);
        }
        assert!(read(0).is_err());
    }
}
