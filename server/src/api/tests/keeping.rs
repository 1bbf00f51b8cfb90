//! Devices that keep their connection, what is promised of each, and who waits for a slot.

use super::*;
use crate::dispatch::Promise;
use branchline_protocol::wire::SlotStanding;
use serde_json::json;

#[actix_web::test]
async fn adm_1_a_device_is_set_to_keep_its_connection_not_to_and_back_by_its_own_tenant_only() {
    let world = World::new().await;
    for (body, said) in [("true", "Some(true)"), ("false", "Some(false)"), ("null", "None")] {
        let (status, device) = world.patch("a", "/devices/pc-2", &format!("{{\"keep_connection\": {body}}}")).await;
        assert_eq!((status, &device["id"]), (200, &json!(id(2).to_string())), "{device}");
        assert_eq!(world.control.said().last(), Some(&format!("keep a admin-a {} {said}", id(2))));
    }
    let said = world.control.said().len();
    for (of, path, body, expected) in [
        ("a", "/devices/pc-2", "{}", (422, "missing_field", Some("keep_connection"))),
        ("a", "/devices/pc-2", "", (422, "missing_field", Some("keep_connection"))),
        ("a", "/devices/pc-2", r#"{"keep_connection": "yes"}"#, (422, "wrong_type", Some("keep_connection"))),
        ("a", "/devices/pc-2", r#"{"keep_connection": 1}"#, (422, "wrong_type", Some("keep_connection"))),
        ("a", "/devices/pc-2", r#"{"keep_connection": true, "name": "x"}"#, (422, "unknown_field", Some("name"))),
        ("a", "/devices/pc-2?on=all", r#"{"keep_connection": true}"#, (422, "unknown_field", Some("on"))),
        ("a", "/devices/pc-2", "{", (400, "unparsable", None)),
        ("a", "/devices/osaka", r#"{"keep_connection": true}"#, (404, "unknown_device", None)),
        ("b", "/devices/pc-2", r#"{"keep_connection": true}"#, (404, "unknown_device", None)),
        ("", "/devices/pc-2", r#"{"keep_connection": true}"#, (401, "no_identity", None)),
    ] {
        let (status, answer) = world.patch(of, path, body).await;
        let told = (status, answer["code"].as_str().unwrap_or_default(), answer["field"].as_str());
        assert_eq!(told, expected, "{path} {body}: {answer}");
    }
    assert_eq!(world.control.said().len(), said, "a refusal leaves no trace");
}

#[actix_web::test]
async fn con_4_device_and_tree_say_who_holds_who_waits_since_when_and_what_is_promised() {
    let mut world = World::new().await;
    let mut nodes = world_nodes();
    for view in &mut nodes {
        let slot = |waiter| Some(SlotStanding { since: NOW, waiter });
        let (link, slot, ms) = match view.node.id {
            of if of == id(1) => ("persistent", slot(0), 5_000),
            of if of == id(4) => ("polling", slot(7), 660_000),
            _ => continue,
        };
        (view.standing.state, view.standing.link, view.standing.slot) = ("online", link, slot);
        view.standing.promise = Some(Promise { urgent_ms: ms, normal_ms: ms });
        view.standing.keep_connection = Some(link == "persistent");
    }
    let control = FakeControl { nodes, ..FakeControl::new(world.store.clone()) };
    world.shared = web::Data::new(ApiState { control: Arc::new(control), ..ApiState::clone(&world.shared) });
    let since = "2026-11-01T09:30:00.250Z";
    let (_, holds) = world.get("a", "/devices/pc-1").await;
    assert_eq!(holds["slot"], json!({"since": since, "waiter": null}));
    assert_eq!(holds["delay"], json!({"urgent_ms": 5_000, "normal_ms": 5_000}));
    assert_eq!(holds["keep_connection"], true);
    let (_, waits) = world.get("a", &format!("/devices/{}", id(4))).await;
    assert_eq!(waits["slot"], json!({"since": since, "waiter": 7}));
    let (_, tree) = world.get("system", "/tree?tenant=a").await;
    let node = |name: &str, of: u128| {
        let nodes = tree["nodes"].as_array().unwrap().iter();
        nodes.filter(|n| n["name"] == name).find(|n| n["id"] == id(of).to_string()).cloned().unwrap()
    };
    let of = |devices: u64, ms: u64| json!({"devices": devices, "urgent_ms": ms, "normal_ms": ms});
    assert_eq!(node("osaka", 50)["delays"], json!({"persistent": of(1, 5_000)}));
    assert_eq!(node("hq", 7)["delays"], json!({"polling": of(1, 660_000)}));
    assert_eq!(node("PC-3", 4)["slot"], json!({"since": since, "waiter": 7}));
    assert_eq!(node("PC-1", 1)["delay"]["urgent_ms"], 5_000);
}

#[actix_web::test]
async fn adm_9_what_the_last_job_took_is_shown_beside_what_is_promised() {
    let world = World::new().await;
    let body = json!({"on": "device:pc-1", "verb": "run_script", "args": {"argv": ["true"]}, "class": "urgent"});
    let (_, job) = world.post("a", "/jobs", body).await;
    let job: JobId = job["id"].as_str().unwrap().parse().unwrap();
    let issued_at = world.store.job(&tenant("a"), job).await.unwrap().unwrap().issued_at;
    let rows = world.store.job_devices(&tenant("a"), job).await.unwrap();
    let took = rows[0].delivered_at.unwrap_or(rows[0].changed_at).0 - issued_at.0;
    let expected = json!({"job": job.to_string(), "class": "urgent", "delay_ms": took});
    let (_, device) = world.get("a", "/devices/pc-1").await;
    assert_eq!(device["delay"]["last_job"], expected);
    let (_, list) = world.get("a", "/devices?on=device:pc-1").await;
    assert_eq!(list["devices"][0]["delay"]["last_job"], expected);
    let (_, other) = world.get("a", "/devices/pc-2").await;
    assert_eq!(other["delay"].get("last_job"), None, "it had none");
}
