//! Tokens and bundles: TOP-15, TOP-16.

use super::*;
use branchline_protocol::hash::Hash;

#[tokio::test]
async fn top_15_the_bundle_alone_enrols_an_agent_and_an_altered_one_is_rejected() {
    let world = World::new().await;
    let wish = token_wish(Role::Agent, "osaka", "server");
    let (text, expires_at) = world.office.bundle(&acme(), "admin", &wish).await.unwrap();
    assert_eq!(expires_at, NOW.plus(DAY_MS as i64));
    for position in (0..text.len()).step_by(97) {
        let mut altered = text.clone().into_bytes();
        altered[position] = if altered[position] == b'A' { b'B' } else { b'A' };
        assert!(Bundle::open(&String::from_utf8(altered).unwrap()).is_err(), "byte {position}");
    }
    let bundle = Bundle::open(&text).unwrap();
    assert_eq!(bundle.upstreams[0].direct, ["127.0.0.1:13000"]);
    let enrolled = world.enrol(&bundle, &new_key(), "pc-1").await.unwrap();
    let kinds: Vec<_> = enrolled.documents.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [Kind::Revocations, Kind::Trust, Kind::Upstreams, Kind::Settings]);
    assert_eq!(enrolled.documents[1].1, bundle.trust);
}

#[tokio::test]
async fn top_16_an_unknown_site_is_not_found() {
    let world = World::new().await;
    for site in ["nagoya", "", "OSAKA"] {
        let wish = token_wish(Role::Agent, site, "server");
        refused_with(world.office.bundle(&acme(), "admin", &wish).await, 404, "no_such_site");
        let no = world.office.make_token(&acme(), "admin", &wish).await.unwrap_err();
        assert_eq!((no.status, no.field.as_deref()), (404, Some("site")));
    }
    // Another tenant's site is unknown too, and so is an unknown tenant's.
    let wish = token_wish(Role::Agent, "hq", "server");
    refused_with(world.office.make_token(&tenant("other"), "admin", &wish).await, 404, "no_such_site");
    refused_with(world.office.make_token(&tenant("nobody"), "admin", &wish).await, 404, "no_such_site");
}

#[tokio::test]
async fn top_16_a_device_appears_under_its_site_as_wan_or_lan() {
    let world = World::new().await;
    world.office.add_gateway("admin", "https://gw.example:443".into(), None).await.unwrap();
    for (parent, name, kind) in [("server", "pc-1", "lan"), ("gateway", "pc-2", "wan"), ("any", "pc-3", "lan")] {
        let bundle = world.bundle(&token_wish(Role::Agent, "hq", parent)).await;
        let id = world.enrol(&bundle, &new_key(), name).await.unwrap().id();
        let row = world.row(id).await;
        assert_eq!((&row.site[..], &row.kind[..]), ("hq", kind), "{parent}");
    }
}

#[tokio::test]
async fn a_bundle_leads_to_the_parent_that_was_asked_for() {
    let world = World::new().await;
    let ask = async |parent: &str| world.office.bundle(&acme(), "admin", &token_wish(Role::Agent, "hq", parent)).await;
    let ways = async |parent: &str| {
        let upstreams = Bundle::open(&ask(parent).await.unwrap().0).unwrap().upstreams;
        upstreams.into_iter().map(|up| (up.name, up.direct, up.gateways)).collect::<Vec<_>>()
    };
    refused_with(ask("gateway").await, 409, "no_gateway");
    world.office.add_gateway("admin", "https://127.77.0.2:443".into(), None).await.unwrap();
    let (direct, gateway) = (vec!["127.0.0.1:13000".to_owned()], vec!["https://127.77.0.2:443".to_owned()]);
    let main = || "main".to_owned();
    assert_eq!(ways("server").await, [(main(), direct.clone(), vec![])]);
    assert_eq!(ways("gateway").await, [(main(), vec![], gateway.clone())]);
    assert_eq!(ways("any").await, [(main(), direct.clone(), gateway.clone())]);

    refused_with(ask("relay-1").await, 404, "no_such_parent");
    let relay = world.bundle(&token_wish(Role::Relay, "hq", "server")).await;
    let relay = world.enrol(&relay, &new_key(), "relay-1").await.unwrap().id();
    let behind =
        [("relay-1".to_owned(), vec!["127.0.0.9:13000".to_owned()], vec![]), (main(), direct.clone(), gateway.clone())];
    assert_eq!(ways("relay-1").await, behind);
    assert_eq!(ways("RELAY-1").await, behind);
    assert_eq!(ways(&relay.to_string()).await, behind);

    world.office.set_addresses(&acme(), relay, vec![]).await.unwrap();
    refused_with(ask("relay-1").await, 409, "no_route");
    world.office.revoke(&acme(), "admin", relay).await.unwrap();
    refused_with(ask("relay-1").await, 404, "no_such_parent");
}

