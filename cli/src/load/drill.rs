//! What the agents of a host do together when their leader says so: lose their links and dial again, or collect.
//!
//! Each arbiter drills its own agents and measures from the same instant; the leader gets one report of all.

use branchline_agent::RunningAgent;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// What is not done after this is missing.
pub const LIMIT: Duration = Duration::from_secs(120);
/// Dials under way at once of a whole host without a stated rate: half of what a parent takes before it turns away, and
/// enough to keep every core busy.
const DIALS_AT_ONCE: usize = 256;
/// The highest rate that may be stated: one more than any machine does.
pub const RATE_MAX: u32 = 100_000;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// All links are lost; once all are, each agent dials again without back-off.
    Storm {
        /// So many a second; as fast as they get in without one.
        per_second: Option<u32>,
    },
    /// The inventories that were held back are collected and sent.
    First,
    /// Each agent collects and sends the difference.
    Collect,
}

/// One arbiter's part of the agents.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Which.
    pub hand: usize,
    /// Of how many.
    pub hands: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When each agent was done, in milliseconds since the word.
    pub done_ms: Vec<f64>,
    /// How long each agent's own part took: from its dial, or from the word.
    pub each_ms: Vec<f64>,
    /// When the last link was lost.
    pub lost_ms: f64,
    /// Agents that were not done in time.
    pub missing: u64,
    /// Dials beyond one for each agent.
    pub again: u64,
}

impl Report {
    /// Both as one.
    pub fn merge(mut self, other: Report) -> Report {
        self.done_ms.extend(other.done_ms);
        self.each_ms.extend(other.each_ms);
        self.lost_ms = self.lost_ms.max(other.lost_ms);
        self.missing += other.missing;
        self.again += other.again;
        self
    }

    /// When the last one was done, in milliseconds.
    pub fn last_ms(&self) -> f64 {
        self.done_ms.iter().copied().fold(0.0, f64::max)
    }
}

/// Carries it out on these agents. `begun`: when the word came.
pub async fn carry_out(task: Task, begun: Instant, part: Part, agents: &[&RunningAgent]) -> Report {
    match task {
        Task::Storm { per_second } => storm(per_second, begun, part, agents).await,
        Task::First | Task::Collect => collect(task, begun, agents).await,
    }
}

async fn storm(per_second: Option<u32>, begun: Instant, part: Part, agents: &[&RunningAgent]) -> Report {
    let dialled = |agents: &[&RunningAgent]| agents.iter().map(|agent| agent.dials()).sum::<u64>();
    let before = dialled(agents);
    agents.iter().for_each(|agent| agent.lose_link());
    let lost = stream::iter(agents).for_each_concurrent(None, |agent| async {
        // One whose link does not end is missing in the end: it does not dial.
        let _ = timeout(LIMIT, agent.figures().wait_for(|figures| figures.link == "down")).await;
    });
    lost.await;
    let mut report = Report { lost_ms: ms(begun), ..Report::default() };
    let first = now();
    let dials = agents.iter().enumerate().map(|(n, agent)| async move {
        if let Some(rate) = per_second {
            let at = first + turn(n, part, rate);
            tokio::time::sleep(at.saturating_duration_since(now())).await;
        }
        let dial = now();
        agent.dial();
        let mut figures = agent.figures();
        let up = timeout(LIMIT, figures.wait_for(|figures| figures.link == "up")).await;
        matches!(up, Ok(Ok(_))).then(|| (ms(begun), ms(dial)))
    });
    let at_once = match per_second {
        Some(_) => agents.len(),
        None => DIALS_AT_ONCE / part.hands,
    };
    let done: Vec<Option<(f64, f64)>> = stream::iter(dials).buffer_unordered(at_once.max(1)).collect().await;
    done.into_iter().for_each(|done| report.add(done));
    let expected = agents.len() as u64 - report.missing;
    report.again = (dialled(agents) - before).saturating_sub(expected);
    report
}

/// When an arbiter's nth agent dials at this rate of them all.
fn turn(n: usize, part: Part, per_second: u32) -> Duration {
    let nth = n * part.hands + part.hand;
    Duration::from_secs_f64(nth as f64 / f64::from(per_second.max(1)))
}

async fn collect(task: Task, begun: Instant, agents: &[&RunningAgent]) -> Report {
    let each = stream::iter(agents).map(|agent| async move {
        let mut figures = agent.figures();
        let before = figures.borrow_and_update().reports;
        // What was held back is under way.
        let wanted = if task == Task::First { 1 } else { before + 1 };
        if task == Task::Collect {
            agent.collect();
        }
        // A record leaves the spool when the server has it on its disk.
        let settled = figures.wait_for(|f| f.reports >= wanted && f.spool.spool_records == 0);
        matches!(timeout(LIMIT, settled).await, Ok(Ok(_))).then(|| (ms(begun), ms(begun)))
    });
    let done: Vec<_> = each.buffer_unordered(agents.len().max(1)).collect().await;
    let mut report = Report::default();
    done.into_iter().for_each(|done| report.add(done));
    report
}

impl Report {
    fn add(&mut self, done: Option<(f64, f64)>) {
        match done {
            Some((done_ms, each_ms)) => {
                self.done_ms.push(done_ms);
                self.each_ms.push(each_ms);
            }
            None => self.missing += 1,
        }
    }
}

/// This instant.
#[allow(clippy::disallowed_methods, reason = "a stopwatch decides nothing, and the node's clock has no microseconds")]
pub fn now() -> Instant {
    Instant::now()
}

fn ms(since: Instant) -> f64 {
    now().saturating_duration_since(since).as_secs_f64() * 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arbiters_take_turns_at_the_rate_of_all() {
        let at = |hand, n| turn(n, Part { hand, hands: 2 }, 1_000).as_millis();
        assert_eq!([at(0, 0), at(1, 0), at(0, 1), at(1, 1), at(0, 500)], [0, 1, 2, 3, 1_000]);
    }

    #[test]
    fn a_report_of_both_counts_everybody_once_and_lasts_until_the_last() {
        let mut one = Report { lost_ms: 5.0, again: 1, ..Report::default() };
        one.add(Some((7.0, 2.0)));
        let mut other = Report { lost_ms: 4.0, ..Report::default() };
        other.add(None);
        other.add(Some((9.0, 3.0)));
        let both = one.merge(other);
        assert_eq!((both.last_ms(), both.lost_ms, both.missing, both.again), (9.0, 5.0, 1, 1));
        assert_eq!((both.done_ms.len(), both.each_ms.len()), (2, 2));
        assert_eq!(Report::default().last_ms(), 0.0);
    }
}
