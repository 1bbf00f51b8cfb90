//! Who is let in.

use super::{super::routes::LISTED, *};
use serde_json::json;

/// The paths that need no token.
const OPEN: [&str; 2] = ["/getstatus", "/metrics"];

#[actix_web::test]
async fn every_route_but_two_wants_a_token() {
    let world = World::new().await;
    for (method, path) in LISTED {
        let path = path.replace("{device}", "pc-1").replace("{job}", "x").replace("{node}", "x");
        let method: Method = method.to_uppercase().parse().unwrap();
        let (status, _, answer) = world.send(request("", method.clone(), &path)).await;
        if OPEN.contains(&path.as_str()) {
            assert_eq!(status, 200, "{path}");
            continue;
        }
        assert_eq!((status, &answer["code"]), (401, &json!("no_identity")), "{method} {path}");
        let (status, _, _) = world.send(request("nobody", method.clone(), &path)).await;
        assert_eq!(status, 401, "{method} {path} with a wrong token");
    }
    assert!(world.control.said().is_empty());
}

#[actix_web::test]
async fn a_token_is_taken_only_as_a_bearer_token() {
    let world = World::new().await;
    let hash = Hash::of(b"token-a").to_string();
    let cases = [
        ("Bearer token-a", 200),
        ("bearer token-a", 200),
        ("Basic token-a", 401),
        ("token-a", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer token-A", 401),
        ("Bearer token-a token-b", 401),
        (&format!("Bearer {hash}"), 401),
    ];
    for (header, expected) in cases {
        let sent = TestRequest::with_uri("/api/v1/devices").insert_header(("authorization", header));
        assert_eq!(world.send(sent).await.0, expected, "{header:?}");
    }
    let sent = TestRequest::with_uri("/api/v1/devices").insert_header(("authorization", &b"Bearer \xff"[..]));
    assert_eq!(world.send(sent).await.0, 401);
}

#[actix_web::test]
async fn a_stranger_learns_nothing_from_the_order_of_checks() {
    let world = World::new().await;
    let sent = request("", Method::POST, "/jobs").set_payload("not json");
    assert_eq!(world.send(sent).await.0, 401);
    assert_eq!(world.send(request("", Method::GET, "/devices?tenant=nobody")).await.0, 401);
}
