//! The office after a restore: a higher term before anything else, nothing issued while children are heard, and then
//! everything anew in the new term, with what was learned of them (OPS-7).

use super::{
    documents::{Change, packed},
    founding::{OfficeFault, TERM, listeners, meta_text, meta_value},
    office::{Draft, Office, State, TenantState, audit, store_refusal},
    tenant_keys::seal,
    upstreams::{Changed, RelayWays, Relisted, relist},
};
use crate::{
    backup::Mark,
    dispatch::recovery::{Held, Learned, LearnedOf, Progress},
    store::{NodeRow, Op, Store, StoreError},
};
use branchline_protocol::{
    document::{Document, Kind, Revocations, Settings},
    id::{Epoch, NodeId, OrderNumber, TenantId},
    order::Envelope,
    refusal::Refusal,
    time::{Millis, Mono},
    trust::TrustDocument,
};
use bytes::Bytes;
use rustls::ServerConfig;
use std::{collections::BTreeMap, sync::Arc};

/// Where it is kept from which state the present term began: MessagePack of [`Millis`].
pub(super) const RESTORED_FROM: &str = "restored_from";
/// Where it is kept that children are to be heard first: one byte then, else none.
pub(super) const RECOVERING: &str = "recovering";
/// Results are kept below for so long after settling: what an older restore left to be told is told by then.
const RESULTS_KEPT_MS: i64 = 7 * 86_400_000;
/// A caller that is told to wait comes again after this at the latest: a recovery mostly ends before its time.
const RETRY_MS_MAX: u64 = 10_000;

/// What a folder's mark asks for: the next term, durable, and a recovery.
pub async fn raise_term(store: &dyn Store, mark: Mark, now: Millis) -> Result<u32, OfficeFault> {
    let term = meta_text(store, TERM).await?.unwrap_or_else(|| "1".into());
    let term = term.parse::<u32>().ok().and_then(|term| term.checked_add(1));
    let term = term.ok_or_else(|| OfficeFault::BadValue(TERM.into()))?;
    let before: Option<Millis> = meta_value(store, RESTORED_FROM).await?;
    let before = before.filter(|before| now.0.saturating_sub(before.0) < RESULTS_KEPT_MS);
    let from = before.map_or(mark.made_at, |before| Millis(before.0.min(mark.made_at.0)));
    let detail = format!("from a backup of {} ms, term {term}", mark.made_at.0);
    store
        .commit(vec![
            Op::Meta(TERM.into(), term.to_string().into_bytes().into()),
            Op::Meta(RESTORED_FROM.into(), packed(&from)),
            Op::Meta(RECOVERING.into(), Bytes::from_static(b"1")),
            audit(&TenantId::system(), now, "server", "server.restored", detail),
        ])
        .await?;
    Ok(term)
}

/// The 503 of a server that is listening.
fn recovering(progress: Progress, now: Mono) -> Refusal {
    let left = progress.until.since(now);
    let message = format!(
        "the server was restored and listens to its children before it issues anything: {} of {} heard, {} s at most; \
         `branchline recovery end` ends it",
        progress.heard,
        progress.awaited,
        left.div_ceil(1_000)
    );
    Refusal::new(503, "recovering", message).retry_after(left.clamp(1_000, RETRY_MS_MAX))
}

/// A tenant's part of what a recovery leaves.
struct Anew {
    revocations: (Revocations, Envelope),
    settings: (Settings, Envelope),
    trust: Option<(TrustDocument, Envelope, Arc<ServerConfig>, Arc<ServerConfig>)>,
    relays: BTreeMap<NodeId, RelayWays>,
    revoked: Vec<NodeRow>,
    /// Devices that go on in the epoch that a list had given them.
    raised: Vec<NodeRow>,
    lists: Vec<Relisted>,
}

impl Office {
    /// 503 `recovering` while a restored server listens to its children.
    pub fn may_issue(&self) -> Result<(), Refusal> {
        match self.recovery() {
            None => Ok(()),
            Some(progress) => Err(recovering(progress, self.time().now().mono)),
        }
    }

    /// How far the recovery is, while there is one.
    pub fn recovery(&self) -> Option<Progress> {
        self.read(|state| state.recovery)
    }

