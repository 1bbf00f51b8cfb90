//! Wakes: a device without a slot does not wait for its poll, and nothing that comes by UDP makes it do more than poll.

use super::{MAIN, SHIM};
use branchline_agent::decide::WakeKey;
use branchline_node::{supervise::ChildLife, time::SystemClock};
use branchline_protocol::{
    datagram::{DATAGRAM_BYTES, Datagram, DatagramKey, Kind},
    wire::Contact,
};
use branchline_tests::tree::{RelayWish, Tree, eventually, holds, logs, platform, scenario};
use serde_json::{Value, json};
use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

const RELAY: &str = "osaka";
const PC: &str = "pc-1";
/// Fifty minutes: nothing in a scenario is a poll by the schedule.
const FAR: u64 = 3_000;

/// A device that polls, and whether it can be woken, below this parent.
async fn sleeper(tree: &mut Tree, parent: &str, wake: bool) {
    let wish = |config: &mut branchline_agent::AgentConfig| {
        config.contact = Contact::Poll;
        config.wake_port = wake.then_some(0);
    };
    tree.agent_with(MAIN, PC, parent, platform::simulated(1, ""), wish).await;
    tree.online(MAIN, [PC]).await;
}

pub(super) async fn below_a_relay(wake: bool) -> Tree {
    let mut tree = Tree::start(SHIM, &[MAIN]).await;
    let wish = RelayWish { poll_interval_s: FAR, ..RelayWish::default() };
    tree.relay(MAIN, RELAY, "server", wish).await;
    sleeper(&mut tree, RELAY, wake).await;
    tree
}

async fn device(tree: &Tree) -> Value {
    tree.devices(MAIN).await.remove(PC).unwrap_or_default()
}

/// Waits until the device has said everything and waits for its far poll; how many links it had.
pub(super) async fn asleep(tree: &Tree) -> u64 {
    eventually("its inventory is at the server", async || {
        let device = device(tree).await;
        holds(device["inventory"]["digest"].is_string(), device)
    })
    .await;
    let id = tree.id(PC).to_string();
    eventually("the device waits for its poll", async || {
        let lines =
            logs::lines(|l| l.text.contains(&id) && (l.text.contains("link up") || l.text.contains("link down")));
        let wait = |line: &logs::Line| line.text.split(" wait_ms=").nth(1)?.split(' ').next()?.parse::<u64>().ok();
        let rests = lines.last().and_then(wait).is_some_and(|ms| ms > 10_000);
        holds(rests, lines.last())
    })
    .await;
    links(tree)
}

pub(super) fn links(tree: &Tree) -> u64 {
    tree.running(PC).figures().borrow().attachment
}

