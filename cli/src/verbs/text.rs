//! Values of the API as people read them.

use crate::table::table;
use serde_json::Value;

/// A value in a cell: texts without quotes, nothing for null.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(s) if s.is_empty() => "-".into(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// Milliseconds in the unit in which they are easiest to read: `250 ms`, `5 s`, `16.5 min`, `1.1 h`.
pub fn length(ms: u64) -> String {
    let (part, unit) = match ms {
        0..1_000 => return format!("{ms} ms"),
        1_000..120_000 => (1_000, "s"),
        120_000..7_200_000 => (60_000, "min"),
        _ => (3_600_000, "h"),
    };
    let tenths = ms.saturating_mul(10).div_ceil(part);
    if tenths % 10 == 0 { format!("{} {unit}", tenths / 10) } else { format!("{}.{} {unit}", tenths / 10, tenths % 10) }
}

/// The longest that a job takes, or nothing where nothing is promised.
pub fn within(ms: &Value) -> String {
    ms.as_u64().map_or_else(|| "-".into(), |ms| format!("within {}", length(ms)))
}

/// Since when a device holds a slot, or waits for one.
pub fn slot(slot: &Value) -> String {
    match (slot["since"].as_str(), slot["waiter"].as_u64()) {
        (None, _) => "-".into(),
        (Some(since), None) => format!("held since {since}"),
        (Some(since), Some(number)) => format!("number {number} in line since {since}"),
    }
}

/// A list under a key; nothing if there is none.
pub fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// `state (reason)`.
pub fn state(value: &Value, state: &str, reason: &str) -> String {
    match value[reason].as_str().filter(|r| !r.is_empty()) {
        Some(reason) => format!("{} ({reason})", cell(&value[state])),
        None => cell(&value[state]),
    }
}

/// `3 succeeded, 1 failed`, in the API's order, zeros left out.
pub fn counts(counts: &Value) -> String {
    let Some(counts) = counts.as_object() else { return "-".into() };
    let told: Vec<String> =
        counts.iter().filter(|(_, n)| n.as_u64().unwrap_or(0) > 0).map(|(state, n)| format!("{n} {state}")).collect();
    if told.is_empty() { "no devices".into() } else { told.join(", ") }
}

/// A job object with its results: a head, a table of short outputs, longer ones below it.
pub fn job_text(job: &Value, name_of: &dyn Fn(&str) -> Option<String>) -> String {
    let name = |result: &Value| {
        let device = cell(&result["device"]);
        name_of(&device).unwrap_or(device)
    };
    let complete = if job["complete"].as_bool() == Some(true) { "complete" } else { "not complete" };
    let mut text = format!("job {}  {}  {}\n", cell(&job["id"]), cell(&job["verb"]), cell(&job["command"]));
    text += &format!("issued {}  {complete}: {}\n\n", cell(&job["issued_at"]), counts(&job["counts"]));
    let rows = list(job, "results").iter().map(|r| {
        let output = output(r);
        let first = if output.trim_end().contains('\n') { "(below)".into() } else { output.trim_end().to_string() };
        [name(r), state(r, "state", "reason"), cell(&r["exit_code"]), cell(&r["ended_at"]), first]
    });
    text += &table(["DEVICE", "STATE", "EXIT", "ENDED", "OUTPUT"], rows);
    for result in list(job, "results") {
        let output = output(result);
        if output.trim_end().contains('\n') {
            text += &format!("\n--- {}\n{}\n", name(result), shown(output.trim_end()));
        }
    }
    text
}

/// stdout, then stderr, then whether something was cut off.
fn output(result: &Value) -> String {
    let stream = |key: &str| match (&result[key], &result[format!("{key}_base64")]) {
        (Value::String(s), _) => s.clone(),
        (_, Value::String(b)) => format!("(base64) {b}"),
        _ => String::new(),
    };
    let cut = if result["truncated"].as_bool() == Some(true) { "\n(truncated)" } else { "" };
    format!("{}{}{cut}", stream("stdout"), stream("stderr"))
}

/// Lines and tabs stay, other control characters are shown, not obeyed.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_in_the_unit_that_is_easiest_to_read_and_never_shorter_than_they_are() {
        let shown = [0, 999, 1_000, 119_999, 120_000, 660_000, 990_000, 3_960_000, 7_200_000, 665_280_000].map(length);
        let expected = ["0 ms", "999 ms", "1 s", "120 s", "2 min", "11 min", "16.5 min", "66 min", "2 h", "184.8 h"];
        assert_eq!(shown, expected);
    }
    use serde_json::json;

    #[test]
    fn a_job_shows_each_device_and_longer_outputs_below() {
        let job = json!({
            "id": "j", "verb": "run_script", "command": "uname", "issued_at": "2026-11-22T00:00:00.000Z", "complete": true,
            "counts": { "queued": 0, "succeeded": 1, "failed": 1 },
            "results": [
                { "device": "a", "state": "succeeded", "reason": null, "exit_code": 0, "stdout": "Linux\n", "stderr": "",
                  "truncated": false, "started_at": null, "ended_at": null },
                { "device": "b", "state": "failed", "reason": "exit_code", "exit_code": 3, "stdout_base64": "/w==",
                  "stderr": "one\ntwo\u{1b}\n", "truncated": true, "started_at": null, "ended_at": null },
            ],
        });
        let text = job_text(&job, &|id| (id == "a").then(|| "pc-a".to_string()));
        assert!(text.contains("complete: 1 succeeded, 1 failed"), "{text}");
        assert!(text.contains("pc-a    succeeded           0     -      Linux\n"), "{text}");
        assert!(text.contains("b       failed (exit_code)  3     -      (below)\n"), "{text}");
        assert!(text.ends_with("--- b\n(base64) /w==one\ntwo\u{fffd}\n\n(truncated)\n"), "{text}");
    }
}
