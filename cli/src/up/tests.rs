//! The order of steps, what is asked of the API, and what a second start finds again. The nodes here are shell scripts
//! that say where they listen, and the API is canned: that the real nodes form a tree is shown by the scenarios.

#[allow(dead_code, reason = "the command's tests look at more of a request")]
#[path = "../../tests/command/canned.rs"]
mod canned;

use super::*;
use crate::Context;
use canned::{Canned, Request};
use serde_json::{Value, json};

const TOPOLOGY: &str = "
    [topology]
    name = 't'
    [[tenant]]
    name = 'main'
    sites = ['osaka', 'road']
    [server]
    name = 'hq'
    accept_from = 'gateway'
    [[gateway]]
    name = 'dmz'
    [[relay]]
    name = 'osaka'
    parent = 'dmz'
    [[agents]]
    name = 'pc'
    parent = 'osaka'
    [[agents]]
    name = 'laptop'
    parent = 'dmz'
    site = 'road'
    [job]
    argv = ['uname']
    time_out = '90s'
";

/// A node: writes what a node of its role writes, then stays. `$2` is the role, `$4` the configuration.
const NODE: &str = r#"#!/bin/sh
state=$(sed -n 's/^state_dir = "\(.*\)"$/\1/p' "$4")
name=$(sed -n 's/^name = "\(.*\)"$/\1/p' "$4" | head -n 1)
mkdir -p "$state/identity"
case $2 in
server) mkdir -p "$state/tokens"; cp FOLDER/ca.pem "$state/ca.pem"
    cp FOLDER/main FOLDER/system "$state/tokens/"
    addresses='"api":"API","link":"127.0.0.1:40001","trunk":"127.0.0.1:40002"';;
gateway) addresses='"public":"127.0.0.1:40003","private":"API"';;
relay) addresses='"link":"127.0.0.1:40004"';;
agent) addresses='';;
esac
printf '{"id":"0190f0e0-0000-7000-8000-000000000001","name":"%s","addresses":{%s}}' "$name" "$addresses" > "$state/part"
mv "$state/part" "$state/node.json"
exec sleep 600
"#;

/// The API of a server under which everything is online at once, and whose jobs end in `end`.
fn api(end: &'static str) -> Canned {
    Canned::start(move |r| match (r.method.as_str(), r.path.as_str()) {
        (_, "/getstatus") => (200, json!({ "server": "reachable" })),
        ("GET", "/api/v1/tree") => (200, json!({ "nodes": [{ "name": "osaka", "state": "online" }] })),
        ("GET", "/api/v1/devices") => {
            let device = |name: &str| {
                json!({ "id": name, "name": name, "node": name, "tenant": "main", "state": "online",
                    "inventory": { "collected_at": "2026-11-22T00:00:00.000Z" } })
            };
            (200, json!({ "devices": [device("pc"), device("laptop")] }))
        }
        ("GET", "/api/v1/jobs/j") => (200, json!({ "id": "j", "complete": true, "counts": { end: 2 }, "results": [] })),
        ("POST", "/api/v1/bundles") => (201, json!({ "bundle": "B\n" })),
        ("POST", "/api/v1/jobs") => (201, json!({ "id": "j" })),
        ("POST", "/api/v1/gateways") => (201, json!({})),
        _ => (404, json!({ "code": "unlisted", "message": "m" })),
    })
}

/// Writes a node program for an API into its folder.
fn node_program(api: &Canned) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let context: Value = serde_json::from_slice(&std::fs::read(api.context()).unwrap()).unwrap();
    let address = context["api"].as_str().unwrap().trim_start_matches("https://");
    let text = NODE.replace("FOLDER", api.folder().to_str().unwrap()).replace("API", address);
    let exe = api.folder().join("node.sh");
    std::fs::write(&exe, text).unwrap();
    std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o700)).unwrap();
    exe
}

