//! Makes another epoch of a device durable, as the core decided (DESIGN 5).

use super::Dispatcher;
use crate::dispatch::Event;
use actix::prelude::*;

impl Dispatcher {
    /// Has the office write what the core asked for. The list that says so comes back as a document; what did not get that
    /// far is tried again.
    pub(super) fn raise(&mut self, ctx: &mut Context<Self>) {
        for (tenant, device, epoch) in std::mem::take(&mut self.raising) {
            let office = self.parts.office.clone();
            let work = async move {
                if let Err(refusal) = office.raise_epoch(&tenant, device, epoch).await {
                    tracing::error!(%tenant, %device, epoch, %refusal, "another epoch was not given");
                }
                (tenant, device)
            };
            ctx.spawn(work.into_actor(self).map(|(tenant, device), actor, ctx| {
                actor.take_documents(&tenant, ctx);
                actor.publish_facts();
                actor.feed(Event::NotRaised(tenant, device), ctx);
            }));
        }
    }
}
