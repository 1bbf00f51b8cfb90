//! `load` on a small tree: real processes, few agents.

use super::{code, json_line, run, stderr, stdout};
use serde_json::Value;

const PARTS: [&str; 4] = ["server", "gateway", "relay", "agents"];

fn measured(args: &[&str]) -> Value {
    measured_of("5", args)
}

fn measured_of(agents: &str, args: &[&str]) -> Value {
    let output = run(&[&["load", "--json", "--agents", agents, "--timeout", "120s"], args].concat());
    assert_eq!(code(&output), 0, "{}\n{}", stdout(&output), stderr(&output));
    json_line(&output)
}

fn number(json: &Value, path: &str) -> f64 {
    json.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} in {json}"))
}

#[test]
fn a_fanout_brings_every_result_back_and_tells_what_it_cost() {
    let json = measured(&["--mode", "fanout", "--rounds", "2", "--reference"]);
    for (path, exact) in [("/relays", 1.0), ("/agents", 5.0), ("/rounds", 2.0), ("/results", 10.0), ("/missing", 0.0)] {
        assert_eq!(number(&json, path), exact, "{path}: {json}");
    }
    let times = ["/min_ms", "/p50_ms", "/p99_ms", "/max_ms"].map(|path| number(&json, path));
    assert!(times[0] > 0.0 && times.is_sorted(), "{json}");
    // The rows are read once all of them are on disk.
    assert!(number(&json, "/read_p50_ms") > times[0], "{json}");
    assert!(number(&json, "/results_per_s") > 0.0);
    for part in PARTS {
        assert!(number(&json, &format!("/rss_bytes/{part}")) > 1e6, "{part}: {json}");
        assert!(number(&json, &format!("/cpu_s_per_1000/{part}")) >= 0.0, "{part}: {json}");
    }
    // Ten orders journalled, ten results kept: at the least so often an agent's disk was synced.
    assert!(number(&json, "/fsyncs_by/agents") >= 20.0, "{json}");
    assert!(number(&json, "/fsyncs_by/server") >= 2.0, "{json}");
    assert!(number(&json, "/wire_bytes/relay_up") > 0.0 && number(&json, "/wire_bytes/gateway_down") > 0.0, "{json}");
    // Bare TLS on as many connections, and how many times as much it took.
    assert_eq!(number(&json, "/reference/links"), 5.0, "{json}");
    for key in ["/reference/handshakes_ms", "/reference/sync_ms", "/ratio/p50_ms", "/ratio/p99_ms"] {
        assert!(number(&json, key) > 0.0, "{key}: {json}");
    }
    let times = number(&json, "/ratio/p50_ms") * number(&json, "/reference/p50_ms") / number(&json, "/p50_ms");
    assert!((0.9..1.1).contains(&times), "a ratio is of what stands beside it: {json}");
}

#[test]
fn several_relays_live_with_their_agents_and_a_second_run_enrols_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let tree = ["--mode", "fanout", "--relays", "2", "--rounds", "2", "--state", state.to_str().unwrap()];
    let json = measured_of("3", &tree);
    for (path, exact) in [("/relays", 2.0), ("/agents", 3.0), ("/results", 12.0), ("/missing", 0.0)] {
        assert_eq!(number(&json, path), exact, "{path}: {json}");
    }
    for part in ["server", "gateway", "relays_with_agents"] {
        assert!(number(&json, &format!("/rss_bytes/{part}")) > 1e6, "{part}: {json}");
    }
    for part in PARTS {
        assert!(number(&json, &format!("/cpu_s_per_1000/{part}")) >= 0.0, "{part}: {json}");
    }
    // Each order is journalled and each result kept by each of six agents; each relay commits for itself.
    assert!(number(&json, "/fsyncs_by/agents") >= 24.0, "{json}");
    assert!(number(&json, "/fsyncs_by/relay") >= 8.0, "{json}");
    let identity = |relay: u32, agent: u32| {
        let agent = format!("nodes/branch-{relay}-agents/pc-{relay}-{agent}/identity");
        let mut files: Vec<_> =
            std::fs::read_dir(state.join(agent)).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| std::fs::read(file).unwrap()).collect::<Vec<_>>()
    };
    let all = || (1..=2).flat_map(|relay| (1..=3).map(move |agent| (relay, agent)));
    let before: Vec<_> = all().map(|(relay, agent)| identity(relay, agent)).collect();
    let again = measured_of("3", &tree);
    assert_eq!((number(&again, "/results"), number(&again, "/missing")), (12.0, 0.0), "{again}");
    assert_eq!(all().map(|(relay, agent)| identity(relay, agent)).collect::<Vec<_>>(), before, "nobody enrolled again");
    let other =
        run(&["load", "--mode", "fanout", "--relays", "3", "--agents", "3", "--state", state.to_str().unwrap()]);
    assert_eq!((code(&other), stdout(&other).as_str()), (2, ""));
    assert!(stderr(&other).contains("--relays 2 --agents 3"), "{}", stderr(&other));
}

#[test]
fn a_tree_whose_journals_are_in_memory_is_used_again_and_not_after_it_lost_one() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let tree = [
        &["--mode", "fanout", "--relays", "2", "--rounds", "2", "--volatile-agents", "--unverified-agents"][..],
        &["--state", state.to_str().unwrap()],
    ]
    .concat();
    let rows = state.join("nodes/branch-2-agents/pc-2-3/agent.rows");
    for _ in 0..2 {
        let json = measured_of("3", &tree);
        assert_eq!((number(&json, "/results"), number(&json, "/missing")), (12.0, 0.0), "{json}");
        assert_eq!(number(&json, "/fsyncs_by/agents"), 0.0, "{json}");
        assert!(rows.exists(), "it is written down at the end");
    }
    std::fs::remove_file(&rows).unwrap();
    let lost = run(&[&["load", "--agents", "3"][..], &tree].concat());
    assert_ne!(code(&lost), 0, "{}", stdout(&lost));
    let log = std::fs::read_to_string(state.join("logs/branch-2.log")).unwrap();
    assert!(log.contains("in memory and is gone"), "{log}");
}

