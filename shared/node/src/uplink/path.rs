//! Which way a node goes up, and when it looks for a better one (pure; TOP-3, TOP-4).
//!
//! ```text
//!   direct: relays of the site, shared by hash │ other parents, in the signed list's order │ gateways, in its order
//!   ────────────────────────────────────────────────────────────────────────────────────────────────► tried in order
//! ```
//!
//! Every dial begins at the front, so a poll is back on the best way as soon as that is open. A held link by another
//! way than the best probes the better ones: between half and the whole of its interval, each node at its own moment.
//! A probe is a connection with the pinned identity verified and nothing said; only then is the link given up for it.
//!
//! A parent that is restarted refuses connections for a few seconds. So whoever lost a held link stays with that parent for
//! its first dials, as long as its machine answers that nobody listens; one that is silent is passed over at once.
//!
//! Relays that stand at the node's own site are equals. Each node puts them in an order of its own, by a hash of its id
//! and theirs: so they share its kind evenly, and when one dies its nodes are shared by the others.

use crate::{config::Reach, link::dial::Route};
use branchline_protocol::{
    document::Upstream,
    hash::Hash,
    id::{NodeId, Role},
    time::{Mono, Now},
};
use std::{cmp::Reverse, collections::BTreeMap};

/// A better way whose parent refused is not probed for so long, in milliseconds: it would be given up for nothing again.
pub const REFUSED_MS: u64 = 3_600_000;
/// Between two probes at most so long, unless configured otherwise, in milliseconds: three of them fit into an hour.
pub const PROBE_MS: u64 = 900_000;

/// So many dials after the loss of a held link go to no other parent where its own refuses them: by the back-off the next
/// one comes 5 to 9 s after the first.
pub const RESTART_DIALS: u8 = 3;

/// One address of one parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The parent: the only certificate that is accepted there.
    pub parent: NodeId,
    /// Its role.
    pub role: Role,
    /// Where, and whether through a gateway.
    pub route: Route,
}

/// A parent and how it is reached: its addresses are equals.
type Place = (NodeId, bool);

impl Way {
    fn place(&self) -> Place {
        (self.parent, matches!(self.route, Route::Gateway(_)))
    }
}

/// Every way of a signed upstream list that may be used, the best first.
pub fn ways(me: NodeId, upstreams: &[Upstream], reach: Reach) -> Vec<Way> {
    let way = |up: &Upstream, route| Way { parent: up.id, role: up.role, route };
    let (mut near, others): (Vec<_>, Vec<_>) = upstreams.iter().partition(|up| up.near);
    near.sort_by_cached_key(|up| Reverse(weight(me, up.id)));
    let mut all = Vec::new();
    if reach != Reach::Gateway {
        for up in near.iter().chain(&others) {
            all.extend(up.direct.iter().map(|address| way(up, Route::Direct(address.clone()))));
        }
    }
    if reach != Reach::Direct {
        for up in upstreams {
            all.extend(up.gateways.iter().map(|url| way(up, Route::Gateway(url.clone()))));
        }
    }
    all
}

/// The same without what is behind it, for one who has no id yet.
pub fn routes(upstreams: &[Upstream], reach: Reach) -> Vec<Route> {
    ways(NodeId(uuid::Uuid::nil()), upstreams, reach).into_iter().map(|way| way.route).collect()
}

/// The highest of all parents' is the one that a node prefers.
fn weight(me: NodeId, parent: NodeId) -> Hash {
    Hash::of_parts(&[me.bytes(), parent.bytes()])
}

/// Where a node's link goes, and where it could go.
#[derive(Clone, Debug)]
pub struct Path {
    me: NodeId,
    ways: Vec<Way>,
    /// By which way a held link goes; polls are not held.
    held: Option<Way>,
    /// Where a held link was lost, and how many dials are for that parent alone.
    lost: Option<(Place, u8)>,
    probe_ms: u64,
    due: Option<Mono>,
    refused: BTreeMap<Place, Mono>,
}

