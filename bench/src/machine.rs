//! What the kernel says: of processes, of the whole machine, and whether it is quiet.

use std::{
    fs,
    time::{Duration, Instant},
};

/// Time and memory of some processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Seconds of CPU, user and system, all threads.
    pub cpu_s: f64,
    /// Resident KiB.
    pub rss_kib: f64,
    /// Resident KiB, with pages that several processes share counted by parts.
    pub pss_kib: f64,
}

impl Reading {
    /// KiB by which memory grew since, shared among so many: RSS and PSS.
    pub fn grown_kib(&self, since: &Reading, among: usize) -> (f64, f64) {
        let each = |now: f64, then: f64| (now - then) / among as f64;
        (each(self.rss_kib, since.rss_kib), each(self.pss_kib, since.pss_kib))
    }
}

/// Reads processes that this program started; one that has ended counts nothing.
pub fn read(pids: &[u32]) -> Reading {
    let mut sum = Reading::default();
    for pid in pids {
        sum.cpu_s += fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|text| cpu(&text)).unwrap_or(0.0);
        let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        sum.rss_kib += kib(&memory, "Rss:");
        sum.pss_kib += kib(&memory, "Pss:");
    }
    sum
}

/// The program's name may hold spaces and brackets; user and system time are the 12th and 13th field behind it.
fn cpu(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / ticks_per_second())
}

fn ticks_per_second() -> f64 {
    // SAFETY: reads a constant of the system.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

fn kib(text: &str, key: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

/// A process's children, as nginx has workers.
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Seconds in which any core did something, and seconds in which one was idle.
fn busy_and_idle() -> (f64, f64) {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let fields: Vec<f64> = first.split_ascii_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let at = |n: usize| fields.get(n).copied().unwrap_or(0.0);
    let (idle, ticks) = (at(3) + at(4), ticks_per_second());
    ((fields.iter().take(8).sum::<f64>() - idle) / ticks, idle / ticks)
}

/// Waits until the machine was at least 85 % idle for a second, at most so long; whether it was.
pub async fn quiet(at_most: Duration) -> bool {
    let end = Instant::now() + at_most;
    while Instant::now() < end {
        let (busy, idle) = busy_and_idle();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (busy, idle) = (busy_and_idle().0 - busy, busy_and_idle().1 - idle);
        if busy < 0.15 * (busy + idle) {
            return true;
        }
    }
    false
}

/// Cores.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The processor's name.
pub fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown".into(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_found_behind_any_name_and_memory_by_its_key() {
        let ticks = ticks_per_second();
        assert_eq!(cpu("42 (a) b) S 1 2 3 0 -1 4194560 100 0 0 0 250 50 7 9"), Some(300.0 / ticks));
        assert_eq!(kib("Rss:     1024 kB\nPss:      512 kB\nPss_Anon: 1 kB\n", "Pss:"), 512.0);
        let own = read(&[std::process::id()]);
        assert!(own.rss_kib > 0.0 && own.pss_kib > 0.0 && own.pss_kib <= own.rss_kib);
        assert_eq!(read(&[0]), Reading::default());
    }
}
