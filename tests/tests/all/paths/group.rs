//! Two relays at one site.

use super::{MAIN, SHIM};
use branchline_tests::tree::{RelayWish, Tree, eventually, holds, platform, scenario, ways::Roaming};
use serde_json::json;
use std::collections::BTreeMap;

const SITE: &str = "osaka";
const DEVICES: usize = 8;

async fn parents(tree: &Tree) -> BTreeMap<String, String> {
    let devices = tree.devices(MAIN).await;
    devices.into_iter().map(|(name, d)| (name, format!("{} {}", d["state"], d["path"]))).collect()
}

#[test]
fn devices_of_a_relay_that_dies_go_to_its_sibling_and_drift_back_when_it_returns() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.api(MAIN).post("/api/v1/sites", json!({ "name": SITE })).await.good();
        for relay in ["osaka-1", "osaka-2"] {
            tree.relay_at(MAIN, relay, SITE, "server", RelayWish::default()).await;
        }
        for n in 0..DEVICES {
            let parent = format!("osaka-{}", n % 2 + 1);
            let wish = Roaming { site: SITE.into(), parent, ..Roaming::default() };
            tree.roaming(MAIN, &format!("pc-{n}"), platform::simulated(n as u64, "ran"), wish).await;
        }
        let (one, two) = (r#""online" ["osaka-1"]"#, r#""online" ["osaka-2"]"#);
        // Shared by a hash, whatever their bundles said: where both have some, the rest of the scenario says something.
        let home = eventually("every device has its home", async || {
            tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
            let (now, again) = (parents(&tree).await, parents(&tree).await);
            let settled = now.len() == DEVICES && now == again && now.values().all(|p| p == one || p == two);
            if settled { Ok(now) } else { Err(format!("{now:?}")) }
        })
        .await;
        let of_one = home.values().filter(|p| *p == one).count();
        // A relay never hangs on its sibling.
        for relay in ["osaka-1", "osaka-2"] {
            let status = tree.status(relay).await;
            assert_eq!(status["uplink"]["parent"], tree.tree_node("server", MAIN).await["id"], "{status}");
        }
        tree.stop_relay("osaka-1").await;
        eventually("the sibling serves all, and the server none", async || {
            let now = parents(&tree).await;
            holds(now.values().all(|p| p == two), now)
        })
        .await;
        tree.start_relay("osaka-1").await;
        eventually("each is back at its home", async || {
            let now = parents(&tree).await;
            holds(now == home, now)
        })
        .await;
        let job = tree.run(MAIN, "all", &["true"]).await;
        assert_eq!(job["counts"]["succeeded"], DEVICES, "{of_one} of {DEVICES} live at osaka-1: {job}");
        tree.stop().await;
    });
}
