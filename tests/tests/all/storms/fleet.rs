//! The fleet and its clock. Instants are milliseconds since its first day began.

use super::{
    HOUR, MINUTE, SECOND,
    child::{Child, Dial, Link},
    house::{Gateway, Parent},
};
use branchline_node::{
    config::Reach,
    downstream::{
        admission::Need,
        rate::Caller,
        reception::{Polls, reconnect_spread_ms},
    },
    link::dial::Route,
    random::{Random, SeededRandom},
    time::TestClock,
    uplink::{
        path::{PROBE_MS, Path, Way},
        rhythm::{Poke, Rhythm},
    },
};
use branchline_protocol::{
    document::{Settings, Upstream},
    id::{NodeId, Role},
    refusal::Refusal,
    time::{Millis, Mono, Now},
    wire,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};
use uuid::Uuid;

pub const RELAYS: usize = 40;
/// Below each relay.
pub const BELOW: usize = 175;
pub const ROAMING: usize = 3_000;
/// The server among the parents; its relays follow.
pub const SERVER: usize = 0;
/// How long a poll takes.
const POLL_MS: u64 = SECOND;
/// A gateway's "come later"; as the uplink words it.
const GATEWAY_BUSY: &str = "gateway_busy";

pub fn at(ms: u64) -> Now {
    Now { mono: Mono(ms), wall: Millis(ms as i64), node: Millis(ms as i64) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Something of a child's is due.
    Child(usize),
    /// The gateway dials a trunk.
    Trunk(usize),
}

/// See the module.
pub struct Fleet {
    pub chance: Arc<dyn Random>,
    clock: Arc<TestClock>,
    pub now: u64,
    pub parents: Vec<Parent>,
    pub gateway: Gateway,
    /// The relays' uplinks, then the devices below them, then those that roam.
    pub children: Vec<Child>,
    due: BTreeSet<(u64, Step)>,
    sessions: u64,
}

impl Fleet {
    /// Everybody was switched on within ten minutes, and an hour has passed.
    pub fn settled(seed: u64) -> Fleet {
        let mut fleet = Fleet::new(seed);
        fleet.run(HOUR + MINUTE * (seed % 10));
        let served = fleet.children.iter().filter(|c| c.away_since.is_none()).count();
        assert_eq!(served, fleet.children.len(), "everybody is served");
        fleet
    }

    fn new(seed: u64) -> Fleet {
        let (chance, clock) = (SeededRandom::shared(seed), TestClock::at(Millis(0)));
        let polls = Polls::of(&Settings::first("acme".parse().expect("a name"), 1));
        let server = upstream(SERVER, Role::Server, vec![], vec!["https://gateway".into()]);
        let mut children = Vec::new();
        for n in 0..RELAYS + RELAYS * BELOW + ROAMING {
            let (mut list, mut role, mut roams) = (vec![server.clone()], Role::Agent, false);
            // A branch has one address, and so has every tenth of those that roam: a tower, a hotel.
            let source = match n {
                n if n < RELAYS => {
                    role = Role::Relay;
                    branch(n)
                }
                n if n < RELAYS + RELAYS * BELOW => {
                    let relay = (n - RELAYS) / BELOW;
                    let direct = vec![(relay + 1).to_string()];
                    list.insert(0, Upstream { near: true, ..upstream(relay + 1, Role::Relay, direct, vec![]) });
                    branch(relay)
                }
                n => {
                    roams = true;
                    let own = Ipv4Addr::new(198, 18, (n / 250) as u8, (n % 250) as u8);
                    if n % 10 == 0 { IpAddr::from([203, 0, 113, 1]) } else { own.into() }
                }
            };
            let node = NodeId(Uuid::from_u128(u128::from(seed) << 64 | (1_000 + n) as u128));
            let mut path = Path::new(node);
            path.configure(at(0), &list, Reach::Any, PROBE_MS, MINUTE, 0);
            let mut rhythm = Rhythm::new(at(0));
            if role == Role::Agent {
                rhythm.spread(10 * MINUTE);
                rhythm.lost(at(0), chance.next_u64());
            }
            // Most can be locked, and so poll every ten minutes; some keep their connection.
            let word = if n % 4 == 0 { "run_script" } else { "lock" };
            children.push(Child {
                node,
                role,
                source,
                path,
                link: Link::Down,
                dial: None,
                need: if roams && n % 20 == 7 { Need::Keep } else { Need::Ordinary },
                pressing_ms: polls.pressing_ms(&[word.to_string()]).filter(|_| role == Role::Agent),
                attachment: 0,
                next: Some(rhythm.due().0),
                rhythm,
                dials: Vec::new(),
                away_since: Some(0),
                back: Vec::new(),
            });
        }
        let due = children.iter().enumerate().filter_map(|(n, c)| Some((c.next?, Step::Child(n)))).collect();
        let parents = (0..=RELAYS).map(|_| Parent::new(0)).collect();
        let gateway = Gateway::new(clock.clone());
        Fleet { chance, clock, now: 0, parents, gateway, children, due, sessions: 0 }
    }

    pub fn roaming() -> std::ops::Range<usize> {
        RELAYS + RELAYS * BELOW..RELAYS + RELAYS * BELOW + ROAMING
    }

    pub fn below(relay: usize) -> std::ops::Range<usize> {
        let first = RELAYS + (relay - 1) * BELOW;
        first..first + BELOW
    }

    /// Lets time pass.
    pub fn run(&mut self, until: u64) {
        while let Some((instant, step)) = self.due.first().copied().filter(|(instant, _)| *instant < until) {
            self.due.pop_first();
            self.pass(instant);
            match step {
                Step::Child(n) if self.children[n].next == Some(instant) => self.act(n),
                Step::Child(_) => {}
                Step::Trunk(trunk) if self.gateway.alive && self.parents[SERVER].alive => {
                    assert_eq!(self.gateway.dial(trunk, true, &*self.chance), None);
                }
                Step::Trunk(trunk) if self.gateway.alive => {
                    let wait = self.gateway.dial(trunk, false, &*self.chance);
                    self.due.extend(wait.map(|ms| (self.now + ms, step)));
                }
                Step::Trunk(_) => {}
            }
        }
        self.pass(until);
    }

    fn pass(&mut self, until: u64) {
        self.clock.advance((until - self.now) as i64);
        self.now = until;
    }

    fn schedule(&mut self, n: usize, next: Option<u64>) {
        self.children[n].next = next;
        self.due.extend(next.map(|at| (at, Step::Child(n))));
    }

    fn act(&mut self, n: usize) {
        let child = &mut self.children[n];
        match child.link {
            Link::Up { .. } => self.probe(n),
            Link::Poll { lease, .. } => {
                self.leave(n);
                let (chance, now) = (self.chance.next_u64(), self.now);
                let child = &mut self.children[n];
                child.rhythm.polled(at(now), lease, false, chance);
                child.path.down();
                let due = child.rhythm.due().0;
                self.schedule(n, Some(due));
            }
            Link::Down => {
                if child.dial.is_none() {
                    child.dials.push(self.now);
                    child.away_since.get_or_insert(self.now);
                    child.dial = Some(Dial { ways: child.path.ways().to_vec(), next: 0, refusal: None });
                }
                self.try_ways(n);
            }
        }
    }

    /// Its link ends at the parent, too.
    fn leave(&mut self, n: usize) {
        if let Some((parent, _, session)) = self.children[n].session() {
            self.children[n].link = Link::Down;
            self.parents[parent].gone(self.now, self.children[n].node, session);
        }
    }

    /// Each way in turn, as the uplink does. Where nobody is, the machine answers at once that nobody is.
    fn try_ways(&mut self, n: usize) {
        let now = self.now;
        while let Some(way) = self.way(n) {
            match self.reach(n, &way) {
                Ok(()) => return,
                Err(None) if self.children[n].path.waits_for(&way) => break,
                Err(None) => {}
                Err(Some(no)) => {
                    let child = &mut self.children[n];
                    if no.code != GATEWAY_BUSY {
                        return self.refused(n, &no);
                    }
                    child.path.refused(at(now), &way);
                    if let Some(dial) = &mut child.dial {
                        dial.refusal.get_or_insert(no);
                    }
                }
            }
        }
        match self.children[n].dial.take().and_then(|dial| dial.refusal) {
            Some(no) => self.refused(n, &no),
            None => {
                let chance = self.chance.next_u64();
                self.children[n].rhythm.failed(at(now), None, chance);
                self.again(n);
            }
        }
    }

    fn way(&mut self, n: usize) -> Option<Way> {
        let dial = self.children[n].dial.as_mut()?;
        dial.next += 1;
        dial.ways.get(dial.next - 1).cloned()
    }

    fn refused(&mut self, n: usize, no: &Refusal) {
        let (now, chance) = (at(self.now), self.chance.next_u64());
        self.children[n].rhythm.refused(now, no, chance);
        self.again(n);
    }

    fn again(&mut self, n: usize) {
        self.children[n].dial = None;
        let due = self.children[n].rhythm.due().0;
        self.schedule(n, Some(due));
    }

    /// One way; `None`: nobody is there.
    fn reach(&mut self, n: usize, way: &Way) -> Result<(), Option<Refusal>> {
        let (parent, gateway) = self.door(n, way)?;
        self.greet(n, way, parent, gateway).map_err(Some)
    }

    /// As far as the parent's identity.
    fn door(&mut self, n: usize, way: &Way) -> Result<(usize, bool), Option<Refusal>> {
        let now = self.now;
        let caller = if self.children[n].role == Role::Relay { Caller::Relay } else { Caller::Device };
        let (parent, gateway) = match &way.route {
            Route::Direct(address) => (address.parse().expect("a parent's number"), false),
            Route::Gateway(_) => {
                self.pass_gateway(n)?;
                (SERVER, true)
            }
        };
        if !self.parents[parent].alive {
            return Err(None);
        }
        let busy = |ms| Some(Refusal::new(429, "busy", "the parent takes links by a rate").retry_after(ms));
        self.parents[parent].knock(now, caller).map_err(busy)?;
        Ok((parent, gateway))
    }

    fn pass_gateway(&mut self, n: usize) -> Result<(), Option<Refusal>> {
        let (now, gateway) = (self.now, &mut self.gateway);
        if !gateway.alive {
            return Err(None);
        }
        gateway.handshakes.push(now);
        let later = |status, s: u64| Some(Refusal::new(status, GATEWAY_BUSY, "later").retry_after(s * SECOND));
        if let Err(s) = gateway.flood.check(self.children[n].source) {
            gateway.flooded.push(now);
            return Err(later(429, s));
        }
        if !gateway.has_server() {
            gateway.without_server.push(now);
            return Err(later(503, branchline_gateway::flood::away_s(&*self.chance)));
        }
        Ok(())
    }

    fn greet(&mut self, n: usize, way: &Way, parent: usize, gateway: bool) -> Result<(), Refusal> {
        self.sessions += 1;
        let (session, now, chance) = (self.sessions, self.now, self.chance.next_u64());
        let (child, house) = (&mut self.children[n], &mut self.parents[parent]);
        child.attachment += 1;
        let placed = match house.admit(now, child.ask(session)) {
            Ok(placed) => placed,
            Err(ms) => {
                house.gone(now, child.node, session);
                return Err(Refusal::new(429, "busy", "all links of this kind are taken").retry_after(ms));
            }
        };
        child.dial = None;
        child.rhythm.welcomed(reconnect_spread_ms(child.role, house.children()));
        child.path.up(at(now), way, placed.lease.is_none(), chance);
        child.served(now, parent, placed.lease.is_none());
        let next = match placed.lease {
            None => {
                child.link = Link::Up { parent, gateway, session };
                child.path.next_probe().map(|at| at.0)
            }
            Some(lease) => {
                child.link = Link::Poll { parent, gateway, session, lease: of(lease) };
                Some(now + POLL_MS)
            }
        };
        self.schedule(n, next);
        if let Some((session, lease)) = placed.displaced {
            let of_session = |c: &Child| matches!(c.link, Link::Up { session: s, .. } if s == session);
            let other = self.children.iter().position(of_session).expect("it holds a slot");
            let Link::Up { parent, gateway, session } = self.children[other].link else { unreachable!() };
            self.children[other].link = Link::Poll { parent, gateway, session, lease: of(lease) };
            self.schedule(other, Some(now + POLL_MS));
        }
        Ok(())
    }

    fn probe(&mut self, n: usize) {
        let now = self.now;
        for way in self.children[n].path.better(at(now)) {
            if let Ok((parent, gateway)) = self.door(n, &way) {
                self.leave(n);
                self.children[n].path.down();
                self.children[n].dial = Some(Dial { ways: Vec::new(), next: 0, refusal: None });
                if let Err(no) = self.greet(n, &way, parent, gateway) {
                    self.refused(n, &no);
                }
                return;
            }
        }
        let chance = self.chance.next_u64();
        self.children[n].path.probed_in_vain(at(now), chance);
        let next = self.children[n].path.next_probe().map(|at| at.0);
        self.schedule(n, next);
    }

    /// Its link breaks; `spread_ms` is its parent's newest word. With a result in hand it hurries.
    pub fn cut(&mut self, n: usize, spread_ms: u64, result: bool) {
        let (now, chance) = (at(self.now), self.chance.next_u64());
        let child = &mut self.children[n];
        child.link = Link::Down;
        child.path.broke();
        child.away_since.get_or_insert(self.now);
        child.rhythm.spread(spread_ms);
        child.rhythm.lost(now, chance);
        if result {
            let chance = self.chance.next_u64();
            self.children[n].rhythm.poke(now, Poke::Urgent, chance);
        }
        self.again(n);
    }

    /// The gateway's trunks are dialled, after these milliseconds.
    pub fn dial_trunks(&mut self, after: Vec<u64>) {
        let steps = after.into_iter().enumerate().map(|(n, ms)| (self.now + ms, Step::Trunk(n)));
        self.due.extend(steps);
    }

    pub fn clock(&self) -> Arc<TestClock> {
        self.clock.clone()
    }

    /// A machine is off, or on again.
    pub fn switch(&mut self, n: usize, on: bool) {
        let now = self.now;
        self.children[n].link = Link::Down;
        self.children[n].dial = None;
        self.children[n].path.down();
        self.children[n].rhythm = Rhythm::new(at(now));
        self.children[n].away_since.get_or_insert(now);
        self.schedule(n, on.then_some(now));
    }
}

fn upstream(n: usize, role: Role, direct: Vec<String>, gateways: Vec<String>) -> Upstream {
    Upstream { id: NodeId(Uuid::from_u128(n as u128)), role, name: n.to_string(), direct, gateways, near: false }
}

fn branch(relay: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, relay as u8).into()
}

fn of(lease: branchline_node::downstream::admission::Lease) -> wire::Lease {
    wire::Lease { interval_ms: lease.interval_ms, phase_ms: lease.phase_ms, waiter: lease.waiter }
}
