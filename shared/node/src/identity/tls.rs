//! TLS for links, enrolment, the outer HTTPS to a gateway, and API listeners.
//!
//! All of it is TLS 1.3 without tickets, resumption and early data: nothing outlives a revocation, and the handshake is
//! a fifth cheaper. Validity is judged by the time the caller provides, which for links is node time (DESIGN 6).

use super::{
    certificate::{self, IdentityFault, PeerIdentity, peer_identity},
    files::{self, Audience},
    keys::{KeyFault, KeyPair},
};
use branchline_protocol::datagram::{DatagramKey, LinkKeys, NOTICE_LABEL, WAKE_LABEL};
use rustls::{
    ClientConfig, ConfigBuilder, ConnectionCommon, RootCertStore, ServerConfig, WantsVerifier,
    client::Resumption,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{cipher_suite, default_provider, kx_group},
    },
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::{
    fs, io,
    path::Path,
    sync::{Arc, LazyLock},
};

/// Names the link's protocol and version.
pub const LINK_ALPN: &[u8] = b"branchline/1";
/// What the outer HTTPS to a gateway speaks: WebSockets upgrade HTTP/1.1.
pub const HTTP_ALPN: &[u8] = b"http/1.1";
/// What API listeners speak, the preferred first.
pub const HTTPS_ALPN: [&[u8]; 2] = [b"h2", HTTP_ALPN];

const CERTIFICATE_FILE: &str = "cert.pem";
const KEY_FILE: &str = "key.pem";
/// The key of a certificate that is just being replaced.
const NEXT_KEY_FILE: &str = "key.next.pem";

