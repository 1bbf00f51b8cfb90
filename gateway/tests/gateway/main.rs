//! One gateway between real TLS children and a server's end of the trunk.

mod support;

use branchline_gateway::{Gateway, config::Limits};
use branchline_node::{
    identity::child_config,
    link::{BoxStream, dial::DialFault},
    node::{Ambient, Started},
};
use branchline_protocol::{
    hash::Hash,
    wire::{LINK_PATH, PREFACE_ACCEPTED, Preface},
};
use std::{num::NonZeroU32, sync::Arc};
use support::{PUBLIC_NAME, SOON, Serve, ServerEnd, TOKEN, World, config, time, until, upgrade};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

async fn echoed(stream: BoxStream, bytes: Arc<Vec<u8>>) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let (sent, length) = (Arc::clone(&bytes), bytes.len());
    let sending = tokio::spawn(async move {
        for chunk in sent.chunks(100_000) {
            write.write_all(chunk).await.unwrap();
        }
        write.flush().await.unwrap();
        write
    });
    let mut received = vec![0; length];
    timeout(SOON, read.read_exact(&mut received)).await.unwrap().unwrap();
    let mut write = sending.await.unwrap();
    let _closing = write.shutdown().await;
    received
}

fn payload(length: usize) -> Arc<Vec<u8>> {
    Arc::new((0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 23) as u8).collect())
}

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
async fn gw_2_only_the_one_request_passes_and_everything_else_is_cut_off() {
    let world = World::start(Serve::Echo).await;
    let ours = world.public().to_string();
    let get = |target: &str| upgrade(&format!("GET {target} HTTP/1.1"), &ours);
    let long = format!("{LINK_PATH}?{}", "x".repeat(9_000));
    let mut requests: Vec<(String, String)> = Vec::new();
    let targets = [
        "/",
        "/getstatus",
        "/metrics",
        "/branchline/v1/links",
        "/branchline/v1/link/",
        "/branchline/v1/link?x=1",
        "/branchline/v1/x/../link",
        "/../branchline/v1/link",
        "/branchline/v1/%2e%2e/v1/link",
        "/branchline/v1/%6cink",
        "//branchline/v1/link",
        "/branchline//v1/link",
        "/Branchline/v1/Link",
        "*",
        "branchline/v1/link",
        "https://other.example.com/branchline/v1/link",
        "http://gw.example.com/branchline/v1/link",
        &long,
    ];
    for target in targets {
        requests.push((format!("target {target:.60}"), get(target)));
    }
    for method in ["POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "TRACE", "DELETE", "get", "L1NK"] {
        requests.push((format!("method {method}"), upgrade(&format!("{method} {LINK_PATH} HTTP/1.1"), &ours)));
    }
    let first = format!("GET {LINK_PATH} HTTP/1.1");
    for host in ["other.example.com", "", "127.0.0.1", "gw.example.com.evil.example", "gw.example.com:1"] {
        requests.push((format!("host {host:?}"), upgrade(&first, host)));
    }
    let good = get(LINK_PATH);
    requests.push(("no host".into(), good.replacen(&format!("Host: {ours}\r\n"), "", 1)));
    requests.push(("two hosts".into(), good.replacen("Connection", "Host: other.example.com\r\nConnection", 1)));
    requests.push(("no upgrade".into(), good.replacen("Upgrade: websocket\r\n", "", 1)));
    requests.push(("another upgrade".into(), good.replacen("websocket", "h2c", 1)));
    requests.push(("no key".into(), good.replacen("Sec-WebSocket-Key", "X-Key", 1)));
    requests.push(("a body".into(), good.replacen("Connection", "Content-Length: 5\r\nConnection", 1) + "hello"));
    requests.push(("HTTP/1.0".into(), good.replacen("HTTP/1.1", "HTTP/1.0", 1)));
    requests.push(("garbage".into(), "\x01\x02\x03 garbage\r\n\r\n".into()));
    requests.push(("space in the target".into(), get("/branchline/v1/li nk")));
    let answers = requests.iter().map(async |(what, request)| (what, world.ask(request).await));
    for (what, (status, answer)) in futures_util::future::join_all(answers).await {
        assert!(matches!(status, 404 | 400), "{what}: {answer}");
        assert!(!answer.to_lowercase().contains("keep-alive"), "{what}: {answer}");
    }
    // A head over 128 KiB is not read to its end: the reset of what was left unread may overtake the answer.
    let (status, answer) = world.ask(&get(&format!("{LINK_PATH}?{}", "x".repeat(200_000)))).await;
    assert!(status == 431 || answer.is_empty(), "{answer}");
    assert_eq!(world.server.streams(), 0, "nothing reached the server");
    // The same request, unaltered, is let in: the list above failed for its faults and not for another reason.
    for host in [ours.as_str(), PUBLIC_NAME] {
        let mut tls = world.tls(world.public()).await;
        tls.write_all(upgrade(&first, host).as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        timeout(SOON, tls.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101", "{host}");
    }
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn gw_2_a_second_request_on_a_refused_connection_is_not_read() {
    let world = World::start(Serve::Echo).await;
    let ours = world.public().to_string();
    let good = upgrade(&format!("GET {LINK_PATH} HTTP/1.1"), &ours);
    for first in [upgrade("GET /nothing HTTP/1.1", &ours), format!("GET / HTTP/1.1\r\nHost: {ours}\r\n\r\n")] {
        let (status, answer) = world.ask(&(first + &good)).await;
        assert_eq!(status, 404);
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
    assert_eq!(world.server.streams(), 0);
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn gw_2_strangers_that_want_http_2_or_older_tls_do_not_get_it() {
    let world = World::start(Serve::Echo).await;
    let tls = world.tls(world.public()).await;
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(tls.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let mut config = (*world.dialler(TOKEN).outer.unwrap()).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(world.public()).await.unwrap();
    let name = rustls::pki_types::ServerName::from(world.public().ip());
    let h2 = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    assert!(h2.is_err(), "nothing but HTTP/1.1 is offered");
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn top_2_plain_http_gets_no_answer() {
    let world = World::start(Serve::Echo).await;
    let mut tcp = TcpStream::connect(world.public()).await.unwrap();
    let request = upgrade(&format!("GET {LINK_PATH} HTTP/1.1"), &world.public().to_string());
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _reset = timeout(SOON, tcp.read_to_end(&mut answer)).await.expect("the gateway closes");
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{answer:?}");
    assert_eq!(world.server.streams(), 0);
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn gw_11_the_status_shows_whether_gateway_and_server_talk() {
    let world = World::start(Serve::Echo).await;
    let good = world.status().await;
    assert_eq!(good["server"], "reachable");
    assert_eq!(good["build"], branchline_gateway::BUILD);
    assert_eq!(good["server_build"], "server-build");
    assert_eq!((&good["trunks"], &good["links"]), (&2.into(), &0.into()));
    assert!(good["uptime_s"].is_u64() && good["last_good"].as_str().unwrap().ends_with('Z'), "{good}");

    let stream = world.dialler(TOKEN).open(&world.route(), Preface::Link).await.unwrap();
    assert_eq!(world.status().await["links"], 1);
    let (status, text) = world.ask(&format!("GET /getstatus HTTP/1.1\r\nHost: {PUBLIC_NAME}\r\n\r\n")).await;
    assert_eq!(status, 404, "{text}");

    let World { pki, server, gateway, state } = world;
    let address = server.vanish().await;
    let server = ServerEnd::start(&pki, "127.0.0.1:0".parse().unwrap(), Serve::Echo).await;
    let world = World { pki, server, gateway, state };
    let bad = world.wait_status(|s| s["server"] == "unreachable" && s["trunks"] == 0).await;
    assert!(bad["last_good"].is_string());
    world.wait_status(|s| s["links"] == 0).await;
    drop(stream);

    let back = ServerEnd::start(&world.pki, address, Serve::Echo).await;
    world.wait_status(|s| s["server"] == "reachable" && s["trunks"] == 2).await;
    world.dialler(TOKEN).open(&world.route(), Preface::Link).await.unwrap();
    assert_eq!(back.streams(), 1);
    world.gateway.stop().await;
}

fn refused(fault: Result<BoxStream, DialFault>) -> (u16, Option<u64>) {
    match fault {
        Err(DialFault::Gateway { status, retry_after_s, .. }) => (status, retry_after_s),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("let in"),
    }
}

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

/// An upgraded connection that says nothing more.
async fn silent(world: &World) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut tls = world.tls(world.public()).await;
    let request = upgrade(&format!("GET {LINK_PATH} HTTP/1.1"), PUBLIC_NAME);
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    timeout(SOON, tls.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    tls
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
async fn a_slow_request_head_is_cut_by_the_header_time() {
    let world = World::start(Serve::Echo).await;
    let mut tls = world.tls(world.public()).await;
    tls.write_all(b"GET /branch").await.unwrap();
    let mut answer = Vec::new();
    let _cut = timeout(SOON, tls.read_to_end(&mut answer)).await.expect("closed by the gateway");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    // A TLS handshake that never begins is cut, too.
    let mut tcp = TcpStream::connect(world.public()).await.unwrap();
    let mut nothing = Vec::new();
    let _cut = timeout(SOON, tcp.read_to_end(&mut nothing)).await.expect("closed by the gateway");
    assert!(nothing.is_empty());
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
async fn gw_7_the_gateway_makes_its_own_key_and_keeps_no_other() {
    let world = World::start(Serve::Echo).await;
    let asked = world.server.seen.lock().unwrap().enrolments.clone();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].token.as_str(), asked[0].facts.name.as_str()), ("let-me-in", "dmz"));
    let folder = world.state.path().join("identity");
    let own = branchline_node::identity::Identity::load(&folder).unwrap();
    assert_ne!(own.key.public(), world.pki.server.key.public());
    assert_eq!(own.subject.node, world.gateway.started.id);

    let keep = tempfile::tempdir().unwrap();
    world.pki.server.key.save(&keep.path().join("server.der")).unwrap();
    world.pki.server.key.save_pem(&keep.path().join("server.pem")).unwrap();
    let der = std::fs::read(keep.path().join("server.der")).unwrap();
    let pem = String::from_utf8(std::fs::read(keep.path().join("server.pem")).unwrap()).unwrap();
    let secrets = [der[16..48].to_vec(), pem.lines().nth(1).unwrap().as_bytes()[24..].to_vec()];
    own.key.save(&keep.path().join("own.der")).unwrap();
    let own_secret = std::fs::read(keep.path().join("own.der")).unwrap()[16..48].to_vec();
    assert!(!asked[0].request.windows(32).any(|w| w == own_secret), "its own key did not travel");
    let mut files = 0;
    let mut folders = vec![world.state.path().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            files += 1;
            let bytes = std::fs::read(entry.path()).unwrap();
            for secret in &secrets {
                assert!(!bytes.windows(secret.len()).any(|w| w == secret), "{:?}", entry.path());
            }
        }
    }
    assert!(files >= 5, "{files} files");
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn a_second_start_uses_the_same_identity_without_bundle_and_node_json_says_where() {
    let world = World::start(Serve::Echo).await;
    let World { pki, server, gateway, state } = world;
    let first = gateway.started.clone();
    let written: Started = serde_json::from_slice(&std::fs::read(state.path().join("node.json")).unwrap()).unwrap();
    assert_eq!(written, first);
    assert_ne!(first.addresses["public"].port(), 0);
    gateway.stop().await;

    let config = config(state.path().into(), server.address);
    std::fs::remove_file(&config.bundle).unwrap();
    let gateway = Gateway::start(config, Ambient::system()).await.unwrap();
    assert_eq!(gateway.started.id, first.id);
    let world = World { pki, server, gateway, state };
    world.wait_status(|s| s["trunks"] == 2).await;
    assert_eq!(world.server.seen.lock().unwrap().enrolments.len(), 1);
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn stopping_closes_links_and_says_goodbye_to_the_server() {
    let world = World::start(Serve::Echo).await;
    let mut link = world.dialler(TOKEN).open(&world.route(), Preface::Link).await.unwrap();
    let (public, private) = (world.public(), world.private());
    let trunks: Vec<_> = world.server.trunks.lock().unwrap().clone();
    timeout(SOON, world.gateway.stop()).await.unwrap();
    let mut byte = [0; 1];
    let end = timeout(SOON, link.read(&mut byte)).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    for trunk in trunks {
        assert_eq!(timeout(SOON, trunk.ended()).await.unwrap(), "closed by the peer");
    }
    for address in [public, private] {
        until(async || TcpStream::connect(address).await.is_err().then_some(())).await;
    }
}

#[actix_rt::test]
async fn faults_at_the_start_have_words_and_exit_codes() {
    use branchline_node::node::exit_code;
    let state = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = "127.0.0.1:9".parse().unwrap();
    let fault = async |change: &dyn Fn(&mut branchline_gateway::config::Config)| {
        let mut config = config(state.path().into(), nobody);
        change(&mut config);
        match Gateway::start(config, Ambient::system()).await {
            Ok(_) => panic!("started"),
            Err(fault) => (fault.exit_code, fault.code),
        }
    };
    let busy = fault(&|c| c.public = taken.local_addr().unwrap()).await;
    assert_eq!(busy, (exit_code::LISTEN, "port_in_use".into()));
    assert_eq!(fault(&|c| c.trunks = 5).await, (exit_code::CONFIGURATION, "bad_configuration".into()));
    assert_eq!(fault(&|_| {}).await, (exit_code::ENROLMENT, "bad_bundle".into()), "no bundle");
    std::fs::write(state.path().join("bundle"), "BRANCHLINE-BUNDLE-1\nAAAA\n").unwrap();
    assert_eq!(fault(&|_| {}).await, (exit_code::ENROLMENT, "bad_bundle".into()));
    let world = World::start(Serve::Echo).await;
    std::fs::copy(world.state.path().join("bundle"), state.path().join("bundle")).unwrap();
    assert_eq!(fault(&|_| {}).await, (exit_code::ENROLMENT, "cannot_register_offline".into()));
    world.gateway.stop().await;
}

#[actix_rt::test]
async fn a_server_with_another_identity_gets_no_trunk() {
    let world = World::start(Serve::Echo).await;
    let World { pki, server, gateway, state } = world;
    let address = server.vanish().await;
    let stranger = Arc::new(support::Pki::new());
    let server = ServerEnd::start(&stranger, address, Serve::Echo).await;
    let world = World { pki, server, gateway, state };
    world.wait_status(|s| s["trunks"] == 0).await;
    until(async || (world.server.seen.lock().unwrap().dials >= 4).then_some(())).await;
    assert_eq!(world.status().await["trunks"], 0, "after two more attempts of each trunk");
    assert_eq!(world.server.streams(), 0);
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
