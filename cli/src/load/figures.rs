//! What was measured, as a table and as JSON.

use super::{
    inventory::Inventory,
    snapshot::{PARTS, RELAYS_WITH_AGENTS, Snapshot},
    storm::Storm,
};
use crate::table::table;
use branchline_agent::Spared;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Memory of a process, or a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// Resident bytes.
    pub rss: i64,
    /// The same with shared pages counted by parts.
    pub pss: i64,
}

impl Memory {
    /// A part's memory at a moment; zero if it was not there.
    pub fn of(at: &Snapshot, part: &str) -> Memory {
        let process = at.processes.get(part).copied().unwrap_or_default();
        Memory { rss: process.rss as i64, pss: process.pss as i64 }
    }

    /// What it grew by, shared among `links`. Negative if it shrank.
    pub fn grown(now: &Snapshot, then: &Snapshot, part: &str, links: u32) -> Memory {
        let (now, then, links) = (Memory::of(now, part), Memory::of(then, part), i64::from(links.max(1)));
        Memory { rss: (now.rss - then.rss) / links, pss: (now.pss - then.pss) / links }
    }
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Relays below the gateway.
    pub relays: u32,
    /// Agents below each.
    pub agents: u32,
    /// What the agents were spared.
    pub spared: Spared,
    /// Results that never came.
    pub missing: u64,
    /// Seconds from nothing to the state that was measured.
    pub set_up_s: f64,
    /// Each part's memory at the end.
    pub memory: BTreeMap<&'static str, Memory>,
    /// What the mode measured.
    pub outcome: Outcome,
}

/// By mode.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Jobs to all.
    Fanout(Fanout),
    /// Idle links.
    Links(Links),
    /// Links lost and back.
    Storm(Storm),
    /// Inventories.
    Inventory(Inventory),
}

/// Jobs to all, again and again.
#[derive(Clone, Debug, Default)]
pub struct Fanout {
    /// Each round's time in ms.
    pub rounds_ms: Vec<f64>,
    /// The same until the client had a row for each device.
    pub read_ms: Vec<f64>,
    /// Results of all rounds.
    pub results: u64,
    /// Seconds of CPU per part.
    pub cpu_s: BTreeMap<&'static str, f64>,
    /// Bytes per line.
    pub wire: BTreeMap<&'static str, u64>,
    /// Syncs per part.
    pub fsyncs: BTreeMap<&'static str, u64>,
}

/// Idle links.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// What one link costs.
    pub per_link: BTreeMap<&'static str, Memory>,
    /// Each part before any agent was there.
    pub empty: BTreeMap<&'static str, Memory>,
}

impl Fanout {
    /// The time that this part of all rounds did not exceed: the nearest rank, so always one that was measured.
    fn percentile(&self, part: f64) -> f64 {
        percentile(&self.rounds_ms, part)
    }

    fn results_per_s(&self) -> f64 {
        let seconds = self.rounds_ms.iter().sum::<f64>() / 1_000.0;
        if seconds > 0.0 { self.results as f64 / seconds } else { 0.0 }
    }

    fn cpu_s_per_1000(&self, part: &str) -> f64 {
        let seconds = self.cpu_s.get(part).copied().unwrap_or(0.0);
        if self.results > 0 { seconds * 1_000.0 / self.results as f64 } else { 0.0 }
    }
}

