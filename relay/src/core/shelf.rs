//! The newest of each signed document, kept as it came so that it can be handed on.

use branchline_node::identity::{RootKey, verify_trust};
use branchline_protocol::{
    document::{self, Document, DocumentFault, Kind, Revocations, Settings, TimeStatement, UpstreamList},
    id::TenantId,
    order::Envelope,
    trust::TrustDocument,
};
use std::{collections::BTreeMap, sync::Arc};

/// Documents of one tenant.
pub struct Shelf {
    tenant: TenantId,
    root: RootKey,
    trust: TrustDocument,
    revocations: Arc<Revocations>,
    upstreams: Option<UpstreamList>,
    settings: Option<Settings>,
    time: Option<TimeStatement>,
    envelopes: BTreeMap<Kind, ((u32, u64), Envelope)>,
}

impl Shelf {
    /// With what the bundle says.
    pub fn new(tenant: TenantId, root: RootKey, trust: TrustDocument) -> Self {
        let (revoked, suspended) = (Vec::new(), Vec::new());
        let revocations = Revocations {
            tenant: tenant.clone(),
            term: 0,
            version: 0,
            revoked,
            suspended,
            raised: vec![],
            keep_connection: vec![],
        };
        Shelf {
            tenant,
            root,
            trust,
            revocations: Arc::new(revocations),
            upstreams: None,
            settings: None,
            time: None,
            envelopes: BTreeMap::new(),
        }
    }

    /// Takes a document if it verifies. `false`: what is here is as new.
    pub fn take(&mut self, kind: Kind, envelope: &Envelope) -> Result<bool, DocumentFault> {
        let keys = self.trust.server_keys();
        let known = self.envelopes.get(&kind).map(|(v, _)| *v);
        let newer = |version: (u32, u64)| known.is_none_or(|k| version > k);
        let version = match kind {
            Kind::Trust => {
                let found = verify_trust(envelope, &self.tenant, self.root)?;
                let version = found.version();
                if version < self.trust.version() || !newer(version) {
                    return Ok(false);
                }
                self.trust = found;
                version
            }
            Kind::Revocations => {
                let found: Revocations = document::open(envelope, &self.tenant, &keys)?;
                let version = found.version();
                if !newer(version) {
                    return Ok(false);
                }
                self.revocations = Arc::new(found);
                version
            }
            Kind::Upstreams => {
                let found: UpstreamList = document::open(envelope, &self.tenant, &keys)?;
                let version = found.version();
                if !newer(version) {
                    return Ok(false);
                }
                self.upstreams = Some(found);
                version
            }
            Kind::Settings => {
                let found: Settings = document::open(envelope, &self.tenant, &keys)?;
                let version = found.version();
                if !newer(version) {
                    return Ok(false);
                }
                self.settings = Some(found);
                version
            }
            Kind::Time => {
                let found: TimeStatement = document::open(envelope, &self.tenant, &keys)?;
                let version = found.version();
                if !newer(version) {
                    return Ok(false);
                }
                self.time = Some(found);
                version
            }
        };
        self.envelopes.insert(kind, (version, envelope.clone()));
        Ok(true)
    }

    /// What counts now.
    pub fn trust(&self) -> &TrustDocument {
        &self.trust
    }

    /// Who is refused.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// The list of this relay's site.
    pub fn upstreams(&self) -> Option<&UpstreamList> {
        self.upstreams.as_ref()
    }

    /// How nodes of the tenant behave.
    pub fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }

    /// The newest statement.
    pub fn time(&self) -> Option<&TimeStatement> {
        self.time.as_ref()
    }

    /// The newest envelope of a kind with its version.
    pub fn get(&self, kind: Kind) -> Option<&((u32, u64), Envelope)> {
        self.envelopes.get(&kind)
    }

    /// (term, version) of each kind in [`Kind::ALL`] order, as a greeting tells it.
    pub fn versions(&self) -> Vec<(u32, u64)> {
        Kind::ALL.iter().map(|k| self.envelopes.get(k).map_or((0, 0), |(v, _)| *v)).collect()
    }
}
