//! Inventory from the device to the server: by itself, refreshed, healed.

use super::{MAIN, SHIM};
use branchline_agent::platform::{Platform, host};
use branchline_protocol::hash::Hash;
use branchline_server::store::Op;
use branchline_tests::tree::{RelayWish, Tree, count, eventually, holds, platform::Changing, scenario, tenant};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

const PC: &str = "pc-01";
/// So many that a whole inventory and a difference cannot be taken for one another.
const PACKAGES: usize = 3_000;
/// Bytes no whole inventory of so many packages fits in, and every difference of one package does.
const DIFFERENCE_BYTES_MAX: f64 = 30_000.0;

struct Office {
    tree: Tree,
    device: Arc<Changing>,
}

impl Office {
    async fn start(seed: u64) -> Office {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        let device = Changing::new(seed, PACKAGES);
        tree.agent(MAIN, PC, "osaka", device.clone()).await;
        tree.online(MAIN, [PC]).await;
        Office { tree, device }
    }

    async fn held(&self) -> Value {
        self.tree.api(MAIN).get(format!("/api/v1/devices/{PC}/inventory")).await.good()
    }

    /// Waits until the server holds exactly what a fresh full collection finds.
    async fn agrees(&self) -> Value {
        let found = self.device.collect(&[]);
        let digest = found.digest().to_string();
        eventually("the server holds what the device has", async || {
            let answer = self.tree.api(MAIN).get(format!("/api/v1/devices/{PC}/inventory")).await;
            holds(answer.body["digest"] == digest.as_str(), (answer.status, &answer.body["digest"]))
        })
        .await;
        let held = self.held().await;
        assert_eq!(held["sections"], json!(found.sections));
        held
    }

    /// Refreshes, waits until the device has nothing left that the server has not settled; answers the bytes the relay
    /// sent up meanwhile.
    async fn refresh(&self, full: bool) -> f64 {
        let before = self.bytes_up().await;
        let path = format!("/api/v1/devices/{PC}/refresh?full={full}");
        let job = self.tree.api(MAIN).post(path, Value::Null).await.good();
        assert_eq!(job["verb"], "refresh_inventory");
        let job = self.tree.completed(MAIN, &job).await;
        assert_eq!(count(&job, "succeeded"), 1, "{job}");
        self.settled().await;
        self.bytes_up().await - before
    }

    async fn settled(&self) {
        let figures = self.tree.running(PC).figures();
        eventually("every record is settled", async || {
            let spool = figures.borrow().spool;
            holds(spool.spool_records == 0, spool)
        })
        .await;
    }

    async fn bytes_up(&self) -> f64 {
        self.tree.metric("osaka", "branchline_uplink_bytes_total", "dir=\"up\"").await
    }
}

fn text<'a>(held: &'a Value, key: &str) -> &'a str {
    held[key].as_str().unwrap_or_else(|| panic!("{key} of {held}"))
}

#[test]
fn inv_1_inv_4_inv_5_the_first_is_whole_by_itself_and_later_ones_tell_what_changed() {
    scenario(async {
        let office = Office::start(1).await;
        let first = office.agrees().await;
        let jobs = office.tree.api(MAIN).get("/api/v1/jobs").await.good();
        assert_eq!(jobs["jobs"], json!([]), "INV-1: nobody asked for it");
        office.settled().await;

        // INV-4: nothing changed.
        let bytes = office.refresh(false).await;
        let second = office.agrees().await;
        assert_eq!(second["collected_at"], first["collected_at"], "no difference, no new collection time");
        assert!(text(&second, "last_contact") > text(&first, "last_contact"), "{first} {second}");
        assert!(bytes < DIFFERENCE_BYTES_MAX, "INV-5: a difference from the second time on: {bytes}");

        // One package more.
        office.device.install();
        let bytes = office.refresh(false).await;
        let third = office.agrees().await;
        assert!(text(&third, "collected_at") > text(&second, "collected_at"));
        assert!(text(&third, "last_contact") > text(&second, "last_contact"));
        assert_eq!(third["sections"]["software"].as_object().map(|s| s.len()), Some(PACKAGES + 1));
        assert!(bytes < DIFFERENCE_BYTES_MAX, "INV-5: {bytes}");

        // The detail view's refresh.
        let bytes = office.refresh(true).await;
        let fourth = office.agrees().await;
        assert!(bytes > 2.0 * DIFFERENCE_BYTES_MAX, "INV-5: whole, changed or not: {bytes}");
        assert_eq!(fourth["collected_at"], third["collected_at"]);
        office.tree.stop().await;
    });
}

