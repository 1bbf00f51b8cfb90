//! How far the server holds each stream (pure): what makes a repeated record one that is known.

use branchline_protocol::{
    chain::Position,
    id::{Epoch, NodeId},
    record::{Lane, StreamId},
};
use std::collections::BTreeMap;

/// Streams that are remembered of a node and lane. Each opening of a node's store begins a stream, and what an earlier
/// one wrote may come late, by a relay that was away. More openings than these while it was away: results and reports
/// that come twice change nothing all the same, an alert is audited twice.
pub const STREAMS_KEPT: usize = 8;

/// Positions of the streams of each node and lane, latest heard of last. Most have one, and a fleet has many.
#[derive(Default)]
pub struct Streams(BTreeMap<(NodeId, Lane), Vec<Held>>);

/// How far one stream is held.
struct Held {
    epoch: Epoch,
    incarnation: u64,
    at: Position,
}

impl Held {
    fn is(&self, stream: &StreamId) -> bool {
        (self.epoch, self.incarnation) == (stream.epoch, stream.incarnation)
    }
}

impl Streams {
    /// How far a stream is held.
    pub fn get(&self, stream: &StreamId) -> Option<Position> {
        let held = self.0.get(&(stream.node, stream.lane))?;
        held.iter().rev().find(|held| held.is(stream)).map(|held| held.at)
    }

    /// A stream is held up to here. Answers those that are forgotten for it.
    pub fn put(&mut self, stream: StreamId, at: Position) -> Vec<StreamId> {
        let StreamId { node, epoch, incarnation, lane } = stream;
        let all = self.0.entry((node, lane)).or_default();
        if let Some(last) = all.last_mut().filter(|last| last.is(&stream)) {
            last.at = at;
            return Vec::new();
        }
        all.retain(|other| !other.is(&stream));
        all.reserve_exact(1);
        all.push(Held { epoch, incarnation, at });
        let gone = all.drain(..all.len().saturating_sub(STREAMS_KEPT));
        gone.map(|held| StreamId { node, epoch: held.epoch, incarnation: held.incarnation, lane }).collect()
    }

    /// How many are remembered.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_protocol::hash::Hash;

    #[test]
    fn eight_streams_of_a_node_and_lane_are_remembered_and_the_ninth_takes_the_place_of_the_oldest() {
        let stream =
            |incarnation, lane| StreamId { node: NodeId(uuid::Uuid::from_u128(1)), epoch: 1, incarnation, lane };
        let at = |upto| Position { upto, head: Hash::ZERO };
        let mut streams = Streams::default();
        for n in 1..=8 {
            assert_eq!(streams.put(stream(n, Lane::Work), at(n)), []);
        }
        assert_eq!(streams.put(stream(1, Lane::Work), at(9)), [], "heard of again");
        assert_eq!(streams.put(stream(1, Lane::Inventory), at(1)), [], "another lane is counted by itself");
        assert_eq!(streams.put(stream(9, Lane::Work), at(1)), [stream(2, Lane::Work)]);
        assert_eq!(streams.get(&stream(1, Lane::Work)), Some(at(9)));
        assert_eq!(streams.get(&stream(2, Lane::Work)), None);
        assert_eq!(streams.count(), 9);
    }
}
