//! Wakes and notices between real processes: a device without a slot, and one that is stopped or killed.

use super::*;
use branchline_node::time::SystemClock;
use branchline_protocol::{
    datagram::{Datagram, DatagramKey, Kind},
    id::AttachmentKey,
};
use branchline_tests::office::until;
use std::net::{SocketAddr, UdpSocket};

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

fn send(bytes: &[u8], to: SocketAddr) {
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(bytes, to).unwrap();
}

#[test]
fn s_13_s_14_between_processes_a_wake_brings_a_device_and_a_notice_frees_its_slot() {
    let folder = tempfile::tempdir().unwrap();
    let topology = folder.path().join("one-slot");
    std::fs::create_dir(&topology).unwrap();
    std::fs::write(topology.join("topology.toml"), TOPOLOGY).unwrap();
    let office = Office::start(exe(), &topology);
    let (holder, holder_id) = with_link(&office, "persistent");
    let (sleeper, sleeper_id) = with_link(&office, "wakeable");
    let clock = SystemClock::shared();

    let begun = clock.mono();
    let on = format!("device:{sleeper_id}");
    let job = office.json(&["run", "--on", &on, "--wait", "--timeout", "60s", "--", "true"]);
    let woken = clock.mono().since(begun);
    assert_eq!(job["counts"]["succeeded"], 1, "{job}");
    assert!(counter(&office, "branchline_wakes_sent_total", "") >= 1.0);
    assert!(woken < 30_000, "{woken} ms, and the poll is an hour away");

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
    let (promoted, _) = with_link(&office, "persistent");
    assert_eq!(promoted, sleeper);
    println!(
        "woken and done after {woken} ms; shown as shut down after {shown} ms, the waiter has the slot after {} ms; each with \
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
