//! `restore FILE --state DIR`

use super::backup::{failed, shown};
use crate::{answer::Answer, failure::Failure};
use branchline_node::time::SystemClock;
use branchline_server::backup::restore;
use serde_json::json;
use std::path::PathBuf;

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The backup
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// State folder of the server to be: a new or an empty one
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
}

/// Puts the backup in place.
pub fn run(args: &Args) -> Result<Answer, Failure> {
    let manifest = restore(&args.file, &args.state, SystemClock::shared().wall()).map_err(failed)?;
    let mut said = shown(&manifest);
    said["state"] = json!(args.state);
    let text = format!(
        "{}: server {} as it was at {}. Started, it listens to its children before it issues anything; see \
         `branchline recovery`.\n",
        args.state.display(),
        manifest.name,
        said["made_at"].as_str().unwrap_or_default()
    );
    Ok(Answer::done(said, text))
}
