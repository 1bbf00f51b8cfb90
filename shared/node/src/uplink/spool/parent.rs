//! What a parent is sent, and what it says of it.

use super::{Acked, GATHER_BYTES, IN_FLIGHT_BYTES_MAX, Kind, Spool, SpoolFault, stream::record_key};
use crate::store::{Batch, Table};
use branchline_protocol::{
    id::NodeId,
    record::{Lane, Record, Run, StreamId},
    wire::Ack,
};
use std::ops::Bound;

/// Sorts before every other.
const FIRST_STREAM: StreamId =
    StreamId { node: NodeId(uuid::Uuid::nil()), epoch: 0, incarnation: 0, lane: Lane::Control };

impl Spool {
    /// Which parent remembers what: names it in the greeting.
    pub fn stored_at(&self) -> Option<(NodeId, u64)> {
        self.parent
    }

    /// A link to a parent is up. A parent with another disk, or one opened anew, is offered everything that is not
    /// settled: it may have been put back to an older state.
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
            if state.has_unsent() {
                self.ready.insert((stream.lane, *stream));
            }
        }
    }

    /// The parent has no more what it stored of a stream: from what is settled on it is sent once more.
    pub fn again(&mut self, stream: &StreamId) {
        let Some(state) = self.streams.get_mut(stream) else { return };
        let lane = stream.lane as usize;
        self.in_flight[lane] = self.in_flight[lane].saturating_sub(state.in_flight());
        (state.stored, state.sent) = (state.settled, state.settled);
        if state.has_unsent() {
            self.ready.insert((stream.lane, *stream));
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
        if !self.link_up {
            return None;
        }
        let may = |lane: Lane| self.in_flight[lane as usize] < IN_FLIGHT_BYTES_MAX && may(lane);
        // Of a lane none of whose next records are in memory nothing is sent; the others do not wait for it.
        let lanes: Vec<Lane> = Lane::ALL.into_iter().filter(|lane| may(*lane)).collect();
        lanes.into_iter().find_map(|lane| Some((lane, self.take_lane(lane)?)))
    }

    fn take_lane(&mut self, lane: Lane) -> Option<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        let mut gathered = 0;
        let mut after = None;
        while gathered < GATHER_BYTES
            && let Some(stream) = self.next_ready(lane, after)
        {
            after = Some(stream);
            let state = self.streams.get_mut(&stream).expect("ready streams exist");
            let mut run = Run { stream, records: Vec::new(), settled: state.settled, receipts: Vec::new() };
            let unsent = state.after_number(state.sent)..state.after_number(state.committed);
            for slot in state.slots.range(unsent) {
                if gathered > 0 && gathered + slot.weight > GATHER_BYTES {
                    break;
                }
                let Some(record) = &slot.record else { break };
                gathered += slot.weight;
                state.sent = slot.last;
                run.records.push(Record::clone(record));
            }
            state.told = state.told.max(state.sent);
            if !run.records.is_empty() {
                runs.push(run);
            }
            if !state.has_unsent() {
                self.ready.remove(&(lane, stream));
            }
        }
        self.in_flight[lane as usize] += gathered;
        (!runs.is_empty()).then_some(runs)
    }

    fn next_ready(&self, lane: Lane, after: Option<StreamId>) -> Option<StreamId> {
        let from = match after {
            Some(stream) => Bound::Excluded((lane, stream)),
            None => Bound::Included((lane, FIRST_STREAM)),
        };
        self.ready.range((from, Bound::Unbounded)).next().filter(|(of, _)| *of == lane).map(|(_, stream)| *stream)
    }

    /// Records that this acknowledgement settles, as far as they are here: [`Spool::acked`] deletes them.
    pub fn settling(&self, ack: &Ack) -> impl Iterator<Item = &Record> {
        let slots = self.streams.get(&ack.stream).into_iter().flat_map(|state| &state.slots);
        let settled = slots.take_while(|slot| slot.last <= ack.settled).filter(|slot| !slot.is_gap);
        settled.filter_map(|slot| slot.record.as_deref())
    }

    /// The parent acknowledged. Deletes what is settled. Of streams that others may bring to the server too, it may know
    /// more than was ever sent from here.
    ///
    /// # Errors
    /// It acknowledges what this process never sent of a stream of its own; nothing changed.
    pub fn acked(&mut self, ack: &Ack, batch: &mut Batch) -> Result<Acked, SpoolFault> {
        let stream = ack.stream;
        let own = stream.node == self.node;
        let current = own && (stream.epoch, stream.incarnation) == (self.epoch, self.incarnation);
        let most = ack.stored.max(ack.settled);
        let mut acked = Acked::default();
        let Some(state) = self.streams.get_mut(&stream) else {
            if current && most > 0 {
                return Err(SpoolFault::BeyondSent { acked: most, sent: 0 });
            }
            return Ok(acked);
        };
        if current && most > state.told {
            return Err(SpoolFault::BeyondSent { acked: most, sent: state.told });
        }
        acked.rolled_back = own && most > state.at.upto;
        let (most, settled) = (most.min(state.at.upto), ack.settled.min(state.at.upto));
        if most > state.stored {
            let flying = state.after_number(state.stored)..state.after_number(most.min(state.sent));
            let landed: usize =
                if flying.start < flying.end { state.slots.range(flying).map(|slot| slot.weight).sum() } else { 0 };
            let lane = stream.lane as usize;
            self.in_flight[lane] = self.in_flight[lane].saturating_sub(landed);
            state.stored = most;
            state.sent = state.sent.max(most);
            // They are only read again for a parent that lacks them, and only what is on this disk can be.
            let stored = state.after_number(most.min(state.committed));
            self.memory.evict(state, 0..stored);
        }
        if settled > state.settled {
            let from = state.settled + 1;
            while state.slots.front().is_some_and(|slot| slot.last <= settled) {
                let slot = state.slots.pop_front().expect("just seen");
                self.used[Kind::of(stream.lane) as usize] -= slot.weight as u64;
                self.memory.remove(&slot);
                self.records -= 1;
            }
            state.settled = settled;
            state.committed = state.committed.max(settled);
            batch.delete_range(Table::Spool, record_key(&stream, from), record_key(&stream, settled));
            batch.delete(Table::Spool, record_key(&stream, settled));
            state.put_meta(&stream, batch);
        }
        if !state.has_unsent() {
            self.ready.remove(&(stream.lane, stream));
        }
        self.forget_if_over(stream, batch);
        Ok(acked)
    }
}
