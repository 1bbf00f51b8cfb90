//! What passes between a child and the server, and what ends it (GW-1).

use super::support::{PUBLIC_NAME, SOON, Serve, TOKEN, World, echoed, payload, silent, time, until, upgrade};
use branchline_node::{identity::child_config, link::dial::DialFault};
use branchline_protocol::wire::{LINK_PATH, PREFACE_ACCEPTED, Preface};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

#[actix_rt::test]
async fn gw_1_payloads_arrive_byte_identical_through_two_distinct_tls_sessions() {
    let world = World::start(Serve::TlsEcho).await;
    let roots = [world.pki.acme.certificate().clone()];
    let inner = child_config(Some(&world.pki.device), &roots, Arc::new(time())).unwrap();
    for length in [0, 1, 100_000_000] {
        let (dialler, route) = (world.dialler(TOKEN), world.route());
        let link = dialler.secure(&route, Preface::Link, &inner, world.parent()).await.unwrap();
        let parent = link.get_ref().1.peer_certificates().unwrap()[0].clone();
        assert_eq!(parent, world.pki.parent.chain[0], "the inner session ends at the server");
        let bytes = payload(length);
        assert!(echoed(Box::new(link), Arc::clone(&bytes)).await == *bytes, "{length} bytes");
    }
    let outer = world.tls(world.public()).await;
    let gateway = outer.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert_ne!(gateway, world.pki.parent.chain[0]);
    assert_ne!(gateway, world.pki.server.chain[0], "the outer session ends at the gateway");
    let (_, metrics) = world.get_private("/metrics").await;
    let up = metrics.lines().find(|l| l.starts_with("branchline_gateway_bytes_total{direction=\"up\"}")).unwrap();
    assert!(up.rsplit(' ').next().unwrap().parse::<u64>().unwrap() > 100_000_000, "{up}");
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn gw_1_the_gateway_copies_blindly_and_tells_the_server_source_and_token() {
    let world = World::start(Serve::Echo).await;
    let bytes = payload(300_000);
    for (kind, byte) in [(Preface::Link, b'L'), (Preface::Bulk, b'B')] {
        let stream = world.dialler(TOKEN).open(&world.route(), kind).await.unwrap();
        assert!(echoed(stream, Arc::clone(&bytes)).await == *bytes);
        let (header, seen) = world.server.seen.lock().unwrap().headers.last().cloned().unwrap();
        assert_eq!((header.token.as_deref(), seen), (Some(TOKEN), byte));
        assert_eq!(header.source.unwrap().ip(), world.public().ip());
    }
    world.wait_status(|s| s["links"] == 0).await;
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn three_hundred_silent_children_do_not_lock_others_out() {
    let world = World::with(Serve::Echo, |config| config.trunks = 1).await;
    let mut strangers = Vec::new();
    for _ in 0..300 {
        strangers.push(silent(&world).await);
    }
    let stream = world.dialler(TOKEN).open(&world.route(), Preface::Link).await.unwrap();
    let bytes = payload(1_000);
    assert!(echoed(stream, Arc::clone(&bytes)).await == *bytes);
    assert_eq!(world.server.streams(), 1, "silent children have no stream");
    drop(strangers);
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn a_silent_child_and_a_silent_server_are_closed_by_the_handshake_time() {
    let world = World::start(Serve::Nothing).await;
    let mut child = silent(&world).await;
    let mut half = silent(&world).await;
    // A masked binary message with the one byte `L`; the server never answers it.
    half.write_all(&[0x82, 0x81, 0, 0, 0, 0, b'L']).await.unwrap();
    for stream in [&mut child, &mut half] {
        let mut rest = Vec::new();
        let _cut = timeout(SOON, stream.read_to_end(&mut rest)).await.expect("closed by the gateway");
        assert!(rest.windows(4).any(|w| w == [0x88, 0x02, 0x03, 0xf0]), "close 1008: {rest:?}");
    }
    assert_eq!(world.server.streams(), 1);
    world.wait_status(|s| s["links"] == 0).await;
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn a_ping_is_answered_and_what_came_with_the_request_is_not_lost() {
    let world = World::start(Serve::Echo).await;
    let mut tls = world.tls(world.public()).await;
    let mut all = upgrade(&format!("GET {LINK_PATH} HTTP/1.1"), PUBLIC_NAME).into_bytes();
    // A ping, and the first byte of a link with two more in two fragments, all in one write with the request.
    all.extend([0x89, 0x83, 0, 0, 0, 0, b'a', b'b', b'c']);
    all.extend([0x02, 0x82, 0, 0, 0, 0, b'L', 7, 0x80, 0x81, 0, 0, 0, 0, 8]);
    tls.write_all(&all).await.unwrap();
    let mut got = Vec::new();
    let holds = |got: &[u8], bytes: &[u8]| got.windows(bytes.len()).any(|w| w == bytes);
    while !(holds(&got, &[0x8a, 3, b'a', b'b', b'c']) && got.ends_with(&[7, 8])) {
        let mut byte = [0; 1];
        timeout(SOON, tls.read_exact(&mut byte)).await.unwrap().unwrap();
        got.push(byte[0]);
    }
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn what_no_child_may_send_is_closed() {
    let world = World::start(Serve::Echo).await;
    for (what, message) in [
        ("a trunk", vec![0x82, 0x81, 0, 0, 0, 0, b'T']),
        ("nonsense", vec![0x82, 0x81, 0, 0, 0, 0, b'x']),
        ("text", vec![0x81, 0x81, 0, 0, 0, 0, b'L']),
        ("a frame over the bound", vec![0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0]),
        ("an unmasked frame", vec![0x82, 0x01, b'L']),
    ] {
        let mut child = silent(&world).await;
        child.write_all(&message).await.unwrap();
        let mut rest = Vec::new();
        let _cut = timeout(SOON, child.read_to_end(&mut rest)).await.unwrap_or_else(|_| panic!("{what} stays"));
    }
    assert_eq!(world.server.streams(), 0);
    world.wait_status(|s| s["links"] == 0).await;
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn enrolments_are_spliced_within_their_bounds_and_eight_at_once() {
    let world = World::start(Serve::Echo).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(world.dialler(TOKEN).open(&world.route(), Preface::Enrol).await.unwrap());
    }
    let ninth = world.dialler(TOKEN).open(&world.route(), Preface::Enrol).await;
    assert!(matches!(ninth, Err(DialFault::Preface(_))), "closed");
    assert_eq!(world.server.streams(), 8, "the ninth has no stream");
    world.dialler(TOKEN).open(&world.route(), Preface::Link).await.unwrap();
    drop(held);
    let bytes = payload(65_535);
    // With the preface and its answer: exactly the bound in each direction.
    let fits = until(async || world.dialler(TOKEN).open(&world.route(), Preface::Enrol).await.ok()).await;
    assert!(echoed(fits, Arc::clone(&bytes)).await == *bytes);
    let mut over = until(async || world.dialler(TOKEN).open(&world.route(), Preface::Enrol).await.ok()).await;
    over.write_all(&payload(65_536)).await.unwrap();
    over.flush().await.unwrap();
    let mut received = Vec::new();
    let _cut = timeout(SOON, over.read_to_end(&mut received)).await.expect("closed by the gateway");
    assert!(received.len() <= 65_535, "{}", received.len());
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn the_servers_end_answers_prefaces() {
    // The double is held to the protocol that it stands in for.
    let world = World::start(Serve::Echo).await;
    let mut child = silent(&world).await;
    child.write_all(&[0x82, 0x83, 0, 0, 0, 0, b'L', 1, 2]).await.unwrap();
    let mut rest = Vec::new();
    while !rest.ends_with(&[1, 2]) {
        let mut byte = [0; 1];
        timeout(SOON, child.read_exact(&mut byte)).await.unwrap().unwrap();
        rest.push(byte[0]);
    }
    assert!(rest.contains(&PREFACE_ACCEPTED));
    world.gateway.stop().await;
}
