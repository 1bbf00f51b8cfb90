//! Inventories of devices behind one relay: the first full ones, then one changed package each, then a collection that
//! finds no difference, then links that are lost and come back with nothing to tell.
//!
//! What the branch line carries is what the relay's own link up carries, both ways, until the tree is quiet again.

use super::{
    bench::{AGENTS, Bench, Manner, of_parts},
    drill::Report,
    figures::{Figures, Memory, Outcome, mib, object, percentile, put_times, rounded},
    leader::Leader,
    snapshot::{PARTS, Snapshot},
};
use crate::{failure::Failure, table::table, up::say, verbs::load::Args};
use branchline_protocol::id::Role;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Agents below one relay.
pub const AGENTS_MAX: u32 = 1_000;
/// Packages of each.
const PACKAGES: usize = 200;

/// One thing that all devices did.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// `first_full`, `one_changed`, `unchanged` or `reconnect`.
    pub name: &'static str,
    /// What the agents saw.
    pub report: Report,
    /// Devices whose inventory at the server is not what it must be after it.
    pub wrong: u64,
    /// Seconds of CPU per part.
    pub cpu_s: BTreeMap<&'static str, f64>,
    /// Bytes per line.
    pub wire: BTreeMap<&'static str, u64>,
    /// Syncs per part.
    pub fsyncs: BTreeMap<&'static str, u64>,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// In their order.
    pub steps: Vec<Step>,
}

/// Measures the steps.
pub async fn measure(bench: &mut Bench, args: &Args) -> Result<Figures, Failure> {
    let mut leader = Leader::listen().await?;
    let mut manner = Manner { leader: Some(&mut leader), packages: PACKAGES, held: true };
    bench.add(AGENTS, Role::Relay, &mut manner).await?;
    let set_up_s = bench.elapsed_s();
    say::line(&format!("all agents are online after {set_up_s:.1} s; their inventories are measured"));
    let mut at = bench.snapshot().await?;
    let mut known = collected(bench).await?;
    if !known.is_empty() {
        let message = "the devices of this state folder told their first inventories already; use another --state";
        return Err(Failure::wrong("other_state", message).field("state"));
    }
    let mut steps = Vec::new();
    let work =
        [("first_full", "first"), ("one_changed", "collect changed"), ("unchanged", "collect"), ("reconnect", "storm")];
    for (name, words) in work {
        let report = leader.drill(words).await?;
        bench.quiet().await?;
        let after = bench.snapshot().await?;
        let now = collected(bench).await?;
        // A time of collection that nothing bears is new; where nothing changed it has to be the old one (INV-4).
        let right = match name {
            "first_full" | "one_changed" => now.difference(&known).count(),
            _ => now.intersection(&known).count(),
        };
        let step = Step {
            name,
            wrong: u64::from(args.agents).saturating_sub(right as u64),
            report,
            cpu_s: of_parts(|part| after.cpu_s(&at, part)),
            wire: Snapshot::grown(&after.wire, &at.wire),
            fsyncs: Snapshot::grown(&after.fsyncs, &at.fsyncs),
        };
        say::line(&format!("{name}: {:.0} ms", step.report.last_ms()));
        steps.push(step);
        // What it costs to ask for all devices is nobody's.
        (at, known) = (bench.snapshot().await?, now);
    }
    let inventory = Inventory { steps };
    Ok(Figures {
        relays: args.relays,
        agents: args.agents,
        spared: args.spared(),
        missing: inventory.missing(),
        set_up_s,
        memory: bench.memory(&at),
        outcome: Outcome::Inventory(inventory),
    })
}

/// Each device with the time of the inventory that the server shows.
async fn collected(bench: &Bench) -> Result<BTreeSet<(String, String)>, Failure> {
    let client = bench.client.clone();
    let answer = bench.call(move || client.get("/devices", &[("on", "all")])).await?;
    Ok(times_in(&answer))
}

