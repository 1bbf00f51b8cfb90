//! Our own figures: `branchline load --json`, as any user runs it.

use crate::Outcome;
use serde_json::Value;
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// What has not ended after this never will: a tree of 90,000 devices enrols in an hour or two.
const ENDS_WITHIN: Duration = Duration::from_secs(3 * 3_600);

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
        let (out, err) = (run.path().join("stdout"), run.path().join("stderr"));
        let mut command = Command::new(&self.exe);
        command.args(["--json", "load"]).args(args).current_dir(run.path());
        command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);
        let status = ended(command, ENDS_WITHIN)?;
        let said = std::fs::read(err)?;
        let said = String::from_utf8_lossy(&said);
        let told: Value = serde_json::from_slice(&std::fs::read(out)?).unwrap_or_default();
        match status.code() {
            Some(0) => Ok(told),
            code => Err(format!("exit {code:?}: {}", why(&told, &said)).into()),
        }
    }
}

/// Why a measurement counts for nothing: its own error, what did not come, or its last word.
fn why(told: &Value, said: &str) -> String {
    if let Some(error) = told["message"].as_str().or_else(|| told["error"]["message"].as_str()) {
        return error.to_owned();
    }
    let short = ["missing", "refused"].into_iter().filter_map(|what| Some((what, told[what].as_u64()?)));
    let short: Vec<String> = short.filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect();
    if short.is_empty() { said.lines().last().unwrap_or_default().to_owned() } else { short.join(", ") }
}

/// Runs a command to its end, or ends it.
fn ended(mut command: Command, within: Duration) -> Outcome<ExitStatus> {
    let mut child = command.spawn()?;
    let until = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Err(format!("it had not ended after {} s", within.as_secs()).into());
        }
        sleep(Duration::from_millis(100));
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
    fn a_command_that_does_not_end_is_ended() {
        let command = |seconds: &str| {
            let mut command = Command::new("sleep");
            command.arg(seconds);
            command
        };
        assert!(ended(command("0"), Duration::from_secs(60)).unwrap().success());
        let told = ended(command("600"), Duration::from_millis(300)).unwrap_err().to_string();
        assert!(told.contains("had not ended"), "{told}");
    }

    #[test]
    fn what_fails_says_why() {
        let told = |text: &str| serde_json::from_str(text).unwrap();
        assert_eq!(why(&told(r#"{"code":"x","message":"no room"}"#), "a\nlast"), "no room");
        assert_eq!(why(&told(r#"{"missing":2,"refused":0}"#), "a\nlast"), "2 missing");
        assert_eq!(why(&Value::Null, "a\nlast"), "last");
    }

    #[test]
    fn a_figure_is_found_by_its_path_or_missed_by_name() {
        let told = serde_json::json!({ "a": { "b": 1.5 } });
        assert_eq!(figure(&told, "a.b").unwrap(), 1.5);
        assert_eq!(figure(&told, "a.c").unwrap_err().to_string(), "load tells no a.c");
    }
}
