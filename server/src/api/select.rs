//! What a selector is asked about: a device as the server knows it now.

use super::control::NodeView;
use branchline_protocol::{id::NodeId, selector::Candidate};
use std::collections::BTreeMap;

/// Names of a tenant's nodes by id.
pub type Names = BTreeMap<NodeId, String>;

/// One device with the names of the relays it may stand below.
pub struct Target<'a> {
    /// The device.
    pub view: &'a NodeView,
    /// Everybody's names.
    pub names: &'a Names,
}

impl Candidate for Target<'_> {
    fn in_site(&self, site: &str) -> bool {
        self.view.node.site == site
    }

    fn below(&self, relay: &str) -> bool {
        let is = |id: &NodeId| self.names.get(id).is_some_and(|name| same_name(name, relay)) || is_id(*id, relay);
        self.view.standing.route.iter().any(is)
    }

    fn is(&self, device: &str) -> bool {
        same_name(&self.view.node.name, device) || is_id(self.view.node.id, device)
    }

    fn tagged(&self, tag: &str) -> bool {
        self.view.node.tags.iter().any(|t| t == tag)
    }
}

/// Names are one whatever their case, as the store keeps them unique.
pub fn same_name(name: &str, words: &str) -> bool {
    name.to_lowercase() == words.to_lowercase()
}

fn is_id(id: NodeId, words: &str) -> bool {
    words.parse::<NodeId>().is_ok_and(|named| named == id)
}

/// Everybody's names.
pub fn names(nodes: &[NodeView]) -> Names {
    nodes.iter().map(|view| (view.node.id, view.node.name.clone())).collect()
}
