//! The real command, as a process, against a server with canned answers behind real TLS: arguments, exit codes, and what
//! stands on stdout and stderr (DESIGN 9).

mod canned;
mod load;

use canned::{Canned, Request};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::{Command, Output},
};

/// Runs the command in an empty folder, without an installation.
fn run(args: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_branchline")).args(args).current_dir(folder.path()).output().unwrap()
}

/// Runs the command with `--json` against a canned server.
fn against(canned: &Canned, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_branchline"));
    command.arg("--context").arg(canned.context()).arg("--json").args(args);
    command.current_dir(canned.folder()).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("the command ends by itself")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// stdout as its one line of JSON.
fn json_line(output: &Output) -> Value {
    let text = stdout(output);
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn run_without_on_is_a_wrong_request_and_says_what_to_write() {
    for args in [&["run", "--", "true"][..], &["run", "--on", "", "--", "true"], &["run", "--on", "  ", "--", "true"]] {
        let output = run(args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(stderr(&output).contains("--on SELECTOR"), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
        let output = run(&[&["--json"], args].concat());
        assert_eq!((code(&output), &json_line(&output)["code"]), (2, &json!("on_required")));
        assert_eq!(json_line(&output)["field"], "on");
    }
}

#[test]
fn run_refuses_what_contradicts_itself() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("s.sh");
    std::fs::write(&script, "true").unwrap();
    let script = script.to_str().unwrap();
    for (args, wanted) in [
        (&["run", "--on", "all"][..], "nothing_to_run"),
        (&["run", "--on", "all", "--script", script, "--", "true"], "contradiction"),
        (&["run", "--on", "all", "--interpreter", "sh", "--", "true"], "contradiction"),
        (&["run", "--on", "side:x", "--", "true"], "bad_selector"),
        (&["run", "--on", "all", "--script", "/absent/file"], "unreadable"),
        (&["run", "--on", "all", "--timeout", "5m", "--", "true"], "bad_usage"),
        (&["run", "--on", "all", "--wait", "--timeout", "5 minutes", "--", "true"], "bad_usage"),
        (&["run", "--on", "all", "--class", "slow", "--", "true"], "bad_usage"),
        (&["frobnicate"], "bad_usage"),
        (&[], "bad_usage"),
        (&["devices", "--on", ""], "on_required"),
        (&["enrol-token", "--role", "agent"], "bad_usage"),
        (&["bundle", "--role", "agent", "--site", "x", "--uses", "0"], "bad_usage"),
        (&["node", "printer", "--config", "x"], "bad_usage"),
    ] {
        let output = run(&[&["--json"], args].concat());
        assert_eq!((code(&output), &json_line(&output)["code"]), (2, &json!(wanted)), "{args:?}");
    }
}

#[test]
fn job_9_a_script_of_1_mb_is_sent_and_one_byte_more_is_not() {
    let canned = Canned::start(|_| (201, json!({ "id": "j", "complete": false, "counts": {} })));
    let script = canned.folder().join("s.sh");
    std::fs::write(&script, vec![b'#'; 1_048_576]).unwrap();
    let args = ["run", "--on", "all", "--script", script.to_str().unwrap()];
    let output = against(&canned, &args);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    std::fs::write(&script, vec![b'#'; 1_048_577]).unwrap();
    let output = against(&canned, &args);
    assert_eq!((code(&output), &json_line(&output)["code"]), (2, &json!("too_large")));
    let sent = canned.requests();
    assert_eq!(sent.len(), 1, "the larger one is refused before it is sent");
    assert_eq!(sent[0].body["args"]["script_base64"].as_str().unwrap().len(), 1_048_576_usize.div_ceil(3) * 4);
}

#[test]
fn without_an_installation_the_way_to_one_is_told() {
    let output = run(&["devices"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("branchline up TOPOLOGY"), "{}", stderr(&output));
}

#[test]
fn ops_2_the_version_is_visible() {
    let output = run(&["--version"]);
    assert_eq!((code(&output), stdout(&output)), (0, format!("branchline {}\n", env!("CARGO_PKG_VERSION"))));
    let output = run(&["--help"]);
    assert_eq!(code(&output), 0);
    for verb in [
        "up",
        "node",
        "devices",
        "device",
        "tree",
        "run",
        "job",
        "jobs",
        "inventory",
        "enrol-token",
        "bundle",
        "revoke",
        "cancel",
        "explain",
        "keep",
        "suspend",
        "revive",
        "reissue",
    ] {
        assert!(stdout(&output).contains(&format!("\n  {verb} ")), "{verb}");
    }
    assert!(!stdout(&output).contains("shim"));
}

#[test]
fn who_does_not_answer_is_unreachable() {
    let canned = Canned::start(|_| (200, json!({ "devices": [] })));
    let mut context: Value = serde_json::from_str(&std::fs::read_to_string(canned.context()).unwrap()).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    context["api"] = json!(format!("https://127.0.0.1:{port}"));
    std::fs::write(canned.context(), context.to_string()).unwrap();
    let output = against(&canned, &["devices"]);
    assert_eq!((code(&output), &json_line(&output)["code"]), (3, &json!("unreachable")));
}

#[test]
fn a_server_with_another_ca_is_not_spoken_to() {
    let (canned, other) = (Canned::start(|_| (200, json!({ "devices": [] }))), Canned::start(|_| (200, json!({}))));
    std::fs::copy(other.folder().join("ca.pem"), canned.folder().join("ca.pem")).unwrap();
    let output = against(&canned, &["devices"]);
    assert_eq!((code(&output), &json_line(&output)["code"]), (3, &json!("unreachable")));
    assert!(canned.requests().is_empty(), "no token was sent");
}

#[test]
fn refusals_of_the_server_come_through_unchanged() {
    let refusal = json!({ "code": "no_such_device", "message": "no device is named x", "field": "device" });
    let told = refusal.clone();
    let canned = Canned::start(move |_| (404, told.clone()));
    let output = against(&canned, &["device", "x"]);
    assert_eq!((code(&output), json_line(&output)), (2, refusal));
    let busy = Canned::start(|_| (500, json!({ "code": "internal", "message": "m" })));
    assert_eq!(code(&against(&busy, &["jobs"])), 1);
    let away = Canned::start(|_| (503, json!({ "code": "starting", "message": "m" })));
    assert_eq!(code(&against(&away, &["jobs"])), 3);
}

#[test]
fn each_verb_asks_what_the_api_answers() {
    let canned = Canned::start(|r| match (r.method.as_str(), r.path.as_str()) {
        ("GET", "/api/v1/devices") => (200, json!({ "devices": [{ "id": "d", "name": "pc", "path": ["dmz"] }] })),
        ("GET", "/api/v1/devices/pc%2F1") => (200, json!({ "id": "d" })),
        ("GET", "/api/v1/tree") => (200, json!({ "nodes": [] })),
        ("GET", "/api/v1/jobs") => (200, json!({ "jobs": [{ "id": "j" }] })),
        ("GET", "/api/v1/jobs/j") => (200, json!({ "id": "j", "results": [] })),
        ("GET", "/api/v1/devices/d/inventory") => (200, json!({ "device": "d", "sections": {} })),
        ("POST", "/api/v1/enrol-tokens") => (201, json!({ "token": "t" })),
        ("POST", "/api/v1/bundles") => (201, json!({ "bundle": "B\nx\n", "expires_at": "e" })),
        ("POST", "/api/v1/nodes/d/revoke") => (200, json!({ "revoked": "d", "epoch": 2 })),
        ("POST", "/api/v1/jobs/j/cancel") => (200, json!({ "id": "j", "complete": false, "results": [] })),
        ("POST", "/api/v1/jobs/j/reissue") => (201, json!({ "id": "k", "reissue_of": "j", "results": [] })),
        ("PATCH", "/api/v1/devices/pc%2F1") => (200, json!({ "id": "d", "asked": r.body.clone() })),
        ("POST", "/api/v1/devices/pc%2F1/suspend") => (200, json!({ "id": "d", "state": "suspended" })),
        ("POST", "/api/v1/devices/pc%2F1/revive") => (200, json!({ "id": "d", "state": "online" })),
        ("GET", "/api/v1/jobs/j/devices/pc%2F1/explain") => (200, json!({ "job": "j", "timeline": [] })),
        ("POST", "/api/v1/jobs/over/cancel") => (409, json!({ "code": "job_final", "message": "m" })),
        _ => (404, json!({ "code": "unlisted", "message": "m" })),
    });
    let out = canned.folder().join("bundle");
    for (args, wanted) in [
        (&["devices", "--on", "site:a and not tag:b"][..], json!([{ "id": "d", "name": "pc", "path": ["dmz"] }])),
        (&["device", "pc/1"], json!({ "id": "d" })),
        (&["tree"], json!({ "nodes": [] })),
        (&["jobs"], json!([{ "id": "j" }])),
        (&["job", "j"], json!({ "id": "j", "results": [] })),
        (&["inventory", "d"], json!({ "device": "d", "sections": {} })),
        (&["enrol-token", "--role", "relay", "--site", "a", "--uses", "3", "--life", "1h"], json!({ "token": "t" })),
        (&["bundle", "--role", "agent", "--site", "a"], json!({ "bundle": "B\nx\n", "expires_at": "e" })),
        (&["bundle", "--role", "gateway", "--out", out.to_str().unwrap()], json!({ "file": out, "expires_at": "e" })),
        (&["revoke", "d"], json!({ "revoked": "d", "epoch": 2 })),
        (&["keep", "pc/1"], json!({ "id": "d", "asked": { "keep_connection": true } })),
        (&["keep", "pc/1", "--off"], json!({ "id": "d", "asked": { "keep_connection": false } })),
        (&["keep", "pc/1", "--default"], json!({ "id": "d", "asked": { "keep_connection": null } })),
        (&["suspend", "pc/1"], json!({ "id": "d", "state": "suspended" })),
        (&["revive", "pc/1"], json!({ "id": "d", "state": "online" })),
        (&["explain", "j", "pc/1"], json!({ "job": "j", "timeline": [] })),
        (&["cancel", "j"], json!({ "id": "j", "complete": false, "results": [] })),
        (&["reissue", "j"], json!({ "id": "k", "reissue_of": "j", "results": [] })),
    ] {
        let output = against(&canned, args);
        assert_eq!((code(&output), json_line(&output)), (0, wanted), "{args:?}: {}", stderr(&output));
    }
    let refused = against(&canned, &["cancel", "over"]);
    assert_eq!((code(&refused), &json_line(&refused)["code"]), (2, &json!("job_final")));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "B\nx\n");
    let find = |path: &str| canned.requests().into_iter().find(|r| r.path == path).unwrap();
    assert_eq!(find("/api/v1/devices").query, "on=site%3Aa%20and%20not%20tag%3Ab");
    let token = json!({ "role": "relay", "site": "a", "uses": 3, "life_s": 3_600 });
    assert_eq!(find("/api/v1/enrol-tokens").body, token);
    let bundles: Vec<Request> = canned.requests().into_iter().filter(|r| r.path == "/api/v1/bundles").collect();
    assert_eq!(
        bundles[0].body,
        json!({ "role": "agent", "site": "a", "uses": 1, "life_s": 86_400, "parent": "server" })
    );
    assert_eq!(bundles[0].authorization, "Bearer token-of-main");
    assert_eq!(bundles[1].authorization, "Bearer token-of-system", "gateways belong to the installation");
}

#[test]
fn top_22_the_tenant_is_the_tokens_unless_the_system_speaks_for_it() {
    let canned = Canned::start(|_| (200, json!({ "nodes": [] })));
    assert_eq!(code(&against(&canned, &["tree"])), 0);
    assert_eq!(code(&against(&canned, &["tree", "--tenant", "late"])), 0);
    let seen: Vec<_> = canned.requests().into_iter().map(|r| (r.authorization, r.query)).collect();
    let (own, system) = (("Bearer token-of-main", ""), ("Bearer token-of-system", "tenant=late"));
    assert_eq!(seen, [own, system].map(|(a, q)| (a.to_string(), q.to_string())));
}

/// Answers a job that is complete at the second look, with these counts.
fn job_server(counts: Value) -> Canned {
    let looks = std::sync::atomic::AtomicU32::new(0);
    Canned::start(move |r| match (r.method.as_str(), r.path.as_str()) {
        ("POST", _) => (201, json!({ "id": "j", "complete": false, "counts": { "queued": 2 } })),
        ("GET", "/api/v1/jobs/j") => {
            let complete = looks.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 0;
            let counts = if complete { counts.clone() } else { json!({ "queued": 1, "running": 1 }) };
            (200, json!({ "id": "j", "complete": complete, "counts": counts, "results": [] }))
        }
        _ => (200, json!({ "devices": [] })),
    })
}

#[test]
fn job_1_run_wait_ends_as_the_job_does() {
    for (counts, wanted) in [
        (json!({ "succeeded": 2, "failed": 0 }), 0),
        (json!({ "succeeded": 1, "failed": 1 }), 1),
        (json!({ "expired": 2 }), 1),
    ] {
        let canned = job_server(counts.clone());
        let output = against(
            &canned,
            &["run", "--on", "all", "--wait", "--time-out", "500ms", "--life", "1h", "--", "uname", "-a", "--json"],
        );
        assert_eq!(code(&output), wanted, "{counts}: {}", stderr(&output));
        assert_eq!((&json_line(&output)["complete"], &json_line(&output)["counts"]), (&json!(true), &counts));
        assert!(stderr(&output).contains("0/2 ended"), "progress is told in lines: {}", stderr(&output));
        let ordered = json!({ "on": "all", "verb": "run_script", "args": { "argv": ["uname", "-a", "--json"] },
            "life_s": 3_600, "time_out_s": 1 });
        let requests = canned.requests();
        assert_eq!((&requests[0].body, requests[0].query.as_str()), (&ordered, "results=none"));
        // A row for every device is asked for once, when there is something in all of them.
        let looks: Vec<_> = requests.iter().filter(|r| r.path == "/api/v1/jobs/j").map(|r| r.query.as_str()).collect();
        assert_eq!(looks, ["results=none&wait_ms=1000", "results=none&wait_ms=1000", ""]);
    }
}

#[test]
fn job_1_run_wait_that_is_over_too_early_ends_badly_and_shows_what_is() {
    let canned = Canned::start(|_| (200, json!({ "id": "j", "complete": false, "counts": { "queued": 1 } })));
    let output = against(&canned, &["run", "--on", "all", "--wait", "--timeout", "300ms", "--", "true"]);
    assert_eq!((code(&output), &json_line(&output)["complete"]), (1, &json!(false)));
    assert!(stderr(&output).contains("not complete after 300ms"), "{}", stderr(&output));
}

#[test]
fn run_without_wait_answers_at_once() {
    let canned = job_server(json!({}));
    let output = against(&canned, &["run", "--on", "all", "--", "true"]);
    assert_eq!((code(&output), &json_line(&output)["id"]), (0, &json!("j")));
    assert_eq!(canned.requests().len(), 1);
}

#[test]
fn inventory_refresh_waits_for_the_one_that_was_collected() {
    let looks = std::sync::atomic::AtomicU32::new(0);
    let canned = Canned::start(move |r| match (r.method.as_str(), r.path.as_str()) {
        ("POST", "/api/v1/devices/pc/refresh") => (201, json!({ "id": "j" })),
        ("GET", "/api/v1/jobs/j") => {
            let result = json!({ "device": "d", "state": "succeeded", "stdout": "{\"digest\":\"new\"}" });
            (200, json!({ "id": "j", "complete": true, "counts": { "succeeded": 1 }, "results": [result] }))
        }
        ("GET", "/api/v1/devices/pc/inventory") => match looks.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => (404, json!({ "code": "no_inventory", "message": "m" })),
            1 => (200, json!({ "digest": "old", "sections": {} })),
            _ => (200, json!({ "digest": "new", "sections": {} })),
        },
        _ => (404, json!({})),
    });
    let output = against(&canned, &["inventory", "pc", "--refresh=full"]);
    assert_eq!((code(&output), &json_line(&output)["digest"]), (0, &json!("new")), "{}", stderr(&output));
    assert_eq!(canned.requests()[0].query, "full=true");
}

#[test]
fn inventory_refresh_that_the_device_refused_ends_badly() {
    let canned = Canned::start(|r| match r.method.as_str() {
        "POST" => (201, json!({ "id": "j" })),
        _ => {
            let result = json!({ "device": "d", "state": "refused", "reason": "disabled" });
            (200, json!({ "id": "j", "complete": true, "counts": { "refused": 1 }, "results": [result] }))
        }
    });
    let output = against(&canned, &["inventory", "pc", "--refresh"]);
    assert_eq!((code(&output), &json_line(&output)["code"]), (1, &json!("refresh_failed")));
    assert_eq!(canned.requests()[0].query, "full=false");
}

#[test]
fn top_23_up_rejects_a_bad_topology_by_name_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let bad = Path::new(env!("CARGO_MANIFEST_DIR")).join("../topology-examples/invalid/unknown-key.toml");
    let up = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_branchline"));
        command.arg("up").arg(&bad).args(args).current_dir(folder.path()).output().unwrap()
    };
    let output = up(&[]);
    assert_eq!((code(&output), stdout(&output)), (2, String::new()));
    assert!(stderr(&output).contains("agents[0].parnet: no such key; did you mean \"parent\"?"), "{}", stderr(&output));
    let output = up(&["--json", "--once"]);
    let json = json_line(&output);
    assert_eq!(
        (code(&output), &json["ok"], &json["schema"], &json["nodes"]),
        (2, &json!(false), &json!(1), &json!([]))
    );
    assert_eq!((&json["error"]["code"], &json["error"]["field"]), (&json!("unknown_key"), &json!("agents[0].parnet")));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn rly_2_a_node_with_a_wrong_configuration_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("gateway.toml");
    std::fs::write(&config, "name = \"dmz\"\ncolour = \"red\"\n").unwrap();
    let output = run(&["node", "gateway", "--config", config.to_str().unwrap()]);
    assert_eq!((code(&output), stdout(&output)), (2, String::new()));
    assert!(stderr(&output).contains("colour"), "{}", stderr(&output));
}

