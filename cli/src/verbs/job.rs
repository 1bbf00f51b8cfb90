//! `job ID`

use super::text::{job_text, list};
use crate::{
    answer::Answer,
    client::{Client, segment},
    failure::Failure,
    session::Session,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job's id
    #[arg(value_name = "ID")]
    pub job: String,
}

/// Asks for the job.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let client = session.client()?;
    let job = client.get(&format!("/jobs/{}", segment(&args.job)), &[])?;
    let names = device_names(&client);
    let text = job_text(&job, &|id| names.get(id).cloned());
    Ok(Answer::done(job, text))
}

/// Names of the tenant's devices by id, for tables; empty if they cannot be had, then ids are shown.
pub fn device_names(client: &Client) -> BTreeMap<String, String> {
    let devices = client.get("/devices", &[]).unwrap_or(Value::Null);
    let named = |d: &Value| Some((d["id"].as_str()?.to_string(), d["name"].as_str()?.to_string()));
    list(&devices, "devices").iter().filter_map(named).collect()
}
