//! All links are lost, and every agent dials again without back-off: what handshakes cost, not what the rhythm of
//! dials makes of them. Both ends are the product's own: TCP, TLS with both certificates, the signed greeting, admission,
//! and the attachment number that an agent has on its disk before it greets.

use super::{
    bench::{AGENTS, Bench, Manner, of_parts},
    drill::Report,
    figures::{Figures, Memory, Outcome, mib, object, percentile, put_times, rounded},
    leader::Leader,
    snapshot::{PARTS, Snapshot},
};
use crate::{
    failure::Failure,
    table::table,
    up::say,
    verbs::load::{Args, Below},
};
use branchline_protocol::id::Role;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Agents below one parent: ten full houses.
pub const AGENTS_MAX: u32 = 3_000;

/// What a storm was.
#[derive(Clone, Debug, Default)]
pub struct Storm {
    /// `relay` or `gateway`.
    pub below: &'static str,
    /// Dials a second; as many as got in without it.
    pub per_second: Option<u32>,
    /// What the agents saw.
    pub report: Report,
    /// Links that a node turned away, or broke off in the handshake.
    pub refused: u64,
    /// Seconds of CPU per part.
    pub cpu_s: BTreeMap<&'static str, f64>,
    /// Bytes per line.
    pub wire: BTreeMap<&'static str, u64>,
    /// Syncs per part.
    pub fsyncs: BTreeMap<&'static str, u64>,
}

/// Has them lose their links once.
pub async fn measure(bench: &mut Bench, args: &Args) -> Result<Figures, Failure> {
    let (below, parent) = match args.below.unwrap_or_default() {
        Below::Relay => ("relay", Role::Relay),
        Below::Gateway => ("gateway", Role::Gateway),
    };
    let mut leader = Leader::listen().await?;
    bench.add(AGENTS, parent, &mut Manner { leader: Some(&mut leader), packages: 0, ..Manner::default() }).await?;
    let set_up_s = bench.elapsed_s();
    say::line(&format!("all agents are online after {set_up_s:.1} s; they lose their links"));
    let before = bench.snapshot().await?;
    let words = args.rate.map_or("storm".to_string(), |rate| format!("storm {rate}"));
    let report = leader.drill(&words).await?;
    // At once: so many links beat on, and what that costs is no handshake.
    let after = bench.snapshot().await?;
    let missing = report.missing;
    let storm = Storm {
        below,
        per_second: args.rate,
        report,
        refused: after.refused.saturating_sub(before.refused),
        cpu_s: of_parts(|part| after.cpu_s(&before, part)),
        wire: Snapshot::grown(&after.wire, &before.wire),
        fsyncs: Snapshot::grown(&after.fsyncs, &before.fsyncs),
    };
    Ok(Figures {
        relays: args.relays,
        agents: args.agents,
        spared: args.spared(),
        missing,
        set_up_s,
        memory: bench.memory(&after),
        outcome: Outcome::Storm(storm),
    })
}

impl Storm {
    /// Agents that were welcomed again.
    fn welcomed(&self) -> u64 {
        self.report.done_ms.len() as u64
    }

    /// From the first dial to the last welcome.
    fn per_s(&self) -> f64 {
        let seconds = (self.report.last_ms() - self.report.lost_ms) / 1_000.0;
        if seconds > 0.0 { self.welcomed() as f64 / seconds } else { 0.0 }
    }

    fn cpu_s_per_1000(&self, part: &str) -> f64 {
        let seconds = self.cpu_s.get(part).copied().unwrap_or(0.0);
        if self.welcomed() > 0 { seconds * 1_000.0 / self.welcomed() as f64 } else { 0.0 }
    }

    /// Refusals that nobody asked for: as the nodes count them, or as agents had to dial again; the larger of the two,
    /// for each refusal is usually both.
    pub fn refusals(&self) -> u64 {
        self.refused.max(self.report.again)
    }

