//! `suspend DEVICE` and `revive DEVICE`

use super::{
    device::Args,
    text::{cell, state},
};
use crate::{answer::Answer, client::segment, failure::Failure, session::Session};
use serde_json::json;

/// Suspends the device, or revives it, and shows how it stands.
pub fn run(args: &Args, suspended: bool, session: &Session) -> Result<Answer, Failure> {
    let verb = if suspended { "suspend" } else { "revive" };
    let device = session.client()?.post(&format!("/devices/{}/{verb}", segment(&args.device)), &[], &json!({}))?;
    let text = format!("{}: {}\n", cell(&device["name"]), state(&device, "state", "state_reason"));
    Ok(Answer::done(device, text))
}
