//! How a stream goes on (pure): the one rule by which every receiver, relay or server, takes the next record (DESIGN 5,
//! decision 14).
//!
//! A record continues a stream when it bears the next number and names its predecessor's hash. A gap record stands for
//! the numbers it names: it continues the stream where the first of them would have, and its successor names the hash of
//! the last one dropped. So a receiver sees the same hole as the sender, counted, and the chain holds across it.

use crate::{
    hash::Hash,
    record::{Gap, Lane, Record, StreamId, class},
};

/// The largest number of a record: stores keep numbers as signed integers.
pub const NUMBER_MAX: u64 = i64::MAX as u64;

/// Code of a record whose number is known with another content: its sender's store was put back to an older state.
pub const ROLLBACK: &str = "rollback";

/// How far a receiver holds a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The last number held; 0 when nothing is.
    pub upto: u64,
    /// What the next record must name as its predecessor.
    pub head: Hash,
}

/// What a record is to a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Held already: passed over, never overwritten.
    Known,
    /// It continues the stream, which then stands here.
    Takes(Position),
}

/// Why a record is not taken. Nothing of it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// Numbers were left out without a gap record.
    #[error("records after {held} and before {got} are missing")]
    Hole {
        /// The last number held.
        held: u64,
        /// The first number that came.
        got: u64,
    },
    /// A number that is held has another content, or the predecessor's hash is another: the sender's store was rolled
    /// back, or somebody forges.
    #[error("record {0} does not continue its stream")]
    Broken(u64),
    /// A number that no record can have.
    #[error("record number {0} is not within 1 to {NUMBER_MAX}")]
    BadNumber(u64),
    /// A gap record that contradicts itself.
    #[error("gap record {0} is malformed")]
    BadGap(u64),
    /// Results, alerts and facts are never dropped.
    #[error("gap record {0} on a lane that drops nothing")]
    GapNotAllowed(u64),
}

impl ChainFault {
    /// The stable code in acknowledgements and audits.
    pub fn code(&self) -> &'static str {
        match self {
            ChainFault::Hole { .. } => "hole",
            ChainFault::Broken(_) => ROLLBACK,
            ChainFault::BadNumber(_) | ChainFault::BadGap(_) => "malformed",
            ChainFault::GapNotAllowed(_) => "gap_not_allowed",
        }
    }

    /// The record it is about.
    pub fn number(&self) -> u64 {
        match *self {
            ChainFault::Hole { got, .. } => got,
            ChainFault::Broken(number)
            | ChainFault::BadNumber(number)
            | ChainFault::BadGap(number)
            | ChainFault::GapNotAllowed(number) => number,
        }
    }
}

/// What a record covers: the first number it stands for, and the hash its successor names.
///
/// # Errors
/// A gap record that is malformed, or on a lane that drops nothing.
pub fn extent(stream: &StreamId, record: &Record) -> Result<(u64, Hash), ChainFault> {
    if record.number == 0 || record.number > NUMBER_MAX {
        return Err(ChainFault::BadNumber(record.number));
    }
    if record.class != class::GAP {
        return Ok((record.number, record.hash(stream)));
    }
    if !stream.lane.may_drop() {
        return Err(ChainFault::GapNotAllowed(record.number));
    }
    let gap: Gap = rmp_serde::from_slice(&record.body).map_err(|_| ChainFault::BadGap(record.number))?;
    let (first, last) = gap.numbers;
    if first == 0 || first > last || last != record.number {
        return Err(ChainFault::BadGap(record.number));
    }
    Ok((first, gap.hash))
}

impl Position {
    /// Before the record with this number, whose predecessor's hash is `prev`.
    pub fn before(number: u64, prev: Hash) -> Position {
        Position { upto: number.saturating_sub(1), head: prev }
    }

    /// Whether and how a record continues the stream from here.
    ///
    /// # Errors
    /// It does not.
    pub fn follow(self, stream: &StreamId, record: &Record) -> Result<Next, ChainFault> {
        let (first, head) = extent(stream, record)?;
        if record.number <= self.upto {
            // Only the newest hash is kept; an older number is known by its number.
            let differs = record.number == self.upto && head != self.head;
            return if differs { Err(ChainFault::Broken(record.number)) } else { Ok(Next::Known) };
        }
        if first - 1 > self.upto {
            return Err(ChainFault::Hole { held: self.upto, got: first });
        }
        // A gap over numbers of which some are held: the sender dropped them without knowing that they had arrived.
        if first - 1 == self.upto && record.prev != self.head {
            return Err(ChainFault::Broken(record.number));
        }
        Ok(Next::Takes(Position { upto: record.number, head }))
    }
}

impl Lane {
    /// Whether records of this lane may be dropped at a quota, counted. Results, alerts and facts never are.
    pub fn may_drop(self) -> bool {
        matches!(self, Lane::Inventory | Lane::Logs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::NodeId, time::Millis};
    use bytes::Bytes;

    fn stream(lane: Lane) -> StreamId {
        StreamId { node: NodeId(uuid::Uuid::from_u128(7)), epoch: 1, incarnation: 9, lane }
    }

    fn record(number: u64, prev: Hash) -> Record {
        Record { number, prev, class: class::LOG, trace: None, at: Millis(0), body: Bytes::new() }
    }

    fn chain(lane: Lane, count: u64) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::new();
        for number in 1..=count {
            let prev = records.last().map_or(Hash::ZERO, |r| r.hash(&stream(lane)));
            records.push(record(number, prev));
        }
        records
    }

