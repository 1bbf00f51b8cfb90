//! All measured processes at one moment.

use super::process::Reading;
use std::collections::BTreeMap;

/// What is measured, in the order in which it is shown.
pub const PARTS: [&str; 4] = ["server", "gateway", "relay", "agents"];

/// Where a relay and its agents share a process, so that their memory is one.
pub const RELAYS_WITH_AGENTS: &str = "relays_with_agents";

/// One moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Each part's process, or the sum over its processes.
    pub processes: BTreeMap<&'static str, Reading>,
    /// Seconds of CPU of each part before it was asked for anything below, which costs it some; absent: as in `processes`.
    pub cpu_s_unasked: BTreeMap<&'static str, f64>,
    /// How often each part synced its disk so far; a gateway has none to sync.
    pub fsyncs: BTreeMap<&'static str, u64>,
    /// Bytes so far: `relay_up` and `relay_down` on the relay's link to its parent, `gateway_up` and `gateway_down`
    /// through the gateway.
    pub wire: BTreeMap<&'static str, u64>,
    /// Links so far that server, gateway and relays turned away or broke off in their handshake.
    pub refused: u64,
}

impl Snapshot {
    /// Seconds of CPU a part used since `earlier`, without what it cost to make the two snapshots.
    pub fn cpu_s(&self, earlier: &Snapshot, part: &str) -> f64 {
        let asked = |s: &Snapshot| s.processes.get(part).map_or(0.0, |p| p.cpu_s);
        self.cpu_s_unasked.get(part).copied().unwrap_or_else(|| asked(self)) - asked(earlier)
    }

    /// What each count grew by since `earlier`; one that began anew counts from 0.
    pub fn grown(
        now: &BTreeMap<&'static str, u64>,
        earlier: &BTreeMap<&'static str, u64>,
    ) -> BTreeMap<&'static str, u64> {
        now.iter().map(|(k, n)| (*k, n.saturating_sub(earlier.get(k).copied().unwrap_or(0)))).collect()
    }
}

/// A counter in the text that Prometheus scrapes, summed over all lines that bear the label; 0 if there is none yet.
pub fn counter(text: &str, name: &str, label: Option<(&str, &str)>) -> u64 {
    let label = label.map(|(key, value)| format!("{key}=\"{value}\""));
    let value = |line: &str| {
        let rest = line.strip_prefix(name).filter(|r| r.starts_with(['{', ' ']))?;
        if !label.as_ref().is_none_or(|l| rest.contains(l.as_str())) {
            return None;
        }
        rest.rsplit(' ').next()?.parse::<f64>().ok()
    };
    text.lines().filter_map(value).sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name_and_label() {
        let text = "# TYPE a counter\na{dir=\"up\",kind=\"link\"} 5\na{dir=\"down\",kind=\"link\"} 7\nab 9\nc 3\n";
        let of = |name, label| counter(text, name, label);
        assert_eq!((of("a", Some(("dir", "up"))), of("a", None), of("c", None), of("d", None)), (5, 12, 3, 0));
    }

    #[test]
    fn asking_is_not_counted_to_what_is_measured() {
        let at = |unasked, asked| Snapshot {
            processes: BTreeMap::from([("relay", Reading { cpu_s: asked, rss: 0, pss: 0 })]),
            cpu_s_unasked: BTreeMap::from([("relay", unasked)]),
            ..Snapshot::default()
        };
        assert_eq!(at(5.0, 9.0).cpu_s(&at(1.0, 2.0), "relay"), 3.0);
        assert_eq!(at(5.0, 9.0).cpu_s(&at(1.0, 2.0), "server"), 0.0);
    }

    #[test]
    fn growth_never_underflows() {
        let (now, then) = (BTreeMap::from([("a", 5), ("b", 1)]), BTreeMap::from([("a", 2), ("b", 3)]));
        assert_eq!(Snapshot::grown(&now, &then), BTreeMap::from([("a", 3), ("b", 0)]));
    }
}
