//! Wakes and notices between real processes: a device without a slot, and one that is stopped or killed. Alone on the
//! machine: its bounds are a user's.

use super::{alone, exe};
use branchline_node::time::SystemClock;
use branchline_protocol::{
    datagram::{Datagram, DatagramKey, Kind},
    id::AttachmentKey,
};
use branchline_tests::office::{Office, until};
use serde_json::Value;
use std::net::{SocketAddr, UdpSocket};

/// Milliseconds from an order to the poll that its wake brings (S-14).
const POLLED_MS: u64 = 2_000;
/// Milliseconds within which a device that stopped is shown so (S-13).
const OFF_MS: u64 = 2_000;
/// A wake brings a device at most every 5 s: after so many milliseconds without contact it comes at once.
const RESTED_MS: i64 = 6_000;
/// One slot at the relay for two devices: the other polls, an hour apart.
const TOPOLOGY: &str = r#"
[topology]
name = "one-slot"

[[tenant]]
name = "main"
sites = ["osaka"]

[server]
name = "hq"

[[relay]]
name = "osaka"
site = "osaka"
parent = "hq"
slots = 1

[[agents]]
prefix = "pc"
count = 2
site = "osaka"
parent = "osaka"

[job]
on = "all"
argv = ["true"]
"#;

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}"))
}

fn counter(office: &Office, name: &str, labels: &str) -> f64 {
    let relay = format!("https://{}", office.address("osaka", "private"));
    office.web_of("main").metric(&relay, name, labels)
}

/// Name and id of the device with this link.
fn with_link(office: &Office, link: &str) -> (String, String) {
    until(&format!("one device is {link}"), 60, || {
        let devices = office.json(&["devices"]);
        let found = devices.as_array().and_then(|all| all.iter().find(|d| d["link"] == link));
        found.map(|d| (text(d, "name").to_string(), text(d, "id").to_string())).ok_or_else(|| devices.to_string())
    })
}

/// How many links a device has had, by its own word.
fn polls(office: &Office, name: &str) -> u64 {
    let url = format!("https://{}/getstatus", office.address(name, "private"));
    let (_, status) = office.web_of("main").try_get(&url, "").expect("the device tells");
    status["figures"]["attachment"].as_u64().unwrap_or_else(|| panic!("no attachment in {status}"))
}

/// Waits until a device without a slot was away for so long that a wake brings it at once; when its next poll is due.
fn rested(office: &Office, id: &str) -> String {
    let clock = SystemClock::shared();
    until("it has been away for a while", 60, || {
        let device = office.device(id);
        let last: jiff::Timestamp = text(&device, "last_contact").parse().expect("an instant");
        let away = clock.wall().0 - last.as_millisecond();
        let due = device["next_contact"].as_str().filter(|_| away >= RESTED_MS && device["link"] == "wakeable");
        due.map(str::to_owned).ok_or_else(|| device.to_string())
    })
}

fn send(bytes: &[u8], to: SocketAddr) {
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(bytes, to).unwrap();
}

fn one_slot() -> Office {
    let folder = tempfile::tempdir().unwrap();
    let topology = folder.path().join("one-slot");
    std::fs::create_dir(&topology).unwrap();
    std::fs::write(topology.join("topology.toml"), TOPOLOGY).unwrap();
    Office::start(exe(), &topology)
}

