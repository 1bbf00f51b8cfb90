//! One child's link: an actor of its own, so that its panic is its own. Started after the handshake, never restarted:
//! its child comes again (DESIGN 4).

use super::{
    child::{Child, FromChild},
    gatekeeper::SessionGone,
    partials::Partials,
};
use crate::{
    link::{
        BoxStream, LinkHandle, WeakLink,
        codec::FrameCodec,
        engine::{self, LinkCommand, LinkCounters, LinkEnd, LinkEvent, LinkSink, Side},
        lanes::Lanes,
    },
    supervise::{Drain, Exit, ExitGuard},
};
use actix::prelude::*;
use branchline_protocol::wire::Goodbye;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_util::codec::Framed;

/// The actor.
pub struct Session {
    guard: ExitGuard,
    child: Arc<Child>,
    /// Given to the owner at the start: it alone keeps the link.
    handle: Option<LinkHandle>,
    link: WeakLink,
    /// Boxed: the actor's value stays as long as the link, and what it gave away would leave its room empty.
    work: Option<Box<Work>>,
    owner: Recipient<FromChild>,
    gatekeeper: Recipient<SessionGone>,
    end: LinkEnd,
}

struct Work {
    framed: Framed<Box<TlsStream<BoxStream>>, FrameCodec>,
    commands: mpsc::Receiver<LinkCommand>,
    side: Side,
    counters: LinkCounters,
    /// A future has room for each place that a value passes through: it stays in this one.
    lanes: Box<Lanes>,
    partials: Arc<Mutex<Partials>>,
}

impl Session {
    /// A session of a welcomed child.
    #[allow(clippy::too_many_arguments, reason = "one call, at the end of the reception")]
    pub fn new(
        guard: ExitGuard,
        child: Arc<Child>,
        framed: Framed<Box<TlsStream<BoxStream>>, FrameCodec>,
        link: LinkHandle,
        commands: mpsc::Receiver<LinkCommand>,
        side: Side,
        owner: Recipient<FromChild>,
        gatekeeper: Recipient<SessionGone>,
        counters: LinkCounters,
        lanes: Lanes,
        partials: Arc<Mutex<Partials>>,
    ) -> Self {
        let work = Some(Box::new(Work { framed, commands, side, counters, lanes: Box::new(lanes), partials }));
        let end = LinkEnd::Lost("the session failed".into());
        let (weak, handle) = (link.weak(), Some(link));
        Session { guard, child, handle, link: weak, work, owner, gatekeeper, end }
    }
}

struct ToOwner {
    owner: Recipient<FromChild>,
    child: Arc<Child>,
}

impl LinkSink for ToOwner {
    async fn deliver(&mut self, event: LinkEvent) {
        // Waits until the owner has handled it: a child is read no faster than its parent works.
        let _ = self.owner.send(FromChild::Event { child: self.child.clone(), event }).await;
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (Some(work), Some(link)) = (self.work.take(), self.handle.take()) else { return };
        let (owner, child) = (self.owner.clone(), self.child.clone());
        let node = child.node;
        let links = async move {
            let up = FromChild::Up { child: child.clone(), link };
            if owner.send(up).await.is_err() {
                return LinkEnd::Orphaned;
            }
            let mut sink = ToOwner { owner, child };
            let Work { framed, commands, side, counters, mut lanes, partials } = *work;
            let end = engine::run_on(&mut lanes, framed, commands, side, counters, &mut sink).await;
            // Ignores poison: it is consistent between any two calls.
            let mut partials = partials.lock().unwrap_or_else(PoisonError::into_inner);
            partials.keep(node, lanes.into_partials());
            end
        };
        ctx.spawn(links.into_actor(self).map(|end, actor, ctx| {
            actor.end = end;
            actor.guard.set(Exit::Done);
            ctx.stop();
        }));
    }
}

impl Handler<Drain> for Session {
    type Result = ();
    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.link.ask(LinkCommand::Goodbye(Goodbye::Stopping));
    }
}

impl Drop for Session {
    /// Runs on a panic too: whatever happened, the slot is free and the owner knows.
    fn drop(&mut self) {
        // Two notices per session, after which there are none: bounded, and losing one would hold a slot for ever.
        self.gatekeeper.do_send(SessionGone { node: self.child.node, session: self.child.session });
        self.owner.do_send(FromChild::Gone { child: self.child.clone(), end: self.end.clone() });
    }
}
