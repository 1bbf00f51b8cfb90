//! `recovery [show|end]`

use super::text::cell;
use crate::{answer::Answer, context::SYSTEM, failure::Failure, session::Session};
use serde_json::{Value, json};

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do [default: show]
    #[command(subcommand)]
    pub what: Option<What>,
}

/// Look or act.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub enum What {
    /// Show the server's term, and how far its recovery is
    Show,
    /// End the recovery before every child was heard
    End,
}

/// Shows the recovery, ended first if asked to.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let recovery = match args.what {
        None | Some(What::Show) => session.client()?.get("/recovery", &[])?,
        Some(What::End) => session.client_or(SYSTEM)?.post("/recovery/end", &[], &json!({}))?,
    };
    let text = recovery_text(&recovery);
    Ok(Answer::done(recovery, text))
}

fn recovery_text(recovery: &Value) -> String {
    let term = cell(&recovery["term"]);
    match &recovery["recovering"] {
        Value::Null => format!("term {term}, not recovering\n"),
        progress => format!(
            "term {term}, recovering: {} of {} children heard, {} s at most\n",
            cell(&progress["heard"]),
            cell(&progress["awaited"]),
            cell(&progress["ends_in_s"])
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_is_told_in_one_line() {
        assert_eq!(recovery_text(&json!({ "term": 1, "recovering": null })), "term 1, not recovering\n");
        let text = recovery_text(&json!({ "term": 2, "recovering": { "heard": 1, "awaited": 3, "ends_in_s": 599 } }));
        assert_eq!(text, "term 2, recovering: 1 of 3 children heard, 599 s at most\n");
    }
}