#[test]
fn s_14_between_processes_with_the_port_closed_the_job_is_done_at_the_poll() {
    let _alone = alone();
    let office = one_slot();
    let (sleeper, id) = with_link(&office, "wakeable");
    let on = format!("device:{id}");
    // A minute is the shortest interval; the device has it with the job that a wake brings it for.
    office.json(&["settings", "set", "--poll-normal", "60"]);
    office.completed(&office.order(&on, &["true"]), 60);
    office.stop_node(&sleeper);
    let config = office.state().join("config").join(format!("{sleeper}.held"));
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("wake = false\n{text}")).unwrap();
    office.let_start(&sleeper);
    until("it is back, and hears no wakes", 60, || {
        let device = office.device(&id);
        let back = device["state"] == "online" && device["link"] == "polling";
        let fresh = back && polls(&office, &sleeper) > 0 && device["delay"]["normal_ms"] == 66_000;
        if fresh { Ok(()) } else { Err(device.to_string()) }
    });
    let sent = counter(&office, "branchline_wakes_sent_total", "");
    let clock = SystemClock::shared();
    let begun = clock.mono();
    let done = office.completed(&office.order(&on, &["true"]), 90);
    assert_eq!(done["counts"]["succeeded"], 1, "{done}");
    println!("done at its poll after {} ms", clock.mono().since(begun));
    assert_eq!(counter(&office, "branchline_wakes_sent_total", ""), sent, "nobody knocked");
}

#[test]
fn s_13_s_14_between_processes_a_wake_brings_a_device_and_a_notice_frees_its_slot() {
    let _alone = alone();
    let office = one_slot();
    let (holder, holder_id) = with_link(&office, "persistent");
    let (sleeper, sleeper_id) = with_link(&office, "wakeable");
    let clock = SystemClock::shared();

    let due = rested(&office, &sleeper_id);
    let links = polls(&office, &sleeper);
    let begun = clock.mono();
    let job = office.order(&format!("device:{sleeper_id}"), &["true"]);
    until("it polls", 60, || if polls(&office, &sleeper) > links { Ok(()) } else { Err("it sleeps".into()) });
    let polled = clock.mono().since(begun);
    let done = office.completed(&job, 60);
    let woken = clock.mono().since(begun);
    assert_eq!(done["counts"]["succeeded"], 1, "{done}");
    assert!(polled <= POLLED_MS, "the poll came after {polled} ms");
    assert!(counter(&office, "branchline_wakes_sent_total", "") >= 1.0);
    assert_eq!(rested(&office, &sleeper_id), due, "the next poll by the schedule is the one that it was before");

    // What a stranger sends who knows everything but the keys.
    let forged = |kind, id: &str| {
        let (device, key) = (id.parse().unwrap(), AttachmentKey { epoch: 1, attachment: 1 });
        Datagram { kind, device, key, counter: u64::MAX, at: clock.wall() }.seal(&DatagramKey([0; 32]))
    };
    send(&forged(Kind::Notice, &holder_id), office.address("osaka", "notice"));
    send(&forged(Kind::Wake, &sleeper_id), office.address(&sleeper, "wake"));
    until("the forged notice is counted", 30, || {
        let bad = counter(&office, "branchline_notices_total", "\"bad_seal\"");
        let other = counter(&office, "branchline_notices_total", "\"other_link\"");
        if bad + other == 1.0 { Ok(()) } else { Err(format!("{bad} and {other}")) }
    });
    assert_eq!(text(&office.device(&holder_id), "link"), "persistent");

    let begun = clock.mono();
    office.stop_node(&holder);
    let state = |id: &str, state: &str, reason: &str| {
        until(&format!("it is {state} ({reason})"), 60, || {
            let device = office.device(id);
            let is = device["state"] == state && device["state_reason"] == reason;
            if is { Ok(()) } else { Err(device.to_string()) }
        });
    };
    state(&holder_id, "offline", "shutdown");
    let shown = clock.mono().since(begun);
    assert!(shown <= OFF_MS, "shown as shut down after {shown} ms");
    let (promoted, _) = with_link(&office, "persistent");
    assert_eq!(promoted, sleeper);
    println!(
        "polls after {polled} ms, done after {woken} ms; shown as shut down after {shown} ms, the waiter has the slot after {} ms; each with \
         the command's own time",
        clock.mono().since(begun)
    );
    office.let_start(&holder);
    office.online("all", 2, 60);

    // A killed one says nothing.
    office.hold_down(&sleeper);
    state(&sleeper_id, "offline", "timeout");
    office.let_start(&sleeper);
    office.online("all", 2, 60);
}
