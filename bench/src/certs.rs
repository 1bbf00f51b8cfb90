//! A CA and one certificate for `localhost`, made anew for each run, and TLS with them.

use crate::Outcome;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    server::WebPkiClientVerifier,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Files for the references, and the same for our own ends.
pub struct Certs {
    /// The CA.
    pub ca: PathBuf,
    /// Certificate of `localhost`.
    pub chain: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Both in one, as HAProxy wants it.
    pub both: PathBuf,
    root: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
    secret: Vec<u8>,
}

/// The name that everybody has here.
pub fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a literal name")
}

impl Certs {
    /// In this folder.
    pub fn make(folder: &Path) -> Outcome<Certs> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "bench");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let secret = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&secret, &ca)?;
        let file = |name: &str, text: String| -> Outcome<PathBuf> {
            let path = folder.join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        Ok(Certs {
            ca: file("ca.pem", ca.pem())?,
            chain: file("leaf.pem", leaf.pem())?,
            key: file("leaf.key", secret.serialize_pem())?,
            both: file("both.pem", leaf.pem() + &secret.serialize_pem())?,
            root: ca.der().clone(),
            leaf: leaf.der().clone(),
            secret: secret.serialize_der(),
        })
    }

    fn roots(&self) -> Outcome<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        Ok(roots)
    }

    fn own_key(&self) -> Outcome<PrivateKeyDer<'static>> {
        Ok(PrivateKeyDer::try_from(self.secret.clone())?)
    }

    /// A client's end: it verifies, and resumes nothing; `shows_own`: it has a certificate as well.
    pub fn connector(&self, shows_own: bool) -> Outcome<TlsConnector> {
        let builder = ClientConfig::builder().with_root_certificates(self.roots()?);
        let mut config = match shows_own {
            true => builder.with_client_auth_cert(vec![self.leaf.clone()], self.own_key()?)?,
            false => builder.with_no_client_auth(),
        };
        config.resumption = rustls::client::Resumption::disabled();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// A server's end; `asks`: for a client's certificate as well.
    pub fn acceptor(&self, asks: bool) -> Outcome<TlsAcceptor> {
        let builder = match asks {
            true => ServerConfig::builder()
                .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(self.roots()?)).build()?),
            false => ServerConfig::builder().with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(vec![self.leaf.clone()], self.own_key()?)?;
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
