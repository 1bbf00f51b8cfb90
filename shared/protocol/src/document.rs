//! Signed, versioned documents that travel down every link, revocations first (DESIGN 3, 6).

use crate::{
    id::{Epoch, NodeId, Role, TenantId},
    order::{Envelope, PublicKey, Signer},
    time::Millis,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Which document an envelope holds. In the order in which they are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// [`Revocations`], signed by the server.
    Revocations,
    /// [`crate::trust::TrustDocument`], signed by the root.
    Trust,
    /// [`UpstreamList`], signed by the server.
    Upstreams,
    /// [`Settings`], signed by the server.
    Settings,
    /// [`TimeStatement`], signed by the server.
    Time,
}

impl Kind {
    /// Every kind, in order of application.
    pub const ALL: [Kind; 5] = [Kind::Revocations, Kind::Trust, Kind::Upstreams, Kind::Settings, Kind::Time];

    /// The envelope's payload type.
    pub fn payload_type(self) -> &'static str {
        match self {
            Kind::Revocations => "application/vnd.branchline.revocations.v1+msgpack",
            Kind::Trust => "application/vnd.branchline.trust.v1+msgpack",
            Kind::Upstreams => "application/vnd.branchline.upstreams.v1+msgpack",
            Kind::Settings => "application/vnd.branchline.settings.v1+msgpack",
            Kind::Time => "application/vnd.branchline.time.v1+msgpack",
        }
    }
}

/// A document that knows its kind, tenant and version.
pub trait Document: Serialize + DeserializeOwned {
    /// Its kind.
    const KIND: Kind;
    /// Whose it is.
    fn tenant(&self) -> &TenantId;
    /// (term, version): a newer one replaces an older one, never the other way round.
    fn version(&self) -> (u32, u64);

    /// Signs the document.
    fn seal(&self, signer: &Signer) -> Envelope {
        let payload = rmp_serde::to_vec_named(self).expect("documents are plain data");
        Envelope::sign(Self::KIND.payload_type(), payload, signer)
    }
}

/// Why a document was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DocumentFault {
    /// The envelope's type is another document's.
    #[error("the envelope holds {found}, not {wanted}")]
    WrongType {
        /// What it says it is.
        found: String,
        /// What was expected.
        wanted: &'static str,
    },
    /// No key that may sign this kind signed it.
    #[error("not signed by a key that may sign it")]
    BadSignature,
    /// The payload is no such document.
    #[error("the payload is malformed: {0}")]
    Malformed(String),
    /// It is another tenant's.
    #[error("the document is tenant {0}'s")]
    OtherTenant(TenantId),
}

/// Opens an envelope as a `D` of `tenant`, signed by one of `keys`.
pub fn open<D: Document>(envelope: &Envelope, tenant: &TenantId, keys: &[PublicKey]) -> Result<D, DocumentFault> {
    if envelope.payload_type != D::KIND.payload_type() {
        let found = envelope.payload_type.chars().take(80).collect();
        return Err(DocumentFault::WrongType { found, wanted: D::KIND.payload_type() });
    }
    envelope.signed_by(keys).ok_or(DocumentFault::BadSignature)?;
    let document: D = rmp_serde::from_slice(&envelope.payload).map_err(|e| DocumentFault::Malformed(e.to_string()))?;
    if document.tenant() != tenant {
        return Err(DocumentFault::OtherTenant(document.tenant().clone()));
    }
    Ok(document)
}

/// Identities that are refused everywhere (ENR-9), and devices that are to do nothing for now (JOB-16).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations {
    /// Whose.
    pub tenant: TenantId,
    /// The server's term.
    pub term: u32,
    /// +1 per change.
    pub version: u64,
    /// A node is refused with every epoch up to the given one.
    pub revoked: Vec<(NodeId, Epoch)>,
    /// Devices that are given no orders, begin nothing and collect nothing until they are revived.
    #[serde(default)]
    pub suspended: Vec<NodeId>,
}

impl Revocations {
    /// Whether this identity is refused.
    pub fn covers(&self, node: NodeId, epoch: Epoch) -> bool {
        self.revoked.iter().any(|(n, e)| *n == node && epoch <= *e)
    }

    /// Whether this device is suspended.
    pub fn suspends(&self, device: NodeId) -> bool {
        self.suspended.contains(&device)
    }
}

/// How nodes of a site behave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Whose.
    pub tenant: TenantId,
    /// The server's term.
    pub term: u32,
    /// +1 per change.
    pub version: u64,
    /// Seconds between polls of class normal (ADM-8).
    pub poll_normal_s: u64,
    /// Seconds between polls of class urgent (ADM-9).
    pub poll_urgent_s: u64,
    /// Seconds between polls of class erase (ADM-10).
    pub poll_erase_s: u64,
    /// Inventory sections to collect; empty means all.
    pub collect: Vec<String>,
}

/// A parent's address as a child may use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The parent's id: the only certificate accepted at these addresses.
    pub id: NodeId,
    /// Server or relay.
    pub role: Role,
    /// Its name, for people.
    pub name: String,
    /// `host:port` of its link listener, tried first; empty when it cannot be reached directly.
    pub direct: Vec<String>,
    /// `https://host:port` of gateways that lead to it; only the server is behind gateways.
    pub gateways: Vec<String>,
}

/// Who may be a parent at a site, in order of preference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamList {
    /// Whose.
    pub tenant: TenantId,
    /// The site it is for.
    pub site: String,
    /// The server's term.
    pub term: u32,
    /// +1 per change.
    pub version: u64,
    /// Tried in order.
    pub upstreams: Vec<Upstream>,
}

/// The server's word on time, every 60 s (DESIGN 6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeStatement {
    /// Whose server says so.
    pub tenant: TenantId,
    /// The server's wall clock.
    pub time: Millis,
    /// The server's term.
    pub term: u32,
    /// Rises with each statement.
    pub version: u64,
    /// Orders below this number are settled everywhere; an agent may forget them.
    pub order_floor: u64,
    /// Newest version of each document.
    pub trust_version: u64,
    /// Newest settings.
    pub settings_version: u64,
    /// Newest revocation list.
    pub revocations_version: u64,
}

macro_rules! document {
    ($type:ty, $kind:expr) => {
        impl Document for $type {
            const KIND: Kind = $kind;
            fn tenant(&self) -> &TenantId {
                &self.tenant
            }
            fn version(&self) -> (u32, u64) {
                (self.term, self.version)
            }
        }
    };
}
document!(Revocations, Kind::Revocations);
document!(Settings, Kind::Settings);
document!(UpstreamList, Kind::Upstreams);
document!(TimeStatement, Kind::Time);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_never_taken_for_another_kind_or_tenant() {
        let signer = Signer::from_seed(&[1; 32]);
        let keys = [signer.public()];
        let tenant: TenantId = "acme".parse().unwrap();
        let list = Revocations { tenant: tenant.clone(), term: 1, version: 4, revoked: vec![], suspended: vec![] };
        let envelope = list.seal(&signer);
        assert_eq!(open::<Revocations>(&envelope, &tenant, &keys).unwrap(), list);
        assert!(matches!(open::<Settings>(&envelope, &tenant, &keys), Err(DocumentFault::WrongType { .. })));
        let other = "other".parse().unwrap();
        assert_eq!(open::<Revocations>(&envelope, &other, &keys), Err(DocumentFault::OtherTenant(tenant.clone())));
        let stranger = [Signer::from_seed(&[2; 32]).public()];
        assert_eq!(open::<Revocations>(&envelope, &tenant, &stranger), Err(DocumentFault::BadSignature));
    }
}
