//! `cancel JOB`

use super::{
    job::{Args, device_names},
    text::job_text,
};
use crate::{answer::Answer, client::segment, failure::Failure, session::Session};
use serde_json::json;

/// Cancels the job and shows it as it stands: what is below the server already ends once whoever may have it has answered.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let client = session.client()?;
    let job = client.post(&format!("/jobs/{}/cancel", segment(&args.job)), &[], &json!({}))?;
    let names = device_names(&client);
    let text = job_text(&job, &|id| names.get(id).cloned());
    Ok(Answer::done(job, text))
}
