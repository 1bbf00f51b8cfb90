//! Jobs as an administrator orders them.

use super::{MAIN, SHIM};
use branchline_protocol::{job::SCRIPT_BYTES_MAX, wire::Contact};
use branchline_tests::tree::{Tree, count, eventually, holds, platform, row, scenario, script, targets};
use serde_json::json;
use std::path::Path;

#[test]
fn job_1_each_target_has_its_own_state_and_the_counts_add_up() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.agent(MAIN, "a", "server", platform::simulated(1, "ran")).await;
        tree.agent_that(MAIN, "b", "server", platform::simulated(2, "ran"), Contact::Poll).await;
        tree.online(MAIN, ["a", "b"]).await;
        let (a, b) = (tree.id("a"), tree.id("b"));
        tree.stop_agent("b").await;

        let job = tree.order(MAIN, "device:a or device:b or device:x", json!({ "argv": ["true"] }), 60).await;
        assert_eq!(targets(&job), 3, "{job}");
        let path = format!("/api/v1/jobs/{}", job["id"].as_str().unwrap());
        let job = eventually("A ran", async || {
            let job = tree.api(MAIN).get(&path).await.good();
            if row(&job, a)["state"] == "succeeded" { Ok(job) } else { Err(job["counts"].to_string()) }
        })
        .await;
        assert_eq!((row(&job, b)["state"].as_str(), row(&job, b)["stdout"].as_str()), (Some("queued"), Some("")));
        assert!(row(&job, b)["next_contact"].is_string(), "with the next expected poll: {}", row(&job, b));
        assert_eq!(row(&job, "x")["state"], "no_such_device");
        assert_eq!((targets(&job), job["complete"].as_bool()), (3, Some(false)), "{job}");
        let of = |job: &serde_json::Value| ["succeeded", "queued", "no_such_device"].map(|s| count(job, s));
        assert_eq!(of(&job), [1, 1, 1]);

        tree.start_agent("b").await;
        let job = tree.completed(MAIN, &job).await;
        assert_eq!((of(&job), row(&job, b)["stdout"].as_str()), ([2, 0, 1], Some("ran")), "{job}");

        for (on, code) in [("", None), ("tag:nobody-bears-it", Some("no_targets"))] {
            let body = json!({ "on": on, "verb": "run_script", "args": { "argv": ["true"] } });
            let answer = tree.api(MAIN).post("/api/v1/jobs", body).await;
            assert_eq!(answer.status, 422, "an empty target: {answer:?}");
            assert!(code.is_none_or(|code| answer.refusal().1 == code), "{answer:?}");
        }
        let jobs = tree.api(MAIN).get("/api/v1/jobs").await.good();
        assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(1), "refused jobs leave nothing: {jobs}");
        tree.stop().await;
    });
}

#[test]
fn job_9_scripts_end_to_end() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.agent(MAIN, "pc-01", "server", platform::scripted(1)).await;
        tree.online(MAIN, ["pc-01"]).await;
        let id = tree.id("pc-01");
        let run = async |args: serde_json::Value, time_out_s: u64| {
            let job = tree.order(MAIN, "all", args, time_out_s).await;
            row(&tree.completed(MAIN, &job).await, id)
        };

        let told = run(script("echo out; echo err >&2; exit 7"), 60).await;
        assert_eq!((&told["state"], &told["exit_code"]), (&json!("failed"), &json!(7)), "{told}");
        assert_eq!(
            (&told["stdout"], &told["stderr"], &told["truncated"]),
            (&json!("out\n"), &json!("err\n"), &json!(false))
        );
        assert!(told["started_at"].as_str() <= told["ended_at"].as_str() && told["started_at"].is_string(), "{told}");

        let much = run(script("head -c 70000 /dev/zero | tr '\\0' x"), 60).await;
        assert_eq!((&much["state"], &much["truncated"]), (&json!("succeeded"), &json!(true)));
        assert_eq!(much["stdout"], "x".repeat(65_536), "the first 64 KiB");
        let just = run(script("head -c 65536 /dev/zero | tr '\\0' x"), 60).await;
        assert_eq!((&just["stdout"], &just["truncated"]), (&json!("x".repeat(65_536)), &json!(false)), "at the bound");

        let late = run(script("sleep 300 & echo $!; wait"), 1).await;
        assert_eq!(late["state"], "failed", "{late}");
        assert!(late["reason"].as_str().is_some_and(|r| r.contains("time_out")), "{late}");
        let grandchild: u32 = late["stdout"].as_str().and_then(|s| s.trim().parse().ok()).expect("its number");
        eventually("the whole group is gone", async || {
            let stat = std::fs::read_to_string(Path::new("/proc").join(grandchild.to_string()).join("stat"));
            let ended = stat.as_ref().map_or(true, |s| s.contains(") Z ") || !s.contains("(sleep)"));
            holds(ended, stat)
        })
        .await;

        let mut args = script("true");
        args["interpreter"] = json!("/nowhere/interpreter");
        let lacking = run(args, 60).await;
        assert_eq!(lacking["state"], "unsupported", "{lacking}");
        assert!(lacking["reason"].as_str().is_some_and(|r| r.starts_with("interpreter")), "{lacking}");

        let bytes = run(script("printf '\\000\\377'; printf '\\376' >&2"), 60).await;
        assert_eq!((&bytes["stdout_base64"], &bytes["stderr_base64"]), (&json!("AP8="), &json!("/g==")), "{bytes}");
        assert!(bytes["stdout"].is_null());

        let largest = "#".repeat(SCRIPT_BYTES_MAX);
        assert_eq!(run(script(&largest), 60).await["state"], "succeeded", "1 MB passes");
        let body = json!({ "on": "all", "verb": "run_script", "args": script(&(largest + "#")) });
        let answer = tree.api(MAIN).post("/api/v1/jobs", body).await;
        assert_eq!(answer.refusal(), (413, "too_large"), "one byte more does not");
        tree.stop().await;
    });
}
