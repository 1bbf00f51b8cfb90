//! `backup --state DIR --out FILE`

use super::text::cell;
use crate::{answer::Answer, context::Context, failure::Failure, session::Session};
use branchline_node::{backup::Manifest, time::SystemClock};
use branchline_server::backup::{ServerBackupFault, back_up};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// State folder of the server, which may be running [default: that of the newest `up` in this folder]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The new file; it holds every key of the installation, and only its owner may read it
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Writes the backup.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let state = match &args.state {
        Some(state) => state.clone(),
        None => state_of(&session.context()?)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::ended("runtime", format!("cannot begin: {e}")))?;
    let now = SystemClock::shared().wall();
    let manifest = runtime.block_on(back_up(&state, &args.out, now)).map_err(failed)?;
    let mut said = shown(&manifest);
    said["file"] = json!(args.out);
    let text = format!(
        "{}: server {} in term {}, tenants {}, made at {}\n",
        args.out.display(),
        manifest.name,
        manifest.term,
        manifest.tenants.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        cell(&said["made_at"])
    );
    Ok(Answer::done(said, text))
}

/// The server's folder is where its CA file lies.
fn state_of(context: &Context) -> Result<PathBuf, Failure> {
    let folder = context.ca_file.parent().filter(|folder| folder.is_dir()).map(Path::to_path_buf);
    folder.ok_or_else(|| Failure::wrong("state_required", "say which folder: --state DIR").field("state"))
}

/// What scripts read of a backup.
pub fn shown(manifest: &Manifest) -> Value {
    json!({
        "server_id": manifest.node, "name": manifest.name, "build": manifest.build, "term": manifest.term,
        "made_at": time(manifest.made_at.0), "tenants": manifest.tenants,
        "bytes": manifest.parts.iter().map(|part| part.bytes).sum::<u64>(), "files": manifest.parts.len(),
    })
}

/// RFC 3339 with milliseconds.
fn time(ms: i64) -> String {
    branchline_server::api::views::time(branchline_protocol::time::Millis(ms))
}

/// The failure that a fault is: what was asked was wrong, or it ended badly.
pub fn failed(fault: ServerBackupFault) -> Failure {
    let message = fault.to_string();
    match fault.code() {
        "unreadable" | "store" => Failure::ended(fault.code(), message),
        code => Failure::wrong(code, message),
    }
}
