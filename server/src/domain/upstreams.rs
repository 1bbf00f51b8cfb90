//! Who may be a parent at a site, and by which ways. Pure.
//!
//! A site's list names the relays that bundles of the site were made for, then the server. The server is named with
//! its direct addresses, its gateways or both, as those bundles lead: devices of a site behind a gateway are never
//! told to knock at an address they cannot reach.

use super::{
    documents::Change,
    office::{State, TenantState},
};
use crate::store::Op;
use branchline_protocol::{
    document::{Document, Kind, Upstream, UpstreamList},
    id::{NodeId, Role, TenantId},
    order::Envelope,
    refusal::Refusal,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A gateway's public address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayAddress {
    /// `https://host:port`.
    pub public: String,
    /// DER certificate that vouches for the gateway's public certificate; `None` for the system tenant's authority.
    pub outer_root: Option<Bytes>,
}

/// The ways to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ways {
    /// `host:port` of its link listener.
    pub link: Vec<String>,
    /// `host:port` of its trunk listener, for gateways.
    pub trunk: Vec<String>,
    /// Gateways that lead to it.
    pub gateways: Vec<GatewayAddress>,
}

/// A relay as a parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayWays {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub site: String,
    /// `host:port` of its link listener.
    pub addresses: Vec<String>,
}

/// The parents that a site's bundles were made for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parents {
    /// The server's own address.
    pub direct: bool,
    /// A gateway.
    pub gateway: bool,
    /// Relays, in order of their first bundle.
    pub relays: Vec<NodeId>,
}

/// The parent a bundle leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The server by its own addresses.
    Server,
    /// The server through a gateway.
    Gateway,
    /// The server either way.
    Any,
    /// A relay.
    Relay(NodeId),
}

impl Parents {
    /// These and one more.
    pub fn with(&self, parent: Parent) -> Parents {
        let mut parents = self.clone();
        match parent {
            Parent::Server => parents.direct = true,
            Parent::Gateway => parents.gateway = true,
            Parent::Any => (parents.direct, parents.gateway) = (true, true),
            Parent::Relay(relay) if !parents.relays.contains(&relay) => parents.relays.push(relay),
            Parent::Relay(_) => {}
        }
        parents
    }

    /// How the server is reached from the site, (directly, through gateways): both while no bundle has said.
    pub fn server_ways(&self) -> (bool, bool) {
        if self.direct || self.gateway { (self.direct, self.gateway) } else { (true, true) }
    }
}

impl Ways {
    /// The server as a parent.
    pub fn server(&self, id: NodeId, name: &str, (direct, gateway): (bool, bool)) -> Upstream {
        let gateways = || self.gateways.iter().map(|g| g.public.clone()).collect();
        Upstream {
            id,
            role: Role::Server,
            name: name.into(),
            direct: if direct { self.link.clone() } else { Vec::new() },
            gateways: if gateway { gateways() } else { Vec::new() },
            near: false,
        }
    }

    /// A bundle's upstreams: its parent, and behind a relay the server if the site reaches it. 409 `no_route` or
    /// `no_gateway` when there is no way to the parent.
    pub fn for_bundle(
        &self,
        parent: Parent,
        server: (NodeId, &str),
        parents: &Parents,
        relays: &BTreeMap<NodeId, RelayWays>,
    ) -> Result<Vec<Upstream>, Refusal> {
        let (id, name) = server;
        let no_route = |who: &str| {
            let message = format!("{who} has told no address that children could dial: start it first");
            Refusal::new(409, "no_route", message).field("parent")
        };
        let reachable = |up: &Upstream| !up.direct.is_empty() || !up.gateways.is_empty();
        let found = match parent {
            Parent::Relay(relay) => {
                let relay = relays.get(&relay).map(|ways| ways.upstream(relay, false)).filter(reachable);
                let fallback = self.server(id, name, parents.server_ways());
                let mut list = vec![relay.ok_or_else(|| no_route("the relay"))?];
                list.extend(Some(fallback).filter(reachable));
                return Ok(list);
            }
            Parent::Server => self.server(id, name, (true, false)),
            Parent::Gateway => self.server(id, name, (false, true)),
            Parent::Any => self.server(id, name, (true, true)),
        };
        if reachable(&found) {
            return Ok(vec![found]);
        }
        Err(match parent {
            Parent::Gateway => {
                Refusal::new(409, "no_gateway", "no gateway's public address is registered").field("parent")
            }
            _ => no_route("the server"),
        })
    }
}

impl RelayWays {
    /// The relay as a parent; `near`: of its own site.
    pub fn upstream(&self, id: NodeId, near: bool) -> Upstream {
        let (name, direct) = (self.name.clone(), self.addresses.clone());
        Upstream { id, role: Role::Relay, name, direct, gateways: Vec::new(), near }
    }
}

/// A site's list that became another one.
#[derive(Clone, Debug)]
pub struct Relisted {
    /// Whose.
    pub tenant: TenantId,
    /// The site.
    pub site: String,
    /// Its list.
    pub list: UpstreamList,
    /// The list, signed.
    pub envelope: Envelope,
}

impl Relisted {
    /// What keeps it.
    pub fn op(&self) -> Op {
        let (tenant, site) = (self.tenant.clone(), self.site.clone());
        Op::Document(tenant, Kind::Upstreams, site, self.list.version(), self.envelope.clone())
    }

    /// What is told of it.
    pub fn change(&self) -> Change {
        Change { tenant: self.tenant.clone(), kind: Kind::Upstreams, site: self.site.clone() }
    }
}

/// What is about to change; what is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changed<'c> {
    /// The ways to the server.
    pub ways: Option<&'c Ways>,
    /// A tenant's relays.
    pub relays: Option<&'c BTreeMap<NodeId, RelayWays>>,
    /// A site, new or with other parents.
    pub site: Option<(&'c str, &'c Parents)>,
    /// Every list is made anew in this term, the same or not.
    pub anew: Option<u32>,
}

/// The lists of one tenant that become others, each a version newer and signed.
pub(super) fn relist(state: &State, tenant: &TenantId, held: &TenantState, changed: Changed<'_>) -> Vec<Relisted> {
    let ways = changed.ways.unwrap_or(&state.ways);
    let relays = changed.relays.unwrap_or(&held.relays);
    let one = |site: &str, parents: &Parents| {
        let old = held.sites.get(site).and_then(|site| site.list.as_ref()).map(|(list, _)| list);
        // The site's own relays come first: one that only its relay was given as a parent is that relay's way up.
        let mut near: Vec<(NodeId, &RelayWays)> =
            parents.relays.iter().filter_map(|id| relays.get(id).map(|relay| (*id, relay))).collect();
        near.sort_by_key(|(_, relay)| relay.site != site);
        let upstreams: Vec<Upstream> = near
            .into_iter()
            .map(|(id, relay)| relay.upstream(id, relay.site == site))
            .chain([ways.server(state.server, &state.server_name, parents.server_ways())])
            .collect();
        if changed.anew.is_none() && old.is_some_and(|old| old.upstreams == upstreams) {
            return None;
        }
        let version = old.map_or(1, |old| old.version + 1);
        let term = changed.anew.unwrap_or(state.term);
        let list = UpstreamList { tenant: tenant.clone(), site: site.into(), term, version, upstreams };
        let envelope = list.seal(&held.keys.signer);
        Some(Relisted { tenant: tenant.clone(), site: site.into(), list, envelope })
    };
    match changed.site {
        Some((site, parents)) => one(site, parents).into_iter().collect(),
        None => held.sites.iter().filter_map(|(site, held)| one(site, &held.parents)).collect(),
    }
}