fn times_in(answer: &Value) -> BTreeSet<(String, String)> {
    let devices = answer["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
    let time = |d: &Value| Some((d["name"].as_str()?.to_owned(), d["inventory"]["collected_at"].as_str()?.to_owned()));
    devices.iter().filter_map(time).collect()
}

impl Inventory {
    /// What did not come: as the agents saw it, or as the server shows it.
    fn missing(&self) -> u64 {
        self.steps.iter().map(|step| step.report.missing.max(step.wrong)).sum()
    }

    /// The mode's keys.
    pub fn put(&self, json: &mut Value) {
        let agents = json["agents"].as_u64().unwrap_or(0);
        json["packages"] = json!(PACKAGES);
        json["results"] = json!(self.steps.iter().map(|step| step.report.done_ms.len()).sum::<usize>());
        for step in &self.steps {
            let mut of = json!({
                "total_ms": rounded(step.report.last_ms()),
                "results": step.report.done_ms.len(),
                "missing": step.report.missing.max(step.wrong),
                "branch_line_bytes_per_device": rounded(step.per_device(agents, step.branch_line())),
                "cpu_s": object(&step.cpu_s, |s| json!(rounded(*s))),
                "wire_bytes": object(&step.wire, |n| json!(n)),
                "fsyncs": step.fsyncs.values().sum::<u64>(),
                "fsyncs_by": object(&step.fsyncs, |n| json!(n)),
            });
            put_times(&mut of, &step.report.done_ms);
            json[step.name] = of;
        }
    }

    /// The mode's tables.
    pub fn text(&self, agents: u32, memory: &BTreeMap<&'static str, Memory>) -> String {
        let agents = u64::from(agents);
        let rows = self.steps.iter().map(|step| {
            let wire = |line| format!("{:.0}", step.per_device(agents, step.line(line)));
            [
                step.name.replace('_', " "),
                step.report.done_ms.len().to_string(),
                format!("{:.1}", step.report.last_ms()),
                format!("{:.1}", percentile(&step.report.done_ms, 0.5)),
                wire("relay_up"),
                wire("relay_down"),
                format!("{:.0}", step.per_device(agents, step.branch_line())),
            ]
        });
        let times =
            table(["STEP", "DEVICES", "ALL MS", "P50 MS", "UP B/DEVICE", "DOWN B/DEVICE", "BOTH B/DEVICE"], rows);
        let rows = self.steps.iter().map(|step| {
            let cpu = |part: &str| format!("{:.2}", step.cpu_s.get(part).copied().unwrap_or(0.0));
            let [server, gateway, relay, agents] = PARTS.map(cpu);
            [step.name.replace('_', " "), server, gateway, relay, agents, step.fsyncs.values().sum::<u64>().to_string()]
        });
        let cpu = table(["CPU S", "SERVER", "GATEWAY", "RELAY", "AGENTS", "FSYNCS"], rows);
        let rss = PARTS.map(|part| [part.to_string(), memory.get(part).map_or("-".into(), |m| mib(m.rss))]);
        format!("{times}\n{cpu}\n{}", table(["PROCESS", "RSS MIB"], rss))
    }
}

impl Step {
    fn line(&self, line: &str) -> u64 {
        self.wire.get(line).copied().unwrap_or(0)
    }

    /// Both ways.
    fn branch_line(&self) -> u64 {
        self.line("relay_up") + self.line("relay_down")
    }

    fn per_device(&self, agents: u64, bytes: u64) -> f64 {
        bytes as f64 / agents.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_agent::Spared;

    #[test]
    fn bytes_are_both_ways_and_per_device() {
        let step = Step {
            name: "one_changed",
            report: Report { done_ms: vec![1.0, 3.0], ..Report::default() },
            wire: BTreeMap::from([("relay_up", 900), ("relay_down", 100), ("gateway_up", 7)]),
            ..Step::default()
        };
        let figures = Figures {
            relays: 1,
            agents: 2,
            spared: Spared::default(),
            missing: 0,
            set_up_s: 1.0,
            memory: BTreeMap::new(),
            outcome: Outcome::Inventory(Inventory { steps: vec![step] }),
        };
        let json = figures.json();
        assert_eq!((&json["mode"], &json["packages"], &json["results"]), (&json!("inventory"), &json!(200), &json!(2)));
        let step = &json["one_changed"];
        assert_eq!((&step["branch_line_bytes_per_device"], &step["total_ms"]), (&json!(500.0), &json!(3.0)));
        assert!(figures.text().contains("500"), "{}", figures.text());
    }

    #[test]
    fn what_the_server_does_not_show_is_missing_although_the_agents_are_content() {
        let step = |missing, wrong| Step { report: Report { missing, ..Report::default() }, wrong, ..Step::default() };
        assert_eq!(Inventory { steps: vec![step(0, 2), step(1, 0), step(3, 3)] }.missing(), 6);
    }

    #[test]
    fn only_devices_with_an_inventory_have_its_time() {
        let answer = json!({ "devices": [
            { "name": "a", "inventory": { "collected_at": "2026-01-01T00:00:00Z" } },
            { "name": "b", "inventory": { "collected_at": null } }, { "name": "c", "inventory": null },
        ] });
        assert_eq!(times_in(&answer), BTreeSet::from([("a".into(), "2026-01-01T00:00:00Z".into())]));
        assert_eq!(times_in(&json!({})), BTreeSet::new());
    }
}
