//! The one shape of a "no": on a link and in the HTTP API alike (REQUIREMENTS 0).

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why something was not done, for the caller. A refused thing stored nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Refusal {
    /// The HTTP status that goes with it: 400, 401, 403, 404, 409, 413, 422, 429, 503.
    pub status: u16,
    /// Stable word for programs, e.g. `wrong_role`.
    pub code: String,
    /// For people: what was wrong and what to do.
    pub message: String,
    /// The input field at fault, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Milliseconds to wait before another try, with 429 and 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// Code of the refusal of a link that is not newer than one its parent knows. To the node whose newest link it is this
/// proves that the disk was put back to an older state, for no number of its own is newer than what its disk has.
pub const STALE_ATTACHMENT: &str = "stale_attachment";

impl Refusal {
    /// A refusal without a field.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Refusal { status, code: code.into(), message: message.into(), field: None, retry_after_ms: None }
    }

    /// Whether it says that a newer attachment is known: see [`STALE_ATTACHMENT`].
    pub fn is_stale_attachment(&self) -> bool {
        self.code == STALE_ATTACHMENT
    }

    /// The same, naming the input field at fault.
    pub fn field(mut self, field: &str) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The same, with a time to wait.
    pub fn retry_after(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code, self.status, self.message)?;
        match &self.field {
            Some(field) => write!(f, " [{field}]"),
            None => Ok(()),
        }
    }
}
