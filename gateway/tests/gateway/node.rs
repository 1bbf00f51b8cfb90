//! The node itself: identity, status, start and stop (GW-7, GW-11).

use super::support::{PUBLIC_NAME, Pki, SOON, Serve, ServerEnd, TOKEN, World, config, until};
use branchline_gateway::Gateway;
use branchline_node::node::{Ambient, Started};
use branchline_protocol::wire::Preface;
use std::sync::Arc;
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

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
    let stranger = Arc::new(Pki::new());
    let server = ServerEnd::start(&stranger, address, Serve::Echo).await;
    let world = World { pki, server, gateway, state };
    world.wait_status(|s| s["trunks"] == 0).await;
    until(async || (world.server.seen.lock().unwrap().dials >= 4).then_some(())).await;
    assert_eq!(world.status().await["trunks"], 0, "after two more attempts of each trunk");
    assert_eq!(world.server.streams(), 0);
    world.gateway.stop().await;
}