/// A count of the device's by its result.
pub(super) fn count(tree: &Tree, result: &str) -> u64 {
    let page = tree.running(PC).metrics().render();
    let line = page.lines().find(|l| l.starts_with("branchline_wakes_total") && l.contains(&format!("\"{result}\"")));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

async fn counts(tree: &Tree, result: &str, wanted: u64) {
    eventually("it is counted", async || holds(count(tree, result) == wanted, count(tree, result))).await;
}

pub(super) fn newest(tree: &Tree) -> WakeKey {
    tree.running(PC).wake_keys().newest.expect("a key of the last link")
}

pub(super) fn port(tree: &Tree) -> SocketAddr {
    use branchline_node::process::RunningNode;
    tree.running(PC).started().addresses["wake"]
}

/// A wake as the parent would send it.
pub(super) fn wake(tree: &Tree, key: &WakeKey, counter: u64) -> Datagram {
    let at = SystemClock::shared().wall();
    Datagram { kind: Kind::Wake, device: tree.id(PC), key: key.link, counter, at }
}

pub(super) async fn refresh(tree: &Tree) -> Value {
    tree.api(MAIN).post(format!("/api/v1/devices/{PC}/refresh"), Value::Null).await.good()
}

#[test]
fn s_14_adm_15_a_job_for_a_device_whose_poll_is_far_is_there_within_two_seconds() {
    scenario(async {
        let tree = below_a_relay(true).await;
        let before = asleep(&tree).await;
        assert_eq!(device(&tree).await["link"], "wakeable");
        let clock = SystemClock::shared();
        let ordered = clock.mono();
        let job = refresh(&tree).await;
        eventually("it polls", async || holds(links(&tree) > before, links(&tree))).await;
        let polled = clock.mono().since(ordered);
        assert!(polled <= 2_000, "the poll came after {polled} ms");
        let job = tree.completed(MAIN, &job).await;
        assert_eq!(job["counts"]["succeeded"], 1, "{job}");
        println!("polled after {polled} ms, done after {} ms", clock.mono().since(ordered));
        assert!(tree.metric(RELAY, "branchline_wakes_sent_total", "").await >= 1.0, "ADM-17: from the relay");
        assert_eq!(tree.metric("server", "branchline_wakes_sent_total", "").await, 0.0, "and not from the server");
        asleep(&tree).await;
        assert_eq!(device(&tree).await["link"], "wakeable");
        tree.stop().await;
    });
}

#[test]
fn adm_15_a_relay_that_was_restarted_wakes_for_what_it_is_given_and_for_what_it_held() {
    scenario(async {
        let mut tree = below_a_relay(true).await;
        asleep(&tree).await;
        tree.stop_relay(RELAY).await;
        let job = refresh(&tree).await;
        tree.start_relay(RELAY).await;
        let job = tree.completed(MAIN, &job).await;
        assert_eq!(job["counts"]["succeeded"], 1, "{job}");
        tree.stop().await;
    });
}

#[test]
fn adm_15_the_server_wakes_its_own_devices_also_after_a_restart() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        sleeper(&mut tree, "server", true).await;
        asleep(&tree).await;
        let job = refresh(&tree).await;
        assert_eq!(tree.completed(MAIN, &job).await["counts"]["succeeded"], 1);
        asleep(&tree).await;
        tree.stop_server().await;
        tree.start_server().await;
        let job = refresh(&tree).await;
        assert_eq!(tree.completed(MAIN, &job).await["counts"]["succeeded"], 1);
        tree.stop().await;
    });
}

#[test]
fn s_14_adm_17_with_the_port_closed_the_job_waits_for_the_poll_and_comes_then() {
    scenario(async {
        let mut tree = below_a_relay(false).await;
        let before = asleep(&tree).await;
        assert_eq!(device(&tree).await["link"], "polling");
        let job = refresh(&tree).await;
        let path = format!("/api/v1/jobs/{}/devices/{PC}/explain", job["id"].as_str().unwrap());
        let explained = eventually("the order is held at the relay", async || {
            let explained = tree.api(MAIN).get(&path).await.good();
            let held = explained["timeline"].as_array().unwrap().iter().any(|step| step["event"] == "held");
            if held { Ok(explained) } else { Err(explained.to_string()) }
        })
        .await;
        assert_eq!(explained["reason"], "next_poll", "{explained}");
        assert!(explained["next_contact"].is_string(), "{explained}");
        assert_eq!((links(&tree), tree.metric(RELAY, "branchline_wakes_sent_total", "").await), (before, 0.0));
        // Its next contact, which here is its start.
        tree.stop_agent(PC).await;
        tree.start_agent(PC).await;
        assert_eq!(tree.completed(MAIN, &job).await["counts"]["succeeded"], 1);
        tree.stop().await;
    });
}

