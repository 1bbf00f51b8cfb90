//! Who is kept apart: revoked nodes from everybody, tenants from one another.

use super::{MAIN, SHIM};
use branchline_tests::tree::{
    RelayWish, Tree, count, eventually, holds, logs, platform, row, scenario, targets, tenant,
};
use serde_json::{Value, json};

#[test]
fn enr_9_a_revoked_device_loses_its_link_and_is_refused_when_it_returns() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        for (n, (name, parent)) in
            [("direct", "server"), ("below", "osaka"), ("stays", "osaka")].into_iter().enumerate()
        {
            tree.agent(MAIN, name, parent, platform::simulated(n as u64, name)).await;
        }
        tree.online(MAIN, ["direct", "below", "stays"]).await;
        let ids = ["direct", "below"].map(|name| (name, tree.id(name).to_string()));

        for (name, id) in &ids {
            tree.api(MAIN).post(format!("/api/v1/nodes/{id}/revoke"), Value::Null).await.good();
            let figures = tree.running(name).figures();
            eventually("its link is closed", async || holds(figures.borrow().link != "up", figures.borrow().link))
                .await;
        }
        eventually("the relay holds only the link that stays", async || {
            let status = tree.status("osaka").await;
            let figures = &status["figures"];
            holds(figures["links"] == 1 && figures["slots"]["used"] == 1, figures)
        })
        .await;

        for (name, id) in &ids {
            let refusals = || logs::lines_with(&["link refused", id, "revoked"]).len();
            let before = refusals();
            tree.stop_agent(name).await;
            tree.start_agent(name).await;
            eventually("its return is refused", async || holds(refusals() > before, (before, refusals()))).await;
            assert_ne!(tree.running(name).figures().borrow().link, "up", "{name}");
            let device = tree.api(MAIN).get(format!("/api/v1/devices/{id}")).await.good();
            assert_eq!((&device["state"], &device["state_reason"]), (&json!("offline"), &json!("revoked")), "{device}");
        }
        assert_eq!(tree.status("osaka").await["figures"]["links"], 1);

        let job = tree.run(MAIN, "all", &["true"]).await;
        assert_eq!((targets(&job), count(&job, "succeeded")), (1, 1), "only who stays: {job}");
        assert_eq!(row(&job, tree.id("stays"))["stdout"], "stays");
        tree.stop().await;
    });
}

#[test]
fn top_22_a_foreign_tenants_device_is_404_without_row_count_or_event() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &["acme", "zeta"]).await;
        tree.agent("acme", "acme-pc", "server", platform::simulated(1, "acme")).await;
        tree.agent("zeta", "zeta-pc", "server", platform::simulated(2, "zeta")).await;
        tree.online("acme", ["acme-pc"]).await;
        tree.online("zeta", ["zeta-pc"]).await;
        let (own, foreign) = (tree.id("acme-pc").to_string(), tree.id("zeta-pc").to_string());
        let theirs = tree.run("zeta", "all", &["true"]).await;
        assert_eq!((targets(&theirs), count(&theirs, "succeeded")), (1, 1), "{theirs}");
        let their_job = theirs["id"].as_str().unwrap().to_string();
        eventually("the inventory is there to be asked for", async || {
            let answer = tree.api("zeta").get(format!("/api/v1/devices/{foreign}/inventory")).await;
            holds(answer.status == 200, answer.status)
        })
        .await;

        let (acme, store) = (tree.api("acme"), tree.server().store().clone());
        let audit = async || {
            (store.audit(&tenant("zeta"), 1_000).await.unwrap(), store.jobs(&tenant("zeta"), 1_000).await.unwrap())
        };
        let before = audit().await;
        for name in [foreign.as_str(), "zeta-pc"] {
            for path in [format!("/api/v1/devices/{name}"), format!("/api/v1/devices/{name}/inventory")] {
                assert_eq!(acme.get(path.clone()).await.status, 404, "{path}");
            }
            for path in [format!("/api/v1/devices/{name}/refresh"), format!("/api/v1/nodes/{name}/revoke")] {
                assert_eq!(acme.post(path.clone(), Value::Null).await.status, 404, "{path}");
            }
        }
        assert_eq!(acme.get(format!("/api/v1/jobs/{their_job}")).await.status, 404);
        for path in ["/api/v1/devices?on=all&tenant=zeta", "/api/v1/jobs?tenant=zeta", "/api/v1/tree?tenant=zeta"] {
            assert_eq!(acme.get(path).await.status, 403, "{path}");
        }

        // A job that names it treats it as any id that does not exist, and `all` means one's own.
        let ours = acme.post("/api/v1/jobs", json!({ "on": format!("device:{foreign} or device:{own}"), "verb": "run_script", "args": { "argv": ["true"] } }));
        let ours = tree.completed("acme", &ours.await.good()).await;
        assert_eq!((targets(&ours), row(&ours, &foreign)["state"].as_str()), (2, Some("no_such_device")), "{ours}");
        let all = tree.run("acme", "all", &["true"]).await;
        assert_eq!((targets(&all), row(&all, &own)["stdout"].as_str()), (1, Some("acme")), "{all}");

        for path in ["/api/v1/devices?on=all", "/api/v1/tree", "/api/v1/jobs", "/api/v1/sites", "/api/v1/gateways"] {
            let text = acme.get(path).await.good().to_string();
            assert!(!text.contains("zeta") && !text.contains(&foreign) && !text.contains(&their_job), "{path}: {text}");
        }
        assert_eq!(tree.devices("acme").await.keys().collect::<Vec<_>>(), ["acme-pc"]);
        assert_eq!(audit().await, before, "no event and no job at the other tenant");
        let events = store.audit(&tenant("acme"), 1_000).await.unwrap();
        assert!(!events.is_empty(), "acme's own acts are audited");
        let job = tree.run("zeta", "all", &["true"]).await;
        assert_eq!(count(&job, "succeeded"), 1, "it was neither revoked nor cut off");
        tree.stop().await;
    });
}
