//! `enrol-token --role ROLE --site SITE`

use super::{bundle::system_for_gateways, text::cell};
use crate::{answer::Answer, failure::Failure, session::Session};
use serde_json::{Value, json};
use std::time::Duration;

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What it may enrol
    #[arg(long, value_parser = ["agent", "relay", "gateway"])]
    pub role: String,
    /// The site the nodes belong to (agent and relay)
    #[arg(long, value_name = "NAME", required_if_eq_any([("role", "agent"), ("role", "relay")]))]
    pub site: Option<String>,
    /// How many nodes may use it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub uses: u32,
    /// How long it is good for
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = crate::args::duration)]
    pub life: Duration,
}

/// Asks for a token.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let body = wish(&args.role, args.site.as_deref(), args.uses, args.life);
    let token = system_for_gateways(session, &args.role)?.post("/enrol-tokens", &[], &body)?;
    let text = format!("{}\n", cell(&token["token"]));
    Ok(Answer::done(token, text))
}

/// The part of the body that tokens and bundles share.
pub fn wish(role: &str, site: Option<&str>, uses: u32, life: Duration) -> Value {
    let mut body = json!({ "role": role, "uses": uses, "life_s": life.as_millis().div_ceil(1_000) as u64 });
    if let Some(site) = site {
        body["site"] = json!(site);
    }
    body
}