#[test]
fn s_14_adm_17_a_device_on_the_gateway_is_sent_nothing() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.gateway("dmz").await;
        sleeper(&mut tree, "gateway", true).await;
        let before = asleep(&tree).await;
        assert_eq!(device(&tree).await["link"], "polling", "no wake reaches it");
        let job = refresh(&tree).await;
        let path = format!("/api/v1/jobs/{}/devices/{PC}/explain", job["id"].as_str().unwrap());
        let explained = tree.api(MAIN).get(&path).await.good();
        assert_eq!(explained["reason"], "next_poll", "{explained}");
        // Longer than the three copies of a wake would take.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(links(&tree), before);
        let page = tree.running(PC).metrics().render();
        let heard = page.lines().filter(|l| l.starts_with("branchline_wakes_total")).filter(|l| !l.ends_with(" 0"));
        assert_eq!(heard.count(), 0, "{page}");
        assert_eq!(tree.metric("server", "branchline_wakes_sent_total", "").await, 0.0);
        tree.stop_agent(PC).await;
        tree.start_agent(PC).await;
        assert_eq!(tree.completed(MAIN, &job).await["counts"]["succeeded"], 1);
        tree.stop().await;
    });
}

#[test]
fn s_14_adm_16_what_does_not_hold_is_ignored_and_counted_and_answered_by_nothing() {
    scenario(async {
        let tree = below_a_relay(true).await;
        let before = asleep(&tree).await;
        let (socket, to, key) = (UdpSocket::bind("127.0.0.1:0").unwrap(), port(&tree), newest(&tree));
        let send = |bytes: &[u8]| {
            socket.send_to(bytes, to).unwrap();
        };
        let good = wake(&tree, &key, u64::MAX / 2);
        send(&good.seal(&DatagramKey([1; 32])));
        counts(&tree, "bad_seal", 1).await;
        let mut flipped = good.seal(&key.key);
        flipped[50] ^= 1;
        send(&flipped);
        counts(&tree, "bad_seal", 2).await;
        let mut unsigned = good.seal(&key.key);
        unsigned[DATAGRAM_BYTES - 32..].fill(0);
        send(&unsigned);
        counts(&tree, "bad_seal", 3).await;
        send(&Datagram { at: branchline_protocol::time::Millis(0), ..good }.seal(&key.key));
        counts(&tree, "too_old", 1).await;
        send(&[0; 513]);
        counts(&tree, "too_large", 1).await;
        send(&[0; 512]);
        counts(&tree, "malformed", 1).await;
        assert_eq!(links(&tree), before, "nobody polled for these");
        send(&good.seal(&key.key));
        eventually("the good one", async || holds(links(&tree) == before + 1, links(&tree))).await;
        send(&good.seal(&key.key));
        counts(&tree, "replayed", 1).await;
        socket.set_nonblocking(true).unwrap();
        let mut answer = [0; 1];
        let nothing = socket.recv(&mut answer).map_err(|e| e.kind());
        assert_eq!(nothing, Err(std::io::ErrorKind::WouldBlock), "something was answered");
        tree.stop().await;
    });
}