    /// The same as it is from now on.
    pub fn set_recovery(&self, progress: Progress) {
        self.write(|state| state.recovery = state.recovery.and(Some(progress)));
    }

    /// Whether a document of this version was signed by this server, and is newer than what it holds.
    pub fn is_behind(&self, tenant: &TenantId, kind: Kind, version: (u32, u64)) -> bool {
        self.read(|state| {
            let held = state.tenants.get(tenant);
            match kind {
                Kind::Revocations => held.is_some_and(|held| version > held.revocations.0.version()),
                Kind::Settings => held.is_some_and(|held| version > held.settings.0.version()),
                _ => version.0 > state.term,
            }
        })
    }

    /// The store turned out to be an older one without having been restored by us: as after a restore, the next term is
    /// made durable and children are to be heard. From when the store is nobody knows: from before anything that is kept.
    pub async fn fall_back(&self) -> Result<u32, OfficeFault> {
        let turn = self.turn().await;
        let now = self.now();
        let from = now.plus(-RESULTS_KEPT_MS);
        let term = raise_term(&*self.0.store, Mark { made_at: from, restored_at: now }, now).await?;
        let until = self.time().now().mono;
        self.write(|state| {
            (state.term, state.restored_from) = (term, Some(from));
            state.recovery = Some(Progress { heard: 0, awaited: 0, until });
        });
        drop(turn);
        Ok(term)
    }

    /// What the backup held of each tenant, whose order counters are given.
    pub fn held(&self, numbers: &BTreeMap<TenantId, u64>) -> BTreeMap<TenantId, Held> {
        self.read(|state| {
            let held = |(tenant, held): (&TenantId, &TenantState)| {
                let number = numbers.get(tenant).copied().unwrap_or(0);
                let known = Held {
                    root: held.keys.root,
                    trust: held.trust.0.clone(),
                    revocations: held.revocations.0.version(),
                    settings: held.settings.0.version(),
                    newest: OrderNumber { term: state.term.saturating_sub(1), number },
                };
                (tenant.clone(), known)
            };
            state.tenants.iter().map(held).collect()
        })
    }

    /// Audits that an operator ended the recovery.
    pub async fn audit_end_of_recovery(&self, who: &str) -> Result<(), Refusal> {
        let ended = audit(&TenantId::system(), self.now(), who, "recovery.end", format!("term {}", self.term()));
        self.0.store.commit(vec![ended]).await.map_err(store_refusal)
    }

