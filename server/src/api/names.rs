//! Names of nodes, for whoever reads an answer.

use super::control::NodeView;
use branchline_protocol::id::NodeId;
use std::collections::BTreeMap;

/// Names of a tenant's nodes by id.
pub type Names = BTreeMap<NodeId, String>;

/// The names of these nodes.
pub fn names(nodes: &[NodeView]) -> Names {
    nodes.iter().map(|view| (view.node.id, view.node.name.clone())).collect()
}
