//! A topology with everything looked up: what `up` starts.

use super::{AcceptFrom, JobPart};
use branchline_node::config::{LinkRate, Reach};
use branchline_protocol::id::{Role, TenantId};

/// A checked topology.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// Its tenants, in the order of the file.
    pub tenants: Vec<PlannedTenant>,
    /// Whom the server's link port accepts.
    pub accept_from: AcceptFrom,
    /// Every node in the order in which they start: server, gateways, relays from the top down, agents.
    pub nodes: Vec<PlannedNode>,
    /// The job.
    pub job: JobPart,
}

/// A tenant and its sites.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTenant {
    /// Its name.
    pub name: TenantId,
    /// Its sites.
    pub sites: Vec<String>,
}

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedNode {
    /// Its name, unique in the topology.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Whose it is; `system` for server and gateways.
    pub tenant: TenantId,
    /// Its site; none for server and gateways.
    pub site: Option<String>,
    /// The node above it by name; none for the server.
    pub parent: Option<String>,
    /// Nodes between the server and it by name, nearest the server first.
    pub path: Vec<String>,
    /// How it reaches its upstream.
    pub reach: Reach,
    /// Persistent links (server and relay).
    pub slots: u16,
    /// Whether more than 300 is meant.
    pub allow_above_300: bool,
    /// Links taken per second, and at once (server and relay).
    pub link_rate: LinkRate,
}

impl Plan {
    /// Nodes of a role, in order.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &PlannedNode> {
        self.nodes.iter().filter(move |n| n.role == role)
    }

    /// Agents of a tenant, in order.
    pub fn devices<'p>(&'p self, tenant: &'p TenantId) -> impl Iterator<Item = &'p PlannedNode> {
        self.of(Role::Agent).filter(move |n| n.tenant == *tenant)
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Option<&PlannedNode> {
        self.nodes.iter().find(|n| n.name == name)
    }
}
