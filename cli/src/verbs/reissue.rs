//! `reissue JOB`

use super::{
    job::Args,
    text::{cell, list},
};
use crate::{answer::Answer, client::segment, failure::Failure, session::Session};
use serde_json::json;

/// Issues the job anew for the devices on which it did not succeed.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let job = session.client()?.post(&format!("/jobs/{}/reissue", segment(&args.job)), &[], &json!({}))?;
    let devices = list(&job, "results").len();
    let text = format!("job {} ordered for {devices} devices: branchline job {0}\n", cell(&job["id"]));
    Ok(Answer::done(job, text))
}
