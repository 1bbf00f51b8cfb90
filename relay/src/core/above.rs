//! What the parent says.

use super::{
    Effect, persist,
    state::{After, RelayCore},
};
use branchline_node::{
    defects::{Defect, Defects},
    downstream::ledger::{Ask, Change, Kept},
    store::Batch,
};
use branchline_protocol::{
    document::Kind,
    id::{NodeId, Role},
    job::CANCEL,
    order::{Envelope, OrderMessage, verify_order},
    record::{Fact, Lane},
    refusal::Refusal,
    time::Now,
    wire::{Ack, Message, Welcome},
};
use std::collections::{BTreeMap, BTreeSet};

impl<D: Defects> RelayCore<D> {
    pub(super) fn welcomed(&mut self, now: Now, welcome: Welcome, out: &mut Vec<Effect>) {
        self.parent_up = true;
        self.recalling = None;
        self.overtaken = 0;
        self.spool.link_up(welcome.parent, welcome.store);
        self.receipts.link_up();
        self.age.link_up();
        let entries = self.directory.snapshot();
        out.push(Effect::ToParent(Lane::Control, Message::Presence { snapshot: true, entries }));
        self.set_ancestors(now, welcome.ancestors, out);
    }

    fn set_ancestors(&mut self, _now: Now, ancestors: Vec<(NodeId, String)>, out: &mut Vec<Effect>) {
        if ancestors.iter().any(|(node, _)| *node == self.me.node) {
            // Two relays attached to each other at the same moment (TOP-20).
            out.push(Effect::CloseParent("loop"));
            return;
        }
        if self.ancestors != ancestors {
            self.ancestors = ancestors;
            let chain = self.chain();
            for (child, link) in self.links.iter().filter(|(_, l)| l.role == Role::Relay) {
                out.push(Effect::ToChild(*child, link.session, Lane::Control, Message::Ancestors(chain.clone())));
            }
        }
        out.push(Effect::FactsChanged);
    }

    pub(super) fn parent_said(&mut self, now: Now, message: Message, credit: (Lane, u32), out: &mut Vec<Effect>) {
        let release = Effect::ReleaseParent(credit.0, credit.1);
        match message {
            Message::Orders(orders) => self.orders(now, orders, release, out),
            Message::Acks(acks) => {
                let mut batch = Batch::new();
                let mut told = Vec::new();
                let (mut after, mut rolled_back, mut again) = (release, false, Vec::new());
                for mut ack in acks {
                    if ack.stream.node != self.me.node && ack.refused.iter().any(|(_, code)| code == "foreign") {
                        // Those who brought it are told; the device is not: what it has itself, it keeps.
                        self.spool.disown(&ack.stream, &mut batch);
                        told.extend(self.brought_by(ack.stream.node).into_iter().map(|to| (to, ack.clone())));
                        again.push(ack.stream);
                        continue;
                    }
                    if D::SEEDED && self.defects.has(Defect::DELETES_ON_STORED) {
                        ack.settled = ack.settled.max(ack.stored);
                    }
                    tracing::debug!(node = %ack.stream.node, stored = ack.stored, settled = ack.settled, "acknowledged");
                    match self.spool.acked(&ack, &mut batch) {
                        Ok(acked) => rolled_back |= acked.rolled_back,
                        Err(fault) => {
                            tracing::warn!(%fault, "acknowledgement refused");
                            // What the ones before it changed in memory goes onto the disk all the same.
                            after = Effect::CloseParent("acknowledgement beyond what was sent");
                            break;
                        }
                    }
                    if ack.stream.node != self.me.node
                        && (ack.settled > 0 || !ack.refused.is_empty())
                        && let Some(to) = self.hop(ack.stream.node)
                    {
                        // What the child learns is that it may forget. What the parent stored says nothing of this disk: a
                        // device that came from the parent's side may have brought it more than is here.
                        told.push((to, Ack { stored: ack.settled, ..ack }));
                    }
                }
                let mut effects = Vec::new();
                self.tell_acks(told, &mut effects);
                again.into_iter().for_each(|stream| self.disowned(stream, &mut effects));
                effects.push(after);
                self.commit(now, batch, After { effects, ..After::default() }, out);
                // Behind that batch: the alert goes into a stream of which it may hold the row.
                if rolled_back {
                    self.put_back(now, "the server remembers records of this relay that its disk does not", out);
                }
            }
            Message::Document(kind, envelope) => self.take_document(now, kind, envelope, vec![release], out),
            Message::Sections(device, sections) => {
                if let Some((child, session)) = self.hop(device) {
                    out.push(Effect::ToChild(child, session, Lane::Control, Message::Sections(device, sections)));
                }
                out.push(release);
            }
            Message::Withdraw(envelopes) => self.withdrawn(now, envelopes, release, out),
            Message::Recall(recall) => {
                self.recall(now, recall, out);
                out.push(release);
            }
            Message::Handed(device, epoch, orders) => {
                self.handed(device, epoch, orders, out);
                out.push(release);
            }
            Message::Again(streams) => {
                for stream in streams {
                    self.spool.again(&stream);
                    self.receipts.untold(&stream);
                }
                out.push(release);
            }
            Message::Newer(node, key) => self.newer(now, node, key, release, out),
            Message::Ancestors(chain) => {
                self.set_ancestors(now, chain, out);
                out.push(release);
            }
            other => {
                tracing::debug!(kind = ?std::mem::discriminant(&other), "a message that only flows up");
                out.push(release);
            }
        }
    }

