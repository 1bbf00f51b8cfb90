//! Devices that are to keep their connection or not (ADM-1), and how soon jobs come through a gateway (ADM-13).

use super::{MAIN, SHIM};
use branchline_protocol::wire::Contact;
use branchline_tests::tree::{RelayWish, Tree, count, eventually, holds, platform, scenario};
use serde_json::{Value, json};

const RELAY: &str = "osaka";

async fn keep(tree: &Tree, device: &str, keep: Value) -> Value {
    tree.api(MAIN).patch(format!("/api/v1/devices/{device}"), json!({ "keep_connection": keep })).await.good()
}

async fn device(tree: &Tree, name: &str) -> Value {
    tree.devices(MAIN).await.remove(name).unwrap_or_default()
}

async fn becomes(tree: &Tree, name: &str, link: &str) -> Value {
    eventually(&format!("{name} is {link}"), async || {
        let device = device(tree, name).await;
        if device["link"] == link && device["state"] == "online" { Ok(device) } else { Err(device.to_string()) }
    })
    .await
}

async fn slots(tree: &Tree) -> (u64, u64) {
    let slots = tree.status(RELAY).await["figures"]["slots"].clone();
    (slots["used"].as_u64().unwrap_or(99), slots["waiting"].as_u64().unwrap_or(99))
}

#[test]
fn adm_1_set_it_keeps_its_connection_from_its_next_poll_on_and_unset_it_gives_its_slot_up() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        let wish = RelayWish { poll_interval_s: 3, ..RelayWish::default() };
        tree.relay(MAIN, RELAY, "server", wish).await;
        tree.agent_that(MAIN, "pc", RELAY, platform::simulated(1, "pc"), Contact::Poll).await;
        tree.agent(MAIN, "other", RELAY, platform::simulated(2, "other")).await;
        tree.online(MAIN, ["pc", "other"]).await;
        let polls = becomes(&tree, "pc", "polling").await;
        assert_eq!((&polls["keep_connection"], &polls["slot"]), (&Value::Null, &Value::Null));
        assert_eq!(polls["delay"]["urgent_ms"], 3_300, "an interval and the tenth by which polls vary");

        let figures = tree.running("pc").figures();
        let before = figures.borrow().attachment;
        assert_eq!(keep(&tree, "pc", json!(true)).await["keep_connection"], true);
        let kept = eventually("it keeps its connection", async || {
            let device = device(&tree, "pc").await;
            let attachment = figures.borrow().attachment;
            assert!(attachment > before || device["link"] == "polling", "not before its next poll: {device}");
            if device["link"] == "persistent" { Ok(device) } else { Err(device.to_string()) }
        })
        .await;
        assert_eq!((&kept["delay"]["normal_ms"], &kept["slot"]["waiter"]), (&json!(5_000), &Value::Null));
        let held = figures.borrow().attachment;
        let job = tree.run(MAIN, "device:pc", &["true"]).await;
        assert_eq!((count(&job, "succeeded"), figures.borrow().attachment), (1, held), "on the link that stays");
        assert_eq!(slots(&tree).await, (2, 0));

        keep(&tree, "pc", json!(false)).await;
        becomes(&tree, "pc", "polling").await;
        eventually("its slot is free", async || {
            let seen = slots(&tree).await;
            holds(seen == (1, 0), seen)
        })
        .await;
        // One that asks for a slot by its own configuration does not while it is told not to, and does again.
        keep(&tree, "other", json!(false)).await;
        becomes(&tree, "other", "polling").await;
        keep(&tree, "other", Value::Null).await;
        becomes(&tree, "other", "persistent").await;
        let job = tree.run(MAIN, "all", &["true"]).await;
        assert_eq!(count(&job, "succeeded"), 2, "{job}");
        tree.stop().await;
    });
}

#[test]
fn adm_1_adm_3_who_is_to_keep_its_connection_goes_before_who_waited_longer() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        let wish = RelayWish { slots: 1, poll_interval_s: 2, reservation_s: Some(20) };
        tree.relay(MAIN, RELAY, "server", wish).await;
        for (n, name) in [(1, "holds"), (2, "waits"), (3, "kept")] {
            tree.agent(MAIN, name, RELAY, platform::simulated(n, name)).await;
            tree.online(MAIN, [name]).await;
        }
        let number = async |name: &str| device(&tree, name).await["slot"]["waiter"].clone();
        eventually("both wait, in the order in which they came", async || {
            let seen = (number("waits").await, number("kept").await);
            holds(seen == (json!(1), json!(2)), seen)
        })
        .await;
        keep(&tree, "kept", json!(true)).await;
        let since = device(&tree, "kept").await["slot"]["since"].clone();
        eventually("the one that is to keep its connection is the first", async || {
            let seen = (number("waits").await, number("kept").await);
            holds(seen == (json!(2), json!(1)), seen)
        })
        .await;
        assert_eq!(device(&tree, "kept").await["slot"]["since"], since, "it waits since it came");
        assert_eq!(
            device(&tree, "holds").await["link"],
            "persistent",
            "held for less than ten minutes, it is left alone"
        );
        tree.stop_agent("holds").await;
        eventually("the freed slot is the kept one's", async || {
            let devices = tree.devices(MAIN).await;
            assert_ne!(devices["waits"]["link"], "persistent", "the longer wait does not count");
            holds(devices["kept"]["link"] == "persistent", &devices["kept"])
        })
        .await;
        tree.stop().await;
    });
}

