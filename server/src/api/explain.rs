//! One job on one device, hop by hop: where the order is and why it has not ended. Everything is derived from what is kept
//! anyway and from what the running server knows at this moment; nothing is written for it.

use super::{
    control::{Standing, Whereabouts},
    names::Names,
    views::{Present, shown, time},
};
use crate::store::{JobDeviceRow, JobRow};
use branchline_node::downstream::ledger::Row;
use branchline_protocol::{
    id::NodeId,
    job::{State, cancel},
    time::Millis,
};
use serde::Serialize;
use utoipa::ToSchema;

/// Where a job stands on a device, and how it came there.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExplainView {
    job: String,
    device: String,
    #[schema(value_type = String)]
    state: State,
    /// Why it ended so, or why it has not ended.
    reason: Option<String>,
    /// When the device is due again; only while it is short of its end.
    next_contact: Option<String>,
    /// Oldest first; last what it waits for.
    timeline: Vec<StepView>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct StepView {
    /// When; null where nobody wrote the time down.
    at: Option<String>,
    /// The name of the node where it happened.
    node: String,
    /// `issued`, `sent`, `held`, `delivered`, `started`, `ended`, `recorded`, `cancelling`, `cancel_answered`, `expired`,
    /// `cancelled`, `outcome_unknown`, `unreachable`, `suspended`, `waiting`.
    event: &'static str,
    detail: String,
}

/// Everything an explanation is made of.
pub struct Known<'k> {
    /// The job.
    pub job: &'k JobRow,
    /// Its row of the device.
    pub row: &'k JobDeviceRow,
    /// The device.
    pub device: NodeId,
    /// Steering orders for it, each with its own row of the device.
    pub steering: &'k [(JobRow, JobDeviceRow)],
    /// What the dispatcher knows of the order.
    pub whereabouts: &'k Whereabouts,
    /// How the device stands.
    pub standing: &'k Standing,
    /// Everybody's names, the server's included.
    pub names: &'k Names,
    /// The server.
    pub server: NodeId,
    /// Of the moment.
    pub present: &'k Present,
}

/// The explanation.
pub fn explain(known: &Known<'_>) -> ExplainView {
    let Known { job, row, standing, present, .. } = known;
    let (state, reason) = shown(row, job.fetch_by, present);
    let mut timeline = known.past();
    let mut why = reason;
    if !row.state.is_end() {
        let (blocker, step) = known.waits_for(state);
        why = why.or_else(|| Some(blocker.into()));
        timeline.push(step);
    }
    ExplainView {
        job: job.id.to_string(),
        device: known.device.to_string(),
        state,
        reason: why,
        next_contact: standing.next_contact.filter(|_| !row.state.is_end()).map(time),
        timeline,
    }
}

