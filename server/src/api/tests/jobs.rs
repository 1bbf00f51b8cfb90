//! Jobs: ordered, shown, waited for, refused.

use super::*;
use base64::{Engine, engine::general_purpose::STANDARD};
use branchline_protocol::job::{Class, RunScript, Runnable, SCRIPT_BYTES_MAX};
use serde_json::json;

fn order(on: &str) -> Value {
    json!({"on": on, "verb": "run_script", "args": {"argv": ["uname", "-sr"]}})
}

fn with(field: &str, value: Value) -> Value {
    let mut body = order("all");
    body[field] = value;
    body
}

/// JOB-1: A online runs, B is queued with its next expected poll, X is no such device, and the totals add up.
#[actix_web::test]
async fn job_1_every_device_has_its_own_state_and_totals_add_up() {
    let world = World::new().await;
    let (status, job) = world.post("a", "/jobs", order("device:pc-1 or device:pc-2 or device:pc-x")).await;
    assert_eq!(status, 201, "{job}");
    let rows = |b: Value| {
        json!([
            {
                "device": id(1).to_string(), "state": "succeeded", "reason": null, "exit_code": 0, "stdout": "done\n",
                "stderr_base64": "/wA=", "truncated": false, "started_at": "2026-11-01T09:30:00.251Z",
                "ended_at": "2026-11-01T09:30:00.252Z"
            },
            b,
            {
                "device": "pc-x", "state": "no_such_device", "reason": null, "exit_code": null, "stdout": "", "stderr": "",
                "truncated": false, "started_at": null, "ended_at": "2026-11-01T09:30:00.250Z"
            }
        ])
    };
    let counts = |state: &str| {
        let mut counts = json!({
            "queued": 0, "delivered": 0, "running": 0, "paused": 0, "succeeded": 1, "failed": 0, "unsupported": 0,
            "refused": 0, "expired": 0, "cancelled": 0, "outcome_unknown": 0, "no_such_device": 1
        });
        counts[state] = json!(1);
        counts
    };
    let expected = |complete: bool, state: &str, b: Value| {
        json!({
            "id": "00000000-0000-0000-0000-0000000003e9", "verb": "run_script", "command": "uname -sr",
            "issued_at": "2026-11-01T09:30:00.250Z", "complete": complete, "counts": counts(state), "results": rows(b)
        })
    };
    let row = |state: &str, ended_at: Value| {
        json!({
            "device": id(2).to_string(), "state": state, "reason": null, "exit_code": null, "stdout": "", "stderr": "",
            "truncated": false, "started_at": null, "ended_at": ended_at
        })
    };
    let mut queued = row("queued", json!(null));
    queued["next_contact"] = json!("2026-11-01T10:30:00.250Z");
    let open = expected(false, "queued", queued);
    assert_eq!(job, open);
    let path = format!("/jobs/{}", job["id"].as_str().unwrap());
    assert_eq!(world.get("a", &path).await, (200, open.clone()));
    assert_eq!(world.get("a", &format!("{path}?wait_ms=0")).await, (200, open));
    let done = expected(true, "expired", row("expired", json!("2026-11-01T09:30:00.259Z")));
    assert_eq!(world.get("a", &format!("{path}?wait_ms=30000")).await, (200, done));
    let words: Vec<_> = job["counts"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(words, State::ALL.map(|state| state.as_str().to_owned()), "counts stand in their order");
}

#[actix_web::test]
async fn a_job_is_shown_without_its_devices_to_who_asks_for_that() {
    let world = World::new().await;
    let (status, mut job) = world.post("a", "/jobs", order("all or device:pc-x")).await;
    assert_eq!(status, 201);
    job.as_object_mut().unwrap().remove("results").unwrap();
    let path = format!("/jobs/{}", job["id"].as_str().unwrap());
    assert_eq!(world.get("a", &format!("{path}?results=none")).await, (200, job.clone()));
    let (_, mut whole) = world.get("a", &format!("{path}?results=all&wait_ms=30000")).await;
    let all: u64 = job["counts"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(whole["results"].as_array().map(|rows| rows.len() as u64), Some(all));
    whole.as_object_mut().unwrap().remove("results");
    assert_eq!((&job["complete"], &whole["complete"]), (&json!(false), &json!(true)));
    assert_eq!(world.get("a", &format!("{path}?results=none")).await, (200, whole));
    let (status, counted) = world.post("a", "/jobs?results=none", order("all or device:pc-x")).await;
    assert_eq!((status, &counted["counts"], counted.get("results")), (201, &job["counts"], None));
    for (words, code) in [("some", "bad_value"), ("", "bad_value"), ("none&results=all", "bad_value")] {
        let (status, answer) = world.get("a", &format!("{path}?results={words}")).await;
        assert_eq!((status, &answer["code"], &answer["field"]), (422, &json!(code), &json!("results")), "{words:?}");
        let refused = (422, code, Some("results"));
        world.refused("a", &format!("/jobs?results={words}"), order("all"), refused).await;
    }
    assert_eq!(world.get("a", "/jobs").await.1["jobs"].as_array().unwrap().len(), 2, "nothing was ordered");
}

#[actix_web::test]
async fn job_1_an_empty_target_is_refused() {
    let world = World::new().await;
    world.refused("a", "/jobs", order(""), (422, "bad_selector", Some("on"))).await;
    world.refused("a", "/jobs", order("site:kyoto"), (422, "no_targets", Some("on"))).await;
    world.refused("a", "/jobs", json!({"verb": "run_script"}), (422, "missing_field", Some("on"))).await;
}

#[actix_web::test]
async fn what_is_not_told_is_the_default_and_what_is_told_arrives() {
    let world = World::new().await;
    world.post("a", "/jobs", order("all")).await;
    let script = b"#!/bin/sh\necho \xff\n";
    let told = json!({
        "on": "site:osaka", "verb": "run_script", "class": "urgent", "life_s": 60, "time_out_s": 5,
        "args": {"script_base64": STANDARD.encode(script), "interpreter": "/bin/bash"}
    });
    assert_eq!(world.post("a", "/jobs", told).await.0, 201);
    let jobs = world.control.jobs.lock().unwrap().clone();
    assert_eq!((jobs[0].class, jobs[0].life_ms, jobs[0].run_ms_max), (None, 30 * 86_400_000, 600_000));
    let args: RunScript = rmp_serde::from_slice(&jobs[0].args).unwrap();
    let argv = Runnable::Argv(vec!["uname".into(), "-sr".into()]);
    assert_eq!(args, RunScript { run: argv, time_out_ms: 600_000, output_cap: 65_536 });
    assert_eq!((jobs[1].class, jobs[1].life_ms, jobs[1].run_ms_max), (Some(Class::Urgent), 60_000, 5_000));
    let args: RunScript = rmp_serde::from_slice(&jobs[1].args).unwrap();
    let content = Bytes::from_static(script);
    assert_eq!(args.run, Runnable::Script { interpreter: Some("/bin/bash".into()), content });
    assert_eq!(world.control.said()[1], "issue a admin-a run_script site:osaka");
}

#[actix_web::test]
async fn every_bad_order_names_its_field() {
    let world = World::new().await;
    let cases = [
        (with("verb", json!("dance")), "unknown_verb", "verb"),
        (with("verb", json!(7)), "wrong_type", "verb"),
        (with("colour", json!("red")), "unknown_field", "colour"),
        (with("class", json!("slow")), "bad_value", "class"),
        (with("life_s", json!(0)), "out_of_range", "life_s"),
        (with("life_s", json!(365 * 86_400 + 1)), "out_of_range", "life_s"),
        (with("life_s", json!(-1)), "wrong_type", "life_s"),
        (with("life_s", json!("30d")), "wrong_type", "life_s"),
        (with("time_out_s", json!(0)), "out_of_range", "time_out_s"),
        (with("time_out_s", json!(86_401)), "out_of_range", "time_out_s"),
        (with("args", json!({})), "bad_value", "args"),
        (with("args", json!(null)), "missing_field", "args"),
        (with("args", json!("uname")), "wrong_type", "args"),
        (with("args", json!({"argv": []})), "bad_value", "args.argv"),
        (with("args", json!({"argv": [""]})), "bad_value", "args.argv"),
        (with("args", json!({"argv": ["a\u{0}b"]})), "bad_value", "args.argv"),
        (with("args", json!({"argv": "uname"})), "wrong_type", "args.argv"),
        (with("args", json!({"argv": ["a"], "script_base64": ""})), "bad_value", "args"),
        (with("args", json!({"argv": ["a"], "shell": true})), "unknown_field", "args.shell"),
        (with("args", json!({"script_base64": "%%"})), "bad_value", "args.script_base64"),
        (with("args", json!({"script_base64": "", "interpreter": ""})), "bad_value", "args.interpreter"),
        (json!({"on": "all", "verb": "refresh_inventory", "args": {"whole": true}}), "unknown_field", "args.whole"),
        (json!({"on": "all", "verb": "restart", "args": {"now": true}}), "unknown_field", "args.now"),
    ];
    for (body, code, field) in cases {
        world.refused("a", "/jobs", body, (422, code, Some(field))).await;
    }
    for life in [1, 365 * 86_400] {
        assert_eq!(world.post("a", "/jobs", with("life_s", json!(life))).await.0, 201, "{life}");
    }
}

#[actix_web::test]
async fn job_9_a_script_is_at_most_1_mb() {
    let world = World::new().await;
    let script = |bytes: usize| with("args", json!({"script_base64": STANDARD.encode(vec![b'#'; bytes])}));
    assert_eq!(world.post("a", "/jobs", script(SCRIPT_BYTES_MAX)).await.0, 201);
    let refused = (413, "too_large", Some("args.script_base64"));
    world.refused("a", "/jobs", script(SCRIPT_BYTES_MAX + 1), refused).await;
    // One zero byte ends each word, so 65,535 bytes of program are the bound.
    let argv = |bytes: usize| with("args", json!({"argv": ["x".repeat(bytes)]}));
    assert_eq!(world.post("a", "/jobs", argv(65_535)).await.0, 201);
    world.refused("a", "/jobs", argv(65_536), (413, "too_large", Some("args.argv"))).await;
}

#[actix_web::test]
async fn a_body_is_at_most_2_mb_and_must_be_a_json_object() {
    let world = World::new().await;
    let body = |bytes: usize| {
        let mut text = order("all").to_string();
        text.push_str(&" ".repeat(bytes - text.len()));
        request("a", Method::POST, "/jobs").set_payload(text)
    };
    assert_eq!(world.send(body(2 * 1_048_576)).await.0, 201);
    let (status, _, answer) = world.send(body(2 * 1_048_576 + 1)).await;
    assert_eq!((status, &answer["code"]), (413, &json!("too_large")));
    for (text, status, code) in [
        ("{\"on\"", 400, "unparsable"),
        ("all", 400, "unparsable"),
        ("\u{feff}{}", 400, "unparsable"),
        ("[]", 422, "wrong_type"),
        ("\"all\"", 422, "wrong_type"),
        ("", 422, "missing_field"),
    ] {
        let sent = request("a", Method::POST, "/jobs").set_payload(text);
        let (found, _, answer) = world.send(sent).await;
        assert_eq!((found, &answer["code"]), (status, &json!(code)), "{text:?}");
    }
    let deep = request("a", Method::POST, "/jobs").set_payload("[".repeat(100_000));
    assert_eq!(world.send(deep).await.0, 400);
}

#[actix_web::test]
async fn jobs_are_listed_newest_first_and_unknown_ones_are_404() {
    let world = World::new().await;
    assert_eq!(world.get("a", "/jobs").await, (200, json!({"jobs": []})));
    world.post("a", "/jobs", order("device:pc-1")).await;
    world.post("a", "/jobs", order("all")).await;
    let (_, list) = world.get("a", "/jobs").await;
    let keys: Vec<_> = list["jobs"][0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["id", "verb", "issued_at", "counts", "complete"]);
    assert_eq!((&list["jobs"][0]["complete"], &list["jobs"][1]["complete"]), (&json!(false), &json!(true)));
    assert_eq!((&list["jobs"][0]["counts"]["queued"], &list["jobs"][0]["counts"]["paused"]), (&json!(2), &json!(0)));
    assert_eq!(world.get("a", "/jobs?limit=1").await.1["jobs"].as_array().unwrap().len(), 1);
    for path in ["/jobs?limit=0", "/jobs?limit=1001"] {
        assert_eq!(world.get("a", path).await.1["field"], "limit", "{path}");
    }
    for path in ["/jobs/nonsense", "/jobs/00000000-0000-0000-0000-000000000001"] {
        let (status, answer) = world.get("a", &format!("{path}?wait_ms=10")).await;
        assert_eq!((status, &answer["code"]), (404, &json!("unknown_job")));
    }
    let path = format!("/jobs/{}", list["jobs"][0]["id"].as_str().unwrap());
    for (wait, code) in [("30001", "out_of_range"), ("-1", "wrong_type"), ("soon", "wrong_type")] {
        let (status, answer) = world.get("a", &format!("{path}?wait_ms={wait}")).await;
        assert_eq!((status, &answer["code"], &answer["field"]), (422, &json!(code), &json!("wait_ms")));
    }
}

#[actix_web::test]
async fn what_the_server_refuses_arrives_with_its_status_and_time_to_wait() {
    let world = World::new().await;
    for (status, code, ms, retry) in [(409, "no_agent", None, None), (429, "busy", Some(1_001), Some("2"))] {
        let refusal = Refusal { retry_after_ms: ms, ..Refusal::new(status, code, "why").field("on") };
        *world.control.refusal.lock().unwrap() = Some(refusal);
        let sent = request("a", Method::POST, "/jobs").set_payload(order("all").to_string());
        let (found, found_retry, answer) = world.send(sent).await;
        assert_eq!((found, found_retry.as_deref()), (status, retry));
        assert_eq!(answer, json!({"code": code, "message": "why", "field": "on"}));
    }
}
