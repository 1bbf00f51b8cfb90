//! Records on their way up (pure): kept on disk and here until the server settled them (DESIGN 5).
//!
//! ```text
//! append/carry → pending → (commit) → ready → take → in flight → stored → settled → gone
//! ```
//! Every change of durable state goes into the caller's [`Batch`]; the caller says [`Spool::committed`] when that batch
//! is on disk, and nothing is sent or acknowledged before. Bodies stay in memory while they are here.

use crate::store::{Batch, Table};
use branchline_protocol::{
    hash::Hash,
    id::{Epoch, NodeId, TraceId},
    record::{Lane, Record, Run, StreamId},
    time::Millis,
    wire::Ack,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// Bytes sent and not yet stored by the parent, over all lanes: what a lost link may cost in repetition.
pub const IN_FLIGHT_BYTES_MAX: usize = 4 << 20;
/// Bytes one `Records` message gathers.
pub const GATHER_BYTES: usize = 48 << 10;
/// First byte of the meta keys of streams.
pub const STREAM_META: u8 = b's';

/// Records that become durable with one batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark(Vec<(StreamId, u64)>);

/// Why a child's record was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpoolFault {
    /// A number was left out: the child repeats from the one after `held`.
    #[error("records {held} + 1 to {got} - 1 of a stream are missing")]
    Hole {
        /// The last number held.
        held: u64,
        /// The number that came.
        got: u64,
    },
    /// The predecessor's hash is another: the child's store was rolled back, or somebody forges.
    #[error("record {0} does not continue its stream")]
    BrokenChain(u64),
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

#[derive(Default)]
struct StreamState {
    /// Last number here, pending included, and its hash.
    upto: u64,
    head: Hash,
    committed: u64,
    sent: u64,
    stored: u64,
    settled: u64,
    /// Numbers settled + 1 ..= upto.
    records: VecDeque<Arc<Record>>,
}

#[derive(Serialize, Deserialize)]
struct StreamMeta(u64, Hash, u64);

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
    streams: BTreeMap<StreamId, StreamState>,
    /// Streams with committed records that were not sent on this link, most pressing lane first.
    ready: BTreeSet<(Lane, StreamId)>,
    in_flight: [usize; 5],
    bytes: usize,
    records: usize,
    link_up: bool,
    parent: Option<(NodeId, u64)>,
}

fn record_key(stream: &StreamId, number: u64) -> Vec<u8> {
    [&stream.key()[..], &number.to_be_bytes()].concat()
}

fn meta_key(stream: &StreamId) -> Vec<u8> {
    [&[STREAM_META][..], &stream.key()].concat()
}

impl Spool {
    /// The spool of a node whose store was opened as `incarnation`. Feed [`Spool::recover_meta`] and
    /// [`Spool::recover_record`] with what the store holds before anything else.
    pub fn new(node: NodeId, epoch: Epoch, incarnation: u64) -> Self {
        Spool {
            node,
            epoch,
            incarnation,
            streams: BTreeMap::new(),
            ready: BTreeSet::new(),
            in_flight: [0; 5],
            bytes: 0,
            records: 0,
            link_up: false,
            parent: None,
        }
    }

    /// A row of [`Table::Meta`]; rows of others are passed over.
    pub fn recover_meta(&mut self, key: &[u8], value: &[u8]) -> Result<(), SpoolFault> {
        let Some((&STREAM_META, stream)) = key.split_first() else { return Ok(()) };
        let Some(stream) = StreamId::from_key(stream) else { return Ok(()) };
        let StreamMeta(upto, head, settled) = rmp_serde::from_slice(value).map_err(|_| SpoolFault::Unreadable)?;
        let state = StreamState {
            upto,
            head,
            committed: upto,
            sent: settled,
            stored: settled,
            settled,
            records: VecDeque::new(),
        };
        self.streams.insert(stream, state);
        Ok(())
    }

