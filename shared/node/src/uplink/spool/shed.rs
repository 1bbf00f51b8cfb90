//! Drops what may be dropped, counted (RLY-10, LOG-4, decision 14).
//!
//! ```text
//! before   41   42   43   44   45        a gap record bears the last number it covers, names the first one's
//! after    41  [42 .. 44 gap]  45        predecessor, and carries the hash that 45 names as its own
//! ```
//! What the parent has stored already goes first, and is not counted as dropped. What is under way stays: the parent may
//! be storing it. A gap stays, as results do, until the server has settled it.

use super::{Kind, Spool, stream::*};
use crate::store::{Batch, Table};
use branchline_protocol::{
    record::{Gap, Record, StreamId, class},
    time::Millis,
};
use std::ops::Range;

/// What was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shed {
    /// Records that nobody else has.
    pub dropped: u64,
    /// Bytes freed, of those that the parent had too.
    pub freed: u64,
}

/// Why slots go: the word in the gap.
const STORED: &str = "stored";
const QUOTA: &str = "quota";
const SUPERSEDED: &str = "superseded";

impl Spool {
    /// Frees room of a kind until no more than this many bytes are left, or nothing is left that may be dropped.
    pub(super) fn shed(&mut self, kind: Kind, target: u64, batch: &mut Batch) -> Shed {
        let mut shed = Shed::default();
        match kind {
            Kind::Results => {}
            Kind::Inventory => self.shed_superseded(&mut shed, batch),
            Kind::Logs => {
                for reason in [STORED, QUOTA] {
                    while self.used(Kind::Logs) > target
                        && let Some((stream, slots)) = self.oldest_logs(reason, target)
                    {
                        self.drop_slots(stream, slots, reason, &mut shed, batch);
                    }
                }
            }
        }
        shed
    }

    /// The stream whose oldest droppable record is the oldest of all, and as many of them from there as are too much.
    fn oldest_logs(&self, reason: &str, target: u64) -> Option<(StreamId, Range<usize>)> {
        let mut oldest: Option<(Millis, StreamId, Range<usize>)> = None;
        for (stream, state) in self.streams.iter().filter(|(s, _)| Kind::of(s.lane) == Kind::Logs) {
            let all = match reason {
                STORED => 0..state.after_number(state.stored),
                _ => state.after_number(state.sent.max(state.stored))..state.after_number(state.committed),
            };
            let Some(from) = all.clone().find(|i| !state.slots[*i].is_gap) else { continue };
            let at = state.slots[from].at;
            if oldest.as_ref().is_none_or(|(than, ..)| at < *than) {
                let mut too_much = self.used(Kind::Logs).saturating_sub(target);
                let upto = (from..all.end).find(|i| {
                    let enough = too_much == 0 || state.slots[*i].is_gap;
                    too_much = too_much.saturating_sub(state.slots[*i].weight as u64);
                    enough
                });
                oldest = Some((at, *stream, from..upto.unwrap_or(all.end)));
            }
        }
        oldest.map(|(_, stream, slots)| (stream, slots))
    }

    /// Reports before a full one of the same stream are needless: the server ends at the full one whatever it has. Only
    /// all of them together, so that no difference is left without its base.
    fn shed_superseded(&mut self, shed: &mut Shed, batch: &mut Batch) {
        let needless = |(stream, state): (&StreamId, &StreamState)| {
            let from = state.after_number(state.sent.max(state.stored));
            let full = (from..state.after_number(state.committed)).rev().find(|i| state.slots[*i].whole)?;
            let worth = (from..full).any(|i| !state.slots[i].is_gap);
            (Kind::of(stream.lane) == Kind::Inventory && worth).then_some((*stream, from..full))
        };
        let all: Vec<_> = self.streams.iter().filter_map(needless).collect();
        for (stream, slots) in all {
            self.drop_slots(stream, slots, SUPERSEDED, shed, batch);
        }
    }

    /// Puts one gap in the place of these slots, and of one before them that says the same and was not sent either.
    fn drop_slots(
        &mut self,
        stream: StreamId,
        mut slots: Range<usize>,
        reason: &str,
        shed: &mut Shed,
        batch: &mut Batch,
    ) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if slots.is_empty() {
            return;
        }
        let sent = if reason == STORED { 0 } else { state.sent };
        let joins = |slot: &Slot| slot.last > sent && slot.gap().is_some_and(|gap| gap.reason == reason);
        if slots.start > 0 && joins(&state.slots[slots.start - 1]) {
            slots.start -= 1;
        }
        let mut bytes = 0;
        let mut weight = 0;
        for slot in state.slots.range(slots.clone()) {
            weight += slot.weight as u64;
            self.memory.remove(slot);
            match slot.gap() {
                Some(gap) => bytes += gap.bytes,
                None => {
                    bytes += slot.weight.saturating_sub(Record::OVERHEAD) as u64;
                    shed.dropped += u64::from(reason != STORED);
                }
            }
        }
        let (first, last) = (&state.slots[slots.start], &state.slots[slots.end - 1]);
        let (from, upto) = (first.last, last.last);
        let gap = Gap { numbers: (first.first, upto), bytes, reason: reason.into(), hash: last.head };
        let body = rmp_serde::to_vec(&gap).expect("a gap is plain data");
        let record =
            Record { number: upto, prev: first.prev, class: class::GAP, trace: None, at: last.at, body: body.into() };
        batch.delete_range(Table::Spool, record_key(&stream, from), record_key(&stream, upto));
        batch.put(Table::Spool, record_key(&stream, upto), rmp_serde::to_vec(&record).expect("plain data"));
        let slot = Slot::of(record, gap.numbers.0, gap.hash);
        self.memory.add(&slot);
        shed.freed += weight.saturating_sub(slot.weight as u64);
        let used = &mut self.used[Kind::of(stream.lane) as usize];
        // A gap may be larger than the one small record it stands for.
        *used = *used + slot.weight as u64 - weight;
        self.records -= slots.len() - 1;
        let start = slots.start;
        state.slots.drain(slots);
        state.slots.insert(start, slot);
    }
}
