//! What a run came to.

use super::fault::Counts;
use branchline_protocol::hash::Hash;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Of the run.
    pub seed: u64,
    /// Faults that hit something.
    pub faults: u64,
    /// The same by kind.
    pub kinds: Counts,
    /// Pairs of an order and a device whose issuer was told that the order is durable.
    pub accepted: u64,
    /// Of these, at their end.
    pub ended: u64,
    /// The same by end.
    pub ends: BTreeMap<&'static str, u64>,
    /// Of these, not at their end, or at one that is not the world's truth.
    pub lost: u64,
    /// Pairs that were begun more than once.
    pub doubled: u64,
    /// Everything that must not be: lost and doubled pairs, and every broken promise.
    pub violations: u64,
    /// Pairs in the stated exclusion: their device was set back to a snapshot older than they are.
    pub excluded: u64,
    /// All pairs the server holds, accepted or not.
    pub pairs: u64,
    /// Crashes that met un-synced writes.
    pub crashes_unsynced: u64,
    /// Devices' links to another parent than before.
    pub path_moves: u64,
    /// Machines that were put back to a snapshot.
    pub restores: u64,
    /// Answers of `explain` and rows of `tree` that were held against the truth.
    pub asked: u64,
    /// The same by what they said: a node's state, or the last step of an explanation.
    pub answers: BTreeMap<String, u64>,
    /// Virtual seconds.
    pub virtual_s: f64,
    /// Seconds of the machine.
    pub wall_s: f64,
    /// Of every event and the final stores.
    pub hash: String,
    /// The first broken promises, for people.
    pub told: Vec<String>,
}

impl Report {
    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        json!({
            "seed": self.seed,
            "faults": self.faults,
            "kinds": self.kinds,
            "accepted": self.accepted,
            "ended": self.ended,
            "ends": self.ends,
            "lost": self.lost,
            "doubled": self.doubled,
            "violations": self.violations,
            "excluded": self.excluded,
            "pairs": self.pairs,
            "crashes_unsynced": self.crashes_unsynced,
            "path_moves": self.path_moves,
            "restores": self.restores,
            "asked": self.asked,
            "answers": self.answers,
            "virtual_s": self.virtual_s,
            "wall_s": self.wall_s,
            "hash": self.hash,
        })
    }

    /// One line.
    pub fn line(&self) -> String {
        format!(
            "seed {}: {} faults, {} of {} accepted ended, {} lost, {} doubled, {} excluded, {} crashes with un-synced \
             writes, {} path moves, {} restores, {} answers, {} violations, {:.0} s virtual in {:.2} s, {}",
            self.seed,
            self.faults,
            self.ended,
            self.accepted,
            self.lost,
            self.doubled,
            self.excluded,
            self.crashes_unsynced,
            self.path_moves,
            self.restores,
            self.asked,
            self.violations,
            self.virtual_s,
            self.wall_s,
            &self.hash[..self.hash.len().min(16)],
        )
    }

    /// Adds another run; the hash becomes that of both.
    pub fn add(&mut self, other: &Report) {
        self.faults += other.faults;
        for (kind, count) in &other.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
        self.accepted += other.accepted;
        self.ended += other.ended;
        for (end, count) in &other.ends {
            *self.ends.entry(end).or_default() += count;
        }
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.violations += other.violations;
        self.excluded += other.excluded;
        self.pairs += other.pairs;
        self.crashes_unsynced += other.crashes_unsynced;
        self.path_moves += other.path_moves;
        self.restores += other.restores;
        self.asked += other.asked;
        for (answer, count) in &other.answers {
            *self.answers.entry(answer.clone()).or_default() += count;
        }
        self.virtual_s += other.virtual_s;
        self.wall_s += other.wall_s;
        let Hash(digest) = Hash::of_parts(&[self.hash.as_bytes(), other.hash.as_bytes()]);
        self.hash = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.told.extend(other.told.iter().take(3).cloned());
    }
}