#[test]
fn adm_13_each_kind_of_job_comes_at_the_next_poll_and_at_once_where_a_link_through_the_gateway_is_held() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.gateway("dmz").await;
        let wish = RelayWish { poll_interval_s: 2, ..RelayWish::default() };
        tree.relay(MAIN, RELAY, "gateway", wish).await;
        tree.agent(MAIN, "holds", RELAY, platform::simulated(1, "holds")).await;
        tree.agent_that(MAIN, "polls", RELAY, platform::simulated(2, "polls"), Contact::Poll).await;
        tree.online(MAIN, ["holds", "polls"]).await;
        becomes(&tree, "polls", "polling").await;
        becomes(&tree, "holds", "persistent").await;
        let (polls, holds_one) = (tree.running("polls").figures(), tree.running("holds").figures());
        let kinds = [
            json!({ "verb": "run_script", "args": { "argv": ["true"] }, "class": "normal" }),
            json!({ "verb": "run_script", "args": { "argv": ["true"] }, "class": "urgent" }),
            json!({ "verb": "run_script", "args": { "argv": ["true"] }, "class": "erase" }),
            json!({ "verb": "refresh_inventory" }),
        ];
        for mut body in kinds {
            body["on"] = json!("all");
            // What is ordered while it polls comes with that very poll.
            let before = eventually("it is between two polls", async || {
                let figures = polls.borrow();
                if figures.link == "down" { Ok(figures.attachment) } else { Err(figures.link.to_owned()) }
            })
            .await;
            let held = holds_one.borrow().attachment;
            let job = tree.api(MAIN).post("/api/v1/jobs", body.clone()).await.good();
            let job = tree.completed(MAIN, &job).await;
            assert_eq!(count(&job, "succeeded"), 2, "{job}");
            assert!(polls.borrow().attachment > before, "it came with a poll");
            assert_eq!(holds_one.borrow().attachment, held, "it came on the link that stays");
            for (name, bound_ms) in [("holds", 5_000), ("polls", 2_200)] {
                let link = if name == "holds" { "persistent" } else { "polling" };
                let delay = becomes(&tree, name, link).await["delay"].clone();
                assert_eq!(delay["last_job"]["job"], job["id"], "{delay}");
                assert_eq!(delay["urgent_ms"], bound_ms, "what is promised: {delay}");
                // On a machine that has nothing else to do it is less than what is promised.
                assert!(delay["last_job"]["delay_ms"].as_u64().is_some_and(|ms| ms <= 5_000), "{name}: {delay}");
            }
        }
        tree.stop().await;
    });
}

#[test]
fn adm_9_a_device_needs_its_slot_more_while_an_urgent_order_of_it_is_open() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.relay(MAIN, RELAY, "server", RelayWish::default()).await;
        tree.agent(MAIN, "below", RELAY, platform::scripted(1)).await;
        tree.agent(MAIN, "direct", "server", platform::scripted(2)).await;
        tree.online(MAIN, ["below", "direct"]).await;
        let held = async |node: &str| tree.tree_node(node, MAIN).await["slots"]["held_by"].clone();
        let by = |ordinary: u64, urgent: u64| json!({ "ordinary": ordinary, "keep": 0, "urgent": urgent });
        let both_hold = async |what: &str, wanted: Value| {
            eventually(what, async || {
                let seen = (held(RELAY).await, held("server").await);
                holds(seen == (wanted.clone(), wanted.clone()), seen)
            })
            .await;
        };
        both_hold("each holds a slot", by(1, 0)).await;
        let gate = tree.folder("gate");
        let wait = format!("until [ -e {} ]; do sleep 0.05; done", gate.display());
        let body = json!({ "on": "all", "verb": "run_script", "args": { "argv": ["sh", "-c", wait] }, "class": "urgent",
                           "time_out_s": 60 });
        let job = tree.api(MAIN).post("/api/v1/jobs", body).await.good();
        both_hold("an urgent order is open", by(0, 1)).await;
        std::fs::write(&gate, "").expect("the temporary folder can be written");
        assert_eq!(count(&tree.completed(MAIN, &job).await, "succeeded"), 2);
        both_hold("it is over", by(1, 0)).await;
        tree.stop().await;
    });
}
