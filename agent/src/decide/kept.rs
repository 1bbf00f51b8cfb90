//! What is kept after the server has settled it, in case that the server is put back to an older state (pure; OPS-7,
//! DESIGN 5): results for seven days, and the orders they are of, as they came and as the server signed them.
//!
//! It is nobody's only copy: it goes first when room is needed, and silently.

use branchline_node::store::{Batch, Table};
use branchline_protocol::{
    id::{OrderNumber, TraceId},
    order::OrderMessage,
    record::Lane,
    time::Millis,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

use super::journal::{key_of, number_of};

/// Milliseconds of node time that a result is kept after it was settled.
pub const KEPT_MS: i64 = 7 * 86_400_000;
/// Bytes of settled results and their orders; less when unsettled results need the room.
pub const KEPT_BYTES_MAX: u64 = 8 << 20;
/// Milliseconds by which a device's node time and the server's clock may differ: so much older results are told too.
const MARGIN_MS: i64 = 600_000;

/// First bytes of the keys in [`Table::Meta`]; orders sort before results.
const ORDER: &[u8] = b"kept-order/";
const RESULT: &[u8] = b"kept-result/";
/// Where the newest term is kept for which everything was offered again.
const OFFERED: &[u8] = b"kept-offered";

/// A result after it was settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// When, node time.
    pub at: Millis,
    /// The lane it came on.
    pub lane: Lane,
    /// The trace of its order.
    pub trace: Option<TraceId>,
    /// The result as it was sent.
    pub body: Bytes,
}

/// A row that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a result that was kept after settling is unreadable")]
pub struct Unreadable;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    orders: BTreeMap<OrderNumber, Bytes>,
    results: BTreeMap<OrderNumber, Settled>,
    by_age: BTreeSet<(Millis, OrderNumber)>,
    bytes: u64,
    offered: u32,
}

impl Kept {
    /// A row of [`Table::Meta`], in key order; others are passed over.
    pub fn recover(&mut self, key: &[u8], value: &Bytes) -> Result<(), Unreadable> {
        if key == OFFERED {
            self.offered = u32::from_be_bytes(value[..].try_into().map_err(|_| Unreadable)?);
        } else if let Some(order) = key.strip_prefix(ORDER) {
            self.orders.insert(number_of(order).ok_or(Unreadable)?, value.clone());
        } else if let Some(order) = key.strip_prefix(RESULT) {
            let order = number_of(order).ok_or(Unreadable)?;
            self.add(order, rmp_serde::from_slice(value).map_err(|_| Unreadable)?);
        }
        Ok(())
    }

    /// Keeps an order that was taken.
    pub fn take(&mut self, order: OrderNumber, message: &OrderMessage, batch: &mut Batch) {
        let value: Bytes = rmp_serde::to_vec(message).expect("an order is plain data").into();
        batch.put(Table::Meta, key(ORDER, order), value.clone());
        self.orders.insert(order, value);
    }

    /// An order as it came, while it is kept.
    pub fn order(&self, order: OrderNumber) -> Option<&Bytes> {
        self.orders.get(&order)
    }

    /// A result of this device was settled. One that was offered again keeps its first age.
    pub fn settle(&mut self, order: OrderNumber, settled: Settled, batch: &mut Batch) {
        if self.results.contains_key(&order) {
            return;
        }
        batch.put(Table::Meta, key(RESULT, order), rmp_serde::to_vec(&settled).expect("a result is plain data"));
        self.add(order, settled);
    }

    fn add(&mut self, order: OrderNumber, settled: Settled) {
        self.bytes += self.weight(order, &settled);
        self.by_age.insert((settled.at, order));
        self.results.insert(order, settled);
    }

    fn weight(&self, order: OrderNumber, settled: &Settled) -> u64 {
        (settled.body.len() + self.orders.get(&order).map_or(0, Bytes::len)) as u64
    }

    /// Nothing is kept of an order any more.
    pub fn forget(&mut self, order: OrderNumber, batch: &mut Batch) {
        if let Some(settled) = self.results.remove(&order) {
            self.bytes -= self.weight(order, &settled);
            self.by_age.remove(&(settled.at, order));
            batch.delete(Table::Meta, key(RESULT, order));
        }
        if self.orders.remove(&order).is_some() {
            batch.delete(Table::Meta, key(ORDER, order));
        }
    }

    /// Forgets what is too old, and the oldest of what is too much.
    pub fn bound(&mut self, now: Millis, bytes_max: u64, batch: &mut Batch) {
        while let Some((at, order)) = self.by_age.first().copied()
            && (now.0.saturating_sub(at.0) > KEPT_MS || self.bytes > bytes_max.min(KEPT_BYTES_MAX))
        {
            self.forget(order, batch);
        }
    }

    /// Forgets orders that are neither open nor of a result that is here: `live` says of which that is so.
    pub fn prune(&mut self, live: &BTreeSet<OrderNumber>, batch: &mut Batch) {
        let idle = |order: &&OrderNumber| !live.contains(order) && !self.results.contains_key(order);
        let idle: Vec<OrderNumber> = self.orders.keys().filter(idle).copied().collect();
        idle.into_iter().for_each(|order| self.forget(order, batch));
    }

