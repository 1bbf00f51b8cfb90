//! A laptop that moves while it works.

use super::{MAIN, block, shown, world};
use branchline_tests::tree::{
    eventually, holds,
    platform::{self, Declaring},
    row, scenario, script,
    ways::Roaming,
};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc};

/// Marks its start, then waits for a file.
pub(super) fn waiting(folder: &Path) -> Value {
    let path = folder.display();
    script(&format!("echo started >>{path}/starts\nwhile [ ! -e {path}/go ]; do sleep 0.05; done\necho done\n"))
}

/// How often it began.
pub(super) fn starts(folder: &Path) -> usize {
    std::fs::read_to_string(folder.join("starts")).unwrap_or_default().lines().count()
}

fn can(device: &Value, word: &str) -> bool {
    device["capabilities"].as_array().is_some_and(|words| words.iter().any(|w| w == word))
}

/// `outside_first`: it begins outside and comes in, then goes out again.
fn moves(outside_first: bool) {
    scenario(async move {
        let (mut tree, direct, outer) = world().await;
        let laptop = Declaring(platform::scripted(1), vec!["connection_control", "power_on"]);
        tree.roaming(MAIN, "laptop", Arc::new(laptop), Roaming::default()).await;
        tree.stands("laptop", "connected", Some("direct")).await;
        let go_out = async || {
            outer.refuse(false);
            block(&direct);
            tree.stands("laptop", "connected", Some("gateway")).await;
        };
        let come_in = async || {
            direct.refuse(false);
            block(&outer);
            tree.stands("laptop", "connected", Some("direct")).await;
        };
        let able = async |route: &str| {
            let device = shown(&tree, "laptop", route).await;
            let inside = route == "direct";
            assert_eq!((can(&device, "connection_control"), can(&device, "power_on")), (inside, inside), "{device}");
            assert!(can(&device, "run_script"), "{device}");
            let one = tree.api(MAIN).get("/api/v1/devices/laptop").await.good();
            assert_eq!(one["capabilities"], device["capabilities"], "the same in the list and alone");
        };
        if outside_first {
            go_out().await;
        }
        let folder = tempfile::tempdir().unwrap();
        let job = tree.order(MAIN, "device:laptop", waiting(folder.path()), 120).await;
        let at = format!("/api/v1/jobs/{}", job["id"].as_str().unwrap());
        eventually("it runs", async || holds(starts(folder.path()) == 1, starts(folder.path()))).await;
        let routes: [&str; 3] =
            if outside_first { ["gateway", "direct", "gateway"] } else { ["direct", "gateway", "direct"] };
        able(routes[0]).await;
        for route in &routes[1..] {
            if *route == "direct" {
                come_in().await
            } else {
                go_out().await
            }
            able(route).await;
            // A device need not have said that it took a job before it runs: it says so within 200 ms, or on its next link.
            eventually("the server knows that it has the job", async || {
                let now = row(&tree.api(MAIN).get(&at).await.good(), tree.id("laptop"));
                let state = now["state"].as_str().unwrap_or_default().to_owned();
                assert!(["queued", "running", "delivered"].contains(&state.as_str()), "no end of its own: {now}");
                holds(state != "queued", now)
            })
            .await;
        }
        std::fs::write(folder.path().join("go"), "").unwrap();
        let job = tree.completed(MAIN, &job).await;
        let end = row(&job, tree.id("laptop"));
        assert_eq!((&end["state"], &end["stdout"]), (&json!("succeeded"), &json!("done\n")), "{end}");
        assert_eq!((starts(folder.path()), &end["late"]), (1, &Value::Null), "once, and not for want of news: {end}");
        let dead = tree.api(MAIN).get("/api/v1/dead-letters").await.good();
        assert_eq!(dead["dead_letters"].as_array().map_or(0, Vec::len), 0, "{dead}");
        tree.stop().await;
    });
}

#[test]
fn s_3_top_7_a_laptop_that_goes_out_and_back_while_a_job_runs_brings_one_result() {
    moves(false);
}

#[test]
fn s_3_top_7_a_laptop_that_comes_in_and_goes_out_again_while_a_job_runs_brings_one_result() {
    moves(true);
}
