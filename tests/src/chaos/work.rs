//! The jobs of a chaos run: each leaves one line in a file of the device, somewhere in its 0 to 2 seconds.

use base64::{Engine, prelude::BASE64_STANDARD};
use branchline_node::random::Random;
use branchline_protocol::job::{RunScript, Runnable};
use serde_json::{Value, json};
use std::path::Path;

/// What a job is meant to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// It succeeds.
    Plain,
    /// Its exit code is 3.
    Failing,
    /// It runs beyond its time of a second.
    TooLong,
    /// Its interpreter is nowhere: nothing is run.
    NoInterpreter,
    /// It succeeds, and one of its targets does not exist.
    Ghost,
}

impl Sort {
    const ALL: [(Sort, &str); 5] = [
        (Sort::Plain, "plain"),
        (Sort::Failing, "failing"),
        (Sort::TooLong, "too-long"),
        (Sort::NoInterpreter, "no-interpreter"),
        (Sort::Ghost, "ghost"),
    ];

    fn word(self) -> &'static str {
        Sort::ALL.iter().find(|(sort, _)| *sort == self).map_or("", |(_, word)| word)
    }
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Names it in scripts and files; unique in a run.
    pub key: String,
    /// What it is meant to come to.
    pub sort: Sort,
    /// Milliseconds before its line is written.
    pub before_ms: u64,
    /// Milliseconds after it.
    pub after_ms: u64,
    /// The selector of its devices.
    pub on: String,
    /// Shell lines that follow its own line, e.g. one that waits for a file.
    pub then: String,
}

impl Work {
    /// A plain job on these devices.
    pub fn plain(key: &str, on: &str, before_ms: u64, after_ms: u64) -> Work {
        Work { key: key.into(), sort: Sort::Plain, before_ms, after_ms, on: on.into(), then: String::new() }
    }

    /// The `n`th of a plan, on all devices.
    pub fn random(n: usize, random: &dyn Random) -> Work {
        let sort = match random.up_to(99) {
            0..=7 => Sort::Failing,
            8..=11 => Sort::TooLong,
            12..=15 => Sort::NoInterpreter,
            16..=18 => Sort::Ghost,
            _ => Sort::Plain,
        };
        let whole = random.up_to(2_000);
        let before_ms = random.up_to(whole);
        let on = if sort == Sort::Ghost { "all or device:ghost" } else { "all" };
        Work { sort, ..Work::plain(&format!("job-{n}"), on, before_ms, whole - before_ms) }
    }

    fn script(&self, effects: &Path) -> String {
        let seconds = |ms: u64| format!("{}.{:03}", ms / 1_000, ms % 1_000);
        let (key, word, folder) = (&self.key, self.sort.word(), effects.display());
        let (after, code) = match self.sort {
            Sort::TooLong => (30_000, 0),
            Sort::Failing => (self.after_ms, 3),
            _ => (self.after_ms, 0),
        };
        let (before, after) = (seconds(self.before_ms), seconds(after));
        // One write of one line: it is there whole or not at all.
        let line = format!("sleep {before}\necho {key} >> {folder}/$BRANCHLINE_DEVICE");
        format!("# {key} {word}\n{line}\n{}\nsleep {after}\necho {key}\nexit {code}\n", self.then)
    }

    /// The body of its order; its lines go to files in `effects`.
    pub fn body(&self, effects: &Path) -> Value {
        let mut args = json!({ "script_base64": BASE64_STANDARD.encode(self.script(effects)) });
        if self.sort == Sort::NoInterpreter {
            args["interpreter"] = json!("/no/such/interpreter");
        }
        let time_out_s = if self.sort == Sort::TooLong { self.before_ms / 1_000 + 1 } else { 120 };
        json!({ "on": self.on, "verb": "run_script", "args": args, "time_out_s": time_out_s })
    }

    /// Key and sort of a stored job's arguments; none of another's.
    pub fn read(args: &[u8]) -> Option<(String, Sort)> {
        let RunScript { run: Runnable::Script { content, .. }, .. } = rmp_serde::from_slice(args).ok()? else {
            return None;
        };
        let text = String::from_utf8(content.to_vec()).ok()?;
        let (key, word) = text.lines().next()?.strip_prefix("# ")?.split_once(' ')?;
        let sort = Sort::ALL.iter().find(|(_, known)| *known == word)?.0;
        Some((key.to_string(), sort))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_job_names_itself() {
        for (sort, _) in Sort::ALL {
            let work = Work { sort, ..Work::plain("job-7", "all", 10, 20) };
            let content = work.script(Path::new("/effects")).into_bytes().into();
            let run = RunScript { run: Runnable::Script { interpreter: None, content }, time_out_ms: 1, output_cap: 1 };
            assert_eq!(Work::read(&rmp_serde::to_vec_named(&run).unwrap()), Some(("job-7".into(), sort)));
        }
        let other = RunScript { run: Runnable::Argv(vec!["true".into()]), time_out_ms: 1, output_cap: 1 };
        assert_eq!(Work::read(&rmp_serde::to_vec_named(&other).unwrap()), None);
    }
}
