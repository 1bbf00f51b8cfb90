//! The office: what the server may say in each tenant's name, and the one place that says it.
//!
//! Tenants' keys lie in files, everything else in the store. Files are written first, the store's row last, and the
//! row is the truth: keys without a row belong to no tenant yet and are taken over when it is made.
//!
//! One write at a time: it takes the turn, drafts from the state in memory, and hands turn and draft to a task that
//! commits, applies and tells. Whoever asked may go away meanwhile; memory and store stay the same.

use super::{
    documents::{Change, apply},
    enrolment::Population,
    founding::OfficeFault,
    names::check_site_name,
    tenant_keys::TenantKeys,
    tokens::{distinct, secret_hash},
    upstreams::{Changed, Parents, RelayWays, Relisted, Ways, relist},
};
use crate::{
    dispatch::recovery::Progress,
    store::{AuditRow, Op, Store, StoreError},
};
use branchline_node::{identity::Identity, node::Ambient, time::NodeTime};
use branchline_protocol::{
    document::{Revocations, Settings, UpstreamList},
    hash::Hash,
    id::{NodeId, TenantId},
    order::{Envelope, Signer},
    refusal::Refusal,
    time::Millis,
    trust::TrustDocument,
};
use bytes::Bytes;
use rustls::{ServerConfig, pki_types::CertificateDer};
use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};
use tokio::sync::{Mutex, OwnedMutexGuard, broadcast, watch};

/// Where the ways to the server are kept.
pub(super) const WAYS: &str = "ways";

/// Changes kept for a slow receiver; one more and it is told that it lags. 300 sites' lists at once must fit.
pub(super) const CHANGES_KEPT: usize = 1_024;

/// What the server's ends of a tenant's links are made of.
#[derive(Clone)]
pub struct TenantTls {
    /// The server's identity in this tenant.
    pub identity: Identity,
    /// The tenant's authority.
    pub ca: CertificateDer<'static>,
    /// The trust document in force.
    pub trust: TrustDocument,
    /// Signs orders and documents.
    pub signer: Arc<Signer>,
}

/// The server's authority. A handle: clones are the same office.
#[derive(Clone)]
pub struct Office(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub folder: PathBuf,
    pub store: Arc<dyn Store>,
    pub ambient: Ambient,
    pub time: NodeTime,
    pub turn: Arc<Mutex<()>>,
    pub changes: broadcast::Sender<Change>,
    pub state: RwLock<State>,
    pub link_tokens: watch::Sender<Vec<Hash>>,
}

/// What the store holds of the office, in memory. Changed only after the store has changed.
pub(super) struct State {
    pub server: NodeId,
    pub server_name: String,
    pub term: u32,
    pub ways: Ways,
    pub tenants: BTreeMap<TenantId, TenantState>,
    pub last_statement: u64,
    /// From which state the present term began, if the server was ever restored.
    pub restored_from: Option<Millis>,
    /// While children are heard first: nothing is issued.
    pub recovery: Option<Progress>,
}

pub(super) struct TenantState {
    pub keys: TenantKeys,
    pub trust: (TrustDocument, Envelope),
    pub revocations: (Arc<Revocations>, Envelope),
    pub settings: (Settings, Envelope),
    pub sites: BTreeMap<String, SiteState>,
    pub relays: BTreeMap<NodeId, RelayWays>,
    pub link_token: String,
    pub population: Population,
    pub link: Arc<ServerConfig>,
    pub enrol: Arc<ServerConfig>,
}

#[derive(Default)]
pub(super) struct SiteState {
    pub parents: Parents,
    pub list: Option<(UpstreamList, Envelope)>,
}

/// A write on its way to the store.
pub(super) struct Draft {
    pub ops: Vec<Op>,
    pub lists: Vec<Relisted>,
    pub changes: Vec<Change>,
    pub apply: Box<dyn FnOnce(&mut State) + Send>,
}

impl Office {
    /// The server's id, the same in every tenant.
    pub fn server_id(&self) -> NodeId {
        self.read(|state| state.server)
    }

    /// The server's name.
    pub fn server_name(&self) -> String {
        self.read(|state| state.server_name.clone())
    }

    /// The term of every number the server issues.
    pub fn term(&self) -> u32 {
        self.read(|state| state.term)
    }

    /// Node time on the server, also that of its TLS.
    pub fn time(&self) -> &NodeTime {
        &self.0.time
    }

    /// Every tenant but `system`.
    pub fn tenants(&self) -> Vec<TenantId> {
        self.read(|state| state.tenants.keys().filter(|tenant| **tenant != TenantId::system()).cloned().collect())
    }

    /// A tenant's sites; `None` for an unknown tenant.
    pub fn sites(&self, tenant: &TenantId) -> Option<Vec<String>> {
        self.read(|state| state.tenants.get(tenant).map(|held| held.sites.keys().cloned().collect()))
    }

    /// What the server's ends of a tenant's links are made of; `system` for trunks and the API.
    pub fn tenant_tls(&self, tenant: &TenantId) -> Option<TenantTls> {
        self.read(|state| {
            let held = state.tenants.get(tenant)?;
            Some(TenantTls {
                identity: held.keys.identity.clone(),
                ca: held.keys.authority.certificate().clone(),
                trust: held.trust.0.clone(),
                signer: held.keys.signer.clone(),
            })
        })
    }

    /// Signs orders and documents of a tenant.
    pub fn signer(&self, tenant: &TenantId) -> Option<Arc<Signer>> {
        self.read(|state| state.tenants.get(tenant).map(|held| held.keys.signer.clone()))
    }

    /// blake3 of every tenant's link token: who may knock at a gateway.
    pub fn link_token_hashes(&self) -> Vec<Hash> {
        self.0.link_tokens.borrow().clone()
    }

