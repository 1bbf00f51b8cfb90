//! The command around the simulator: threads, totals, minima.

use serde_json::Value;
use std::process::{Command, Output};

fn simulate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simulate")).args(args).output().expect("the simulator runs")
}

/// The reports of a run, without what a machine's speed decides.
fn reports(output: &Output) -> Vec<Value> {
    let lines = String::from_utf8_lossy(&output.stdout);
    let report = |line: &str| {
        let mut report: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        report["wall_s"] = Value::Null;
        report
    };
    lines.lines().map(report).collect()
}

#[test]
fn seeds_are_the_same_runs_in_the_same_order_on_any_number_of_threads() {
    let [one, three] =
        ["1", "3"].map(|jobs| reports(&simulate(&["--seeds", "2..6", "--faults", "60", "--json", "--jobs", jobs])));
    assert_eq!(one.len(), 5, "four seeds and their totals");
    assert_eq!(one, three);
}

#[test]
fn a_total_that_is_less_than_asked_for_fails_the_run() {
    let run = |least: &str| simulate(&["--seed", "2", "--faults", "60", "--json", "--at-least", least]);
    let faults = reports(&run("faults=1"))[0]["faults"].as_u64().expect("a number");
    for (least, code) in [(faults, 0), (faults + 1, 1)] {
        let output = run(&format!("faults={least},accepted=1"));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert_eq!(told.contains(&format!("faults: {faults} of {least}")), code == 1, "{told}");
    }
    for wrong in ["faults", "faults=many", "hash=1", "luck=1", ""] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong}");
    }
    for jobs in ["0", "65", "two"] {
        assert_eq!(simulate(&["--seed", "2", "--jobs", jobs]).status.code(), Some(2), "{jobs}");
    }
}
