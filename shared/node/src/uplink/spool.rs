//! Records on their way up (pure): kept on disk and here until the server settled them (DESIGN 5).
//!
//! ```text
//! append/carry → pending → (commit) → ready → take → in flight → stored → settled → gone
//! ```
//! Every change of durable state goes into the caller's [`Batch`]; the caller says [`Spool::committed`] when that batch
//! is on disk, and nothing is sent or acknowledged before. [`Quotas`] bound what is here, and what is dropped at a quota
//! leaves a counted gap (`shed`); bodies beyond a bound of memory stay on disk only (`memory`).

mod heads;
mod memory;
mod parent;
mod quota;
mod shed;
mod stream;

pub use heads::HEADS_EVERY_MS;
pub use memory::{LOAD_BYTES, MEMORY_BYTES, Rows};
pub use quota::{Kind, Quotas};
pub use shed::Shed;
pub use stream::STREAM_META;

use crate::store::{Batch, Table};
use branchline_protocol::{
    chain::{ChainFault, NUMBER_MAX, Next, Position, extent},
    id::{Epoch, NodeId, TraceId},
    record::{Lane, Record, Run, StreamId},
    time::Millis,
    wire::Ack,
};
use bytes::Bytes;
use heads::Heads;
use memory::Memory;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use stream::{Slot, StreamState, meta_key, record_key};

/// Bytes of one lane that were sent and are not stored by the parent: what a lost link may cost in repetition. By lane,
/// so that logs which a parent holds back are in nobody's way.
pub const IN_FLIGHT_BYTES_MAX: usize = 4 << 20;
/// Bytes one `Records` message gathers.
pub const GATHER_BYTES: usize = 48 << 10;

/// Records that become durable with one batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark(Vec<(StreamId, u64)>);

/// Why records or an acknowledgement are not taken, or what is on disk is no spool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpoolFault {
    /// The child's record does not continue its stream.
    #[error(transparent)]
    Chain(#[from] ChainFault),
    /// The parent acknowledged what was never sent.
    #[error("acknowledgement of {acked} beyond what was sent, {sent}")]
    BeyondSent {
        /// Acknowledged up to.
        acked: u64,
        /// Sent up to.
        sent: u64,
    },
    /// A stored record cannot be read.
    #[error("a spooled record is unreadable")]
    Unreadable,
}

/// What an acknowledgement told beside numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acked {
    /// The parent remembers records of our own earlier life that this disk does not: it was put back to an older state.
    pub rolled_back: bool,
}

/// What waits, for `tree` and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolFigures {
    /// Records not settled.
    pub spool_records: u64,
    /// Their bytes.
    pub spool_bytes: u64,
    /// Node time of the oldest.
    pub oldest_unsettled_at: Option<Millis>,
}

/// The spool of one node: its own streams and, at a relay, those of the nodes below.
pub struct Spool {
    node: NodeId,
    epoch: Epoch,
    incarnation: u64,
    quotas: Quotas,
    memory: Memory,
    streams: BTreeMap<StreamId, StreamState>,
    /// The stream of a node and lane that received records last: the one that is remembered although it is settled.
    newest: BTreeMap<(NodeId, Lane), StreamId>,
    /// Streams with committed records that were not sent on this link, most pressing lane first.
    ready: BTreeSet<(Lane, StreamId)>,
    in_flight: [usize; 5],
    used: [u64; 3],
    records: usize,
    link_up: bool,
    parent: Option<(NodeId, u64)>,
    heads: Heads,
}

impl Spool {
    /// The spool of a node whose store was opened as `incarnation`. Feed [`Spool::recover_meta`] and
    /// [`Spool::recover_record`] with what the store holds before anything else.
    pub fn new(node: NodeId, epoch: Epoch, incarnation: u64) -> Self {
        Spool {
            node,
            epoch,
            incarnation,
            quotas: Quotas::default(),
            memory: Memory::default(),
            streams: BTreeMap::new(),
            newest: BTreeMap::new(),
            ready: BTreeSet::new(),
            in_flight: [0; 5],
            used: [0; 3],
            records: 0,
            link_up: false,
            parent: None,
            heads: Heads::default(),
        }
    }