impl Path {
    /// A node without ways.
    pub fn new(me: NodeId) -> Path {
        Path { me, ways: Vec::new(), held: None, lost: None, probe_ms: PROBE_MS, due: None, refused: BTreeMap::new() }
    }

    /// Another list, switch or interval. A held link that another list no longer has, or for which it has a better way,
    /// is to go within `spread_ms`.
    pub fn configure(
        &mut self,
        now: Now,
        upstreams: &[Upstream],
        reach: Reach,
        probe_ms: u64,
        spread_ms: u64,
        chance: u64,
    ) {
        let ways = ways(self.me, upstreams, reach);
        if ways == self.ways && probe_ms == self.probe_ms {
            return;
        }
        self.refused.retain(|place, _| ways.iter().any(|way| way.place() == *place));
        (self.ways, self.probe_ms) = (ways, probe_ms.max(1));
        if self.held.is_some() {
            self.due = (!self.better(now).is_empty()).then(|| now.mono.plus(chance % spread_ms.max(1)));
        }
    }

    /// Every way, in the order in which a dial tries them.
    pub fn ways(&self) -> &[Way] {
        &self.ways
    }

    /// A link stands by this way; `held`: it is no poll.
    pub fn up(&mut self, now: Now, way: &Way, held: bool, chance: u64) {
        self.refused.remove(&way.place());
        self.lost = None;
        self.held = held.then(|| way.clone());
        self.schedule(now, chance);
    }

    /// It is no more.
    pub fn down(&mut self) {
        (self.held, self.due) = (None, None);
    }

    /// The same, and neither end had said no: its parent may be there again in a moment.
    pub fn broke(&mut self) {
        self.lost = self.held.as_ref().map(|way| (way.place(), RESTART_DIALS));
        self.down();
    }

    /// A dial was refused by the machine of this way: nobody listens there. Whether the dial ends with that, because it is
    /// the last address of the parent whose link broke, and it is early.
    pub fn waits_for(&mut self, way: &Way) -> bool {
        let place = way.place();
        let last = self.ways.iter().rfind(|other| other.place() == place) == Some(way);
        match &mut self.lost {
            Some((lost, dials)) if *lost == place && last && *dials > 0 => {
                *dials -= 1;
                true
            }
            _ => false,
        }
    }

    /// A parent that was reached said no, for a reason of its own.
    pub fn refused(&mut self, now: Now, way: &Way) {
        self.refused.insert(way.place(), now.mono.plus(REFUSED_MS));
    }

    /// When to probe the better ways, if there are any.
    pub fn next_probe(&self) -> Option<Mono> {
        self.due
    }

    /// The ways that are better than the held link's, the best first. One that is on no list any more has no rank at
    /// all: only listed parents are parents.
    pub fn better(&self, now: Now) -> Vec<Way> {
        let Some(held) = &self.held else { return Vec::new() };
        let first = self.ways.iter().position(|way| way.place() == held.place());
        let rank = first.filter(|_| self.ways.contains(held)).unwrap_or(self.ways.len());
        let shunned = |way: &Way| self.refused.get(&way.place()).is_some_and(|until| *until > now.mono);
        self.ways[..rank].iter().filter(|way| !shunned(way)).cloned().collect()
    }

    /// None of them could be reached.
    pub fn probed_in_vain(&mut self, now: Now, chance: u64) {
        self.schedule(now, chance);
    }

    fn schedule(&mut self, now: Now, chance: u64) {
        // Not by `better`: what is shunned now may be open again by then.
        let best = self.ways.first().map(Way::place);
        let worse = self.held.as_ref().is_some_and(|held| best.is_some_and(|best| best != held.place()));
        let half = self.probe_ms / 2;
        self.due = worse.then(|| now.mono.plus(half + chance % (self.probe_ms - half + 1)));
    }
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
