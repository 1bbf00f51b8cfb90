//! Some seeds, in seconds. `test.sh` runs the full number.

use branchline_tests::sim::{Options, Report, defect::Defect, simulate};

fn run(seed: u64, faults: u64, engine: bool) -> Report {
    let report = simulate(&Options { engine, ..Options::new(seed, faults) });
    assert_eq!(report.violations, 0, "seed {seed}: {:#?}", report.told);
    assert!(report.faults >= faults, "seed {seed}: {} faults", report.faults);
    assert!(report.accepted > 0 && report.ended <= report.accepted);
    report
}

/// JOB-4, JOB-13, JOB-14, JOB-16: orders that are late, repeated, cancelled, or for a suspended device are in the load.
#[test]
fn nothing_is_lost_or_doubled_whatever_goes_wrong() {
    let mut total = Report::default();
    for seed in 2..=4 {
        total.add(&run(seed, 1_500, false));
    }
    assert_eq!((total.lost, total.doubled), (0, 0));
    for (kind, count) in &total.kinds {
        let share = *count as f64 / total.faults as f64;
        assert!((0.01..=0.40).contains(&share), "{kind} is {count} of {} faults", total.faults);
    }
    assert!(total.crashes_unsynced > 100, "{}", total.crashes_unsynced);
    assert!(total.path_moves > 100 && total.restores > 50, "{} and {}", total.path_moves, total.restores);
    let answers = ["online", "offline", "unknown", "suspended"].map(|state| format!("agent {state}"));
    let relays = ["online", "offline", "unknown"].map(|state| format!("relay {state}"));
    let steps = ["unreachable", "suspended", "waiting", "recorded", "cancelled", "expired"].map(str::to_owned);
    for answer in answers.into_iter().chain(relays).chain(steps) {
        assert!(total.answers.get(&answer).is_some_and(|count| *count > 5), "{answer}: {:?}", total.answers);
    }
    for end in ["succeeded", "failed", "cancelled", "expired", "outcome_unknown"] {
        assert!(total.ends.get(end).is_some_and(|count| *count > 10), "{end}: {:?}", total.ends);
    }
}

#[test]
fn the_real_engine_over_a_faulty_disk_loses_nothing_either() {
    run(101, 800, true);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for engine in [false, true] {
        let [first, second] = [0, 1].map(|_| run(7, 400, engine));
        assert_eq!(first, second);
        assert_ne!(first.hash, run(8, 400, engine).hash);
    }
}

#[test]
fn every_seeded_defect_is_found_by_the_general_mix() {
    for (name, defect) in Defect::all() {
        let found = (1..=12).find_map(|seed| {
            let report = simulate(&Options { defect: Some(defect), ..Options::new(seed, 2_000) });
            (report.violations > 0).then_some((seed, report.faults, report.told))
        });
        let (seed, faults, told) = found.unwrap_or_else(|| panic!("{name} is not found"));
        println!("{name}: seed {seed}, {faults} faults: {}", told[0]);
    }
}
