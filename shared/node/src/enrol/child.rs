//! The new node's side.

use super::{read_message, write_message};
use crate::{
    identity::{
        Bundle, BundleFault, Identity, IdentityFault, KeyFault, KeyPair, TlsFault, child_config, request, server_name,
    },
    link::dial::{DialFault, Dialler, Route},
    time::NodeTime,
};
use branchline_protocol::{
    document::Kind,
    order::Envelope,
    refusal::Refusal,
    wire::{DeviceFacts, EnrolAnswer, EnrolRequest, PROTOCOL, Preface},
};
use rustls_pki_types::CertificateDer;
use std::{io, path::Path, sync::Arc, time::Duration};
use tokio::time::timeout;

/// What an enrolment brings.
pub struct Enrolled {
    /// Key, certificate, id.
    pub identity: Identity,
    /// The first documents.
    pub documents: Vec<(Kind, Envelope)>,
}

/// Why a node did not enrol. Nothing half-made is left on either side (ENR-2).
#[derive(Debug, thiserror::Error)]
pub enum EnrolFault {
    /// The bundle cannot be used.
    #[error("bad_bundle: {0}")]
    Bundle(#[from] BundleFault),
    /// The bundle file cannot be read.
    #[error("read bundle {0}: {1}")]
    BundleFile(String, io::Error),
    /// The bundle has no token and none was given.
    #[error("the bundle holds no token: ask for a new bundle")]
    NoToken,
    /// The server could not be reached on any route.
    #[error("cannot_register_offline: {0}")]
    Offline(String),
    /// The server said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Key, certificate or TLS.
    #[error("identity: {0}")]
    Identity(String),
}

impl From<KeyFault> for EnrolFault {
    fn from(e: KeyFault) -> Self {
        EnrolFault::Identity(e.to_string())
    }
}
impl From<TlsFault> for EnrolFault {
    fn from(e: TlsFault) -> Self {
        EnrolFault::Identity(e.to_string())
    }
}
impl From<IdentityFault> for EnrolFault {
    fn from(e: IdentityFault) -> Self {
        EnrolFault::Identity(e.to_string())
    }
}
impl From<io::Error> for EnrolFault {
    fn from(e: io::Error) -> Self {
        EnrolFault::Identity(e.to_string())
    }
}

/// The identity in `folder`, or a new one: makes the key there first, so that a lost answer is asked for again with
/// the same key and the server recognises it. Documents are empty when the identity was there already.
pub async fn enrol_or_load(
    folder: &Path,
    bundle: &Bundle,
    routes: &[Route],
    dialler: &Dialler,
    facts: DeviceFacts,
    time: &NodeTime,
) -> Result<Enrolled, EnrolFault> {
    if folder.join("cert.pem").exists() {
        return Ok(Enrolled { identity: Identity::load(folder)?, documents: Vec::new() });
    }
    std::fs::create_dir_all(folder)?;
    let pending = folder.join("key.pending");
    let key = match KeyPair::load(&pending) {
        Ok(key) => key,
        Err(_) => {
            let key = KeyPair::generate()?;
            key.save(&pending)?;
            key
        }
    };
    let enrolled = enrol(bundle, routes, dialler, key, facts, time).await?;
    enrolled.identity.save(folder)?;
    std::fs::remove_file(&pending)?;
    Ok(enrolled)
}

/// Enrols with the server, end to end, over the first route that leads to it.
pub async fn enrol(
    bundle: &Bundle,
    routes: &[Route],
    dialler: &Dialler,
    key: KeyPair,
    facts: DeviceFacts,
    time: &NodeTime,
) -> Result<Enrolled, EnrolFault> {
    let trust = bundle.trust_document().map_err(BundleFault::from)?;
    let roots: Vec<CertificateDer<'_>> = trust.cas.iter().map(|ca| CertificateDer::from(ca.to_vec())).collect();
    let tls = child_config(None, &roots, Arc::new(time.clone()))?;
    let ask = EnrolRequest {
        protocol: *PROTOCOL.end(),
        tenant: bundle.tenant.clone(),
        role: bundle.role,
        site: bundle.site.clone(),
        token: bundle.token.clone().ok_or(EnrolFault::NoToken)?,
        request: request(&key, &facts.name).into(),
        facts,
    };
    let mut faults = Vec::new();
    for route in routes {
        match exchange(route, dialler, &tls, bundle, &ask).await {
            Ok(EnrolAnswer::Enrolled { node, epoch, chain, documents }) => {
                let chain = chain.iter().map(|c| CertificateDer::from(c.to_vec())).collect();
                let identity = Identity::new(chain, key)?;
                let subject = &identity.subject;
                if (subject.node, subject.epoch, subject.role, &subject.tenant) != (node, epoch, ask.role, &ask.tenant)
                {
                    return Err(EnrolFault::Identity("the certificate is not the one that was asked for".into()));
                }
                return Ok(Enrolled { identity, documents });
            }
            Ok(EnrolAnswer::Refused(refusal)) => return Err(refusal.into()),
            Err(fault) => faults.push(fault.to_string()),
        }
    }
    if faults.is_empty() {
        faults.push("the bundle names no way to the server".into());
    }
    Err(EnrolFault::Offline(faults.join("; ")))
}

async fn exchange(
    route: &Route,
    dialler: &Dialler,
    tls: &Arc<rustls::ClientConfig>,
    bundle: &Bundle,
    ask: &EnrolRequest,
) -> Result<EnrolAnswer, DialFault> {
    let name = server_name(bundle.server, &bundle.tenant);
    let mut stream = dialler.secure(route, Preface::Enrol, tls, name).await?;
    let talk = async {
        write_message(&mut stream, ask).await?;
        read_message(&mut stream).await
    };
    match timeout(Duration::from_secs(super::SPLICE_S), talk).await {
        Ok(answer) => answer.map_err(DialFault::Tls),
        Err(_) => Err(DialFault::TimeOut),
    }
}
