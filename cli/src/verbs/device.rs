//! `device ID`

use super::{
    devices::path,
    keep::keep_text,
    text::{cell, length, list, slot, state, within},
};
use crate::{answer::Answer, client::segment, failure::Failure, session::Session};
use serde_json::Value;

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device's id or name
    #[arg(value_name = "ID")]
    pub device: String,
}

/// Asks for the device.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let device = session.client()?.get(&format!("/devices/{}", segment(&args.device)), &[])?;
    let text = device_text(&device);
    Ok(Answer::done(device, text))
}

fn device_text(device: &Value) -> String {
    let capabilities: Vec<String> = list(device, "capabilities").iter().map(cell).collect();
    let capabilities = if capabilities.is_empty() { "-".into() } else { capabilities.join(", ") };
    let mut lines = vec![
        ("name", cell(&device["name"])),
        ("id", cell(&device["id"])),
        ("tenant", cell(&device["tenant"])),
        ("site", cell(&device["site"])),
        ("path", path(device)),
        ("can", capabilities),
        ("link", cell(&device["link"])),
        ("state", state(device, "state", "state_reason")),
        ("last contact", cell(&device["last_contact"])),
    ];
    for (key, value) in device["inventory"].as_object().into_iter().flatten() {
        lines.push((key, cell(value)));
    }
    let settings = &device["settings"];
    let pending = if settings["pending"].as_bool() == Some(true) { " (pending)" } else { "" };
    let versions = format!("{} of {}{pending}", cell(&settings["acknowledged"]), cell(&settings["wanted"]));
    lines.push(("settings", versions));
    lines.push(("keep", keep_text(&device["keep_connection"]).into()));
    lines.push(("slot", slot(&device["slot"])));
    let delay = &device["delay"];
    lines.push(("urgent job", within(&delay["urgent_ms"])));
    lines.push(("normal job", within(&delay["normal_ms"])));
    if let Some(ms) = delay["last_job"]["delay_ms"].as_u64() {
        let (class, job) = (cell(&delay["last_job"]["class"]), cell(&delay["last_job"]["job"]));
        lines.push(("last job", format!("{} ({class}, {job})", length(ms))));
    }
    lines.iter().map(|(key, value)| format!("{:<14}{value}\n", key.replace('_', " "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn adm_14_a_device_shows_the_settings_that_it_has_and_whether_newer_ones_are_pending() {
        let line = |acknowledged: u64, pending: bool| {
            let settings = json!({ "acknowledged": acknowledged, "wanted": 3, "pending": pending });
            let text = device_text(&json!({ "name": "pc", "settings": settings }));
            text.lines().find(|line| line.starts_with("settings")).map(str::to_owned)
        };
        assert_eq!(line(2, true).as_deref(), Some("settings      2 of 3 (pending)"));
        assert_eq!(line(3, false).as_deref(), Some("settings      3 of 3"));
    }
}
