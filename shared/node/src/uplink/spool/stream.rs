//! One stream of the spool: its records that are not settled, and how far each party has them.

use crate::store::{Batch, Table};
use branchline_protocol::{
    chain::Position,
    hash::Hash,
    record::{Gap, Record, StreamId, class},
    time::Millis,
};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, sync::Arc};

/// First byte of the meta keys of streams.
pub const STREAM_META: u8 = b's';

/// One record here, or one gap that stands for several.
pub(super) struct Slot {
    /// The first number it covers; a record covers its own.
    pub first: u64,
    /// The record's number: the last it covers.
    pub last: u64,
    /// Hash of the record before `first`.
    pub prev: Hash,
    /// What the successor names as its predecessor.
    pub head: Hash,
    pub weight: usize,
    pub at: Millis,
    /// A report that needs none of those before it.
    pub whole: bool,
    pub is_gap: bool,
    /// `None`: on disk only.
    pub record: Option<Arc<Record>>,
}

impl Slot {
    /// `first` and `head` as [`branchline_protocol::chain::extent`] answers them.
    pub fn of(record: Record, first: u64, head: Hash) -> Slot {
        Slot {
            first,
            last: record.number,
            prev: record.prev,
            head,
            weight: record.weight(),
            at: record.at,
            whole: is_full_report(&record),
            is_gap: record.class == class::GAP,
            record: Some(Arc::new(record)),
        }
    }

    /// Of a gap: what it says.
    pub fn gap(&self) -> Option<Gap> {
        let record = self.record.as_ref().filter(|_| self.is_gap)?;
        rmp_serde::from_slice(&record.body).ok()
    }

    /// Bytes it holds in memory.
    pub fn held(&self) -> usize {
        if self.record.is_some() { self.weight } else { 0 }
    }
}

/// Whether this is an inventory report of the kind `full`. Looks at the first bytes only, where every agent of ours
/// writes the kind; what is written otherwise counts as a difference, and makes nothing needless.
fn is_full_report(record: &Record) -> bool {
    /// A map of up to 15 entries whose first is "kind": "full".
    const START: &[u8] = b"\xa4kind\xa4full";
    record.class == class::INVENTORY
        && record.body.first().is_some_and(|b| b & 0xf0 == 0x80)
        && record.body[1..].starts_with(START)
}

#[derive(Default)]
pub(super) struct StreamState {
    /// Last number here, pending included, and its hash.
    pub at: Position,
    /// Durable here up to.
    pub committed: u64,
    /// Sent on this link up to.
    pub sent: u64,
    /// Ever sent up to: no honest parent acknowledges more of a stream that began in this process.
    pub told: u64,
    pub stored: u64,
    pub settled: u64,
    /// What covers the numbers from settled + 1 to the last, in order.
    pub slots: VecDeque<Slot>,
}

#[derive(Serialize, Deserialize)]
struct StreamMeta(u64, Hash, u64);

impl StreamState {
    /// A stream that begins here after this position, everything up to there being settled.
    pub fn after(at: Position) -> StreamState {
        let upto = at.upto;
        StreamState { at, committed: upto, sent: upto, told: upto, stored: upto, settled: upto, slots: VecDeque::new() }
    }

    pub fn recover(value: &[u8]) -> Option<StreamState> {
        let StreamMeta(upto, head, settled) = rmp_serde::from_slice(value).ok()?;
        Some(StreamState {
            at: Position { upto, head },
            committed: upto,
            sent: settled,
            told: upto,
            stored: settled,
            settled,
            slots: VecDeque::new(),
        })
    }

    pub fn put_meta(&self, stream: &StreamId, batch: &mut Batch) {
        let value = rmp_serde::to_vec(&StreamMeta(self.at.upto, self.at.head, self.settled)).expect("plain data");
        batch.put(Table::Meta, meta_key(stream), value);
    }

    /// Index of the first slot that covers something after this number.
    pub fn after_number(&self, number: u64) -> usize {
        self.slots.partition_point(|slot| slot.last <= number)
    }

    /// Whether something durable here was not sent on this link.
    pub fn has_unsent(&self) -> bool {
        self.slots.get(self.after_number(self.sent)).is_some_and(|slot| slot.last <= self.committed)
    }

    /// Bytes that were sent and that the parent has not stored.
    pub fn in_flight(&self) -> usize {
        self.slots.range(self.after_number(self.stored)..self.after_number(self.sent)).map(|slot| slot.weight).sum()
    }

    pub fn is_settled(&self) -> bool {
        self.settled == self.at.upto
    }
}

pub(super) fn record_key(stream: &StreamId, number: u64) -> Vec<u8> {
    [&stream.key()[..], &number.to_be_bytes()].concat()
}

pub(super) fn meta_key(stream: &StreamId) -> Vec<u8> {
    [&[STREAM_META][..], &stream.key()].concat()
}
