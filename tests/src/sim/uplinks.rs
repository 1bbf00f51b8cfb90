//! How a node gets to its parent: the production rhythm, routes that exist or not, greeting, admission and welcome.

use super::{
    clock::EPOCH_MS,
    host::{Stage, Uplink},
    link::{Link, LinkId, Side},
    place::Place,
    wires::POLL_MS,
    world::{What, World},
};
use branchline_node::{
    downstream::{
        Child,
        admission::{Ask, Need, Want},
        directory::Directory,
        reception::{Facts, check, reconnect_spread_ms, stale},
    },
    identity::PeerIdentity,
    link::engine::{LinkCommand, LinkEnd},
    uplink::{Poke, rhythm::Rhythm},
};
use branchline_protocol::{
    id::{AttachmentKey, NodeId, Role},
    order::Envelope,
    refusal::Refusal,
    time::{Millis, Now},
    wire::{Frame, Goodbye, Greeting, HANDSHAKE_S, Lease, PROTOCOL, Welcome},
};
use std::{collections::BTreeMap, sync::Arc};

impl World {
    /// A node's way up, while its process lives.
    pub(super) fn uplink(&mut self, place: Place) -> Option<&mut Uplink> {
        match place {
            Place::Agent(n) => self.agents[n].process.as_mut().map(|p| &mut p.uplink),
            Place::Relay(n) => self.relays[n].process.as_mut().map(|p| &mut p.uplink),
            _ => None,
        }
    }

    /// A node's readings.
    pub(super) fn now_of(&self, place: Place) -> Now {
        let time = match place {
            Place::Agent(n) => self.agents[n].process.as_ref().map(|p| &p.time),
            Place::Relay(n) => self.relays[n].process.as_ref().map(|p| &p.time),
            Place::Server => self.server.process.as_ref().map(|p| &p.time),
            Place::Gateway => None,
        };
        time.map_or(Now { node: Millis(EPOCH_MS), ..Now::default() }, |time| time.now())
    }

    /// The node's next dial, as its rhythm has it.
    pub(super) fn arm_dial(&mut self, place: Place) {
        let now = self.now_of(place);
        let life = self.life(place);
        let Some(up) = self.uplink(place) else { return };
        if up.stage != Stage::Waiting {
            return;
        }
        up.timer += 1;
        let (wait, timer) = (up.rhythm.due().since(now.mono), up.timer);
        self.after(wait, What::Dial(place, life, timer));
    }

    /// Something to say: a poll's wait is cut short.
    pub(super) fn poke(&mut self, place: Place, poke: Poke) {
        let (now, chance) = (self.now_of(place), self.chance.next());
        let Some(up) = self.uplink(place) else { return };
        if up.stage == Stage::Waiting && up.rhythm.poke(now, poke, chance) {
            self.arm_dial(place);
        }
    }

    /// Whether a connection can be made.
    fn reachable(&self, child: Place, parent: Place, gateway: bool) -> bool {
        let lives = |place: Place| self.machines[&place].up && self.machines[&place].frozen_until <= self.now;
        let blocked = |place: Place| self.blocked.get(&place).is_some_and(|until| *until > self.now);
        lives(parent) && !blocked(child) && (!gateway || lives(Place::Gateway))
    }

    pub(super) fn dial(&mut self, place: Place, timer: u64) {
        let now = self.now_of(place);
        let (parent, gateway) = match place {
            Place::Agent(n) => self.agents[n].network,
            Place::Relay(n) => (self.relays[n].parent, false),
            _ => return,
        };
        let (open, chance, life) = (self.reachable(place, parent, gateway), self.chance.next(), self.life(place));
        let id = self.next_link;
        let Some(up) = self.uplink(place) else { return };
        if up.timer != timer || up.stage != Stage::Waiting {
            return;
        }
        if up.rhythm.due() > now.mono {
            // The machine slept: its timers count on its own clock.
            return self.arm_dial(place);
        }
        if !open {
            up.rhythm.failed(now, None, chance);
            return self.arm_dial(place);
        }
        up.stage = Stage::Greeting(id);
        self.next_link += 1;
        self.links.insert(id, Link::new(place, parent, gateway, 0));
        let secured = 4 + self.chance.below(30);
        self.after(secured, What::Connected(id, life));
        self.after(HANDSHAKE_S * 1_000, What::Unwelcome(id));
    }

    /// The connection is secured: the core is asked for its greeting.
    pub(super) fn connected(&mut self, id: LinkId, life: u64) {
        let Some(link) = self.links.get(&id) else { return };
        let (place, parent) = (link.child, link.parent.id());
        if link.cut || !link.ends[Side::Child as usize].open || !self.lives(place, life) {
            return;
        }
        let Some(up) = self.uplink(place) else { return };
        up.dials += 1;
        let dial = up.dials;
        if let Some(link) = self.links.get_mut(&id) {
            link.dial = dial;
        }
        match place {
            Place::Agent(n) => self.feed_agent(n, branchline_agent::decide::Event::Dialling { dial, parent }),
            Place::Relay(n) => self.feed_relay(n, branchline_relay::core::Event::Dialling(dial, parent)),
            _ => {}
        }
    }

