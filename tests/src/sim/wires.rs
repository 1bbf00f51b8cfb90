//! What goes over links: commands of the owners become frames, frames arrive, ends are told. The rules are those of
//! [`branchline_node::link::engine`], in virtual time.

use super::{
    defect::Defect,
    fault::Fault,
    host::Stage,
    link::{FLYING_MAX, LinkId, Side},
    place::Place,
    world::{What, World},
};
use branchline_node::{
    downstream::Child,
    link::{
        engine::{LinkCommand, LinkEnd},
        lanes::Received,
    },
};
use branchline_protocol::{
    order::Envelope,
    wire::{DEAD_AFTER_S, Frame, Goodbye, HEARTBEAT_S, Lease},
};
use std::sync::Arc;

/// A poll is asked to end after so long.
pub(super) const POLL_MS: u64 = 60_000;
/// Then it has so long for what is under way.
const POLL_GRACE_MS: u64 = 540_000;

/// What came for the owner of an end.
pub(super) enum Came {
    /// A message.
    Message(Received),
    /// The link is a poll from here on.
    Lease(Lease),
    /// The poll's bounds are reached.
    Continue,
    /// The spread of reconnects has changed.
    Spread(u64),
    /// The parent's newest time statement.
    Alive(Option<Box<Envelope>>),
    /// A polling child has nothing more.
    Done,
    /// A heartbeat.
    Heard,
}

