//! Agents that only hold their link.

use super::{
    bench::{AGENTS, Bench, ROAMING, of_parts},
    fanout::round,
    figures::{Figures, Links, Memory, Outcome},
    snapshot::Snapshot,
};
use crate::{failure::Failure, up::say, verbs::load::Args};
use branchline_protocol::id::Role;
use std::collections::BTreeMap;

/// Agents below each parent: what is fixed in a process weighs little in as many.
pub const AGENTS_MAX: u32 = 3_000;

/// Jobs to all after the links were measured: what they leave behind, an idle link then holds as well.
const ROUNDS: u32 = 5;

/// Measures the tree without agents, with those below the relay, and with those that dial the gateway.
///
/// A relay's children share one link through the gateway, so the first group tells what a link costs the relay, and
/// what a device behind a relay costs the server; only the second tells what one costs gateway and server. Then all of them are given jobs, and
/// once these are over the links are measured again.
pub async fn measure(bench: &mut Bench, args: &Args) -> Result<Figures, Failure> {
    bench.quiet().await?;
    let empty = bench.snapshot().await?;
    bench.add_agents(AGENTS, Role::Relay).await?;
    let behind = bench.snapshot().await?;
    say::line(&format!("{} links at the relay are measured", args.agents));
    bench.add_agents(ROAMING, Role::Gateway).await?;
    let direct = bench.snapshot().await?;
    let set_up_s = bench.elapsed_s();
    say::line(&format!("{ROUNDS} jobs to all, and the links are measured again"));
    let (client, devices) = (bench.client.clone(), 2 * args.agents);
    let rounds =
        bench.call(move || (0..ROUNDS).map(|_| round(&client, devices)).collect::<Result<Vec<_>, _>>()).await?;
    let results: u64 = rounds.iter().map(|r| r.results).sum();
    bench.quiet().await?;
    let loaded = bench.snapshot().await?;
    let per = |now: &Snapshot, then: &Snapshot, part| Memory::grown(now, then, part, args.agents);
    let per_link = BTreeMap::from([
        ("relay", per(&behind, &empty, "relay")),
        ("gateway", per(&direct, &behind, "gateway")),
        ("server", per(&direct, &behind, "server")),
        ("relay_after_load", per(&loaded, &empty, "relay")),
        ("gateway_after_load", per(&loaded, &behind, "gateway")),
        ("server_behind_relay", per(&behind, &empty, "server")),
        // The whole process: an agent is more than its link.
        ("agents", per(&behind, &Snapshot::default(), AGENTS)),
    ]);
    Ok(Figures {
        relays: args.relays,
        spared: args.spared(),
        agents: args.agents,
        missing: u64::from(devices) * u64::from(ROUNDS) - results,
        set_up_s,
        memory: of_parts(|part| Memory::of(&direct, part)),
        outcome: Outcome::Links(Links { per_link, empty: of_parts(|part| Memory::of(&empty, part)) }),
    })
}