    /// The same with other bounds than an agent's.
    pub fn with_quotas(self, quotas: Quotas) -> Self {
        Spool { quotas, ..self }
    }

    /// Other bounds from here on.
    pub fn set_quotas(&mut self, quotas: Quotas) {
        self.quotas = quotas;
    }

    /// A row of [`Table::Meta`]; rows of others are passed over.
    pub fn recover_meta(&mut self, key: &[u8], value: &[u8]) -> Result<(), SpoolFault> {
        let Some((&STREAM_META, stream)) = key.split_first() else { return Ok(()) };
        let Some(stream) = StreamId::from_key(stream) else { return Ok(()) };
        let state = StreamState::recover(value).ok_or(SpoolFault::Unreadable)?;
        if stream.node == self.node {
            self.heads.ended(&stream, state.at);
        }
        self.streams.insert(stream, state);
        self.newest.entry((stream.node, stream.lane)).or_insert(stream);
        Ok(())
    }

    /// A row of [`Table::Spool`], in key order, after all of meta.
    pub fn recover_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), SpoolFault> {
        let stream = key.get(..29).and_then(StreamId::from_key).ok_or(SpoolFault::Unreadable)?;
        let record: Record = rmp_serde::from_slice(value).map_err(|_| SpoolFault::Unreadable)?;
        let (first, head) = extent(&stream, &record).map_err(|_| SpoolFault::Unreadable)?;
        let state = self.streams.get_mut(&stream).ok_or(SpoolFault::Unreadable)?;
        if record.number > state.settled {
            self.used[Kind::of(stream.lane) as usize] += record.weight() as u64;
            self.records += 1;
            state.slots.push_back(Slot::of(record, first, head));
            let newest = state.slots.len() - 1;
            self.memory.add(&state.slots[newest]);
            self.memory.evict(state, newest..newest + 1);
            self.ready.insert((stream.lane, stream));
            // Rather than a settled one it is the one that still receives.
            self.newest.insert((stream.node, stream.lane), stream);
        }
        Ok(())
    }

    /// The node's own open store.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The node goes on in another epoch: what it adds from here on is of streams of their own. Where the earlier ones stand
    /// its next greeting signs.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.heads.begin_anew();
    }

    /// Adds a record of the node's own.
    pub fn append(
        &mut self,
        at: Millis,
        lane: Lane,
        class: u16,
        trace: Option<TraceId>,
        body: Bytes,
        batch: &mut Batch,
    ) -> Mark {
        self.before_append(at, lane, batch);
        let stream = self.current(lane);
        let number = self.push_own(at, stream, class, trace, body, batch);
        self.bound(Kind::of(lane), batch);
        Mark(vec![(stream, number)])
    }

    /// Takes a child's run. What is here already is passed over; a fault keeps what came before it in the run.
    pub fn carry(&mut self, run: Run, batch: &mut Batch) -> (Mark, Option<SpoolFault>) {
        let stream = run.stream;
        let mut mark = Mark::default();
        let mut fault = None;
        for record in run.records {
            match self.follow(&stream, &record, run.settled, batch) {
                Ok(None) => {}
                Ok(Some((first, at))) => {
                    self.push(stream, Slot::of(record, first, at.head), batch);
                    mark.0 = vec![(stream, at.upto)];
                }
                Err(why) => {
                    fault = Some(why.into());
                    break;
                }
            }
        }
        // A relay drops no logs of others for a quota: it holds them back, and they stay where they are.
        if stream.lane == Lane::Inventory {
            self.bound(Kind::Inventory, batch);
        }
        (mark, fault)
    }

    /// Where a child's record leads to, with the first number it covers; `None` if it is here already.
    fn follow(
        &mut self,
        stream: &StreamId,
        record: &Record,
        settled: u64,
        batch: &mut Batch,
    ) -> Result<Option<(u64, Position)>, ChainFault> {
        let (first, head) = extent(stream, record)?;
        let before = Position::before(first, record.prev);
        let at = match self.streams.get(stream) {
            // What came before was here once and is not settled: the child has it still.
            None if before.upto > settled => return Err(ChainFault::Hole { held: settled, got: first }),
            // Its beginning was settled before this store knew the stream.
            None => before,
            Some(state) if before.upto > state.at.upto && settled >= before.upto => {
                // The server has what is missing here, by another way: the child may have nothing older to repeat.
                self.forget_until(stream, before, batch);
                before
            }
            Some(state) => {
                let same = state.slots.get(state.after_number(record.number.saturating_sub(1)));
                if same.is_some_and(|slot| !slot.is_gap && slot.last == record.number && slot.head != head) {
                    return Err(ChainFault::Broken(record.number));
                }
                state.at
            }
        };
        match at.follow(stream, record)? {
            Next::Known => Ok(None),
            Next::Takes(next) => {
                self.streams.entry(*stream).or_insert_with(|| StreamState::after(at));
                Ok(Some((first, next)))
            }
        }
    }

    /// Everything of a stream up to this position is settled, whatever is here.
    fn forget_until(&mut self, stream: &StreamId, at: Position, batch: &mut Batch) {
        let Some(state) = self.streams.remove(stream) else { return };
        self.ready.remove(&(stream.lane, *stream));
        let lane = stream.lane as usize;
        self.in_flight[lane] = self.in_flight[lane].saturating_sub(state.in_flight());
        self.records -= state.slots.len();
        state.slots.iter().for_each(|slot| self.memory.remove(slot));
        self.used[Kind::of(stream.lane) as usize] -= state.slots.iter().map(|s| s.weight as u64).sum::<u64>();
        batch.delete_range(Table::Spool, record_key(stream, 0), record_key(stream, at.upto));
        batch.delete(Table::Spool, record_key(stream, at.upto));
        self.streams.insert(*stream, StreamState::after(at));
    }

    /// Those above do not take this stream from here: it is as if it had never come. What was stored of it is not
    /// settled, and its origin keeps it.
    pub fn disown(&mut self, stream: &StreamId, batch: &mut Batch) {
        if stream.node == self.node || !self.streams.contains_key(stream) {
            return;
        }
        let end = Position { upto: NUMBER_MAX, ..Position::default() };
        self.forget_until(stream, end, batch);
        self.streams.remove(stream);
        self.newest.retain(|_, newest| newest != stream);
        batch.delete(Table::Meta, meta_key(stream));
    }

    fn push(&mut self, stream: StreamId, slot: Slot, batch: &mut Batch) {
        self.used[Kind::of(stream.lane) as usize] += slot.weight as u64;
        self.records += 1;
        self.memory.add(&slot);
        let value = rmp_serde::to_vec(slot.record.as_deref().expect("it comes whole")).expect("records are plain data");
        batch.put(Table::Spool, record_key(&stream, slot.last), value);
        let state = self.streams.entry(stream).or_default();
        state.at = Position { upto: slot.last, head: slot.head };
        state.put_meta(&stream, batch);
        state.slots.push_back(slot);
        let before = self.newest.insert((stream.node, stream.lane), stream);
        if before != Some(stream) {
            let first = StreamId { epoch: 0, incarnation: 0, lane: Lane::Control, ..stream };
            let of_node = self.streams.range(first..).map(|(s, _)| *s).take_while(|s| s.node == stream.node);
            let others: Vec<StreamId> = of_node.filter(|s| s.lane == stream.lane && *s != stream).collect();
            others.into_iter().for_each(|other| self.forget_if_over(other, batch));
        }
    }

    /// A settled stream is remembered only while it is the newest of its node and lane: what comes of it again goes up
    /// again, and the server knows it.
    fn forget_if_over(&mut self, stream: StreamId, batch: &mut Batch) {
        let is_newest = self.newest.get(&(stream.node, stream.lane)) == Some(&stream);
        let is_own = (stream.epoch, stream.incarnation) == (self.epoch, self.incarnation);
        let is_past = stream.node == self.node && !is_own;
        if (!is_newest || is_past) && self.streams.get(&stream).is_some_and(StreamState::is_settled) {
            batch.delete(Table::Meta, meta_key(&stream));
            self.streams.remove(&stream);
            self.ready.remove(&(stream.lane, stream));
        }
    }

    /// A batch with these records is on disk.
    pub fn committed(&mut self, mark: &Mark) {
        for (stream, number) in &mark.0 {
            if let Some(state) = self.streams.get_mut(stream) {
                let before = state.after_number(state.committed);
                state.committed = state.committed.max(*number);
                // From here on the disk has them.
                self.memory.evict(state, before..state.after_number(state.committed));
                if state.has_unsent() {
                    self.ready.insert((stream.lane, *stream));
                }
            }
        }
    }

    /// What may be told of a stream to the child that brings it.
    pub fn ack(&self, stream: &StreamId) -> Ack {
        let (stored, settled) = self.streams.get(stream).map_or((0, 0), |s| (s.committed, s.settled));
        Ack { stream: *stream, stored, settled, refused: Vec::new() }
    }

    /// Drops what may be dropped when a kind is over its quota.
    fn bound(&mut self, kind: Kind, batch: &mut Batch) {
        if self.used(kind) > self.quotas.of(kind) {
            self.shed(kind, self.quotas.low(kind), batch);
        }
    }

    /// The disk is nearly full: frees logs down to half of their quota, and needless reports.
    pub fn relieve(&mut self, batch: &mut Batch) -> Shed {
        let inventory = self.shed(Kind::Inventory, 0, batch);
        let logs = self.shed(Kind::Logs, self.quotas.logs / 2, batch);
        Shed { dropped: inventory.dropped + logs.dropped, freed: inventory.freed + logs.freed }
    }

    /// Bytes of a kind that are here.
    pub fn used(&self, kind: Kind) -> u64 {
        self.used[kind as usize]
    }

    /// The bounds.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// Whether so many bytes more of a kind stay within its quota.
    pub fn has_room(&self, kind: Kind, bytes: u64) -> bool {
        self.used(kind).saturating_add(bytes) <= self.quotas.of(kind)
    }

    /// Bytes of a lane that were sent and are not stored by the parent.
    pub fn in_flight(&self, lane: Lane) -> usize {
        self.in_flight[lane as usize]
    }

    /// Bytes of a lane's kind that are here and not under way. What the parent has stored and the server not settled counts too.
    pub fn gathered(&self, lane: Lane) -> u64 {
        self.used(Kind::of(lane)).saturating_sub(self.in_flight(lane) as u64)
    }

    /// Whether everything here was stored by the parent: a poll may say that it is done.
    pub fn is_drained(&self) -> bool {
        self.ready.is_empty() && self.streams.values().all(|s| s.stored >= s.committed && s.committed == s.at.upto)
    }

    /// Whether results, alerts or other urgent matter wait to be stored by the parent: worth an early reconnect.
    pub fn is_pressing(&self) -> bool {
        self.streams.iter().any(|(stream, s)| stream.lane <= Lane::Work && s.stored < s.committed)
    }

    /// Whether something was sent that the parent has not stored.
    pub fn is_under_way(&self) -> bool {
        self.in_flight.iter().any(|bytes| *bytes > 0)
    }

    /// Whether something waits to be sent.
    pub fn has_unsent(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A node's records that are not settled, as far as they are here.
    pub fn unsettled_of(&self, node: NodeId) -> impl Iterator<Item = &Record> {
        let first = StreamId { node, epoch: 0, incarnation: 0, lane: Lane::Control };
        let streams = self.streams.range(first..).take_while(move |(stream, _)| stream.node == node);
        streams.flat_map(|(_, state)| state.slots.iter().filter_map(|slot| slot.record.as_deref()))
    }

    /// Whether records of a node are here that are not settled.
    pub fn holds_of(&self, node: NodeId) -> bool {
        let first = StreamId { node, epoch: 0, incarnation: 0, lane: Lane::Control };
        let mut streams = self.streams.range(first..).take_while(|(stream, _)| stream.node == node);
        streams.any(|(_, state)| !state.slots.is_empty())
    }

    /// Streams that are remembered, settled or not.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// What waits.
    pub fn figures(&self) -> SpoolFigures {
        let oldest = self.streams.values().filter_map(|s| s.slots.front()).map(|slot| slot.at).min();
        let bytes = self.used.iter().sum();
        SpoolFigures { spool_records: self.records as u64, spool_bytes: bytes, oldest_unsettled_at: oldest }
    }
}

#[cfg(test)]
mod tests;
