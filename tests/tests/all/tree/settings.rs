//! Settings from the API to every device and back, over links that are up and over polls.

use super::{MAIN, SHIM};
use branchline_protocol::wire::Contact;
use branchline_tests::tree::{RelayWish, Tree, eventually, holds, platform, scenario};
use serde_json::{Value, json};

const PATH: &str = "/api/v1/settings";

async fn all_have(tree: &Tree, version: u64) {
    eventually("every device has acknowledged", async || {
        let devices = tree.devices(MAIN).await;
        let wanted = json!({ "wanted": version, "acknowledged": version, "pending": false });
        holds(devices.values().all(|d| d["settings"] == wanted), &devices)
    })
    .await;
}

/// Of its lease: what is promised is a tenth more.
fn interval_s(device: &Value) -> Option<f64> {
    Some(device["delay"]["normal_ms"].as_f64()? / 1_100.0)
}

#[test]
fn adm_14_a_change_reaches_links_at_once_polls_at_their_next_and_is_acknowledged_through_the_relay() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        let wish = RelayWish { poll_interval_s: 2, ..RelayWish::default() };
        tree.relay(MAIN, "osaka", "server", wish).await;
        tree.agent(MAIN, "direct", "server", platform::simulated(1, "")).await;
        tree.agent(MAIN, "below", "osaka", platform::simulated(2, "")).await;
        tree.agent_that(MAIN, "polls", "osaka", platform::simulated(3, ""), Contact::Poll).await;
        tree.online(MAIN, ["direct", "below", "polls"]).await;
        all_have(&tree, 1).await;
        let first = tree.api(MAIN).get(PATH).await.good();
        assert_eq!((&first["version"], &first["poll_normal_s"]), (&json!(1), &json!(3_600)));
        eventually("the relay's own configuration holds", async || {
            let polls = tree.devices(MAIN).await.remove("polls").unwrap_or_default();
            holds(interval_s(&polls).is_some_and(|s| s <= 2.0), polls)
        })
        .await;

        let bad = tree.api(MAIN).put(PATH, json!({ "poll_normal_s": 59 })).await;
        assert_eq!(bad.refusal(), (422, "out_of_range"));
        let set = tree.api(MAIN).put(PATH, json!({ "poll_normal_s": 7_200, "collect": ["os"] })).await.good();
        assert_eq!((&set["version"], &set["schedule"]), (&json!(2), &json!("daily")));
        all_have(&tree, 2).await;
        let stale = tree.api(MAIN).put(PATH, json!({ "version": 1, "poll_normal_s": 60 })).await;
        assert_eq!(stale.refusal(), (409, "conflict"));
        eventually("the settings are in the lease", async || {
            let polls = tree.devices(MAIN).await.remove("polls").unwrap_or_default();
            holds(interval_s(&polls).is_some_and(|s| s > 3_600.0), polls)
        })
        .await;

        // What was collected before differs, and comes up to date with the next collection.
        let inventory = async || tree.api(MAIN).get("/api/v1/devices/below/inventory").await.good();
        eventually("the first inventory differs", async || {
            let first = tree.api(MAIN).get("/api/v1/devices/below/inventory").await;
            holds(first.body["settings_version"] == 1 && first.body["differs"] == true, first)
        })
        .await;
        tree.api(MAIN).post("/api/v1/devices/below/refresh", Value::Null).await.good();
        eventually("it is comparable again", async || {
            let now = inventory().await;
            let sections: Vec<_> = now["sections"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
            holds(now["settings_version"] == 2 && now["differs"] == false && sections == ["os"], &now)
        })
        .await;
        tree.stop().await;
    });
}
