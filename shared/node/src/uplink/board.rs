//! How a node's way up stands, for `/getstatus` and `/metrics` of its private port (TOP-3, TOP-4).

use super::path::Way;
use crate::{link::dial::Route, metrics::Metrics};
use branchline_protocol::id::NodeId;
use metrics::Counter;
use serde::Serialize;
use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

/// Where a node is on its way up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It dials, or waits to dial, for the first time.
    #[default]
    Dialling,
    /// A link stands.
    Connected,
    /// The last poll ended in good order, the next one has its instant.
    BetweenPolls,
    /// The link was lost; the next dial waits for its turn.
    Lost,
    /// A parent was reached and said no.
    Refused,
    /// No parent could be reached by any way that may be used.
    NoRoute,
}

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// See [`State`].
    pub state: State,
    /// `direct` or `gateway`: the way of the present link, or of the last poll.
    pub route: Option<&'static str>,
    /// Its address.
    pub address: Option<String>,
    /// Its parent.
    pub parent: Option<NodeId>,
    /// `persistent` or `polling`.
    pub link: Option<&'static str>,
    /// Why there is no link.
    pub why: Option<String>,
    /// How often somebody else answered at a parent's address, since the start.
    pub impostors: u64,
}

/// One uplink's standing and counters, shared with whoever shows them.
#[derive(Clone)]
pub struct Board {
    shown: Arc<RwLock<Standing>>,
    impostors: Counter,
    moves: Counter,
    direct: Counter,
    gateway: Counter,
    dialled: [Arc<AtomicU64>; 2],
}

impl Board {
    /// With the counters `branchline_uplink_impostors_total`, `branchline_uplink_moves_total` and
    /// `branchline_uplink_dials_total` by route.
    pub fn new(metrics: &Metrics) -> Board {
        let dials = |route| metrics.counted("branchline_uplink_dials_total", &[("route", route)]);
        let ((direct, by_direct), (gateway, by_gateway)) = (dials("direct"), dials("gateway"));
        Board {
            shown: Arc::default(),
            impostors: metrics.counter("branchline_uplink_impostors_total", &[]),
            moves: metrics.counter("branchline_uplink_moves_total", &[]),
            direct,
            gateway,
            dialled: [by_direct, by_gateway],
        }
    }

    /// As it stands now.
    pub fn standing(&self) -> Standing {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Dials so far, by any way.
    pub fn dialled(&self) -> u64 {
        self.dialled.iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn dials(&self, way: &Way) {
        if word(way) == "gateway" { self.gateway.increment(1) } else { self.direct.increment(1) }
    }

    pub(super) fn impostor(&self) {
        self.impostors.increment(1);
        self.change(|shown| shown.impostors += 1);
    }

    pub(super) fn moves(&self) {
        self.moves.increment(1);
    }

    pub(super) fn up(&self, way: &Way, poll: bool) {
        let (Route::Direct(address) | Route::Gateway(address)) = &way.route;
        self.change(|shown| {
            let link = Some(if poll { "polling" } else { "persistent" });
            let (route, address, parent) = (Some(word(way)), Some(address.clone()), Some(way.parent));
            *shown = Standing {
                state: State::Connected,
                route,
                address,
                parent,
                link,
                why: None,
                impostors: shown.impostors,
            };
        });
    }

    pub(super) fn down(&self, state: State, why: &str) {
        self.change(|shown| {
            let why = (state != State::BetweenPolls).then(|| why.to_owned());
            *shown = match state {
                State::BetweenPolls => Standing { state, why, ..shown.clone() },
                _ => Standing { state, why, impostors: shown.impostors, ..Standing::default() },
            };
        });
    }

    fn change(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.shown.write().unwrap_or_else(PoisonError::into_inner));
    }
}

fn word(way: &Way) -> &'static str {
    match way.route {
        Route::Direct(_) => "direct",
        Route::Gateway(_) => "gateway",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_protocol::id::Role;

    #[test]
    fn top_3_without_a_way_the_standing_is_no_route_and_names_no_parent() {
        let board = Board::new(&Metrics::new());
        assert_eq!(board.standing().state, State::Dialling);
        let way = Way {
            parent: NodeId(uuid::Uuid::from_u128(1)),
            role: Role::Server,
            route: Route::Gateway("https://gw".into()),
        };
        board.up(&way, true);
        board.impostor();
        board.down(State::BetweenPolls, "done");
        let between = board.standing();
        assert_eq!((between.route, between.link, between.why), (Some("gateway"), Some("polling"), None));
        board.down(State::NoRoute, "connect to 10.0.0.1:13000: refused");
        let json = serde_json::to_value(board.standing()).unwrap();
        assert_eq!((&json["state"], &json["route"]), (&"no_route".into(), &serde_json::Value::Null));
        assert_eq!((&json["parent"], &json["impostors"]), (&serde_json::Value::Null, &1.into()));
        assert!(json["why"].as_str().unwrap().contains("10.0.0.1"));
    }
}
