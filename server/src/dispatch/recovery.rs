//! A restored server listens before it speaks (pure; OPS-7, DESIGN 5). It issues nothing until every child that the
//! backup knew directly has told what it knows, or a bounded time is over, or an operator says so.
//!
//! What children tell counts only as far as the server's own key, or the tenant's root, signed it: a document's term shows
//! that the server once had that term, and a revocation in any list that it ever signed stays.

use branchline_node::identity::{RootKey, verify_trust};
use branchline_protocol::{
    document::{self, Document, DocumentFault, Kind, Revocations, Settings, TimeStatement},
    id::{Epoch, NodeId, OrderNumber, TenantId},
    order::{Envelope, PublicKey},
    time::Mono,
    trust::TrustDocument,
};
use std::collections::{BTreeMap, BTreeSet};

/// What the backup held of a tenant.
#[derive(Clone, Debug)]
pub struct Held {
    /// The tenant's root.
    pub root: RootKey,
    /// Who signs.
    pub trust: TrustDocument,
    /// (term, version) of its revocations.
    pub revocations: (u32, u64),
    /// (term, version) of its settings.
    pub settings: (u32, u64),
    /// The newest order it knew: the backup's term, the tenant's counter.
    pub newest: OrderNumber,
}

/// Why a recovery is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Everybody whom the backup knew was heard.
    Heard,
    /// Its time is over.
    Time,
    /// An operator ended it.
    Asked,
}

impl Why {
    /// For audits.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Heard => "every child was heard",
            Why::Time => "its time was over",
            Why::Asked => "an operator ended it",
        }
    }
}

/// How far a recovery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Children that the backup knew and that have told what they know.
    pub heard: usize,
    /// Children that the backup knew.
    pub awaited: usize,
    /// When it is over at the latest.
    pub until: Mono,
}

/// What was learned, all of it signed.
#[derive(Clone, Debug, PartialEq)]
pub struct Learned {
    /// The highest term that any child has seen.
    pub term: u32,
    /// By tenant.
    pub tenants: BTreeMap<TenantId, LearnedOf>,
    /// Children heard, and awaited.
    pub progress: Progress,
    /// Why it is over.
    pub why: Why,
}

/// What was learned of a tenant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LearnedOf {
    /// The union of all revocations that were told: up to which epoch each node is refused.
    pub revoked: BTreeMap<NodeId, Epoch>,
    /// The latest epoch that a list has given each device.
    pub raised: BTreeMap<NodeId, Epoch>,
    /// Of the newest list that was told: its version, and who is suspended.
    pub suspended: Option<((u32, u64), Vec<NodeId>)>,
    /// Of the same list: which devices keep their connection.
    pub keep_connection: Vec<(NodeId, bool)>,
    /// The newest settings, if they are newer than the backup's.
    pub settings: Option<Settings>,
    /// The newest trust document, if it is newer than the backup's.
    pub trust: Option<(TrustDocument, Envelope)>,
    /// The highest order number that was told.
    pub newest: u64,
}

struct Listening {
    held: Held,
    learned: LearnedOf,
}

/// See the module.
pub struct Recovery {
    until: Mono,
    awaited: BTreeSet<(TenantId, NodeId)>,
    heard: BTreeSet<(TenantId, NodeId)>,
    tenants: BTreeMap<TenantId, Listening>,
    term: u32,
    asked: bool,
    closed: bool,
}

impl Recovery {
    /// Begins to listen: to these children, and at most for so many milliseconds.
    pub fn new(
        now: Mono,
        bound_ms: u64,
        awaited: impl IntoIterator<Item = (TenantId, NodeId)>,
        held: BTreeMap<TenantId, Held>,
    ) -> Recovery {
        let listening = |(tenant, held)| (tenant, Listening { held, learned: LearnedOf::default() });
        Recovery {
            until: now.plus(bound_ms),
            awaited: awaited.into_iter().collect(),
            heard: BTreeSet::new(),
            tenants: held.into_iter().map(listening).collect(),
            term: 0,
            asked: false,
            closed: false,
        }
    }

    /// The newest order of a tenant that the backup knew.
    pub fn newest(&self, tenant: &TenantId) -> Option<OrderNumber> {
        self.tenants.get(tenant).map(|listening| listening.held.newest)
    }