#[test]
fn s_14_adm_16_a_thousand_good_wakes_are_at_most_a_poll_in_five_seconds() {
    scenario(async {
        let tree = below_a_relay(true).await;
        let before = asleep(&tree).await;
        let (to, key, clock) = (port(&tree), newest(&tree), SystemClock::shared());
        let wakes: Vec<_> = (1..=1_000).map(|n| wake(&tree, &key, n).seal(&key.key)).collect();
        // Over a second: those after the first poll ask for another.
        let storm = std::thread::spawn(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            for wake in wakes {
                socket.send_to(&wake, to).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut polls = Vec::new();
        for wanted in 1..=2 {
            eventually("it polls", async || holds(links(&tree) >= before + wanted, links(&tree))).await;
            assert_eq!(links(&tree), before + wanted, "one at a time");
            polls.push(clock.mono());
        }
        storm.join().unwrap();
        let apart = polls[1].since(polls[0]);
        assert!(apart >= 4_900, "{apart} ms between two polls, seen every 50 ms");
        tokio::time::sleep(Duration::from_millis(6_000)).await;
        assert_eq!(links(&tree), before + 2, "what was held back was one poll");
        println!(
            "{} of 1000 good wakes were heard, the polls came {apart} ms apart",
            count(&tree, "held_back") + count(&tree, "poll")
        );
        assert!(count(&tree, "held_back") > 300, "{} were heard", count(&tree, "held_back"));
        tree.stop().await;
    });
}

#[test]
fn s_14_adm_17_where_wakes_are_lost_the_job_still_comes_by_polling_and_nobody_knocks_for_ever() {
    scenario(async {
        let mut tree = below_a_relay(true).await;
        let before = asleep(&tree).await;
        // Whoever reads the port fails until it is left alone: from there on it is a wall.
        eventually("the doorbell is parked", async || {
            let supervision = tree.running(PC).supervision();
            supervision.inject_fault("doorbell").await.expect("the supervisor answers");
            let snapshot = supervision.snapshot().await.expect("the supervisor answers");
            let state = snapshot.child("doorbell").expect("every agent has one").state;
            holds(state == ChildLife::Parked, state)
        })
        .await;
        let job = refresh(&tree).await;
        eventually("the wake was sent three times", async || {
            let sent = tree.metric(RELAY, "branchline_wakes_sent_total", "").await;
            holds(sent == 3.0, sent)
        })
        .await;
        tokio::time::sleep(Duration::from_millis(2_000)).await;
        assert_eq!(tree.metric(RELAY, "branchline_wakes_sent_total", "").await, 3.0);
        assert_eq!(links(&tree), before, "it heard nothing");
        let path = format!("/api/v1/jobs/{}/devices/{PC}/explain", job["id"].as_str().unwrap());
        let explained = tree.api(MAIN).get(&path).await.good();
        assert_eq!((&explained["reason"], &explained["state"]), (&json!("next_poll"), &json!("queued")), "{explained}");
        // Its next contact, which here is its start.
        tree.stop_agent(PC).await;
        tree.start_agent(PC).await;
        assert_eq!(tree.completed(MAIN, &job).await["counts"]["succeeded"], 1);
        tree.stop().await;
    });
}

#[test]
fn top_21_adm_15_after_a_panic_in_either_ends_actor_wakes_are_sent_and_heard_again() {
    scenario(async {
        let tree = below_a_relay(true).await;
        asleep(&tree).await;
        for (supervision, name) in [(tree.supervision(RELAY), "beacon"), (tree.running(PC).supervision(), "doorbell")] {
            assert!(supervision.inject_fault(name).await.expect("the supervisor answers"), "{name}");
            eventually("it is mended", async || {
                let snapshot = supervision.snapshot().await.expect("the supervisor answers");
                let child = snapshot.child(name).expect("it is supervised").clone();
                holds((child.restarts, child.state) == (1, ChildLife::Running), child)
            })
            .await;
        }
        let job = refresh(&tree).await;
        assert_eq!(tree.completed(MAIN, &job).await["counts"]["succeeded"], 1);
        tree.stop().await;
    });
}

#[test]
fn top_15_adm_18_without_any_datagram_all_works_at_its_polls_and_a_goodbye_is_still_a_goodbye() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        let wish = RelayWish { poll_interval_s: FAR, ..RelayWish::default() };
        tree.relay(MAIN, RELAY, "server", wish).await;
        tree.silence_relay(RELAY).await;
        sleeper(&mut tree, RELAY, true).await;
        asleep(&tree).await;
        assert_eq!(device(&tree).await["link"], "polling", "nobody wakes it");
        assert_eq!(tree.running(PC).notice(1), None, "nobody hears it");
        let job = refresh(&tree).await;
        tree.stop_agent(PC).await;
        tree.start_agent(PC).await;
        assert_eq!(tree.completed(MAIN, &job).await["counts"]["succeeded"], 1);
        tree.agent(MAIN, "pc-2", RELAY, platform::simulated(2, "")).await;
        tree.online(MAIN, ["pc-2"]).await;
        tree.stop_agent("pc-2").await;
        eventually("its goodbye came over the link", async || {
            let pc = tree.devices(MAIN).await.remove("pc-2").unwrap_or_default();
            holds((&pc["state"], &pc["state_reason"]) == (&"offline".into(), &"shutdown".into()), pc)
        })
        .await;
        tree.stop().await;
    });
}
