//! What this device tells a server that was put back to an older state: its results since then, and the orders they are
//! of, once for each term (OPS-7). They go up as new records of its stream, so that every hop keeps them as any other.

use super::{
    core::{AgentCore, Then, Turn},
    inventory::Request,
    kept::Settled,
};
use branchline_node::{defects::Defects, store::Batch, uplink::spool::Kind};
use branchline_protocol::{
    id::{OrderNumber, TraceId},
    record::{JobResult, Lane, Record, class},
    time::Now,
    wire::Ack,
};
use bytes::Bytes;
use std::collections::BTreeSet;

fn result_of(record: &Record) -> Option<OrderNumber> {
    let result = (record.class == class::RESULT).then(|| rmp_serde::from_slice::<JobResult>(&record.body));
    result.and_then(Result::ok).map(|result| result.order)
}

impl<D: Defects> AgentCore<D> {
    /// Results that an acknowledgement settles; what it refuses is not kept.
    pub(super) fn settling(&self, now: Now, ack: &Ack) -> Vec<(OrderNumber, Settled)> {
        let (at, lane) = (now.node, ack.stream.lane);
        let refused = |record: &&Record| ack.refused.iter().any(|(number, _)| *number == record.number);
        let results = self.spool.settling(ack).filter(|record| !refused(record));
        let settled = |r: &Record| Settled { at, lane, trace: r.trace, body: r.body.clone() };
        results.filter_map(|record| Some((result_of(record)?, settled(record)))).collect()
    }

    /// They are settled: kept for a while.
    pub(super) fn keep_settled(&mut self, now: Now, settled: Vec<(OrderNumber, Settled)>, turn: &mut Turn) {
        if settled.is_empty() {
            return;
        }
        for (order, settled) in settled {
            self.kept.settle(order, settled, &mut turn.batch);
        }
        self.bound_kept(now, turn);
    }

    /// Settled results have the room that unsettled ones leave.
    pub(super) fn bound_kept(&mut self, now: Now, turn: &mut Turn) {
        let taken = self.spool.used(Kind::Results).saturating_add(self.journal.promised());
        let free = self.spool.quotas().of(Kind::Results).saturating_sub(taken);
        self.kept.bound(now.node, free, &mut turn.batch);
    }

    /// The server was restored since this device heard of it: what it may not know it is told, as far as there is room.
    pub(super) fn offer_again(&mut self, now: Now, turn: &mut Turn) {
        let Some((term, saved)) = self.documents.time().and_then(|s| Some((s.term, s.restored_from?))) else { return };
        if term <= self.kept.offered() || self.documents.revokes_me() {
            return;
        }
        self.kept.offer(term, &mut turn.batch);
        // Whatever is on its way may arrive before its order does: it is told again behind it.
        let under_way = self.spool.unsettled_of(self.me.node);
        let under_way = under_way.filter_map(|record| Some((result_of(record)?, record.trace, record.body.clone())));
        let under_way: Vec<(OrderNumber, Lane, Option<TraceId>, Bytes)> =
            under_way.map(|(order, trace, body)| (order, Lane::Work, trace, body)).collect();
        let settled = self.kept.since(saved);
        let settled = settled.into_iter().map(|(order, settled)| (order, settled.lane, settled.trace, settled.body));
        for (order, lane, trace, body) in under_way.into_iter().chain(settled) {
            if order.term < term && self.spool.has_room(Kind::Results, body.len() as u64) {
                self.append_old_order(now, lane, order, trace, turn);
                self.append(now, lane, class::RESULT, trace, body, turn);
            }
        }
        for order in self.journal.all_open() {
            self.append_old_order(now, Lane::Work, order, None, turn);
        }
        // Its view of this device is an older one, too. What changed since is asked for by its digest (INV-6).
        if !self.documents.suspends_me() && !self.inventory.is_new() {
            turn.then.push(Then::Request(Request { order: None, full: false }));
        }
    }

    /// An order of an earlier term, before its result: the server of this term may not know it.
    pub(super) fn append_old_order(
        &mut self,
        now: Now,
        lane: Lane,
        order: OrderNumber,
        trace: Option<TraceId>,
        turn: &mut Turn,
    ) {
        if order.term < self.kept.offered()
            && let Some(message) = self.kept.order(order).cloned()
        {
            self.append(now, lane, class::ORDER, trace, message, turn);
        }
    }

    /// Orders whose result went another way, or never was, are not kept.
    pub(super) fn prune_kept(&mut self, batch: &mut Batch) {
        let mut live: BTreeSet<OrderNumber> = self.journal.all_open().into_iter().collect();
        live.extend(self.spool.unsettled_of(self.me.node).filter_map(result_of));
        self.kept.prune(&live, batch);
    }
}
