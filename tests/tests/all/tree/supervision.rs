//! A fault in one actor stays in that actor.

use super::{MAIN, SHIM};
use branchline_node::{
    process::RunningNode,
    supervise::{ChildLife, ChildState},
};
use branchline_tests::tree::{
    RelayWish, Tree, count, eventually, holds,
    platform::{Faulty, simulated},
    scenario, targets,
};
use serde_json::Value;

const PC: &str = "faulty";

async fn collector(tree: &Tree) -> ChildState {
    let snapshot = tree.running(PC).supervision().snapshot().await.expect("the supervisor answers");
    snapshot.child("collector").expect("every agent has one").clone()
}

/// A job to both devices succeeds on both.
async fn jobs_go_on(tree: &Tree) {
    let job = tree.run(MAIN, "all", &["true"]).await;
    assert_eq!((targets(&job), count(&job, "succeeded")), (2, 2), "{job}");
}

#[test]
fn top_21_a_panic_in_one_devices_actor_is_mended_and_five_in_a_minute_park_that_actor_alone() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        let device = Faulty::new(simulated(1, ""), 0);
        tree.agent(MAIN, PC, "osaka", device.clone()).await;
        tree.agent(MAIN, "sound", "osaka", simulated(2, "")).await;
        tree.online(MAIN, [PC, "sound"]).await;
        eventually("the first inventory came", async || {
            let devices = tree.devices(MAIN).await;
            holds(devices[PC]["inventory"].is_object(), &devices[PC])
        })
        .await;
        assert_eq!(collector(&tree).await.restarts, 0);

        // One panic in the midst of a job: restarted once, and the job resumes.
        device.panic_next(1);
        let refresh = format!("/api/v1/devices/{PC}/refresh");
        let job = tree.api(MAIN).post(&refresh, Value::Null).await.good();
        jobs_go_on(&tree).await;
        let job = tree.completed(MAIN, &job).await;
        assert_eq!(count(&job, "succeeded"), 1, "{job}");
        let mended = collector(&tree).await;
        assert_eq!((mended.restarts, mended.state), (1, ChildLife::Running), "{mended:?}");
        let page = tree.running(PC).metrics().render();
        assert!(page.lines().any(|line| line == "branchline_restarts_total 1"), "{page}");

        // It does not stop panicking: parked and reported; everything else of the device goes on.
        device.panic_next(usize::MAX);
        tree.api(MAIN).post(&refresh, Value::Null).await.good();
        let parked = eventually("the collector is parked", async || {
            let state = collector(&tree).await;
            if state.state == ChildLife::Parked { Ok(state) } else { Err(format!("{state:?}")) }
        })
        .await;
        assert_eq!(parked.panics + parked.failures, 5, "{parked:?}");
        assert!(parked.first_fault.is_some(), "{parked:?}");
        jobs_go_on(&tree).await;
        assert_eq!(*tree.running(PC).end().borrow(), None, "the node lives");
        for node in ["server", "osaka"] {
            assert!(tree.status(node).await["build"].is_string(), "{node} answers");
        }
        tree.stop().await;
    });
}
