//! `jobs`

use super::text::{cell, counts, list};
use crate::{answer::Answer, failure::Failure, session::Session, table::table};

/// It has no options.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Asks for the jobs.
pub fn run(_: &Args, session: &Session) -> Result<Answer, Failure> {
    let mut jobs = session.client()?.get("/jobs", &[])?;
    let rows = list(&jobs, "jobs").iter().map(|j| {
        let complete = if j["complete"].as_bool() == Some(true) { "yes" } else { "no" };
        [cell(&j["id"]), cell(&j["verb"]), cell(&j["issued_at"]), complete.into(), counts(&j["counts"])]
    });
    let text = table(["ID", "VERB", "ISSUED", "COMPLETE", "COUNTS"], rows);
    Ok(Answer::done(jobs["jobs"].take(), text))
}
