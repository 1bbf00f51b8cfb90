//! Processes that die and come back.

use super::*;
use branchline_tests::office::until;
use std::collections::BTreeSet;

#[test]
fn a_relay_that_is_down_shows_its_devices_as_unknown_and_its_jobs_wait() {
    let office = start("satellite-office");
    office.hold_down("osaka");
    // While its relay is away nobody can say of a device behind it that it is on or off.
    until("all of osaka is unknown", 60, || {
        let devices = office.json(&["devices", "--on", "site:osaka"]);
        let behind = |d: &&Value| d["state"] == "unknown" && d["state_reason"] == "behind osaka";
        if devices.as_array().unwrap().iter().filter(behind).count() == 20 { Ok(()) } else { Err(devices.to_string()) }
    });
    let tree = office.json(&["tree"]);
    let node = |name: &str| list(&tree, "nodes").iter().find(|n| n["name"] == name).unwrap();
    assert!(node("osaka")["unreachable_since"].as_str().is_some_and(|s| s.ends_with('Z')), "{}", node("osaka"));
    assert_ne!(node("osaka")["state"], "online");
    assert!(node("dmz")["unreachable_since"].is_null());
    let roaming = office.json(&["devices", "--on", "site:roaming"]);
    assert!(roaming.as_array().unwrap().iter().all(|d| d["state"] == "online"), "{roaming}");
    // Who is not behind it works on, who is waits.
    let job = office.order("all", &["uname", "-s"]);
    let last = until("the two roaming devices answer", 60, || {
        let last = office.json(&["job", &job]);
        if last["counts"]["succeeded"] == 2 { Ok(last) } else { Err(last.to_string()) }
    });
    let waiting = last["counts"]["queued"].as_u64().unwrap() + last["counts"]["delivered"].as_u64().unwrap();
    assert_eq!((waiting, &last["complete"]), (20, &false.into()), "{last}");
    office.let_start("osaka");
    office.online("site:osaka", 20, 90);
    let done = office.completed(&job, 90);
    assert_eq!(done["counts"]["succeeded"], 22, "{done}");
    assert_counts_agree(&done);
    assert!(list(&done, "results").iter().all(|r| r["stdout"] == "Linux\n"), "{done}");
    let tree = office.json(&["tree"]);
    let osaka = list(&tree, "nodes").iter().find(|n| n["name"] == "osaka").unwrap();
    assert!(osaka["state"] == "online" && osaka["unreachable_since"].is_null(), "{osaka}");
}

#[test]
fn rly_7_a_relay_killed_while_it_is_cut_off_loses_no_result_it_holds() {
    let office = start("satellite-office");
    // The runs end only when this file is there: after the cut.
    let go = office.folder().join("go");
    let wait = format!("while [ ! -e {} ]; do sleep 0.1; done; echo late", go.display());
    let job = office.order("site:osaka", &["sh", "-c", &wait]);
    until("all twenty have it", 60, || {
        let job = office.json(&["job", &job]);
        if job["counts"]["queued"] == 0 { Ok(()) } else { Err(job.to_string()) }
    });
    office.hold_down("dmz");
    std::fs::write(&go, "").unwrap();
    let (web, relay) = (office.web_of("main"), format!("https://{}", office.address("osaka", "private")));
    until("the relay holds twenty results", 60, || {
        let status: Value = serde_json::from_str(&web.text(&format!("{relay}/getstatus"))).unwrap();
        if status["figures"]["queues"]["spool_records"].as_u64() >= Some(20) { Ok(()) } else { Err(status.to_string()) }
    });
    assert_eq!(office.json(&["job", &job])["counts"]["succeeded"], 0, "the server cannot know yet");
    let old = office.kill("osaka");
    office.restarted("osaka", old);
    office.let_start("dmz");
    let done = office.completed(&job, 120);
    assert_eq!(done["counts"]["succeeded"], 20, "{done}");
    assert!(list(&done, "results").iter().all(|r| r["stdout"] == "late\n"), "{done}");
    assert_counts_agree(&done);
}

#[test]
fn a_relay_that_is_killed_comes_back_where_its_children_look_for_it() {
    let office = satellite_office_of_its_own();
    let before = office.node("osaka");
    let old = office.kill("osaka");
    office.restarted("osaka", old);
    office.online("all", 22, 90);
    let after = office.node("osaka");
    assert_eq!(after["id"], before["id"], "the same node");
    assert_eq!(after["addresses"], before["addresses"], "at the same addresses");
    assert!(after["restarts"].as_u64() >= Some(1), "{after}");
    let job = office.json(&["run", "--on", "all", "--wait", "--timeout", "90s", "--", "true"]);
    assert_eq!(job["counts"]["succeeded"], 22);
}

#[test]
fn a_job_that_was_accepted_outlives_the_server() {
    let office = satellite_office_of_its_own();
    let mut jobs = BTreeSet::new();
    for round in 0..3 {
        // Its id is out: from here on the order may not be lost.
        let job = office.order("all", &["echo", &format!("round {round}")]);
        let old = office.kill("hq");
        office.restarted("hq", old);
        let done = office.completed(&job, 120);
        assert_eq!(done["counts"]["succeeded"], 22, "{done}\n{}", office.logs());
        assert_counts_agree(&done);
        let said = format!("round {round}\n");
        assert!(list(&done, "results").iter().all(|r| r["stdout"] == said.as_str()), "{done}");
        assert!(jobs.insert(job), "a job number is never given twice");
    }
    office.online("all", 22, 90);
    let listed = office.json(&["jobs"]);
    assert_eq!(listed.as_array().unwrap().len(), 3 + 1, "three and the example's own: {listed}");
}

/// One that the test may disturb.
fn satellite_office_of_its_own() -> Office {
    start("satellite-office")
}
