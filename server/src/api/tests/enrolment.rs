//! Tokens, bundles, sites, revocation and gateways' addresses.

use super::*;
use serde_json::json;

#[actix_web::test]
async fn enr_1_a_token_is_made_for_a_role_and_a_site() {
    let world = World::new().await;
    let wish = json!({"role": "agent", "site": "osaka", "uses": 20, "life_s": 3600});
    let expected = json!({
        "token": "secret", "role": "agent", "site": "osaka", "expires_at": "2026-11-01T10:30:00.250Z", "uses": 20
    });
    assert_eq!(world.post("a", "/enrol-tokens", wish).await, (201, expected));
    let (status, answer) = world.post("a", "/enrol-tokens", json!({"role": "relay", "site": "hq"})).await;
    assert_eq!((status, &answer["uses"], &answer["expires_at"]), (201, &json!(1), &json!("2026-11-02T09:30:00.250Z")));
    assert_eq!(world.control.said()[0], "token a admin-a agent \"osaka\" 20 3600000");
}

#[actix_web::test]
async fn a_bundle_leads_to_its_parent() {
    let world = World::new().await;
    let wish = json!({"role": "agent", "site": "osaka", "parent": "osaka", "uses": 10_000, "life_s": 1});
    let expected = json!({"bundle": "text", "expires_at": "2026-11-01T09:30:01.250Z"});
    assert_eq!(world.post("a", "/bundles", wish).await, (201, expected));
    world.post("a", "/bundles", json!({"role": "relay", "site": "hq"})).await;
    world.post("system", "/bundles", json!({"role": "gateway", "life_s": 365 * 86_400})).await;
    let said = [
        "bundle a admin-a agent \"osaka\" osaka 10000",
        "bundle a admin-a relay \"hq\" server 1",
        "bundle system admin-system gateway \"\" server 1",
    ];
    assert_eq!(world.control.said(), said);
}

/// TOP-16: sites come first.
#[actix_web::test]
async fn top_16_a_bundle_for_an_unknown_site_is_404() {
    let world = World::new().await;
    for path in ["/bundles", "/enrol-tokens"] {
        // tokyo is another tenant's.
        for site in ["kyoto", "tokyo"] {
            let wish = json!({"role": "agent", "site": site});
            world.refused("a", path, wish, (404, "unknown_site", Some("site"))).await;
        }
    }
}

#[actix_web::test]
async fn every_bad_wish_names_its_field() {
    let world = World::new().await;
    let with = |field: &str, value: Value| {
        let mut wish = json!({"role": "agent", "site": "hq"});
        wish[field] = value;
        wish
    };
    let cases = [
        (with("role", json!("server")), "bad_value", "role"),
        (with("role", json!("Agent")), "bad_value", "role"),
        (with("site", json!("")), "missing_field", "site"),
        (with("site", json!(null)), "missing_field", "site"),
        (with("uses", json!(0)), "out_of_range", "uses"),
        (with("uses", json!(10_001)), "out_of_range", "uses"),
        (with("uses", json!(1.5)), "wrong_type", "uses"),
        (with("life_s", json!(0)), "out_of_range", "life_s"),
        (with("life_s", json!(365 * 86_400 + 1)), "out_of_range", "life_s"),
        (with("forever", json!(true)), "unknown_field", "forever"),
    ];
    for path in ["/bundles", "/enrol-tokens"] {
        for (wish, code, field) in &cases {
            world.refused("a", path, wish.clone(), (422, code, Some(field))).await;
        }
        world.refused("a", path, json!({"role": "gateway"}), (403, "not_allowed", Some("role"))).await;
        let sited = json!({"role": "gateway", "site": "hq"});
        world.refused("system", path, sited, (422, "bad_value", Some("site"))).await;
    }
    world.refused("a", "/bundles", with("parent", json!("")), (422, "bad_value", Some("parent"))).await;
    world.refused("a", "/enrol-tokens", with("parent", json!("x")), (422, "unknown_field", Some("parent"))).await;
}

#[actix_web::test]
async fn a_site_is_added_once() {
    let world = World::new().await;
    assert_eq!(world.get("a", "/sites").await, (200, json!({"sites": ["hq", "osaka"]})));
    assert_eq!(world.post("a", "/sites", json!({"name": "nara"})).await, (201, json!({"name": "nara"})));
    assert_eq!(world.post("a", "/sites", json!({"name": "n".repeat(40)})).await.0, 201);
    world.refused("a", "/sites", json!({"name": "hq"}), (409, "already_exists", Some("name"))).await;
    for bad in ["", "a b", "a(b)", "site:x", &"n".repeat(41)] {
        world.refused("a", "/sites", json!({"name": bad}), (422, "bad_value", Some("name"))).await;
    }
    assert_eq!(world.control.said()[0], "site a admin-a nara");
}

#[actix_web::test]
async fn a_node_is_revoked_by_its_id() {
    let world = World::new().await;
    let expected = json!({"revoked": id(50).to_string(), "epoch": 3});
    assert_eq!(world.post("a", &format!("/nodes/{}/revoke", id(50)), json!({})).await, (200, expected));
    for words in ["osaka".to_owned(), id(77).to_string()] {
        world.refused("a", &format!("/nodes/{words}/revoke"), json!({}), (404, "unknown_node", None)).await;
    }
}

#[actix_web::test]
async fn top_6_a_gateways_address_is_checked_before_it_is_kept() {
    let world = World::new().await;
    let host = |n: usize| format!("https://{}", "h".repeat(n));
    for public in ["https://gw.example", "https://127.77.0.2:4430", "https://[::1]:443", &host(253)] {
        let body = json!({ "public": public });
        assert_eq!(world.post("system", "/gateways", body.clone()).await, (201, body));
    }
    let bad = [
        "",
        "gw.example",
        "http://gw.example",
        "https://",
        "https://gw.example/",
        "https://gw.example/x?y",
        "https://gw example",
        "https://me@gw.example",
        "https://gw.example:0",
        "https://gw.example:70000",
        "https://gw.example:",
        &host(254),
    ];
    for public in bad {
        world.refused("system", "/gateways", json!({ "public": public }), (422, "bad_value", Some("public"))).await;
    }
    let root = json!({"public": "https://gw.example", "outer_root_pem": "nonsense"});
    world.refused("system", "/gateways", root, (422, "bad_value", Some("outer_root_pem"))).await;
    world.refused("a", "/gateways", json!({"public": "https://gw.example"}), (403, "not_allowed", None)).await;
    let (status, answer) = world.get("system", "/gateways").await;
    let dmz = json!({"id": id(60).to_string(), "name": "dmz", "trunks": 2, "links": 3});
    assert_eq!((status, &answer["gateways"][0]), (200, &dmz));
}