    /// What a child holds. Documents that do not verify are answered, and count for nothing.
    pub fn told(&mut self, tenant: &TenantId, mut documents: Vec<(Kind, Envelope)>) -> Vec<(Kind, DocumentFault)> {
        let Some(listening) = self.tenants.get_mut(tenant) else { return Vec::new() };
        // Trust first: it says who may have signed the others.
        documents.sort_by_key(|(kind, _)| *kind != Kind::Trust);
        let mut faults = Vec::new();
        for (kind, envelope) in documents {
            match listening.take(tenant, kind, &envelope) {
                Ok(term) => self.term = self.term.max(term),
                Err(fault) => faults.push((kind, fault)),
            }
        }
        faults
    }

    /// A child holds this order, which was verified.
    pub fn order(&mut self, tenant: &TenantId, order: OrderNumber) {
        if let Some(listening) = self.tenants.get_mut(tenant) {
            self.term = self.term.max(order.term);
            listening.learned.newest = listening.learned.newest.max(order.number);
        }
    }

    /// A child has told what it knows.
    pub fn heard(&mut self, tenant: &TenantId, child: NodeId) {
        let child = (tenant.clone(), child);
        if self.awaited.contains(&child) {
            self.heard.insert(child);
        }
    }

    /// Nobody waits for this child any more: it is revoked.
    pub fn gone(&mut self, tenant: &TenantId, child: NodeId) {
        let child = (tenant.clone(), child);
        self.awaited.remove(&child);
        self.heard.remove(&child);
    }

    /// An operator does not want to wait.
    pub fn end(&mut self) {
        self.asked = true;
    }

    /// Why it is over, once it is.
    pub fn over(&self, now: Mono) -> Option<Why> {
        match () {
            () if self.heard.len() == self.awaited.len() => Some(Why::Heard),
            () if self.asked => Some(Why::Asked),
            () if now >= self.until => Some(Why::Time),
            () => None,
        }
    }

    /// It is over; `false` if that was said before. What is told from here on is not learned any more.
    pub fn close(&mut self) -> bool {
        !std::mem::replace(&mut self.closed, true)
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        Progress { heard: self.heard.len(), awaited: self.awaited.len(), until: self.until }
    }

    /// Everything that was told until now.
    pub fn learned(&self, why: Why) -> Learned {
        let tenants = self.tenants.iter().map(|(tenant, listening)| (tenant.clone(), listening.learned.clone()));
        Learned { term: self.term, tenants: tenants.collect(), progress: self.progress(), why }
    }
}

impl Listening {
    /// Takes a document for what it is worth; answers its term.
    fn take(&mut self, tenant: &TenantId, kind: Kind, envelope: &Envelope) -> Result<u32, DocumentFault> {
        let keys = self.server_keys();
        match kind {
            Kind::Trust => {
                let found = verify_trust(envelope, tenant, self.held.root)?;
                let version = found.version();
                let newest = self.learned.trust.as_ref().map_or(self.held.trust.version(), |(t, _)| t.version());
                if version > newest {
                    self.learned.trust = Some((found, envelope.clone()));
                }
                // The root raises its own number: it shows no term of the server.
                Ok(0)
            }
            Kind::Revocations => {
                let found: Revocations = document::open(envelope, tenant, &keys)?;
                let version = found.version();
                for (node, epoch) in found.revoked {
                    let upto = self.learned.revoked.entry(node).or_insert(epoch);
                    *upto = epoch.max(*upto);
                }
                for (device, epoch) in found.raised {
                    let latest = self.learned.raised.entry(device).or_insert(epoch);
                    *latest = epoch.max(*latest);
                }
                let newest = self.learned.suspended.as_ref().map_or(self.held.revocations, |(version, _)| *version);
                if version > newest {
                    self.learned.suspended = Some((version, found.suspended));
                    self.learned.keep_connection = found.keep_connection;
                }
                Ok(version.0)
            }
            Kind::Settings => {
                let found: Settings = document::open(envelope, tenant, &keys)?;
                let version = found.version();
                let newest = self.learned.settings.as_ref().map_or(self.held.settings, Settings::version);
                if version > newest {
                    self.learned.settings = Some(found);
                }
                Ok(version.0)
            }
            Kind::Time => document::open::<TimeStatement>(envelope, tenant, &keys).map(|found| found.term),
            // Each is made anew from what is there after the recovery.
            Kind::Upstreams => {
                document::open::<document::UpstreamList>(envelope, tenant, &keys).map(|found| found.term)
            }
        }
    }

    /// Server keys of the newest trust document, and of the backup's: what was signed before a change counts too.
    fn server_keys(&self) -> Vec<PublicKey> {
        let mut keys = self.held.trust.server_keys();
        keys.extend(self.learned.trust.iter().flat_map(|(trust, _)| trust.server_keys()));
        keys
    }
}