impl Known<'_> {
    fn name(&self, node: NodeId) -> String {
        self.names.get(&node).cloned().unwrap_or_else(|| node.to_string())
    }

    fn names_of(&self, nodes: &[NodeId]) -> String {
        nodes.iter().map(|node| self.name(*node)).collect::<Vec<_>>().join(", ")
    }

    fn step(&self, at: Option<Millis>, node: NodeId, event: &'static str, detail: impl Into<String>) -> StepView {
        StepView { at: at.map(time), node: self.name(node), event, detail: detail.into() }
    }

    /// What is known to have happened, in its order.
    fn past(&self) -> Vec<StepView> {
        let Known { job, row, device, server, .. } = *self;
        let until = format!("{} by {}, may be fetched until {}", job.verb, job.ordered_by, time(job.fetch_by));
        let mut steps = vec![(job.issued_at, self.step(Some(job.issued_at), server, "issued", until))];
        // Nobody writes down when an order was sent: these stand behind the issue, in the order in which it went.
        let held = match self.whereabouts.row {
            Some(Row::Held(relay)) => Some(relay),
            _ => None,
        };
        for holder in row.holders.iter().filter(|_| row.delivered_at.is_none() && !row.state.is_end()) {
            let step = match *holder {
                relay if held == Some(relay) => self.step(None, relay, "held", "on the relay's disk"),
                relay if relay != device => self.step(None, relay, "sent", "to the relay, which may have it"),
                _ => self.step(None, device, "sent", "to the device, which has not acknowledged it"),
            };
            steps.push((job.issued_at, step));
        }
        for (relay, at) in self.whereabouts.held.iter().filter(|_| held.is_some() && row.delivered_at.is_none()) {
            let step = self.step(Some(*at), *relay, "held", "on the relay's disk");
            steps.push((job.issued_at.max(*at), step));
        }
        // Several machines dated them: each is told as it was dated, and stands behind its cause.
        let delivered = row.delivered_at.unwrap_or_default().max(job.issued_at);
        if let Some(at) = row.delivered_at {
            steps.push((delivered, self.step(Some(at), device, "delivered", "the device has it on disk")));
        }
        let running = (row.state == State::Running).then_some(row.changed_at);
        if let Some(at) = row.result.as_ref().and_then(|result| result.started_at).or(running) {
            steps.push((at.max(delivered), self.step(Some(at), device, "started", "")));
        }
        for (order, answer) in self.steering {
            let by = format!("by {}", order.ordered_by);
            steps.push((order.issued_at, self.step(Some(order.issued_at), server, "cancelling", by)));
            if let Some(result) = &answer.result {
                let word = match answer.reason.as_deref() {
                    Some(cancel::CANCELLED) => "it had not begun, and never will",
                    Some(cancel::RUNNING) => "it runs and is being ended",
                    Some(cancel::ENDED) => "it was at its end",
                    _ => "the device could not cancel it",
                };
                steps.push((result.ended_at, self.step(Some(result.ended_at), device, "cancel_answered", word)));
            }
        }
        if row.state.is_end() {
            let ended = match &row.reason {
                Some(reason) => format!("{} ({reason})", row.state),
                None => row.state.to_string(),
            };
            match &row.result {
                Some(result) => {
                    steps.push((result.ended_at, self.step(Some(result.ended_at), device, "ended", ended)));
                    let late = if row.late { "late: it replaces what the server had concluded" } else { "" };
                    steps.push((row.changed_at, self.step(Some(row.changed_at), server, "recorded", late)));
                }
                None => {
                    let event = row.state.as_str();
                    steps.push((row.changed_at, self.step(Some(row.changed_at), server, event, ended)));
                }
            }
        }
        let rank = |step: &StepView| match step.event {
            "issued" => 0,
            "ended" | "expired" | "cancelled" | "outcome_unknown" => 2,
            "recorded" => 3,
            _ => 1,
        };
        steps.sort_by_key(|(at, step)| (rank(step), *at));
        steps.into_iter().map(|(_, step)| step).collect()
    }

    /// Why it has not ended: a word, and the step that says so.
    fn waits_for(&self, state: State) -> (&'static str, StepView) {
        let Known { row, device, server, standing, present, whereabouts, .. } = *self;
        if let Some((relay, since)) = whereabouts.cut_off {
            let detail = format!("{} is behind it", self.name(device));
            return ("unreachable", self.step(Some(since), relay, "unreachable", detail));
        }
        let now = Some(present.now);
        if row.state == State::Queued && standing.state == "suspended" {
            return ("suspended", self.step(now, device, "suspended", "nothing is given to it until it is revived"));
        }
        if matches!(standing.state, "offline" | "unknown") {
            let why = standing.reason.clone().unwrap_or_else(|| standing.state.into());
            return ("unreachable", self.step(standing.last_contact, device, "unreachable", why));
        }
        let due = |at: Millis| format!("{} polls and is due at {}", self.name(device), time(at));
        let due = standing.next_contact.filter(|_| standing.link != "persistent").map(due);
        if row.reason.is_some() || state == State::Expired {
            let who = match row.holders.is_empty() || row.state != State::Queued {
                true => self.name(device),
                false => self.names_of(&row.holders),
            };
            let detail = format!("for the word of {who}{}", due.map(|due| format!("; {due}")).unwrap_or_default());
            return ("unconfirmed", self.step(now, server, "waiting", detail));
        }
        if row.state != State::Queued {
            return ("not_reported", self.step(now, device, "waiting", "for the device's report"));
        }
        match due {
            Some(due) => ("next_poll", self.step(now, device, "waiting", due)),
            None => ("on_its_way", self.step(now, device, "waiting", "the order is on its way")),
        }
    }
}
