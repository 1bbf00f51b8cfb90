//! Tenants apart from one another (TOP-22), and the installation above them.

use super::*;
use serde_json::json;

/// TOP-22: an administrator of one tenant asks for everything of another one by its id.
#[actix_web::test]
async fn top_22_another_tenants_things_are_404_and_in_no_list_or_count() {
    let world = World::new().await;
    let order = json!({"on": "all", "verb": "run_script", "args": {"argv": ["true"]}});
    let (_, job) = world.post("a", "/jobs", order).await;
    let job = job["id"].as_str().unwrap();
    let said = world.control.said();

    for path in [
        format!("/devices/{}", id(1)),
        "/devices/pc-1".into(),
        format!("/devices/{}/inventory", id(1)),
        format!("/jobs/{job}"),
        format!("/jobs/{job}?wait_ms=1000"),
    ] {
        assert_eq!(world.get("b", &path).await.0, 404, "{path}");
    }
    for path in [format!("/devices/{}/refresh", id(1)), format!("/nodes/{}/revoke", id(1))] {
        assert_eq!(world.post("b", &path, json!({})).await.0, 404, "{path}");
    }
    assert_eq!(world.control.said(), said, "nothing of it reached the running server");
    assert_eq!(world.get("b", "/jobs").await.1, json!({"jobs": []}));
    assert_eq!(world.get("b", "/sites").await.1, json!({"sites": ["tokyo"]}));
    let (_, devices) = world.get("b", "/devices").await;
    assert_eq!(devices["devices"].as_array().unwrap().len(), 1);
    assert_eq!(world.get("b", &format!("/devices?on=device:{}", id(1))).await.1, json!({"devices": []}));

    let foreign = json!({"on": format!("device:{}", id(1)), "verb": "run_script", "args": {"argv": ["true"]}});
    let (status, ordered) = world.post("b", "/jobs", foreign).await;
    assert_eq!((status, &ordered["counts"]["no_such_device"]), (201, &json!(1)));
    assert_eq!(ordered["results"].as_array().unwrap().len(), 1);
    assert_eq!(world.get("a", "/jobs").await.1["jobs"].as_array().unwrap().len(), 1);

    let (_, tree) = world.get("b", "/tree").await;
    let nodes = tree["nodes"].as_array().unwrap();
    let names: Vec<_> = nodes.iter().map(|n| n["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["hq", "dmz", "dmz-2", "PC-9"]);
    // Counts over all tenants are nobody's but the installation's.
    for node in &nodes[..3] {
        assert_eq!((&node["links"], &node["slots"]), (&json!(null), &json!(null)), "{node}");
    }
    assert_eq!(world.get("b", "/gateways").await.1["gateways"][0]["links"], json!(null));
}

#[actix_web::test]
async fn top_22_only_a_system_token_may_name_a_tenant() {
    let world = World::new().await;
    for path in ["/devices?tenant=b", "/devices?tenant=a", "/jobs?tenant=b", "/tree?tenant=b", "/sites?tenant=nobody"] {
        let (status, answer) = world.get("a", path).await;
        assert_eq!(
            (status, &answer["code"], &answer["field"]),
            (403, &json!("not_allowed"), &json!("tenant")),
            "{path}"
        );
    }
    let (status, answer) = world.get("system", "/devices?tenant=b").await;
    assert_eq!((status, &answer["devices"][0]["name"]), (200, &json!("PC-9")));
    assert_eq!(world.get("system", "/devices").await, (200, json!({"devices": []})));
    for path in ["/devices?tenant=nobody", "/devices?tenant=B%20B", "/devices?tenant="] {
        let (status, answer) = world.get("system", path).await;
        assert_eq!((status, &answer["code"]), (404, &json!("unknown_tenant")), "{path}");
    }
    assert_eq!(world.get("system", "/devices?tenant=a&tenant=b").await.0, 422);
}

#[actix_web::test]
async fn a_tenant_is_made_by_the_installation_alone() {
    let world = World::new().await;
    assert_eq!(world.get("system", "/tenants").await, (200, json!({"tenants": ["a", "b"]})));
    let body = json!({"name": "c", "sites": ["hq", "nara"]});
    world.refused("a", "/tenants", body.clone(), (403, "not_allowed", None)).await;
    assert_eq!(world.get("a", "/tenants").await.0, 403);
    assert_eq!(world.post("system", "/tenants", body).await, (201, json!({"name": "c", "token": "tenant-secret"})));
    assert_eq!(world.control.said(), ["tenant admin-system c [\"hq\", \"nara\"]"]);
    world.refused("system", "/tenants", json!({"name": "a"}), (409, "already_exists", Some("name"))).await;
    for bad in ["", "C", "a_b", "system", &"c".repeat(41)] {
        world.refused("system", "/tenants", json!({"name": bad}), (422, "bad_value", Some("name"))).await;
    }
    for (sites, code) in [
        (json!(["a b"]), "bad_value"),
        (json!(["x", "x"]), "bad_value"),
        (json!("hq"), "wrong_type"),
        (json!(vec!["x"; 1_001]), "out_of_range"),
    ] {
        let body = json!({"name": "d", "sites": sites});
        world.refused("system", "/tenants", body, (422, code, Some("sites"))).await;
    }
}
