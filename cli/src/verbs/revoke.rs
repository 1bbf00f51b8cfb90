//! `revoke ID`

use super::text::cell;
use crate::{answer::Answer, client::segment, failure::Failure, session::Session};
use serde_json::json;

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node's id
    #[arg(value_name = "ID")]
    pub node: String,
}

/// Revokes the node.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let revoked = session.client()?.post(&format!("/nodes/{}/revoke", segment(&args.node)), &[], &json!({}))?;
    let text = format!("{} is revoked from epoch {}\n", cell(&revoked["revoked"]), cell(&revoked["epoch"]));
    Ok(Answer::done(revoked, text))
}
