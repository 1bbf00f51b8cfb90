//! ENR-7 and GW-7: no private key leaves the host it was made on, in whichever spelling.

use super::*;
use base64::{Engine, engine::general_purpose::STANDARD};
use branchline_node::identity::Identity;
use std::{
    fs,
    path::PathBuf,
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll, ready},
};
use tokio::io::ReadBuf;

#[tokio::test]
async fn enr_7_the_servers_state_holds_no_device_key() {
    let world = World::new().await;
    let key = new_key();
    let bundle = world.agent_bundle().await;
    world.enrol(&bundle, &key, "pc-1").await.unwrap();
    world.store.close().await;
    let files = files_below(world.folder.path());
    assert!(files.iter().any(|(path, _)| path.ends_with("store.db")));
    let own = tempfile::tempdir().unwrap();
    key.save(&own.path().join("key")).unwrap();
    let device = Secret::of_pkcs8(&fs::read(own.path().join("key")).unwrap());
    for (path, bytes) in &files {
        assert!(!device.is_in(bytes), "{}", path.display());
    }
}

#[tokio::test]
async fn gw_7_no_key_of_the_server_reaches_a_gateway_in_any_spelling() {
    let world = World::new().await;
    let wish = token_wish(Role::Gateway, "", "server");
    let (text, _) = world.office.bundle(&TenantId::system(), "admin", &wish).await.unwrap();
    let bundle = Bundle::open(&text).unwrap();

    // The plain exchange, recorded inside TLS.
    let key = new_key();
    let (child, served) = world.knock(&bundle, |stream| stream).await.unwrap();
    let mut child = Recorder { inner: child, seen: Mutex::default() };
    write_message(&mut child, &request_of(&bundle, &key, "dmz")).await.unwrap();
    let answer: EnrolAnswer = read_message(&mut child).await.unwrap();
    soon(served).await.unwrap();
    let recorded = child.seen.into_inner().unwrap();
    let EnrolAnswer::Enrolled { chain, documents, .. } = answer else { panic!("{answer:?}") };

    // What the gateway keeps.
    let folder = tempfile::tempdir().unwrap();
    let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let identity = Identity::new(chain, key).unwrap();
    identity.save(folder.path()).unwrap();
    fs::write(folder.path().join("bundle"), &text).unwrap();
    fs::write(folder.path().join("documents"), rmp_serde::to_vec_named(&documents).unwrap()).unwrap();
    let inner = STANDARD.decode(text.lines().nth(1).unwrap()).unwrap();
    let mut places = files_below(folder.path());
    places.push((PathBuf::from("the recorded exchange"), recorded));
    places.push((PathBuf::from("inside the bundle"), inner));

    let secrets = Secret::all_below(world.folder.path());
    // Root, authority, signing key and identity of acme, other and system.
    assert_eq!(secrets.len(), 4 * 3);
    for (path, bytes) in &places {
        for secret in &secrets {
            assert!(!secret.is_in(bytes), "{} holds {}", path.display(), secret.name);
        }
    }
    let server = world.office.tenant_tls(&TenantId::system()).unwrap().identity.key.public();
    assert_ne!(identity.key.public(), server);
}

#[test]
fn the_scan_finds_a_key_in_every_spelling_it_knows() {
    let folder = tempfile::tempdir().unwrap();
    let key = new_key();
    key.save(&folder.path().join("a.key")).unwrap();
    key.save_pem(&folder.path().join("a.pem")).unwrap();
    let der = fs::read(folder.path().join("a.key")).unwrap();
    let secret = Secret::of_pkcs8(&der);
    let hex: String = secret.seed.iter().map(|b| format!("{b:02x}")).collect();
    let mut spellings = vec![der.clone(), secret.seed.clone(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
    spellings.push(fs::read(folder.path().join("a.pem")).unwrap());
    for shift in 0..3 {
        let bytes = [&vec![7; shift][..], &secret.seed].concat();
        spellings.push(STANDARD.encode(bytes).into_bytes());
    }
    for (i, spelling) in spellings.iter().enumerate() {
        let around = [b"before", &spelling[..], b"after"].concat();
        assert!(secret.is_in(&around), "spelling {i}");
    }
    assert!(!Secret::of_pkcs8(&der).is_in(b"nothing of the kind"));
    assert_eq!(Secret::all_below(folder.path()).len(), 2);
}

/// A private key to look for.
struct Secret {
    name: String,
    seed: Vec<u8>,
}

impl Secret {
    /// The seed stands at the same place in every Ed25519 PKCS#8 document (RFC 8410).
    fn of_pkcs8(der: &[u8]) -> Secret {
        assert_eq!(der[12..16], [0x04, 0x22, 0x04, 0x20], "not the head of an ed25519 seed");
        Secret { name: String::new(), seed: der[16..48].to_vec() }
    }

    /// Every key file below a folder.
    fn all_below(folder: &Path) -> Vec<Secret> {
        let mut secrets = Vec::new();
        for (path, bytes) in files_below(folder) {
            let der = match path.extension().and_then(|e| e.to_str()) {
                Some("key") => bytes,
                Some("pem") => {
                    let text = String::from_utf8(bytes).unwrap();
                    if !text.contains("PRIVATE KEY") {
                        continue;
                    }
                    STANDARD.decode(text.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap()
                }
                _ => continue,
            };
            secrets.push(Secret { name: path.display().to_string(), ..Secret::of_pkcs8(&der) });
        }
        secrets
    }

    /// Whether the seed stands there: as it is, in hex of either case, or in base64 at any alignment, lines broken or
    /// not.
    fn is_in(&self, bytes: &[u8]) -> bool {
        let hex: String = self.seed.iter().map(|b| format!("{b:02x}")).collect();
        let flat: Vec<u8> = bytes.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
        let lower = flat.to_ascii_lowercase();
        let encoded = (0..3).map(|shift| {
            // Characters that depend on the neighbours are left out at both ends.
            let text = STANDARD.encode([&vec![0; shift][..], &self.seed].concat());
            text[4..text.len() - 4].to_owned()
        });
        found(bytes, &self.seed)
            || found(&lower, hex.as_bytes())
            || encoded.into_iter().any(|text| {
                let url_safe = text.replace('+', "-").replace('/', "_");
                found(&flat, text.as_bytes()) || found(&flat, url_safe.as_bytes())
            })
    }
}

fn found(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn files_below(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = fs::read(&path).unwrap();
                files.push((path, bytes));
            }
        }
    }
    files
}

/// Keeps every byte that crosses it.
struct Recorder<S> {
    inner: S,
    seen: Mutex<Vec<u8>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Recorder<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        self.seen.lock().unwrap().extend_from_slice(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Recorder<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.seen.lock().unwrap().extend_from_slice(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
