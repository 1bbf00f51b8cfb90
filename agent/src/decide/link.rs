//! What the link to the parent brings: greetings, messages, documents, leases.

use super::{
    core::{AgentCore, Link, Then, Turn, count},
    event::{Counted, Effect},
    inventory::Request,
};
use branchline_node::{
    defects::{Defect, Defects},
    link::lanes::Received,
    uplink::Poke,
};
use branchline_protocol::{
    chain::ROLLBACK,
    document::{Document, Kind},
    id::{AttachmentKey, NodeId, Role},
    order::Envelope,
    receipt::Receipt,
    record::Lane,
    time::Now,
    wire::{Ack, Contact, Greeting, Lease, Message, MessageFault, PROTOCOL, Recalled, Welcome},
};

impl<D: Defects> AgentCore<D> {
    /// The attachment number is durable before any parent hears it (DESIGN 5).
    pub(super) fn dialling(&mut self, dial: u64, parent: NodeId, turn: &mut Turn) {
        self.put_attachment(turn);
        self.renew_wake(turn);
        self.told_settings = self.settings_version();
        let greeting = self.greeting(parent);
        turn.then(Effect::Greet(dial, Box::new(greeting)));
    }

    fn greeting(&self, parent: NodeId) -> Greeting {
        let contact = self.documents.contact();
        let next_poll_s = match (contact, self.lease, self.documents.settings()) {
            (_, Some(lease), _) => Some(lease.interval_ms / 1_000),
            (Contact::Poll, None, Some(settings)) => Some(settings.poll_normal_s),
            _ => None,
        };
        Greeting {
            protocol: *PROTOCOL.end(),
            build: self.me.build.clone(),
            tenant: self.me.tenant.clone(),
            node: self.me.node,
            role: Role::Agent,
            epoch: self.me.epoch,
            attachment: self.attachment,
            incarnation: self.spool.incarnation(),
            disk: 0,
            age: 0,
            contact,
            depth_below: 0,
            stored_at: self.spool.stored_at(),
            documents: self.documents.versions(),
            term: self.documents.term(),
            wake_port: self.wake.port(),
            receipt: Some(self.receipt(parent).seal(&self.me.signer)),
            capabilities: self.me.capabilities.as_slice().into(),
            next_poll_s,
        }
    }

    pub(super) fn link_up(&mut self, now: Now, poll: bool) {
        self.links += 1;
        let (number, since) = (self.links, now.mono);
        self.link = Some(Link { number, poll, done: false, closing: false, since });
    }

    pub(super) fn link_down(&mut self) {
        self.link = None;
        self.links += 1;
        self.untold.forget();
        self.spool.link_down();
    }

    /// The newest link or dial.
    pub fn attachment(&self) -> AttachmentKey {
        AttachmentKey { epoch: self.me.epoch, attachment: self.attachment }
    }

    /// What lets this parent, and those above it, bring this device's records (RLY-9).
    fn receipt(&self, parent: NodeId) -> Receipt {
        let (heads, complete) = self.spool.own_heads();
        Receipt {
            tenant: self.me.tenant.clone(),
            node: self.me.node,
            key: self.me.signer.public(),
            epoch: self.me.epoch,
            attachment: self.attachment,
            parent,
            heads,
            complete,
        }
    }

    pub(super) fn up(&mut self, now: Now, welcome: &Welcome) {
        self.lease = welcome.lease;
        self.overtaken = 0;
        self.wake.welcomed();
        self.link_up(now, welcome.lease.is_some());
        let any = D::SEEDED && self.defects.has(Defect::TRUSTS_ANY_MEMORY);
        self.spool.link_up(welcome.parent, if any { 0 } else { welcome.store });
    }

    /// The slot went to somebody else (ADM-2): say what is left to say, then poll.
    pub(super) fn leased(&mut self, lease: Lease) {
        self.lease = Some(lease);
        if let Some(link) = &mut self.link {
            link.poll = true;
        }
    }

    /// The poll's bounds are reached (DESIGN 3): what was sent is waited for, the rest is the next poll's.
    pub(super) fn bounded(&mut self) {
        if let Some(link) = self.link.as_mut().filter(|link| link.poll) {
            link.closing = true;
        }
    }

    /// How much what waits here hurries.
    pub(super) fn poke(&self) -> Poke {
        if self.spool.is_pressing() { Poke::Urgent } else { Poke::Something }
    }

    pub(super) fn down(&mut self, out: &mut Vec<Effect>) {
        self.link_down();
        if std::mem::take(&mut self.redial) {
            out.push(Effect::Poke(Poke::Urgent));
        }
        if self.wake.is_called() {
            out.push(Effect::Poke(Poke::Wake));
        }
        // What was sent and not stored counts too: it may have crossed with the parent's goodbye.
        // The same with settings that came when we had said that we are done: the next greeting acknowledges them.
        if !self.spool.is_drained() || self.told_settings != self.settings_version() {
            out.push(Effect::Poke(self.poke()));
        }
    }

