//! The verbs in a second terminal: no flags, since the newest `up` of the folder is meant.

use super::*;
use serde_json::json;
use std::collections::BTreeSet;

#[test]
fn devices_and_tree_show_what_up_reported() {
    let office = satellite_office();
    let devices = office.json(&["devices"]);
    let ids = |list: &[Value]| list.iter().map(|d| text(d, "id").to_string()).collect::<BTreeSet<_>>();
    assert_eq!(ids(devices.as_array().unwrap()), ids(list(office.report(), "devices")));
    let plain = office.command(&["devices", "--on", "site:roaming"]);
    assert_eq!(plain.code, 0);
    assert_eq!(plain.stdout.lines().count(), 3, "a head and two devices: {}", plain.stdout);
    let tree = office.json(&["tree"]);
    assert_eq!(ids(list(&tree, "nodes")), ids(list(office.report(), "nodes")));
    let node = |name: &str| list(&tree, "nodes").iter().find(|n| n["name"] == name).unwrap();
    assert_eq!(node("osaka-pc-11")["parent"], node("osaka")["id"]);
    assert!(list(&tree, "nodes").iter().all(|n| n["state"] == "online" && n["unreachable_since"].is_null()), "{tree}");
    let plain = office.command(&["tree"]).stdout;
    assert!(plain.contains("\n    osaka-pc-11 ") || plain.contains("\n      osaka-pc-11 "), "indented: {plain}");
}

#[test]
fn run_waits_and_prints_what_the_devices_said() {
    let office = satellite_office();
    let ran = office.command(&["run", "--on", "site:osaka", "--wait", "--", "uname", "-a"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stdout.matches("Linux ").count(), 20, "{}", ran.stdout);
    assert!(ran.stdout.contains("complete: 20 succeeded"), "{}", ran.stdout);
    let job = office.order("device:roaming-02", &["echo", "one two", "$HOME", "*"]);
    let job = office.completed(&job, 60);
    assert_eq!(job["results"][0]["stdout"], "one two $HOME *\n", "no shell reads the words");
    let listed = office.json(&["jobs"]);
    let listed = listed.as_array().unwrap().iter().find(|j| j["id"] == job["id"]).unwrap();
    assert_eq!((&listed["complete"], &listed["counts"]), (&json!(true), &job["counts"]));
}

#[test]
fn inventory_is_shown_by_name_and_by_id() {
    let office = satellite_office();
    let by_name = office.json(&["inventory", "osaka-pc-03"]);
    let by_id = office.json(&["inventory", &device_ids(&office)["osaka-pc-03"]]);
    assert_eq!(by_name, by_id);
    let plain = office.command(&["inventory", "osaka-pc-03"]).stdout;
    assert!(plain.contains("[software]") && plain.contains("[os]"), "{plain}");
}

#[test]
fn exit_codes_say_who_is_at_fault() {
    let office = satellite_office();
    let code = |args: &[&str]| {
        let ran = office.command(args);
        (ran.code, ran.stdout + &ran.stderr)
    };
    assert_eq!(code(&["run", "--on", "device:roaming-01", "--wait", "--", "true"]).0, 0);
    let (failed, said) =
        code(&["--json", "run", "--on", "device:roaming-01", "--wait", "--", "sh", "-c", "echo no; exit 7"]);
    assert_eq!(failed, 1, "{said}");
    let job: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    let row = &job["results"][0];
    assert_eq!((&row["state"], &row["exit_code"], &row["stdout"]), (&json!("failed"), &json!(7), &json!("no\n")));
    for wrong in [
        &["run", "--wait", "--", "true"][..],
        &["run", "--on", "site:osaka"],
        &["run", "--on", "site:", "--", "true"],
        &["run", "--on", "site:nowhere", "--", "true"],
        &["device", "osaka-pc-99"],
        &["inventory", "osaka-pc-99"],
        &["job", "0190f0e0-0000-7000-8000-000000000001"],
        &["revoke", "0190f0e0-0000-7000-8000-000000000001"],
        &["--tenant", "nobody", "devices"],
        &["frobnicate"],
    ] {
        let (exit, said) = code(wrong);
        assert_eq!(exit, 2, "{wrong:?}: {said}");
        assert!(!said.trim().is_empty(), "{wrong:?} says why");
    }
    // The same installation, but its API is gone: the port is held and never answers TLS as the product does.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let mut context: Value =
        serde_json::from_slice(&std::fs::read(office.state().join("context.json")).unwrap()).unwrap();
    context["api"] = json!(format!("https://{address}"));
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("context.json");
    std::fs::write(&file, context.to_string()).unwrap();
    let ran = office.command(&["--json", "--context", file.to_str().unwrap(), "devices"]);
    assert_eq!((ran.code, &ran.json()["code"]), (3, &json!("unreachable")), "{ran:?}");
}

#[test]
fn top_13_a_relay_is_no_target_of_jobs() {
    let office = satellite_office();
    let ran = office.command(&["--json", "run", "--on", "device:osaka", "--", "true"]);
    assert_eq!((ran.code, &ran.json()["code"]), (2, &json!("no_agent")), "{ran:?}");
}
