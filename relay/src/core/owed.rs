//! Acknowledgements that wait for the next tick, so that a device is told once of all that came meanwhile (pure; decisions 48 and 49).

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
use std::collections::BTreeMap;

/// By child and session: streams of which there is more to tell than was told, with what the server has settled of each as far as that
/// was heard on this link.
#[derive(Default)]
pub(super) struct Owed(BTreeMap<(NodeId, u64), BTreeMap<StreamId, u64>>);

impl Owed {
    /// Stored, or settled up to a number, or both: to be told at the next tick.
    pub fn owe(&mut self, child: NodeId, session: u64, stream: StreamId, settled: u64) {
        let known = self.0.entry((child, session)).or_default().entry(stream).or_default();
        *known = settled.max(*known);
    }

    /// What waited of a stream is told now.
    fn take(&mut self, child: NodeId, session: u64, stream: &StreamId) -> Option<u64> {
        let streams = self.0.get_mut(&(child, session))?;
        let settled = streams.remove(stream);
        if streams.is_empty() {
            self.0.remove(&(child, session));
        }
        settled
    }

    /// A link is over: the child sends again what it was not told of, and is told on its next link.
    pub fn forget(&mut self, child: NodeId) {
        self.0.retain(|(of, _), _| *of != child);
    }
}

impl<D: Defects> RelayCore<D> {
    /// Tells children what is stored of their streams.
    pub(super) fn acknowledge(&mut self, acks: Vec<ChildAck>, out: &mut Vec<Effect>) {
        let ack = |(child, session, stream, refused)| {
            let to: (NodeId, u64) = (child, session);
            (to, Ack { refused, ..self.spool.ack(&stream) })
        };
        let acks = acks.into_iter().map(ack).collect();
        self.tell_acks(acks, out);
    }

    /// Tells children of their streams: a device on a link that stays at the next tick, while there is a parent; what was refused, at once.
    pub(super) fn tell_acks(&mut self, acks: Vec<((NodeId, u64), Ack)>, out: &mut Vec<Effect>) {
        let mut told: BTreeMap<(NodeId, u64), Vec<Ack>> = BTreeMap::new();
        for ((child, session), ack) in acks {
            if ack.refused.is_empty() && self.parent_up && self.can_wait(child, session) {
                self.owed.owe(child, session, ack.stream, ack.settled);
            } else {
                let ack = self.with_owed(child, session, ack);
                told.entry((child, session)).or_default().push(ack);
            }
        }
        tell(told, out);
    }

    fn can_wait(&self, child: NodeId, session: u64) -> bool {
        let stays = |link: &Link| link.session == session && link.role == Role::Agent && !link.poll;
        self.links.get(&child).is_some_and(stays)
    }

    /// What is told at once also says what would have waited.
    fn with_owed(&mut self, child: NodeId, session: u64, ack: Ack) -> Ack {
        match self.owed.take(child, session, &ack.stream) {
            Some(settled) => self.latest(Ack { settled: settled.max(ack.settled), ..ack }),
            None => ack,
        }
    }

    /// With what is stored here by now. What is settled is stored at the server, whether or not it is here.
    fn latest(&self, ack: Ack) -> Ack {
        let here = self.spool.ack(&ack.stream);
        let settled = ack.settled.max(here.settled);
        Ack { stored: here.stored.max(ack.stored).max(settled), settled, ..ack }
    }

    /// What waits to be told is told.
    pub(super) fn tell_owed(&mut self, out: &mut Vec<Effect>) {
        let owed = std::mem::take(&mut self.owed.0).into_iter();
        let ack = |(stream, settled)| self.latest(Ack { stream, stored: 0, settled, refused: Vec::new() });
        tell(owed.map(|(to, streams)| (to, streams.into_iter().map(ack).collect())).collect(), out);
    }
}

fn tell(acks: BTreeMap<(NodeId, u64), Vec<Ack>>, out: &mut Vec<Effect>) {
    let effect = |((child, session), acks)| Effect::ToChild(child, session, Lane::Control, Message::Acks(acks));
    out.extend(acks.into_iter().map(effect));
}
