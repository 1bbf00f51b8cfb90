//! How a child's life ended, in the manner of a process's end. Only the vocabulary: what follows from an end is
//! decided in `intensity` and `family`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest text kept of a failure or panic, in bytes. A fault's text may quote what a peer sent, and it lives in
/// every snapshot, so it is cut to what fits on a few lines of a terminal.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Why a child ended. The parent decides by this alone; a bool would hide who is to blame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "exit", content = "text")]
pub enum Exit {
    /// It finished its work: a process that returned 0.
    Done,
    /// It was asked to stop and did: a process that answered SIGTERM.
    Stopped,
    /// What it served ended (its link closed, its peer went): a process that met SIGPIPE. Nobody's fault here.
    PeerGone,
    /// It met an error it could not handle: a process that returned a code other than 0.
    Failed(String),
    /// Its code panicked: a process that dumped core. Always a defect of ours.
    Panicked(String),
}

impl Exit {
    /// A failure with its cause, cut to [`TEXT_BYTES_MAX`].
    pub fn failed(cause: impl fmt::Display) -> Self {
        Exit::Failed(bounded(cause.to_string()))
    }

    /// A panic with its message, cut to [`TEXT_BYTES_MAX`].
    pub fn panicked(message: impl fmt::Display) -> Self {
        Exit::Panicked(bounded(message.to_string()))
    }

    /// Whether the child is to blame: only these ends are counted against it and lead to a restart.
    pub fn is_fault(&self) -> bool {
        matches!(self, Exit::Failed(_) | Exit::Panicked(_))
    }

    /// The same end with its text cut to [`TEXT_BYTES_MAX`].
    pub(super) fn bounded(self) -> Self {
        match self {
            Exit::Failed(text) => Exit::Failed(bounded(text)),
            Exit::Panicked(text) => Exit::Panicked(bounded(text)),
            other => other,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Done => f.write_str("done"),
            Exit::Stopped => f.write_str("stopped"),
            Exit::PeerGone => f.write_str("peer gone"),
            Exit::Failed(text) => write!(f, "failed: {text}"),
            Exit::Panicked(text) => write!(f, "panicked: {text}"),
        }
    }
}

fn bounded(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_and_panics_are_faults() {
        for (exit, fault) in [
            (Exit::Done, false),
            (Exit::Stopped, false),
            (Exit::PeerGone, false),
            (Exit::failed("disk full"), true),
            (Exit::panicked("index out of bounds"), true),
        ] {
            assert_eq!(exit.is_fault(), fault, "{exit}");
        }
    }

    #[test]
    fn a_text_is_kept_at_the_bound_and_cut_one_past_it() {
        let fits = "x".repeat(TEXT_BYTES_MAX);
        assert_eq!(Exit::failed(&fits), Exit::Failed(fits.clone()));
        assert_eq!(Exit::failed(format!("{fits}y")), Exit::Failed(fits));
        // 1023 bytes and a two-byte letter: the cut falls before the letter, never inside it.
        let split = format!("{}é", "x".repeat(TEXT_BYTES_MAX - 1));
        assert_eq!(Exit::Panicked(split).bounded(), Exit::Panicked("x".repeat(TEXT_BYTES_MAX - 1)));
    }
}
