//! Asks `explain` and `tree` all the while that faults are done, and holds every answer against what must be true at every
//! moment: an end stays what it is, an explanation says what the job says and why it has not ended, and nobody is shown
//! online behind a relay that is not there.

use super::plant::Plant;
use branchline_node::time::SystemClock;
use branchline_protocol::job::State;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Milliseconds between two looks. Faults come at about two a second.
const EVERY: Duration = Duration::from_millis(250);
/// Of the newest jobs, so many are looked at in turn.
const NEWEST: usize = 20;
/// What ends a timeline that is short of its end.
const WAITS: [&str; 3] = ["waiting", "unreachable", "suspended"];

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Trees that were compared.
    pub trees: usize,
    /// Explanations that were compared.
    pub explained: usize,
    /// Of these, of jobs short of their end.
    pub open: usize,
    /// Relays shown as unreachable.
    pub unreachable: usize,
    /// What was wrong, for people.
    pub wrong: Vec<String>,
}

/// Looks until it is told to stop.
pub fn witness(plant: &Plant, stop: &AtomicBool) -> Seen {
    let clock = SystemClock::shared();
    let mut seen = Seen::default();
    let mut ends: BTreeMap<(String, String), State> = BTreeMap::new();
    let names: BTreeSet<&str> = plant.names().collect();
    let mut turn = 0;
    while !stop.load(Ordering::SeqCst) {
        let due = clock.mono().plus(EVERY.as_millis() as u64);
        turn += 1;
        if let Some(tree) = plant.ask("/tree") {
            look_at_tree(&tree, &names, &mut seen);
        }
        look_at_job(plant, turn, &mut ends, &mut seen);
        std::thread::sleep(Duration::from_millis(due.since(clock.mono())));
    }
    seen
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn look_at_tree(tree: &Value, names: &BTreeSet<&str>, seen: &mut Seen) {
    let nodes: BTreeMap<&str, &Value> =
        tree["nodes"].as_array().into_iter().flatten().map(|node| (text(node, "name"), node)).collect();
    seen.trees += 1;
    let shown: BTreeSet<&str> = nodes.keys().copied().collect();
    if shown != *names {
        seen.wrong.push(format!("the tree has {shown:?}"));
    }
    for (name, node) in &nodes {
        if node["unreachable_since"].is_null() {
            continue;
        }
        seen.unreachable += 1;
        if node["state"] == "online" {
            seen.wrong.push(format!("{name} is online and unreachable: {node}"));
        }
    }
    for (name, node) in &nodes {
        let mut above = nodes.get(text(node, "parent"));
        while let Some(parent) = above {
            if node["state"] == "online" && !parent["unreachable_since"].is_null() {
                seen.wrong.push(format!("{name} is online behind an unreachable {}", text(parent, "name")));
            }
            above = nodes.get(text(parent, "parent"));
        }
    }
}

fn look_at_job(plant: &Plant, turn: usize, ends: &mut BTreeMap<(String, String), State>, seen: &mut Seen) {
    let Some(jobs) = plant.ask(&format!("/jobs?limit={NEWEST}")) else { return };
    let jobs = jobs["jobs"].as_array().cloned().unwrap_or_default();
    let Some(job) = (!jobs.is_empty()).then(|| text(&jobs[turn % jobs.len()], "id")) else { return };
    let at = format!("/jobs/{job}");
    let Some(before) = plant.ask(&at) else { return };
    let rows = before["results"].as_array().cloned().unwrap_or_default();
    if rows.is_empty() {
        return;
    }
    let row = &rows[turn / NEWEST % rows.len()];
    let device = text(row, "device");
    let Some(told) = plant.ask(&format!("{at}/devices/{device}/explain")) else { return };
    let Some(after) = plant.ask(&at) else { return };
    let same = |key: &str| {
        let later = after["results"].as_array().into_iter().flatten().find(|r| r["device"] == row["device"]);
        later.is_some_and(|later| later[key] == row[key])
    };
    seen.explained += 1;
    if same("state") && same("reason") && told["state"] != row["state"] {
        seen.wrong.push(format!("explained as {told}, shown as {row}"));
    }
    let timeline = told["timeline"].as_array().cloned().unwrap_or_default();
    let last = timeline.last().map_or("", |step| text(step, "event"));
    if timeline.first().map_or("", |step| text(step, "event")) != "issued" {
        seen.wrong.push(format!("nobody issued it: {told}"));
    }
    let Some(state) = State::from_word(text(&told, "state")) else {
        return seen.wrong.push(format!("no state: {told}"));
    };
    let pair = (job.to_owned(), device.to_owned());
    // `expired (unconfirmed)` is no end, though its word is one.
    if state.is_end() && told["reason"] != "unconfirmed" {
        if WAITS.contains(&last) {
            seen.wrong.push(format!("it ended, and waits: {told}"));
        }
        // A late result takes the place of what the server had concluded, once.
        let concluded = |end: &State| matches!(end, State::Expired | State::OutcomeUnknown);
        if ends.get(&pair).is_some_and(|end| *end != state && !concluded(end)) {
            seen.wrong.push(format!("it was {}: {told}", ends[&pair]));
        }
        ends.insert(pair, state);
        return;
    }
    seen.open += 1;
    if ends.contains_key(&pair) {
        seen.wrong.push(format!("it was {} and is open again: {told}", ends[&pair]));
    }
    if !WAITS.contains(&last) || told["reason"].is_null() {
        seen.wrong.push(format!("it has not ended, and nothing says why: {told}"));
    }
}