    /// The core has its greeting; its attachment number must be durable.
    pub(super) fn greet(&mut self, place: Place, dial: u64, greeting: Greeting) {
        let durable = self.machines[&place].disk.get(branchline_node::store::Table::Meta, b"attachment");
        let durable = durable.and_then(|b| Some(u64::from_be_bytes(b[..].try_into().ok()?))).unwrap_or(0);
        if durable < greeting.attachment {
            self.violation(format_args!("{place} greets with attachment {} and keeps {durable}", greeting.attachment));
        }
        let Some(up) = self.uplink(place) else { return };
        let Stage::Greeting(id) = up.stage else { return };
        if self.links.get(&id).is_some_and(|link| link.dial == dial && !link.cut) {
            self.control(id, Side::Child, Frame::Greeting(Box::new(greeting)));
        }
    }

    pub(super) fn unwelcome(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        let place = link.child;
        if self.uplink(place).is_some_and(|up| up.stage == Stage::Greeting(id)) {
            self.over(id, Side::Child, LinkEnd::Lost("no welcome in time".into()));
        }
    }

    fn facts(&self, parent: Place) -> Facts {
        match parent {
            Place::Relay(n) => {
                let Some(process) = &self.relays[n].process else { return Facts::default() };
                let core = process.driver.core();
                let revocations = BTreeMap::from([(self.desk.tenant.clone(), core.shelf().revocations().clone())]);
                Facts {
                    ancestors: core.chain(),
                    revocations,
                    children: core.links(),
                    open: true,
                    polls: BTreeMap::new(),
                }
            }
            _ => {
                let children = self.server.process.as_ref().map_or(0, |p| p.core.links());
                let ancestors = vec![(Place::Server.id(), "server".into())];
                Facts {
                    ancestors,
                    revocations: BTreeMap::from([(self.desk.tenant.clone(), self.desk.list.clone())]),
                    children,
                    open: true,
                    polls: BTreeMap::new(),
                }
            }
        }
    }

    /// The spread of reconnects that a child is to know of now.
    pub(super) fn spread(&self, parent: Place, child: Place) -> u64 {
        let role = if matches!(child, Place::Relay(_)) { Role::Relay } else { Role::Agent };
        reconnect_spread_ms(role, self.facts(parent).children)
    }

    fn is_stale(&self, parent: Place, child: &Child) -> bool {
        match parent {
            Place::Relay(n) => self.relays[n].process.as_ref().is_some_and(|p| p.driver.core().is_stale(child)),
            _ => self.server.process.as_ref().is_some_and(|p| p.core.is_stale(child)),
        }
    }

    /// Whether a parent knows an attachment of a child that is as new.
    pub(super) fn knows(&self, parent: Place, child: Place, key: AttachmentKey) -> bool {
        match parent {
            Place::Relay(n) => self.relays[n].process.as_ref().is_some_and(|p| p.driver.core().knows(child.id(), key)),
            _ => {
                let tenant = &self.desk.tenant;
                self.server.process.as_ref().is_some_and(|p| p.core.knows(tenant, child.id(), key))
            }
        }
    }

    /// Whether a parent was told of a newer state of a child's disk.
    pub(super) fn has_met_newer(&self, parent: Place, child: Place, key: AttachmentKey, age: u64) -> bool {
        let met = |directory: &Directory| directory.has_met_newer(child.id(), key, age);
        match parent {
            Place::Relay(n) => self.relays[n].process.as_ref().is_some_and(|p| met(p.driver.core().directory())),
            _ => {
                let state = self.server.process.as_ref().and_then(|p| p.core.tenant(&self.desk.tenant));
                state.is_some_and(|state| met(&state.directory))
            }
        }
    }

