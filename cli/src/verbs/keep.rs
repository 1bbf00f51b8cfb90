//! `keep DEVICE [--off|--default]`

use super::text::cell;
use crate::{answer::Answer, client::segment, failure::Failure, session::Session};
use serde_json::{Value, json};

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device's id or name
    #[arg(value_name = "DEVICE")]
    pub device: String,
    /// It polls and holds no slot
    #[arg(long, conflicts_with = "default")]
    pub off: bool,
    /// It asks for a slot as its own configuration says
    #[arg(long)]
    pub default: bool,
}

/// Says whether the device keeps its connection, from its next contact on, and shows how it stands.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let keep = if args.default { Value::Null } else { Value::Bool(!args.off) };
    let path = format!("/devices/{}", segment(&args.device));
    let device = session.client()?.patch(&path, &json!({ "keep_connection": keep }))?;
    let text = format!(
        "{}: keep connection {}, {} until its next contact\n",
        cell(&device["name"]),
        keep_text(&device["keep_connection"]),
        cell(&device["link"])
    );
    Ok(Answer::done(device, text))
}

/// `on`, `off`, or `default` where nobody has said.
pub fn keep_text(keep: &Value) -> &'static str {
    match keep.as_bool() {
        Some(true) => "on",
        Some(false) => "off",
        None => "default",
    }
}
