//! What an administrator does to a job that was issued: cancel it, or issue it anew for those that did not succeed.

use super::{Dispatcher, issue::Draft};
use crate::{
    dispatch::{CancelJob, Event},
    store::JobRow,
};
use actix::prelude::*;
use branchline_node::link::engine::LinkCommand;
use branchline_protocol::{
    id::{JobId, NodeId, Role, TenantId},
    job::{CANCEL, Cancel, Class},
    order::{Envelope, Leaf, Payload, Withdrawal},
    record::Lane,
    refusal::Refusal,
    wire::Message,
};

/// Cancels a job; answers once that is durable (JOB-14).
#[derive(Message)]
#[rtype(result = "Result<JobId, Refusal>")]
pub struct CancelOrder {
    /// Whose.
    pub tenant: TenantId,
    /// An API token's name.
    pub who: String,
    /// The job.
    pub job: JobId,
}

/// Issues a job anew for these of its devices; answers the new job once it is durable (CON-5).
#[derive(Message)]
#[rtype(result = "Result<JobId, Refusal>")]
pub struct ReissueJob {
    /// An API token's name.
    pub who: String,
    /// The old job.
    pub job: JobRow,
    /// Devices that did not succeed.
    pub devices: Vec<NodeId>,
}

impl Handler<CancelOrder> for Dispatcher {
    type Result = ResponseFuture<Result<JobId, Refusal>>;

    fn handle(&mut self, CancelOrder { tenant, who, job }: CancelOrder, ctx: &mut Self::Context) -> Self::Result {
        match self.cancel(tenant, who, job) {
            Ok(cancel) => {
                let receipt = cancel.receipt;
                self.durable(Event::Cancel(Box::new(cancel)), receipt, ctx)
            }
            Err(refusal) => Box::pin(async move { Err(refusal) }),
        }
    }
}

impl Handler<ReissueJob> for Dispatcher {
    type Result = ResponseFuture<Result<JobId, Refusal>>;

    fn handle(&mut self, ask: ReissueJob, ctx: &mut Self::Context) -> Self::Result {
        match self.reissue(ask) {
            Ok(issue) => {
                let id = issue.job.id;
                self.durable(Event::Issue(Box::new(issue)), id, ctx)
            }
            Err(refusal) => Box::pin(async move { Err(refusal) }),
        }
    }
}

impl Dispatcher {
    /// What is over elsewhere, in the server's signed words: unsigned ones let nobody forget an order.
    pub(super) fn withdraw(&mut self, child: NodeId, session: u64, list: Vec<Withdrawal>) {
        let office = &self.parts.office;
        let seal = |withdrawal: Withdrawal| Some(withdrawal.seal(office.signer(&withdrawal.tenant)?.as_ref()));
        let sealed: Vec<Envelope> = list.into_iter().filter_map(seal).collect();
        self.ask(child, session, LinkCommand::Send(Lane::Urgent, Message::Withdraw(sealed).encode()));
    }

    fn cancel(&mut self, tenant: TenantId, who: String, job: JobId) -> Result<CancelJob, Refusal> {
        self.parts.office.may_issue()?;
        let plan = self
            .core
            .cancel_plan(&tenant, job)
            .ok_or_else(|| Refusal::new(409, "job_final", "the job is at its end on every device"))?;
        let receipt = JobId(self.parts.ambient.random.id(self.parts.time.now().wall));
        let mut steering = None;
        if !plan.steer.is_empty() {
            let args = rmp_serde::to_vec_named(&Cancel { target: plan.target }).expect("arguments are plain data");
            let targets = plan.steer.into_iter().map(|(device, epoch)| Leaf { device, epoch }).collect();
            steering = Some(self.draft(Draft {
                tenant: tenant.clone(),
                who: who.clone(),
                verb: CANCEL.into(),
                args: args.into(),
                command: format!("cancel {job}"),
                selector: String::new(),
                class: Class::Urgent,
                fetch_by: plan.report_by,
                run_ms_max: 0,
                targets,
                unknown: Vec::new(),
                origin: Some(job),
            })?);
        }
        Ok(CancelJob { tenant, target: plan.target, receipt, who, steering })
    }

    fn reissue(&mut self, ReissueJob { who, job, devices }: ReissueJob) -> Result<crate::dispatch::Issue, Refusal> {
        self.parts.office.may_issue()?;
        let unreadable = |e: rmp_serde::decode::Error| Refusal::new(500, "internal", format!("job {}: {e}", job.id));
        let old: Payload = rmp_serde::from_slice(&job.envelope.payload).map_err(unreadable)?;
        let state =
            self.core.tenant(&job.tenant).ok_or_else(|| Refusal::new(404, "no_such_tenant", "no such tenant"))?;
        let here = |id: &NodeId| {
            let row = state.nodes.get(id).filter(|n| n.role == Role::Agent && n.revoked_at.is_none())?;
            let route = state.directory.get(row.id).map_or(&row.route[..], |e| &e.via[..]);
            Some((route, row.id, row.epoch))
        };
        let mut targets: Vec<_> = devices.iter().filter_map(here).collect();
        targets.sort();
        if targets.is_empty() {
            return Err(Refusal::new(409, "nothing_to_reissue", "no device is left that the job could be issued to"));
        }
        let targets = targets.into_iter().map(|(_, device, epoch)| Leaf { device, epoch }).collect();
        let now = self.parts.time.now();
        self.draft(Draft {
            tenant: job.tenant,
            who,
            verb: job.verb,
            args: job.args,
            command: job.command,
            selector: job.selector,
            class: job.class,
            fetch_by: now.node.plus(job.fetch_by.0 - job.issued_at.0),
            run_ms_max: old.run_ms_max,
            targets,
            unknown: Vec::new(),
            origin: Some(job.id),
        })
    }
}
