//! A restored server asks what is known below: the relay tells what it holds, asks its children the same, and passes their
//! answers on (OPS-7). It has told everything once every child that was there has, or after a moment.

use super::{Effect, state::RelayCore};
use branchline_node::{defects::Defects, downstream::Child};
use branchline_protocol::{
    document::Kind,
    id::NodeId,
    order::{Envelope, OrderMessage},
    record::Lane,
    time::Now,
    wire::{Message, Recall, Recalled},
};
use std::collections::BTreeSet;

/// Milliseconds after which a child that has not answered is not waited for.
const ANSWERS_MS: u64 = 10_000;
/// Bytes of orders that one message gathers.
const GATHER_BYTES: usize = 256 << 10;

/// What the parent of this link asked.
pub(super) struct Recalling {
    asked: Recall,
    /// Children that were there and have not told everything.
    waiting: BTreeSet<NodeId>,
    since: u64,
    /// Whether the parent was told that this is all.
    told: bool,
}

impl<D: Defects> RelayCore<D> {
    /// The parent asks.
    pub(super) fn recall(&mut self, now: Now, asked: Recall, out: &mut Vec<Effect>) {
        let documents = asked.documents.iter().filter_map(|(kind, than)| {
            let (version, envelope) = self.shelf.get(*kind)?;
            (version > than).then(|| (*kind, envelope.clone()))
        });
        let documents: Vec<(Kind, Envelope)> = documents.collect();
        up(Recalled { documents, ..Recalled::default() }, out);
        let (mut orders, mut bytes) = (Vec::new(), 0);
        for order in self.ledger.open_orders(|number| asked.wants(number)) {
            bytes += order.envelope.payload.len() + order.args.len() + 64 * order.proof.leaves.len();
            orders.push(order);
            if bytes >= GATHER_BYTES {
                bytes = 0;
                up(Recalled { orders: std::mem::take(&mut orders), ..Recalled::default() }, out);
            }
        }
        if !orders.is_empty() {
            up(Recalled { orders, ..Recalled::default() }, out);
        }
        let below = self.below_recall(&asked);
        for (child, link) in &self.links {
            out.push(Effect::ToChild(*child, link.session, Lane::Control, Message::Recall(below.clone())));
        }
        let waiting = self.links.keys().copied().collect();
        self.recalling = Some(Recalling { asked, waiting, since: now.mono.0, told: false });
        self.look_at_recall(now, out);
    }

    /// What a child that comes now is asked, if the parent asked.
    pub(super) fn recall_for(&self, child: &Child, out: &mut Vec<Effect>) {
        if let Some(recalling) = &self.recalling {
            let recall = self.below_recall(&recalling.asked);
            out.push(Effect::ToChild(child.node, child.session, Lane::Control, Message::Recall(recall)));
        }
    }

    /// Children need not repeat what this relay has told.
    fn below_recall(&self, asked: &Recall) -> Recall {
        let documents = asked.documents.iter().map(|(kind, than)| {
            let own = self.shelf.get(*kind).map_or((0, 0), |(version, _)| *version);
            // Of statements only the term is asked for.
            let own = if *kind == Kind::Time { (own.0, u64::MAX) } else { own };
            (*kind, own.max(*than))
        });
        Recall { documents: documents.collect(), newest: asked.newest }
    }

    /// A child answers. What it holds that is newer is taken here too, and told at once.
    pub(super) fn recalled(&mut self, now: Now, child: &Child, recalled: Recalled, out: &mut Vec<Effect>) {
        let Some(recalling) = &mut self.recalling else { return };
        let Recalled { mut documents, orders, last } = recalled;
        if last {
            recalling.waiting.remove(&child.node);
        }
        let asked = recalling.asked.clone();
        let orders: Vec<OrderMessage> = orders.into_iter().filter(|order| is_wanted(&asked, order)).collect();
        // Trust first: it says who may have signed the others.
        documents.sort_by_key(|(kind, _)| *kind != Kind::Trust);
        let mut newer = Vec::new();
        for (kind, envelope) in documents {
            let Some((_, than)) = asked.documents.iter().find(|(asked, _)| *asked == kind) else { continue };
            if kind != Kind::Time {
                self.take_document(now, kind, envelope.clone(), Vec::new(), out);
            }
            let held = self.shelf.get(kind).filter(|(version, held)| version > than && *held == envelope);
            if held.is_some() || kind == Kind::Time {
                newer.push((kind, envelope));
            }
        }
        if !newer.is_empty() || !orders.is_empty() {
            up(Recalled { documents: newer, orders, last: false }, out);
        }
        self.look_at_recall(now, out);
    }

    /// A child that is gone is not waited for.
    pub(super) fn recall_without(&mut self, child: NodeId) {
        self.recalling.iter_mut().for_each(|recalling| {
            recalling.waiting.remove(&child);
        });
    }

    /// Says that this is all, once it is.
    pub(super) fn look_at_recall(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(recalling) = &mut self.recalling else { return };
        let over = recalling.waiting.is_empty() || now.mono.0 >= recalling.since + ANSWERS_MS;
        if over && !std::mem::replace(&mut recalling.told, true) {
            up(Recalled { last: true, ..Recalled::default() }, out);
        }
    }
}

/// Whether an order says of itself that it was asked for. Its signature is the server's business.
fn is_wanted(asked: &Recall, order: &OrderMessage) -> bool {
    let payload = rmp_serde::from_slice::<branchline_protocol::order::Payload>(&order.envelope.payload);
    payload.is_ok_and(|payload| asked.wants(payload.number))
}

fn up(recalled: Recalled, out: &mut Vec<Effect>) {
    if !recalled.documents.is_empty() || !recalled.orders.is_empty() || recalled.last {
        out.push(Effect::ToParent(Lane::Control, Message::Recalled(recalled)));
    }
}