    /// The mode's keys.
    pub fn put(&self, json: &mut Value) {
        json["below"] = json!(self.below);
        json["rate_per_s"] = json!(self.per_second);
        json["results"] = json!(self.welcomed());
        json["lost_ms"] = json!(rounded(self.report.lost_ms));
        json["total_ms"] = json!(rounded(self.report.last_ms()));
        json["results_per_s"] = json!(rounded(self.per_s()));
        // Of single agents, from dial to welcome.
        put_times(json, &self.report.each_ms);
        json["refused"] = json!(self.refused);
        json["dialled_again"] = json!(self.report.again);
        json["cpu_s"] = object(&self.cpu_s, |s| json!(rounded(*s)));
        let per_1000: BTreeMap<_, _> = PARTS.into_iter().map(|part| (part, self.cpu_s_per_1000(part))).collect();
        json["cpu_s_per_1000"] = object(&per_1000, |s| json!(rounded(*s)));
        json["wire_bytes"] = object(&self.wire, |n| json!(n));
        json["fsyncs"] = json!(self.fsyncs.values().sum::<u64>());
        json["fsyncs_by"] = object(&self.fsyncs, |n| json!(n));
    }

    /// The mode's tables.
    pub fn text(&self, memory: &BTreeMap<&'static str, Memory>) -> String {
        let each = |part| format!("{:.1}", percentile(&self.report.each_ms, part));
        let times = table(
            [
                "BELOW",
                "DIALS/S",
                "BACK",
                "LOST MS",
                "ALL BACK MS",
                "HANDSHAKES/S",
                "P50 MS",
                "P99 MS",
                "REFUSED",
                "DIALLED AGAIN",
            ],
            [[
                self.below.to_string(),
                self.per_second.map_or("-".into(), |rate| rate.to_string()),
                self.welcomed().to_string(),
                format!("{:.1}", self.report.lost_ms),
                format!("{:.1}", self.report.last_ms()),
                format!("{:.0}", self.per_s()),
                each(0.5),
                each(0.99),
                self.refused.to_string(),
                self.report.again.to_string(),
            ]],
        );
        let rows = PARTS.map(|part| {
            let cpu = self.cpu_s.get(part).copied().unwrap_or(0.0);
            let rss = memory.get(part).map_or("-".into(), |m| mib(m.rss));
            let fsyncs = self.fsyncs.get(part).map_or("-".into(), u64::to_string);
            [part.to_string(), format!("{cpu:.2}"), format!("{:.3}", self.cpu_s_per_1000(part)), rss, fsyncs]
        });
        let parts = table(["PROCESS", "CPU S", "CPU S/1000", "RSS MIB", "FSYNCS"], rows);
        let wire = self.wire.iter().map(|(line, bytes)| [line.replace('_', " "), bytes.to_string()]);
        format!("{times}\n{parts}\n{}", table(["LINE", "BYTES"], wire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_agent::Spared;

    fn storm() -> Storm {
        let report =
            Report { done_ms: vec![1_500.0, 2_500.0], each_ms: vec![10.0, 20.0], lost_ms: 500.0, missing: 0, again: 0 };
        let cpu_s = BTreeMap::from([("relay", 0.01)]);
        Storm { below: "relay", report, cpu_s, ..Storm::default() }
    }

    fn figures(storm: Storm) -> Figures {
        Figures {
            relays: 1,
            agents: 2,
            spared: Spared::default(),
            missing: storm.report.missing,
            set_up_s: 1.0,
            memory: BTreeMap::new(),
            outcome: Outcome::Storm(storm),
        }
    }

    #[test]
    fn the_rate_is_over_the_time_from_first_dial_to_last_welcome() {
        let json = figures(storm()).json();
        assert_eq!((&json["mode"], &json["results"], &json["total_ms"]), (&json!("storm"), &json!(2), &json!(2_500.0)));
        assert_eq!(
            (&json["results_per_s"], &json["p50_ms"], &json["max_ms"]),
            (&json!(1.0), &json!(10.0), &json!(20.0))
        );
        assert_eq!(json["cpu_s_per_1000"]["relay"], json!(5.0));
        assert_eq!(Storm::default().per_s(), 0.0);
    }

    #[test]
    fn whoever_was_refused_or_is_missing_makes_it_a_bad_end() {
        assert!(figures(storm()).is_whole());
        let bad: [fn(&mut Storm); 3] = [|s| s.refused = 1, |s| s.report.again = 1, |s| s.report.missing = 1];
        for change in bad {
            let mut storm = storm();
            change(&mut storm);
            assert!(!figures(storm.clone()).is_whole(), "{storm:?}");
            assert!(figures(storm).text().contains('1'));
        }
    }
}
