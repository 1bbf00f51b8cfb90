//! Scenarios with real processes: what `branchline up` starts, used as an operator uses it.

mod durability;
mod examples;
mod outages;
mod refusals;
mod restore;
mod revocation;
mod satellite;
mod secrets;
mod verbs;

use branchline_tests::office::Office;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_branchline-under-test"))
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../topology-examples")
}

/// Starts an example.
fn start(example: &str) -> Office {
    Office::start(exe(), &examples().join(example))
}

static SATELLITE: Mutex<Option<Arc<Office>>> = Mutex::new(None);

/// A satellite office shared by the tests that do not disturb it.
fn satellite_office() -> Arc<Office> {
    let mut shared = SATELLITE.lock().unwrap_or_else(|e| e.into_inner());
    if shared.is_none() {
        #[allow(unsafe_code)]
        // SAFETY: the function has C's calling convention and does not unwind out of it.
        unsafe {
            libc::atexit(end_shared);
        }
    }
    shared.get_or_insert_with(|| Arc::new(start("satellite-office"))).clone()
}

/// Statics are not dropped by themselves: this ends the shared office's processes and removes its folder.
extern "C" fn end_shared() {
    let _ = std::panic::catch_unwind(|| SATELLITE.lock().unwrap_or_else(|e| e.into_inner()).take());
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no list {key} in {value}"))
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}"))
}

/// Device id by name.
fn device_ids(office: &Office) -> BTreeMap<String, String> {
    let devices = list(office.report(), "devices").iter();
    devices.map(|d| (text(d, "name").to_string(), text(d, "id").to_string())).collect()
}

/// Asserts that the counts hold every state, sum up to the rows, and agree with them.
fn assert_counts_agree(job: &Value) {
    let counts = job["counts"].as_object().expect("counts");
    let states = ["queued", "delivered", "running", "succeeded", "failed", "expired", "cancelled", "outcome_unknown"];
    states.iter().for_each(|s| assert!(counts.contains_key(*s), "no {s} in {job}"));
    let mut rows: BTreeMap<&str, u64> = BTreeMap::new();
    list(job, "results").iter().for_each(|r| *rows.entry(text(r, "state")).or_default() += 1);
    for (state, count) in counts {
        assert_eq!(count.as_u64(), Some(rows.get(state.as_str()).copied().unwrap_or(0)), "{state} in {job}");
    }
    let devices: std::collections::BTreeSet<&str> = list(job, "results").iter().map(|r| text(r, "device")).collect();
    assert_eq!(devices.len(), list(job, "results").len(), "one row a device: {job}");
}

/// Asserts that every row is the answer of its own device: the examples' job prints the device's id, the pid of its
/// agent, a random id and the kernel. `nodes` and `devices` are those of the report.
fn assert_every_answer_is_its_devices_own(report: &Value, job: &Value) {
    let nodes = list(report, "nodes");
    let pid = |device: &str| nodes.iter().find(|n| n["id"] == device).and_then(|n| n["pid"].as_u64());
    let mut seen = std::collections::BTreeSet::new();
    for row in list(job, "results") {
        let (device, stdout) = (text(row, "device"), text(row, "stdout"));
        assert_eq!(
            (&row["state"], &row["exit_code"], &row["truncated"]),
            (&"succeeded".into(), &0.into(), &false.into())
        );
        assert_eq!(row["stderr"], "");
        let words: Vec<&str> = stdout.split_whitespace().collect();
        assert_eq!(words.len(), 5, "{stdout:?}");
        assert_eq!(words[0], device, "the output names another device");
        assert_eq!(words[1].parse().ok(), pid(device), "the output names another agent's process: {row}");
        assert!(words[2].len() == 36 && seen.insert(words[2].to_string()), "{} is no new random id", words[2]);
        assert_eq!(words[3], "Linux");
        assert!(text(row, "started_at") <= text(row, "ended_at"), "{row}");
    }
    assert_eq!(job["complete"], true);
    assert_counts_agree(job);
    assert_eq!(job["counts"]["succeeded"].as_u64(), Some(list(job, "results").len() as u64));
}

/// Asserts what an example's `expected.json` says of the report.
fn assert_as_expected(example: &str, report: &Value) {
    let expected = std::fs::read(examples().join(example).join("expected.json")).expect("an expected result");
    let expected: Value = serde_json::from_slice(&expected).expect("JSON");
    for (role, count) in expected["roles"].as_object().expect("roles") {
        let nodes = list(report, "nodes").iter().filter(|n| n["role"] == role.as_str());
        assert_eq!(nodes.count() as u64, count.as_u64().expect("a number"), "{role}s of {example}");
    }
    let pids: std::collections::BTreeSet<Option<u64>> =
        list(report, "nodes").iter().map(|n| n["pid"].as_u64()).collect();
    assert_eq!(pids.len(), list(report, "nodes").len(), "each node is a process of its own");
    assert!(!pids.contains(&None));
    let mut count = 0;
    for (tenant, devices) in expected["tenants"].as_object().expect("tenants") {
        for (name, device) in devices.as_object().expect("devices") {
            let found =
                list(report, "devices").iter().find(|d| d["name"] == name.as_str() && d["tenant"] == tenant.as_str());
            let found = found.unwrap_or_else(|| panic!("no {name} of {tenant} in {report}"));
            assert_eq!(found["site"], device["site"], "{name}");
            assert_eq!(found["path"], device["path"], "path of {name}");
            assert_eq!(found["state"], "online", "{name}");
            count += 1;
        }
    }
    assert_eq!(count, list(report, "devices").len(), "nothing but what is expected");
    let jobs = if report["jobs"].is_array() { list(report, "jobs") } else { std::slice::from_ref(&report["job"]) };
    let rows: usize = jobs.iter().map(|job| list(job, "results").len()).sum();
    assert_eq!(rows, count, "every device has a result");
    jobs.iter().for_each(|job| assert_every_answer_is_its_devices_own(report, job));
}