    pub(super) fn received(&mut self, now: Now, received: Received, turn: &mut Turn, out: &mut Vec<Effect>) {
        if self.link.is_none() {
            return;
        }
        let Received { lane, bytes, credit } = received;
        // Given back at once, unless the message has something to be remembered first.
        let at_once = |out: &mut Vec<Effect>| out.push(Effect::Release(lane, credit));
        match Message::decode(&bytes) {
            Ok(Message::Orders(orders)) => {
                self.orders(now, orders, turn, out);
                turn.then(Effect::Release(lane, credit));
            }
            Ok(Message::Acks(acks)) => match self.acks(now, &acks, turn, out) {
                Ok(()) => turn.then(Effect::Release(lane, credit)),
                Err(why) => self.broken(why, out),
            },
            Ok(Message::Document(kind, envelope)) => {
                self.document(now, kind, &envelope, turn, out);
                turn.then(Effect::Release(lane, credit));
            }
            Ok(Message::Sections(node, _)) => {
                if node == self.me.node {
                    self.inventory.request(Request { order: None, full: true });
                }
                at_once(out);
            }
            Ok(Message::Recall(asked)) => {
                // Open orders follow as records of this device, durable at each hop.
                let documents = self.documents.newer_than(&asked.documents);
                let recalled = Recalled { documents, orders: Vec::new(), last: true };
                out.push(Effect::Send(Lane::Control, Message::Recalled(recalled)));
                at_once(out);
            }
            Ok(Message::Handed(node, epoch, orders)) => {
                // What an earlier epoch has said is asked for in another way.
                if (node, epoch) == (self.me.node, self.me.epoch) {
                    self.reminded(now, &orders, turn);
                }
                turn.then(Effect::Release(lane, credit));
            }
            Ok(Message::Again(streams)) => {
                let own = streams.iter().filter(|stream| stream.node == self.me.node);
                own.for_each(|stream| self.spool.again(stream));
                at_once(out);
            }
            // What is over here this device knows itself: a withdrawal is for those who hold orders for others.
            Ok(Message::Withdraw(_) | Message::Ancestors(_)) => at_once(out),
            Ok(
                Message::Records(_)
                | Message::Taken(_)
                | Message::Presence { .. }
                | Message::Versions(_)
                | Message::Withdrawn(_)
                | Message::Left(_)
                | Message::Newer(..)
                | Message::Recalled(_)
                | Message::Disk(..),
            )
            | Err(MessageFault::Unknown(_)) => {
                count(Counted::UnknownMessage, out);
                at_once(out);
            }
            Err(fault @ (MessageFault::Empty | MessageFault::Malformed { .. })) => self.broken(fault.to_string(), out),
        }
    }

    fn acks(&mut self, now: Now, acks: &[Ack], turn: &mut Turn, out: &mut Vec<Effect>) -> Result<(), String> {
        for ack in acks {
            tracing::debug!(node = %self.me.node, stored = ack.stored, settled = ack.settled, "acknowledged");
            let early = D::SEEDED && self.defects.has(Defect::DELETES_ON_STORED);
            let ack = &Ack { settled: if early { ack.stored } else { ack.settled }, ..ack.clone() };
            let settled = self.settling(now, ack);
            let acked = self.spool.acked(ack, &mut turn.batch).map_err(|fault| fault.to_string())?;
            self.keep_settled(now, settled, turn);
            let forked = ack.refused.iter().any(|(_, code)| code == ROLLBACK);
            // What an earlier epoch's disk forgot has been dealt with.
            if (acked.rolled_back || forked) && (ack.stream.node, ack.stream.epoch) == (self.me.node, self.me.epoch) {
                self.put_back(now, "the server remembers records of this device that its disk does not", turn);
            }
            ack.refused.iter().for_each(|_| count(Counted::RecordRefused, out));
        }
        Ok(())
    }

    /// The parent does not keep to the protocol: another link may.
    fn broken(&mut self, why: String, out: &mut Vec<Effect>) {
        count(Counted::ProtocolError, out);
        out.push(Effect::CloseLink(why));
        self.link_down();
    }

    fn settings_version(&self) -> (u32, u64) {
        self.documents.settings().map_or((0, 0), |settings| settings.version())
    }

    pub(super) fn document(
        &mut self,
        now: Now,
        kind: Kind,
        envelope: &Envelope,
        turn: &mut Turn,
        out: &mut Vec<Effect>,
    ) {
        let taken = match self.documents.take(kind, envelope, &mut turn.batch) {
            Ok(Some(taken)) => taken,
            Ok(None) => return,
            Err(_) => return count(Counted::DocumentRefused, out),
        };
        match taken.kind {
            Kind::Time => {
                if let Some(statement) = self.documents.time() {
                    let (time, term, floor) = (statement.time, statement.term, statement.order_floor);
                    // What is forgotten and the floor that stands for it go together.
                    if taken.written {
                        self.journal.set_floor(term, floor, &mut turn.batch);
                    }
                    // At once: what comes next on this link is judged by it.
                    out.push(Effect::LearnTime(time));
                    self.offer_again(now, turn);
                }
            }
            Kind::Trust | Kind::Upstreams => turn.then(Effect::Reconfigure),
            Kind::Revocations => {
                self.adopt_epoch(now, turn);
                self.begin_ready(now, turn);
                self.look_at_schedule(now, turn);
            }
            Kind::Settings => {
                let versions = self.documents.versions();
                turn.then.push(self.send(Lane::Control, Message::Versions(versions)));
                // A better way is looked for at the poll interval.
                turn.then(Effect::Reconfigure);
                if self.link.as_ref().is_some_and(|link| !link.done) {
                    self.told_settings = self.settings_version();
                }
                let link_ms = self.link.as_ref().map_or(0, |link| now.mono.since(link.since));
                if let Some(settings) = self.documents.settings().filter(|_| !self.documents.revokes_me()) {
                    self.schedule.adopt(now, settings, link_ms, &mut turn.batch);
                    self.look_at_schedule(now, turn);
                }
            }
        }
    }

    /// Credit and acknowledgement of a link belong to that link.
    pub(super) fn send(&self, lane: Lane, message: Message) -> Then {
        Then::Effect(Effect::Send(lane, message))
    }
}
