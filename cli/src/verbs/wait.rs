//! Waiting for a job to be complete, with what is known meanwhile shown on stderr.

use super::text::counts;
use crate::{
    client::{Client, POLL_MS_MAX, segment},
    failure::Failure,
};
use branchline_node::time::SystemClock;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::{io::IsTerminal, time::Duration};

/// A bar on a terminal, a line per change otherwise.
pub enum Shown {
    /// On a terminal.
    Bar(ProgressBar),
    /// The last line printed.
    Lines(String),
}

impl Shown {
    /// For this process's stderr.
    pub fn on_stderr() -> Shown {
        if !std::io::stderr().is_terminal() {
            return Shown::Lines(String::new());
        }
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}").expect("a literal template");
        Shown::Bar(ProgressBar::new(0).with_style(style))
    }
}

impl Shown {
    /// The job as it is.
    pub fn told(&mut self, job: &Value) {
        let (ended, all) = ended(job);
        let line = format!("{ended}/{all} ended: {}", counts(&job["counts"]));
        match self {
            Shown::Bar(bar) => {
                bar.set_length(all);
                bar.set_position(ended);
                bar.set_message(counts(&job["counts"]));
                if job["complete"].as_bool() == Some(true) {
                    bar.finish_and_clear();
                }
            }
            Shown::Lines(last) if *last != line => {
                eprintln!("{line}");
                *last = line;
            }
            Shown::Lines(_) => {}
        }
    }
}

/// (devices at their end, all devices) of a job.
fn ended(job: &Value) -> (u64, u64) {
    let counts = job["counts"].as_object().into_iter().flatten();
    counts.fold((0, 0), |(ended, all), (state, n)| {
        let n = n.as_u64().unwrap_or(0);
        let is_end = branchline_protocol::job::State::from_word(state).is_some_and(|s| s.is_end());
        (ended + if is_end { n } else { 0 }, all + n)
    })
}

/// Polls until the job is complete or the time is over, and returns it as it then is, with what came of it on each device.
pub fn for_completion(client: &Client, id: &str, time_out: Duration, shown: &mut Shown) -> Result<Value, Failure> {
    // The clock's monotonic reading needs no runtime; only its timers would.
    let clock = SystemClock::shared();
    let (start, limit) = (clock.mono(), time_out.as_millis() as u64);
    let path = format!("/jobs/{}", segment(id));
    loop {
        let left = limit.saturating_sub(clock.mono().since(start));
        // Short polls keep a terminal's figures fresh while devices answer one by one.
        let wait = left.min(POLL_MS_MAX).min(1_000).to_string();
        // Each second a row for every device would be more work for the server than the job.
        let job = client.get(&path, &[("results", "none"), ("wait_ms", &wait)])?;
        shown.told(&job);
        if job["complete"].as_bool() == Some(true) || clock.mono().since(start) >= limit {
            return client.get(&path, &[]);
        }
    }
}

/// Whether every device of a complete job succeeded.
pub fn all_succeeded(job: &Value) -> bool {
    let counts = job["counts"].as_object();
    job["complete"].as_bool() == Some(true)
        && counts.is_some_and(|c| c.iter().all(|(state, n)| state == "succeeded" || n.as_u64() == Some(0)))
        && job["counts"]["succeeded"].as_u64().is_some_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_complete_job_with_nothing_but_success_succeeded() {
        let job = |complete: bool, succeeded: u64, failed: u64| json!({ "complete": complete, "counts": { "succeeded": succeeded, "failed": failed, "queued": 0 } });
        assert!(all_succeeded(&job(true, 2, 0)));
        for bad in [job(true, 2, 1), job(false, 2, 0), job(true, 0, 0), json!({}), json!({ "complete": true })] {
            assert!(!all_succeeded(&bad), "{bad}");
        }
    }

    #[test]
    fn what_ended_is_counted_by_the_state_table() {
        let job = json!({ "counts": { "queued": 1, "running": 2, "succeeded": 3, "expired": 4 } });
        assert_eq!(ended(&job), (7, 10));
    }
}