    /// Keeps what was learned: a term above all that were heard of, and every document anew in it; answers the term and the
    /// nodes that are revoked now and were not. From then on the server issues.
    pub async fn finish_recovery(&self, learned: &Learned) -> Result<(u32, Vec<(TenantId, NodeId)>), OfficeFault> {
        let turn = self.turn().await;
        let now = self.now();
        let rows = self.0.store.nodes().await?;
        let (before, tenants) = self.read(|state| (state.term, state.tenants.keys().cloned().collect::<Vec<_>>()));
        let term = learned.term.checked_add(1).ok_or_else(|| OfficeFault::BadValue(TERM.into()))?.max(before);
        let mut ops = vec![
            Op::Meta(TERM.into(), term.to_string().into_bytes().into()),
            Op::Meta(RECOVERING.into(), Bytes::new()),
        ];
        let (mut all, mut revoked, mut lists, mut changes) = (BTreeMap::new(), Vec::new(), Vec::new(), Vec::new());
        let nothing = LearnedOf::default();
        for tenant in tenants {
            let of = learned.tenants.get(&tenant).unwrap_or(&nothing);
            let mut anew = self.anew(&tenant, of, &rows, term, now)?;
            let document = |kind, version, envelope: &Envelope| {
                Op::Document(tenant.clone(), kind, String::new(), version, envelope.clone())
            };
            ops.push(document(Kind::Revocations, anew.revocations.0.version(), &anew.revocations.1));
            ops.push(document(Kind::Settings, anew.settings.0.version(), &anew.settings.1));
            ops.extend(anew.trust.iter().map(|(trust, e, ..)| document(Kind::Trust, trust.version(), e)));
            ops.extend(anew.revoked.iter().chain(&anew.raised).map(|row| Op::Node(row.clone())));
            let number = format!("order/{tenant}");
            let stored = self.0.store.meta(&number).await?;
            let stored = stored.and_then(|b| Some(u64::from_be_bytes(b[..].try_into().ok()?))).unwrap_or(0);
            if of.newest > stored {
                ops.push(Op::Meta(number, of.newest.to_be_bytes().to_vec().into()));
            }
            let detail = format!(
                "term {term}, {} heard of {}, {} nodes revoked again, settings version {}: {}",
                learned.progress.heard,
                learned.progress.awaited,
                anew.revoked.len(),
                anew.settings.0.version,
                learned.why.as_str()
            );
            ops.push(audit(&tenant, now, "server", "server.recovered", detail));
            revoked.extend(anew.revoked.iter().map(|row| (tenant.clone(), row.id)));
            lists.append(&mut anew.lists);
            for kind in [Kind::Revocations, Kind::Trust, Kind::Settings] {
                changes.push(Change { tenant: tenant.clone(), kind, site: String::new() });
            }
            all.insert(tenant, anew);
        }
        let apply = Box::new(move |state: &mut State| {
            (state.term, state.recovery) = (term, None);
            for (tenant, anew) in all {
                let Some(held) = state.tenants.get_mut(&tenant) else { continue };
                held.revocations = (Arc::new(anew.revocations.0), anew.revocations.1);
                held.settings = anew.settings;
                held.relays = anew.relays;
                anew.revoked.iter().chain(&anew.raised).for_each(|row| held.population.put(row));
                if let Some((trust, envelope, link, enrol)) = anew.trust {
                    (held.trust, held.link, held.enrol) = ((trust, envelope), link, enrol);
                }
            }
        });
        self.keep(turn, Draft { ops, lists, changes, apply }).await?;
        Ok((term, revoked))
    }

    fn anew(
        &self,
        tenant: &TenantId,
        learned: &LearnedOf,
        rows: &[NodeRow],
        term: u32,
        now: Millis,
    ) -> Result<Anew, OfficeFault> {
        self.read(|state| {
            let held = state.tenants.get(tenant).ok_or(OfficeFault::NotInitialised)?;
            let own = &held.revocations.0;
            let (known, suspended, keep_connection) = match &learned.suspended {
                Some((version, suspended)) => {
                    (version.1.max(own.version), suspended.clone(), learned.keep_connection.clone())
                }
                None => (own.version, own.suspended.clone(), own.keep_connection.clone()),
            };
            let mut list = Revocations { term, version: known + 1, suspended, keep_connection, ..Revocations::clone(own) };
            let revoked = cover(&mut list, learned.revoked.iter().map(|(node, epoch)| (*node, *epoch)), rows, now);
            let raised = raise(&mut list, &learned.raised, rows);
            let mut relays = held.relays.clone();
            revoked.iter().for_each(|row| drop(relays.remove(&row.id)));
            let newest = learned.settings.as_ref().unwrap_or(&held.settings.0);
            // Their version says whether they were ever changed (decision 13): the term alone makes them newer.
            let settings = Settings { tenant: tenant.clone(), term, ..newest.clone() };
            let trust = learned.trust.as_ref().filter(|(trust, _)| {
                let own = trust.server_keys().contains(&held.keys.signer.public());
                if !own {
                    tracing::error!(%tenant, "a newer trust document does not name this server's key: it needs the keys of that time");
                }
                own
            });
            let trust = match trust {
                Some((trust, envelope)) => {
                    let (link, enrol) = listeners(&held.keys, trust, &self.0.time)?;
                    Some((trust.clone(), envelope.clone(), link, enrol))
                }
                None => None,
            };
            let changed = Changed { relays: Some(&relays), anew: Some(term), ..Changed::default() };
            let lists = relist(state, tenant, held, changed);
            let revocations = (list.clone(), seal(&held.keys, &list));
            let settings = (settings.clone(), seal(&held.keys, &settings));
            Ok(Anew { revocations, settings, trust, relays, revoked, raised, lists })
        })
    }

