//! Presence on the wire. Devices of one kind declare the same capabilities, so a message has each set of them once and its
//! entries name it by its place: what remains of an entry is a third shorter.

use super::{PresenceEntry, Reach, SlotStanding};
use crate::{
    capability::Declared,
    id::{AttachmentKey, NodeId, Role},
    time::Millis,
};
use serde::{Deserialize, Serialize};

/// Bytes of the words of one set.
pub const CAPABILITIES_BYTES_MAX: usize = 1_024;

/// The body of a message.
#[derive(Serialize, Deserialize)]
pub(super) struct Presence {
    snapshot: bool,
    sets: Vec<Declared>,
    rows: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    node: NodeId,
    role: Role,
    key: AttachmentKey,
    via: Vec<NodeId>,
    reach: Reach,
    last_contact: Millis,
    next_contact: Option<Millis>,
    set: usize,
    figures: Option<String>,
    settings: (u32, u64),
    poll_interval_ms: Option<u64>,
    slot: Option<SlotStanding>,
}

impl Presence {
    /// Of these entries.
    pub(super) fn of(snapshot: bool, entries: &[PresenceEntry]) -> Presence {
        let mut sets: Vec<Declared> = Vec::new();
        let rows = entries.iter().map(|entry| {
            // There are as many sets as there are kinds of device: few.
            let set = sets.iter().position(|set| *set == entry.capabilities).unwrap_or_else(|| {
                sets.push(entry.capabilities.clone());
                sets.len() - 1
            });
            Row {
                node: entry.node,
                role: entry.role,
                key: entry.key,
                via: entry.via.clone(),
                reach: entry.reach,
                last_contact: entry.last_contact,
                next_contact: entry.next_contact,
                set,
                figures: entry.figures.clone(),
                settings: entry.settings,
                poll_interval_ms: entry.poll_interval_ms,
                slot: entry.slot,
            }
        });
        let rows = rows.collect();
        Presence { snapshot, sets, rows }
    }

    /// What it says, or what is wrong with it.
    pub(super) fn entries(self) -> Result<(bool, Vec<PresenceEntry>), String> {
        let Presence { snapshot, sets, rows } = self;
        if let Some(bytes) =
            sets.iter().map(|set| set.iter().map(String::len).sum::<usize>()).find(|b| *b > CAPABILITIES_BYTES_MAX)
        {
            return Err(format!("{bytes} bytes of capabilities, {CAPABILITIES_BYTES_MAX} are allowed"));
        }
        let entry = |row: Row| {
            let capabilities = sets.get(row.set).cloned();
            Ok(PresenceEntry {
                node: row.node,
                role: row.role,
                key: row.key,
                via: row.via,
                reach: row.reach,
                last_contact: row.last_contact,
                next_contact: row.next_contact,
                capabilities: capabilities
                    .ok_or_else(|| format!("set {} of capabilities, there are {}", row.set, sets.len()))?,
                figures: row.figures,
                settings: row.settings,
                poll_interval_ms: row.poll_interval_ms,
                slot: row.slot,
            })
        };
        Ok((snapshot, rows.into_iter().map(entry).collect::<Result<_, String>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Message, MessageFault};
    use uuid::Uuid;

    fn entry(n: u128, capabilities: &[&str]) -> PresenceEntry {
        PresenceEntry {
            node: NodeId(Uuid::from_u128(n)),
            role: Role::Agent,
            key: AttachmentKey { epoch: 1, attachment: 7 },
            via: vec![NodeId(Uuid::from_u128(99))],
            reach: Reach::Persistent,
            last_contact: Millis(1_764_000_000_000),
            next_contact: Some(Millis(5)),
            capabilities: capabilities.iter().map(|word| word.to_string()).collect(),
            figures: Some("{}".into()),
            settings: (1, 2),
            poll_interval_ms: Some(3),
            slot: Some(SlotStanding { since: Millis(4), waiter: 0 }),
        }
    }

    #[test]
    fn entries_come_back_as_they_went_and_name_a_set_once() {
        let words = ["run_script", "refresh_inventory", "restart", "manual_refresh", "interpreter"];
        let entries = vec![entry(1, &words), entry(2, &[]), entry(3, &words)];
        let message = Message::Presence { snapshot: true, entries };
        let decoded = Message::decode(&message.encode()).unwrap();
        assert_eq!(decoded, message);
        let Message::Presence { entries, .. } = decoded else { panic!("{decoded:?}") };
        let [one, three] = [0, 2].map(|at| &entries[at].capabilities);
        assert!(std::sync::Arc::ptr_eq(one, three), "one text in memory, however many have it");
        let bytes = |n: u128| {
            let entries = (0..n).map(|n| entry(n, &words)).collect();
            Message::Presence { snapshot: false, entries }.encode().len()
        };
        assert!(bytes(3) - bytes(2) + 60 < bytes(1), "{} and {}", bytes(1), bytes(3));
    }

    #[test]
    fn a_set_at_the_bound_passes_one_byte_more_and_one_that_is_not_there_are_refused() {
        let of = |bytes: usize| Message::Presence { snapshot: false, entries: vec![entry(1, &[&"x".repeat(bytes)])] };
        let good = of(CAPABILITIES_BYTES_MAX);
        assert_eq!(Message::decode(&good.encode()).unwrap(), good);
        let malformed = |bytes: &[u8], word: &str| match Message::decode(bytes) {
            Err(MessageFault::Malformed { kind: 5, why }) => assert!(why.contains(word), "{why}"),
            other => panic!("{other:?}"),
        };
        malformed(&of(CAPABILITIES_BYTES_MAX + 1).encode(), "1025 bytes of capabilities");
        let mut wrong = Presence::of(false, &[entry(1, &["a"])]);
        wrong.rows[0].set = 1;
        let bytes = [&[5][..], &rmp_serde::to_vec(&wrong).unwrap()].concat();
        malformed(&bytes, "set 1 of capabilities");
    }
}
