//! How far the server holds each stream (pure): what makes a repeated record one that is known.

use branchline_protocol::{
    chain::Position,
    id::NodeId,
    record::{Lane, StreamId},
};
use std::collections::{BTreeMap, VecDeque};

/// Streams that are remembered of a node and lane. Each opening of a node's store begins a stream, and what an earlier
/// one wrote may come late, by a relay that was away. More openings than these while it was away: results and reports
/// that come twice change nothing all the same, an alert is audited twice.
pub const STREAMS_KEPT: usize = 8;

/// Positions, and the order in which the streams of a node and lane were heard of.
#[derive(Default)]
pub struct Streams {
    positions: BTreeMap<StreamId, Position>,
    /// Latest last.
    heard: BTreeMap<(NodeId, Lane), VecDeque<StreamId>>,
}

impl Streams {
    /// How far a stream is held.
    pub fn get(&self, stream: &StreamId) -> Option<Position> {
        self.positions.get(stream).copied()
    }

    /// A stream is held up to here. Answers those that are forgotten for it.
    pub fn put(&mut self, stream: StreamId, at: Position) -> Vec<StreamId> {
        self.positions.insert(stream, at);
        let heard = self.heard.entry((stream.node, stream.lane)).or_default();
        if heard.back() != Some(&stream) {
            heard.retain(|other| *other != stream);
            heard.push_back(stream);
        }
        let gone: Vec<StreamId> = heard.drain(..heard.len().saturating_sub(STREAMS_KEPT)).collect();
        for stream in &gone {
            self.positions.remove(stream);
        }
        gone
    }

    /// How many are remembered.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.positions.len()
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
