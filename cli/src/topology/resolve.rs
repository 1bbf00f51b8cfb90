//! From what was written to what is meant: names, parents, tenants, sites, loops, depth.

use super::{
    AcceptFrom, Described, Plan, PlannedNode, PlannedTenant,
    described::{AgentsPart, RelayPart},
};
use branchline_node::config::{LinkRate, Mistakes, Reach, SLOTS_DEFAULT, nearest};
use branchline_protocol::{
    id::{Role, TenantId},
    selector::Selector,
    wire::DEPTH_MAX,
};
use std::collections::BTreeMap;

/// Characters a computer's name may have (SPPM/002).
pub const COMPUTER_NAME_MAX: usize = 15;
/// Characters any other name may have.
pub const NAME_MAX: usize = 40;

/// Looks everything up and notes what is wrong; the plan is whole only if no mistake was noted.
pub fn resolve(described: &Described, mistakes: &mut Mistakes) -> Plan {
    let mut resolver = Resolver { described, tenants: tenants(described), names: BTreeMap::new(), mistakes };
    resolver.check_names();
    resolver.check_tenants();
    resolver.check_job();
    resolver.check_gateways();
    let tied = resolver.relays_from_the_top();
    let mut nodes = resolver.top();
    for index in tied {
        let relay = &described.relays[index];
        let node = resolver.relay(relay, &nodes);
        nodes.push(node);
    }
    for agents in &described.agents {
        let found = resolver.agents(agents, &nodes);
        nodes.extend(found);
    }
    if described.agents.is_empty() {
        resolver.mistakes.add("agents", "missing", "a topology without agents has no devices: write [[agents]]");
    }
    Plan {
        name: described.name.clone(),
        tenants: resolver.tenants,
        accept_from: described.server.as_ref().map_or(AcceptFrom::Any, |s| s.accept_from),
        nodes,
        job: described.job.clone(),
    }
}

/// The tenants of the file, or the default one.
fn tenants(described: &Described) -> Vec<PlannedTenant> {
    if described.tenants.is_empty() {
        let name = "main".parse().expect("a literal tenant name");
        return vec![PlannedTenant { name, sites: vec!["main".into()] }];
    }
    described.tenants.iter().map(|t| PlannedTenant { name: t.name.clone(), sites: t.sites.clone() }).collect()
}

struct Resolver<'d> {
    described: &'d Described,
    tenants: Vec<PlannedTenant>,
    /// Role and place of each name.
    names: BTreeMap<String, (Role, String)>,
    mistakes: &'d mut Mistakes,
}

