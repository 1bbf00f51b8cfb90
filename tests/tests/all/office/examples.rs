//! Every example starts and does what its README says (TOP-23).

use super::*;
use serde_json::json;
use std::collections::BTreeSet;

/// The examples below, each with a test of its own here or in `satellite`.
const STARTED: [&str; 4] = ["msp", "multi-site", "satellite-office", "two-agents"];

#[test]
fn top_23_no_example_is_without_a_test() {
    let folders = std::fs::read_dir(examples()).unwrap().map(|f| f.unwrap().path());
    let with_topology = folders.filter(|f| f.join("topology.toml").exists());
    let names: BTreeSet<String> = with_topology.map(|f| f.file_name().unwrap().to_str().unwrap().into()).collect();
    assert_eq!(names, STARTED.map(String::from).into());
}

#[test]
fn top_23_satellite_office_starts() {
    assert_as_expected("satellite-office", satellite_office().report());
}

#[test]
fn top_23_two_agents_start_without_a_gateway() {
    let office = start("two-agents");
    assert_as_expected("two-agents", office.report());
}

#[test]
fn top_23_multi_site_starts_with_a_relay_below_a_relay() {
    let office = start("multi-site");
    assert_as_expected("multi-site", office.report());
    assert_eq!(office.device("kobe-pc-02")["path"], json!(["dmz", "osaka", "kobe"]));
    assert_eq!(office.device("hq-pc-01")["path"], json!([]));
    let tree = office.json(&["tree"]);
    let node = |name: &str| list(&tree, "nodes").iter().find(|n| n["name"] == name).unwrap();
    assert_eq!(node("kobe")["parent"], node("osaka")["id"]);
    assert_eq!(node("kobe-pc-01")["parent"], node("kobe")["id"]);
    let job = office.json(&["run", "--on", "relay:kobe", "--wait", "--", "uname", "-s"]);
    let ran: BTreeSet<&str> = list(&job, "results").iter().map(|r| text(r, "device")).collect();
    let ids = device_ids(&office);
    assert_eq!(ran, (1..=3).map(|n| ids[&format!("kobe-pc-0{n}")].as_str()).collect());
    assert!(list(&job, "results").iter().all(|r| r["stdout"] == "Linux\n"), "{job}");
    // The relay above carries the devices below the lower one too.
    let job = office.json(&["run", "--on", "relay:osaka", "--wait", "--", "true"]);
    assert_eq!(job["counts"]["succeeded"], 6, "{job}");
}

#[test]
fn top_22_one_tenant_neither_sees_nor_counts_the_others_devices() {
    let office = start("msp");
    assert_as_expected("msp", office.report());
    let (web, api) = (office.web(), office.api());
    for (own, other) in [("acme", "globex"), ("globex", "acme")] {
        let get = |path: &str| web.get(&format!("{api}/api/v1{path}"), &office.token(own));
        let foreign = |key: &str| {
            let devices = list(office.report(), key).iter().filter(|d| d["tenant"] == other);
            devices.map(|d| text(d, "id").to_string()).collect::<Vec<_>>()
        };
        let (foreign_devices, foreign_jobs) = (foreign("devices"), foreign("jobs"));
        assert_eq!((foreign_devices.len(), foreign_jobs.len()), (3, 1));
        for device in &foreign_devices {
            // The very answer that an id which nobody has gets.
            let nobody = "0190f0e0-0000-7000-8000-000000000001";
            let like_nobodys = |path: &dyn Fn(&str) -> String| {
                let (status, body) = get(&path(device));
                let (_, none) = get(&path(nobody));
                assert_eq!(status, 404, "{body}");
                assert_eq!(body.to_string().replace(device, "ID"), none.to_string().replace(nobody, "ID"));
            };
            like_nobodys(&|id| format!("/devices/{id}"));
            like_nobodys(&|id| format!("/devices/{id}/inventory"));
        }
        assert_eq!(get(&format!("/jobs/{}", foreign_jobs[0])).0, 404);
        let (_, devices) = get("/devices");
        assert_eq!(list(&devices, "devices").len(), 3);
        assert!(list(&devices, "devices").iter().all(|d| d["tenant"] == own), "{devices}");
        let (_, jobs) = get("/jobs");
        assert_eq!((list(&jobs, "jobs").len(), &jobs["jobs"][0]["counts"]["succeeded"]), (1, &json!(3)));
        let (_, tree) = get("/tree");
        let named = tree.to_string();
        assert!(!named.contains(&format!("{other}-")), "{tree}");
        // A selector that means everything means the tenant's own.
        let job = office.json(&["--tenant", own, "run", "--on", "all", "--wait", "--", "true"]);
        assert_eq!(list(&job, "results").len(), 3);
        assert!(list(&job, "results").iter().all(|r| !foreign_devices.iter().any(|d| r["device"] == d.as_str())));
        let ran = office.command(&[
            "--json",
            "--tenant",
            own,
            "run",
            "--on",
            &format!("device:{}", foreign_devices[0]),
            "--wait",
            "--",
            "true",
        ]);
        assert!(ran.code != 0 && !ran.stdout.contains("succeeded\":1"), "{ran:?}");
    }
    // Naming the other tenant with the own token opens nothing.
    let url = format!("{api}/api/v1/devices?tenant=globex");
    let (status, body) = web.get(&url, &office.token("acme"));
    assert!((400..500).contains(&status) && !body.to_string().contains("globex-pc"), "{status} {body}");
}