/// Why there is no TLS configuration, or no identity on disk.
#[derive(Debug, thiserror::Error)]
pub enum TlsFault {
    /// Nobody would be trusted.
    #[error("configure tls: no root certificate given")]
    NoRoots,
    /// A root certificate is unusable.
    #[error("configure tls: a root certificate is unusable")]
    BadRoot(#[source] rustls::Error),
    /// The verifier of client certificates could not be made.
    #[error("configure tls: verify client certificates")]
    Verifier(#[from] VerifierBuilderError),
    /// The chain or key is unusable.
    #[error("configure tls: the certificate or its key is unusable")]
    BadCertificate(#[source] rustls::Error),
    /// The certificate names no node, or belongs to another key.
    #[error(transparent)]
    Identity(#[from] IdentityFault),
    /// The key file.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// The certificate file.
    #[error("access certificate file {path}")]
    File {
        /// Which file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A node's own identity: its certificate, what stands in it, and the key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Read from the certificate.
    pub subject: PeerIdentity,
    /// The certificate, and those that lead to a root if there are any.
    pub chain: Vec<CertificateDer<'static>>,
    /// The certificate's key.
    pub key: KeyPair,
}

impl Identity {
    /// Joins a certificate and its key. The certificate is the node's own and not verified against any root.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: KeyPair) -> Result<Identity, IdentityFault> {
        let subject = peer_identity(&chain)?;
        if certificate::certified_key(&chain[0])? != key.public() {
            return Err(IdentityFault::OtherKey);
        }
        Ok(Identity { subject, chain, key })
    }

    /// Writes `cert.pem` and `key.pem` (mode 0600) into an existing folder. A crash in between leaves either the old
    /// identity or the new one, even when both files change.
    pub fn save(&self, folder: &Path) -> Result<(), TlsFault> {
        let (next, key) = (folder.join(NEXT_KEY_FILE), folder.join(KEY_FILE));
        self.key.save_pem(&next)?;
        let path = folder.join(CERTIFICATE_FILE);
        let text = files::certificates_to_pem(&self.chain);
        files::replace(&path, text.as_bytes(), Audience::Everyone).map_err(file_fault(&path))?;
        files::rename(&next, &key).map_err(file_fault(&key))
    }

    /// Reads what [`Identity::save`] wrote.
    pub fn load(folder: &Path) -> Result<Identity, TlsFault> {
        let path = folder.join(CERTIFICATE_FILE);
        let text = fs::read(&path).map_err(file_fault(&path))?;
        let chain = files::pem_to_certificates(&text).ok_or(IdentityFault::MalformedCertificate)?;
        let (next, key) = (folder.join(NEXT_KEY_FILE), folder.join(KEY_FILE));
        if let Ok(identity) = KeyPair::load_pem(&next).map(|next| Identity::new(chain.clone(), next))
            && let Ok(identity) = identity
        {
            files::rename(&next, &key).map_err(file_fault(&key))?;
            return Ok(identity);
        }
        Ok(Identity::new(chain, KeyPair::load_pem(&key)?)?)
    }

    /// The certificate's key as a TLS configuration takes it.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        self.key.private_key_der()
    }
}

/// The child's end of a link. Without an identity it can only enrol. The parent's name is checked by the
/// [`rustls_pki_types::ServerName`] that the caller connects with: [`super::server_name`].
pub fn child_config(
    identity: Option<&Identity>,
    roots: &[CertificateDer<'_>],
    time: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsFault> {
    let builder = client_builder(time).with_root_certificates(store(roots)?);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(own) => {
            builder.with_client_auth_cert(own.chain.clone(), own.private_key()).map_err(TlsFault::BadCertificate)?
        }
    };
    config.alpn_protocols = vec![LINK_ALPN.to_vec()];
    Ok(Arc::new(without_memory(config)))
}

/// The parent's end of a link: the child must show a certificate under one of `client_roots`.
pub fn parent_config(
    identity: &Identity,
    client_roots: &[CertificateDer<'_>],
    time: Arc<dyn TimeProvider>,
) -> Result<Arc<ServerConfig>, TlsFault> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store(client_roots)?), provider()).build()?;
    let config = server_builder(time)
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.private_key())
        .map_err(TlsFault::BadCertificate)?;
    Ok(Arc::new(without_tickets(config, &[LINK_ALPN])))
}

/// The server's end of an `enrol` stream: the child has no certificate yet.
pub fn enrol_config(identity: &Identity, time: Arc<dyn TimeProvider>) -> Result<Arc<ServerConfig>, TlsFault> {
    let config = anonymous(identity.chain.clone(), identity.private_key(), time)?;
    Ok(Arc::new(without_tickets(config, &[LINK_ALPN])))
}

/// HTTPS to a gateway, around the link. It identifies nobody: the link inside does.
pub fn outer_client_config(
    roots: &[CertificateDer<'_>],
    time: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, TlsFault> {
    let mut config = client_builder(time).with_root_certificates(store(roots)?).with_no_client_auth();
    config.alpn_protocols = vec![HTTP_ALPN.to_vec()];
    Ok(Arc::new(without_memory(config)))
}

/// The keys of the datagrams that belong to a link, the same at both of its ends and known to nobody else. `None` before the
/// handshake is over.
pub fn link_keys<D>(link: &ConnectionCommon<D>) -> Option<LinkKeys> {
    let key = |label: &[u8]| link.export_keying_material([0; 32], label, None).map(DatagramKey).ok();
    Some(LinkKeys { wake: key(WAKE_LABEL)?, notice: key(NOTICE_LABEL)? })
}

/// An HTTPS listener: API, console, status, or a gateway's public side, whose certificate may be of any make. By value,
/// because HTTP servers set their own ALPN; [`HTTPS_ALPN`] is preset.
pub fn https_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsFault> {
    Ok(without_tickets(anonymous(chain, key, time)?, &HTTPS_ALPN))
}

/// The cryptography of all TLS here: AES-GCM, and X25519 with ML-KEM before X25519 alone.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
            ..default_provider()
        })
    });
    PROVIDER.clone()
}

const VERSION: &str = "the provider has suites of TLS 1.3";

fn client_builder(time: Arc<dyn TimeProvider>) -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect(VERSION)
}

fn server_builder(time: Arc<dyn TimeProvider>) -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect(VERSION)
}

fn anonymous(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsFault> {
    server_builder(time).with_no_client_auth().with_single_cert(chain, key).map_err(TlsFault::BadCertificate)
}

fn without_memory(mut config: ClientConfig) -> ClientConfig {
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
}

fn without_tickets(mut config: ServerConfig, alpn: &[&[u8]]) -> ServerConfig {
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

fn store(roots: &[CertificateDer<'_>]) -> Result<RootCertStore, TlsFault> {
    if roots.is_empty() {
        return Err(TlsFault::NoRoots);
    }
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone().into_owned()).map_err(TlsFault::BadRoot)?;
    }
    Ok(store)
}

fn file_fault(path: &Path) -> impl FnOnce(io::Error) -> TlsFault + '_ {
    move |source| TlsFault::File { path: path.display().to_string(), source }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
