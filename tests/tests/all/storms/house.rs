//! The parents' end: server and relays with their doors, and the gateway before the server.

use super::fleet::at;
use branchline_gateway::{backoff::Backoff, config::Limits, flood::Flood};
use branchline_node::{
    config::LinkRate,
    downstream::{
        admission::{Admission, AdmissionConfig, Ask, Cap, Effect, Event, Lease, Want},
        rate::{Caller, Rate},
    },
    time::TestClock,
};
use branchline_protocol::{id::NodeId, time::Mono};
use std::sync::Arc;

/// Slots of server and relays.
pub const SLOTS: i64 = 300;
/// Connections to the server.
const TRUNKS: usize = 2;

/// A server or a relay.
pub struct Parent {
    pub alive: bool,
    rate: Rate,
    pub admission: Admission,
    /// When it did a handshake, in all its lives.
    pub handshakes: Vec<u64>,
    /// When it turned somebody away before one.
    pub turned_away: Vec<u64>,
}

/// What an admitted child has; and whose slot it took.
pub struct Placed {
    pub lease: Option<Lease>,
    pub displaced: Option<(u64, Lease)>,
}

impl Parent {
    pub fn new(now: u64) -> Parent {
        let (rate, admission) = Parent::life(now);
        Parent { alive: true, rate, admission, handshakes: Vec::new(), turned_away: Vec::new() }
    }

    fn life(now: u64) -> (Rate, Admission) {
        let cap = Cap::new(SLOTS, false).expect("within the bounds");
        (Rate::new(LinkRate::default(), Mono(now)), Admission::new(AdmissionConfig::new(cap)))
    }

    /// Its process starts, and knows nothing of before.
    pub fn start(&mut self, now: u64) {
        (self.rate, self.admission) = Parent::life(now);
        self.alive = true;
    }

    /// Links that it has.
    pub fn children(&self) -> u64 {
        let pools = self.admission.pools();
        u64::from(self.admission.gauge().used) + u64::from(pools.relays) + u64::from(pools.polls)
    }

    pub fn knock(&mut self, now: u64, caller: Caller) -> Result<(), u64> {
        let told = self.rate.knock(Mono(now), caller);
        if told.is_ok() { &mut self.handshakes } else { &mut self.turned_away }.push(now);
        told
    }

    /// As the gatekeeper does: one who is deferred is served as a poll, out of the polls' pool.
    ///
    /// # Errors
    /// Milliseconds after which to come again.
    pub fn admit(&mut self, now: u64, ask: Ask) -> Result<Placed, u64> {
        let mut effects = self.event(now, Event::Ask(ask.clone()));
        let mut displaced = None;
        effects.retain(|effect| match effect {
            Effect::Displace { session, lease } if *session != ask.session => {
                displaced = Some((*session, *lease));
                false
            }
            Effect::Wake { .. } | Effect::Replaced { .. } => false,
            _ => true,
        });
        let lease = match effects[..] {
            [Effect::Admitted { .. }] if ask.want == Want::Poll => Some(self.admission.lease(ask.node)),
            [Effect::Admitted { .. }] => None,
            [Effect::Busy { retry_after_ms, .. }] => return Err(retry_after_ms),
            [Effect::Deferred { lease, .. }] => {
                match self.event(now, Event::Ask(Ask { want: Want::Poll, ..ask }))[..] {
                    [Effect::Admitted { .. }] => Some(lease),
                    [Effect::Busy { retry_after_ms, .. }] => return Err(retry_after_ms),
                    ref other => panic!("{other:?}"),
                }
            }
            ref other => panic!("{other:?}"),
        };
        Ok(Placed { lease, displaced })
    }

    pub fn gone(&mut self, now: u64, node: NodeId, session: u64) {
        self.event(now, Event::Gone { node, session });
    }

    fn event(&mut self, now: u64, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.admission.handle(at(now), event, &mut effects);
        let gauge = self.admission.gauge();
        assert!(gauge.used <= gauge.cap, "{gauge:?}");
        effects
    }
}

/// The gateway before the server.
pub struct Gateway {
    pub alive: bool,
    pub flood: Flood,
    trunks: Vec<Trunk>,
    /// When it did a handshake of its own.
    pub handshakes: Vec<u64>,
    /// When it answered 429, and 503.
    pub flooded: Vec<u64>,
    pub without_server: Vec<u64>,
}

#[derive(Default)]
struct Trunk {
    backoff: Backoff,
    up: bool,
}

impl Gateway {
    pub fn new(clock: Arc<TestClock>) -> Gateway {
        let trunks = (0..TRUNKS).map(|_| Trunk { up: true, ..Trunk::default() }).collect();
        let (handshakes, flooded, without_server) = Default::default();
        Gateway { alive: true, flood: flood(clock), trunks, handshakes, flooded, without_server }
    }

    /// Its process starts; its trunks are dialled at once.
    pub fn start(&mut self, clock: Arc<TestClock>) {
        self.flood = flood(clock);
        self.trunks = (0..TRUNKS).map(|_| Trunk::default()).collect();
        self.alive = true;
    }

    pub fn has_server(&self) -> bool {
        self.trunks.iter().any(|trunk| trunk.up)
    }

    /// Its trunks break; after how long it dials each again.
    pub fn lose_server(&mut self, random: &dyn branchline_node::random::Random) -> Vec<u64> {
        self.trunks.iter_mut().for_each(|trunk| trunk.up = false);
        self.trunks.iter_mut().map(|trunk| trunk.backoff.failed(random)).collect()
    }

    /// Dials a trunk; after how long again, if in vain.
    pub fn dial(&mut self, trunk: usize, server: bool, random: &dyn branchline_node::random::Random) -> Option<u64> {
        let trunk = &mut self.trunks[trunk];
        trunk.up = server;
        if server {
            trunk.backoff.worked();
            return None;
        }
        Some(trunk.backoff.failed(random))
    }

    pub fn trunks(&self) -> std::ops::Range<usize> {
        0..self.trunks.len()
    }
}

fn flood(clock: Arc<TestClock>) -> Flood {
    let limits = Limits::default();
    Flood::new(limits.upgrades_per_second, limits.upgrades_burst, clock)
}