impl Resolver<'_> {
    fn check_names(&mut self) {
        let d = self.described;
        if !d.name.is_empty() {
            self.check_shape("topology.name", &d.name, NAME_MAX);
        }
        if let Some(server) = &d.server {
            self.claim(Role::Server, "server", "name", &server.name);
        }
        for gateway in &d.gateways {
            self.claim(Role::Gateway, &gateway.place, "name", &gateway.name);
        }
        for relay in &d.relays {
            self.claim(Role::Relay, &relay.place, "name", &relay.name);
        }
        for agents in &d.agents {
            for name in &agents.names {
                if !self.claim(Role::Agent, &agents.place, agents.named_by, name) {
                    break; // the other names of this entry have the same fault
                }
            }
        }
    }

    fn check_shape(&mut self, path: &str, name: &str, max: usize) -> bool {
        let bytes_ok = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !bytes_ok || name.starts_with('-') || name.ends_with('-') {
            self.mistakes.add(path, "bad_name", format!("{name:?} has more than a-z, 0-9 and inner -"));
            return false;
        }
        if name.len() > max {
            let message = format!("{name:?} has {} characters, at most {max} are allowed", name.len());
            self.mistakes.add(path, "name_too_long", message);
            return false;
        }
        true
    }

    /// Takes a name for a node; false if it cannot have it.
    fn claim(&mut self, role: Role, place: &str, key: &str, name: &str) -> bool {
        if name.is_empty() {
            return false; // noted by the reader
        }
        let path = format!("{place}.{key}");
        let max = if role == Role::Agent { COMPUTER_NAME_MAX } else { NAME_MAX };
        if !self.check_shape(&path, name, max) {
            return false;
        }
        // As parents in bundles these words mean every gateway, and the server.
        let meant = [("gateway", Role::Gateway), ("server", Role::Server)].into_iter().find(|(word, _)| *word == name);
        if let Some((word, _)) = meant.filter(|(_, meant)| *meant != role) {
            self.mistakes.add(path, "reserved_name", format!("{name:?} as a name is for a {word} only"));
            return false;
        }
        if let Some((other, at)) = self.names.get(name) {
            self.mistakes.add(path, "duplicate_name", format!("{name:?} is already the {other} at {at}"));
            return false;
        }
        self.names.insert(name.to_string(), (role, place.to_string()));
        true
    }

    fn check_tenants(&mut self) {
        let d = self.described;
        for (i, tenant) in d.tenants.iter().enumerate() {
            // A bad name was read as the placeholder `system` and is noted already.
            let bad = self.mistakes.iter().any(|m| m.path == format!("{}.name", tenant.place));
            if tenant.name == TenantId::system() && !bad {
                let path = format!("{}.name", tenant.place);
                self.mistakes.add(path, "reserved_name", "\"system\" is the installation's own tenant");
            }
            if !bad && d.tenants[..i].iter().any(|t| t.name == tenant.name) {
                let path = format!("{}.name", tenant.place);
                self.mistakes.add(path, "duplicate_name", format!("tenant {:?} is there twice", tenant.name.as_str()));
            }
            for (n, site) in tenant.sites.iter().enumerate() {
                let path = format!("{}.sites[{n}]", tenant.place);
                if self.check_shape(&path, site, NAME_MAX) && tenant.sites[..n].contains(site) {
                    self.mistakes.add(path, "duplicate_name", format!("site {site:?} is there twice"));
                }
            }
            let noted = self.mistakes.iter().any(|m| m.path == format!("{}.sites", tenant.place));
            if tenant.sites.is_empty() && !noted {
                let path = format!("{}.sites", tenant.place);
                self.mistakes.add(path, "empty", "a tenant has at least one site");
            }
        }
    }

    fn check_job(&mut self) {
        if let Err(e) = self.described.job.on.parse::<Selector>() {
            self.mistakes.add("job.on", "bad_selector", e.to_string());
        }
    }

    fn check_gateways(&mut self) {
        let wanted = self.described.server.as_ref().is_some_and(|s| s.accept_from == AcceptFrom::Gateway);
        if wanted && self.described.gateways.is_empty() {
            self.mistakes.add(
                "server.accept_from",
                "no_gateway",
                "no gateway to accept from: write [[gateway]] with its name",
            );
        }
    }

    /// Server and gateways.
    fn top(&self) -> Vec<PlannedNode> {
        let d = self.described;
        let system = |name: &str, role, parent| PlannedNode {
            name: name.to_string(),
            role,
            tenant: TenantId::system(),
            site: None,
            parent,
            path: vec![],
            reach: Reach::Direct,
            slots: SLOTS_DEFAULT,
            allow_above_300: false,
            link_rate: LinkRate::default(),
        };
        let Some(server) = &d.server else { return vec![] };
        let mut nodes = vec![PlannedNode {
            slots: server.slots,
            allow_above_300: server.allow_above_300,
            link_rate: server.link_rate,
            ..system(&server.name, Role::Server, None)
        }];
        nodes.extend(d.gateways.iter().map(|g| system(&g.name, Role::Gateway, Some(server.name.clone()))));
        nodes
    }

    /// Indices of the relays that hang on the server in the end, each after its parent. Notes loops and depth.
    fn relays_from_the_top(&mut self) -> Vec<usize> {
        let relays = &self.described.relays;
        let by_name: BTreeMap<&str, usize> =
            relays.iter().enumerate().rev().map(|(i, r)| (r.name.as_str(), i)).collect();
        let above = |i: usize| relays[i].parent.as_deref().and_then(|p| by_name.get(p)).copied();
        let mut told = vec![false; relays.len()];
        let mut depths: Vec<(usize, usize)> = vec![];
        for start in 0..relays.len() {
            let (mut chain, mut at) = (vec![start], start);
            while let Some(next) = above(at) {
                if chain.contains(&next) {
                    // Only the loop itself is told, once; what hangs on it is its casualty.
                    if next == start && !told[start] {
                        chain.iter().for_each(|i| told[*i] = true);
                        let names: Vec<&str> = chain.iter().chain([&next]).map(|i| relays[*i].name.as_str()).collect();
                        let path = format!("{}.parent", relays[start].place);
                        self.mistakes.add(path, "loop", format!("{} never reaches the server", names.join(" -> ")));
                    }
                    chain.clear();
                    break;
                }
                chain.push(next);
                at = next;
            }
            if !chain.is_empty() {
                depths.push((chain.len(), start));
            }
        }
        for &(depth, i) in depths.iter().filter(|(depth, _)| *depth == DEPTH_MAX + 1) {
            let path = format!("{}.parent", relays[i].place);
            self.mistakes.add(
                path,
                "too_deep",
                format!("{} links to the server, at most {DEPTH_MAX} are allowed", depth),
            );
        }
        depths.sort();
        depths.into_iter().map(|(_, i)| i).collect()
    }

    fn relay(&mut self, relay: &RelayPart, nodes: &[PlannedNode]) -> PlannedNode {
        let place = Place { place: &relay.place, parent: &relay.parent, tenant: &relay.tenant, site: &relay.site };
        let slots = (relay.slots, relay.allow_above_300);
        PlannedNode { link_rate: relay.link_rate, ..self.hang(Role::Relay, &relay.name, slots, &place, nodes) }
    }

    fn agents(&mut self, agents: &AgentsPart, nodes: &[PlannedNode]) -> Vec<PlannedNode> {
        let place = Place { place: &agents.place, parent: &agents.parent, tenant: &agents.tenant, site: &agents.site };
        let Some(first) = agents.names.first() else { return vec![] };
        let node = self.hang(Role::Agent, first, (SLOTS_DEFAULT, false), &place, nodes);
        let above =
            node.path.iter().filter(|n| self.names.get(*n).is_some_and(|(role, _)| *role == Role::Relay)).count();
        if above == DEPTH_MAX {
            let path = format!("{}.parent", agents.place);
            let message = format!("{} links to the server, at most {DEPTH_MAX} are allowed", above + 1);
            self.mistakes.add(path, "too_deep", message);
        }
        agents.names.iter().map(|name| PlannedNode { name: name.clone(), ..node.clone() }).collect()
    }

    /// Hangs a relay or agent on its parent.
    fn hang(
        &mut self,
        role: Role,
        name: &str,
        slots: (u16, bool),
        at: &Place<'_>,
        nodes: &[PlannedNode],
    ) -> PlannedNode {
        let parent = self.parent(at, nodes);
        let relay = parent.filter(|p| p.role == Role::Relay);
        let tenant = self.tenant(at, parent, relay);
        let site = tenant.as_ref().and_then(|tenant| self.site(at, relay, tenant));
        let mut path = parent.map(|p| p.path.clone()).unwrap_or_default();
        path.extend(parent.filter(|p| p.role != Role::Server).map(|p| p.name.clone()));
        PlannedNode {
            name: name.to_string(),
            role,
            tenant: tenant.unwrap_or_else(TenantId::system),
            site,
            parent: parent.map(|p| p.name.clone()),
            path,
            reach: if parent.is_some_and(|p| p.role == Role::Gateway) { Reach::Gateway } else { Reach::Direct },
            slots: slots.0,
            allow_above_300: slots.1,
            link_rate: LinkRate::default(),
        }
    }

    fn parent<'n>(&mut self, at: &Place<'_>, nodes: &'n [PlannedNode]) -> Option<&'n PlannedNode> {
        let server = self.described.server.as_ref()?;
        let path = format!("{}.parent", at.place);
        let wanted = at.parent.as_deref().unwrap_or(&server.name);
        match self.names.get(wanted) {
            None => {
                let names = self.names.iter().filter(|(_, (role, _))| *role != Role::Agent).map(|(n, _)| n.as_str());
                let near = nearest(wanted, names).map(|n| format!("; did you mean {n:?}?")).unwrap_or_default();
                self.mistakes.add(path, "unknown_parent", format!("no node is named {wanted:?}{near}"));
                return None;
            }
            Some((Role::Agent, _)) => {
                let message = format!("{wanted:?} is an agent; a parent is the server, a gateway or a relay");
                self.mistakes.add(path, "not_a_parent", message);
                return None;
            }
            Some((Role::Server, _)) if server.accept_from == AcceptFrom::Gateway => {
                let message =
                    format!("server {wanted:?} accepts links from the gateway only; name a gateway or a relay");
                self.mistakes.add(path, "not_accepted", message);
                return None;
            }
            Some(_) => {}
        }
        // Absent when the parent hangs in a loop, which is noted.
        nodes.iter().find(|n| n.name == wanted)
    }

    fn tenant(
        &mut self,
        at: &Place<'_>,
        parent: Option<&PlannedNode>,
        relay: Option<&PlannedNode>,
    ) -> Option<TenantId> {
        let path = format!("{}.tenant", at.place);
        let Some(wanted) = at.tenant else {
            return match (relay, self.tenants.as_slice()) {
                (Some(relay), _) => Some(relay.tenant.clone()),
                (None, [only]) => Some(only.name.clone()),
                // Without its parent nobody knows whose it is; the parent's mistake is noted.
                (None, _) if parent.is_none() => None,
                (None, _) => {
                    self.mistakes.add(path, "missing", "there are several tenants: say whose it is");
                    None
                }
            };
        };
        if !self.tenants.iter().any(|t| t.name == *wanted) {
            if !self.mistakes.iter().any(|m| m.path == path) {
                let near = nearest(wanted.as_str(), self.tenants.iter().map(|t| t.name.as_str()));
                let near = near.map(|n| format!("; did you mean {n:?}?")).unwrap_or_default();
                self.mistakes.add(path, "unknown_tenant", format!("there is no tenant {:?}{near}", wanted.as_str()));
            }
            return None;
        }
        if let Some(relay) = relay.filter(|r| r.tenant != *wanted) {
            let message = format!(
                "relay {:?} is tenant {:?}'s and serves no other, such as {:?}",
                relay.name,
                relay.tenant.as_str(),
                wanted.as_str()
            );
            self.mistakes.add(path, "two_tenants", message);
            return None;
        }
        Some(wanted.clone())
    }

    fn site(&mut self, at: &Place<'_>, relay: Option<&PlannedNode>, tenant: &TenantId) -> Option<String> {
        let sites = &self.tenants.iter().find(|t| t.name == *tenant)?.sites;
        let Some(wanted) = at.site else {
            return relay.and_then(|r| r.site.clone()).or_else(|| sites.first().cloned());
        };
        if sites.contains(wanted) {
            return Some(wanted.clone());
        }
        let near = nearest(wanted, sites.iter().map(String::as_str)).map(|n| format!("; did you mean {n:?}?"));
        let message = format!("tenant {:?} has no site {wanted:?}{}", tenant.as_str(), near.unwrap_or_default());
        self.mistakes.add(format!("{}.site", at.place), "unknown_site", message);
        None
    }
}

/// Where a relay or agent is said to hang.
struct Place<'d> {
    place: &'d str,
    parent: &'d Option<String>,
    tenant: &'d Option<TenantId>,
    site: &'d Option<String>,
}
