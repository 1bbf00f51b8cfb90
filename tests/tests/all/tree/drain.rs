//! Nodes that stop in good order, and what is seen of them meanwhile.

use super::{MAIN, SHIM};
use branchline_tests::tree::{RelayWish, Tree, count, eventually, holds, platform, row, scenario, script, targets};
use serde_json::Value;
use std::time::Duration;

const RELAY: &str = "osaka";
const DEVICES: [&str; 3] = ["pc-1", "pc-2", "pc-3"];

async fn device(tree: &Tree, name: &str) -> Value {
    tree.devices(MAIN).await.remove(name).unwrap_or_default()
}

fn stands(device: &Value) -> (String, String) {
    let text = |key: &str| device[key].as_str().unwrap_or_default().to_string();
    (text("state"), text("state_reason"))
}

async fn stand(tree: &Tree, names: &[&str], state: &str, reason: &str) {
    eventually("the devices stand as expected", async || {
        let devices = tree.devices(MAIN).await;
        let others: Vec<_> =
            names.iter().map(|n| stands(&devices[*n])).filter(|s| *s != (state.into(), reason.into())).collect();
        holds(others.is_empty(), others)
    })
    .await;
}

async fn branch() -> Tree {
    let mut tree = Tree::start(SHIM, &[MAIN]).await;
    // Behind a gateway, so that its devices, which may dial directly only, have no other way to the server.
    tree.gateway("dmz").await;
    tree.relay(MAIN, RELAY, "gateway", RelayWish::default()).await;
    for (n, name) in (1..).zip(DEVICES) {
        tree.agent(MAIN, name, RELAY, platform::scripted(n)).await;
    }
    tree.online(MAIN, DEVICES).await;
    tree
}

#[test]
fn s_13_a_device_that_stops_in_good_order_is_off_by_shutdown_and_its_slot_is_free() {
    scenario(async {
        let mut tree = branch().await;
        assert_eq!(tree.status(RELAY).await["figures"]["slots"]["used"], 3);
        tree.stop_agent("pc-1").await;
        stand(&tree, &["pc-1"], "offline", "shutdown").await;
        eventually("its slot is free", async || {
            let slots = tree.status(RELAY).await["figures"]["slots"].clone();
            holds(slots["used"] == 2, slots)
        })
        .await;
        tree.start_agent("pc-1").await;
        tree.online(MAIN, ["pc-1"]).await;
        tree.stop().await;
    });
}

#[test]
fn rly_12_a_relay_that_stops_tells_its_children_loses_nothing_and_they_are_unknown_until_they_are_back() {
    scenario(async {
        let mut tree = branch().await;
        let job = tree.order(MAIN, "all", script("sleep 2; echo $BRANCHLINE_DEVICE"), 60).await;
        eventually("the job runs on all devices", async || {
            let open: Vec<_> = DEVICES.iter().map(|d| tree.running(d).figures().borrow().open_orders).collect();
            holds(open == [1, 1, 1], open)
        })
        .await;
        // Its actors have 10 s; one that is stuck does not hold the node up.
        let stopped = tokio::time::timeout(Duration::from_secs(20), tree.stop_relay(RELAY)).await;
        stopped.expect("the stop is bounded");
        eventually("the children know", async || {
            let links: Vec<_> = DEVICES.iter().map(|d| tree.running(d).figures().borrow().link).collect();
            holds(links == ["down"; 3], links)
        })
        .await;
        stand(&tree, &DEVICES, "unknown", "behind osaka").await;
        let relay = tree.tree_node(RELAY, MAIN).await;
        assert_eq!(relay["state"], "offline", "{relay}");
        assert!(relay["unreachable_since"].is_string(), "{relay}");

        // From here on no device may be seen as off: it never was, whatever its relay knows of it yet.
        tree.start_relay(RELAY).await;
        eventually("all devices are back", async || {
            let devices = tree.devices(MAIN).await;
            let stand: Vec<_> = DEVICES.iter().map(|d| stands(&devices[*d])).collect();
            assert!(stand.iter().all(|(state, _)| state != "offline"), "{stand:?}");
            holds(stand.iter().all(|(state, _)| state == "online"), stand)
        })
        .await;
        let job = tree.completed(MAIN, &job).await;
        assert_eq!((targets(&job), count(&job, "succeeded")), (3, 3), "{job}");
        for name in DEVICES {
            let id = tree.id(name);
            assert_eq!(row(&job, id)["stdout"], format!("{id}\n"), "once, and its own");
        }
        eventually("each has its slot again", async || {
            let slots = tree.status(RELAY).await["figures"]["slots"].clone();
            holds(slots["used"] == 3, slots)
        })
        .await;
        let gone = device(&tree, "pc-1").await;
        assert_eq!(gone["link"], "persistent", "{gone}");
        tree.stop().await;
    });
}
