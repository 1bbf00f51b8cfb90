//! Which requests pass, and what becomes of all others (GW-2).

use super::support::{PUBLIC_NAME, SOON, Serve, TOKEN, World, upgrade};
use branchline_protocol::wire::LINK_PATH;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

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
