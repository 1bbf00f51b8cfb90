//! Streams of which this relay does not have what it acknowledged as stored: those above did not take them from it, so it
//! let them go (DESIGN 6). Who brought them has them still, and is asked to send them once more.
//!
//! Kept in memory only: after a restart every child offers all that is not settled anyway (decision 21).

use super::{Effect, state::RelayCore};
use branchline_node::defects::Defects;
use branchline_protocol::{
    id::NodeId,
    record::{Lane, StreamId},
    wire::Message,
};
use std::collections::BTreeMap;

/// Streams that are remembered; what is beyond is offered again when this relay's store is opened anew.
pub(super) const STREAMS_MAX: usize = 4_096;

/// By stream and child: the session in which the child was asked last. Once a session: what is refused again on the same
/// link would be refused for ever.
#[derive(Default)]
pub(super) struct Again(BTreeMap<(StreamId, NodeId), Option<u64>>);

impl Again {
    pub fn add(&mut self, stream: StreamId, child: NodeId) {
        if self.0.len() < STREAMS_MAX {
            self.0.entry((stream, child)).or_default();
        }
    }

    /// A child sends a stream from where it has to be taken up.
    pub fn came(&mut self, stream: StreamId, child: NodeId) {
        self.0.remove(&(stream, child));
    }

    /// Streams that a child was not asked for in this session, which now counts as asking.
    pub fn due(&mut self, child: NodeId, session: u64) -> Vec<StreamId> {
        let of_child = self.0.iter_mut().filter(|((_, by), asked)| *by == child && **asked != Some(session));
        of_child
            .map(|((stream, _), asked)| {
                *asked = Some(session);
                *stream
            })
            .collect()
    }
}

impl<D: Defects> RelayCore<D> {
    /// A stream was let go: every child that brought records of its node may have thought it stored here.
    pub(super) fn disowned(&mut self, stream: StreamId, out: &mut Vec<Effect>) {
        self.receipts.untold(&stream);
        for child in self.receipts.ways_of(stream.node) {
            self.missing(stream, child, out);
        }
    }

    /// A child sends a stream from beyond what is here.
    pub(super) fn missing(&mut self, stream: StreamId, child: NodeId, out: &mut Vec<Effect>) {
        self.again.add(stream, child);
        self.ask_to_send_again(child, out);
    }

    /// Asks a child that is there for what it was not asked for on this link.
    pub(super) fn ask_to_send_again(&mut self, child: NodeId, out: &mut Vec<Effect>) {
        let Some(session) = self.links.get(&child).map(|link| link.session) else { return };
        let streams = self.again.due(child, session);
        if !streams.is_empty() {
            out.push(Effect::ToChild(child, session, Lane::Control, Message::Again(streams)));
        }
    }
}