/// The time that this part of all did not exceed: the nearest rank, so always one that was measured.
pub fn percentile(times: &[f64], part: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

/// The usual keys of times.
pub fn put_times(json: &mut Value, times: &[f64]) {
    for (key, part) in [("p50_ms", 0.5), ("p99_ms", 0.99), ("min_ms", 0.0), ("max_ms", 1.0)] {
        json[key] = json!(rounded(percentile(times, part)));
    }
}

impl Figures {
    /// Whether nothing is missing, and nobody was refused who should not have been.
    pub fn is_whole(&self) -> bool {
        let refused = if let Outcome::Storm(storm) = &self.outcome { storm.refusals() } else { 0 };
        self.missing == 0 && refused == 0
    }

    /// For programs. A key that the mode does not measure is not there.
    pub fn json(&self) -> Value {
        let rss = |m: &Memory| json!(m.rss);
        let pss = |m: &Memory| json!(m.pss);
        let mut json = json!({
            "mode": match self.outcome {
                Outcome::Fanout(_) => "fanout",
                Outcome::Links(_) => "links",
                Outcome::Storm(_) => "storm",
                Outcome::Inventory(_) => "inventory",
            },
            "relays": self.relays,
            "agents": self.agents,
            "unverified_agents": self.spared.verification,
            "volatile_agents": self.spared.journal,
            "missing": self.missing,
            "set_up_s": rounded(self.set_up_s),
            "rss_bytes": object(&self.memory, rss),
            "pss_bytes": object(&self.memory, pss),
        });
        match &self.outcome {
            Outcome::Fanout(fanout) => {
                json["rounds"] = json!(fanout.rounds_ms.len());
                put_times(&mut json, &fanout.rounds_ms);
                json["read_p50_ms"] = json!(rounded(percentile(&fanout.read_ms, 0.5)));
                json["results"] = json!(fanout.results);
                json["results_per_s"] = json!(rounded(fanout.results_per_s()));
                let cpu: BTreeMap<_, _> = PARTS.into_iter().map(|p| (p, fanout.cpu_s_per_1000(p))).collect();
                json["cpu_s_per_1000"] = object(&cpu, |s| json!(rounded(*s)));
                json["wire_bytes"] = object(&fanout.wire, |n| json!(n));
                json["fsyncs"] = json!(fanout.fsyncs.values().sum::<u64>());
                json["fsyncs_by"] = object(&fanout.fsyncs, |n| json!(n));
            }
            Outcome::Links(links) => {
                json["rss_per_link_bytes"] = object(&links.per_link, rss);
                json["pss_per_link_bytes"] = object(&links.per_link, pss);
                json["rss_empty_bytes"] = object(&links.empty, rss);
                json["pss_empty_bytes"] = object(&links.empty, pss);
            }
            Outcome::Storm(storm) => storm.put(&mut json),
            Outcome::Inventory(inventory) => inventory.put(&mut json),
        }
        json
    }

    /// For people.
    pub fn text(&self) -> String {
        let spared = match (self.spared.verification, self.spared.journal) {
            (false, false) => "",
            (true, false) => " that check no order",
            (false, true) => " whose journals are in memory",
            (true, true) => " that check no order and whose journals are in memory",
        };
        let head = format!(
            "{} with {} agents{spared}; set up in {:.1} s; {} results missing\n\n",
            if self.relays == 1 { "1 relay".to_string() } else { format!("{} relays, each", self.relays) },
            self.agents,
            self.set_up_s,
            self.missing
        );
        match &self.outcome {
            Outcome::Fanout(fanout) => head + &self.fanout_text(fanout),
            Outcome::Links(links) => head + &links_text(links),
            Outcome::Storm(storm) => head + &storm.text(&self.memory),
            Outcome::Inventory(inventory) => head + &inventory.text(self.agents, &self.memory),
        }
    }

    fn fanout_text(&self, fanout: &Fanout) -> String {
        let ms = |part| format!("{:.1}", fanout.percentile(part));
        let times = table(
            ["ROUNDS", "P50 MS", "P99 MS", "MIN MS", "MAX MS", "READ MS", "RESULTS", "RESULTS/S"],
            [[
                fanout.rounds_ms.len().to_string(),
                ms(0.5),
                ms(0.99),
                ms(0.0),
                ms(1.0),
                format!("{:.1}", percentile(&fanout.read_ms, 0.5)),
                fanout.results.to_string(),
                format!("{:.0}", fanout.results_per_s()),
            ]],
        );
        let shared = self.memory.keys().filter(|part| **part == RELAYS_WITH_AGENTS);
        let parts = PARTS.iter().chain(shared).map(|part| {
            let memory = self.memory.get(part);
            let memory = |of: fn(&Memory) -> i64| memory.map_or("-".into(), |m| mib(of(m)));
            let fsyncs = fanout.fsyncs.get(part).map_or("-".into(), u64::to_string);
            let cpu = fanout.cpu_s.get(part).map_or("-".into(), |_| format!("{:.3}", fanout.cpu_s_per_1000(part)));
            [part.replace('_', " "), cpu, memory(|m| m.rss), memory(|m| m.pss), fsyncs]
        });
        let parts = table(["PROCESS", "CPU S/1000", "RSS MIB", "PSS MIB", "FSYNCS"], parts);
        let wire = fanout.wire.iter().map(|(line, bytes)| [line.replace('_', " "), bytes.to_string()]);
        format!("{times}\n{parts}\n{}", table(["LINE", "BYTES"], wire))
    }
}

fn links_text(links: &Links) -> String {
    let rows = links.per_link.iter().map(|(part, memory)| {
        let empty = links.empty.get(part).filter(|m| m.rss > 0).map_or("-".into(), |m| mib(m.rss));
        [part.replace('_', " "), kib(memory.rss), kib(memory.pss), empty]
    });
    table(["PROCESS", "RSS KIB/LINK", "PSS KIB/LINK", "RSS MIB EMPTY"], rows)
}

/// Megabytes of two to the twentieth, for people.
pub fn mib(bytes: i64) -> String {
    format!("{:.1}", bytes as f64 / 1_048_576.0)
}

fn kib(bytes: i64) -> String {
    format!("{:.1}", bytes as f64 / 1_024.0)
}

/// Three digits behind the point: more are noise.
pub fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}

