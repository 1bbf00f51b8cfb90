//! A restart of the machine, from order to the machine's next life.

use super::{MAIN, SHIM};
use branchline_tests::tree::{RelayWish, Tree, eventually, holds, platform, row, scenario};
use serde_json::json;

#[test]
fn job_2_a_restart_is_commanded_once_and_told_by_the_machine_that_came_back() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        let said = tempfile::NamedTempFile::new().unwrap();
        let path = said.path().to_str().unwrap().to_owned();
        let device = platform::Restarting::new(1, &["/bin/sh", "-c", &format!("echo restart >>{path}")]);
        tree.agent(MAIN, "pc-01", "osaka", device.clone()).await;
        // One that declares no way to restart.
        tree.agent(MAIN, "pc-02", "osaka", platform::simulated(2, "")).await;
        tree.online(MAIN, ["pc-01", "pc-02"]).await;
        let (id, other) = (tree.id("pc-01"), tree.id("pc-02"));

        let body = json!({ "on": "all", "verb": "restart" });
        let job = tree.api(MAIN).post("/api/v1/jobs", body).await.good();
        let at = format!("/api/v1/jobs/{}", job["id"].as_str().unwrap());
        let commands = || std::fs::read_to_string(&path).unwrap().lines().count();
        eventually("the command is given", async || holds(commands() == 1, commands())).await;
        eventually("the other cannot", async || {
            let row = row(&tree.api(MAIN).get(&at).await.good(), other);
            holds(row["state"] == "unsupported" && row["reason"] == "restart, virtual", row)
        })
        .await;
        let shown = row(&tree.api(MAIN).get(&at).await.good(), id);
        assert!(!["succeeded", "failed"].contains(&shown["state"].as_str().unwrap()), "not yet known: {shown}");

        // The agent alone is restarted: that is no restart of the machine.
        tree.stop_agent("pc-01").await;
        tree.start_agent("pc-01").await;
        tree.online(MAIN, ["pc-01"]).await;
        let later = json!({ "on": "device:pc-01", "verb": "refresh_inventory" });
        let later = tree.api(MAIN).post("/api/v1/jobs", later).await.good();
        let later_at = format!("/api/v1/jobs/{}", later["id"].as_str().unwrap());
        eventually("what was ordered later is on the device", async || {
            let row = row(&tree.api(MAIN).get(&later_at).await.good(), id);
            holds(row["state"] == "delivered", row)
        })
        .await;
        assert!(!tree.api(MAIN).get(&at).await.good()["complete"].as_bool().unwrap());

        tree.stop_agent("pc-01").await;
        device.begin_life();
        tree.start_agent("pc-01").await;
        let shown = row(&tree.completed(MAIN, &job).await, id);
        assert_eq!(shown["state"], "succeeded", "{shown}");
        assert!(shown["started_at"].as_str() < shown["ended_at"].as_str(), "{shown}");
        assert_eq!(row(&tree.completed(MAIN, &later).await, id)["state"], "succeeded");
        assert_eq!(commands(), 1, "JOB-13");
        tree.stop().await;
    });
}
