//! A fault in one actor stays in that actor.

use super::{MAIN, SHIM};
use branchline_node::{
    process::RunningNode,
    supervise::{ChildLife, ChildState, WorkersState},
};
use branchline_tests::tree::{
    RelayWish, Tree, count, eventually, holds, logs,
    platform::{Faulty, scripted, simulated},
    scenario, script, targets,
};
use serde_json::Value;
use std::time::Duration;

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

/// The sessions of a node.
async fn sessions(tree: &Tree, node: &str) -> WorkersState {
    let snapshot = tree.supervision(node).snapshot().await.expect("the supervisor answers");
    snapshot.workers.into_iter().find(|w| w.kind == "session").expect("every parent has sessions")
}

/// Makes a device's session at its parent panic, as soon as there is one.
async fn break_session(tree: &Tree, parent: &str, device: &str) {
    let id = tree.id(device).to_string();
    eventually("the device has a session to break", async || {
        let broken = tree.supervision(parent).inject_fault(&id).await.expect("the supervisor answers");
        holds(broken, device)
    })
    .await;
}

#[test]
fn top_21_a_panic_in_one_devices_session_is_its_own_at_server_and_relay_and_the_fifth_parks_it() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        let parents = [("server", "hq-1", "hq-2"), ("osaka", "os-1", "os-2")];
        for (n, (parent, broken, sound)) in (1..).zip(parents) {
            tree.agent(MAIN, broken, parent, scripted(n)).await;
            tree.agent(MAIN, sound, parent, scripted(n + 10)).await;
        }
        tree.online(MAIN, ["hq-1", "hq-2", "os-1", "os-2"]).await;
        for (parent, broken, sound) in parents {
            let restarts = tree.metric(parent, "branchline_restarts_total", "").await;
            let attachment = tree.running(sound).figures().borrow().attachment;
            let on = format!("device:{broken} or device:{sound}");
            let job = tree.order(MAIN, &on, script("sleep 1; echo done"), 60).await;
            eventually("the job runs at the device", async || {
                let open = tree.running(broken).figures().borrow().open_orders;
                holds(open == 1, open)
            })
            .await;
            break_session(&tree, parent, broken).await;
            let answer = tokio::time::timeout(Duration::from_secs(1), tree.status(parent)).await;
            assert!(answer.expect("an answer within 1 s")["build"].is_string(), "{parent}");
            // Its job goes on while the link is away, and its result comes with the next one.
            let job = tree.completed(MAIN, &job).await;
            assert_eq!((targets(&job), count(&job, "succeeded")), (2, 2), "{parent}: {job}");
            eventually("one restart more", async || {
                let now = tree.metric(parent, "branchline_restarts_total", "").await;
                holds(now == restarts + 1.0, (parent, restarts, now))
            })
            .await;
            assert_eq!(sessions(&tree, parent).await.panics, 1, "{parent}");
            let still = tree.running(sound).figures().borrow().attachment;
            assert_eq!(still, attachment, "{sound} has the link it had");
        }

        let (parent, broken, sound) = parents[1];
        for _ in 0..4 {
            break_session(&tree, parent, broken).await;
        }
        let parked = eventually("the fifth panic parks the device", async || {
            let sessions = sessions(&tree, parent).await;
            if sessions.parked.is_empty() { Err(format!("{sessions:?}")) } else { Ok(sessions) }
        })
        .await;
        assert_eq!((parked.parked, parked.panics), (vec![tree.id(broken).to_string()], 5));
        eventually("it is told so and comes no more", async || {
            let lines = logs::lines_with(&["link down", &tree.id(broken).to_string(), "refused=true"]);
            holds(!lines.is_empty(), lines.len())
        })
        .await;
        let on = format!("device:{sound} or device:hq-1 or device:hq-2");
        let job = tree.run(MAIN, &on, &["true"]).await;
        assert_eq!((targets(&job), count(&job, "succeeded")), (3, 3), "everybody else goes on: {job}");
        for node in ["server", "osaka"] {
            assert!(tree.status(node).await["build"].is_string(), "{node} answers");
        }
        tree.stop().await;
    });
}
