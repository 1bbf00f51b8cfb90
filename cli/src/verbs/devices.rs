//! `devices [--on SELECTOR]`

use super::text::{cell, list, state};
use crate::{answer::Answer, failure::Failure, session::Session, table::table};
use serde_json::Value;

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which: all, site:NAME, relay:NAME, device:ID, tag:NAME, with and, or, not
    #[arg(long, value_name = "SELECTOR", default_value = "all")]
    pub on: String,
}

/// Asks for the devices.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    super::run::selector(Some(&args.on))?;
    let mut devices = session.client()?.get("/devices", &[("on", &args.on)])?;
    let text = devices_text(list(&devices, "devices"));
    Ok(Answer::done(devices["devices"].take(), text))
}

/// Devices as a table.
pub fn devices_text(devices: &[Value]) -> String {
    let rows = devices.iter().map(|d| {
        [
            cell(&d["name"]),
            cell(&d["id"]),
            cell(&d["site"]),
            path(d),
            cell(&d["link"]),
            state(d, "state", "state_reason"),
            cell(&d["last_contact"]),
        ]
    });
    table(["NAME", "ID", "SITE", "PATH", "LINK", "STATE", "LAST CONTACT"], rows)
}

/// The names on the path, or `direct`; `unknown` before the device was heard of.
pub fn path(device: &Value) -> String {
    let names: Vec<String> = list(device, "path").iter().map(cell).collect();
    match (names.is_empty(), device["reached"].as_str()) {
        (true, Some(_)) => "direct".into(),
        (true, None) => "unknown".into(),
        (false, _) => names.join(" > "),
    }
}