    /// A greeting arrived: checks, admission, welcome, session.
    pub(super) fn greeted(&mut self, id: LinkId, greeting: Greeting) {
        let Some(link) = self.links.get(&id) else { return };
        let (place, parent, gateway) = (link.child, link.parent, link.gateway);
        let now = self.now_of(parent);
        let role = if matches!(place, Place::Relay(_)) { Role::Relay } else { Role::Agent };
        let peer = PeerIdentity {
            tenant: self.desk.tenant.clone(),
            role,
            node: place.id(),
            epoch: self.machines[&place].epoch,
            key: place.signer().public(),
            serial_hex: "1".into(),
            not_before: Millis(0),
            not_after: Millis(i64::MAX),
        };
        let facts = self.facts(parent);
        if let Err(refusal) = check(parent.id(), &facts, &peer, &greeting) {
            return self.command(id, Side::Parent, LinkCommand::Refuse(refusal.into()));
        }
        let key = AttachmentKey { epoch: greeting.epoch, attachment: greeting.attachment };
        match place {
            Place::Agent(n) => self.judge(n, parent, key),
            _ => self.judge_relay(place, parent, key, &greeting),
        }
        self.next_session += 1;
        let session = self.next_session;
        let key = AttachmentKey { epoch: greeting.epoch, attachment: greeting.attachment };
        let need = facts.need(&self.desk.tenant, place.id(), greeting.contact);
        let want = if role == Role::Relay || need > Need::None { Want::Persistent } else { Want::Poll };
        let ask = Ask {
            node: place.id(),
            role,
            key,
            session,
            want,
            need,
            wakeable: greeting.wake_port != 0,
            poll_interval_ms: None,
            pressing_ms: None,
        };
        let (gate, store, links) = match parent {
            Place::Relay(n) => match &mut self.relays[n].process {
                Some(process) => (&mut process.gate, process.store, process.links.clone()),
                None => return,
            },
            _ => match &mut self.server.process {
                Some(process) => (&mut process.gate, 1, process.links.clone()),
                None => return,
            },
        };
        let admitted = gate.ask(now, ask);
        let gauge = gate.gauge();
        if gauge.used > gauge.cap {
            self.violation(format_args!("{parent} has {} of {} slots in use", gauge.used, gauge.cap));
        }
        for replaced in admitted.replaced {
            if let Some((_, (_, link))) = links.iter().find(|(_, (session, _))| *session == replaced) {
                self.command(*link, Side::Parent, LinkCommand::Goodbye(Goodbye::Replaced));
            }
        }
        for (displaced, lease) in admitted.displaced {
            if let Some((node, (_, link))) = links.iter().find(|(_, (session, _))| *session == displaced) {
                self.displaced(parent, *node, *link, lease);
            }
        }
        self.arm_gate(parent);
        let lease = match admitted.answer {
            Ok(lease) => lease,
            Err(refusal) => {
                if refusal.is_stale_attachment() {
                    self.refused_as_stale(parent, place, key);
                }
                return self.command(id, Side::Parent, LinkCommand::Refuse(refusal.into()));
            }
        };
        let spread = self.spread(parent, place);
        let welcome = Welcome {
            protocol: *PROTOCOL.end(),
            build: "sim".into(),
            parent: parent.id(),
            store,
            ancestors: facts.ancestors,
            lease,
            reconnect_spread_ms: spread,
            notice_port: 0,
        };
        self.control(id, Side::Parent, Frame::Welcome(Box::new(welcome)));
        let child = Arc::new(Child {
            session,
            tenant: self.desk.tenant.clone(),
            node: place.id(),
            role,
            key,
            greeting: Arc::new(greeting),
            lease,
            source: None,
            gateway: gateway.then(|| Place::Gateway.id()),
            keys: None,
        });
        if let Some(link) = self.links.get_mut(&id) {
            link.session = Some(child.clone());
            link.spread = spread;
        }
        self.start_timers(id, Side::Parent, lease.is_some());
        if self.is_stale(parent, &child) {
            // Overtaken between its admission and here.
            self.refused_as_stale(parent, place, key);
            return self.command(id, Side::Parent, LinkCommand::Refuse(stale().into()));
        }
        self.note(format_args!("{place} up at {parent} session {session} attachment {}", key.attachment));
        match parent {
            Place::Relay(n) => self.relay_child_up(n, id, child),
            _ => self.server_child_up(id, child),
        }
    }

    /// A parent's core hears of a link that was refused before it was up, as from the reception.
    fn refused_as_stale(&mut self, parent: Place, child: Place, key: AttachmentKey) {
        let tenant = self.desk.tenant.clone();
        match parent {
            Place::Relay(n) => self.feed_relay(n, branchline_relay::core::Event::Stale(child.id(), key)),
            _ => self.feed_server(branchline_server::dispatch::Event::Stale(tenant, child.id(), key)),
        }
    }

    /// A child's slot went to one who needs it more: as the gatekeeper does, its link is turned to polling.
    fn displaced(&mut self, parent: Place, node: NodeId, link: LinkId, lease: Lease) {
        self.note(format_args!("{parent} takes the slot of {node}"));
        self.command(link, Side::Parent, LinkCommand::Lease(lease));
        self.after(POLL_MS, What::PollEnd(link));
        match parent {
            Place::Relay(n) => self.feed_relay(n, branchline_relay::core::Event::Displaced(node, lease)),
            _ => self.feed_server(branchline_server::dispatch::Event::Displaced(node, lease)),
        }
    }