    fn orders(&mut self, now: Now, orders: Vec<OrderMessage>, release: Effect, out: &mut Vec<Effect>) {
        let mut batch = Batch::new();
        let mut after = After::default();
        let mut taken = Vec::new();
        let mut back = Vec::new();
        for message in orders {
            let payload = match verify_order(&message, &self.me.tenant, self.shelf.trust()) {
                Ok(verified) => verified.payload,
                Err(fault) => {
                    // Never run, never passed on (RLY-13).
                    tracing::warn!(%fault, code = fault.code(), "order refused");
                    out.push(Effect::Refused("bad_signature"));
                    self.alert(now, "order_refused", format!("{}: {fault}", fault.code()), out);
                    continue;
                }
            };
            let number = payload.number;
            let devices: Vec<NodeId> = message.proof.leaves.iter().map(|(_, leaf)| leaf.device).collect();
            // A cancel opens nothing, and may close something.
            let opens = payload.verb != CANCEL && !self.ledger.contains(number);
            if opens && !self.has_room(payload.class, devices.len()) {
                self.leave(now, number, devices, out);
                continue;
            }
            tracing::info!(trace = %payload.trace, order = %number, devices = devices.len(), "order held");
            let cancel = payload.verb == CANCEL;
            if cancel {
                back.extend(self.cancelled(&payload, &message.args, &devices, &mut batch));
            }
            // Of an epoch that the device has left nobody but the device itself can say that it never had it.
            let past: BTreeSet<NodeId> = self.past(&message);
            let dead = |device: &NodeId| !past.contains(device) && self.is_dead(now, number, payload.fetch_by, *device);
            let dead: BTreeSet<NodeId> = devices.iter().copied().filter(dead).collect();
            // Whose result is on its way through here had the order, although its row is closed: a new row would have no
            // holder, and be given back.
            let returning = |device: &NodeId| self.is_returning(number, *device);
            let returning: BTreeSet<NodeId> = devices.iter().copied().filter(returning).collect();
            back.extend(dead.difference(&returning).map(|device| (number, *device)));
            // The way is known: the holders become durable with the order itself, and nothing is sent before.
            let ways: BTreeMap<NodeId, Option<NodeId>> = devices.iter().map(|d| (*d, self.way(*d))).collect();
            let opens = |device| !dead.contains(&device) && !returning.contains(&device);
            let keep = |device| {
                let asking = Kept::asking(ways.get(&device).copied().flatten());
                let past = past.contains(&device);
                // Nobody but the device can say that it never had it: it counts as a holder.
                let holders = if past { vec![device] } else { asking.holders.clone() };
                opens(device).then_some(Kept { past, holders, ..asking })
            };
            match self.ledger.add(&self.me.tenant, payload, message.clone(), keep) {
                Ok(changes) => {
                    if !changes.is_empty() {
                        persist::order(number, &message, &mut batch);
                    }
                    let ask = |change: &Change| {
                        let child = ways.get(&change.device).copied().flatten()?;
                        Some(Ask { change: change.clone(), child })
                    };
                    after.asks.extend(changes.iter().filter_map(ask));
                    if self.is_nested() && !cancel {
                        self.facts.extend(changes.iter().map(|c| (c.order, Fact::Held as u8, c.device)));
                    }
                    self.note(changes, &mut batch);
                    if cancel {
                        self.tell_holders(number, &message.args, &devices);
                    }
                }
                Err(fault) => {
                    tracing::warn!(%fault, "proof refused");
                    out.push(Effect::Refused("bad_signature"));
                    continue;
                }
            }
            after.look.extend(devices.iter().copied());
            taken.push((number, devices));
        }
        self.give_back(now, back, &mut batch, &mut after);
        if !taken.is_empty() {
            let early = D::SEEDED && self.defects.has(Defect::TAKES_BEFORE_COMMIT);
            let told = if early { &mut *out } else { &mut after.effects };
            told.push(Effect::ToParent(Lane::Control, Message::Taken(taken)));
        }
        after.effects.push(release);
        self.commit_in_turn(now, batch, after, out);
    }