#[tokio::test]
async fn a_bundle_carries_what_the_way_through_a_gateway_needs() {
    let world = World::new().await;
    let bundle = world.agent_bundle().await;
    assert_eq!(world.office.link_token_hashes().len(), 2);
    assert!(world.office.link_token_hashes().contains(&Hash::of(bundle.link_token.as_bytes())));
    let system = world.office.tenant_tls(&TenantId::system()).unwrap().ca;
    assert_eq!(bundle.outer_roots, [bytes::Bytes::copy_from_slice(&system)]);
    let own_root = bytes::Bytes::copy_from_slice(&world.office.tenant_tls(&acme()).unwrap().ca);
    world.office.add_gateway("admin", "https://gw.example".into(), Some(own_root.clone())).await.unwrap();
    assert_eq!(world.agent_bundle().await.outer_roots, [own_root]);
    let mut tokens = world.office.link_tokens();
    tokens.mark_unchanged();
    world.office.add_tenant("admin", tenant("third"), vec![]).await.unwrap();
    assert_eq!(soon(tokens.wait_for(|hashes| hashes.len() == 3)).await.unwrap().len(), 3);
}

#[tokio::test]
async fn gateways_are_the_installations_and_enrol_at_the_trunk() {
    let world = World::new().await;
    let wish = token_wish(Role::Gateway, "", "server");
    refused_with(world.office.bundle(&acme(), "admin", &wish).await, 403, "system_only");
    let agent = token_wish(Role::Agent, "hq", "server");
    refused_with(world.office.bundle(&TenantId::system(), "admin", &agent).await, 422, "bad_role");
    let bundle = world.bundle(&wish).await;
    assert_eq!(bundle.upstreams[0].direct, ["127.0.0.1:8443"]);
    assert_eq!((&bundle.site[..], &bundle.link_token[..], bundle.outer_roots.len()), ("", "", 0));
    let enrolled = world.enrol(&bundle, &new_key(), "dmz").await.unwrap();
    let subject = &enrolled.identity.subject;
    assert_eq!((subject.role, &subject.tenant), (Role::Gateway, &TenantId::system()));
    let kinds: Vec<_> = enrolled.documents.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [Kind::Revocations, Kind::Trust, Kind::Settings]);
}

#[tokio::test]
async fn tokens_at_their_bounds_and_one_past_them() {
    let world = World::new().await;
    let good = token_wish(Role::Agent, "hq", "server");
    let judge = async |wish: TokenWish| world.office.make_token(&acme(), "admin", &wish).await;
    for uses in [1, 10_000] {
        judge(TokenWish { uses, ..good.clone() }).await.unwrap();
    }
    for uses in [0, 10_001] {
        refused_with(judge(TokenWish { uses, ..good.clone() }).await, 422, "bad_uses");
    }
    for life_ms in [1_000, 365 * DAY_MS] {
        let (_, expires_at) = judge(TokenWish { life_ms, ..good.clone() }).await.unwrap();
        assert_eq!(expires_at, NOW.plus(life_ms as i64));
    }
    for life_ms in [0, 999, 365 * DAY_MS + 1, u64::MAX] {
        refused_with(judge(TokenWish { life_ms, ..good.clone() }).await, 422, "bad_life");
    }
    refused_with(judge(TokenWish { role: Role::Server, ..good.clone() }).await, 422, "bad_role");
}

#[tokio::test]
async fn of_a_token_only_the_hash_is_kept() {
    let world = World::new().await;
    let wish = token_wish(Role::Agent, "hq", "server");
    let (secret, _) = world.office.make_token(&acme(), "admin", &wish).await.unwrap();
    let (other, _) = world.office.make_token(&acme(), "admin", &wish).await.unwrap();
    assert_ne!(secret, other);
    assert!(world.store.token(Hash::of(secret.as_bytes())).await.unwrap().is_some());
    world.store.close().await;
    for file in std::fs::read_dir(world.folder.path()).unwrap().map(|entry| entry.unwrap().path()) {
        if file.is_file() {
            let bytes = std::fs::read(&file).unwrap();
            assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{}", file.display());
        }
    }
}
