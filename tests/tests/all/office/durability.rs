//! Processes killed in the middle of work, several times: nothing accepted is lost, nothing starts twice.

use super::*;
use branchline_tests::office::until;
use std::{collections::BTreeSet, path::Path};

/// Each start leaves one line in the device's own file; the runs end spread over a second, so that some results are
/// always on their way.
fn script(office: &Office, folder: &Path) -> String {
    let path = office.folder().join("work.sh");
    let text = format!(
        "echo started >> {}/$BRANCHLINE_DEVICE\nsleep 0.$(( $$ % 10 ))\necho done by $BRANCHLINE_DEVICE\n",
        folder.display()
    );
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_string()
}

/// Three rounds: a job on all devices, `disturb` while it runs; then every account must agree. `killed` are the agents
/// that `disturb` may kill: of theirs alone it may stay unknown whether a run began.
fn rounds(killed: &[&str], disturb: impl Fn(&Office, &str, usize)) {
    let office = start("satellite-office");
    let ids = device_ids(&office);
    let killed: BTreeSet<&str> = killed.iter().map(|name| ids[*name].as_str()).collect();
    let devices: BTreeSet<String> = ids.values().cloned().collect();
    assert_eq!(devices.len(), 22);
    let mut ends = vec![];
    for round in 0..3 {
        let folder = office.folder().join(format!("round-{round}"));
        std::fs::create_dir(&folder).unwrap();
        let job = office.json(&["run", "--on", "all", "--script", &script(&office, &folder)]);
        let id = text(&job, "id").to_string();
        disturb(&office, &id, round);
        let done = office.completed(&id, 180);
        assert_accounts_agree(&office, &devices, &killed, &folder, &done);
        office.online("all", 22, 120);
        ends.push((id, folder, done));
    }
    // What was offered again after every end has changed none of them.
    for (id, folder, done) in ends {
        let now = office.json(&["job", &id]);
        assert_eq!(now["results"], done["results"], "an end changed");
        assert_accounts_agree(&office, &devices, &killed, &folder, &now);
    }
}

/// One end for every device, one start at most, and what the server says agrees with what the devices did.
fn assert_accounts_agree(
    office: &Office,
    devices: &BTreeSet<String>,
    killed: &BTreeSet<&str>,
    folder: &Path,
    job: &Value,
) {
    assert_counts_agree(job);
    let rows: BTreeSet<String> = list(job, "results").iter().map(|r| text(r, "device").to_string()).collect();
    assert_eq!(&rows, devices, "every (job, device) pair has an end");
    for row in list(job, "results") {
        let device = text(row, "device");
        let lines = std::fs::read_to_string(folder.join(device)).unwrap_or_default().lines().count();
        assert!(lines <= 1, "{device} started {lines} times: {row}\n{}", office.logs());
        match text(row, "state") {
            "succeeded" => {
                assert_eq!(lines, 1, "{device} is said to have run and did not: {row}");
                assert_eq!(row["stdout"], format!("done by {device}\n"), "{row}");
            }
            // Its agent died between the intent and the shim's first sign: it may or may not have started.
            "outcome_unknown" if killed.contains(device) => {}
            other => panic!("{device} ended as {other}: {row}\n{}", office.logs()),
        }
    }
}

/// Waits until at least `n` devices ended: the job is in the middle of its results.
fn until_ended(office: &Office, job: &str, n: u64) {
    until(&format!("{n} devices ended"), 60, || {
        let ran = office.command(&["--json", "job", job]);
        let ended = if ran.code == 0 { ran.json()["counts"]["succeeded"].as_u64() } else { None };
        if ended >= Some(n) { Ok(()) } else { Err(ran.stdout) }
    });
}

#[test]
fn a_relay_killed_between_store_and_acknowledgement_loses_nothing() {
    rounds(&[], |office, job, round| {
        // Twice in each round, in another phase of the work: orders going down, results going up.
        until_ended(office, job, [0, 3, 8][round]);
        let old = office.kill("osaka");
        office.restarted("osaka", old);
        until_ended(office, job, [1, 6, 12][round]);
        let old = office.kill("osaka");
        office.restarted("osaka", old);
    });
}

#[test]
fn an_agent_killed_between_store_and_acknowledgement_loses_nothing_and_starts_nothing_twice() {
    let agents = ["osaka-pc-01", "osaka-pc-02", "osaka-pc-03", "roaming-01"];
    rounds(&agents, |office, job, round| {
        let first: Vec<u32> = agents.iter().map(|a| office.kill(a)).collect();
        agents.iter().zip(first).for_each(|(agent, old)| office.restarted(agent, old));
        until_ended(office, job, [2, 8, 16][round]);
        agents[..2].iter().for_each(|agent| {
            office.kill(agent);
        });
    });
}

#[test]
fn relay_and_agents_killed_together_lose_nothing() {
    let agents = ["osaka-pc-04", "osaka-pc-05"];
    rounds(&agents, |office, job, round| {
        until_ended(office, job, [0, 2, 5][round]);
        let old: Vec<u32> = ["osaka"].iter().chain(&agents).map(|n| office.kill(n)).collect();
        ["osaka"].iter().chain(&agents).zip(old).for_each(|(name, old)| office.restarted(name, old));
    });
}