    /// Nodes that the server had revoked before it was restored, as a list of an earlier term says that came late; answers
    /// those that were not.
    pub async fn revoke_again(
        &self,
        tenant: &TenantId,
        nodes: Vec<(NodeId, Epoch)>,
    ) -> Result<Vec<NodeId>, StoreError> {
        let turn = self.turn().await;
        let now = self.now();
        let rows = self.0.store.nodes().await?;
        let draft = self.read(|state| {
            let held = state.tenants.get(tenant)?;
            let mut list = Revocations::clone(&held.revocations.0);
            let lost: Vec<_> = nodes.into_iter().filter(|(node, epoch)| !list.covers(*node, *epoch)).collect();
            if lost.is_empty() {
                return None;
            }
            (list.term, list.version) = (state.term, list.version + 1);
            let revoked = cover(&mut list, lost, &rows, now);
            let mut relays = held.relays.clone();
            revoked.iter().for_each(|row| drop(relays.remove(&row.id)));
            let lists = relist(state, tenant, held, Changed { relays: Some(&relays), ..Changed::default() });
            Some((list.clone(), seal(&held.keys, &list), relays, revoked, lists))
        });
        let Some((list, envelope, relays, revoked, lists)) = draft else { return Ok(Vec::new()) };
        let mut ops =
            vec![Op::Document(tenant.clone(), Kind::Revocations, String::new(), list.version(), envelope.clone())];
        for row in &revoked {
            let detail =
                format!("{} {:?} {} epoch {}, as a node below still knows", row.role, row.name, row.id, row.epoch);
            ops.push(Op::Node(row.clone()));
            ops.push(audit(tenant, now, "server", "node.revoke", detail));
        }
        let change = Change { tenant: tenant.clone(), kind: Kind::Revocations, site: String::new() };
        let (own, ids) = (tenant.clone(), revoked.iter().map(|row| row.id).collect());
        let apply = Box::new(move |state: &mut State| {
            if let Some(held) = state.tenants.get_mut(&own) {
                held.revocations = (Arc::new(list), envelope);
                held.relays = relays;
                revoked.iter().for_each(|row| held.population.put(row));
            }
        });
        self.keep(turn, Draft { ops, lists, changes: vec![change], apply }).await?;
        Ok(ids)
    }
}

/// Adds epochs to a list; answers the rows of devices that go on in a later one than the backup's.
fn raise(list: &mut Revocations, epochs: &BTreeMap<NodeId, Epoch>, rows: &[NodeRow]) -> Vec<NodeRow> {
    let mut raised = Vec::new();
    for (device, epoch) in epochs {
        match list.raised.iter_mut().find(|(known, _)| known == device) {
            Some((_, latest)) => *latest = (*latest).max(*epoch),
            None => list.raised.push((*device, *epoch)),
        }
        let behind = |row: &&NodeRow| {
            row.tenant == list.tenant && row.id == *device && row.revoked_at.is_none() && row.epoch < *epoch
        };
        let row = rows.iter().find(behind).filter(|row| !list.covers(row.id, row.epoch));
        raised.extend(row.map(|row| NodeRow { epoch: *epoch, attachment: 0, ..row.clone() }));
    }
    raised
}

/// Adds revocations to a list; answers the rows of nodes that are refused by it now and were not.
fn cover(
    list: &mut Revocations,
    nodes: impl IntoIterator<Item = (NodeId, Epoch)>,
    rows: &[NodeRow],
    now: Millis,
) -> Vec<NodeRow> {
    for (node, epoch) in nodes {
        match list.revoked.iter_mut().find(|(known, _)| *known == node) {
            Some((_, upto)) => *upto = epoch.max(*upto),
            None => list.revoked.push((node, epoch)),
        }
    }
    let refused =
        |row: &&NodeRow| row.tenant == list.tenant && row.revoked_at.is_none() && list.covers(row.id, row.epoch);
    let revoked: Vec<NodeRow> =
        rows.iter().filter(refused).map(|row| NodeRow { revoked_at: Some(now), ..row.clone() }).collect();
    list.suspended.retain(|device| !revoked.iter().any(|row| row.id == *device));
    list.keep_connection.retain(|(device, _)| !revoked.iter().any(|row| row.id == *device));
    revoked
}
