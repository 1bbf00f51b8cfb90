//! Names: by whom they are borne, and when two are one.

use super::control::NodeView;
use branchline_protocol::id::NodeId;
use std::collections::BTreeMap;

/// Names of a tenant's nodes by id.
pub type Names = BTreeMap<NodeId, String>;

/// Names are one whatever their case, as the store keeps them unique.
pub fn same_name(name: &str, words: &str) -> bool {
    // One is sought among all of a tenant's, nearly all of which are of letters that need no folding.
    match name.is_ascii() && words.is_ascii() {
        true => name.eq_ignore_ascii_case(words),
        false => name.to_lowercase() == words.to_lowercase(),
    }
}

/// Everybody's names.
pub fn names(nodes: &[NodeView]) -> Names {
    nodes.iter().map(|view| (view.node.id, view.node.name.clone())).collect()
}