    /// The gap that stands for these.
    fn gap(lane: Lane, dropped: &[Record]) -> Record {
        let (first, last) = (&dropped[0], &dropped[dropped.len() - 1]);
        let hash = last.hash(&stream(lane));
        let body = Gap { numbers: (first.number, last.number), bytes: 0, reason: "quota".into(), hash };
        let body = rmp_serde::to_vec(&body).unwrap().into();
        Record { number: last.number, prev: first.prev, class: class::GAP, trace: None, at: Millis(0), body }
    }

    fn take(lane: Lane, records: &[Record]) -> Result<Position, ChainFault> {
        records.iter().try_fold(Position::default(), |at, r| {
            Ok(match at.follow(&stream(lane), r)? {
                Next::Known => at,
                Next::Takes(next) => next,
            })
        })
    }

    #[test]
    fn log_4_a_gap_keeps_numbers_and_chain_together() {
        let all = chain(Lane::Logs, 9);
        let whole = take(Lane::Logs, &all).unwrap();
        let holed = [&all[..2], &[gap(Lane::Logs, &all[2..6])], &all[6..]].concat();
        assert_eq!(take(Lane::Logs, &holed).unwrap(), whole, "it ends where the whole stream ends");
        let from_the_start = [&[gap(Lane::Logs, &all[..5])], &all[5..]].concat();
        assert_eq!(take(Lane::Logs, &from_the_start).unwrap(), whole);
        // What had arrived before it was dropped stays; the rest is the gap's.
        let overlapping = [&all[..4], &[gap(Lane::Logs, &all[2..6])], &all[6..]].concat();
        assert_eq!(take(Lane::Logs, &overlapping).unwrap(), whole);
        let twice = [&all[..], &[gap(Lane::Logs, &all[2..9])]].concat();
        assert_eq!(take(Lane::Logs, &twice).unwrap(), whole, "and one over what is held changes nothing");
    }

    #[test]
    fn a_gap_that_hides_a_change_of_history_is_found() {
        let all = chain(Lane::Logs, 6);
        let lies = Record { prev: Hash::of(b"other"), ..gap(Lane::Logs, &all[2..4]) };
        assert_eq!(take(Lane::Logs, &[&all[..2], &[lies]].concat()), Err(ChainFault::Broken(4)));
        let early = [&all[..1], &[gap(Lane::Logs, &all[2..4])]].concat();
        assert_eq!(take(Lane::Logs, &early), Err(ChainFault::Hole { held: 1, got: 3 }), "one number short");
        let after = [&all[..2], &[gap(Lane::Logs, &all[2..4])], &all[5..6]].concat();
        assert_eq!(take(Lane::Logs, &after), Err(ChainFault::Hole { held: 4, got: 6 }));
    }

    #[test]
    fn rly_10_nothing_is_dropped_from_the_lanes_of_results() {
        for lane in [Lane::Control, Lane::Urgent, Lane::Work] {
            let all = chain(lane, 2);
            assert_eq!(take(lane, &[gap(lane, &all)]), Err(ChainFault::GapNotAllowed(2)));
        }
        for lane in [Lane::Inventory, Lane::Logs] {
            assert!(take(lane, &[gap(lane, &chain(lane, 2))]).is_ok());
        }
    }

    #[test]
    fn a_gap_that_contradicts_itself_is_malformed() {
        let all = chain(Lane::Logs, 3);
        let with = |numbers, number| {
            let body = Gap { numbers, bytes: 0, reason: String::new(), hash: Hash::ZERO };
            Record { number, class: class::GAP, body: rmp_serde::to_vec(&body).unwrap().into(), ..all[0].clone() }
        };
        for bad in [with((0, 3), 3), with((3, 2), 2), with((1, 2), 3), Record { class: class::GAP, ..all[0].clone() }] {
            assert!(matches!(take(Lane::Logs, &[bad]), Err(ChainFault::BadGap(_))));
        }
        assert!(take(Lane::Logs, &[with((1, 3), 3)]).is_ok());
    }

    #[test]
    fn the_same_number_with_another_content_is_a_rollback_and_numbers_have_bounds() {
        let all = chain(Lane::Work, 3);
        let at = take(Lane::Work, &all).unwrap();
        assert_eq!(at.follow(&stream(Lane::Work), &all[2]), Ok(Next::Known));
        let other = Record { body: Bytes::from_static(b"x"), ..all[2].clone() };
        assert_eq!(at.follow(&stream(Lane::Work), &other), Err(ChainFault::Broken(3)));
        let last = Position { upto: NUMBER_MAX - 1, head: Hash::ZERO };
        assert!(matches!(last.follow(&stream(Lane::Work), &record(NUMBER_MAX, Hash::ZERO)), Ok(Next::Takes(_))));
        for number in [0, NUMBER_MAX + 1, u64::MAX] {
            let fault = last.follow(&stream(Lane::Work), &record(number, Hash::ZERO));
            assert_eq!(fault, Err(ChainFault::BadNumber(number)));
        }
    }
}
