//! How much of the spool is in memory: bodies beyond a bound stay on disk only, and are read back when it is their turn.
//!
//! The oldest stay, because they are sent first; what becomes durable beyond the bound is let go. So nothing is read while
//! records go up about as fast as they come, and a spool that is cut off for days costs memory for the bound and for what
//! is under way.

use super::{IN_FLIGHT_BYTES_MAX, Spool, SpoolFault, stream::*};
use branchline_protocol::{
    chain::extent,
    record::{Record, StreamId},
};
use bytes::Bytes;
use std::ops::Range;

/// Bytes of bodies in memory at a relay.
pub const MEMORY_BYTES: usize = 64 << 20;
/// Bytes that are read back at once, or one record.
pub const LOAD_BYTES: usize = 1 << 20;

/// Keys of the spool's table, each with what the disk has under it.
pub type Rows = Vec<(Vec<u8>, Option<Bytes>)>;

/// What is in memory.
pub(super) struct Memory {
    /// The bound.
    pub max: usize,
    /// Bytes of bodies that are here.
    pub held: usize,
    /// Bodies that are on disk only.
    away: usize,
    /// Whether something was asked for and has not come.
    pub loading: bool,
}

impl Default for Memory {
    fn default() -> Self {
        Memory { max: usize::MAX, held: 0, away: 0, loading: false }
    }
}

impl Memory {
    /// A slot comes.
    pub fn add(&mut self, slot: &Slot) {
        self.held += slot.held();
    }

    /// A slot goes.
    pub fn remove(&mut self, slot: &Slot) {
        self.held -= slot.held();
        self.away -= usize::from(slot.record.is_none());
    }

    /// Lets bodies go while there are too many. A gap is small, and is read when it grows: it stays.
    pub fn evict(&mut self, state: &mut StreamState, slots: Range<usize>) {
        if self.held <= self.max || slots.start >= slots.end {
            return;
        }
        for slot in state.slots.range_mut(slots).filter(|slot| !slot.is_gap && slot.record.is_some()) {
            self.held -= slot.held();
            self.away += 1;
            slot.record = None;
        }
    }
}

impl Spool {
    /// Keeps at most about so many bytes of bodies in memory. Whoever sets this serves [`Spool::to_load`].
    pub fn set_memory(&mut self, bytes: usize) {
        self.memory.max = bytes;
    }

    /// Bytes of bodies in memory.
    pub fn in_memory(&self) -> usize {
        self.memory.held
    }

    /// Keys of [`crate::store::Table::Spool`] whose values are to be given to [`Spool::loaded`] before more can be sent.
    /// Empty while nothing is missing, or while others are under way.
    pub fn to_load(&mut self) -> Vec<Vec<u8>> {
        if self.memory.away == 0 || !self.link_up || self.memory.loading {
            return Vec::new();
        }
        for (lane, stream) in self.ready.iter().filter(|(l, _)| self.in_flight[*l as usize] < IN_FLIGHT_BYTES_MAX) {
            debug_assert_eq!(*lane, stream.lane);
            let Some(state) = self.streams.get(stream) else { continue };
            let unsent = state.after_number(state.sent)..state.after_number(state.committed);
            let mut bytes = 0;
            let missing = state.slots.range(unsent).take_while(|slot| {
                let one_more = slot.record.is_none() && bytes < LOAD_BYTES;
                bytes += slot.weight;
                one_more
            });
            let keys: Vec<Vec<u8>> = missing.map(|slot| record_key(stream, slot.last)).collect();
            if !keys.is_empty() {
                self.memory.loading = true;
                return keys;
            }
        }
        Vec::new()
    }

    /// What the disk has under these keys.
    ///
    /// # Errors
    /// A record that must be there is missing, or is another one.
    pub fn loaded(&mut self, rows: Rows) -> Result<(), SpoolFault> {
        self.memory.loading = false;
        for (key, value) in rows {
            let (stream, number) = key.split_at_checked(29).ok_or(SpoolFault::Unreadable)?;
            let stream = StreamId::from_key(stream).ok_or(SpoolFault::Unreadable)?;
            let number = u64::from_be_bytes(number.try_into().map_err(|_| SpoolFault::Unreadable)?);
            // Meanwhile it may have been settled, or dropped for a gap.
            let Some(state) = self.streams.get_mut(&stream) else { continue };
            let at = state.after_number(number - 1);
            let Some(slot) = state.slots.get_mut(at).filter(|s| s.last == number && s.record.is_none()) else {
                continue;
            };
            let record: Option<Record> = value.and_then(|value| rmp_serde::from_slice(&value).ok());
            let record = record.ok_or(SpoolFault::Unreadable)?;
            if !extent(&stream, &record).is_ok_and(|(_, head)| head == slot.head) {
                return Err(SpoolFault::Unreadable);
            }
            slot.record = Some(record.into());
            self.memory.away -= 1;
            self.memory.add(slot);
        }
        Ok(())
    }
}