    /// The same as they change.
    pub fn link_tokens(&self) -> watch::Receiver<Vec<Hash>> {
        self.0.link_tokens.subscribe()
    }

    /// Makes a tenant with its keys and sites; answers the secret of its API token, which is also in
    /// `tokens/<tenant>`. 409 `duplicate_tenant`, 422 for bad sites.
    pub async fn add_tenant(&self, who: &str, tenant: TenantId, sites: Vec<String>) -> Result<String, Refusal> {
        self.may_issue()?;
        if self.knows(&tenant) {
            let message = format!("there is a tenant {tenant} already");
            return Err(Refusal::new(409, "duplicate_tenant", message).field("name"));
        }
        self.make_tenant(who, &tenant, sites, &[]).await.map_err(|fault| match fault {
            OfficeFault::Refused(refusal) => refusal,
            OfficeFault::Store(error) => store_refusal(error),
            fault => Refusal::new(503, "keys_unavailable", format!("make the tenant's keys: {fault}")),
        })
    }

    /// Defines a site (TOP-16). 409 `duplicate_site`, 422 `bad_name`, 404 `no_such_tenant`.
    pub async fn add_site(&self, tenant: &TenantId, who: &str, name: String) -> Result<(), Refusal> {
        check_site_name(&name)?;
        self.may_issue()?;
        let turn = self.turn().await;
        let (known, taken) = self.read(|state| match state.tenants.get(tenant) {
            Some(held) => (true, held.sites.contains_key(&name)),
            None => (false, false),
        });
        if !known || *tenant == TenantId::system() {
            return Err(Refusal::new(404, "no_such_tenant", "there is no such tenant with sites"));
        }
        if taken {
            let message = format!("there is a site {name:?} already");
            return Err(Refusal::new(409, "duplicate_site", message).field("name"));
        }
        let mut ops = vec![Op::Site(tenant.clone(), name.clone())];
        ops.push(audit(tenant, self.now(), who, "site.make", name.clone()));
        let parents = Parents::default();
        let lists = self.read(|state| match state.tenants.get(tenant) {
            Some(held) => relist(state, tenant, held, Changed { site: Some((&name, &parents)), ..Changed::default() }),
            None => Vec::new(),
        });
        self.keep(turn, Draft { lists, ..Draft::of(ops) }).await.map_err(store_refusal)
    }

    pub(super) fn now(&self) -> Millis {
        self.0.time.now().node
    }

    pub(super) async fn turn(&self) -> OwnedMutexGuard<()> {
        self.0.turn.clone().lock_owned().await
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Commits a draft, applies it, tells of it. Goes on to the end even if the caller goes away: what the store has,
    /// memory must have.
    pub(super) async fn keep(&self, turn: OwnedMutexGuard<()>, mut draft: Draft) -> Result<(), StoreError> {
        draft.ops.extend(draft.lists.iter().map(Relisted::op));
        let office = self.clone();
        let whole = tokio::spawn(async move {
            office.0.store.commit(draft.ops).await?;
            office.write(|state| {
                (draft.apply)(state);
                apply(state, &draft.lists);
            });
            let lists = draft.lists.iter().map(Relisted::change);
            for change in draft.changes.into_iter().chain(lists) {
                // Nobody listening is no fault: who comes later reads what there is.
                let _ = office.0.changes.send(change);
            }
            office.count_link_tokens();
            drop(turn);
            Ok(())
        });
        whole.await.unwrap_or_else(|fault| Err(StoreError::Stopped(format!("the write did not end: {fault}"))))
    }

    pub(super) fn knows(&self, tenant: &TenantId) -> bool {
        self.read(|state| state.tenants.contains_key(tenant))
    }

    pub(super) fn count_link_tokens(&self) {
        let hashes: Vec<Hash> = self.read(|state| {
            let customers = state.tenants.iter().filter(|(tenant, _)| **tenant != TenantId::system());
            customers.map(|(_, held)| secret_hash(&held.link_token)).collect()
        });
        self.0.link_tokens.send_if_modified(|held| {
            let changed = *held != hashes;
            *held = hashes;
            changed
        });
    }
}

impl State {
    /// What vouches for the gateways' public certificates.
    pub fn outer_roots(&self) -> Vec<Bytes> {
        let system = self.tenants.get(&TenantId::system());
        let own = || system.map(|held| Bytes::copy_from_slice(held.keys.authority.certificate()));
        if self.ways.gateways.is_empty() {
            return own().into_iter().collect();
        }
        distinct(self.ways.gateways.iter().filter_map(|gateway| gateway.outer_root.clone().or_else(own)))
    }
}

impl Draft {
    /// Only these writes.
    pub fn of(ops: Vec<Op>) -> Draft {
        Draft { ops, lists: Vec::new(), changes: Vec::new(), apply: Box::new(|_| {}) }
    }
}

impl fmt::Debug for Office {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read(|state| write!(f, "Office({}, {:?})", state.server, state.tenants.keys()))
    }
}

/// An audited act.
pub(super) fn audit(tenant: &TenantId, at: Millis, who: &str, what: &str, detail: String) -> Op {
    Op::Audit(AuditRow { tenant: tenant.clone(), at, who: who.into(), what: what.into(), detail })
}

/// A store's error as the caller of the API sees it.
pub(super) fn store_refusal(error: StoreError) -> Refusal {
    match error {
        StoreError::Conflict(_) => Refusal::new(409, "conflict", "someone else changed the same at the same moment"),
        _ => Refusal::new(503, "store_unavailable", "the server's store does not take writes; see the server's log"),
    }
}

/// Where a site's parents are kept.
pub(super) fn parents_key(tenant: &TenantId, site: &str) -> String {
    format!("parents/{tenant}/{site}")
}
