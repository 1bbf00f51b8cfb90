//! S-4: 400 devices for the 300 slots of a relay. Server, gateway and relay are processes of their own, the agents share
//! four, which wait for one another before any of them dials.

use super::{alone, exe};
use branchline_tests::office::{AgentHost, Barrier, Office, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const SLOTS: u64 = 300;
/// Milliseconds within which a job reaches a device that holds a slot.
const PERSISTENT_MS: u64 = 5_000;
/// A poll interval of 60 s, a tenth of it, and what a busy machine adds.
const POLLED_S: u64 = 90;
/// Each has a hundred agents.
const HOSTS: [&str; 4] = ["a", "b", "c", "d"];
/// Milliseconds within which all of them dial.
const DIALS_MS: i64 = 1_000;

const TOPOLOGY: &str = "[topology]\nname = 's4'\n[[tenant]]\nname = 'main'\nsites = ['hq', 'branch']\n\
    [server]\nname = 'hq'\naccept_from = 'gateway'\n[[gateway]]\nname = 'dmz'\n\
    [[relay]]\nname = 'branch'\nsite = 'branch'\nparent = 'dmz'\n\
    [[agents]]\nprefix = 'first'\ncount = 1\nsite = 'hq'\nparent = 'dmz'\n[job]\nargv = ['true']\n";

/// The relay's gauge as it tells it; it is never above the cap.
fn slots(office: &Office) -> Result<Value, String> {
    let url = format!("https://{}/getstatus", office.address("branch", "private"));
    let (_, status) = office.web_of("main").try_get(&url, "")?;
    let slots = status["figures"]["slots"].clone();
    let number = |key: &str| slots[key].as_u64().ok_or_else(|| format!("no {key} in {status}"));
    assert!(number("used")? <= SLOTS && number("peak")? <= SLOTS, "never above the cap: {slots}");
    Ok(slots)
}

fn slots_become(office: &Office, what: &str, secs: u64, used: u64, waiting: u64) {
    until(what, secs, || {
        let slots = slots(office)?;
        let there = slots["used"] == used && slots["waiting"] == waiting && slots["reserved"] == 0;
        if there { Ok(()) } else { Err(slots.to_string()) }
    });
}

fn host(office: &Office, name: &str, barrier: &Barrier) -> AgentHost {
    let names: Vec<String> = (1..=100).map(|n| format!("{name}-{n:03}")).collect();
    office.agent_host(name, "branch.bundle", &names, barrier)
}

/// All four hundred dialled first within a second, by their own records.
fn all_dialled_within_a_second(office: &Office) {
    let first = until("each has dialled", 60, || {
        let first: Vec<(String, i64)> = HOSTS.iter().flat_map(|host| office.first_dials(host)).collect();
        if first.len() == 400 { Ok(first) } else { Err(format!("{} have", first.len())) }
    });
    let nodes: BTreeSet<&String> = first.iter().map(|(node, _)| node).collect();
    let (begin, end) = (first.iter().map(|(_, at)| *at).min(), first.iter().map(|(_, at)| *at).max());
    let took = end.zip(begin).map(|(end, begin)| end - begin).expect("four hundred instants");
    println!("400 agents in four processes dialled within {took} ms");
    assert_eq!(nodes.len(), 400);
    assert!(took <= DIALS_MS, "all dial within a second, not within {took} ms");
}

/// The branch's devices, by how they are reached.
fn devices(office: &Office, link: &str) -> Vec<Value> {
    let all = office.json(&["devices", "--on", "site:branch"]);
    let all = all.as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|device| device["link"] == link && device["state"] == "online").collect()
}

#[test]
fn s_4_four_hundred_devices_share_three_hundred_slots() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder for the topology");
    let file = folder.path().join("s4.toml");
    std::fs::write(&file, TOPOLOGY).expect("the topology can be written");
    let office = Office::start(exe(), &file);
    office.json(&["settings", "set", "--poll-normal", "60"]);
    let bundle = ["bundle", "--role", "agent", "--site", "branch", "--parent", "branch", "--uses", "400"];
    office.json(&[&bundle[..], &["--out", "branch.bundle"]].concat());
    let barrier = Barrier::closed();
    let _hosts = HOSTS.map(|name| host(&office, name, &barrier));
    let mut led = barrier.open(HOSTS.len(), 300);
    all_dialled_within_a_second(&office);
    until("four hundred devices are managed", 300, || {
        slots(&office)?;
        let there = devices(&office, "persistent").len() + devices(&office, "polling").len();
        if there == 400 { Ok(()) } else { Err(format!("{there} are")) }
    });
    slots_become(&office, "300 hold, 100 wait", 60, SLOTS, 100);
    let waiting = devices(&office, "polling");
    assert!(waiting.iter().all(|device| device["slot"]["waiter"].as_u64() > Some(0)), "each knows its number");
    assert!(waiting.iter().all(|device| device["delay"]["normal_ms"] == 66_000), "and what it is promised");

    let first = office.order("site:branch", &["true"]);
    let done = office.completed(&first, POLLED_S);
    assert_eq!((&done["counts"]["succeeded"], &done["complete"]), (&json!(400), &json!(true)));
    let all: Vec<Value> = devices(&office, "persistent").into_iter().chain(devices(&office, "polling")).collect();
    let delay = |device: &Value| match &device["delay"]["last_job"] {
        last if last["job"] == first.as_str() => last["delay_ms"].as_u64().unwrap_or(u64::MAX),
        _ => u64::MAX,
    };
    let at_once = all.iter().filter(|device| delay(device) <= PERSISTENT_MS).count();
    assert!(at_once >= 300, "{at_once} within 5 s");
    assert!(all.iter().all(|device| delay(device) <= POLLED_S * 1_000));

    for device in devices(&office, "persistent").iter().take(20) {
        let name = device["name"].as_str().expect("it has a name");
        led.stop(&name[..1], name);
    }
    slots_become(&office, "the twenty that waited longest have their slots", POLLED_S, SLOTS, 80);
    let second = office.order("site:branch", &["true"]);
    let counts = until("it reached all that are there", POLLED_S, || {
        let counts = office.json(&["job", &second])["counts"].clone();
        if counts["succeeded"] == 380 { Ok(counts) } else { Err(counts.to_string()) }
    });
    assert_eq!(counts["queued"], 20, "{counts}");

    let old = office.kill("branch");
    office.restarted("branch", old);
    until("380 are back, 300 of them with a slot", 300, || {
        let slots = slots(&office)?;
        let there = devices(&office, "persistent").len() + devices(&office, "polling").len();
        if slots["used"] == SLOTS && there == 380 { Ok(()) } else { Err(format!("{there}: {slots}")) }
    });
    for (job, succeeded, queued) in [(&first, 400, 0), (&second, 380, 20)] {
        let counts = office.json(&["job", job])["counts"].clone();
        assert_eq!(
            (&counts["succeeded"], &counts["queued"]),
            (&json!(succeeded), &json!(queued)),
            "once each: {counts}"
        );
    }
}
