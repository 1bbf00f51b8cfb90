//! Restarts of the machine: ordered, carried out, and judged in its next life (pure; DESIGN 5, JOB-2).
//!
//! The order's row in the journal names the life of the machine in which it was begun. The first thing a later life does is
//! to end it as succeeded; a machine that lives on for long after the command was given has not restarted.

use super::{core::AgentCore, core::Turn, orders::plain_end};
use crate::platform::{Ended, JobLeft};
use branchline_node::defects::Defects;
use branchline_protocol::{
    id::OrderNumber,
    job::End,
    time::{Mono, Now},
};
use std::collections::BTreeMap;

/// Milliseconds from the command to the machine's end: services take their time to stop.
pub const RESTART_WITHIN_MS: u64 = 600_000;

/// Restarts whose command was given, and whose machine still lives.
#[derive(Debug, Default)]
pub struct Restarts {
    since: BTreeMap<OrderNumber, Mono>,
}

impl Restarts {
    /// The command was given.
    pub fn commanded(&mut self, order: OrderNumber, now: Now) {
        self.since.entry(order).or_insert(now.mono);
    }

    /// Those whose machine should be gone by now. They are told once.
    pub fn late(&mut self, now: Now) -> Vec<OrderNumber> {
        let is_late = |since: &Mono| now.mono.since(*since) >= RESTART_WITHIN_MS;
        let late = self.since.iter().filter(|(_, since)| is_late(since)).map(|(order, _)| *order).collect();
        self.since.retain(|_, since| !is_late(since));
        late
    }

    /// When [`Restarts::late`] will have something to say.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.since.values().min().map(|since| since.plus(RESTART_WITHIN_MS))
    }
}

/// Whether a restart's command may have taken effect: then only the machine's next life can tell.
pub fn may_restart(left: &JobLeft) -> bool {
    match left {
        JobLeft::Finished(status, ..) => matches!(status.ended, Ended::Exited(0)) && !status.cancelled,
        // The machine's end takes the command's keeper with it.
        JobLeft::Cut => true,
        JobLeft::Running { .. } => false,
    }
}

impl<D: Defects> AgentCore<D> {
    /// Ends the restarts that the machine has come back from.
    pub(super) fn end_restarts(&mut self, now: Now, turn: &mut Turn) {
        let complete = self.journal.all_begun().filter(|(_, open, _)| open.is_complete(&self.life));
        let complete: Vec<_> = complete.map(|(order, open, _)| (order, open.begun_at)).collect();
        for (order, begun_at) in complete {
            self.end(now, plain_end(order, End::Succeeded, None, begun_at, now), turn);
        }
    }

    /// Ends the restarts that did not come.
    pub(super) fn give_up_restarts(&mut self, now: Now, turn: &mut Turn) {
        for order in self.restarts.late(now) {
            let begun_at = self.journal.begun(order).and_then(|open| open.begun_at);
            self.end(now, plain_end(order, End::Failed, Some("not_restarted"), begun_at, now), turn);
        }
    }
}
