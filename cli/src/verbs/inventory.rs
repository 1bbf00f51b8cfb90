//! `inventory DEVICE [--refresh[=full]]`

use super::{
    text::{cell, list},
    wait::{Shown, all_succeeded, for_completion},
};
use crate::{
    answer::Answer,
    client::{Client, segment},
    failure::Failure,
    session::Session,
    table::table,
};
use branchline_node::{config::duration_text, time::SystemClock};
use serde_json::{Value, json};
use std::time::Duration;

/// The collection and its result travel on lanes of their own: the result may come first, the inventory within this.
const ARRIVAL: Duration = Duration::from_secs(10);

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device's id or name
    pub device: String,
    /// Collect anew first; `full` sends everything, not the difference
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "changes",
          value_parser = ["changes", "full"])]
    pub refresh: Option<String>,
    /// How long --refresh waits for the device [default: 1m]
    #[arg(long, value_name = "TIME", requires = "refresh", value_parser = crate::args::duration)]
    pub timeout: Option<Duration>,
}

/// Asks for the inventory, after a fresh collection if asked to.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let client = session.client()?;
    let path = format!("/devices/{}/inventory", segment(&args.device));
    let inventory = match args.refresh.as_deref() {
        None => client.get(&path, &[])?,
        Some(how) => refreshed(args, &client, &path, how == "full")?,
    };
    let text = inventory_text(&inventory);
    Ok(Answer::done(inventory, text))
}

fn refreshed(args: &Args, client: &Client, path: &str, full: bool) -> Result<Value, Failure> {
    let refresh = format!("/devices/{}/refresh", segment(&args.device));
    let job = client.post(&refresh, &[("full", if full { "true" } else { "false" })], &json!({}))?;
    let id = job["id"].as_str().ok_or_else(|| Failure::ended("bad_answer", "the job has no id"))?.to_string();
    let time_out = args.timeout.unwrap_or(Duration::from_secs(60));
    let job = for_completion(client, &id, time_out, &mut Shown::on_stderr())?;
    if job["complete"].as_bool() != Some(true) {
        let message =
            format!("{} did not answer within {}; its job {id} goes on", args.device, duration_text(time_out));
        return Err(Failure::ended("not_complete", message));
    }
    let result = list(&job, "results").first().cloned().unwrap_or(Value::Null);
    if !all_succeeded(&job) {
        let state = super::text::state(&result, "state", "reason");
        return Err(Failure::ended("refresh_failed", format!("{} did not collect: {state}", args.device)));
    }
    // What the device says it collected; without a word the inventory that is there counts.
    let told: Value = result["stdout"].as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let fresh = |inventory: &Value| !told["digest"].is_string() || inventory["digest"] == told["digest"];
    let clock = SystemClock::shared();
    let start = clock.mono();
    loop {
        let inventory = client.get(path, &[]);
        match inventory {
            Ok(inventory) if fresh(&inventory) => return Ok(inventory),
            Err(failure) if failure.code != "no_inventory" => return Err(failure),
            // A device's first or changed inventory may still be under way.
            outcome if clock.mono().since(start) >= ARRIVAL.as_millis() as u64 => {
                if outcome.is_ok() {
                    eprintln!("branchline: the fresh inventory is still under way; this is the one before");
                }
                return outcome;
            }
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn inventory_text(inventory: &Value) -> String {
    let mut text = format!(
        "device {}  collected {}  last contact {}\ndigest {}\n",
        cell(&inventory["device"]),
        cell(&inventory["collected_at"]),
        cell(&inventory["last_contact"]),
        cell(&inventory["digest"])
    );
    for (section, items) in inventory["sections"].as_object().into_iter().flatten() {
        let rows = items.as_object().into_iter().flatten().map(|(key, value)| [key.clone(), item(value)]);
        text += &format!("\n[{section}]\n{}", table(["ITEM", "VALUE"], rows));
    }
    text
}

/// An item's fields on one line.
fn item(value: &Value) -> String {
    match value.as_object() {
        Some(fields) => fields.iter().map(|(k, v)| format!("{k}={}", cell(v))).collect::<Vec<_>>().join(" "),
        None => cell(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_items_are_shown_one_a_line() {
        let text = inventory_text(&json!({
            "device": "d", "collected_at": "t", "last_contact": null, "digest": "abc",
            "sections": { "os": { "name": "Debian" }, "software": { "bash:amd64": { "version": "5", "source": "dpkg" } } },
        }));
        assert!(text.contains("[os]\nITEM  VALUE\nname  Debian\n"), "{text}");
        assert!(text.contains("bash:amd64  version=5 source=dpkg\n"), "{text}");
    }
}
