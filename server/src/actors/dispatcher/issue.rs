//! From an administrator's wish to a signed order: targets frozen, leaves in order of route, one signature.

use super::Dispatcher;
use crate::{
    api::control::NewJob,
    dispatch::{Event, Issue, Seen},
    store::{JobDeviceRow, JobRow},
};
use actix::prelude::*;
use branchline_protocol::{
    hash::Hash,
    id::{JobId, NodeId, OrderNumber, Role, TenantId, TraceId},
    job::{self, Class, State},
    order::{Envelope, Leaf, ORDER_PAYLOAD_TYPE, OrderMessage, Payload, Tree},
    refusal::Refusal,
    selector::Candidate,
    time::Millis,
};
use bytes::Bytes;
use tokio::sync::oneshot;

/// Issues a job; answers once it is durable.
#[derive(Message)]
#[rtype(result = "Result<JobId, Refusal>")]
pub struct IssueJob {
    /// Whose.
    pub tenant: TenantId,
    /// An API token's name.
    pub who: String,
    /// What.
    pub job: NewJob,
}

/// An order to be signed: its targets are frozen, and in order of route where that matters.
pub(super) struct Draft {
    pub tenant: TenantId,
    pub who: String,
    pub verb: String,
    pub args: Bytes,
    pub command: String,
    pub selector: String,
    pub class: Class,
    pub fetch_by: Millis,
    pub run_ms_max: u64,
    pub targets: Vec<Leaf>,
    /// Words of the selector that name no device.
    pub unknown: Vec<String>,
    pub origin: Option<JobId>,
}

impl Dispatcher {
    fn prepare(&mut self, IssueJob { tenant, who, job }: IssueJob) -> Result<Issue, Refusal> {
        self.parts.office.may_issue()?;
        let verb = job::verb(&job.verb).ok_or_else(|| {
            let known: Vec<&str> = job::VERBS.iter().map(|v| v.name).collect();
            Refusal::new(422, "unknown_verb", format!("known verbs: {}", known.join(", "))).field("verb")
        })?;
        if job.args.len() > verb.args_max {
            return Err(Refusal::new(413, "too_large", format!("arguments over {} bytes", verb.args_max)).field("args"));
        }
        let state = self.core.tenant(&tenant).ok_or_else(|| Refusal::new(404, "no_such_tenant", "no such tenant"))?;
        let agents = || state.nodes.values().filter(|n| n.role == Role::Agent && n.revoked_at.is_none());
        let mut targets: Vec<(&[NodeId], NodeId, u32)> = agents()
            .filter(|row| job.on.matches(&Seen { state, row }))
            .map(|row| (state.directory.get(row.id).map_or(&row.route[..], |e| &e.via[..]), row.id, row.epoch))
            .collect();
        // By route, so that a relay's devices lie side by side and its proof is small.
        targets.sort();
        let unknown: Vec<String> = job
            .on
            .named_devices()
            .into_iter()
            .filter(|name| !agents().any(|row| Seen { state, row }.is(name)))
            .map(String::from)
            .collect();
        // A relay or gateway is an asset without an agent: nothing runs jobs there (TOP-13).
        let agentless = state.nodes.values().filter(|n| n.role != Role::Agent && n.revoked_at.is_none());
        if let Some(asset) =
            agentless.map(|n| &n.name).find(|name| unknown.iter().any(|u| u.eq_ignore_ascii_case(name)))
        {
            let message = format!("{asset} has no agent; jobs run on devices with one");
            return Err(Refusal::new(409, "no_agent", message).field("on"));
        }
        if targets.is_empty() && unknown.is_empty() {
            return Err(Refusal::new(422, "no_targets", "the selector matches no device").field("on"));
        }
        let now = self.parts.time.now();
        self.draft(Draft {
            tenant,
            who,
            class: job.class.unwrap_or(verb.class),
            verb: job.verb,
            args: job.args,
            command: job.command,
            selector: job.on.to_string(),
            fetch_by: now.node.plus(job.life_ms as i64),
            run_ms_max: job.run_ms_max,
            targets: targets.into_iter().map(|(_, device, epoch)| Leaf { device, epoch }).collect(),
            unknown,
            origin: None,
        })
    }

