//! Acknowledgements that wait to be told with what the parent settles (pure; decision 48).

use super::{
    Effect,
    state::{ChildAck, Link, RelayCore},
};
use branchline_node::defects::Defects;
use branchline_protocol::{
    id::{NodeId, Role},
    record::{Lane, StreamId},
    wire::{Ack, Message},
};
use std::collections::{BTreeMap, BTreeSet};

/// By child and session: streams of which more is stored than was told.
#[derive(Default)]
pub(super) struct Owed(BTreeMap<(NodeId, u64), BTreeSet<StreamId>>);

impl Owed {
    /// Stored, and to be told at the next tick if nothing is settled before.
    pub fn owe(&mut self, child: NodeId, session: u64, stream: StreamId) {
        self.0.entry((child, session)).or_default().insert(stream);
    }

    /// All that is stored of it is told.
    pub fn told(&mut self, child: NodeId, session: u64, stream: &StreamId) {
        if let Some(streams) = self.0.get_mut(&(child, session)) {
            streams.remove(stream);
            if streams.is_empty() {
                self.0.remove(&(child, session));
            }
        }
    }

    /// A link is over: the child sends again what it was not told of, and is told on its next link.
    pub fn forget(&mut self, child: NodeId) {
        self.0.retain(|(of, _), _| *of != child);
    }
}

impl<D: Defects> RelayCore<D> {
    /// Tells children what is stored of their streams. What a device said on a link that stays is told with what the
    /// server settles of it, which is on its way while there is a parent; what was refused, at once.
    pub(super) fn acknowledge(&mut self, acks: Vec<ChildAck>, out: &mut Vec<Effect>) {
        let mut told: BTreeMap<(NodeId, u64), Vec<Ack>> = BTreeMap::new();
        for (child, session, stream, refused) in acks {
            let stays = |link: &Link| link.session == session && link.role == Role::Agent && !link.poll;
            if refused.is_empty() && self.parent_up && self.links.get(&child).is_some_and(stays) {
                self.owed.owe(child, session, stream);
            } else {
                self.owed.told(child, session, &stream);
                told.entry((child, session)).or_default().push(Ack { refused, ..self.spool.ack(&stream) });
            }
        }
        tell(told, out);
    }

    /// What waits to be told is told.
    pub(super) fn tell_owed(&mut self, out: &mut Vec<Effect>) {
        let owed = std::mem::take(&mut self.owed.0).into_iter();
        let acks = |streams: BTreeSet<StreamId>| streams.iter().map(|stream| self.spool.ack(stream)).collect();
        tell(owed.map(|(to, streams)| (to, acks(streams))).collect(), out);
    }
}

fn tell(acks: BTreeMap<(NodeId, u64), Vec<Ack>>, out: &mut Vec<Effect>) {
    let effect = |((child, session), acks)| Effect::ToChild(child, session, Lane::Control, Message::Acks(acks));
    out.extend(acks.into_iter().map(effect));
}