#[test]
fn rly_2_relay_configure_refuses_with_2_a_code_and_the_field_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (config, state) = (folder.path().join("relay.toml"), folder.path().join("state"));
    std::fs::write(&config, format!("name = 'r'\nstate_dir = {state:?}\nbundle = '/nonexistent'\n")).unwrap();
    let file = config.to_str().unwrap();
    for (settings, told) in [
        (&["host=gw", "prot=443"][..], ("unknown_key", "prot")),
        (&["port=443"], ("missing", "host")),
        (&["host=gw", "port=99999"], ("out_of_range", "port")),
        (&["host=gw", "ca=/nonexistent/ca.pem"], ("unreadable", "ca")),
        (&["host=gw"], ("bad_bundle", "bundle")),
    ] {
        let output = run(&[&["--json", "relay", "configure", "--config", file], settings].concat());
        let json = json_line(&output);
        assert_eq!(
            (code(&output), json["code"].as_str(), json["field"].as_str()),
            (2, Some(told.0), Some(told.1)),
            "{json}"
        );
    }
    let output = run(&["relay", "configure", "--config", file]);
    assert_eq!((code(&output), stdout(&output)), (2, String::new()));
    assert!(stderr(&output).contains("--from, --reset"), "{}", stderr(&output));
    assert!(!state.exists(), "nothing was kept");
}
