//! Orders that come to nothing: cancelled, or late. A relay gives back what nobody below can have; what may be below it
//! keeps until that is told or everyone's time is over (JOB-4, JOB-14).

use super::{
    Effect, persist,
    state::{After, RelayCore},
};
use branchline_node::{
    defects::{Defect, Defects},
    store::{Batch, Table},
};
use branchline_protocol::{
    id::{NodeId, OrderNumber, Role},
    job::Cancel,
    order::{Envelope, Payload, Withdrawal},
    record::{Fact, Facts, JobResult, Lane, class},
    time::{Millis, Now},
    wire::Message,
};
use std::collections::{BTreeMap, BTreeSet};

/// Milliseconds of node time after which it is written down again: what a restart without a parent may set it back by.
const TIME_KEPT_EVERY_MS: i64 = 600_000;

impl<D: Defects> RelayCore<D> {
    /// Commits behind everything that waits, even if there is nothing to write: a repeated order is not acknowledged
    /// before the first is on disk.
    pub(super) fn commit_in_turn(&mut self, now: Now, batch: Batch, after: After, out: &mut Vec<Effect>) {
        if self.waiting.is_empty() || !batch.is_empty() {
            return self.commit(now, batch, after, out);
        }
        self.next_token += 1;
        self.waiting.insert(self.next_token, after);
        out.push(Effect::Commit(batch, self.next_token));
    }

    /// Writes node time down, if a statement has said it: an order that was given back as late stays late after a
    /// restart.
    pub(super) fn keep_time(&mut self, now: Now, batch: &mut Batch) {
        if self.shelf.time().is_some() && self.time_kept.is_none_or(|kept| kept < now.node) {
            self.time_kept = Some(now.node);
            batch.put(Table::Meta, persist::NODE_TIME.to_vec(), now.node.0.to_be_bytes().to_vec());
        }
    }

    /// The node time by which orders count as late. Before the first statement node time is this machine's clock, which
    /// may be anything: nothing is late, the device judges.
    pub(super) fn stated(&self, now: Now) -> Millis {
        if self.shelf.time().is_some() { now.node } else { Millis(i64::MIN) }
    }

    /// Whether node time has moved on enough to be written down.
    pub(super) fn is_time_due(&self, now: Now) -> bool {
        self.time_kept.is_none_or(|kept| now.node.0 - kept.0 >= TIME_KEPT_EVERY_MS)
    }

    /// Says in one record with the batch that these orders are not here for these devices and never will be.
    pub(super) fn give_back(
        &mut self,
        now: Now,
        mut rows: Vec<(OrderNumber, NodeId)>,
        batch: &mut Batch,
        after: &mut After,
    ) {
        // It came a second time while the result of the first was on its way up.
        rows.retain(|(order, device)| !self.is_returning(*order, *device));
        if rows.is_empty() {
            return;
        }
        let mut grouped: BTreeMap<OrderNumber, Vec<NodeId>> = BTreeMap::new();
        for (order, device) in rows {
            tracing::info!(%order, %device, "given back");
            grouped.entry(order).or_default().push(device);
        }
        let facts = grouped.into_iter().map(|(order, devices)| (order, Fact::GivenBack, devices)).collect();
        let body = rmp_serde::to_vec(&Facts { facts }).expect("facts are plain data");
        after.mark.push(self.spool.append(now.shown(), Lane::Urgent, class::FACTS, None, body.into(), batch));
        self.keep_time(now, batch);
    }

    /// Forgets a device's row.
    pub(super) fn forget(&mut self, order: OrderNumber, device: NodeId, batch: &mut Batch) {
        let change = self.ledger.ended(order, device);
        self.note(change.into_iter().collect(), batch);
    }

    /// With a defect: what is late is left to the server.
    fn expires_above(&self) -> bool {
        D::SEEDED && self.defects.has(Defect::EXPIRES_AT_SERVER_ONLY)
    }

    /// Whether an order that is not open here for this device can be given back unseen: it is cancelled or late, and no
    /// result of it is on its way through here.
    pub(super) fn is_dead(&self, now: Now, order: OrderNumber, fetch_by: Millis, device: NodeId) -> bool {
        let late = self.stated(now) > fetch_by && !self.expires_above();
        self.ledger.row(order, device).is_none() && (late || self.tombs.contains_key(&(order, device)))
    }

    /// A result of this order by this device is here and not settled: the device had it, and nothing else is said.
    pub(super) fn is_returning(&self, order: OrderNumber, device: NodeId) -> bool {
        let mut results = self.spool.unsettled_of(device).filter(|record| record.class == class::RESULT);
        results.any(|r| rmp_serde::from_slice::<JobResult>(&r.body).is_ok_and(|result| result.order == order))
    }

    /// A cancel came: its targets are known as cancelled from here on, before or after they arrive. Answers what is given
    /// back at once.
    pub(super) fn cancelled(
        &mut self,
        cancel: &Payload,
        args: &[u8],
        devices: &[NodeId],
        batch: &mut Batch,
    ) -> Vec<(OrderNumber, NodeId)> {
        let Ok(Cancel { target }) = rmp_serde::from_slice(args) else { return Vec::new() };
        let mut back = Vec::new();
        for device in devices {
            self.tombs.insert((target, *device), cancel.fetch_by);
            persist::tomb(target, *device, cancel.fetch_by, batch);
            self.ledger.close(target, *device);
            let held = self.ledger.row(target, *device).is_some();
            let wrong = D::SEEDED && held && self.defects.has(Defect::GIVES_BACK_HELD);
            if self.ledger.is_free(target, *device) || wrong {
                self.forget(target, *device, batch);
                back.push((target, *device));
            }
        }
        back
    }

