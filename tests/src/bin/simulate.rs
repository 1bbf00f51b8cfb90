//! Runs the simulator: one seed, or a range of them.
//!
//! ```text
//! simulate --seed N --faults M [--json] [--replay]            one run; exit 1 if anything was violated
//! simulate --seeds A..B --faults M [--jobs J] [--minutes X] [--json] [--at-least NAME=N,…]
//!                                                             a line per seed, in their order, then the totals
//! ```
//! `--jobs`: seeds are run by so many threads; each is the same run whatever runs beside it, and so are the totals.
//! `--at-least`: exit 1 as well when the total of a number of the JSON is less, e.g. `faults=1000000,path_moves=1000`.
//! `--stores model|engine|auto`: the stores of relays and agents; `auto`, the usual, takes the real engine for every
//! eighth seed. `--defect NAME` makes something wrong on purpose ([`Defect`]); the run ends when it is found.

use branchline_tests::sim::{Options, Report, defect::Defect, simulate};
use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

const USAGE: &str = "usage: simulate (--seed N | --seeds A..B [--jobs J] [--minutes X] [--at-least NAME=N,…]) --faults M \
                     [--stores model|engine|auto] [--defect NAME] [--json] [--replay]";
/// Every so many seeds' stores are the real engine.
const ENGINE_EVERY: u64 = 8;

struct Asked {
    seeds: std::ops::Range<u64>,
    single: bool,
    faults: u64,
    jobs: u64,
    seconds: Option<f64>,
    at_least: Vec<(String, u64)>,
    stores: Option<bool>,
    defect: Option<Defect>,
    json: bool,
    replay: bool,
}

fn asked() -> Option<Asked> {
    let mut asked = Asked {
        seeds: 1..2,
        single: true,
        faults: 2_000,
        jobs: 1,
        seconds: None,
        at_least: Vec::new(),
        stores: None,
        defect: None,
        json: false,
        replay: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => asked.json = true,
            "--replay" => asked.replay = true,
            "--seed" => {
                let seed = words.next()?.parse().ok()?;
                (asked.seeds, asked.single) = (seed..seed + 1, true);
            }
            "--seeds" => {
                let range = words.next()?;
                let (from, to) = range.split_once("..")?;
                (asked.seeds, asked.single) = (from.parse().ok()?..to.parse().ok()?, false);
            }
            "--faults" => asked.faults = words.next()?.parse().ok()?,
            "--jobs" => asked.jobs = words.next()?.parse().ok().filter(|jobs| (1..=64).contains(jobs))?,
            "--at-least" => {
                let known = Report::default().json();
                let least = |word: &str| {
                    let (name, least) = word.split_once('=')?;
                    known.get(name)?.as_u64()?;
                    Some((name.to_owned(), least.parse().ok()?))
                };
                asked.at_least = words.next()?.split(',').map(least).collect::<Option<_>>()?;
            }
            "--minutes" => asked.seconds = Some(words.next()?.parse::<f64>().ok()? * 60.0),
            "--defect" => asked.defect = Some(Defect::named(&words.next()?)?),
            "--stores" => {
                asked.stores = match words.next()?.as_str() {
                    "model" => Some(false),
                    "engine" => Some(true),
                    "auto" => None,
                    _ => return None,
                }
            }
            _ => return None,
        }
    }
    Some(asked)
}

#[allow(clippy::disallowed_methods, reason = "how long a run takes is for people, and no part of it")]
fn seconds() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map(|since| since.as_secs_f64()).unwrap_or(0.0)
}

fn one(seed: u64, asked: &Asked) -> Report {
    let engine = asked.stores.unwrap_or(seed.is_multiple_of(ENGINE_EVERY) && asked.defect.is_none());
    let begun = seconds();
    let mut report =
        simulate(&Options { replay: asked.replay, engine, defect: asked.defect, ..Options::new(seed, asked.faults) });
    report.wall_s = seconds() - begun;
    report
}

fn show(report: &Report, json: bool) {
    if json {
        println!("{}", report.json());
    } else {
        println!("{}", report.line());
    }
    for told in &report.told {
        eprintln!("  {told}");
    }
}

/// Runs the seeds, each on some thread; `told` hears of them in their order.
fn all(asked: &Asked, begun: f64, told: impl FnMut(&Report) + Send) {
    let next = AtomicU64::new(asked.seeds.start);
    let in_turn = Mutex::new((asked.seeds.start, BTreeMap::<u64, Report>::new(), told));
    thread::scope(|scope| {
        for _ in 0..asked.jobs {
            scope.spawn(|| {
                loop {
                    if asked.seconds.is_some_and(|most| seconds() - begun >= most) {
                        return;
                    }
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= asked.seeds.end {
                        return;
                    }
                    let report = one(seed, asked);
                    let (turn, done, told) = &mut *in_turn.lock().unwrap_or_else(PoisonError::into_inner);
                    done.insert(seed, report);
                    while let Some(report) = done.remove(turn) {
                        told(&report);
                        *turn += 1;
                    }
                }
            });
        }
    });
}

/// Each total that is less than it has to be.
fn short_of(total: &Report, at_least: &[(String, u64)]) -> Vec<String> {
    let total = total.json();
    let found = |name: &str| total.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let short = at_least.iter().filter(|(name, least)| found(name) < *least);
    short.map(|(name, least)| format!("{name}: {} of {least}", found(name))).collect()
}

fn main() -> ExitCode {
    let Some(asked) = asked() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let begun = seconds();
    let mut total = Report { seed: asked.seeds.start, ..Report::default() };
    let mut seeds = 0;
    all(&asked, begun, |report| {
        show(report, asked.json);
        total.add(report);
        seeds += 1;
    });
    if !asked.single {
        if asked.json {
            println!("{}", total.json());
        } else {
            println!("{seeds} seeds in {:.0} s; {}", seconds() - begun, total.line());
        }
    }
    if !asked.json {
        let sum = total.faults.max(1);
        let kinds = total.kinds.iter().map(|(kind, n)| format!("{kind} {n} ({:.1} %)", *n as f64 * 100.0 / sum as f64));
        println!("{}", kinds.collect::<Vec<_>>().join(", "));
    }
    let short = short_of(&total, &asked.at_least);
    short.iter().for_each(|short| eprintln!("too few {short}"));
    if total.violations > 0 || !short.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