    /// A signed order with its rows; its number is taken.
    pub(super) fn draft(&mut self, draft: Draft) -> Result<Issue, Refusal> {
        let Draft { tenant, who, verb, args, command, selector, class, fetch_by, run_ms_max, .. } = draft;
        let now = self.parts.time.now();
        let signer = self
            .parts
            .office
            .signer(&tenant)
            .ok_or_else(|| Refusal::new(503, "no_signing_key", "the tenant's signing key is away"))?;
        let number = self.numbers.entry(tenant.clone()).or_insert(0);
        *number += 1;
        let number = OrderNumber { term: self.parts.office.term(), number: *number };
        let id = JobId(self.parts.ambient.random.id(now.wall));
        let trace = TraceId(self.parts.ambient.random.id(now.wall));
        let tree = Tree::build(&tenant, number, draft.targets);
        let payload = Payload {
            tenant: tenant.clone(),
            number,
            job: id,
            trace,
            verb: verb.clone(),
            args_hash: Hash::of(&args),
            class,
            issued_at: now.node,
            // At once: a device's node time may lag by a statement's age and must not wait for it.
            not_before: Millis(0),
            fetch_by,
            run_ms_max,
            policy_version: 0,
            root: tree.root(),
            leaf_count: tree.leaf_count(),
            targets: Vec::new(),
        };
        let bytes = rmp_serde::to_vec_named(&payload).map_err(|e| Refusal::new(500, "internal", e.to_string()))?;
        let envelope = Envelope::sign(ORDER_PAYLOAD_TYPE, bytes, &signer);
        let row = |leaf, device, epoch, state| JobDeviceRow {
            job: id,
            leaf,
            device,
            epoch,
            state,
            reason: None,
            changed_at: now.node,
            result: None,
            holders: Vec::new(),
            delivered_at: None,
            late: false,
        };
        let leaves = tree.leaves().iter().enumerate();
        let mut devices: Vec<JobDeviceRow> =
            leaves.map(|(leaf, l)| row(Some(leaf as u32), Ok(l.device), l.epoch, State::Queued)).collect();
        devices.extend(draft.unknown.into_iter().map(|name| row(None, Err(name), 0, State::NoSuchDevice)));
        let message = (tree.leaf_count() > 0).then(|| {
            let all: Vec<u32> = (0..tree.leaf_count()).collect();
            OrderMessage { envelope: envelope.clone(), args: args.clone(), proof: tree.prove(&all) }
        });
        tracing::info!(%trace, job = %id, order = %number, verb, devices = devices.len(), "issued");
        let job = JobRow {
            id,
            tenant,
            number,
            trace,
            verb,
            command,
            selector,
            class,
            ordered_by: who.clone(),
            issued_at: now.node,
            fetch_by,
            report_by: payload.report_by(),
            envelope,
            args,
            origin: draft.origin,
        };
        Ok(Issue { job, devices, payload, message, who })
    }

    /// Feeds what waits to be durable; answers once `receipt` is.
    pub(super) fn durable(
        &mut self,
        event: Event,
        receipt: JobId,
        ctx: &mut Context<Self>,
    ) -> ResponseFuture<Result<JobId, Refusal>> {
        let (tx, rx) = oneshot::channel();
        self.issuing.insert(receipt, tx);
        self.feed(event, ctx);
        Box::pin(async move {
            rx.await.map_err(|_| Refusal::new(503, "store_stopped", "it was not stored; ask again"))?;
            Ok(receipt)
        })
    }
}

impl Handler<IssueJob> for Dispatcher {
    type Result = ResponseFuture<Result<JobId, Refusal>>;

    fn handle(&mut self, ask: IssueJob, ctx: &mut Self::Context) -> Self::Result {
        match self.prepare(ask) {
            Ok(issue) => {
                let id = issue.job.id;
                self.durable(Event::Issue(Box::new(issue)), id, ctx)
            }
            Err(refusal) => Box::pin(async move { Err(refusal) }),
        }
    }
}