/// An object with a value of each.
pub fn object<T>(of: &BTreeMap<&'static str, T>, value: impl Fn(&T) -> Value) -> Value {
    Value::Object(of.iter().map(|(key, v)| ((*key).to_string(), value(v))).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::process::Reading;

    fn at(rss: u64) -> Snapshot {
        Snapshot {
            processes: BTreeMap::from([("relay", Reading { cpu_s: 0.0, rss, pss: rss / 2 })]),
            ..Snapshot::default()
        }
    }

    #[test]
    fn percentiles_are_measured_times() {
        let times = |n: u32| Fanout { rounds_ms: (1..=n).rev().map(f64::from).collect(), ..Fanout::default() };
        let of = |n, part| times(n).percentile(part);
        assert_eq!((of(100, 0.5), of(100, 0.99), of(100, 0.0), of(100, 1.0)), (50.0, 99.0, 1.0, 100.0));
        assert_eq!((of(20, 0.99), of(1, 0.5), of(0, 0.5)), (20.0, 1.0, 0.0));
    }

    #[test]
    fn cost_is_per_thousand_results_and_rate_over_the_rounds_alone() {
        let cpu_s = BTreeMap::from([("relay", 0.5)]);
        let fanout = Fanout { rounds_ms: vec![250.0; 4], results: 2_000, cpu_s, ..Fanout::default() };
        assert_eq!((fanout.cpu_s_per_1000("relay"), fanout.results_per_s()), (0.25, 2_000.0));
        assert_eq!(Fanout::default().cpu_s_per_1000("relay"), 0.0);
    }

    #[test]
    fn a_link_costs_what_the_process_grew_by() {
        assert_eq!(Memory::grown(&at(4_000), &at(1_000), "relay", 3), Memory { rss: 1_000, pss: 500 });
        assert_eq!(Memory::grown(&at(1_000), &at(4_000), "relay", 3).rss, -1_000);
        assert_eq!(Memory::grown(&at(1_000), &at(4_000), "server", 3), Memory::default());
    }

    #[test]
    fn where_relay_and_agents_share_processes_only_their_memory_is_one() {
        let memory = ["server", "gateway", RELAYS_WITH_AGENTS].map(|p| (p, Memory { rss: 5_242_880, pss: 1_048_576 }));
        let fanout = Fanout {
            rounds_ms: vec![1.0],
            results: 6,
            cpu_s: PARTS.into_iter().map(|p| (p, 0.006)).collect(),
            ..Fanout::default()
        };
        let figures = Figures {
            relays: 2,
            agents: 3,
            spared: Spared::default(),
            missing: 0,
            set_up_s: 1.0,
            memory: BTreeMap::from(memory),
            outcome: Outcome::Fanout(fanout),
        };
        let json = figures.json();
        assert_eq!(
            json["rss_bytes"],
            json!({ "server": 5_242_880, "gateway": 5_242_880, RELAYS_WITH_AGENTS: 5_242_880 })
        );
        assert_eq!(json["cpu_s_per_1000"]["relay"], json!(1.0));
        let text = figures.text();
        let row =
            |part: &str| text.lines().find(|l| l.starts_with(part)).unwrap().split_whitespace().collect::<Vec<_>>();
        assert!(text.starts_with("2 relays, each with 3 agents; "), "{text}");
        assert_eq!(row("relay "), ["relay", "1.000", "-", "-", "-"]);
        assert_eq!(row("relays with"), ["relays", "with", "agents", "-", "5.0", "1.0", "-"]);
    }

    #[test]
    fn both_modes_bear_the_keys_that_scripts_read() {
        let figures = |outcome| Figures {
            relays: 1,
            agents: 3,
            spared: Spared { verification: true, journal: false },
            missing: 0,
            set_up_s: 1.0,
            memory: PARTS.into_iter().map(|p| (p, Memory::default())).collect(),
            outcome,
        };
        let fanout = figures(Outcome::Fanout(Fanout { rounds_ms: vec![1.0], ..Fanout::default() })).json();
        let keys = ["mode", "relays", "agents", "rounds", "p50_ms", "p99_ms", "min_ms", "max_ms", "missing", "results"];
        let more = ["read_p50_ms", "results_per_s", "rss_bytes", "wire_bytes", "fsyncs"];
        assert_eq!((&fanout["unverified_agents"], &fanout["volatile_agents"]), (&json!(true), &json!(false)));
        for key in keys.iter().chain(&more) {
            assert!(fanout.get(key).is_some(), "{key} in {fanout}");
        }
        for part in PARTS {
            assert!(fanout["cpu_s_per_1000"][part].is_number(), "{part}");
        }
        let per_link = BTreeMap::from([("gateway", Memory { rss: 7, pss: 3 }), ("relay", Memory::default())]);
        let links = figures(Outcome::Links(Links { per_link, ..Links::default() })).json();
        assert_eq!((&links["mode"], &links["rss_per_link_bytes"]["gateway"]), (&json!("links"), &json!(7)));
    }
}