#[test]
fn links_are_measured_at_relay_and_gateway() {
    let json = measured(&["--mode", "links"]);
    for part in PARTS {
        // Few links drown in noise: only that each process was there and read is sure.
        assert!(number(&json, &format!("/pss_bytes/{part}")) > 1e6, "{part}: {json}");
        assert!(json["rss_per_link_bytes"][part].is_number(), "{part}: {json}");
    }
    for loaded in ["relay_after_load", "gateway_after_load"] {
        assert!(json["rss_per_link_bytes"][loaded].is_number(), "{loaded}: {json}");
    }
    assert_eq!(number(&json, "/missing"), 0.0, "every job had its results: {json}");
    // A whole agent is never free.
    assert!(number(&json, "/rss_per_link_bytes/agents") > 10_000.0, "{json}");
}

#[test]
fn what_crosses_a_late_branch_line_is_late_in_both_directions() {
    let json =
        measured_of("2", &["--mode", "fanout", "--rounds", "2", "--late", "100%:40ms", "--branch-line", "100mbit"]);
    assert_eq!((number(&json, "/results"), number(&json, "/missing")), (4.0, 0.0), "{json}");
    assert_eq!((number(&json, "/branch_line/late_ms"), number(&json, "/branch_line/bit_per_s")), (40.0, 1e8), "{json}");
    // An order goes down that line, and its results come up.
    assert!(number(&json, "/min_ms") >= 80.0, "{json}");
}

#[test]
fn after_a_storm_everybody_is_back_below_the_relay_and_below_the_gateway() {
    for (below, rate) in [("relay", None), ("gateway", Some("50"))] {
        let rated = rate.map_or(vec![], |rate| vec!["--rate", rate]);
        let json = measured(&[&["--mode", "storm", "--below", below][..], &rated].concat());
        let exact = [("/results", 5.0), ("/missing", 0.0), ("/refused", 0.0), ("/dialled_again", 0.0)];
        for (path, exact) in exact {
            assert_eq!(number(&json, path), exact, "{path}: {json}");
        }
        assert!(number(&json, "/lost_ms") > 0.0 && number(&json, "/total_ms") > number(&json, "/lost_ms"), "{json}");
        // The fifth of them dials 80 ms after the first.
        let pace = number(&json, "/total_ms") - number(&json, "/lost_ms");
        assert!(rate.is_none() || pace >= 80.0, "{json}");
        let times = ["/min_ms", "/p50_ms", "/p99_ms", "/max_ms"].map(|path| number(&json, path));
        assert!(times[0] > 0.0 && times.is_sorted(), "{json}");
        // Each greets with a number that is on its disk.
        assert!(number(&json, "/fsyncs_by/agents") >= 5.0, "{json}");
    }
}

#[test]
fn inventories_are_sent_whole_once_and_then_by_what_differs() {
    let json = measured(&["--mode", "inventory", "--reference"]);
    assert_eq!((number(&json, "/packages"), number(&json, "/missing")), (200.0, 0.0), "{json}");
    let line = |step: &str| number(&json, &format!("/{step}/branch_line_bytes_per_device"));
    for step in ["first_full", "one_changed", "unchanged", "reconnect"] {
        assert_eq!(number(&json, &format!("/{step}/results")), 5.0, "{step}: {json}");
        assert!(number(&json, &format!("/{step}/total_ms")) > 0.0, "{step}: {json}");
    }
    assert!(line("first_full") > 5_000.0, "200 packages have names and versions: {json}");
    assert!(line("one_changed") < line("first_full") / 4.0, "{json}");
    assert!(line("unchanged") < line("one_changed"), "{json}");
    assert!(number(&json, "/first_full/fsyncs_by/server") >= 1.0, "{json}");
    for key in ["/ratio/first_full_ms", "/ratio/reconnect_ms"] {
        assert!(number(&json, key) > 0.0, "{key}: {json}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_starts() {
    for (args, word) in [
        (&["--mode", "fanout", "--relays", "301"][..], "1 to 300"),
        (&["--mode", "links", "--relays", "2"], "fanout"),
        (&["--mode", "fanout", "--agents", "301"], "1 to 300"),
        (&["--mode", "links", "--agents", "3001"], "1 to 3000"),
        (&["--mode", "flood"], "fanout"),
        (&["--mode", "fanout", "--late", "101%:1ms"], "100 %"),
        (&["--mode", "fanout", "--branch-line", "7kbit"], "8kbit"),
        (&["--mode", "storm", "--agents", "3001"], "1 to 3000"),
        (&["--mode", "storm", "--relays", "2"], "fanout"),
        (&["--mode", "inventory", "--agents", "1001"], "1 to 1000"),
        (&["--mode", "inventory", "--rate", "5"], "storm"),
        (&["--mode", "fanout", "--relays", "2", "--reference"], "several relays"),
        (&[], "--mode"),
    ] {
        let output = run(&[&["load"], args].concat());
        assert_eq!((code(&output), stdout(&output).as_str()), (2, ""), "{args:?}");
        assert!(stderr(&output).contains(word), "{args:?}: {}", stderr(&output));
    }
}
