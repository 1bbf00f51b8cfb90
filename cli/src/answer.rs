//! What a verb hands back: JSON for scripts, text for people, an exit code for both.

use crate::failure::{Failure, exit_code};
use serde_json::Value;
use std::io::Write;

/// A verb's outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Printed as one line with `--json`.
    pub json: Value,
    /// Printed as it is without.
    pub text: String,
    /// The process's exit code.
    pub exit: i32,
}

impl Answer {
    /// Done.
    pub fn done(json: Value, text: String) -> Answer {
        Answer { json, text, exit: exit_code::DONE }
    }
}

/// Prints a verb's outcome and returns its exit code. A reader that went away changes nothing.
pub fn print(outcome: Result<Answer, Failure>, json: bool) -> i32 {
    let mut out = std::io::stdout().lock();
    let exit = match outcome {
        Ok(answer) => {
            let _ = match json {
                true => writeln!(out, "{}", answer.json),
                false => out.write_all(with_line_end(answer.text).as_bytes()),
            };
            answer.exit
        }
        Err(failure) => {
            let _ = match json {
                true => writeln!(out, "{}", failure.json()),
                false => writeln!(std::io::stderr(), "branchline: {failure} [{}]", failure.code),
            };
            failure.exit
        }
    };
    let _ = out.flush();
    exit
}

fn with_line_end(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}
