//! A job to all agents below a relay, again and again.

use super::{
    bench::{AGENTS, Bench, of_parts},
    figures::{Fanout, Figures, Outcome},
    reference::ms_since,
    snapshot::Snapshot,
};
use crate::{
    client::{Client, POLL_MS_MAX, segment},
    failure::Failure,
    up::say,
    verbs::load::Args,
};
use branchline_protocol::id::Role;
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

/// What is not there after this, and a hundredth for each device, counts as missing.
const ROUND_TIME_OUT: Duration = Duration::from_secs(60);
const ROUND_TIME_OUT_EACH: Duration = Duration::from_millis(10);

/// Measures the rounds.
pub async fn measure(bench: &mut Bench, args: &Args) -> Result<Figures, Failure> {
    match args.relays {
        1 => bench.add_agents(AGENTS, Role::Relay).await?,
        _ => bench.add_branches(args.agents).await?,
    }
    let set_up_s = bench.elapsed_s();
    say::line(&format!("all agents are online after {set_up_s:.1} s; {} rounds are measured", args.rounds));
    let before = bench.snapshot().await?;
    let (client, agents, rounds) = (bench.client.clone(), args.devices(), args.rounds);
    let rounds = bench.call(move || (0..rounds).map(|_| round(&client, agents)).collect::<Result<Vec<_>, _>>()).await?;
    // What the work still causes behind the last result belongs to its cost.
    bench.quiet().await?;
    let after = bench.snapshot().await?;
    let results: u64 = rounds.iter().map(|r| r.results).sum();
    let fanout = Fanout {
        rounds_ms: rounds.iter().map(|r| r.ms).collect(),
        read_ms: rounds.iter().map(|r| r.read_ms).collect(),
        results,
        cpu_s: of_parts(|part| after.cpu_s(&before, part)),
        wire: Snapshot::grown(&after.wire, &before.wire),
        fsyncs: Snapshot::grown(&after.fsyncs, &before.fsyncs),
    };
    Ok(Figures {
        relays: args.relays,
        spared: args.spared(),
        agents: args.agents,
        missing: u64::from(agents) * u64::from(args.rounds) - results,
        set_up_s,
        memory: bench.memory(&after),
        outcome: Outcome::Fanout(fanout),
    })
}

/// One round.
pub(super) struct Round {
    /// From the order being sent to the word that every result is on the server's disk.
    ms: f64,
    /// From the order being sent to a row for each device having been read.
    read_ms: f64,
    /// Devices that succeeded, each counted once.
    pub(super) results: u64,
}

/// Orders a job and waits until the server holds every result.
#[allow(clippy::disallowed_methods, reason = "a stopwatch decides nothing, and the node's clock has no microseconds")]
pub(super) fn round(client: &Client, agents: u32) -> Result<Round, Failure> {
    let body = json!({ "on": "all", "verb": "run_script", "args": { "argv": ["true"] }, "time_out_s": 60 });
    let limit = ROUND_TIME_OUT + ROUND_TIME_OUT_EACH * agents;
    let begin = std::time::Instant::now();
    let counts = ("results", "none");
    let mut job = client.post("/jobs", &[counts], &body)?;
    let id = job["id"].as_str().ok_or_else(|| Failure::ended("bad_answer", "the job has no id"))?.to_string();
    let path = format!("/jobs/{}", segment(&id));
    while job["complete"] != true {
        let left = limit.saturating_sub(begin.elapsed()).as_millis() as u64;
        if left == 0 {
            break;
        }
        job = client.get(&path, &[counts, ("wait_ms", &left.min(POLL_MS_MAX).to_string())])?;
    }
    let ms = ms_since(begin);
    let job = client.get(&path, &[])?;
    let read_ms = ms_since(begin);
    let results = succeeded(&job);
    if results < u64::from(agents) {
        say::line(&format!("job {id} has {results} of {agents} results: {}", job["counts"]));
    }
    Ok(Round { ms, read_ms, results })
}

/// Devices of a job that succeeded.
fn succeeded(job: &Value) -> u64 {
    let rows = job["results"].as_array().map(Vec::as_slice).unwrap_or_default();
    let done = rows.iter().filter(|row| row["state"] == "succeeded").filter_map(|row| row["device"].as_str());
    done.collect::<BTreeSet<_>>().len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_counts_once_and_only_when_it_succeeded() {
        let row = |device: &str, state: &str| json!({ "device": device, "state": state });
        let rows = [row("a", "succeeded"), row("a", "succeeded"), row("b", "failed"), row("c", "succeeded")];
        assert_eq!(succeeded(&json!({ "results": rows })), 2);
        assert_eq!(succeeded(&json!({})), 0);
    }
}
