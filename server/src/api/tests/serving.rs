//! The API on a real port, behind TLS.

use super::{super::serve, *};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[actix_web::test]
async fn the_api_is_served_over_tls_until_it_is_stopped() {
    let world = World::new().await;
    let made = rcgen::generate_simple_self_signed(vec!["api.test".into()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let trusting = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let server = serve(listener, Arc::new(tls), world.shared.get_ref().clone()).unwrap();
    let handle = server.handle();
    let running = actix_rt::spawn(server);

    let exchange = async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(trusting));
        let mut stream = connector.connect("api.test".try_into().unwrap(), stream).await.unwrap();
        let ask = "GET /api/v1/sites HTTP/1.1\r\nhost: api.test\r\nauthorization: Bearer token-a\r\nconnection: close\r\n\r\n";
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        String::from_utf8(answer).unwrap()
    };
    let answer = tokio::time::timeout(Duration::from_secs(20), exchange).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with(r#"{"sites":["hq","osaka"]}"#), "{answer}");

    handle.stop(true).await;
    tokio::time::timeout(Duration::from_secs(20), running).await.unwrap().unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
