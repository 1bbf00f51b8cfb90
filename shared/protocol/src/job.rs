//! States of a job on one device, and the table of verbs (REQUIREMENTS 0, JOB-2).

use serde::{Deserialize, Serialize};
use std::fmt;

/// An end the agent asserts (DESIGN 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It ran and its exit code was 0.
    Succeeded,
    /// It ran and did not succeed, or could not be run.
    Failed,
    /// The platform cannot do it; the reason is `capability, platform` (rule P).
    Unsupported,
    /// The agent would not: bad signature, wrong epoch, disabled.
    Refused,
    /// It may or may not have had its effect: cut in mid-run.
    OutcomeUnknown,
}

/// Where a job stands on one device. The words of the API, the CLI and the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Ordered; the device does not have it.
    Queued,
    /// The device journalled it.
    Delivered,
    /// It has begun.
    Running,
    /// Begun and waiting, e.g. for a path.
    Paused,
    /// End.
    Succeeded,
    /// End.
    Failed,
    /// End.
    Unsupported,
    /// End.
    Refused,
    /// End concluded by the server: not fetched in time.
    Expired,
    /// End.
    Cancelled,
    /// End.
    OutcomeUnknown,
    /// End at issue: the target is no device of the tenant (JOB-1).
    NoSuchDevice,
}

impl State {
    /// Every state in the order in which counts are shown.
    pub const ALL: [State; 12] = [
        State::Queued,
        State::Delivered,
        State::Running,
        State::Paused,
        State::Succeeded,
        State::Failed,
        State::Unsupported,
        State::Refused,
        State::Expired,
        State::Cancelled,
        State::OutcomeUnknown,
        State::NoSuchDevice,
    ];

    /// Whether nothing but a late agent result changes it any more.
    pub fn is_end(self) -> bool {
        !matches!(self, State::Queued | State::Delivered | State::Running | State::Paused)
    }

    /// The word in JSON, store and table.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Delivered => "delivered",
            State::Running => "running",
            State::Paused => "paused",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Unsupported => "unsupported",
            State::Refused => "refused",
            State::Expired => "expired",
            State::Cancelled => "cancelled",
            State::OutcomeUnknown => "outcome_unknown",
            State::NoSuchDevice => "no_such_device",
        }
    }

    /// The inverse of [`State::as_str`].
    pub fn from_word(word: &str) -> Option<State> {
        State::ALL.into_iter().find(|s| s.as_str() == word)
    }
}

impl From<End> for State {
    fn from(end: End) -> State {
        match end {
            End::Succeeded => State::Succeeded,
            End::Failed => State::Failed,
            End::Unsupported => State::Unsupported,
            End::Refused => State::Refused,
            End::OutcomeUnknown => State::OutcomeUnknown,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How pressing an order is: sets its lane and the poll that fetches it (JOB-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Fetched by the hourly poll.
    #[default]
    Normal,
    /// Fetched within 10 minutes.
    Urgent,
    /// Fetched within 15 minutes.
    Erase,
}

impl Class {
    /// The class of what a device can do by this capability, for the interval at which it polls (ADM-9, ADM-10, JOB-2). A
    /// capability of no verb is of class normal.
    pub fn of_capability(word: &str) -> Class {
        match word {
            "lock" | "unlock" | "wipe" | "encrypt" | "decrypt" => Class::Urgent,
            "delete_path" => Class::Erase,
            _ => VERBS.iter().find(|verb| verb.capability == word).map_or(Class::Normal, |verb| verb.class),
        }
    }
}

/// One row of the verb table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verb {
    /// Its name on the wire and in the API.
    pub name: &'static str,
    /// Its class unless the order says otherwise.
    pub class: Class,
    /// The capability a device must declare.
    pub capability: &'static str,
    /// The largest arguments in bytes; one more is 413.
    pub args_max: usize,
    /// Whether it carries its whole list of targets (at most 25) in the payload.
    pub destructive: bool,
}

/// Scripts are at most 1 MB (JOB-9), the rest of the arguments at most 64 KiB.
pub const SCRIPT_BYTES_MAX: usize = 1_048_576;

/// The verbs this build knows.
pub const VERBS: &[Verb] = &[
    Verb {
        name: "run_script",
        class: Class::Normal,
        capability: "run_script",
        args_max: SCRIPT_BYTES_MAX + 65_536,
        destructive: false,
    },
    Verb {
        name: "refresh_inventory",
        class: Class::Normal,
        capability: "refresh_inventory",
        args_max: 1_024,
        destructive: false,
    },
    Verb { name: "restart", class: Class::Normal, capability: "restart", args_max: 0, destructive: false },
];

/// The verb of a steering order: it ends another order, has its own number, and is no job of an administrator, so it is
/// not in [`VERBS`] (JOB-14).
pub const CANCEL: &str = "cancel";

/// Arguments of [`CANCEL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The order that is not to be begun any more, or to be ended.
    pub target: crate::id::OrderNumber,
}

/// What became of a cancelled order on a device: the reason in the cancel's own result.
pub mod cancel {
    /// It was not begun, and never will be.
    pub const CANCELLED: &str = "cancelled";
    /// It runs: it is being killed, and its own result tells.
    pub const RUNNING: &str = "running";
    /// It was at its end.
    pub const ENDED: &str = "ended";
}

/// The table's row of a verb.
pub fn verb(name: &str) -> Option<&'static Verb> {
    VERBS.iter().find(|v| v.name == name)
}

/// Arguments of `run_script` (JOB-9).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunScript {
    /// What to run.
    pub run: Runnable,
    /// Milliseconds after which the whole process group is killed.
    pub time_out_ms: u64,
    /// Bytes kept of each of stdout and stderr.
    pub output_cap: u64,
}

/// A command line without a shell, or a script with its interpreter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runnable {
    /// Program and arguments, run as they are.
    Argv(Vec<String>),
    /// A script's bytes, given to the interpreter as a file.
    Script {
        /// Absolute path or name; `None` means `/bin/sh`.
        interpreter: Option<String>,
        /// At most [`SCRIPT_BYTES_MAX`].
        content: bytes::Bytes,
    },
}

/// Arguments of `refresh_inventory` (INV-5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshInventory {
    /// Whether the whole inventory is sent, not the difference.
    pub full: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_2_the_class_of_each_capability() {
        for word in ["lock", "unlock", "wipe", "encrypt", "decrypt"] {
            assert_eq!(Class::of_capability(word), Class::Urgent, "{word}");
        }
        assert_eq!(Class::of_capability("delete_path"), Class::Erase);
        for word in ["run_script", "refresh_inventory", "restart", "manual_refresh", "", "Lock"] {
            assert_eq!(Class::of_capability(word), Class::Normal, "{word}");
        }
        for verb in VERBS {
            assert_eq!(Class::of_capability(verb.capability), verb.class, "{}", verb.name);
        }
    }

    #[test]
    fn every_state_has_one_word() {
        for state in State::ALL {
            assert_eq!(State::from_word(state.as_str()), Some(state));
        }
        assert_eq!(State::ALL.iter().filter(|s| !s.is_end()).count(), 4);
    }
}
