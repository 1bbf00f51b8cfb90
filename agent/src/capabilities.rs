//! What a device can do (rule P, TOP-14): declared words, and the answer for everything that is not declared.

use branchline_protocol::job::{Verb, verb};

/// Runs scripts and command lines (JOB-9).
pub const RUN_SCRIPT: &str = "run_script";
/// Collects its inventory when ordered to (JOB-2).
pub const REFRESH_INVENTORY: &str = "refresh_inventory";
/// Starts the machine again when ordered to, and can tell that it was (JOB-2).
pub const RESTART: &str = "restart";
/// Its inventory can be asked for by hand; absent e.g. in tablet mode (INV-7).
pub const MANUAL_REFRESH: &str = "manual_refresh";
/// The interpreter that a script names; never declared, only answered when it is missing (JOB-9).
pub const INTERPRETER: &str = "interpreter";

/// The answer of a platform without a real backend: never `succeeded` (rule P).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unsupported({capability}, {platform})")]
pub struct Unsupported {
    /// What was asked for.
    pub capability: String,
    /// Who cannot: [`crate::platform::Platform::name`].
    pub platform: &'static str,
}

impl Unsupported {
    /// The reason field of a job's result: `capability, platform`.
    pub fn reason(&self) -> String {
        format!("{}, {}", self.capability, self.platform)
    }
}

/// Whether a device that declared `declared` can carry out `verb_name`; otherwise its answer. A verb this build does
/// not know stands for a capability of its own name.
pub fn permits(declared: &[String], platform: &'static str, verb_name: &str) -> Result<(), Unsupported> {
    let missing = |capability: &str| Unsupported { capability: capability.to_owned(), platform };
    let Some(Verb { capability, .. }) = verb(verb_name) else {
        return Err(missing(verb_name));
    };
    let has = |word: &str| declared.iter().any(|d| d == word);
    if !has(capability) {
        return Err(missing(capability));
    }
    // An order to refresh is by hand, whoever gave it: without that capability only the schedule sends (INV-7).
    if *capability == REFRESH_INVENTORY && !has(MANUAL_REFRESH) {
        return Err(missing(MANUAL_REFRESH));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_protocol::job::VERBS;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| w.to_string()).collect()
    }

    #[test]
    fn top_14_every_undeclared_capability_is_unsupported() {
        for known in VERBS {
            let answer = permits(&[], "linux", known.name).unwrap_err();
            assert_eq!(answer.reason(), format!("{}, linux", known.capability));
        }
        assert_eq!(
            permits(&words(&[RUN_SCRIPT]), "linux", "lock").unwrap_err().to_string(),
            "unsupported(lock, linux)"
        );
        assert!(permits(&words(&[RUN_SCRIPT]), "linux", "run_script").is_ok());
    }

    #[test]
    fn inv_7_without_manual_refresh_a_refresh_order_is_unsupported() {
        let answer = permits(&words(&[REFRESH_INVENTORY]), "linux", "refresh_inventory").unwrap_err();
        assert_eq!(answer.capability, MANUAL_REFRESH);
        assert!(permits(&words(&[REFRESH_INVENTORY, MANUAL_REFRESH]), "linux", "refresh_inventory").is_ok());
    }
}
