//! Whom the gateway trusts, kept beside its identity, so that the bundle and its token may be thrown away once the
//! gateway has enrolled.

use branchline_node::{
    identity::{Bundle, certificates_to_pem, pem_to_certificates},
    node::write_whole,
};
use branchline_protocol::id::{NodeId, TenantId};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::{io, path::Path};

const FILE: &str = "anchor.json";

/// The server and the roots that vouch for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The server.
    pub server: NodeId,
    /// The tenant whose authority issued both certificates.
    pub tenant: TenantId,
    /// PEM of the tenant's authorities.
    pub roots: String,
}

impl Anchor {
    /// The anchor that a bundle brings.
    pub fn of(bundle: &Bundle) -> Result<Anchor, String> {
        let trust = bundle.trust_document().map_err(|e| e.to_string())?;
        let roots: Vec<_> = trust.cas.iter().map(|ca| CertificateDer::from(ca.to_vec())).collect();
        Ok(Anchor { server: bundle.server, tenant: bundle.tenant.clone(), roots: certificates_to_pem(&roots) })
    }

    /// The roots' certificates.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        pem_to_certificates(self.roots.as_bytes()).ok_or_else(|| "the roots are no certificates".into())
    }

    /// Writes it into an existing folder.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        write_whole(&folder.join(FILE), &serde_json::to_vec_pretty(self)?)
    }

    /// Reads what [`Anchor::save`] wrote.
    pub fn load(folder: &Path) -> io::Result<Anchor> {
        Ok(serde_json::from_slice(&std::fs::read(folder.join(FILE))?)?)
    }
}
