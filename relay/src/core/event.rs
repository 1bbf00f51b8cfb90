//! What a relay's core hears, and what it asks for.

use super::state::RelayCore;
use branchline_node::{
    defects::Defects,
    downstream::{Child, beacon::Reachable},
    driver::{self, Token},
    link::engine::LinkEnd,
    store::Batch,
    uplink::spool::Rows,
};
use branchline_protocol::{
    id::{AttachmentKey, NodeId},
    order::Envelope,
    record::Lane,
    refusal::Refusal,
    time::{Millis, Now},
    wire::{Goodbye, Greeting, Lease, Message, Welcome},
};
use std::sync::Arc;

/// What happens.
pub enum Event {
    /// This parent is about to be greeted: the number goes back with [`Effect::Greet`].
    Dialling(u64, NodeId),
    /// The parent welcomed us.
    ParentUp(Box<Welcome>),
    /// The parent said something; credit is owed for it.
    ParentSaid(Message, Lane, u32),
    /// The parent's newest time statement.
    Alive(Envelope),
    /// A document that came with the enrolment.
    Document(branchline_protocol::document::Kind, Envelope),
    /// No link up.
    ParentDown,
    /// The newest link was refused, or ended, as older than one that a parent knows: this disk was put back to an older
    /// state.
    Overtaken,
    /// A child's link is up.
    ChildUp(Arc<Child>),
    /// A child said something; credit is owed for it.
    ChildSaid(Arc<Child>, Message, Lane, u32),
    /// A polling child has nothing more.
    ChildDone(Arc<Child>),
    /// A child's heartbeat.
    Heard(NodeId),
    /// A child's link ended.
    ChildGone(Arc<Child>, LinkEnd),
    /// A child lost its slot.
    Displaced(NodeId, Lease),
    /// A device says, by a datagram that holds, that it goes off and ends this attachment (ADM-18).
    GoesOff(NodeId, AttachmentKey),
    /// A link with this attachment of a child was refused before it was up, as no newer one.
    Stale(NodeId, AttachmentKey),
    /// The relay's figures for the tree, as JSON.
    Figures(String),
    /// Whether the disk is nearly full: then no order is taken.
    LowSpace(bool),
    /// What the disk has under the keys of [`Effect::Load`].
    Loaded(Rows),
    /// A batch is durable.
    Committed(Token),
    /// A few times a second: what was gathered goes up.
    Tick,
    /// The process stops in good order: nothing is heard after this.
    Stopping,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Make durable, then feed [`Event::Committed`].
    Commit(Batch, Token),
    /// The greeting for a dial; its attachment number is durable.
    Greet(u64, Box<Greeting>),
    /// Read these keys of [`branchline_node::store::Table::Spool`], then feed [`Event::Loaded`].
    Load(Vec<Vec<u8>>),
    /// What was read is not what was written: only a new start, which reads all of it, tells what is left.
    Damaged(String),
    /// Send up.
    ToParent(Lane, Message),
    /// Credit for what the parent sent.
    ReleaseParent(Lane, u32),
    /// The parent broke the rules: end the link.
    CloseParent(&'static str),
    /// Send to a child's live session.
    ToChild(NodeId, u64, Lane, Message),
    /// Credit for what a child sent.
    ReleaseChild(NodeId, u64, Lane, u32),
    /// End a child's link.
    GoodbyeChild(NodeId, u64, Goodbye),
    /// Refuse a child.
    RefuseChild(NodeId, u64, Refusal),
    /// Let go of a child's link without a word: its other end is gone.
    DropChild(NodeId, u64),
    /// What there is to wake a device and to believe its notice; none: it is sent no datagram.
    Reachable(NodeId, Option<Reachable>),
    /// A device lost its slot: from here on a wake may be what brings it.
    Sleeps(NodeId),
    /// Something waits for a device without a link.
    Wake(NodeId),
    /// What the reception checks has changed.
    FactsChanged,
    /// Upstreams or trust changed: dial by them from here on.
    Reconfigure,
    /// A verified statement's time.
    LearnTime(Millis, Envelope),
    /// Something was refused; counted.
    Refused(&'static str),
}

impl<D: Defects> driver::Core for RelayCore<D> {
    type Event = Event;
    type Effect = Effect;

    fn handle(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        self.event(now, event, out);
    }

    fn committed(token: Token) -> Event {
        Event::Committed(token)
    }

    fn into_commit(effect: Effect) -> Result<(Batch, Token), Effect> {
        match effect {
            Effect::Commit(batch, token) => Ok((batch, token)),
            other => Err(other),
        }
    }
}
