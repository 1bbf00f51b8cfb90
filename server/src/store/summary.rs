//! What a list shows of an inventory, taken from the sections the agent's collector writes: `os` (`pretty_name`),
//! `hardware` (`cpu_model`, `memory_bytes`) and `software` (one item a package).

use branchline_protocol::inventory::{Items, NOT_AVAILABLE};
use serde_json::Value;
use std::collections::BTreeMap;

/// The summary of some sections. What they do not tell is `not_available`, never invented (INV-12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Pretty name of the OS.
    pub os: String,
    /// CPU model.
    pub cpu: String,
    /// Bytes of memory, if known.
    pub memory_bytes: Option<u64>,
    /// Number of packages.
    pub packages: u64,
}

/// Characters kept of a name: lists stay small whatever a device sends.
const NAME_CHARS_MAX: usize = 200;

/// Takes the summary out of sections; whatever a device may have put there is no error.
pub fn summary(sections: &BTreeMap<String, Items>) -> Summary {
    let item = |section: &str, key: &str| sections.get(section).and_then(|items| items.get(key));
    let name = |section: &str, key: &str| match item(section, key) {
        Some(Value::String(text)) if !text.is_empty() => text.chars().take(NAME_CHARS_MAX).collect(),
        _ => NOT_AVAILABLE.to_string(),
    };
    let packages = sections.get("software").map_or(0, |items| items.keys().filter(|k| *k != NOT_AVAILABLE).count());
    Summary {
        os: name("os", "pretty_name"),
        cpu: name("hardware", "cpu_model"),
        memory_bytes: item("hardware", "memory_bytes").and_then(Value::as_u64),
        packages: packages as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sections(value: Value) -> BTreeMap<String, Items> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn inv_12_what_is_not_told_is_not_available() {
        let nothing = Summary { os: NOT_AVAILABLE.into(), cpu: NOT_AVAILABLE.into(), memory_bytes: None, packages: 0 };
        assert_eq!(summary(&BTreeMap::new()), nothing);
        let odd = json!({
            "os": {"pretty_name": 7}, "hardware": {"cpu_model": "", "memory_bytes": "not_available"},
            "software": {"not_available": "not_available"}
        });
        assert_eq!(summary(&sections(odd)), nothing);
    }

    #[test]
    fn names_are_taken_and_cut_at_their_bound() {
        let at = "é".repeat(NAME_CHARS_MAX);
        let long = format!("{at}x");
        let told = json!({
            "os": {"pretty_name": at}, "hardware": {"cpu_model": long, "memory_bytes": 17_179_869_184u64},
            "software": {"bash:amd64": {"version": "5"}, "zsh:amd64": {"version": "6"}}
        });
        let told = summary(&sections(told));
        assert_eq!(told, Summary { os: at.clone(), cpu: at, memory_bytes: Some(17_179_869_184), packages: 2 });
    }
}
