//! What the kernel says of a process.

use crate::failure::Failure;
use std::path::PathBuf;

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
