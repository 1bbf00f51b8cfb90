//! Inventory as sections of keyed items, each section hashed; differences between two collections (INV-4 … INV-6).
//!
//! A difference names, per section, the hash it starts from and the hash it leads to. Who applies it either ends at
//! exactly the sender's state or learns that it lacks the base, never at a mixture.

use crate::{hash::Hash, id::OrderNumber, time::Millis};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a platform cannot tell (INV-12): shown, never invented.
pub const NOT_AVAILABLE: &str = "not_available";

/// Milliseconds: a collection dated further ahead of the server than this is kept and marked (INV-13).
pub const CLOCK_SKEW_MS: i64 = 24 * 3_600_000;

/// The largest inventory in bytes; more is 413 (INV-13).
pub const INVENTORY_BYTES_MAX: usize = 16 * 1_048_576;

/// The sections this build knows; settings that name another are refused (INV-8). What a device sends beside them is
/// kept as it is (INV-13).
pub const SECTIONS: [&str; 7] = ["disks", "hardware", "network", "os", "protection", "software", "users"];

/// Items of one section by key, e.g. a package's name and architecture.
pub type Items = BTreeMap<String, Value>;

/// Everything collected at one time: section name to items. Names this build does not know are kept untouched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Snapshot {
    /// `hardware`, `os`, `disks`, `network`, `protection`, `software`, `users` …
    pub sections: BTreeMap<String, Items>,
}

/// Whether a report holds everything or what changed (INV-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportKind {
    /// Every section whole.
    Full,
    /// Changed sections as differences; none at all when nothing changed.
    Diff,
}

/// One collection on its way to the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Full or difference.
    pub kind: ReportKind,
    /// When the agent collected it, node time.
    pub collected_at: Millis,
    /// The settings it was collected under.
    pub settings_version: u64,
    /// The refresh order that asked for it, if one did.
    pub order: Option<OrderNumber>,
    /// What changed.
    pub changes: Vec<SectionChange>,
    /// [`Snapshot::digest`] after the changes.
    pub digest: Hash,
}

/// How one section changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SectionChange {
    /// Which section.
    pub section: String,
    /// The hash it starts from; `None` when `change` is the whole.
    pub base: Option<Hash>,
    /// The hash it leads to; `None` when the section is gone.
    pub result: Option<Hash>,
    /// What to do.
    pub change: Change,
}

/// The content of a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// These are all the items.
    Whole(Items),
    /// Put these, remove those.
    Patch {
        /// New or altered items.
        put: Items,
        /// Keys that are gone.
        remove: Vec<String>,
    },
    /// The section is gone.
    Gone,
}

/// Why a change was not applied; the state is as before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyFault {
    /// The receiver has another base: ask for these sections whole (INV-6).
    #[error("the base of {0:?} is missing")]
    BaseMissing(Vec<String>),
    /// The result is not what the sender says: it is broken.
    #[error("section {0} does not lead to the stated hash")]
    WrongResult(String),
    /// The whole does not lead to the stated digest although every change applied: sections are missing.
    #[error("the sections do not add up to the stated digest")]
    WrongDigest,
}

/// The hash of a section: its items in key order, nested maps in key order too.
pub fn section_hash(items: &Items) -> Hash {
    let mut text = String::new();
    for (key, value) in items {
        canonical(&Value::String(key.clone()), &mut text);
        text.push(':');
        canonical(value, &mut text);
        text.push('\n');
    }
    Hash::of(text.as_bytes())
}

fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            out.push('{');
            for (key, value) in sorted {
                canonical(&Value::String(key.clone()), out);
                out.push(':');
                canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(list) => {
            out.push('[');
            for value in list {
                canonical(value, out);
                out.push(',');
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

impl Snapshot {
    /// Each section's hash.
    pub fn hashes(&self) -> BTreeMap<String, Hash> {
        self.sections.iter().map(|(name, items)| (name.clone(), section_hash(items))).collect()
    }

    /// One hash over all sections: equal exactly when the inventories are.
    pub fn digest(&self) -> Hash {
        digest_of(&self.hashes())
    }

    /// Every section whole.
    pub fn full(&self) -> Vec<SectionChange> {
        self.sections
            .iter()
            .map(|(name, items)| SectionChange {
                section: name.clone(),
                base: None,
                result: Some(section_hash(items)),
                change: Change::Whole(items.clone()),
            })
            .collect()
    }

    /// What leads from `base` to this snapshot; empty when they are equal.
    pub fn difference(&self, base: &Snapshot) -> Vec<SectionChange> {
        let mut changes = Vec::new();
        for (name, items) in &self.sections {
            let Some(old) = base.sections.get(name) else {
                let change = Change::Whole(items.clone());
                changes.push(SectionChange {
                    section: name.clone(),
                    base: None,
                    result: Some(section_hash(items)),
                    change,
                });
                continue;
            };
            if old == items {
                continue;
            }
            let put =
                items.iter().filter(|(k, v)| old.get(*k) != Some(v)).map(|(k, v)| (k.clone(), v.clone())).collect();
            let remove = old.keys().filter(|k| !items.contains_key(*k)).cloned().collect();
            changes.push(SectionChange {
                section: name.clone(),
                base: Some(section_hash(old)),
                result: Some(section_hash(items)),
                change: Change::Patch { put, remove },
            });
        }
        for (name, old) in base.sections.iter().filter(|(name, _)| !self.sections.contains_key(*name)) {
            let base = Some(section_hash(old));
            changes.push(SectionChange { section: name.clone(), base, result: None, change: Change::Gone });
        }
        changes
    }

    /// Applies a report's changes, all or none. A full report replaces everything.
    pub fn apply(&mut self, report: &Report) -> Result<(), ApplyFault> {
        let mut next = match report.kind {
            ReportKind::Full => Snapshot::default(),
            ReportKind::Diff => self.clone(),
        };
        let missing: Vec<String> = report
            .changes
            .iter()
            .filter(|c| c.base.is_some() && next.sections.get(&c.section).map(section_hash) != c.base)
            .map(|c| c.section.clone())
            .collect();
        if !missing.is_empty() {
            return Err(ApplyFault::BaseMissing(missing));
        }
        for change in &report.changes {
            match &change.change {
                Change::Whole(items) => {
                    next.sections.insert(change.section.clone(), items.clone());
                }
                Change::Patch { put, remove } => {
                    let items = next.sections.entry(change.section.clone()).or_default();
                    remove.iter().for_each(|key| {
                        items.remove(key);
                    });
                    items.extend(put.iter().map(|(k, v)| (k.clone(), v.clone())));
                }
                Change::Gone => {
                    next.sections.remove(&change.section);
                }
            }
            if next.sections.get(&change.section).map(section_hash) != change.result {
                return Err(ApplyFault::WrongResult(change.section.clone()));
            }
        }
        if next.digest() != report.digest {
            return Err(ApplyFault::WrongDigest);
        }
        *self = next;
        Ok(())
    }
}

/// [`Snapshot::digest`] from section hashes.
pub fn digest_of(hashes: &BTreeMap<String, Hash>) -> Hash {
    let mut parts: Vec<&[u8]> = Vec::with_capacity(hashes.len() * 2);
    for (name, hash) in hashes {
        parts.push(name.as_bytes());
        parts.push(&hash.0);
    }
    Hash::of_parts(&parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report(kind: ReportKind, changes: Vec<SectionChange>, after: &Snapshot) -> Report {
        Report { kind, collected_at: Millis(1), settings_version: 1, order: None, changes, digest: after.digest() }
    }

    fn snapshot() -> impl Strategy<Value = Snapshot> {
        let items = prop::collection::btree_map("[a-d]", (0..4u8).prop_map(|n| serde_json::json!({"v": n})), 0..4);
        prop::collection::btree_map("[x-z]", items, 0..3).prop_map(|sections| Snapshot { sections })
    }

    proptest! {
        /// INV-5: whatever the two states, the difference leads exactly from one to the other.
        #[test]
        fn inv_5_a_difference_leads_to_the_same_state_as_a_full(a in snapshot(), b in snapshot()) {
            let mut by_diff = a.clone();
            by_diff.apply(&report(ReportKind::Diff, b.difference(&a), &b)).unwrap();
            let mut by_full = a.clone();
            by_full.apply(&report(ReportKind::Full, b.full(), &b)).unwrap();
            prop_assert_eq!(&by_diff, &b);
            prop_assert_eq!(&by_full, &b);
            prop_assert_eq!(b.difference(&b).len(), 0);
        }

        /// INV-6: on a foreign base a difference changes nothing, whatever the answer.
        #[test]
        fn inv_6_a_foreign_base_is_never_mixed(a in snapshot(), b in snapshot(), c in snapshot()) {
            let mut state = c.clone();
            match state.apply(&report(ReportKind::Diff, b.difference(&a), &b)) {
                Ok(()) => prop_assert_eq!(state, b),
                Err(_) => prop_assert_eq!(state, c),
            }
        }
    }

    #[test]
    fn key_order_of_nested_objects_does_not_matter() {
        let mut a = Items::new();
        a.insert("k".into(), serde_json::from_str(r#"{"x":1,"y":2}"#).unwrap());
        let mut b = Items::new();
        b.insert("k".into(), serde_json::from_str(r#"{"y":2,"x":1}"#).unwrap());
        assert_eq!(section_hash(&a), section_hash(&b));
    }
}
