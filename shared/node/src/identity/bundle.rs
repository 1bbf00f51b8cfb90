//! The bundle: one text that an administrator carries to a new node, with all the node must know to enrol (TOP-15).
//!
//! ```text
//! BRANCHLINE-BUNDLE-1
//! base64( Envelope signed by the server key ( Bundle { root_key, Envelope signed by root_key ( server key ) } ) )
//! ```
//!
//! The text vouches for itself: whoever altered it would have to make a new root, and the bundle's way to the node is
//! what vouches for the root. Accepted text has one spelling only, so no byte of it can be changed.

use base64::{Engine, engine::general_purpose::STANDARD};
use branchline_protocol::{
    document::{DocumentFault, Upstream},
    id::{NodeId, Role, TenantId},
    order::{Envelope, PublicKey, Signer},
    trust::TrustDocument,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of bundle that this build writes and reads.
pub const BUNDLE_VERSION: u16 = 1;

/// The longest text in bytes; one more is refused.
pub const BUNDLE_BYTES_MAX: usize = 262_144;

const HEADER: &str = "BRANCHLINE-BUNDLE-1\n";
const PAYLOAD_TYPE: &str = "application/vnd.branchline.bundle.v1+msgpack";

/// What a node must know to enrol. Masks its tokens in `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// [`BUNDLE_VERSION`].
    pub version: u16,
    /// Whose node it will be.
    pub tenant: TenantId,
    /// Its site.
    pub site: String,
    /// What it will be.
    pub role: Role,
    /// What entitles it to enrol; `None` when it is given apart from the bundle.
    pub token: Option<String>,
    /// The server that enrols it, whichever parent lies between.
    pub server: NodeId,
    /// The tenant's root.
    pub root_key: PublicKey,
    /// The trust document, signed by the root.
    pub trust: Envelope,
    /// Its parents in order of preference.
    pub upstreams: Vec<Upstream>,
    /// Shown to a gateway in the upgrade to be let through; says nothing about identity. Empty without gateways.
    pub link_token: String,
    /// DER certificates that vouch for a gateway's public certificate.
    pub outer_roots: Vec<Bytes>,
    /// UDP port on which an agent hears wake packets.
    pub wake_port: u16,
    /// UDP port on which a parent hears notices.
    pub notice_port: u16,
}

/// Why a text is no bundle.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleFault {
    /// It is longer than [`BUNDLE_BYTES_MAX`].
    #[error("the bundle has {0} bytes, at most {max} are allowed", max = BUNDLE_BYTES_MAX)]
    TooLarge(usize),
    /// It does not begin as a bundle does.
    #[error("the text is no bundle")]
    NotABundle,
    /// It was damaged or altered.
    #[error("the bundle is damaged: {0}")]
    Damaged(String),
    /// Another build wrote it.
    #[error("the bundle has version {0}, this build reads version {known}", known = BUNDLE_VERSION)]
    UnknownVersion(u16),
    /// Its trust document is not its root's.
    #[error("the bundle's trust document: {0}")]
    Trust(#[from] DocumentFault),
    /// No server key of its trust document signed it.
    #[error("the bundle is not signed by a key that its trust document names")]
    BadSignature,
}

/// The one field that every version has.
#[derive(Deserialize)]
struct Versioned {
    version: u16,
}

impl Bundle {
    /// The text form, signed by a server key that the trust document names.
    pub fn seal(&self, signer: &Signer) -> String {
        let payload = rmp_serde::to_vec_named(self).expect("a bundle is plain data");
        spell(&Envelope::sign(PAYLOAD_TYPE, payload, signer))
    }

    /// Reads the text form. Any other text than one that [`Bundle::seal`] wrote is refused, to the last byte.
    pub fn open(text: &str) -> Result<Bundle, BundleFault> {
        let damaged = |e: &dyn fmt::Display| BundleFault::Damaged(e.to_string());
        if text.len() > BUNDLE_BYTES_MAX {
            return Err(BundleFault::TooLarge(text.len()));
        }
        let line = text.strip_prefix(HEADER).ok_or(BundleFault::NotABundle)?;
        let encoded = STANDARD.decode(line.trim_end_matches('\n')).map_err(|e| damaged(&e))?;
        let envelope: Envelope = rmp_serde::from_slice(&encoded).map_err(|e| damaged(&e))?;
        if spell(&envelope) != text {
            return Err(damaged(&"not in its one spelling"));
        }
        if envelope.payload_type != PAYLOAD_TYPE || envelope.signatures.len() != 1 {
            return Err(damaged(&"the envelope is not a bundle's"));
        }
        let Versioned { version } = rmp_serde::from_slice(&envelope.payload).map_err(|e| damaged(&e))?;
        if version != BUNDLE_VERSION {
            return Err(BundleFault::UnknownVersion(version));
        }
        let bundle: Bundle = rmp_serde::from_slice(&envelope.payload).map_err(|e| damaged(&e))?;
        let keys = bundle.trust_document()?.server_keys();
        envelope.signed_by(&keys).ok_or(BundleFault::BadSignature)?;
        Ok(bundle)
    }

    /// The trust document inside, checked against the root inside.
    pub fn trust_document(&self) -> Result<TrustDocument, DocumentFault> {
        super::root::verify_trust(&self.trust, &self.tenant, self.root_key)
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("version", &self.version)
            .field("tenant", &self.tenant)
            .field("site", &self.site)
            .field("role", &self.role)
            .field("token", &self.token.as_ref().map(|_| "masked"))
            .field("server", &self.server)
            .field("root_key", &self.root_key)
            .field("upstreams", &self.upstreams)
            .field("link_token", &"masked")
            .finish_non_exhaustive()
    }
}

/// The one spelling of a bundle's envelope.
fn spell(envelope: &Envelope) -> String {
    let encoded = rmp_serde::to_vec(envelope).expect("an envelope is plain data");
    format!("{HEADER}{}\n", STANDARD.encode(encoded))
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
