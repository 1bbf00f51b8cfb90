//! The general mix of faults, and every end a job can come to.

use super::*;
use branchline_protocol::job::State;
use branchline_tests::{
    chaos::{Amount, Ordered, Plan, Work, drive, rest},
    office::until,
};
use serde_json::json;
use std::collections::BTreeMap;

/// Fourteen devices at three depths.
const DEVICES: usize = 14;
const AMOUNT: Amount = Amount { faults: 400, jobs: 430, spread_ms: 260_000 };
/// What a run must reach.
const FAULTS_LEAST: usize = 300;
const PAIRS_LEAST: usize = 5_000;
/// Explanations of jobs that were short of their end.
const EXPLAINED_LEAST: usize = 100;
/// How long everything may take to come to an end once nothing fails any more.
const REST_S: u64 = 400;

#[test]
fn under_the_general_mix_of_faults_nothing_is_lost_nothing_is_doubled_and_everything_ends() {
    let _alone = alone();
    let mut sums = Sums::default();
    for round in 0..times() {
        one_run(1 + round, &mut sums);
    }
    println!("chaos: {sums:?}");
    let times = times() as usize;
    assert!(sums.counted >= FAULTS_LEAST * times, "{sums:?}");
    assert!(sums.pairs >= PAIRS_LEAST * times, "{sums:?}");
    assert!(sums.unknown_with_effect > 0 && sums.unknown_without_effect > 0, "{sums:?}");
    assert!(sums.explained_open >= EXPLAINED_LEAST * times && sums.unreachable > 0, "{sums:?}");
    let ends = [
        State::Succeeded,
        State::Failed,
        State::Unsupported,
        State::Expired,
        State::Cancelled,
        State::OutcomeUnknown,
        State::NoSuchDevice,
    ];
    assert!(ends.iter().all(|end| sums.states.get(end.as_str()).is_some_and(|n| *n > 0)), "{sums:?}");
}

#[derive(Debug, Default)]
#[expect(dead_code, reason = "shown")]
struct Sums {
    faults: usize,
    counted: usize,
    pairs: usize,
    lost: usize,
    doubled: usize,
    unknown_with_effect: usize,
    unknown_without_effect: usize,
    /// Explanations held against the jobs, those of open ones, trees, relays shown as unreachable in them.
    explained: usize,
    explained_open: usize,
    trees: usize,
    unreachable: usize,
    states: BTreeMap<&'static str, usize>,
    /// Of each kind: hit something in flight, done.
    kinds: BTreeMap<&'static str, (usize, usize)>,
}

fn one_run(seed: u64, sums: &mut Sums) {
    let agents = [("osaka", 6, "osaka"), ("namba", 5, "namba"), ("roam", 3, "dmz")];
    let mut plant = Plant::start(exe(), &topology(&[("osaka", "dmz"), ("namba", "osaka")], &agents));
    assert_eq!(plant.of("agent").count(), DEVICES);
    let effects = effects(&plant);
    let plan = Plan::new(seed, AMOUNT, &plant);
    let told = format!("the plan of seed {seed}: {plan:?}");
    let mut done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let done = drive(&plant, &plan, &effects);
        rest(&plant, &done, REST_S);
        done
    }))
    .unwrap_or_else(|panic| {
        eprintln!("{told}");
        std::panic::resume_unwind(panic)
    });
    plant.all_online(REST_S);
    done.ordered.extend(ends_by_the_server(&plant, &effects));
    let found = accounts(&mut plant, &done, &effects, &told);

    sums.explained += done.seen.explained;
    sums.explained_open += done.seen.open;
    sums.trees += done.seen.trees;
    sums.unreachable += done.seen.unreachable;
    assert!(done.seen.wrong.is_empty(), "explain and tree: {:#?}", done.seen.wrong);
    sums.faults += done.faults.len();
    sums.pairs += found.pairs.len();
    for fault in &done.faults {
        let counts = found.counts(&plant, fault);
        sums.counted += usize::from(counts);
        let kind = sums.kinds.entry(fault.step.what.word()).or_default();
        *kind = (kind.0 + usize::from(counts), kind.1 + 1);
    }
    let (with, without) = found.unknown();
    sums.unknown_with_effect += with;
    sums.unknown_without_effect += without;
    for (state, n) in found.states() {
        *sums.states.entry(state.as_str()).or_default() += n;
    }
}

/// Ends that the server alone concludes, on devices that are away: expired, cancelled.
fn ends_by_the_server(plant: &Plant, effects: &Path) -> Vec<Ordered> {
    let mut ordered = Vec::new();
    for (name, key, end) in [("roam-01", "expires", "expired"), ("roam-02", "is-cancelled", "cancelled")] {
        let device = plant.node(name).id.clone();
        plant.process(name).hold_down();
        until(&format!("{name} is seen to be away"), 120, || {
            let shown = plant.ask(&format!("/devices/{device}")).unwrap_or_default();
            if shown["state"] == "offline" { Ok(()) } else { Err(shown.to_string()) }
        });
        let mut body = Work::plain(key, &format!("device:{device}"), 0, 0).body(effects);
        if end == "expired" {
            body["life_s"] = json!(1);
        }
        let (status, job) = plant.tell("/jobs", &body).expect("the server answers");
        assert_eq!(status, 201, "{job}");
        let id = job["id"].as_str().expect("an id").to_string();
        if end == "cancelled" {
            let (status, body) = plant.tell(&format!("/nodes/{device}/revoke"), &json!({})).expect("an answer");
            assert_eq!(status, 200, "{body}");
        }
        let job = plant.completed(&id, 60);
        assert_eq!(job["results"][0]["state"], end, "{job}");
        ordered.push(Ordered { key: key.into(), id: Some(id) });
        if end == "expired" {
            plant.process(name).let_start(vec![]);
        }
    }
    ordered
}
