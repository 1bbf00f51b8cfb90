//! The office's documents: revocations, upstream lists, settings, trust, time. Each change is one version newer, is
//! durable before anyone is told, and is told to whoever watches.

use super::{
    names::{Host, host_of, hosts_of},
    office::{Draft, Office, State, WAYS, audit, store_refusal},
    upstreams::{Changed, GatewayAddress, Relisted, Ways, relist},
};
use crate::store::{NodeRow, Op};
use branchline_node::identity::pem_to_certificates;
use branchline_protocol::{
    document::{Document, Kind, Revocations, TimeStatement},
    id::{Epoch, NodeId, TenantId},
    order::Envelope,
    refusal::Refusal,
    time::Millis,
};
use bytes::Bytes;
use rustls::{RootCertStore, pki_types::CertificateDer};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::broadcast;

/// Gateways one installation may have.
pub const GATEWAYS_MAX: usize = 64;

/// A document that has become a newer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub kind: Kind,
    /// For upstream lists the site, else empty.
    pub site: String,
}

/// What a revocation brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The node is refused up to this epoch.
    pub epoch: Epoch,
    /// The list that says so.
    pub list: Envelope,
}

impl Office {
    /// What a node of this site needs, in order of application. Without a list of upstreams for a site that is none.
    /// Empty for an unknown tenant.
    pub fn documents(&self, tenant: &TenantId, site: &str) -> Vec<(Kind, Envelope)> {
        self.read(|state| {
            let Some(held) = state.tenants.get(tenant) else { return Vec::new() };
            let list = held.sites.get(site).and_then(|site| site.list.as_ref());
            let mut documents = vec![
                (Kind::Revocations, held.revocations.1.clone()),
                (Kind::Trust, held.trust.1.clone()),
                (Kind::Settings, held.settings.1.clone()),
            ];
            documents.extend(list.map(|(_, envelope)| (Kind::Upstreams, envelope.clone())));
            documents.sort_by_key(|(kind, _)| *kind);
            documents
        })
    }