    /// Orders that are over, in the server's own words: they go, and are known to be over if they come later. Children that
    /// may have them are told the same.
    pub(super) fn withdrawn(&mut self, now: Now, envelopes: Vec<Envelope>, release: Effect, out: &mut Vec<Effect>) {
        let (mut batch, mut known) = (Batch::new(), Vec::new());
        let mut told: BTreeMap<(NodeId, u64), Vec<Envelope>> = BTreeMap::new();
        for envelope in envelopes {
            let Withdrawal { target, devices, until, .. } =
                match Withdrawal::open(&envelope, &self.me.tenant, self.shelf.trust()) {
                    Ok(withdrawal) => withdrawal,
                    Err(fault) => {
                        tracing::warn!(%fault, "withdrawal refused");
                        out.push(Effect::Refused("bad_signature"));
                        self.alert_rarely(now, "withdrawal_refused", format!("{}: {fault}", fault.code()), out);
                        continue;
                    }
                };
            let mut children: BTreeSet<NodeId> = BTreeSet::new();
            for device in &devices {
                children.extend(self.ledger.holders(target, *device));
                children.extend(self.hop(*device).map(|(child, _)| child));
                children.remove(device);
                self.forget(target, *device, &mut batch);
                let tomb = self.tombs.entry((target, *device)).or_insert(until);
                *tomb = until.max(*tomb);
                persist::tomb(target, *device, *tomb, &mut batch);
            }
            for child in children {
                if let Some(link) = self.links.get(&child).filter(|link| link.role == Role::Relay) {
                    told.entry((child, link.session)).or_default().push(envelope.clone());
                }
            }
            known.push((target, devices));
        }
        let below = told.into_iter().map(|((child, session), envelopes)| {
            Effect::ToChild(child, session, Lane::Urgent, Message::Withdraw(envelopes))
        });
        let mut effects: Vec<Effect> = below.collect();
        if !known.is_empty() {
            effects.push(Effect::ToParent(Lane::Control, Message::Withdrawn(known)));
        }
        effects.push(release);
        self.commit_in_turn(now, batch, After { effects, ..After::default() }, out);
    }

    /// Children that may have a cancelled order are told of it, wherever its device is now.
    pub(super) fn tell_holders(&mut self, cancel: OrderNumber, args: &[u8], devices: &[NodeId]) {
        let Ok(Cancel { target }) = rmp_serde::from_slice(args) else { return };
        for device in devices {
            let holders = self.ledger.holders(target, *device).to_vec();
            self.ledger.also(cancel, *device, holders);
        }
    }

    /// What a node below says of orders. Devices speak for themselves only.
    pub(super) fn told(&mut self, now: Now, by: NodeId, facts: Facts, batch: &mut Batch, after: &mut After) {
        let relay = self.directory.get(by).is_none_or(|entry| entry.role == Role::Relay);
        let mut back = Vec::new();
        for (order, fact, devices) in facts.facts {
            for device in devices.into_iter().filter(|device| relay || *device == by) {
                match fact {
                    // The record itself goes up: this relay need not say it again.
                    Fact::HandedOver => {
                        let change = self.ledger.handed_over(order, device);
                        change.iter().for_each(|change| persist::row(change, batch));
                    }
                    Fact::GivenBack => {
                        let change = self.ledger.given_back(order, device, by);
                        change.iter().for_each(|change| persist::row(change, batch));
                        // Its own word rests on what it knows itself, so that it holds after a restart too.
                        let stated = self.stated(now);
                        let late = self.ledger.payload(order).is_some_and(|payload| stated > payload.fetch_by);
                        let late = late && !self.expires_above();
                        let dead = late || self.tombs.contains_key(&(order, device));
                        if dead && self.ledger.is_free(order, device) {
                            self.forget(order, device, batch);
                            back.push((order, device));
                        }
                    }
                    Fact::Held | Fact::RefusedBadSignature => {}
                }
            }
        }
        self.give_back(now, back, batch, after);
    }

    /// Gives back what is late and not below, forgets what nobody waits for any more, writes node time down.
    pub(super) fn expire(&mut self, now: Now, out: &mut Vec<Effect>) {
        let (mut batch, mut after) = (Batch::new(), After::default());
        let mut back = Vec::new();
        for row in self.ledger.overdue(self.stated(now)) {
            if row.free && !self.expires_above() {
                back.push((row.order, row.device));
            } else if !row.silent {
                continue;
            }
            self.forget(row.order, row.device, &mut batch);
        }
        self.give_back(now, back, &mut batch, &mut after);
        let stated = self.stated(now);
        let over: Vec<_> = self.tombs.iter().filter(|(_, until)| stated > **until).map(|(key, _)| *key).collect();
        for (order, device) in over {
            self.tombs.remove(&(order, device));
            persist::tomb_gone(order, device, &mut batch);
        }
        if self.is_time_due(now) {
            self.keep_time(now, &mut batch);
        }
        if !batch.is_empty() {
            self.commit(now, batch, after, out);
        }
    }
}
