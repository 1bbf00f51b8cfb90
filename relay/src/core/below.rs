//! What children say.

use super::{
    Effect, persist,
    state::{After, Link, RelayCore},
};
use branchline_node::{
    defects::{Defect, Defects},
    downstream::{Child, admission::Demand, directory::Attach},
    link::engine::LinkEnd,
    store::Batch,
    uplink::spool::SpoolFault,
};
use branchline_protocol::{
    chain::ChainFault,
    document::Kind,
    id::{AttachmentKey, NodeId, Role},
    record::{Facts, JobResult, Lane, Run, class},
    refusal::Refusal,
    time::Now,
    wire::{Goodbye, Message, Reach},
};
use std::{collections::BTreeMap, sync::Arc};

impl<D: Defects> RelayCore<D> {
    /// What the open orders of this relay's own children ask of its slots.
    pub fn demands(&self) -> BTreeMap<NodeId, Demand> {
        self.ledger.demands(self.directory.children())
    }

    pub(super) fn child_up(&mut self, now: Now, child: Arc<Child>, out: &mut Vec<Effect>) {
        if self.is_past(&child) {
            return self.hand_list(&child, out);
        }
        let attach = Attach {
            node: child.node,
            role: child.role,
            key: match D::SEEDED && self.defects.has(Defect::NO_EPOCH_IN_ATTACHMENT) {
                true => AttachmentKey { epoch: 1, ..child.key },
                false => child.key,
            },
            session: child.session,
            lease: child.lease,
            wakeable: child.is_wakeable(),
            at: now.node,
            capabilities: child.greeting.capabilities.clone(),
        };
        let behind = child.role == Role::Relay && self.directory.is_behind(child.node, child.key, child.greeting.age);
        if behind || !self.directory.attach(attach) {
            let refusal = Refusal::new(409, "stale_attachment", "a newer attachment of this node is here");
            out.push(Effect::RefuseChild(child.node, child.session, refusal));
            return self.refused_as_stale(now, child.node, child.key, out);
        }
        self.directory.holds(child.node, &child.greeting.documents);
        self.receipts.attached(child.node, child.greeting.receipt.clone());
        self.renew(child.node);
        let (poll, wakeable) = (child.lease.is_some(), child.is_wakeable());
        self.links.insert(child.node, Link { session: child.session, role: child.role, poll, done: false, wakeable });
        // Before any document: what it holds may be what is asked for.
        self.recall_for(&child, out);
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            let Some((version, envelope)) = self.shelf.get(kind) else { continue };
            if child.greeting.documents.get(index).is_none_or(|has| has < version) {
                let message = Message::Document(kind, envelope.clone());
                out.push(Effect::ToChild(child.node, child.session, Lane::Control, message));
            }
        }
        self.remind(&child, out);
        self.ask_to_send_again(child.node, out);
        let below = self.directory.below(child.node);
        let mut batch = Batch::new();
        self.directory.keep(child.node, child.key);
        persist::attached(child.node, child.key, &mut batch);
        self.met(&child, &mut batch, out);
        self.ledger.child_gone(child.node, &below);
        if child.role == Role::Relay {
            self.child_disk(child.node, child.greeting.disk, &mut batch);
            let opening = child.greeting.incarnation;
            if self.openings.insert(child.node, opening) != Some(opening) {
                let changes = self.ledger.child_reopened(child.node);
                self.note(changes, &mut batch);
            }
        }
        if !(D::SEEDED && self.defects.has(Defect::OVERLOOKS_MOVES)) {
            let changes = self.ledger.moved(child.node, Some(child.node));
            self.note(changes, &mut batch);
        }
        let after = After { look: below.into_iter().chain([child.node]).collect(), ..After::default() };
        self.commit(now, batch, after, out);
        out.push(Effect::FactsChanged);
    }

    /// The number of a child relay's disk. With another one what it held is gone, or it does not know any more what it handed
    /// on of it.
    fn child_disk(&mut self, child: NodeId, disk: u64, batch: &mut Batch) {
        let before = self.disks.insert(child, disk);
        if before != Some(disk) {
            persist::child_disk(child, disk, batch);
        }
        let overlooked = D::SEEDED && self.defects.has(Defect::OVERLOOKS_NEW_DISK);
        if before.is_some_and(|before| before != disk) && !overlooked {
            let changes = self.ledger.child_lost(child);
            self.note(changes, batch);
        }
    }

    pub(super) fn child_gone(&mut self, now: Now, child: &Child, end: &LinkEnd, out: &mut Vec<Effect>) {
        let any = D::SEEDED && self.defects.has(Defect::LATE_CLEANUP_IN_CORE);
        if self.links.get(&child.node).is_none_or(|l| l.session != child.session && !any) {
            return;
        }
        let poll = self.links.remove(&child.node).is_some_and(|l| l.poll);
        self.recall_without(child.node);
        self.renew(child.node);
        let reach = match end {
            LinkEnd::Goodbye(Goodbye::ShuttingDown | Goodbye::Stopping) => Reach::GoneShutdown,
            LinkEnd::Closed(Goodbye::Done | Goodbye::Continue) | LinkEnd::Goodbye(Goodbye::Done) if poll => {
                self.directory.rests(child.node)
            }
            // This relay ended it, because it stops or rebuilds a part of itself: that says nothing of the child.
            LinkEnd::Closed(Goodbye::Stopping) => Reach::Awaited,
            // It is on its way to another parent, or here by another way.
            LinkEnd::Goodbye(Goodbye::Moving) => Reach::Awaited,
            _ => Reach::GoneTimeout,
        };
        self.directory.detach(child.node, child.session, reach, now.node);
        let below = self.directory.below(child.node);
        self.ledger.child_gone(child.node, &below);
        if reach == Reach::Wakeable {
            // What came while its poll was ending.
            self.offer(now, Some(&[child.node]), out);
        }
    }

    pub(super) fn child_said(
        &mut self,
        now: Now,
        child: &Child,
        message: Message,
        credit: (Lane, u32),
        out: &mut Vec<Effect>,
    ) {
        if self.links.get(&child.node).is_none_or(|l| l.session != child.session) {
            return;
        }
        self.directory.heard(child.node, now.node);
        let mut batch = Batch::new();
        let mut after = After::default();
        match message {
            Message::Records(runs) => {
                for run in runs {
                    self.carry(now, child, run, &mut batch, &mut after, out);
                }
            }
            Message::Taken(orders) => {
                for (order, devices) in orders {
                    let changes = self.ledger.taken(child.node, order, &devices);
                    self.note(changes, &mut batch);
                }
            }
            Message::Presence { snapshot, entries } => {
                for (hop, node, key) in self.directory.overtaken(child.node, &entries) {
                    self.overtake(hop, node, key, out);
                }
                for node in self.directory.presence(child.node, snapshot, entries) {
                    let overlooked = D::SEEDED && self.defects.has(Defect::OVERLOOKS_MOVES);
                    let hop = self.directory.next_hop(node).filter(|_| !overlooked);
                    let changes = self.ledger.moved(node, hop);
                    self.note(changes, &mut batch);
                    after.look.insert(node);
                }
            }
            Message::Versions(documents) => self.directory.holds(child.node, &documents),
            Message::Left(left) => self.left(now, child, left, out),
            Message::Recalled(recalled) => self.recalled(now, child, recalled, out),
            Message::Disk(disk, age) if child.role == Role::Relay => {
                self.directory.aged(child.node, child.key.epoch, age);
                self.child_disk(child.node, disk, &mut batch);
                after.look.extend(self.directory.below(child.node));
            }
            other => {
                tracing::debug!(child = %child.node, kind = ?std::mem::discriminant(&other), "a message that only flows down")
            }
        }
        self.owe(now, child, credit, &mut after, out);
        self.commit(now, batch, after, out);
        self.end_polls(out);
    }

    fn carry(
        &mut self,
        now: Now,
        child: &Child,
        mut run: Run,
        batch: &mut Batch,
        after: &mut After,
        out: &mut Vec<Effect>,
    ) {
        let stream = run.stream;
        let receipts = std::mem::take(&mut run.receipts);
        let alien = child.role == Role::Agent && stream.node != child.node;
        if alien || !self.receipts.brought(stream.node, child.node, receipts, batch) {
            // A device speaks for itself only, a relay for those that were attached below it (RLY-9).
            let refused: Vec<(u64, String)> = run.records.iter().map(|r| (r.number, "foreign".into())).collect();
            let upto = run.records.last().map_or(0, |r| r.number);
            let ack = branchline_protocol::wire::Ack { stream, stored: upto, settled: upto, refused };
            after.effects.push(Effect::ToChild(child.node, child.session, Lane::Control, Message::Acks(vec![ack])));
            out.push(Effect::Refused("foreign"));
            let message = format!("{} brought records of {}", child.node, stream.node);
            self.alert_rarely(now, "foreign_records", message, out);
            return;
        }
        let mut telling = run.records.clone();
        telling.retain(|record| [class::RESULT, class::FACTS].contains(&record.class));
        let (mark, fault) = self.spool.carry(run, batch);
        match &fault {
            None => self.again.came(stream, child.node),
            Some(SpoolFault::Chain(fault)) => {
                // What is not kept here changes nothing here.
                telling.retain(|record| record.number < fault.number());
                if let ChainFault::Hole { .. } = fault {
                    self.missing(stream, child.node, &mut after.effects);
                }
            }
            Some(_) => telling.clear(),
        }
        for record in &telling {
            if record.class == class::FACTS {
                if let Ok(facts) = rmp_serde::from_slice::<Facts>(&record.body) {
                    self.told(now, stream.node, facts, batch, after);
                }
            } else if let Ok(result) = rmp_serde::from_slice::<JobResult>(&record.body) {
                // The order is over on that device: its row closes with the same write that keeps the result.
                tracing::debug!(trace = ?record.trace, order = %result.order, device = %stream.node, end = ?result.end, "result carried");
                let change = self.ledger.ended(result.order, stream.node);
                if change.is_some() && !self.ledger.contains(result.order) {
                    tracing::info!(trace = ?record.trace, order = %result.order, "every result carried");
                }
                self.note(change.into_iter().collect(), batch);
            }
        }
        if D::SEEDED && self.defects.has(Defect::STORES_BEFORE_COMMIT) {
            self.spool.committed(&mark);
            let acks = Message::Acks(vec![self.spool.ack(&stream)]);
            out.push(Effect::ToChild(child.node, child.session, Lane::Control, acks));
        }
        after.mark.push(mark);
        let mut refused = Vec::new();
        if let Some(fault) = fault {
            tracing::warn!(node = %stream.node, %fault, "records not taken");
            let code = if let SpoolFault::Chain(fault) = &fault {
                refused.push((fault.number(), fault.code().to_string()));
                fault.code()
            } else {
                "malformed"
            };
            out.push(Effect::Refused(code));
            self.alert_rarely(now, code, format!("{}: {fault}", stream.node), out);
        }
        after.acks.push((child.node, child.session, stream, refused));
    }

    /// Nothing is owed to a child's old session.
    pub(super) fn renew(&mut self, child: NodeId) {
        self.bounds.renew(child);
        self.owed.forget(child);
    }

    /// To whom a message for a node below goes.
    pub(super) fn hop(&self, node: NodeId) -> Option<(NodeId, u64)> {
        let child = self.directory.live_hop(node)?;
        self.links.get(&child).map(|l| (child, l.session))
    }
}