impl World {
    /// What an owner asks of its end of a link.
    pub(super) fn command(&mut self, id: LinkId, side: Side, command: LinkCommand) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let end = &mut link.ends[side as usize];
        if !end.open || end.closing.is_some() {
            return;
        }
        match command {
            LinkCommand::Send(lane, bytes) => {
                if let Err(fault) = end.lanes.queue(lane, bytes) {
                    return self.violation(format_args!("a message over the bound: {fault}"));
                }
            }
            LinkCommand::Release(lane, bytes) => end.control.extend(end.lanes.release(lane, bytes)),
            LinkCommand::Lease(lease) => end.control.push_back(Frame::Lease(lease)),
            LinkCommand::Goodbye(goodbye) => {
                while let Some(frame) = end.lanes.next_frame() {
                    end.control.push_back(frame);
                }
                end.control.push_back(Frame::Goodbye(goodbye.clone()));
                if side == Side::Parent || goodbye != Goodbye::Done {
                    end.closing = Some(LinkEnd::Closed(goodbye));
                }
            }
            LinkCommand::Refuse(refusal) => {
                end.control.push_back(Frame::Refused((*refusal).clone()));
                end.closing = Some(LinkEnd::RefusedPeer(*refusal));
            }
        }
        self.pump(id, side);
    }

    /// A frame that no lane carries.
    pub(super) fn control(&mut self, id: LinkId, side: Side, frame: Frame) {
        if let Some(link) = self.links.get_mut(&id) {
            link.ends[side as usize].control.push_back(frame);
            self.pump(id, side);
        }
    }

    /// Writes what may be written.
    pub(super) fn pump(&mut self, id: LinkId, side: Side) {
        loop {
            let Some(link) = self.links.get_mut(&id) else { return };
            let end = &mut link.ends[side as usize];
            if !end.open || link.pipes[side as usize].flying.len() >= FLYING_MAX {
                return;
            }
            let Some(frame) = end.control.pop_front().or_else(|| end.lanes.next_frame()) else {
                if let Some(closed) = end.closing.clone() {
                    self.after(0, What::Over(id, side, closed));
                }
                return;
            };
            if link.cut {
                continue;
            }
            if link.silent {
                continue;
            }
            let latency = 1 + self.chance.below(12);
            let pipe = &mut link.pipes[side as usize];
            let at = (self.now + latency).max(pipe.last_at).max(pipe.stalled_until);
            pipe.last_at = at;
            pipe.flying.push_back(frame);
            self.at(at, What::Arrive(id, side));
        }
    }

    /// The oldest frame that `from` wrote arrives at the other side.
    pub(super) fn arrive(&mut self, id: LinkId, from: Side) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let (cut, silent) = (link.cut, link.silent);
        let pipe = &mut link.pipes[from as usize];
        if pipe.stalled_until > self.now {
            let until = pipe.stalled_until;
            return self.at(until, What::Arrive(id, from));
        }
        if !cut && !silent && link.armed == Some(false) {
            let flying = link.flying();
            let (child, parent) = (link.child, link.parent);
            self.hit(Fault::Cut, format_args!("{child}-{parent} with {flying} frames"));
            return self.cut(id);
        }
        let Some(frame) = link.pipes[from as usize].flying.pop_front() else { return };
        if cut || silent {
            return;
        }
        let to = from.other();
        let is_content = matches!(frame, Frame::Data { .. });
        let resend = is_content && link.armed == Some(true) && link.ends[to as usize].open;
        if link.ends[to as usize].open {
            link.ends[to as usize].heard_at = self.now;
            if link.ends[to as usize].closing.is_none() {
                self.frame(id, to, frame);
            }
        }
        if resend && let Some(link) = self.links.get(&id) {
            let (child, parent) = (link.child, link.parent);
            self.hit(Fault::Resend, format_args!("{child}-{parent} after a message"));
            self.cut(id);
        }
        self.pump(id, from);
    }

    fn frame(&mut self, id: LinkId, to: Side, frame: Frame) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let poll = link.session.as_ref().is_some_and(|c| c.lease.is_some());
        let end = &mut link.ends[to as usize];
        match (frame, to) {
            (Frame::Greeting(greeting), Side::Parent) => self.greeted(id, *greeting),
            (Frame::Welcome(welcome), Side::Child) => self.welcomed(id, *welcome),
            (Frame::Data { lane, message, offset, total, bytes }, _) => {
                match end.lanes.receive(lane, message, offset, total, bytes) {
                    Ok((message, grant)) => {
                        if grant > 0 {
                            self.control(id, to, Frame::Credit { lane, bytes: grant });
                        }
                        if let Some(message) = message {
                            self.came(id, to, Came::Message(message));
                        }
                    }
                    Err(fault) => self.violation(format_args!("lanes: {fault}")),
                }
            }
            (Frame::Credit { lane, bytes }, _) => {
                if let Err(fault) = end.lanes.credited(lane, bytes) {
                    return self.violation(format_args!("lanes: {fault}"));
                }
                self.pump(id, to);
            }
            (Frame::Heartbeat, Side::Parent) => {
                let place = link.parent;
                let statement = self.statement_of(place);
                self.control(id, to, Frame::Alive(statement.map(|s| Box::new(Envelope::clone(&s)))));
                self.tell_spread(id);
                self.came(id, to, Came::Heard);
            }
            (Frame::Alive(statement), Side::Child) => self.came(id, to, Came::Alive(statement)),
            (Frame::Lease(lease), Side::Child) => self.came(id, to, Came::Lease(lease)),
            (Frame::Spread(ms), Side::Child) => self.came(id, to, Came::Spread(ms)),
            (Frame::Goodbye(Goodbye::Continue), Side::Child) => self.came(id, to, Came::Continue),
            (Frame::Goodbye(Goodbye::Done), Side::Parent) if poll => self.came(id, to, Came::Done),
            (Frame::Goodbye(goodbye), _) => self.over(id, to, LinkEnd::Goodbye(goodbye)),
            (Frame::Refused(refusal), Side::Child) => self.over(id, to, LinkEnd::Refused(refusal)),
            // A parent only notes what its child would not do.
            _ => {}
        }
    }

    fn came(&mut self, id: LinkId, to: Side, came: Came) {
        let Some(link) = self.links.get(&id) else { return };
        let place = link.at(to);
        match to {
            Side::Child => {
                let up = self.uplink(place).is_some_and(|up| up.stage == Stage::Up(id));
                match place {
                    _ if !up => {}
                    Place::Agent(agent) => self.agent_came(agent, came),
                    Place::Relay(relay) => self.relay_came(relay, came),
                    _ => {}
                }
            }
            Side::Parent => {
                let Some(child) = link.session.clone() else { return };
                match place {
                    Place::Relay(relay) => self.relay_child_came(relay, child, came),
                    Place::Server => self.server_child_came(child, came),
                    _ => {}
                }
            }
        }
    }

    /// The connection breaks: what flies is lost, and both ends hear of it soon.
    pub(super) fn cut(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.cut = true;
        link.pipes.iter_mut().for_each(|pipe| pipe.flying.clear());
        for side in [Side::Child, Side::Parent] {
            let wait = 1 + self.chance.below(40);
            self.after(wait, What::Over(id, side, LinkEnd::Lost("cut".into())));
        }
    }

    /// One side's end.
    pub(super) fn over(&mut self, id: LinkId, side: Side, end: LinkEnd) {
        let now = self.now;
        let Some(link) = self.links.get_mut(&id) else { return };
        if !link.ends[side as usize].open {
            return;
        }
        link.ends[side as usize].open = false;
        link.armed = None;
        let (place, child) = (link.at(side), link.session.clone());
        if side == Side::Parent {
            self.over.insert((link.parent, link.child), now);
        }
        let told = !link.cut && !link.silent;
        let other_open = link.ends[side.other() as usize].open;
        let after_flying = link.pipes[side as usize].last_at.max(now) + 1;
        if other_open && told {
            let lost = LinkEnd::Lost("the peer closed the stream".into());
            self.at(after_flying, What::Over(id, side.other(), lost));
        }
        self.note(format_args!("over {place} {side:?} of {id}: {end:?}"));
        match side {
            Side::Child => self.uplink_over(place, id, end),
            Side::Parent => {
                if let Some(child) = child {
                    self.child_over(place, id, child, end);
                }
            }
        }
        if !other_open {
            self.links.remove(&id);
        }
    }

    fn child_over(&mut self, place: Place, id: LinkId, child: Arc<Child>, end: LinkEnd) {
        let now = self.now_of(place);
        let late = self.has(Defect::LateCleanup);
        match place {
            Place::Relay(relay) => {
                let Some(process) = &mut self.relays[relay].process else { return };
                process.gate.gone(now, child.session);
                if late || process.links.get(&child.node).is_some_and(|(_, link)| *link == id) {
                    process.links.remove(&child.node);
                }
                self.feed_relay(relay, branchline_relay::core::Event::ChildGone(child, end));
            }
            Place::Server => {
                let Some(process) = &mut self.server.process else { return };
                process.gate.gone(now, child.session);
                if late || process.links.get(&child.node).is_some_and(|(_, link)| *link == id) {
                    process.links.remove(&child.node);
                }
                self.feed_server(branchline_server::dispatch::Event::Gone(child, end));
            }
            _ => {}
        }
        self.arm_gate(place);
    }

    pub(super) fn beat(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        if link.ends[Side::Child as usize].open && link.ends[Side::Child as usize].closing.is_none() {
            self.control(id, Side::Child, Frame::Heartbeat);
            self.after(HEARTBEAT_S * 1_000, What::Beat(id));
        }
    }

    pub(super) fn silence(&mut self, id: LinkId, side: Side) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let end = &mut link.ends[side as usize];
        if !end.open {
            return;
        }
        let dead_at = end.heard_at + DEAD_AFTER_S * 1_000;
        if dead_at > self.now {
            return self.at(dead_at, What::Silence(id, side));
        }
        self.over(id, side, LinkEnd::Silent);
    }

    /// A poll is over its bounds: its child is asked to end it, and after a while it is ended.
    pub(super) fn poll_end(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if std::mem::replace(&mut link.asked_to_end, true) {
            return self.over(id, Side::Parent, LinkEnd::Closed(Goodbye::Continue));
        }
        self.control(id, Side::Parent, Frame::Goodbye(Goodbye::Continue));
        self.after(POLL_GRACE_MS, What::PollEnd(id));
    }

    /// A changed spread of reconnects goes with the answer to a heartbeat.
    fn tell_spread(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        let (parent, child) = (link.parent, link.child);
        let spread = self.spread(parent, child);
        let Some(link) = self.links.get_mut(&id) else { return };
        if std::mem::replace(&mut link.spread, spread) != spread {
            self.control(id, Side::Parent, Frame::Spread(spread));
        }
    }

    /// The timers of a side that is greeted.
    pub(super) fn start_timers(&mut self, id: LinkId, side: Side, poll: bool) {
        let now = self.now;
        if let Some(link) = self.links.get_mut(&id) {
            link.ends[side as usize].heard_at = now;
        }
        self.after(DEAD_AFTER_S * 1_000, What::Silence(id, side));
        match side {
            Side::Child => self.after(HEARTBEAT_S * 1_000, What::Beat(id)),
            Side::Parent if poll => self.after(POLL_MS, What::PollEnd(id)),
            Side::Parent => {}
        }
    }
}
