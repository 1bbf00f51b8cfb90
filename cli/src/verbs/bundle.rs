//! `bundle --role ROLE --site SITE [--parent NODE]`

use super::{enrol_token::wish, text::cell};
use crate::{answer::Answer, client::Client, context::SYSTEM, failure::Failure, session::Session};
use serde_json::json;
use std::{
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What it enrols
    #[arg(long, value_parser = ["agent", "relay", "gateway"])]
    pub role: String,
    /// The site the nodes belong to (agent and relay)
    #[arg(long, value_name = "NAME", required_if_eq_any([("role", "agent"), ("role", "relay")]))]
    pub site: Option<String>,
    /// What the nodes dial: server, gateway, or a relay by name or id
    #[arg(long, value_name = "NODE", default_value = "server")]
    pub parent: String,
    /// How many nodes may use it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub uses: u32,
    /// How long it is good for
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = crate::args::duration)]
    pub life: Duration,
    /// Write it to a file, readable by its owner only, instead of stdout
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Asks for a bundle.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let mut body = wish(&args.role, args.site.as_deref(), args.uses, args.life);
    body["parent"] = json!(args.parent);
    let bundle = system_for_gateways(session, &args.role)?.post("/bundles", &[], &body)?;
    let text = cell(&bundle["bundle"]);
    let Some(file) = &args.out else { return Ok(Answer::done(bundle, text)) };
    save(file, &text)
        .map_err(|e| Failure::wrong("unwritable", format!("cannot write {}: {e}", file.display())).field("out"))?;
    let said = json!({ "file": file, "expires_at": bundle["expires_at"] });
    let text = format!("{} is good until {}\n", file.display(), cell(&bundle["expires_at"]));
    Ok(Answer::done(said, text))
}

/// Writes a bundle, whose token is a secret, for its owner's eyes only.
pub fn save(file: &Path, bundle: &str) -> std::io::Result<()> {
    // An older file keeps its mode when it is opened, so it goes first.
    match std::fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    opened.write_all(bundle.as_bytes())?;
    opened.sync_all()
}

/// Gateways belong to the installation, everything else to a tenant.
pub fn system_for_gateways(session: &Session, role: &str) -> Result<Client, Failure> {
    if role == "gateway" { session.client_or(SYSTEM) } else { session.client() }
}