    /// A row of [`Table::Spool`], in key order, after all of meta.
    pub fn recover_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), SpoolFault> {
        let stream = key.get(..29).and_then(StreamId::from_key).ok_or(SpoolFault::Unreadable)?;
        let record: Record = rmp_serde::from_slice(value).map_err(|_| SpoolFault::Unreadable)?;
        let state = self.streams.get_mut(&stream).ok_or(SpoolFault::Unreadable)?;
        if record.number > state.settled {
            self.bytes += record.weight();
            self.records += 1;
            state.records.push_back(Arc::new(record));
            self.ready.insert((stream.lane, stream));
        }
        Ok(())
    }

    /// The node's own open store.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
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
        let stream = StreamId { node: self.node, epoch: self.epoch, incarnation: self.incarnation, lane };
        let state = self.streams.entry(stream).or_default();
        let record = Record { number: state.upto + 1, prev: state.head, class, trace, at, body };
        let number = record.number;
        self.push(stream, record, batch);
        Mark(vec![(stream, number)])
    }

    /// Takes a child's run. What is here already is passed over; a fault keeps what came before it in the run.
    pub fn carry(&mut self, run: Run, batch: &mut Batch) -> (Mark, Option<SpoolFault>) {
        let mut mark = Mark::default();
        for record in run.records {
            let state = self.streams.entry(run.stream).or_default();
            if state.settled == state.upto && record.number > state.upto + 1 {
                // What is between was settled by another way, or before this store existed.
                state.upto = record.number - 1;
                state.head = record.prev;
                (state.committed, state.sent, state.stored, state.settled) =
                    (state.upto, state.upto, state.upto, state.upto);
            }
            if record.number <= state.upto {
                continue;
            }
            if record.number > state.upto + 1 {
                return (mark, Some(SpoolFault::Hole { held: state.upto, got: record.number }));
            }
            if record.prev != state.head {
                return (mark, Some(SpoolFault::BrokenChain(record.number)));
            }
            let number = record.number;
            self.push(run.stream, record, batch);
            mark.0.retain(|(s, _)| *s != run.stream);
            mark.0.push((run.stream, number));
        }
        (mark, None)
    }

    fn push(&mut self, stream: StreamId, record: Record, batch: &mut Batch) {
        let state = self.streams.entry(stream).or_default();
        state.upto = record.number;
        state.head = record.hash(&stream);
        self.bytes += record.weight();
        self.records += 1;
        let value = rmp_serde::to_vec(&record).expect("records are plain data");
        batch.put(Table::Spool, record_key(&stream, record.number), value);
        put_meta(&stream, state, batch);
        state.records.push_back(Arc::new(record));
    }

    /// A batch with these records is on disk.
    pub fn committed(&mut self, mark: &Mark) {
        for (stream, number) in &mark.0 {
            if let Some(state) = self.streams.get_mut(stream) {
                state.committed = state.committed.max(*number);
                self.ready.insert((stream.lane, *stream));
            }
        }
    }

    /// What may be told of a stream to the child that brings it.
    pub fn ack(&self, stream: &StreamId) -> Ack {
        let (stored, settled) = self.streams.get(stream).map_or((0, 0), |s| (s.committed, s.settled));
        Ack { stream: *stream, stored, settled, refused: Vec::new() }
    }

    /// Which parent remembers what: names it in the greeting.
    pub fn stored_at(&self) -> Option<(NodeId, u64)> {
        self.parent
    }

    /// A link to a parent is up. A parent with another disk is offered everything that is not settled.
    pub fn link_up(&mut self, parent: NodeId, store: u64) {
        let same = self.parent == Some((parent, store));
        self.parent = Some((parent, store));
        self.link_up = true;
        self.in_flight = [0; 5];
        for (stream, state) in &mut self.streams {
            if !same {
                state.stored = state.settled;
            }
            state.sent = state.stored;
            if state.sent < state.committed {
                self.ready.insert((stream.lane, *stream));
            }
        }
    }

    /// The link is gone.
    pub fn link_down(&mut self) {
        self.link_up = false;
    }

    /// The next message's runs, all of one lane; `None` when nothing may be sent.
    pub fn take(&mut self) -> Option<(Lane, Vec<Run>)> {
        self.take_of(|_| true)
    }

    /// The same for lanes that `may` send: a relay lets records gather while earlier ones are under way.
    pub fn take_of(&mut self, may: impl Fn(Lane) -> bool) -> Option<(Lane, Vec<Run>)> {
        if !self.link_up || self.in_flight.iter().sum::<usize>() >= IN_FLIGHT_BYTES_MAX {
            return None;
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut gathered = 0;
        let mut lane = None;
        while let Some(&(next_lane, stream)) =
            self.ready.iter().find(|(l, _)| lane.map_or_else(|| may(*l), |chosen| chosen == *l))
        {
            if *lane.get_or_insert(next_lane) != next_lane || gathered >= GATHER_BYTES {
                break;
            }
            let state = self.streams.get_mut(&stream).expect("ready streams exist");
            let from = (state.sent - state.settled) as usize;
            let upto = (state.committed - state.settled) as usize;
            let mut run = Run { stream, records: Vec::new() };
            for record in state.records.iter().take(upto).skip(from) {
                if gathered > 0 && gathered + record.weight() > GATHER_BYTES {
                    break;
                }
                gathered += record.weight();
                self.in_flight[next_lane as usize] += record.weight();
                state.sent = record.number;
                run.records.push(Record::clone(record));
            }
            if state.sent >= state.committed {
                self.ready.remove(&(next_lane, stream));
            } else if run.records.is_empty() {
                break;
            }
            if !run.records.is_empty() {
                runs.push(run);
            }
        }
        lane.filter(|_| !runs.is_empty()).map(|lane| (lane, runs))
    }

    /// The parent acknowledged. Deletes what is settled.
    pub fn acked(&mut self, ack: &Ack, batch: &mut Batch) -> Result<(), SpoolFault> {
        let newest = self.newest_incarnation(&ack.stream);
        let Some(state) = self.streams.get_mut(&ack.stream) else { return Ok(()) };
        let (mut most, mut settled) = (ack.stored.max(ack.settled), ack.settled);
        if most > state.sent.max(state.stored) {
            if (ack.stream.node, ack.stream.incarnation) == (self.node, self.incarnation) {
                return Err(SpoolFault::BeyondSent { acked: most, sent: state.sent });
            }
            // A device that moved brought its stream there by another way too, and a store that was put back to an
            // older state has forgotten what it sent.
            (most, settled) = (most.min(state.upto), settled.min(state.upto));
            state.sent = state.sent.max(most);
        }
        let newly_stored = most.saturating_sub(state.stored);
        if newly_stored > 0 {
            let from = (state.stored - state.settled) as usize;
            let weights = state.records.iter().skip(from).take(newly_stored as usize).map(|r| r.weight());
            let lane = ack.stream.lane as usize;
            self.in_flight[lane] = self.in_flight[lane].saturating_sub(weights.sum());
            state.stored = most;
        }
        if settled > state.settled {
            let from = state.settled + 1;
            while state.records.front().is_some_and(|r| r.number <= settled) {
                let record = state.records.pop_front().expect("just seen");
                self.bytes -= record.weight();
                self.records -= 1;
            }
            state.settled = settled;
            state.committed = state.committed.max(settled);
            batch.delete_range(Table::Spool, record_key(&ack.stream, from), record_key(&ack.stream, settled + 1));
            let old = ack.stream.node == self.node && ack.stream.incarnation != self.incarnation
                || newest != Some(ack.stream.incarnation);
            if state.settled == state.upto && old {
                batch.delete(Table::Meta, meta_key(&ack.stream));
                self.streams.remove(&ack.stream);
                self.ready.remove(&(ack.stream.lane, ack.stream));
            } else {
                put_meta(&ack.stream, state, batch);
            }
        }
        Ok(())
    }

    /// The incarnation of a node's stream that was heard of last; older ones may be forgotten once settled.
    fn newest_incarnation(&self, stream: &StreamId) -> Option<u64> {
        if stream.node == self.node {
            return Some(self.incarnation);
        }
        // Incarnations are random: the one that still receives records is the one with unsettled or latest records.
        let of_node = self
            .streams
            .range(StreamId { incarnation: 0, lane: Lane::Control, ..*stream }..)
            .take_while(|(s, _)| s.node == stream.node && s.epoch == stream.epoch);
        of_node
            .filter(|(s, _)| s.lane == stream.lane)
            .max_by_key(|(_, state)| state.records.back().map(|r| r.at))
            .map(|(s, _)| s.incarnation)
    }

    /// A node's records that are not settled, as far as they are here.
    pub fn unsettled_of(&self, node: NodeId) -> impl Iterator<Item = &Record> {
        let first = StreamId { node, epoch: 0, incarnation: 0, lane: Lane::Control };
        let streams = self.streams.range(first..).take_while(move |(stream, _)| stream.node == node);
        streams.flat_map(|(_, state)| state.records.iter().map(AsRef::as_ref))
    }

    /// Bytes of a lane that were sent and are not stored by the parent.
    pub fn in_flight(&self, lane: Lane) -> usize {
        self.in_flight[lane as usize]
    }

    /// Whether everything here was stored by the parent: a poll may say that it is done.
    pub fn is_drained(&self) -> bool {
        self.ready.is_empty() && self.streams.values().all(|s| s.stored >= s.committed && s.committed == s.upto)
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

    /// What waits.
    pub fn figures(&self) -> SpoolFigures {
        let oldest = self.streams.values().filter_map(|s| s.records.front()).map(|r| r.at).min();
        SpoolFigures { spool_records: self.records as u64, spool_bytes: self.bytes as u64, oldest_unsettled_at: oldest }
    }
}

fn put_meta(stream: &StreamId, state: &StreamState, batch: &mut Batch) {
    let value = rmp_serde::to_vec(&StreamMeta(state.upto, state.head, state.settled)).expect("plain data");
    batch.put(Table::Meta, meta_key(stream), value);
}

#[cfg(test)]
mod tests;