    /// Takes a document, makes it durable, then hands it on and acts by it.
    pub(super) fn take_document(
        &mut self,
        now: Now,
        kind: Kind,
        envelope: Envelope,
        mut effects: Vec<Effect>,
        out: &mut Vec<Effect>,
    ) {
        let suspended = self.shelf.revocations().clone();
        let term = self.shelf.time().map(|statement| statement.term);
        let mut look = BTreeSet::new();
        let newer = match self.shelf.take(kind, &envelope) {
            Ok(newer) => newer,
            Err(fault) => {
                tracing::warn!(?kind, %fault, "document refused");
                out.push(Effect::Refused("bad_document"));
                false
            }
        };
        let mut batch = Batch::new();
        if newer {
            if kind == Kind::Time {
                // A minute's statement is not worth a sync; every ten minutes one is, for a restart without a parent.
                if let Some(statement) = self.shelf.time() {
                    if self.is_time_due(Now { node: statement.time, ..now }) {
                        persist::document(kind, &envelope, &mut batch);
                        self.time_kept = Some(statement.time.max(self.time_kept.unwrap_or_default()));
                    }
                    // A server that was restored is told by each device what it may not know, once that hears of it.
                    if term.is_some_and(|term| term < statement.term) {
                        for (child, link) in &self.links {
                            let message = Message::Document(kind, envelope.clone());
                            effects.push(Effect::ToChild(*child, link.session, Lane::Control, message));
                        }
                    }
                    // At once: the orders that come next on this link are judged by it.
                    out.push(Effect::LearnTime(statement.time, envelope));
                }
            } else {
                persist::document(kind, &envelope, &mut batch);
                for (child, link) in &self.links {
                    let message = Message::Document(kind, envelope.clone());
                    effects.push(Effect::ToChild(*child, link.session, Lane::Control, message));
                }
                match kind {
                    Kind::Revocations => {
                        let revoked = self.shelf.revocations().clone();
                        // Who was revived is given what has waited.
                        if !(D::SEEDED && self.defects.has(Defect::REVIVES_SILENTLY)) {
                            look.extend(suspended.suspended.iter().filter(|device| !revoked.suspends(**device)));
                        }
                        look.extend(self.ask_again(&mut batch));
                        let gone: Vec<(NodeId, u64)> = self
                            .links
                            .iter()
                            .filter(|(n, _)| self.directory.get(**n).is_some_and(|e| revoked.covers(**n, e.key.epoch)))
                            .map(|(n, l)| (*n, l.session))
                            .collect();
                        for (node, session) in gone {
                            let refusal =
                                Refusal::new(401, "revoked", "this identity was revoked; enrol anew with a new token");
                            effects.push(Effect::RefuseChild(node, session, refusal));
                        }
                        effects.push(Effect::FactsChanged);
                    }
                    Kind::Upstreams | Kind::Trust => effects.push(Effect::Reconfigure),
                    // The intervals that children are told.
                    Kind::Settings => effects.push(Effect::FactsChanged),
                    Kind::Time => {}
                }
            }
            tracing::debug!(?kind, version = ?self.shelf.get(kind).map(|(v, _)| *v), "document taken");
        }
        self.commit(now, batch, After { effects, look, ..After::default() }, out);
    }
}
