//! Two relays at one site.

use super::{MAIN, SHIM};
use branchline_node::{config::Reach, uplink::path::ways};
use branchline_protocol::{
    document::Upstream,
    id::{NodeId, Role},
};
use branchline_tests::tree::{RelayWish, Tree, eventually, holds, platform, scenario, ways::Roaming};
use serde_json::json;
use std::collections::BTreeMap;

const SITE: &str = "osaka";
const RELAYS: [&str; 2] = ["osaka-1", "osaka-2"];
const DEVICES: usize = 8;

fn at(relay: &str) -> String {
    format!("\"online\" [\"{relay}\"]")
}

fn near(id: NodeId, name: &str) -> Upstream {
    let direct = vec!["x:1".into()];
    Upstream { id, role: Role::Relay, name: name.into(), direct, gateways: vec![], near: true }
}

async fn parents(tree: &Tree) -> BTreeMap<String, String> {
    let devices = tree.devices(MAIN).await;
    devices.into_iter().map(|(name, d)| (name, format!("{} {}", d["state"], d["path"]))).collect()
}

#[test]
fn devices_of_a_relay_that_dies_go_to_its_sibling_and_drift_back_when_it_returns() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.api(MAIN).post("/api/v1/sites", json!({ "name": SITE })).await.good();
        for relay in RELAYS {
            tree.relay_at(MAIN, relay, SITE, "server", RelayWish::default()).await;
        }
        for n in 0..DEVICES {
            let parent = format!("osaka-{}", n % 2 + 1);
            let wish = Roaming { site: SITE.into(), parent, ..Roaming::default() };
            tree.roaming(MAIN, &format!("pc-{n}"), platform::simulated(n as u64, "ran"), wish).await;
        }
        let list: Vec<Upstream> = RELAYS.map(|relay| near(tree.id(relay), relay)).into();
        let home: BTreeMap<String, String> = (0..DEVICES)
            .map(|n| {
                let name = format!("pc-{n}");
                let first = ways(tree.id(&name), &list, Reach::Direct)[0].parent;
                let relay = RELAYS.into_iter().find(|relay| tree.id(relay) == first).unwrap();
                (name, at(relay))
            })
            .collect();
        // Shared by a hash, whatever their bundles said.
        eventually("every device is at its home", async || {
            let now = parents(&tree).await;
            holds(now == home, now)
        })
        .await;
        let of_first = home.values().filter(|p| **p == at(RELAYS[0])).count();
        let (dying, sibling) = if 2 * of_first >= DEVICES { (RELAYS[0], RELAYS[1]) } else { (RELAYS[1], RELAYS[0]) };
        // A relay never hangs on its sibling.
        for relay in RELAYS {
            let status = tree.status(relay).await;
            assert_eq!(status["uplink"]["parent"], tree.tree_node("server", MAIN).await["id"], "{status}");
        }
        tree.stop_relay(dying).await;
        eventually("the sibling serves all, and the server none", async || {
            let now = parents(&tree).await;
            holds(now.values().all(|p| *p == at(sibling)), now)
        })
        .await;
        tree.start_relay(dying).await;
        eventually("each is back at its home", async || {
            let now = parents(&tree).await;
            holds(now == home, now)
        })
        .await;
        let job = tree.run(MAIN, "all", &["true"]).await;
        assert_eq!(job["counts"]["succeeded"], DEVICES, "{of_first} of {DEVICES} live at {}: {job}", RELAYS[0]);
        tree.stop().await;
    });
}
