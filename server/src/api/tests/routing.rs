//! The list of routes, its description, and what is on no list.

use super::{
    super::{BUILD, error::Code, routes::LISTED},
    *,
};
use serde_json::json;
use std::collections::BTreeSet;

#[actix_web::test]
async fn every_route_is_described_and_nothing_else_is() {
    let world = World::new().await;
    let (status, document) = world.get("a", "/openapi.json").await;
    assert_eq!(status, 200);
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(|m| (m.clone(), path.clone())))
        .collect();
    let listed: BTreeSet<_> = LISTED.iter().map(|(method, path)| (method.to_string(), path.to_string())).collect();
    assert_eq!(described, listed);
    assert!(!listed.is_empty());
    assert_eq!(document["info"]["version"], BUILD);
    // Every schema that is pointed at is there.
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name: String = reference.chars().take_while(|c| *c != '"').collect();
        assert!(document["components"]["schemas"].get(&name).is_some(), "{name}");
    }
}

#[actix_web::test]
async fn what_is_on_no_list_is_404_in_the_same_shape() {
    let world = World::new().await;
    let cases = [
        (Method::GET, "/"),
        (Method::GET, "/api/v1"),
        (Method::GET, "/nothing"),
        (Method::GET, "/devices/"),
        (Method::GET, "/devices/a/b/c"),
        (Method::GET, "/Devices"),
        (Method::GET, "/api/v2/devices"),
        (Method::DELETE, "/devices"),
        (Method::PUT, "/jobs"),
        (Method::GET, "/bundles"),
        (Method::POST, "/getstatus"),
    ];
    for (method, path) in cases {
        let (status, _, answer) = world.send(request("a", method.clone(), path)).await;
        assert_eq!((status, &answer["code"]), (404, &json!("unknown_route")), "{method} {path}");
    }
}

#[actix_web::test]
async fn ops_2_the_status_shows_the_build() {
    let world = World::new().await;
    world.clock.advance(61_999);
    let expected = json!({"build": env!("CARGO_PKG_VERSION"), "uptime_s": 61, "server_id": id(7).to_string(), "term": 1,
        "recovering": null});
    assert_eq!(world.get("", "/getstatus").await, (200, expected));
}

#[actix_web::test]
async fn metrics_are_the_nodes_own() {
    let world = World::new().await;
    world.metrics.counter("branchline_trunk_streams_total", &[]).increment(3);
    let (status, text) = world.get("", "/metrics").await;
    assert_eq!(status, 200);
    let fsyncs = format!("branchline_fsyncs_total {}", world.store.fsyncs());
    assert!(world.store.fsyncs() > 0);
    for line in ["branchline_trunk_streams_total 3", &fsyncs] {
        assert!(text.as_str().unwrap().lines().any(|l| l == line), "{line}: {text}");
    }
}

#[actix_web::test]
async fn a_store_that_does_not_answer_is_503_without_its_inner_words() {
    let world = World::new().await;
    world.store.close().await;
    let (status, answer) = world.get("a", "/sites").await;
    assert_eq!((status, &answer["code"]), (503, &json!("store_away")));
    assert!(!answer["message"].as_str().unwrap().contains("pool"), "{answer}");
}

#[test]
fn a_code_has_one_word_and_a_status_of_the_list() {
    let words: BTreeSet<_> = Code::ALL.iter().map(|code| code.row().1).collect();
    assert_eq!(words.len(), Code::ALL.len());
    for code in Code::ALL {
        assert!([400, 401, 403, 404, 409, 413, 422, 429, 503].contains(&code.row().0), "{code:?}");
    }
}