    /// Changes from now on. A receiver that lags must take it that everything has changed.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.0.changes.subscribe()
    }

    /// The tenant's revocation list; `None` for an unknown tenant.
    pub fn revocations(&self, tenant: &TenantId) -> Option<Arc<Revocations>> {
        self.read(|state| state.tenants.get(tenant).map(|held| held.revocations.0.clone()))
    }

    /// Refuses a node from now on, everywhere, with every epoch it has had (ENR-9). Once durable, the newest list is
    /// answered; a node that is revoked already changes nothing. 404 `no_such_node`.
    pub async fn revoke(&self, tenant: &TenantId, who: &str, node: NodeId) -> Result<Revoked, Refusal> {
        self.may_issue()?;
        let turn = self.turn().await;
        let mut row = self.node_row(tenant, node).await?.ok_or_else(no_such_node)?;
        let now = self.now();
        let draft = self.read(|state| {
            let held = state.tenants.get(tenant)?;
            if held.revocations.0.covers(node, row.epoch) {
                return Some(Err(Revoked { epoch: row.epoch, list: held.revocations.1.clone() }));
            }
            let mut list = Revocations::clone(&held.revocations.0);
            list.revoked.retain(|(id, _)| *id != node);
            list.suspended.retain(|id| *id != node);
            list.raised.retain(|(id, _)| *id != node);
            list.keep_connection.retain(|(id, _)| *id != node);
            list.revoked.push((node, row.epoch));
            (list.term, list.version) = (state.term, list.version + 1);
            let envelope = list.seal(&held.keys.signer);
            let mut relays = held.relays.clone();
            relays.remove(&node);
            let lists = relist(state, tenant, held, Changed { relays: Some(&relays), ..Changed::default() });
            Some(Ok((list, envelope, relays, lists)))
        });
        let (list, envelope, relays, lists) = match draft.ok_or_else(no_such_node)? {
            Ok(draft) => draft,
            Err(already) => return Ok(already),
        };
        row.revoked_at = Some(now);
        let version = list.version();
        let detail = format!("{} {:?} {} epoch {}", row.role, row.name, row.id, row.epoch);
        let ops = vec![
            Op::Document(tenant.clone(), Kind::Revocations, String::new(), version, envelope.clone()),
            Op::Node(row.clone()),
            audit(tenant, now, who, "node.revoke", detail),
        ];
        let change = Change { tenant: tenant.clone(), kind: Kind::Revocations, site: String::new() };
        let (own, epoch, sealed) = (tenant.clone(), row.epoch, envelope.clone());
        let apply = Box::new(move |state: &mut State| {
            if let Some(held) = state.tenants.get_mut(&own) {
                held.revocations = (Arc::new(list), sealed);
                held.relays = relays;
                held.population.put(&row);
            }
        });
        self.keep(turn, Draft { ops, lists, changes: vec![change], apply }).await.map_err(store_refusal)?;
        Ok(Revoked { epoch, list: envelope })
    }

    /// Suspends a device from now on, or revives it: the list that every node on the way to it holds says so (JOB-16). Once
    /// durable, the newest list is answered; a device that is so already changes nothing. 404 `no_such_node`.
    pub async fn suspend(
        &self,
        tenant: &TenantId,
        who: &str,
        device: NodeId,
        suspended: bool,
    ) -> Result<Envelope, Refusal> {
        self.may_issue()?;
        let turn = self.turn().await;
        let row =
            self.node_row(tenant, device).await?.filter(|row| row.revoked_at.is_none()).ok_or_else(no_such_node)?;
        let draft = self.read(|state| {
            let held = state.tenants.get(tenant)?;
            if held.revocations.0.suspends(device) == suspended {
                return Some(Err(held.revocations.1.clone()));
            }
            let mut list = Revocations::clone(&held.revocations.0);
            list.suspended.retain(|id| *id != device);
            list.suspended.extend(suspended.then_some(device));
            (list.term, list.version) = (state.term, list.version + 1);
            let envelope = list.seal(&held.keys.signer);
            Some(Ok((list, envelope)))
        });
        let (list, envelope) = match draft.ok_or_else(no_such_node)? {
            Ok(draft) => draft,
            Err(already) => return Ok(already),
        };
        let what = if suspended { "device.suspend" } else { "device.revive" };
        let ops = vec![
            Op::Document(tenant.clone(), Kind::Revocations, String::new(), list.version(), envelope.clone()),
            audit(tenant, self.now(), who, what, format!("{} {:?} {}", row.role, row.name, row.id)),
        ];
        let change = Change { tenant: tenant.clone(), kind: Kind::Revocations, site: String::new() };
        let (own, sealed) = (tenant.clone(), envelope.clone());
        let apply = Box::new(move |state: &mut State| {
            if let Some(held) = state.tenants.get_mut(&own) {
                held.revocations = (Arc::new(list), sealed);
            }
        });
        let draft = Draft { changes: vec![change], apply, ..Draft::of(ops) };
        self.keep(turn, draft).await.map_err(store_refusal)?;
        Ok(envelope)
    }

    /// Gives devices these epochs, in their rows and in the list that every node on the way to them holds, in one
    /// transaction: when a site's machines are put back together, that list is made once and not for each of them. Devices
    /// that are in that epoch already, or a later one, and those that are no nodes or were revoked, change nothing.
    pub async fn raise_epochs(&self, tenant: &TenantId, devices: &[(NodeId, Epoch)]) -> Result<(), Refusal> {
        self.may_issue()?;
        let turn = self.turn().await;
        let mut rows = Vec::new();
        for (device, epoch) in devices {
            let row = self.node_row(tenant, *device).await?;
            rows.extend(row.filter(|row| row.revoked_at.is_none() && row.epoch < *epoch).map(|row| (row, *epoch)));
        }
        if rows.is_empty() {
            return Ok(());
        }
        let draft = self.read(|state| {
            let held = state.tenants.get(tenant)?;
            let mut list = Revocations::clone(&held.revocations.0);
            let raised: BTreeMap<NodeId, Epoch> = rows.iter().map(|(row, epoch)| (row.id, *epoch)).collect();
            list.raised.retain(|(id, _)| !raised.contains_key(id));
            list.raised.extend(raised);
            (list.term, list.version) = (state.term, list.version + 1);
            let envelope = list.seal(&held.keys.signer);
            Some((list, envelope))
        });
        let (list, envelope) = draft.ok_or_else(no_such_node)?;
        let (version, kind) = (list.version(), Kind::Revocations);
        let mut ops = vec![Op::Document(tenant.clone(), kind, String::new(), version, envelope.clone())];
        for (row, epoch) in &mut rows {
            let detail = format!("{} {:?} {} epoch {} to {epoch}", row.role, row.name, row.id, row.epoch);
            (row.epoch, row.attachment) = (*epoch, 0);
            ops.extend([Op::Node(row.clone()), audit(tenant, self.now(), "server", "device.epoch", detail)]);
        }
        let change = Change { tenant: tenant.clone(), kind, site: String::new() };
        let own = tenant.clone();
        let apply = Box::new(move |state: &mut State| {
            if let Some(held) = state.tenants.get_mut(&own) {
                held.revocations = (Arc::new(list), envelope);
                rows.iter().for_each(|(row, _)| held.population.put(row));
            }
        });
        self.keep(turn, Draft { changes: vec![change], apply, ..Draft::of(ops) }).await.map_err(store_refusal)
    }

    /// The server's word on time, newer than every one before it; `None` for an unknown tenant. `floor`: orders below
    /// it are settled everywhere. A server that was restored states nothing before it has heard its children.
    ///
    /// Its version is the time itself unless the clock stood or went back, so it rises across restarts without being
    /// stored; a clock set back gives statements that children ignore until it has caught up, as node time demands.
    pub fn time_statement(&self, tenant: &TenantId, now: Millis, floor: u64) -> Option<Envelope> {
        self.write(|state| {
            if state.recovery.is_some() {
                return None;
            }
            let version = state.last_statement.saturating_add(1).max(u64::try_from(now.0).unwrap_or(0));
            let held = state.tenants.get(tenant)?;
            state.last_statement = version;
            let statement = TimeStatement {
                tenant: tenant.clone(),
                time: now,
                term: state.term,
                version,
                order_floor: floor,
                trust_version: held.trust.0.version,
                settings_version: held.settings.0.version,
                revocations_version: held.revocations.0.version,
                restored_from: state.restored_from,
            };
            Some(statement.seal(&held.keys.signer))
        })
    }

    /// The addresses of the server's own listeners, once they are bound: `host:port` each.
    pub async fn set_advertised(&self, link: Vec<String>, trunk: Vec<String>) -> Result<(), Refusal> {
        hosts_of(&link)?;
        hosts_of(&trunk)?;
        self.change_ways("server", |ways| (ways.link, ways.trunk) = (link, trunk)).await
    }

    /// All gateways' public addresses, as children are told from now on. 422 `bad_address` or `bad_certificate`.
    pub async fn set_gateways(&self, who: &str, gateways: Vec<GatewayAddress>) -> Result<(), Refusal> {
        self.may_issue()?;
        let gateways = gateways.into_iter().map(checked).collect::<Result<Vec<_>, _>>()?;
        if gateways.len() > GATEWAYS_MAX {
            let message = format!("{} gateways, at most {GATEWAYS_MAX} are allowed", gateways.len());
            return Err(Refusal::new(422, "too_many_gateways", message));
        }
        self.change_ways(who, |ways| ways.gateways = gateways).await
    }

    /// One more gateway's public address, or another root for one that is known.
    pub async fn add_gateway(&self, who: &str, public: String, outer_root: Option<Bytes>) -> Result<(), Refusal> {
        let new = checked(GatewayAddress { public, outer_root })?;
        if self.gateways().contains(&new) {
            return Ok(());
        }
        self.may_issue()?;
        if self.gateways().iter().filter(|g| g.public != new.public).count() >= GATEWAYS_MAX {
            let message = format!("there are {GATEWAYS_MAX} gateways already");
            return Err(Refusal::new(422, "too_many_gateways", message));
        }
        self.change_ways(who, |ways| match ways.gateways.iter_mut().find(|g| g.public == new.public) {
            Some(old) => *old = new,
            None => ways.gateways.push(new),
        })
        .await
    }

    /// Gateways' public addresses.
    pub fn gateways(&self) -> Vec<GatewayAddress> {
        self.read(|state| state.ways.gateways.clone())
    }

    /// Where a relay listens for links: `host:port` each. 404 `no_such_node` for anything but a relay in service.
    pub async fn set_addresses(&self, tenant: &TenantId, relay: NodeId, addresses: Vec<String>) -> Result<(), Refusal> {
        hosts_of(&addresses)?;
        self.may_issue()?;
        let turn = self.turn().await;
        let draft = self.read(|state| {
            let held = state.tenants.get(tenant)?;
            let mut relays = held.relays.clone();
            let ways = relays.get_mut(&relay)?;
            if ways.addresses == addresses {
                return Some(None);
            }
            ways.addresses.clone_from(&addresses);
            let lists = relist(state, tenant, held, Changed { relays: Some(&relays), ..Changed::default() });
            Some(Some((relays, lists)))
        });
        let Some((relays, lists)) = draft.ok_or_else(no_such_node)? else { return Ok(()) };
        let own = tenant.clone();
        let apply = Box::new(move |state: &mut State| {
            if let Some(held) = state.tenants.get_mut(&own) {
                held.relays = relays;
            }
        });
        let draft = Draft { lists, apply, ..Draft::of(vec![addresses_op(relay, &addresses)]) };
        self.keep(turn, draft).await.map_err(store_refusal)
    }

    async fn change_ways(&self, who: &str, change: impl FnOnce(&mut Ways)) -> Result<(), Refusal> {
        let turn = self.turn().await;
        let old = self.read(|state| state.ways.clone());
        let mut ways = old.clone();
        change(&mut ways);
        if ways == old {
            return Ok(());
        }
        let lists: Vec<Relisted> = self.read(|state| {
            // All lists are made anew when the recovery is over.
            if state.recovery.is_some() {
                return Vec::new();
            }
            let changed = Changed { ways: Some(&ways), ..Changed::default() };
            state.tenants.iter().flat_map(|(tenant, held)| relist(state, tenant, held, changed)).collect()
        });
        let shown = ways.gateways.iter().map(|g| &g.public[..]).collect::<Vec<_>>().join(" ");
        let detail = format!("link {} trunk {} gateways {shown}", ways.link.join(" "), ways.trunk.join(" "));
        let ops = vec![
            Op::Meta(WAYS.into(), packed(&ways)),
            audit(&TenantId::system(), self.now(), who, "ways.change", detail),
        ];
        let apply = Box::new(move |state: &mut State| state.ways = ways);
        self.keep(turn, Draft { lists, apply, ..Draft::of(ops) }).await.map_err(store_refusal)
    }

    /// One node's row as the store has it.
    pub(super) async fn node_row(&self, tenant: &TenantId, node: NodeId) -> Result<Option<NodeRow>, Refusal> {
        self.0.store.node(tenant, node).await.map_err(store_refusal)
    }
}

