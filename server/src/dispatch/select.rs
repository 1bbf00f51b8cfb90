//! Which devices of a tenant a selector means now (pure): of its list as of its jobs.

use super::{core::TenantState, standing::standing};
use crate::store::NodeRow;
use branchline_protocol::{
    id::{NodeId, Role},
    selector::{Candidate, Selector},
    time::Millis,
};
use std::collections::BTreeMap;

/// A device as a selector sees it.
pub struct Seen<'s> {
    /// Its tenant.
    pub state: &'s TenantState,
    /// Its row.
    pub row: &'s NodeRow,
}

impl Candidate for Seen<'_> {
    fn in_site(&self, site: &str) -> bool {
        self.row.site == site
    }

    fn below(&self, relay: &str) -> bool {
        let route = self.state.directory.get(self.row.id).map_or(&self.row.route, |e| &e.via);
        let name = |id: &NodeId| self.state.nodes.get(id).map_or("", |n| &n.name);
        route.iter().any(|id| means(relay, *id, name(id)))
    }

    fn is(&self, device: &str) -> bool {
        means(device, self.row.id, &self.row.name)
    }

    fn tagged(&self, tag: &str) -> bool {
        self.row.tags.iter().any(|t| t == tag)
    }
}

/// Whether words mean a node: by its id or its name.
pub fn means(words: &str, id: NodeId, name: &str) -> bool {
    same_name(name, words) || words.parse::<NodeId>().is_ok_and(|named| named == id)
}

/// Names are one whatever their case, as the store keeps them unique.
fn same_name(name: &str, words: &str) -> bool {
    // One is sought among all of a tenant's, nearly all of which are of letters that need no folding.
    match name.is_ascii() && words.is_ascii() {
        true => name.eq_ignore_ascii_case(words),
        false => name.to_lowercase() == words.to_lowercase(),
    }
}

/// The devices that a selector means, by name; revoked ones are none.
pub fn chosen(state: &TenantState, on: &Selector) -> Vec<NodeId> {
    let devices =
        state.nodes.values().map(Box::as_ref).filter(|row| row.role == Role::Agent && row.revoked_at.is_none());
    let mut chosen: Vec<&NodeRow> = devices.filter(|row| on.matches(&Seen { state, row })).collect();
    chosen.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    chosen.into_iter().map(|row| row.id).collect()
}

/// How many of the devices that a selector means stand how now.
pub fn counts(state: &TenantState, on: &Selector, now: Millis) -> BTreeMap<&'static str, u64> {
    let mut counts: BTreeMap<_, _> = ["offline", "online", "suspended", "unknown"].map(|word| (word, 0)).into();
    let devices =
        state.nodes.values().map(Box::as_ref).filter(|row| row.role == Role::Agent && row.revoked_at.is_none());
    for row in devices.filter(|row| on.matches(&Seen { state, row })) {
        *counts.entry(standing(state, row, now).state).or_default() += 1;
    }
    counts
}

/// The device that these words mean: an id, or the name of one that was not revoked, for a name that a revoked device bore
/// means its successor.
pub fn device<'n>(nodes: &'n BTreeMap<NodeId, Box<NodeRow>>, words: &str) -> Option<&'n NodeRow> {
    let is_device = |row: &&NodeRow| row.role == Role::Agent;
    let by_id = words.parse().ok().and_then(|id: NodeId| nodes.get(&id)).map(Box::as_ref).filter(is_device);
    let named = |row: &&NodeRow| row.revoked_at.is_none() && same_name(&row.name, words);
    by_id.or_else(|| nodes.values().map(Box::as_ref).filter(is_device).find(named))
}
