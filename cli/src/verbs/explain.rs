//! `explain JOB DEVICE`

use super::text::{cell, list, state};
use crate::{answer::Answer, client::segment, failure::Failure, session::Session, table::table};
use serde_json::Value;

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job's id
    #[arg(value_name = "JOB")]
    pub job: String,
    /// The device's id or name
    #[arg(value_name = "DEVICE")]
    pub device: String,
}

/// Asks where the job is on the device and why it has not ended.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let path = format!("/jobs/{}/devices/{}/explain", segment(&args.job), segment(&args.device));
    let explained = session.client()?.get(&path, &[])?;
    let text = explained_text(&explained);
    Ok(Answer::done(explained, text))
}

fn explained_text(explained: &Value) -> String {
    let mut text = format!("{}\n", state(explained, "state", "reason"));
    if let Some(next) = explained["next_contact"].as_str() {
        text += &format!("next contact {next}\n");
    }
    let steps = list(explained, "timeline").iter();
    let rows = steps.map(|s| [cell(&s["at"]), cell(&s["node"]), cell(&s["event"]), cell(&s["detail"])]);
    text + "\n" + &table(["AT", "NODE", "EVENT", "DETAIL"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_timeline_is_a_table_below_the_state() {
        let text = explained_text(&json!({
            "job": "j", "device": "d", "state": "queued", "reason": "unreachable", "next_contact": null,
            "timeline": [
                { "at": "2026-11-22T00:00:00.000Z", "node": "hq", "event": "issued", "detail": "run_script by me" },
                { "at": null, "node": "osaka", "event": "held", "detail": "" },
            ],
        }));
        assert!(text.starts_with("queued (unreachable)\n\n"), "{text}");
        assert!(text.contains("-                         osaka  held    -"), "{text}");
    }
}
