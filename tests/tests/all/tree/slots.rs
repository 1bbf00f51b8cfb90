//! The cap on persistent links, at a relay and at the server.

use super::{MAIN, SHIM};
use branchline_tests::tree::{
    RelayWish, Tree, count, eventually, holds, logs, platform, row, scenario, script, targets,
};
use serde_json::{Value, json};

const RELAY: &str = "osaka";

async fn slots(tree: &Tree) -> Value {
    tree.status(RELAY).await["figures"]["slots"].clone()
}

/// Waits for figures and checks at every look that the cap holds.
async fn slots_become(tree: &Tree, what: &str, used: u64, waiting: u64) {
    eventually(what, async || {
        let slots = slots(tree).await;
        assert!(slots["used"].as_u64().unwrap_or(0) <= 3, "never above the cap: {slots}");
        holds(slots["used"] == used && slots["waiting"] == waiting, slots)
    })
    .await;
}

async fn links(tree: &Tree) -> Vec<(String, String)> {
    let devices = tree.devices(MAIN).await;
    devices.iter().map(|(name, d)| (name.clone(), d["link"].as_str().unwrap_or_default().to_string())).collect()
}

fn expected(persistent: &[&str], polling: &[&str]) -> Vec<(String, String)> {
    let with = |names: &[&str], link: &str| names.iter().map(|n| (n.to_string(), link.to_string())).collect::<Vec<_>>();
    let mut all = [with(persistent, "persistent"), with(polling, "polling")].concat();
    all.sort();
    all
}

/// Three slots, five agents that come one after the other.
async fn five_for_three() -> Tree {
    let mut tree = Tree::start(SHIM, &[MAIN]).await;
    let wish = RelayWish { slots: 3, poll_interval_s: 2, reservation_s: Some(20) };
    tree.relay(MAIN, RELAY, "server", wish).await;
    for n in 1..=5 {
        let name = format!("pc-{n}");
        tree.agent(MAIN, &name, RELAY, platform::simulated(n, &name)).await;
        tree.online(MAIN, [&name]).await;
    }
    tree
}

#[test]
fn adm_2_rly_6_three_of_five_hold_a_slot_and_the_deferred_poll_and_stay_managed() {
    scenario(async {
        let tree = five_for_three().await;
        slots_become(&tree, "three hold, two wait", 3, 2).await;
        assert_eq!(links(&tree).await, expected(&["pc-1", "pc-2", "pc-3"], &["pc-4", "pc-5"]));

        for name in ["pc-4", "pc-5"] {
            let figures = tree.running(name).figures();
            let before = figures.borrow().attachment;
            eventually("a deferred device polls again and again", async || {
                assert!(slots(&tree).await["used"].as_u64().unwrap_or(0) <= 3);
                let now = figures.borrow().attachment;
                holds(now >= before + 2, (before, now))
            })
            .await;
        }
        let held = tree.running("pc-1").figures().borrow().attachment;

        let job = tree.run(MAIN, "all", &["true"]).await;
        assert_eq!((targets(&job), count(&job, "succeeded")), (5, 5), "{job}");
        for n in 1..=5 {
            let name = format!("pc-{n}");
            assert_eq!(row(&job, tree.id(&name))["stdout"], name.as_str());
            let wanted = platform::simulated(n, "").collect(&[]).digest().to_string();
            eventually("its inventory is at the server", async || {
                let device = tree.devices(MAIN).await.remove(&name).unwrap_or_default();
                holds(device["inventory"]["digest"] == wanted.as_str(), device)
            })
            .await;
        }
        assert_eq!(slots(&tree).await["peak"], 3, "the gauge never was above the cap");
        assert_eq!(tree.running("pc-1").figures().borrow().attachment, held, "a persistent link stays as it is");
        let seen = tree.tree_node(RELAY, MAIN).await;
        assert_eq!((&seen["slots"]["cap"], &seen["slots"]["peak"]), (&json!(3), &json!(3)), "as the server shows it");
        tree.stop().await;
    });
}

#[test]
fn adm_3_a_freed_slot_goes_to_the_longest_waiting_at_its_next_contact() {
    scenario(async {
        let mut tree = five_for_three().await;
        slots_become(&tree, "three hold, two wait", 3, 2).await;
        tree.stop_agent("pc-2").await;
        slots_become(&tree, "the freed slot has its next holder", 3, 1).await;
        eventually("the longest waiting has it", async || {
            assert!(slots(&tree).await["used"].as_u64().unwrap_or(0) <= 3);
            let devices = tree.devices(MAIN).await;
            assert_ne!(devices["pc-5"]["link"], "persistent", "nobody overtakes");
            holds(devices["pc-4"]["link"] == "persistent", &devices["pc-4"])
        })
        .await;
        let all = slots(&tree).await;
        let figures = ["used", "waiting", "reserved", "peak"].map(|k| all[k].as_u64());
        assert_eq!(figures, [Some(3), Some(1), Some(0), Some(3)], "used, waiting, reserved, peak: {all}");
        assert_eq!(tree.devices(MAIN).await["pc-2"]["state"], "offline");
        // The one that took it needs no poll any more.
        let on = "device:pc-1 or device:pc-3 or device:pc-4 or device:pc-5";
        let job = tree.run(MAIN, on, &["true"]).await;
        assert_eq!((targets(&job), count(&job, "succeeded")), (4, 4), "{job}");
        tree.stop().await;
    });
}

