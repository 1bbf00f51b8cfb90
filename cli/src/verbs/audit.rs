//! `audit [--limit N]` and `dead-letters [--limit N]`

use super::text::{cell, list};
use crate::{answer::Answer, failure::Failure, session::Session, table::table};
use serde_json::Value;

/// Their options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many, newest first, 1 to 1000 [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub limit: Option<u32>,
}

fn ask(path: &str, args: &Args, session: &Session) -> Result<Value, Failure> {
    let limit = args.limit.unwrap_or(100).to_string();
    session.client()?.get(path, &[("limit", &limit)])
}

/// Shows what was done, and by whom.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let mut shown = ask("/audit", args, session)?;
    let rows = list(&shown, "audit").iter().map(|a| [&a["at"], &a["who"], &a["what"], &a["detail"]].map(cell));
    let text = table(["AT", "WHO", "WHAT", "DETAIL"], rows);
    Ok(Answer::done(shown["audit"].take(), text))
}

/// Shows records that were refused.
pub fn dead_letters(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let mut shown = ask("/dead-letters", args, session)?;
    let named = |l: &Value, name: &str, id: &str| cell(if l[name].is_null() { &l[id] } else { &l[name] });
    let rows = list(&shown, "dead_letters").iter().map(|l| {
        let (of, via) = (named(l, "name", "node"), named(l, "via_name", "via"));
        [cell(&l["at"]), of, via, cell(&l["lane"]), cell(&l["number"]), cell(&l["code"]), cell(&l["bytes"])]
    });
    let text = table(["AT", "OF", "VIA", "LANE", "NUMBER", "CODE", "BYTES"], rows);
    Ok(Answer::done(shown["dead_letters"].take(), text))
}