#[test]
fn inv_6_a_difference_whose_base_the_server_lacks_is_not_applied_and_the_whole_is_sent() {
    scenario(async {
        let office = Office::start(2).await;
        office.agrees().await;
        office.settled().await;
        let (store, of, id) = (office.tree.server().store().clone(), tenant(MAIN), office.tree.id(PC));

        // The server as a backup from before the software was told.
        let older = store.inventory(&of, id).await.unwrap().expect("an inventory");
        let batch = vec![Op::Inventory {
            tenant: of.clone(),
            device: id,
            put: BTreeMap::new(),
            gone: vec!["software".into()],
            digest: Hash::of(b"older"),
            collected_at: older.collected_at,
            settings_version: older.settings_version,
            need_full: false,
            clock_skew: false,
        }];
        store.commit(batch).await.unwrap();
        assert!(!office.held().await["sections"].as_object().unwrap().contains_key("software"));

        office.device.install();
        office.refresh(false).await;
        let held = office.agrees().await;
        assert_eq!(held["sections"]["software"].as_object().map(|s| s.len()), Some(PACKAGES + 1));
        let unapplied = store.inventory_history(&of, id).await.unwrap();
        assert_eq!(unapplied.len(), 1, "the difference was kept aside, not applied");
        assert!(unapplied[0].1.len() < DIFFERENCE_BYTES_MAX as usize, "it was a difference");
        assert!(store.need_full().await.unwrap().is_empty(), "what was asked for came");

        // From here on differences do again.
        office.settled().await;
        office.device.install();
        let bytes = office.refresh(false).await;
        office.agrees().await;
        assert!(bytes < DIFFERENCE_BYTES_MAX, "{bytes}");
        assert_eq!(store.inventory_history(&of, id).await.unwrap().len(), 1);
        office.tree.stop().await;
    });
}

#[cfg(target_os = "linux")]
#[test]
fn inv_12_a_linux_agent_tells_the_real_machine() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.agent(MAIN, PC, "server", host()).await;
        let held = eventually("the inventory is at the server", async || {
            let answer = tree.api(MAIN).get(format!("/api/v1/devices/{PC}/inventory")).await;
            if answer.status == 200 { Ok(answer.body) } else { Err(answer.status.to_string()) }
        })
        .await;
        let sections = &held["sections"];
        let read = |path: &str| std::fs::read_to_string(path).unwrap();
        let value = |text: &str, key: &str| {
            let line = text.lines().find(|l| l.split([':', '=']).next().is_some_and(|k| k.trim() == key));
            let value =
                line.and_then(|l| l.split_once([':', '='])).map(|(_, v)| v.trim().trim_matches('"').to_string());
            value.unwrap_or_else(|| panic!("no {key}"))
        };
        assert_eq!(sections["os"]["pretty_name"], value(&read("/etc/os-release"), "PRETTY_NAME"));
        let kib: u64 = value(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap();
        assert_eq!(sections["hardware"]["memory_bytes"], kib * 1_024);
        assert!(sections["hardware"]["cpu_model"].as_str().is_some_and(|m| !m.is_empty()), "{}", sections["hardware"]);
        assert!(sections["disks"].as_object().is_some_and(|d| !d.is_empty()), "{}", sections["disks"]);
        assert!(sections["network"].as_object().is_some_and(|n| !n.is_empty()), "{}", sections["network"]);
        assert!(sections["users"]["root"].is_object(), "{}", sections["users"]);
        if let Ok(status) = std::fs::read_to_string("/var/lib/dpkg/status") {
            let installed = status.lines().filter(|l| *l == "Status: install ok installed").count();
            let told = sections["software"].as_object().into_iter().flatten();
            let told = told.filter(|(_, p)| p["source"] == "dpkg").count();
            assert_eq!(told, installed, "every installed package");
        }
        tree.stop().await;
    });
}
