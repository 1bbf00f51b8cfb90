//! Why a command did not do what was asked, with its exit code (DESIGN 9).

use branchline_node::config::Mistakes;
use serde_json::{Value, json};

/// Exit codes of the command.
pub mod exit_code {
    /// Done.
    pub const DONE: i32 = 0;
    /// The work ended badly.
    pub const ENDED_BADLY: i32 = 1;
    /// The request or the configuration was wrong.
    pub const WRONG_REQUEST: i32 = 2;
    /// The node could not be reached.
    pub const UNREACHABLE: i32 = 3;
}

/// A failed command: what the operator reads, and what a script branches on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The process's exit code.
    pub exit: i32,
    /// Stable word for programs.
    pub code: String,
    /// For people: what was attempted, what went wrong, what to do.
    pub message: String,
    /// The input at fault, if one is.
    pub field: Option<String>,
}

impl Failure {
    /// The request or configuration was wrong: exit 2.
    pub fn wrong(code: &str, message: impl Into<String>) -> Self {
        Failure { exit: exit_code::WRONG_REQUEST, code: code.into(), message: message.into(), field: None }
    }

    /// The work ended badly: exit 1.
    pub fn ended(code: &str, message: impl Into<String>) -> Self {
        Failure { exit: exit_code::ENDED_BADLY, ..Failure::wrong(code, message) }
    }

    /// The node could not be reached: exit 3.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Failure { exit: exit_code::UNREACHABLE, ..Failure::wrong("unreachable", message) }
    }

    /// The same, naming the input at fault.
    pub fn field(mut self, field: &str) -> Self {
        self.field = Some(field.into());
        self
    }

    /// `{code, message, field?}`.
    pub fn json(&self) -> Value {
        let mut value = json!({ "code": self.code, "message": self.message });
        if let Some(field) = &self.field {
            value["field"] = json!(field);
        }
        value
    }
}

impl From<Mistakes> for Failure {
    /// Every mistake stands in the message, one per line; code and field are the first one's.
    fn from(mistakes: Mistakes) -> Failure {
        let first = mistakes.first();
        let field = first.map(|m| m.path.clone()).filter(|p| !p.is_empty());
        let code = first.map_or("bad_configuration", |m| m.code);
        Failure { field, ..Failure::wrong(code, mistakes.to_string()) }
    }
}
