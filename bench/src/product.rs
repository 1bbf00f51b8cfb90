//! Our own figures: `branchline load --json`, as any user runs it.

use crate::Outcome;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The command.
pub struct Product {
    /// The binary.
    pub exe: PathBuf,
}

impl Product {
    /// Runs one measurement in a folder of its own. What it cannot measure it says itself.
    pub fn load(&self, folder: &Path, args: &[&str]) -> Outcome<Value> {
        let run = tempfile::tempdir_in(folder)?;
        eprintln!("branchline load {}", args.join(" "));
        let output = Command::new(&self.exe)
            .args(["--json", "load"])
            .args(args)
            .current_dir(run.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        match output.status.code() {
            Some(0) => Ok(told),
            code => {
                let last = said.lines().last().unwrap_or_default();
                let error = told["error"]["message"].as_str().unwrap_or(last);
                Err(format!("exit {code:?}: {error}").into())
            }
        }
    }
}

/// A figure by its path in the answer, dots between the keys.
pub fn figure(told: &Value, path: &str) -> Outcome<f64> {
    let found = path.split('.').try_fold(told, |value, key| value.get(key));
    found.and_then(Value::as_f64).ok_or_else(|| format!("load tells no {path}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_found_by_its_path_or_missed_by_name() {
        let told = serde_json::json!({ "a": { "b": 1.5 } });
        assert_eq!(figure(&told, "a.b").unwrap(), 1.5);
        assert_eq!(figure(&told, "a.c").unwrap_err().to_string(), "load tells no a.c");
    }
}
