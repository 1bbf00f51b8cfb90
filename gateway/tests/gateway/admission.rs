//! Who is let in when: trunks, tokens, limits (GW-3, GW-16).

use super::support::{PUBLIC_NAME, SOON, Serve, ServerEnd, TOKEN, World, refused, until, upgrade};
use branchline_gateway::config::Limits;
use branchline_protocol::{
    hash::Hash,
    wire::{LINK_PATH, Preface},
};
use std::num::NonZeroU32;
use tokio::{io::AsyncReadExt, time::timeout};

#[actix_rt::test]
async fn gw_16_without_a_trunk_children_are_asked_to_come_again_and_never_told_404() {
    let world = World::start(Serve::Echo).await;
    let World { pki, server, gateway, state } = world;
    let mut link = {
        let world = World { pki, server, gateway, state };
        let link = world.dialler(TOKEN).open(&world.route(), Preface::Link).await.unwrap();
        world.server.trunks.lock().unwrap().clear();
        let World { pki, server, gateway, state } = world;
        server.vanish().await;
        let server = ServerEnd::start(&pki, "127.0.0.1:0".parse().unwrap(), Serve::Echo).await;
        (link, World { pki, server, gateway, state })
    };
    let world = link.1;
    world.wait_status(|s| s["trunks"] == 0).await;
    for token in [TOKEN, "unknown"] {
        let (status, retry) = refused(world.dialler(token).open(&world.route(), Preface::Link).await);
        assert_eq!(status, 503);
        assert!(retry.is_some_and(|s| s >= 1), "{retry:?}");
    }
    let mut byte = [0; 1];
    let end = timeout(SOON, link.0.read(&mut byte)).await.expect("persistent links are closed");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn revoked_unknown_and_missing_tokens_are_strangers() {
    let world = World::start(Serve::Echo).await;
    for token in ["", "unknown", "Knock-Knock"] {
        let (status, retry) = refused(world.dialler(token).open(&world.route(), Preface::Link).await);
        assert_eq!((status, retry), (404, None), "{token}");
    }
    let without = upgrade(&format!("GET {LINK_PATH} HTTP/1.1"), PUBLIC_NAME).replacen(
        &format!("X-Branchline-Link-Token: {TOKEN}\r\n"),
        "",
        1,
    );
    assert_eq!(world.ask(&without).await.0, 404);
    assert_eq!(world.server.streams(), 0);

    world.dialler(TOKEN).open(&world.route(), Preface::Link).await.unwrap();
    world.server.tokens.send(vec![Hash::of(b"other")]).unwrap();
    until(async || {
        let open = world.dialler(TOKEN).open(&world.route(), Preface::Link).await;
        open.is_err().then(|| assert_eq!(refused(open).0, 404))
    })
    .await;
    world.dialler("other").open(&world.route(), Preface::Link).await.unwrap();
    let (_, metrics) = world.get_private("/metrics").await;
    assert!(metrics.contains("branchline_gateway_refused_total{reason=\"token\"}"), "{metrics}");
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn an_empty_list_of_tokens_is_no_list_yet() {
    let world = World::start(Serve::Echo).await;
    world.server.tokens.send(vec![]).unwrap();
    until(async || {
        let open = world.dialler(TOKEN).open(&world.route(), Preface::Link).await;
        open.is_err().then(|| assert_eq!(refused(open).0, 503))
    })
    .await;
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn gw_3_one_source_above_its_limit_waits_and_comes_in_later() {
    let world = World::with(Serve::Echo, |config| {
        let n = |n| NonZeroU32::new(n).unwrap();
        config.limits = Limits { upgrades_per_second: n(1), upgrades_burst: n(3), ..Limits::default() };
    })
    .await;
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(match world.dialler(TOKEN).open(&world.route(), Preface::Link).await {
            Ok(_) => (101, None),
            Err(e) => refused(Err(e)),
        });
    }
    assert_eq!(statuses[..3], [(101, None); 3]);
    assert!(statuses[3..].contains(&(429, Some(1))), "{statuses:?}");
    // A second source is not held up.
    let mut dialler = world.dialler(TOKEN);
    dialler.bind_source = Some("127.0.0.2".parse().unwrap());
    dialler.open(&world.route(), Preface::Link).await.unwrap();
    until(async || world.dialler(TOKEN).open(&world.route(), Preface::Link).await.ok()).await;
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn gw_3_links_at_the_ceiling_pass_one_more_comes_again() {
    let world = World::with(Serve::Echo, |config| config.limits.pipes = 3).await;
    let mut links = Vec::new();
    for _ in 0..3 {
        links.push(world.dialler(TOKEN).open(&world.route(), Preface::Link).await.unwrap());
    }
    let (status, retry) = refused(world.dialler(TOKEN).open(&world.route(), Preface::Link).await);
    assert_eq!((status, retry.is_some()), (503, true));
    links.pop();
    until(async || world.dialler(TOKEN).open(&world.route(), Preface::Link).await.ok()).await;
    assert!(world.server.streams() >= 4);
    world.gateway.stop().await;
}
