//! Nodes as values, many tiers, builds and traces.

use super::{MAIN, SHIM};
use branchline_agent::platform::host;
use branchline_node::identity::Bundle;
use branchline_tests::tree::{
    RelayWish, Tree, count, eventually, holds, logs, platform, row, scenario, script, targets,
};
use std::collections::BTreeSet;

#[test]
fn node_is_a_value_50_agents_two_relays_and_a_server_in_one_process() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        let mut names = Vec::new();
        for relay in 1..=2 {
            let parent = format!("relay-{relay}");
            tree.relay(MAIN, &parent, "server", RelayWish::default()).await;
            for n in 1..=25 {
                let name = format!("pc-{relay}-{n:02}");
                tree.agent(MAIN, &name, &parent, platform::simulated(100 * relay + n, &format!("I am {name}"))).await;
                names.push(name);
            }
        }
        tree.online(MAIN, &names).await;
        let job = tree.run(MAIN, "all", &["true"]).await;
        assert_eq!((targets(&job), count(&job, "succeeded")), (50, 50), "{}", job["counts"]);
        for name in &names {
            let row = row(&job, tree.id(name));
            assert_eq!(row["stdout"], format!("I am {name}"), "each row is its own device's: {row}");
        }
        let ids: BTreeSet<_> = names.iter().map(|name| tree.id(name)).collect();
        assert_eq!(ids.len(), 50);
        let devices = tree.devices(MAIN).await;
        for name in &names {
            assert_eq!(devices[name]["path"], serde_json::json!([format!("relay-{}", &name[3..4])]), "{name}");
        }
        tree.stop().await;
    });
}

#[test]
fn top_20_a_job_and_an_inventory_pass_gateway_and_two_relays() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.gateway("dmz").await;
        tree.relay(MAIN, "osaka", "gateway", RelayWish::default()).await;
        tree.relay(MAIN, "annex", "osaka", RelayWish::default()).await;
        tree.agent(MAIN, "pc-01", "annex", host()).await;
        tree.online(MAIN, ["pc-01"]).await;
        let id = tree.id("pc-01");
        let job = tree.order(MAIN, "relay:annex", script("printf '%s' \"$BRANCHLINE_DEVICE\""), 60).await;
        let job = tree.completed(MAIN, &job).await;
        assert_eq!((targets(&job), count(&job, "succeeded")), (1, 1), "{job}");
        assert_eq!(row(&job, id)["stdout"], id.to_string());
        let device = &tree.devices(MAIN).await["pc-01"];
        assert_eq!(device["path"], serde_json::json!(["dmz", "osaka", "annex"]));
        let wanted = host().collect(&["software".to_string()]).sections["software"].len() as u64;
        eventually("the inventory is at the server", async || {
            let device = tree.devices(MAIN).await.remove("pc-01").unwrap_or_default();
            let packages = device["inventory"]["packages"].as_u64();
            holds(packages == Some(wanted), &device["inventory"])
        })
        .await;
        tree.stop().await;
    });
}

#[test]
fn ops_2_every_node_tells_the_same_build() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.gateway("dmz").await;
        tree.relay(MAIN, "osaka", "gateway", RelayWish::default()).await;
        let build = env!("CARGO_PKG_VERSION");
        for node in ["server", "dmz", "osaka"] {
            eventually("the status tells a build", async || {
                let status = tree.status(node).await;
                holds(status["build"].is_string(), status)
            })
            .await;
            assert_eq!(tree.status(node).await["build"], build, "{node}");
        }
        let api = tree.api(MAIN).get("/api/v1/openapi.json").await.good();
        assert_eq!(api["info"]["version"], build, "the API");
        tree.stop().await;
    });
}

#[test]
fn ops_9_one_trace_leads_from_the_order_to_the_result_and_no_secret_is_logged() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.gateway("dmz").await;
        tree.relay(MAIN, "osaka", "gateway", RelayWish::default()).await;
        tree.agent(MAIN, "pc-01", "osaka", platform::scripted(1)).await;
        tree.online(MAIN, ["pc-01"]).await;
        let content = "ops9-script-content-8c1f";
        let job = tree.order(MAIN, "all", script(&format!("echo {content}; exit 5")), 60).await;
        let job = tree.completed(MAIN, &job).await;
        assert_eq!(count(&job, "failed"), 1, "{job}");
        assert_eq!(row(&job, tree.id("pc-01"))["stdout"], format!("{content}\n"), "the script ran");

        let trace = tree.trace(MAIN, &job).await;
        // In the order in which the trace passes; the gateway copies bytes it cannot read (GW-1), so it is not among them.
        let steps = [
            ("branchline_server", "issued"),
            ("branchline_server", "sent"),
            ("branchline_relay", "order held"),
            ("branchline_relay", "handed on"),
            ("branchline_agent", "what=\"started\""),
            ("branchline_agent", "what=\"failed\""),
            ("branchline_relay", "result carried"),
            ("branchline_server", "ended"),
        ];
        let told = eventually("every node on the way told the trace", async || {
            let lines = logs::lines_with(&[&trace]);
            let at = |(node, what): &(&str, &str)| {
                lines.iter().position(|l| l.target.starts_with(node) && l.text.contains(what))
            };
            let places: Vec<_> = steps.iter().map(at).collect();
            match places.iter().all(Option::is_some) {
                true => Ok(places.into_iter().flatten().collect::<Vec<_>>()),
                false => Err(format!("{places:?} in {lines:#?}")),
            }
        })
        .await;
        assert!(told.is_sorted(), "the trace goes down and comes back up: {told:?} of {steps:?}");

        let mut secrets = vec![content.to_string()];
        for token in [MAIN, "system"] {
            let text = std::fs::read_to_string(tree.folder("server").join("tokens").join(token)).unwrap();
            secrets.push(text.trim().to_string());
        }
        for node in ["dmz", "osaka", "pc-01"] {
            let bundle = Bundle::open(&std::fs::read_to_string(tree.bundle_file(node)).unwrap()).unwrap();
            secrets.extend(bundle.token.clone());
            if !bundle.link_token.is_empty() {
                secrets.push(bundle.link_token.clone());
            }
        }
        assert!(secrets.iter().all(|s| s.len() >= 16), "something to look for");
        let leaks = logs::lines(|line| secrets.iter().any(|secret| line.text.contains(secret.as_str())));
        assert!(leaks.is_empty(), "{leaks:#?}");
        tree.stop().await;
    });
}
