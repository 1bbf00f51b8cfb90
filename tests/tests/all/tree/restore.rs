//! A server lost and restored from an older backup (OPS-7).

use super::{MAIN, SHIM};
use branchline_tests::tree::{RelayWish, Tree, count, eventually, holds, platform, row, scenario, script, tenant};
use serde_json::{Value, json};
use std::path::Path;

/// Each start of it on a device leaves a line in that device's file of this folder.
fn counted(folder: &Path) -> Value {
    std::fs::create_dir_all(folder).expect("a folder");
    script(&format!("echo started >> {}/$BRANCHLINE_DEVICE; echo done", folder.display()))
}

fn starts(folder: &Path, device: impl std::fmt::Display) -> usize {
    std::fs::read_to_string(folder.join(device.to_string())).unwrap_or_default().lines().count()
}

async fn device(tree: &Tree, id: impl std::fmt::Display) -> Value {
    tree.api(MAIN).get(format!("/api/v1/devices/{id}")).await.good()
}

async fn recovery(tree: &Tree) -> Value {
    tree.api(MAIN).get("/api/v1/recovery").await.good()
}

#[test]
fn ops_7_a_restored_server_finds_devices_revocations_settings_inventory_and_results_of_the_gap() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        let changing = platform::Changing::scripted(1, 20);
        tree.agent(MAIN, "pc-01", "osaka", changing.clone()).await;
        tree.agent(MAIN, "pc-02", "osaka", platform::scripted(2)).await;
        tree.agent(MAIN, "pc-03", "server", platform::scripted(3)).await;
        tree.agent(MAIN, "pc-04", "osaka", platform::scripted(4)).await;
        tree.online(MAIN, ["pc-01", "pc-02", "pc-03", "pc-04"]).await;
        let ids = ["pc-01", "pc-02", "pc-03", "pc-04"].map(|name| tree.id(name));
        let [one, two, three, four] = ids;
        let packages = async |tree: &Tree| tree.devices(MAIN).await["pc-01"]["inventory"]["packages"].clone();
        eventually("its inventory is at the server", async || {
            let seen = packages(&tree).await;
            holds(seen.is_u64(), seen)
        })
        .await;
        let before = packages(&tree).await.as_u64().unwrap();
        let folder = tree.folder("effects");

        // In the backup: a job that is done, and one that waits for a device that is away.
        let done = tree.order(MAIN, "all", counted(&folder.join("done")), 60).await;
        let done = tree.completed(MAIN, &done).await;
        assert_eq!(count(&done, "succeeded"), 4, "{done}");
        tree.stop_agent("pc-04").await;
        let waits = tree.order(MAIN, &format!("device:{four}"), counted(&folder.join("waits")), 60).await;
        let backup = tree.back_up_server().await;

        // In the gap: the device comes and runs it, others run another, one is revoked, settings and inventory change.
        tree.start_agent("pc-04").await;
        assert_eq!(count(&tree.completed(MAIN, &waits).await, "succeeded"), 1);
        let gap = tree.order(MAIN, "all", counted(&folder.join("gap")), 60).await;
        let gap = tree.completed(MAIN, &gap).await;
        assert_eq!(count(&gap, "succeeded"), 4, "{gap}");
        tree.api(MAIN).post(format!("/api/v1/nodes/{two}/revoke"), Value::Null).await.good();
        tree.api(MAIN).put("/api/v1/settings", json!({ "poll_normal_s": 1_234 })).await.good();
        changing.install();
        tree.api(MAIN).post(format!("/api/v1/devices/{one}/refresh"), json!({})).await.good();
        eventually("the inventory has changed", async || {
            let seen = packages(&tree).await;
            holds(seen == before + 1, seen)
        })
        .await;

        // A direct child stays away at first, so that the restored server is met while it listens.
        tree.stop_agent("pc-03").await;
        tree.lose_server(&backup).await;
        eventually("it says for how many it listens", async || {
            let status = tree.status("server").await;
            holds(status["term"] == 2 && status["recovering"]["awaited"] == 2, status)
        })
        .await;
        assert_eq!(tree.tree_node("server", MAIN).await["state"], "recovering");
        let job = json!({ "on": "all", "verb": "run_script", "args": { "argv": ["true"] } });
        let refused = tree.api(MAIN).post("/api/v1/jobs", job).await;
        assert_eq!(refused.refusal(), (503, "recovering"), "{refused:?}");
        let refused = tree.api(MAIN).put("/api/v1/settings", json!({ "poll_normal_s": 60 })).await;
        assert_eq!(refused.refusal(), (503, "recovering"), "{refused:?}");
        let refused = tree.api(MAIN).post(format!("/api/v1/nodes/{one}/revoke"), Value::Null).await;
        assert_eq!(refused.refusal(), (503, "recovering"), "{refused:?}");
        let ended = tree.api(MAIN).post("/api/v1/recovery/end", Value::Null).await;
        assert_eq!(ended.refusal(), (403, "not_allowed"), "a tenant's token does not end it");
        assert_eq!(tree.devices(MAIN).await.len(), 4, "reads go on");
        tree.start_agent("pc-03").await;
        eventually("every child is heard", async || {
            let seen = recovery(&tree).await;
            holds(seen == json!({ "term": 2, "recovering": null }), seen)
        })
        .await;

        // Devices are back as who they were, and the revoked one is not.
        tree.online(MAIN, ["pc-01", "pc-03", "pc-04"]).await;
        assert_eq!(["pc-01", "pc-03", "pc-04"].map(|name| tree.id(name)), [one, three, four]);
        let revoked = device(&tree, two).await;
        assert_eq!((&revoked["state"], &revoked["state_reason"]), (&json!("offline"), &json!("revoked")));
        let settings = tree.api(MAIN).get("/api/v1/settings").await.good();
        assert_eq!(settings["poll_normal_s"], 1_234, "{settings}");

        // What was ordered before the backup and run after it is not run again, and its result is there.
        let waits = tree.completed(MAIN, &waits).await;
        assert_eq!((row(&waits, four)["state"].clone(), starts(&folder.join("waits"), four)), (json!("succeeded"), 1));
        // The job of the gap is back with the results of all that may still speak.
        let path = format!("/api/v1/jobs/{}", gap["id"].as_str().unwrap());
        eventually("the results of the gap are back", async || {
            let job = tree.api(MAIN).get(path.clone()).await;
            holds(job.status == 200 && job.body["counts"]["succeeded"] == 3, job.body)
        })
        .await;
        let back = tree.api(MAIN).get(path).await.good();
        for device in [one, three, four] {
            assert_eq!(row(&back, device)["stdout"], "done\n");
            assert_eq!(starts(&folder.join("gap"), device), 1);
        }
        // INV-6: what changed in the gap is asked for.
        eventually("the inventory is healed", async || {
            let seen = packages(&tree).await;
            holds(seen == before + 1, seen)
        })
        .await;

        // New jobs run, once each, and the revoked device is not among their targets.
        let new = tree.order(MAIN, "all", counted(&folder.join("new")), 60).await;
        let new = tree.completed(MAIN, &new).await;
        assert_eq!(count(&new, "succeeded"), 3, "{new}");
        assert_eq!(ids.map(|id| starts(&folder.join("new"), id)), [1, 0, 1, 1]);
        assert_eq!(ids.map(|id| starts(&folder.join("done"), id)), [1, 1, 1, 1], "and old ones did not run again");
        // The next start listens no more and raises nothing.
        tree.stop_server().await;
        tree.start_server().await;
        assert_eq!(recovery(&tree).await, json!({ "term": 2, "recovering": null }));
        tree.stop().await;
    });
}