    /// The welcome arrived.
    pub(super) fn welcomed(&mut self, id: LinkId, welcome: Welcome) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let place = link.child;
        link.welcome = Some(welcome.clone());
        let Some(up) = self.uplink(place) else { return };
        if up.stage != Stage::Greeting(id) {
            return;
        }
        up.rhythm.welcomed(welcome.reconnect_spread_ms);
        up.stage = Stage::Up(id);
        (up.lease, up.more, up.spread) = (None, false, None);
        self.start_timers(id, Side::Child, welcome.lease.is_some());
        match place {
            Place::Agent(n) => self.feed_agent(n, branchline_agent::decide::Event::Up(Box::new(welcome))),
            Place::Relay(n) => self.feed_relay(n, branchline_relay::core::Event::ParentUp(Box::new(welcome))),
            _ => {}
        }
    }

    /// The child's end of a link is no more: what the uplink actor makes of it.
    pub(super) fn uplink_over(&mut self, place: Place, id: LinkId, end: LinkEnd) {
        let (now, chance) = (self.now_of(place), self.chance.next());
        let welcome = self.links.get(&id).and_then(|link| link.welcome.clone());
        let Some(up) = self.uplink(place) else { return };
        match up.stage {
            Stage::Greeting(of) if of == id => match &end {
                LinkEnd::Refused(refusal) => refused(&mut up.rhythm, now, refusal, chance),
                _ => up.rhythm.failed(now, None, chance),
            },
            Stage::Up(of) if of == id => {
                let displaced = up.lease.is_some();
                let lease: Option<Lease> = up.lease.or(welcome.and_then(|w| w.lease));
                let more = up.more;
                if let Some(ms) = up.spread {
                    up.rhythm.spread(ms);
                }
                match (&end, lease) {
                    (LinkEnd::Goodbye(Goodbye::Done), Some(lease)) => up.rhythm.polled(now, lease, more, chance),
                    (LinkEnd::Lost(_), Some(lease)) if displaced || more => up.rhythm.polled(now, lease, more, chance),
                    (LinkEnd::Refused(refusal), _) => refused(&mut up.rhythm, now, refusal, chance),
                    (LinkEnd::Goodbye(Goodbye::Replaced), _) => up.rhythm.failed(now, None, chance),
                    _ => up.rhythm.lost(now, chance),
                }
            }
            _ => return,
        }
        up.stage = Stage::Waiting;
        if let LinkEnd::Refused(refusal) = &end
            && refusal.is_stale_attachment()
        {
            match place {
                Place::Agent(n) => self.feed_agent(n, branchline_agent::decide::Event::Overtaken),
                Place::Relay(n) => self.feed_relay(n, branchline_relay::core::Event::Overtaken),
                _ => {}
            }
        }
        match place {
            Place::Agent(n) => self.feed_agent(n, branchline_agent::decide::Event::Down),
            Place::Relay(n) => self.feed_relay(n, branchline_relay::core::Event::ParentDown),
            _ => {}
        }
        self.arm_dial(place);
    }

    /// What a parent answers heartbeats with.
    pub(super) fn statement_of(&self, place: Place) -> Option<Arc<Envelope>> {
        match place {
            Place::Relay(n) => self.relays[n].process.as_ref()?.statement.clone(),
            _ => self.server.process.as_ref()?.statement.clone(),
        }
    }

    /// The slots' next deadline.
    pub(super) fn arm_gate(&mut self, place: Place) {
        let now = self.now_of(place);
        let deadline = match place {
            Place::Relay(n) => self.relays[n].process.as_ref().and_then(|p| p.gate.next_deadline()),
            _ => self.server.process.as_ref().and_then(|p| p.gate.next_deadline()),
        };
        if let Some(at) = deadline {
            let life = self.life(place);
            self.after(at.since(now.mono).max(1), What::GateTick(place, life));
        }
    }

    pub(super) fn gate_tick(&mut self, place: Place) {
        let now = self.now_of(place);
        let gate = match place {
            Place::Relay(n) => self.relays[n].process.as_mut().map(|p| &mut p.gate),
            _ => self.server.process.as_mut().map(|p| &mut p.gate),
        };
        let Some(gate) = gate else { return };
        if gate.next_deadline().is_none_or(|at| at > now.mono) {
            return;
        }
        gate.tick(now);
        self.arm_gate(place);
    }
}

/// A busy parent has given an instant; any other "no" is a failure.
fn refused(rhythm: &mut Rhythm, now: Now, refusal: &Refusal, chance: u64) {
    match (refusal.status, refusal.retry_after_ms) {
        (429, Some(ms)) => rhythm.told(now, ms, chance),
        (_, ms) => rhythm.failed(now, ms, chance),
    }
}