/// Puts durable lists in place.
pub(super) fn apply(state: &mut State, lists: &[Relisted]) {
    for new in lists {
        if let Some(held) = state.tenants.get_mut(&new.tenant) {
            held.sites.entry(new.site.clone()).or_default().list = Some((new.list.clone(), new.envelope.clone()));
        }
    }
}

/// Keeps the addresses that a node told.
pub(super) fn addresses_op(node: NodeId, addresses: &[String]) -> Op {
    Op::Meta(addresses_key(node), packed(&addresses))
}

/// Where a node's addresses are kept.
pub(super) fn addresses_key(node: NodeId) -> String {
    format!("addresses/{node}")
}

/// MessagePack with field names.
pub(super) fn packed(value: &impl serde::Serialize) -> Bytes {
    rmp_serde::to_vec_named(value).expect("what the office keeps is plain data").into()
}

fn no_such_node() -> Refusal {
    Refusal::new(404, "no_such_node", "there is no such node")
}

/// A gateway's address in its one spelling, its root as DER.
fn checked(address: GatewayAddress) -> Result<GatewayAddress, Refusal> {
    let public = address.public.trim_end_matches('/').to_owned();
    let rest = public.strip_prefix("https://").filter(|rest| matches!(host_of(rest), Some(Host::Ip(_) | Host::Dns(_))));
    if rest.is_none() {
        let message = format!("{:?} is not https://host:port", address.public);
        return Err(Refusal::new(422, "bad_address", message).field("public"));
    }
    let bad = || {
        let message = "the gateway's root is no certificate of an authority, in PEM or DER";
        Refusal::new(422, "bad_certificate", message).field("outer_root_pem")
    };
    let outer_root = match address.outer_root {
        None => None,
        Some(given) => {
            let der = if given.starts_with(b"-----BEGIN") {
                pem_to_certificates(&given).ok_or_else(bad)?.swap_remove(0)
            } else {
                CertificateDer::from(given.to_vec())
            };
            RootCertStore::empty().add(der.clone()).map_err(|_| bad())?;
            Some(Bytes::copy_from_slice(&der))
        }
    };
    Ok(GatewayAddress { public, outer_root })
}
