//! Runs the simulator: one seed, or a range of them.
//!
//! ```text
//! simulate --seed N --faults M [--json] [--replay]            one run; exit 1 if anything was violated
//! simulate --seeds A..B --faults M [--minutes X] [--json]     a line per seed, then the totals
//! ```
//! `--stores model|engine|auto`: the stores of relays and agents; `auto`, the usual, takes the real engine for every
//! eighth seed. `--defect NAME` makes something wrong on purpose ([`Defect`]); the run ends when it is found.

use branchline_tests::sim::{Options, Report, defect::Defect, simulate};
use std::process::ExitCode;

const USAGE: &str = "usage: simulate (--seed N | --seeds A..B [--minutes X]) --faults M [--stores model|engine|auto] \
                     [--relay-restores] [--defect NAME] [--json] [--replay]";
/// Every so many seeds' stores are the real engine.
const ENGINE_EVERY: u64 = 8;

struct Asked {
    seeds: std::ops::Range<u64>,
    single: bool,
    faults: u64,
    seconds: Option<f64>,
    stores: Option<bool>,
    relay_restores: bool,
    defect: Option<Defect>,
    json: bool,
    replay: bool,
}

fn asked() -> Option<Asked> {
    let mut asked = Asked {
        seeds: 1..2,
        single: true,
        faults: 2_000,
        seconds: None,
        stores: None,
        relay_restores: false,
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
            "--minutes" => asked.seconds = Some(words.next()?.parse::<f64>().ok()? * 60.0),
            "--relay-restores" => asked.relay_restores = true,
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
    let mut report = simulate(&Options {
        replay: asked.replay,
        engine,
        relay_restores: asked.relay_restores,
        defect: asked.defect,
        ..Options::new(seed, asked.faults)
    });
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

fn main() -> ExitCode {
    let Some(asked) = asked() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let begun = seconds();
    let mut total = Report { seed: asked.seeds.start, ..Report::default() };
    let mut seeds = 0;
    for seed in asked.seeds.clone() {
        let report = one(seed, &asked);
        show(&report, asked.json);
        total.add(&report);
        seeds += 1;
        if asked.seconds.is_some_and(|most| seconds() - begun >= most) {
            break;
        }
    }
    if !asked.single {
        if asked.json {
            println!("{}", total.json());
        } else {
            println!("{seeds} seeds; {}", total.line());
        }
    }
    if !asked.json {
        let sum = total.faults.max(1);
        let kinds = total.kinds.iter().map(|(kind, n)| format!("{kind} {n} ({:.1} %)", *n as f64 * 100.0 / sum as f64));
        println!("{}", kinds.collect::<Vec<_>>().join(", "));
    }
    if total.violations > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