/// Runs `up --once --json` and returns its code and `up.json`.
fn up(exe: &Path, folder: &Path) -> (i32, Value) {
    let plan = Rc::new(topology::read(&TOPOLOGY.parse().unwrap()).unwrap());
    let state = State::open(&folder.join("state"), &folder.join("states")).unwrap();
    let args = Args { topology: "t".into(), once: true, state: None, timeout: Duration::from_secs(60) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let code = runtime.block_on(local.run_until(live(&args, true, plan, state, exe)));
    let kept = std::fs::read(folder.join("state/up.json")).unwrap();
    (code, serde_json::from_slice(&kept).unwrap())
}

fn bodies(requests: &[Request], path: &str) -> Vec<Value> {
    requests.iter().filter(|r| r.method == "POST" && r.path == path).map(|r| r.body.clone()).collect()
}

#[test]
fn a_tree_starts_from_the_top_and_a_second_start_enrols_nobody() {
    let (api, folder) = (api("succeeded"), tempfile::tempdir().unwrap());
    let exe = node_program(&api);
    let (code, report) = up(&exe, folder.path());
    assert_eq!((code, &report["ok"]), (0, &json!(true)), "{report}");
    let names: Vec<&Value> = report["nodes"].as_array().unwrap().iter().map(|n| &n["name"]).collect();
    assert_eq!(names, ["hq", "dmz", "osaka", "pc", "laptop"]);
    assert_eq!(report["nodes"][1]["addresses"]["public"], "https://127.0.0.1:40003");
    assert_eq!(report["devices"].as_array().unwrap().len(), 2);
    let known = |n: &Value| n["id"].is_string() && n["pid"].is_u64() && n["restarts"] == 0;
    assert!(report["nodes"].as_array().unwrap().iter().all(known), "{report}");
    let requests = api.requests();
    let wish = |role: &str, parent: &str, site: Option<&str>| {
        let mut body = json!({ "role": role, "parent": parent, "uses": 1, "life_s": 3_600 });
        if let Some(site) = site {
            body["site"] = json!(site);
        }
        body
    };
    let wishes = [
        wish("gateway", "server", None),
        wish("relay", "gateway", Some("osaka")),
        wish("agent", "osaka", Some("osaka")),
        wish("agent", "gateway", Some("road")),
    ];
    assert_eq!(bodies(&requests, "/api/v1/bundles"), wishes);
    let of = |path: &str| requests.iter().find(|r| r.path == path).unwrap();
    assert_eq!(of("/api/v1/bundles").authorization, "Bearer token-of-system");
    assert_eq!(bodies(&requests, "/api/v1/gateways"), [json!({ "public": "https://127.0.0.1:40003" })]);
    let job = json!({ "on": "all", "verb": "run_script", "args": { "argv": ["uname"] }, "time_out_s": 90 });
    assert_eq!(bodies(&requests, "/api/v1/jobs"), [job]);
    let context = Context::load(Some(&folder.path().join("states/current/context.json"))).unwrap();
    assert_eq!((context.default_tenant.as_deref(), context.pid), (Some("main"), Some(std::process::id())));

    let (code, _) = up(&exe, folder.path());
    assert_eq!(code, 0);
    assert_eq!(bodies(&api.requests(), "/api/v1/bundles").len(), wishes.len(), "nobody enrols twice");
    let config = std::fs::read_to_string(folder.path().join("state/config/hq.toml")).unwrap();
    assert!(config.contains(":40001\"\n") && config.contains(":40002\"\n"), "ports are kept: {config}");
}

#[test]
fn a_job_that_failed_somewhere_exits_1() {
    let (api, folder) = (api("failed"), tempfile::tempdir().unwrap());
    let (code, report) = up(&node_program(&api), folder.path());
    assert_eq!((code, &report["ok"], &report["error"]["code"]), (1, &json!(false), &json!("job_failed")));
    assert_eq!(report["job"]["counts"]["failed"], 2);
}

#[test]
fn ops_1_a_node_that_does_not_start_is_named_with_its_cause() {
    let (api, folder) = (api("succeeded"), tempfile::tempdir().unwrap());
    let exe = node_program(&api);
    let text = std::fs::read_to_string(&exe).unwrap();
    let text = text.replace("gateway) ", "gateway) echo port_in_use: public cannot listen >&2; exit 6; ");
    std::fs::write(&exe, text).unwrap();
    let (code, report) = up(&exe, folder.path());
    assert_eq!((code, &report["error"]["code"], &report["error"]["node"]), (1, &json!("port_in_use"), &json!("dmz")));
    assert!(report["error"]["message"].as_str().unwrap().contains("public cannot listen"), "{report}");
    assert_eq!(report["nodes"].as_array().unwrap().len(), 2, "nothing was started below it");
}