    /// Bytes of settled results with their orders.
    #[cfg(test)]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Results that were settled after the server's state was saved, or so shortly before that it may be doubted.
    pub fn since(&self, saved: Millis) -> Vec<(OrderNumber, Settled)> {
        let from = saved.0.saturating_sub(MARGIN_MS);
        self.results.iter().filter(|(_, s)| s.at.0 >= from).map(|(order, s)| (*order, s.clone())).collect()
    }

    /// The newest term for which everything was offered again.
    pub fn offered(&self) -> u32 {
        self.offered
    }

    /// Everything is offered again, in this batch, for a server of this term.
    pub fn offer(&mut self, term: u32, batch: &mut Batch) {
        self.offered = term;
        batch.put(Table::Meta, OFFERED, term.to_be_bytes().to_vec());
    }
}

fn key(first: &[u8], order: OrderNumber) -> Vec<u8> {
    [first, &key_of(order)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(n: u64) -> OrderNumber {
        OrderNumber { term: 1, number: n }
    }

    fn settled(at: i64, bytes: usize) -> Settled {
        Settled { at: Millis(at), lane: Lane::Work, trace: None, body: vec![1; bytes].into() }
    }

    fn numbers(kept: &Kept) -> Vec<u64> {
        kept.results.keys().map(|order| order.number).collect()
    }

    #[test]
    fn ops_7_a_result_is_kept_for_seven_days_to_the_millisecond() {
        let (mut kept, mut batch) = (Kept::default(), Batch::new());
        kept.settle(order(1), settled(1_000, 10), &mut batch);
        kept.settle(order(2), settled(1_001, 10), &mut batch);
        kept.bound(Millis(1_000 + KEPT_MS), u64::MAX, &mut batch);
        assert_eq!(numbers(&kept), [1, 2]);
        kept.bound(Millis(1_001 + KEPT_MS), u64::MAX, &mut batch);
        assert_eq!(numbers(&kept), [2]);
        // Settled again, after it was offered again, it is no younger.
        kept.settle(order(2), settled(9_000, 10), &mut batch);
        kept.bound(Millis(1_002 + KEPT_MS), u64::MAX, &mut batch);
        assert_eq!((numbers(&kept), kept.bytes()), (vec![], 0));
    }

    #[test]
    fn ops_7_the_oldest_settled_results_go_when_room_is_needed() {
        let (mut kept, mut batch) = (Kept::default(), Batch::new());
        for n in 1..=4 {
            kept.settle(order(n), settled(10 - n as i64, 100), &mut batch);
        }
        kept.bound(Millis(10), 300, &mut batch);
        assert_eq!((numbers(&kept), kept.bytes()), (vec![1, 2, 3], 300), "the fourth was settled first");
        kept.bound(Millis(10), 299, &mut batch);
        assert_eq!(numbers(&kept), [1, 2]);
        kept.bound(Millis(10), 0, &mut batch);
        assert!(numbers(&kept).is_empty());
        // However much room there is.
        kept.settle(order(5), settled(1, KEPT_BYTES_MAX as usize), &mut batch);
        kept.bound(Millis(10), u64::MAX, &mut batch);
        assert_eq!(numbers(&kept), [5]);
        kept.settle(order(6), settled(2, 1), &mut batch);
        kept.bound(Millis(10), u64::MAX, &mut batch);
        assert_eq!(numbers(&kept), [6]);
    }

    #[test]
    fn ops_7_what_was_settled_before_the_backup_is_not_told_again() {
        let (mut kept, mut batch) = (Kept::default(), Batch::new());
        let saved = 10_000_000;
        for (n, at) in [(1, saved - MARGIN_MS - 1), (2, saved - MARGIN_MS), (3, saved + 5)] {
            kept.settle(order(n), settled(at, 1), &mut batch);
        }
        let told: Vec<u64> = kept.since(Millis(saved)).iter().map(|(order, _)| order.number).collect();
        assert_eq!(told, [2, 3]);
    }

    #[test]
    fn what_is_kept_comes_back_from_the_disk() {
        use branchline_node::store::Op;
        let (mut kept, mut batch) = (Kept::default(), Batch::new());
        kept.settle(order(1), settled(1, 7), &mut batch);
        kept.offer(3, &mut batch);
        let rows = batch.ops.into_iter().filter_map(|op| match op {
            Op::Put { key, value, .. } => Some((key, value)),
            _ => None,
        });
        let mut back = Kept::default();
        rows.for_each(|(key, value)| back.recover(&key, &value).unwrap());
        assert_eq!((numbers(&back), back.bytes(), back.offered()), (vec![1], 7, 3));
        assert_eq!(back.recover(b"kept-result/short", &Bytes::new()), Err(Unreadable));
        assert_eq!(back.recover(b"attachment", &Bytes::new()), Ok(()));
    }
}
