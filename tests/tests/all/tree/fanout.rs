//! One order for many devices below one relay, and what comes back.

use super::{MAIN, SHIM};
use branchline_agent::platform::Platform;
use branchline_tests::tree::{
    RelayWish, Tree, count, eventually, holds, logs, platform, row, scenario, script, targets,
};
use serde_json::json;
use std::{fmt::Write, sync::Arc};

const RELAY: &str = "osaka";
const BYTES: &str = "branchline_uplink_bytes_total";

async fn relay_with(devices: &[(String, Arc<dyn Platform>)]) -> Tree {
    let mut tree = Tree::start(SHIM, &[MAIN]).await;
    tree.relay(MAIN, RELAY, "server", RelayWish::default()).await;
    for (name, platform) in devices {
        tree.agent(MAIN, name, RELAY, platform.clone()).await;
    }
    tree.online(MAIN, devices.iter().map(|(name, _)| name)).await;
    tree
}

async fn inventories(tree: &Tree, devices: &[(String, Arc<dyn Platform>)]) {
    for (name, platform) in devices {
        let found = platform.collect(&[]);
        eventually("the inventory is at the server", async || {
            let answer = tree.api(MAIN).get(format!("/api/v1/devices/{name}/inventory")).await;
            holds(answer.body["digest"] == found.digest().to_string().as_str(), answer.status)
        })
        .await;
        let held = tree.api(MAIN).get(format!("/api/v1/devices/{name}/inventory")).await.good();
        assert_eq!(held["device"], tree.id(name).to_string());
        assert_eq!(held["sections"], json!(found.sections), "{name}: the exact state");
        assert!(held["settings_version"].is_u64() && held["collected_at"].is_string(), "{held}");
    }
}

#[test]
fn rly_3_an_order_crosses_the_uplink_once_and_goes_to_its_targets_only() {
    scenario(async {
        let devices: Vec<_> = (1..=20).map(|n| (format!("pc-{n:02}"), platform::scripted(n))).collect();
        let tree = relay_with(&devices).await;
        inventories(&tree, &devices).await;
        let mut text = String::from("printf '%s' \"$BRANCHLINE_DEVICE\"\nexit 0\n");
        let mut line = 0;
        while text.len() < 100_000 {
            line += 1;
            writeln!(text, "# line {line} of a script that is large only for its size").unwrap();
        }
        let before = tree.metric(RELAY, BYTES, "dir=\"down\"").await;
        let job = tree.order(MAIN, "relay:osaka and not device:pc-20", script(&text), 60).await;
        let job = tree.completed(MAIN, &job).await;
        assert_eq!((targets(&job), count(&job, "succeeded")), (19, 19), "{}", job["counts"]);
        for (name, _) in &devices[..19] {
            assert_eq!(row(&job, tree.id(name))["stdout"], tree.id(name).to_string());
        }
        let crossed = tree.metric(RELAY, BYTES, "dir=\"down\"").await - before;
        let size = text.len() as f64;
        assert!(crossed >= size, "the relay counts what crosses: {crossed} of {size}");
        assert!(
            crossed <= 1.05 * size + 19.0 * 1_024.0,
            "once, with a proof and acknowledgements each: {crossed} of {size}"
        );

        let trace = tree.trace(MAIN, &job).await;
        let told = |name: &str| logs::lines_with(&[&trace, &tree.id(name).to_string()]);
        let handed_to = |name: &str| {
            let lines = told(name).into_iter().filter(|l| l.target.starts_with("branchline_relay"));
            lines.filter(|l| l.text.contains("handed on")).count()
        };
        for (name, _) in &devices[..19] {
            assert_eq!(handed_to(name), 1, "{name}: {:#?}", told(name));
        }
        assert!(told("pc-20").is_empty(), "not targeted, nothing received: {:#?}", told("pc-20"));
        let figures = tree.running("pc-20").figures().borrow().clone();
        assert_eq!((figures.open_orders, figures.remembered_orders), (0, 0));
        let counted = tree.running("pc-20").metrics().render();
        let orders = counted.lines().find(|l| l.starts_with("branchline_orders_") && !l.ends_with(" 0"));
        assert_eq!(orders, None, "nor anything it had to refuse");
        tree.stop().await;
    });
}

#[test]
fn rly_4_rly_5_each_devices_inventory_and_end_come_back_as_its_own() {
    scenario(async {
        // Two of each: done, exit 3, too slow, cannot, cut in mid-run.
        let names: Vec<String> = (1..=10).map(|n| format!("pc-{n:02}")).collect();
        let platform = |n: usize| -> Arc<dyn Platform> {
            let real = platform::scripted(n as u64);
            if n == 7 || n == 8 { Arc::new(platform::Scriptless(real)) } else { real }
        };
        let devices: Vec<_> = names.iter().enumerate().map(|(n, name)| (name.clone(), platform(n + 1))).collect();
        let tree = relay_with(&devices).await;
        inventories(&tree, &devices).await;

        let ids: Vec<String> = names.iter().map(|name| tree.id(name).to_string()).collect();
        let case = |a: usize, does: &str| format!("{}|{}) {does};;\n", ids[a], ids[a + 1]);
        let text = [
            "case \"$BRANCHLINE_DEVICE\" in\n".to_string(),
            case(0, "printf 'done by %s' \"$BRANCHLINE_DEVICE\""),
            case(2, "printf 'out \\377'; printf 'sorry' >&2; exit 3"),
            case(4, "printf 'begun'; sleep 300"),
            // Its parent is the shim that would tell how it ends.
            case(8, "kill -9 $PPID; exit 0"),
            "*) exit 99;;\nesac\n".to_string(),
        ]
        .concat();
        let unknown = "device:nobody-1 or device:nobody-2";
        let job = tree.order(MAIN, &format!("relay:osaka or {unknown}"), script(&text), 4).await;
        let job = tree.completed(MAIN, &job).await;

        let counts =
            ["succeeded", "failed", "unsupported", "outcome_unknown", "no_such_device"].map(|s| count(&job, s));
        assert_eq!((counts, targets(&job)), ([2, 4, 2, 2, 2], 12), "{job:#}");
        assert_eq!(job["results"].as_array().map(Vec::len), Some(12), "one row per device");
        for (n, id) in ids.iter().enumerate() {
            let row = row(&job, id);
            let (state, code, stdout) = (&row["state"], &row["exit_code"], &row["stdout"]);
            let reason = row["reason"].as_str().unwrap_or_default();
            match n / 2 {
                0 => {
                    assert_eq!((state, code, stdout), (&json!("succeeded"), &json!(0), &json!(format!("done by {id}"))))
                }
                1 => {
                    assert_eq!((state, code), (&json!("failed"), &json!(3)), "{row}");
                    assert_eq!((&row["stdout_base64"], &row["stderr"]), (&json!("b3V0IP8="), &json!("sorry")), "{row}");
                }
                2 => {
                    assert_eq!((state, stdout), (&json!("failed"), &json!("begun")), "{row}");
                    assert!(reason.contains("time_out"), "{row}");
                }
                3 => {
                    assert_eq!(state, "unsupported", "{row}");
                    assert!(reason.contains("run_script") && reason.contains("virtual"), "{row}");
                }
                _ => {
                    assert_eq!(state, "outcome_unknown", "{row}");
                    assert!(reason.contains("cut"), "{row}");
                }
            }
        }
        for nobody in ["nobody-1", "nobody-2"] {
            assert_eq!(row(&job, nobody)["state"], "no_such_device");
        }
        tree.stop().await;
    });
}
