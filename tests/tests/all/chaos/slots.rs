//! S-4: 400 devices for the 300 slots of a relay. Server, gateway and relay are processes of their own, the agents share
//! four, which wait for one another before any of them dials.

use super::{alone, exe};
use branchline_node::time::SystemClock;
use branchline_tests::office::{AgentHost, Barrier, Led, Office, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const SLOTS: u64 = 300;
/// Milliseconds within which a job reaches a device that holds a slot.
const PERSISTENT_MS: u64 = 5_000;
/// Milliseconds from a device's end until the longest waiter has its slot.
const PROMOTED_MS: u64 = 5_000;
/// A wake brings a device at most every 5 s: after so many without contact it comes at once.
const RESTED_MS: i64 = 6_000;
/// Seconds for what is to happen by wakes alone: no poll is due for an hour.
const WOKEN_S: u64 = 60;
/// Each has a hundred agents.
const HOSTS: [&str; 4] = ["a", "b", "c", "d"];
/// Milliseconds within which all of them dial.
const DIALS_MS: i64 = 1_000;

const TOPOLOGY: &str = "[topology]\nname = 's4'\n[[tenant]]\nname = 'main'\nsites = ['hq', 'branch']\n\
    [server]\nname = 'hq'\naccept_from = 'gateway'\n[[gateway]]\nname = 'dmz'\n\
    [[relay]]\nname = 'branch'\nsite = 'branch'\nparent = 'dmz'\n\
    [[agents]]\nprefix = 'first'\ncount = 1\nsite = 'hq'\nparent = 'dmz'\n[job]\nargv = ['true']\n";

/// The relay's gauge as it tells it; it is never above the cap.
fn slots_of(office: &Office) -> Result<Value, String> {
    let url = format!("https://{}/getstatus", office.address("branch", "private"));
    let (_, status) = office.web_of("main").try_get(&url, "")?;
    let slots = status["figures"]["slots"].clone();
    let number = |key: &str| slots[key].as_u64().ok_or_else(|| format!("no {key} in {status}"));
    assert!(number("used")? <= SLOTS && number("peak")? <= SLOTS, "never above the cap: {slots}");
    Ok(slots)
}

fn slots_become(office: &Office, what: &str, secs: u64, used: u64, waiting: u64) {
    until(what, secs, || {
        let slots = slots_of(office)?;
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

/// The branch's devices that are online, by how they are reached.
fn devices(office: &Office, link: &str) -> Vec<Value> {
    let all = office.json(&["devices", "--on", "site:branch"]);
    let all = all.as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|device| device["link"] == link && device["state"] == "online").collect()
}

fn names<'a>(devices: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    devices.into_iter().map(|device| device["name"].as_str().expect("it has a name").to_owned()).collect()
}

/// Milliseconds since 1970 of an instant that a device's object tells.
fn instant(told: &Value) -> i64 {
    let instant = told.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    instant.unwrap_or_else(|| panic!("{told} is no instant")).as_millisecond()
}

/// Those that wait, as soon as a wake would bring each of them at once.
fn rested(office: &Office, waiting: usize) -> Vec<Value> {
    let clock = SystemClock::shared();
    until("all that wait have been away for a while", WOKEN_S, || {
        let waiters = devices(office, "wakeable");
        let newest = waiters.iter().map(|device| instant(&device["last_contact"])).max();
        let away = newest.map(|newest| clock.wall().0 - newest);
        if waiters.len() == waiting && away >= Some(RESTED_MS) {
            Ok(waiters)
        } else {
            Err(format!("{} wait, the last contact was {away:?} ms ago", waiters.len()))
        }
    })
}

/// Twenty that hold a slot stop; the twenty that waited longest have their slots in time.
fn twenty_leave(office: &Office, led: &mut Led) {
    let waiters = rested(office, 100);
    let leaving = names(devices(office, "persistent").iter().take(20));
    let clock = SystemClock::shared();
    let begun = clock.mono();
    leaving.iter().for_each(|name| led.stop(&name[..1], name));
    slots_become(office, "the slots are taken again", WOKEN_S, SLOTS, 80);
    let took = clock.mono().since(begun);
    println!("twenty left, and as many had their slots {took} ms later");
    assert!(took <= PROMOTED_MS, "within 5 s, not after {took} ms");
    until("the server sees who has them", WOKEN_S, || {
        let (holders, waiting) = (names(&devices(office, "persistent")), names(&devices(office, "wakeable")));
        let told = holders.len() == 300 && waiting.len() == 80 && holders.is_disjoint(&leaving);
        if told { Ok(()) } else { Err(format!("{} hold, {} wait", holders.len(), waiting.len())) }
    });
    let holders = names(&devices(office, "persistent"));
    let (promoted, left): (Vec<&Value>, Vec<&Value>) =
        waiters.iter().partition(|device| device["name"].as_str().is_some_and(|name| holders.contains(name)));
    assert_eq!((promoted.len(), left.len()), (20, 80));
    let number = |device: &&Value| device["slot"]["waiter"].as_u64().expect("its number in line");
    let (mut first, rest): (Vec<u64>, Vec<u64>) =
        (promoted.iter().map(number).collect(), left.iter().map(number).collect());
    first.sort_unstable();
    assert_eq!(first, Vec::from_iter(1..=20), "the longest waiters, and nobody else; {rest:?} wait on");
}

/// What `tree` tells an administrator: who holds slots, who waits since when, and what delay each class has (CON-4).
fn tree_tells(office: &Office) {
    // A relay tells its figures upward once a minute.
    let tree = until("the server has the relay's newest figures", 90, || {
        let tree = office.json(&["tree"]);
        let relay =
            tree["nodes"].as_array().and_then(|nodes| nodes.iter().find(|node| node["name"] == "branch").cloned());
        let slots = relay.map(|relay| relay["slots"].clone()).unwrap_or_default();
        if slots["used"] == 300 && slots["waiting"] == 80 { Ok(tree) } else { Err(slots.to_string()) }
    });
    let nodes = tree["nodes"].as_array().expect("a list of nodes");
    let relay = nodes.iter().find(|node| node["name"] == "branch").expect("the relay");
    let delays = json!({
        "persistent": { "devices": 300, "urgent_ms": 5_000, "normal_ms": 5_000 },
        "wakeable": { "devices": 80, "urgent_ms": 3_960_000, "normal_ms": 3_960_000 },
    });
    assert_eq!(relay["delays"], delays);
    let below = || nodes.iter().filter(|node| node["parent"] == relay["id"] && node["slot"].is_object());
    let waits = |node: &&Value| node["slot"]["waiter"].as_u64() > Some(0);
    assert_eq!((below().count(), below().filter(waits).count()), (380, 80));
    assert!(below().all(|node| instant(&node["slot"]["since"]) > 0));
    let text = office.command(&["tree"]).stdout;
    let lines = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    assert_eq!(
        (lines(" in line since "), lines(" held since ")),
        (80, 301),
        "the relay's, and one at the server: {text}"
    );
    let all = "300 persistent within 5 s, 80 wakeable within 66 min";
    assert!(text.contains(all), "{all} in {text}");
}

#[test]
fn s_4_four_hundred_devices_share_three_hundred_slots() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder for the topology");
    let file = folder.path().join("s4.toml");
    std::fs::write(&file, TOPOLOGY).expect("the topology can be written");
    let office = Office::start(exe(), &file);
    let bundle = ["bundle", "--role", "agent", "--site", "branch", "--parent", "branch", "--uses", "400"];
    office.json(&[&bundle[..], &["--out", "branch.bundle"]].concat());
    let barrier = Barrier::closed();
    let _hosts = HOSTS.map(|name| host(&office, name, &barrier));
    let mut led = barrier.open(HOSTS.len(), 300);
    all_dialled_within_a_second(&office);
    until("four hundred devices are managed", 300, || {
        slots_of(&office)?;
        let there = devices(&office, "persistent").len() + devices(&office, "wakeable").len();
        if there == 400 { Ok(()) } else { Err(format!("{there} are")) }
    });
    slots_become(&office, "300 hold, 100 wait", 60, SLOTS, 100);
    let waiting = rested(&office, 100);
    assert!(waiting.iter().all(|device| device["slot"]["waiter"].as_u64() > Some(0)), "each knows its number");
    assert!(waiting.iter().all(|device| device["delay"]["normal_ms"] == 3_960_000), "and what it is promised");

    let first = office.order("site:branch", &["true"]);
    let done = office.completed(&first, WOKEN_S);
    assert_eq!((&done["counts"]["succeeded"], &done["complete"]), (&json!(400), &json!(true)));
    let all: Vec<Value> = devices(&office, "persistent").into_iter().chain(devices(&office, "wakeable")).collect();
    let delay = |device: &Value| match &device["delay"]["last_job"] {
        last if last["job"] == first.as_str() => last["delay_ms"].as_u64().unwrap_or(u64::MAX),
        _ => u64::MAX,
    };
    let at_once = all.iter().filter(|device| delay(device) <= PERSISTENT_MS).count();
    let slowest = all.iter().map(delay).max();
    println!("{at_once} had the job within 5 s, the slowest after {slowest:?} ms");
    assert!(all.len() == 400 && at_once >= 300, "{at_once} of {} within 5 s", all.len());

    twenty_leave(&office, &mut led);
    tree_tells(&office);
    let second = office.order("site:branch", &["true"]);
    let counts = until("it reached all that are there", WOKEN_S, || {
        let counts = office.json(&["job", &second])["counts"].clone();
        if counts["succeeded"] == 380 { Ok(counts) } else { Err(counts.to_string()) }
    });
    assert_eq!(counts["queued"], 20, "{counts}");

    let old = office.kill("branch");
    office.restarted("branch", old);
    // The relay never has more than 300, which each look asserts; a few may have gone round it to the server.
    let slots = until("those that held a slot are back", 300, || {
        let slots = slots_of(&office)?;
        if slots["used"].as_u64() >= Some(SLOTS - 15) { Ok(slots) } else { Err(slots.to_string()) }
    });
    println!("after the restart: {slots}");
    // All 380 are managed: those that sleep are woken by a relay that has only its disk to know them by.
    let third = office.order("site:branch", &["true"]);
    until("a third job reaches all", 2 * WOKEN_S, || {
        slots_of(&office)?;
        let counts = office.json(&["job", &third])["counts"].clone();
        if counts["succeeded"] == 380 { Ok(()) } else { Err(counts.to_string()) }
    });
    for (job, succeeded, queued) in [(&first, 400, 0), (&second, 380, 20), (&third, 380, 20)] {
        let counts = office.json(&["job", job])["counts"].clone();
        assert_eq!(
            (&counts["succeeded"], &counts["queued"]),
            (&json!(succeeded), &json!(queued)),
            "once each: {counts}"
        );
    }
}
