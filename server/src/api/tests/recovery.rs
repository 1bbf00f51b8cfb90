//! A server that recovers says so, and an operator of the installation may end it (OPS-7).

use super::*;
use serde_json::json;

#[actix_web::test]
async fn ops_7_a_recovery_is_shown_everywhere_and_ended_by_the_system_only() {
    let world = World::new().await;
    let over = json!({ "term": 1, "recovering": null });
    assert_eq!(world.get("a", "/api/v1/recovery").await, (200, over));
    let listening = RecoveryFigures { term: 2, recovering: Some((1, 3, 599)) };
    *world.control.recovery.lock().unwrap() = listening;
    let shown = json!({ "heard": 1, "awaited": 3, "ends_in_s": 599 });
    let (_, recovery) = world.get("a", "/api/v1/recovery").await;
    assert_eq!(recovery, json!({ "term": 2, "recovering": shown }));
    let (_, status) = world.get("", "/getstatus").await;
    assert_eq!((&status["term"], &status["recovering"]), (&json!(2), &shown));
    let (_, tree) = world.get("a", "/api/v1/tree").await;
    let server = tree["nodes"].as_array().unwrap().iter().find(|n| n["role"] == "server").unwrap();
    assert_eq!(server["state"], "recovering");
    world.refused("a", "/api/v1/recovery/end", Value::Null, (403, "not_allowed", None)).await;
    world.refused("system", "/api/v1/recovery/end", json!({ "now": true }), (422, "unknown_field", Some("now"))).await;
    let (status, body) = world.post("system", "/api/v1/recovery/end", json!({})).await;
    assert_eq!((status, body), (200, json!({ "term": 2, "recovering": null })));
    assert_eq!(world.control.said(), ["admin-system ends the recovery"]);
}

#[actix_web::test]
async fn ops_7_what_is_refused_meanwhile_says_when_to_come_again() {
    let world = World::new().await;
    let refusal = Refusal::new(503, "recovering", "1 of 3 heard").retry_after(10_000);
    *world.control.refusal.lock().unwrap() = Some(refusal);
    let body = json!({ "on": "all", "verb": "run_script", "args": { "argv": ["true"] } });
    let request = request("a", Method::POST, "/api/v1/jobs").set_payload(body.to_string());
    let (status, retry, body) = world.send(request).await;
    assert_eq!((status, retry.as_deref(), &body["code"]), (503, Some("10"), &json!("recovering")));
}