#[test]
fn adm_7_relays_take_no_device_slot_and_come_in_when_all_are_taken() {
    scenario(async {
        let mut tree = Tree::with_slots(SHIM, &[MAIN], 2).await;
        tree.relay(MAIN, "before", "server", RelayWish::default()).await;
        for n in 1..=2 {
            tree.agent(MAIN, &format!("pc-{n}"), "server", platform::simulated(n, "")).await;
        }
        tree.online(MAIN, ["pc-1", "pc-2"]).await;
        assert_eq!(links(&tree).await, expected(&["pc-1", "pc-2"], &[]), "a relay before them took no slot");
        tree.relay(MAIN, "after", "server", RelayWish::default()).await;
        for relay in ["before", "after"] {
            tree.agent(MAIN, &format!("at-{relay}"), relay, platform::simulated(9, "")).await;
        }
        tree.online(MAIN, ["at-before", "at-after"]).await;
        let job = tree.run(MAIN, "all", &["true"]).await;
        assert_eq!((targets(&job), count(&job, "succeeded")), (4, 4), "{job}");
        let server = tree.tree_node("server", MAIN).await;
        let figures = ["used", "cap", "peak", "waiting"].map(|k| server["slots"][k].as_u64());
        assert_eq!(figures, [Some(2), Some(2), Some(2), Some(0)], "{server}");
        assert_eq!(server["links"], 4, "two devices and two relays");
        tree.stop().await;
    });
}

/// A configuration as far as a running node looks at it, with these lines.
fn write_slots(tree: &Tree, node: &str, lines: &str) {
    let bundle = if node == "server" { "" } else { "bundle = '/nowhere'\n" };
    let text = format!("name = '{node}'\nstate_dir = '/nowhere'\n{bundle}{lines}\n");
    std::fs::write(tree.file_of(node), text).unwrap();
}

#[test]
fn adm_6_the_number_of_slots_follows_the_configuration_while_a_relay_runs_and_no_job_is_lost() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        let wish = RelayWish { slots: 3, poll_interval_s: 2, reservation_s: Some(10) };
        tree.relay(MAIN, "osaka", "server", wish).await;
        let names = ["pc-1", "pc-2", "pc-3"];
        for (n, name) in (1..).zip(names) {
            tree.agent(MAIN, name, "osaka", platform::scripted(n)).await;
        }
        tree.online(MAIN, names).await;
        let shown = async || {
            let slots = tree.status("osaka").await["figures"]["slots"].clone();
            (slots["cap"].as_u64(), slots["used"].as_u64(), slots["waiting"].as_u64())
        };
        let becomes = async |what: &str, expected: (u64, u64, u64)| {
            let expected = (Some(expected.0), Some(expected.1), Some(expected.2));
            eventually(what, async || {
                let seen = shown().await;
                holds(seen == expected, seen)
            })
            .await;
        };
        becomes("all three hold a slot", (3, 3, 0)).await;
        let job = tree.order(MAIN, "all", script("sleep 3; echo done"), 60).await;
        eventually("the job runs on all devices", async || {
            let open: Vec<_> = names.iter().map(|d| tree.running(d).figures().borrow().open_orders).collect();
            holds(open == [1, 1, 1], open)
        })
        .await;

        write_slots(&tree, "osaka", "slots = 1");
        becomes("two are turned to polling", (1, 1, 2)).await;
        let job = tree.completed(MAIN, &job).await;
        assert_eq!(count(&job, "succeeded"), 3, "{job}");

        // Whatever is wrong in it, the number stays, and it is said once.
        let file = tree.file_of("osaka").display().to_string();
        let said = || logs::lines_with(&["the number of slots stays as it is", &file]).len();
        for bad in ["slots = 0", "slots = -1", "slots = 301", "slots = 'abc'", "slots = 2\nslotz = 2", "slots = "] {
            let before = said();
            write_slots(&tree, "osaka", bad);
            eventually(&format!("{bad:?} is refused"), async || holds(said() == before + 1, said())).await;
            assert_eq!(shown().await.0, Some(1), "{bad}");
        }
        write_slots(&tree, "osaka", "slots = 2");
        becomes("the one that waited longest has the new slot", (2, 2, 1)).await;

        // A gatekeeper that is built again begins with it.
        let before = tree.metric("osaka", "branchline_restarts_total", "").await;
        assert!(tree.supervision("osaka").inject_fault("gatekeeper").await.expect("the supervisor answers"));
        eventually("it is built again", async || {
            let now = tree.metric("osaka", "branchline_restarts_total", "").await;
            holds(now > before, now)
        })
        .await;
        becomes("as before", (2, 2, 1)).await;
        assert_eq!(logs::lines_with(&["another number of slots", &file]).len(), 2, "set twice, kept since");
        tree.stop().await;
    });
}

#[test]
fn adm_6_the_number_of_slots_follows_the_configuration_while_the_server_runs() {
    scenario(async {
        let mut tree = Tree::with_slots(SHIM, &[MAIN], 2).await;
        for (n, name) in [(1, "pc-1"), (2, "pc-2")] {
            tree.agent(MAIN, name, "server", platform::simulated(n, name)).await;
            tree.online(MAIN, [name]).await;
        }
        assert_eq!(links(&tree).await, expected(&["pc-1", "pc-2"], &[]));
        write_slots(&tree, "server", "slots = 1");
        eventually("the one that came last polls", async || {
            let seen = links(&tree).await;
            holds(seen == expected(&["pc-1"], &["pc-2"]), seen)
        })
        .await;
        let job = tree.run(MAIN, "device:pc-1", &["true"]).await;
        assert_eq!(count(&job, "succeeded"), 1, "{job}");
        tree.stop().await;
    });
}
