//! The tenant's root: the one key that says which authorities and server keys count. Its file belongs offline; nodes
//! know its public half from their bundle.

use super::keys::{KeyFault, KeyPair};
use branchline_protocol::{
    document::{self, Document, DocumentFault},
    id::TenantId,
    order::{Envelope, PublicKey},
    trust::TrustDocument,
};
use std::path::Path;

/// The public half of a [`Root`], as bundles pin it.
pub type RootKey = PublicKey;

/// A tenant's root key.
#[derive(Clone, Debug)]
pub struct Root {
    key: KeyPair,
}

impl Root {
    /// A new root with a key of its own.
    pub fn create() -> Result<Root, KeyFault> {
        Ok(Root { key: KeyPair::generate()? })
    }

    /// Reads the file that [`Root::save`] wrote.
    pub fn load(path: &Path) -> Result<Root, KeyFault> {
        Ok(Root { key: KeyPair::load(path)? })
    }

    /// Writes the key, readable by the owner only.
    pub fn save(&self, path: &Path) -> Result<(), KeyFault> {
        self.key.save(path)
    }

    /// The public half.
    pub fn public(&self) -> RootKey {
        self.key.public()
    }

    /// Signs a trust document. That it is one newer than the last is the caller's to see to.
    pub fn sign(&self, trust: &TrustDocument) -> Envelope {
        trust.seal(&self.key.signer())
    }
}

/// Opens a trust document of `tenant` that this root signed.
pub fn verify_trust(envelope: &Envelope, tenant: &TenantId, root: RootKey) -> Result<TrustDocument, DocumentFault> {
    document::open(envelope, tenant, &[root])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_says_what_is_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        Root::create().unwrap().save(&path).unwrap();
        let root = Root::load(&path).unwrap();
        let tenant: TenantId = "acme".parse().unwrap();
        let trust = TrustDocument { tenant: tenant.clone(), term: 1, version: 1, cas: vec![], keys: vec![] };
        let envelope = root.sign(&trust);
        assert_eq!(verify_trust(&envelope, &tenant, root.public()), Ok(trust.clone()));
        let stranger = Root::create().unwrap();
        assert_eq!(verify_trust(&envelope, &tenant, stranger.public()), Err(DocumentFault::BadSignature));
        let other: TenantId = "other".parse().unwrap();
        assert_eq!(verify_trust(&envelope, &other, root.public()), Err(DocumentFault::OtherTenant(tenant)));
    }
}
