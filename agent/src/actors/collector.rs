//! Collects the inventory off the arbiter, one collection at a time as the core asks for it.

use super::keeper::{Happened, Joined, Keeper};
use crate::{decide::Event, platform::Platform};
use actix::prelude::*;
use branchline_node::supervise::{Drain, Exit, ExitGuard};
use std::sync::Arc;

/// Collect these sections.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Collect(pub Vec<String>);

/// See the module.
pub(crate) struct Collector {
    guard: ExitGuard,
    platform: Arc<dyn Platform>,
    keeper: Addr<Keeper>,
}

impl Collector {
    pub(crate) fn new(guard: ExitGuard, platform: Arc<dyn Platform>, keeper: Addr<Keeper>) -> Self {
        Collector { guard, platform, keeper }
    }
}

impl Actor for Collector {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        // Once per generation.
        self.keeper.do_send(Joined::Collector(ctx.address()));
    }
}

impl Handler<Collect> for Collector {
    type Result = ();
    fn handle(&mut self, Collect(sections): Collect, ctx: &mut Self::Context) {
        let (platform, keeper) = (self.platform.clone(), self.keeper.clone());
        let work = async move {
            platform.may_collect().await;
            let snapshot = tokio::task::spawn_blocking(move || platform.collect(&sections)).await?;
            // The keeper may be gone; its successor asks again.
            let _ = keeper.send(Happened(Event::Collected(snapshot))).await;
            Ok::<_, tokio::task::JoinError>(())
        };
        ctx.spawn(work.into_actor(self).map(|result, actor, ctx| {
            if let Err(panic) = result {
                actor.guard.set(Exit::failed(format!("collect the inventory: {panic}")));
                ctx.stop();
            }
        }));
    }
}

impl Handler<Drain> for Collector {
    type Result = ();
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.guard.set(Exit::Stopped);
        ctx.stop();
    }
}
