//! Carries a plan out: orders jobs and does faults at their times, then lets everything come to rest.

use super::{
    plan::{Plan, Step, What},
    plant::Plant,
    witness::{Seen, witness},
};
use crate::{
    office::until,
    proxy::{Cut, Flow, Way, Whom},
};
use branchline_node::time::{Clock, SystemClock};
use branchline_protocol::time::{Millis, Mono};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A fault that was done.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which.
    pub step: Step,
    /// When it began, wall time.
    pub at: Millis,
    /// When it was over.
    pub until: Millis,
    /// Whether there was a process or an open link to be hit.
    pub hit: bool,
}

/// A job that was ordered.
#[derive(Clone, Debug)]
pub struct Ordered {
    /// Its key.
    pub key: String,
    /// Its id, if the server answered: from then on it may not be lost.
    pub id: Option<String>,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Every fault.
    pub faults: Vec<Fault>,
    /// Every job.
    pub ordered: Vec<Ordered>,
    /// What `explain` and `tree` said meanwhile.
    pub seen: Seen,
}

/// Carries the plan out; lines of the jobs go to files in `effects`.
pub fn drive(plant: &Plant, plan: &Plan, effects: &Path) -> Done {
    let clock = SystemClock::shared();
    let begun = clock.mono();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Whatever panics here, the witness ends.
        let done = Over(&over);
        let faults = scope.spawn(|| faults(plant, &plan.steps, &clock, begun));
        let seen = scope.spawn(|| witness(plant, &over));
        let ordered = order(plant, plan, effects, &clock, begun);
        let faults = faults.join().expect("the faults are done");
        drop(done);
        Done { faults, ordered, seen: seen.join().expect("somebody looked") }
    })
}

/// Set when it goes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn sleep_until(clock: &Arc<dyn Clock>, at: Mono) {
    let wait = at.since(clock.mono());
    std::thread::sleep(Duration::from_millis(wait));
}

fn order(plant: &Plant, plan: &Plan, effects: &Path, clock: &Arc<dyn Clock>, begun: Mono) -> Vec<Ordered> {
    let one = |(at_ms, work): &(u64, super::Work)| {
        sleep_until(clock, begun.plus(*at_ms));
        let id = match plant.tell("/jobs", &work.body(effects)) {
            Ok((201, job)) => Some(job["id"].as_str().expect("a job has an id").to_string()),
            // Refused while it starts or ends; then nothing was accepted.
            Ok((503, _)) => None,
            Ok((status, body)) => panic!("{} was refused: {status} {body}", work.key),
            // The answer was lost, or nobody answered: it may have been accepted all the same.
            Err(_) => None,
        };
        Ordered { key: work.key.clone(), id }
    };
    plan.works.iter().map(one).collect()
}

/// What takes a fault back.
enum Undo {
    Continue,
    Pass(Option<Way>),
    Accept,
}

fn faults(plant: &Plant, steps: &[Step], clock: &Arc<dyn Clock>, begun: Mono) -> Vec<Fault> {
    let mut done = Vec::new();
    let mut undo: BTreeMap<(Mono, usize), (String, Undo)> = BTreeMap::new();
    let undo_until = |limit: Option<Mono>, undo: &mut BTreeMap<(Mono, usize), (String, Undo)>| {
        while let Some(first) = undo.first_entry()
            && limit.is_none_or(|limit| first.key().0 <= limit)
        {
            let ((due, _), (node, what)) = first.remove_entry();
            sleep_until(clock, due);
            take_back(plant, &node, &what);
        }
    };
    for (n, step) in steps.iter().enumerate() {
        let due = begun.plus(step.at_ms);
        undo_until(Some(due), &mut undo);
        sleep_until(clock, due);
        let at = clock.wall();
        let (hit, back) = strike(plant, step);
        if let Some(back) = back {
            undo.insert((clock.mono().plus(step.what.lasts_ms()), n), (step.node.clone(), back));
        }
        let until = clock.wall().plus(step.what.lasts_ms() as i64);
        done.push(Fault { step: step.clone(), at, until, hit });
    }
    undo_until(None, &mut undo);
    done
}

fn strike(plant: &Plant, step: &Step) -> (bool, Option<Undo>) {
    let node = step.node.as_str();
    match step.what {
        What::Kill => (plant.process(node).signal(libc::SIGKILL), None),
        What::CutPower => (plant.cut_power(node), None),
        What::Freeze(_) => (plant.process(node).signal(libc::SIGSTOP), Some(Undo::Continue)),
        What::Cut(how) => {
            let (proxy, whom) = plant.link(node);
            (proxy.cut(whom, how) > 0, None)
        }
        What::DieSilently => {
            let (proxy, whom) = plant.link(node);
            let stranded = proxy.cut(whom, Cut::Strand) > 0;
            (plant.process(node).signal(libc::SIGKILL) && stranded, None)
        }
        What::Flow(way, flow, _) => {
            let (proxy, whom) = plant.link(node);
            let open = proxy.open(whom) > 0;
            match way {
                Some(way) => proxy.flow(whom, way, flow),
                None => proxy.both(whom, flow),
            }
            (open, Some(Undo::Pass(way)))
        }
        What::Refuse(_) => {
            let (proxy, _) = plant.link(node);
            proxy.refuse(true);
            (proxy.cut(Whom::All, Cut::Reset) > 0, Some(Undo::Accept))
        }
    }
}

fn take_back(plant: &Plant, node: &str, undo: &Undo) {
    match undo {
        Undo::Continue => {
            // One that was killed meanwhile needs none.
            plant.process(node).signal(libc::SIGCONT);
        }
        Undo::Pass(way) => {
            let (proxy, whom) = plant.link(node);
            match way {
                Some(way) => proxy.flow(whom, *way, Flow::Pass),
                None => proxy.both(whom, Flow::Pass),
            }
        }
        Undo::Accept => plant.link(node).0.refuse(false),
    }
}

/// Waits until every job that the server has is complete, and every one it answered for is there. Nothing fails any more.
pub fn rest(plant: &Plant, done: &Done, secs: u64) {
    let answered: Vec<&str> = done.ordered.iter().filter_map(|o| o.id.as_deref()).collect();
    until("every job is complete", secs, || {
        let jobs = plant.ask("/jobs?limit=1000").unwrap_or_default();
        let Some(jobs) = jobs["jobs"].as_array() else { return Err("no answer".into()) };
        let open: Vec<&Value> = jobs.iter().filter(|job| job["complete"] != true).collect();
        let ids: std::collections::BTreeSet<&str> = jobs.iter().filter_map(|job| job["id"].as_str()).collect();
        let missing: Vec<&&str> = answered.iter().filter(|id| !ids.contains(**id)).collect();
        match (open.is_empty(), missing.is_empty()) {
            (true, true) => Ok(()),
            _ => Err(format!(
                "{} open, the oldest {}; missing: {missing:?}; {:?}",
                open.len(),
                open.last().map_or(Value::Null, |job| open_of(plant, job)),
                plant.unordered_ends()
            )),
        }
    });
}

/// A job's rows that are short of their end.
fn open_of(plant: &Plant, job: &Value) -> Value {
    let mut job = plant.ask(&format!("/jobs/{}", job["id"].as_str().unwrap_or_default())).unwrap_or_default();
    if let Some(rows) = job["results"].as_array_mut() {
        rows.retain(|row| ["queued", "delivered", "running", "paused"].iter().any(|open| row["state"] == *open));
    }
    job
}
