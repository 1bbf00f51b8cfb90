//! A restored server's first minutes: who is listened to, and what becomes of what they told.

use super::Dispatcher;
use crate::dispatch::{
    Event,
    recovery::{Learned, Recovery},
};
use actix::prelude::*;
use branchline_protocol::{
    document::Kind,
    id::{Epoch, NodeId, Role, TenantId},
    refusal::Refusal,
};

/// Ends the recovery before its time. 409 `not_recovering`.
#[derive(Message)]
#[rtype(result = "Result<(), Refusal>")]
pub struct EndRecovery;

impl Handler<EndRecovery> for Dispatcher {
    type Result = Result<(), Refusal>;
    fn handle(&mut self, _: EndRecovery, ctx: &mut Self::Context) -> Self::Result {
        if self.core.recovery().is_none() {
            return Err(Refusal::new(409, "not_recovering", "the server is not recovering"));
        }
        self.feed(Event::EndRecovery, ctx);
        Ok(())
    }
}

impl Dispatcher {
    /// Tells the core its term, and that it is to listen first if so.
    pub(super) fn begin_recovery(&mut self, ctx: &mut Context<Self>) {
        let office = self.parts.office.clone();
        self.feed(Event::Term(office.term()), ctx);
        if office.recovery().is_none() {
            return;
        }
        let awaited: Vec<(TenantId, NodeId)> = self
            .core
            .tenants()
            .flat_map(|(_, state)| state.nodes.values())
            .filter(|row| matches!(row.role, Role::Relay | Role::Agent) && row.revoked_at.is_none())
            .filter(|row| row.route.is_empty() && row.last_contact.is_some())
            .map(|row| (row.tenant.clone(), row.id))
            .collect();
        let (now, bound) = (self.parts.time.now().mono, self.parts.recovering_max_ms);
        tracing::warn!(term = office.term(), awaited = awaited.len(), "restored: listening before anything is issued");
        let recovery = Recovery::new(now, bound, awaited, office.held(&self.numbers));
        self.feed(Event::Recover(Box::new(recovery)), ctx);
    }

    /// Makes durable what was learned, then goes on.
    pub(super) fn keep_learned(&mut self, learned: Learned, ctx: &mut Context<Self>) {
        let office = self.parts.office.clone();
        let work = async move { office.finish_recovery(&learned).await.map(|done| (done, learned)) };
        ctx.spawn(work.into_actor(self).map(|done, actor, ctx| match done {
            Ok(((term, revoked), learned)) => {
                let (progress, why) = (learned.progress, learned.why);
                tracing::warn!(
                    term,
                    heard = progress.heard,
                    awaited = progress.awaited,
                    why = why.as_str(),
                    "recovered"
                );
                for (tenant, of) in learned.tenants {
                    let number = actor.numbers.entry(tenant).or_insert(0);
                    *number = of.newest.max(*number);
                }
                for tenant in actor.parts.office.tenants() {
                    actor.take_documents(&tenant, ctx);
                }
                actor.publish_facts();
                for (tenant, node) in revoked {
                    actor.feed(Event::Revoked(tenant, node), ctx);
                }
                actor.state_time(ctx);
                actor.feed(Event::Recovered(term), ctx);
            }
            Err(e) => actor.fail(format!("keep what was learned: {e}"), ctx),
        }));
    }

    /// A child shows a document that this store does not know: unless that is being told at this very moment, the store was
    /// put back by whoever copies disks. It is recovered from like a restore: this actor begins anew, and listens.
    pub(super) fn look_behind(&mut self, tenant: &TenantId, kind: Kind, version: (u32, u64), ctx: &mut Context<Self>) {
        let office = self.parts.office.clone();
        if !office.is_behind(tenant, kind, version) || office.recovery().is_some() || self.falling_back {
            return;
        }
        self.falling_back = true;
        tracing::error!(%tenant, ?kind, ?version, "the store is older than what this server has signed");
        let work = async move { office.fall_back().await };
        ctx.spawn(work.into_actor(self).map(|done, actor, ctx| {
            let why = match done {
                Ok(term) => format!("the store was put back to an older state: term {term} begins"),
                Err(e) => format!("the store was put back to an older state, and the term cannot be raised: {e}"),
            };
            actor.fail(why, ctx);
        }));
    }

    /// Nodes that were revoked before the restore stay so, whenever that is heard.
    pub(super) fn revoke_again(&mut self, tenant: TenantId, nodes: Vec<(NodeId, Epoch)>, ctx: &mut Context<Self>) {
        let (office, of) = (self.parts.office.clone(), tenant.clone());
        let work = async move { office.revoke_again(&of, nodes).await };
        ctx.spawn(work.into_actor(self).map(move |done, actor, ctx| match done {
            Ok(revoked) => {
                actor.take_documents(&tenant, ctx);
                actor.publish_facts();
                for node in revoked {
                    actor.feed(Event::Revoked(tenant.clone(), node), ctx);
                }
            }
            Err(e) => actor.fail(format!("keep a revocation: {e}"), ctx),
        }));
    }
}