#[test]
fn ops_7_an_operator_ends_a_recovery_and_whoever_comes_later_still_tells_whom_it_saw_revoked() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        tree.agent(MAIN, "pc-01", "osaka", platform::simulated(1, "here")).await;
        tree.online(MAIN, ["pc-01"]).await;
        let one = tree.id("pc-01");
        let slots = async |used: u64| {
            eventually("the relay shows its slots", async || {
                let seen = tree.tree_node("osaka", MAIN).await["slots"]["used"].clone();
                holds(seen == used, seen)
            })
            .await;
        };
        slots(1).await;
        let backup = tree.back_up_server().await;
        tree.api(MAIN).post(format!("/api/v1/nodes/{one}/revoke"), Value::Null).await.good();
        // It has the list once it has cut the device off.
        slots(0).await;
        tree.stop_agent("pc-01").await;
        tree.stop_relay("osaka").await;
        tree.lose_server(&backup).await;
        assert!(recovery(&tree).await["recovering"].is_object());
        tree.api("system").post("/api/v1/recovery/end", Value::Null).await.good();
        eventually("it is over", async || {
            let seen = recovery(&tree).await;
            holds(seen["recovering"].is_null(), seen)
        })
        .await;
        let audit = tree.server().store().audit(&tenant("system"), 10).await.expect("the store answers");
        let ended = audit.iter().find(|row| row.what == "recovery.end");
        assert_eq!(ended.map(|row| row.who.as_str()), Some("admin"), "{audit:?}");
        let again = tree.api("system").post("/api/v1/recovery/end", Value::Null).await;
        assert_eq!(again.refusal(), (409, "not_recovering"));
        assert_ne!(device(&tree, one).await["state_reason"], "revoked", "nobody has told yet");
        tree.start_relay("osaka").await;
        eventually("the relay tells", async || {
            let seen = device(&tree, one).await;
            holds(seen["state_reason"] == "revoked", seen)
        })
        .await;
        tree.stop().await;
    });
}

#[test]
fn ops_7_a_database_put_back_by_hand_is_found_out_and_recovered_from() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        tree.agent(MAIN, "pc-01", "osaka", platform::simulated(1, "here")).await;
        tree.agent(MAIN, "pc-02", "osaka", platform::simulated(2, "there")).await;
        tree.online(MAIN, ["pc-01", "pc-02"]).await;
        let one = tree.id("pc-01");
        tree.stop_server().await;
        let database = tree.copy_database().await;
        tree.start_server().await;
        tree.online(MAIN, ["pc-01", "pc-02"]).await;
        tree.api(MAIN).post(format!("/api/v1/nodes/{one}/revoke"), Value::Null).await.good();
        eventually("the relay has the list", async || {
            let seen = tree.tree_node("osaka", MAIN).await["slots"]["used"].clone();
            holds(seen == 1, seen)
        })
        .await;
        tree.stop_server().await;
        tree.put_back(&database);
        tree.start_server().await;
        eventually("it knows that it is an older one, and has listened", async || {
            let seen = recovery(&tree).await;
            holds(seen == json!({ "term": 2, "recovering": null }), seen)
        })
        .await;
        assert_eq!(device(&tree, one).await["state_reason"], "revoked");
        tree.online(MAIN, ["pc-02"]).await;
        let job = tree.run(MAIN, "all", &["true"]).await;
        assert_eq!(count(&job, "succeeded"), 1, "{job}");
        tree.stop().await;
    });
}
