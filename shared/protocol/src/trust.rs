//! The trust document: what the tenant's offline root says about CAs and signing keys (DESIGN 6).

use crate::{
    document::{Document, Kind},
    id::TenantId,
    order::PublicKey,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Whether a key's signatures count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyStatus {
    /// They count.
    Active,
    /// They count for orders numbered below this.
    RetiredAt(u64),
    /// They count for orders numbered below this, and the key is known to be stolen.
    RevokedFrom(u64),
}

/// A key that signs orders and documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedKey {
    /// The key.
    pub key: PublicKey,
    /// `server` or an operator role.
    pub role: String,
    /// Whether it counts.
    pub status: KeyStatus,
}

/// Signed by the root key, version n replaced by n + 1 only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustDocument {
    /// Whose.
    pub tenant: TenantId,
    /// The server's term when it was made.
    pub term: u32,
    /// Its number.
    pub version: u64,
    /// DER certificates of the tenant's CAs.
    pub cas: Vec<Bytes>,
    /// Keys that sign.
    pub keys: Vec<TrustedKey>,
}

impl Document for TrustDocument {
    const KIND: Kind = Kind::Trust;
    fn tenant(&self) -> &TenantId {
        &self.tenant
    }
    fn version(&self) -> (u32, u64) {
        (self.term, self.version)
    }
}

impl TrustDocument {
    /// The server keys whose signature counts for an order of this number.
    pub fn server_keys_for(&self, order_number: u64) -> Vec<PublicKey> {
        let counts = |k: &&TrustedKey| match k.status {
            KeyStatus::Active => true,
            KeyStatus::RetiredAt(n) | KeyStatus::RevokedFrom(n) => order_number < n,
        };
        self.keys.iter().filter(|k| k.role == "server").filter(counts).map(|k| k.key).collect()
    }

    /// The server keys whose signature counts for documents.
    pub fn server_keys(&self) -> Vec<PublicKey> {
        self.keys.iter().filter(|k| k.role == "server" && k.status == KeyStatus::Active).map(|k| k.key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::Signer;

    #[test]
    fn a_retired_key_counts_for_older_orders_only() {
        let key = |seed: u8, status| TrustedKey {
            key: Signer::from_seed(&[seed; 32]).public(),
            role: "server".into(),
            status,
        };
        let document = TrustDocument {
            tenant: "acme".parse().unwrap(),
            term: 1,
            version: 1,
            cas: vec![],
            keys: vec![key(1, KeyStatus::Active), key(2, KeyStatus::RetiredAt(10))],
        };
        assert_eq!(document.server_keys_for(9).len(), 2);
        assert_eq!(document.server_keys_for(10).len(), 1);
        assert_eq!(document.server_keys().len(), 1);
    }
}
