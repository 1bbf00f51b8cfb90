//! Devices suspended and revived.

use super::*;
use serde_json::json;

#[actix_web::test]
async fn job_16_a_device_is_suspended_and_revived_by_id_or_name_by_its_own_tenant_only() {
    let world = World::new().await;
    for verb in ["suspend", "revive"] {
        let (status, device) = world.post("a", &format!("/devices/pc-2/{verb}"), json!({})).await;
        assert_eq!((status, &device["id"]), (200, &json!(id(2).to_string())), "{device}");
        let done = format!("suspend a admin-a {} {}", id(2), verb == "suspend");
        assert_eq!(world.control.said().last(), Some(&done));
        world.refused("b", &format!("/devices/pc-2/{verb}"), json!({}), (404, "unknown_device", None)).await;
        world.refused("a", &format!("/devices/osaka/{verb}"), json!({}), (404, "unknown_device", None)).await;
        let why = json!({"why": "holiday"});
        world.refused("a", &format!("/devices/pc-2/{verb}"), why, (422, "unknown_field", Some("why"))).await;
    }
}

#[actix_web::test]
async fn job_16_what_waits_for_a_suspended_device_says_so_and_its_life_runs_on() {
    let mut world = World::new().await;
    let mut nodes = world_nodes();
    nodes.iter_mut().filter(|view| view.node.id == id(2)).for_each(|view| view.standing.state = "suspended");
    let control = FakeControl { nodes, ..FakeControl::new(world.store.clone()) };
    world.shared = web::Data::new(ApiState { control: Arc::new(control), ..ApiState::clone(&world.shared) });
    let body = json!({"on": "device:pc-2", "verb": "run_script", "args": {"argv": ["true"]}});
    let (_, job) = world.post("a", "/jobs", body).await;
    let shown = |job: &Value| (job["results"][0]["state"].clone(), job["results"][0]["reason"].clone());
    assert_eq!(shown(&job), (json!("queued"), json!("suspended")));
    world.clock.set_wall(NOW.plus(30 * DAY_MS + 1));
    let (_, job) = world.get("a", &format!("/jobs/{}", job["id"].as_str().unwrap())).await;
    assert_eq!(shown(&job), (json!("expired"), json!("unconfirmed")));
}
