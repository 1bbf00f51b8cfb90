//! A relay that lies: production cores of server, relay and devices, and a hand on what the relay sends up (RLY-9).

mod world;

use branchline_protocol::{
    hash::Hash,
    id::OrderNumber,
    inventory::{Report, ReportKind, Snapshot},
    job::End,
    receipt::Receipt,
    record::{JobResult, Lane, Record, Run, StreamId, class},
    time::Millis,
    wire::Message,
};
use bytes::Bytes;
use std::collections::BTreeMap;
use world::{World, key, node};

/// Milliseconds for which records of a stream may go unsigned, and a little.
const PAST_A_HEAD_MS: u64 = 301_000;

fn report(packages: &[&str]) -> Bytes {
    let items = packages.iter().map(|name| (name.to_string(), "1".into())).collect();
    let found = Snapshot { sections: [("software".to_string(), items)].into() };
    let report = Report {
        kind: ReportKind::Full,
        collected_at: Millis(1),
        settings_version: 0,
        order: None,
        changes: found.full(),
        digest: found.digest(),
    };
    rmp_serde::to_vec_named(&report).expect("a report is plain data").into()
}

fn invented(device: u128) -> Run {
    let stream = StreamId { node: node(device), epoch: 1, incarnation: 9, lane: Lane::Work };
    let result = JobResult {
        order: OrderNumber { term: 1, number: 1 },
        end: End::Succeeded,
        reason: None,
        exit_code: Some(0),
        stdout: Bytes::new(),
        stderr: Bytes::new(),
        truncated: false,
        started_at: None,
        ended_at: Millis(1),
        simulated: false,
    };
    let result = rmp_serde::to_vec(&result).expect("a result is plain data").into();
    let mut records: Vec<Record> = Vec::new();
    for (class, body) in [(class::RESULT, result), (class::INVENTORY, report(&["invented"]))] {
        let prev = records.last().map_or(Hash::ZERO, |record| record.hash(&stream));
        records.push(Record { number: records.len() as u64 + 1, prev, class, trace: None, at: Millis(1), body });
    }
    Run { stream, records, settled: 0, receipts: vec![] }
}

#[actix_rt::test]
async fn rly_9_what_a_relay_invents_for_a_device_that_was_never_there_is_refused_and_the_rest_is_kept() {
    let mut world = World::new(&[1, 2]).await;
    world.lie(|runs| {
        // Beside the first true report, with every receipt that this relay has or can make.
        let Some(honest) = runs.iter().find(|run| run.stream.node == node(1)) else { return };
        let mut lie = invented(2);
        lie.receipts = honest.receipts.clone();
        let own = Receipt {
            tenant: world::tenant(),
            node: node(2),
            key: key(world::RELAY).public(),
            epoch: 1,
            attachment: 1,
            parent: node(world::RELAY),
            heads: vec![],
            complete: true,
        };
        lie.receipts.push(own.seal(&key(world::RELAY)));
        runs.insert(0, lie);
    });
    world.connect(1).await;
    world.pass(2_000).await;
    assert!(world.inventory(1).await.is_some(), "the rest of the batch is kept");
    assert!(world.inventory(2).await.is_none(), "nothing was invented");
    let letters = world.dead_letters().await;
    assert_eq!(letters[..2], [(node(2), "foreign".to_string()), (node(2), "foreign".to_string())]);
    assert!(letters.iter().all(|(of, _)| *of == node(2)), "{letters:?}");
    let refused = world.audit("record.refused").await;
    assert!(!refused.is_empty() && refused[0].contains(&node(2).to_string()), "{refused:?}");
    assert!(!world.audit("receipt.refused").await.is_empty(), "and so is its own receipt");
}

#[actix_rt::test]
async fn what_a_relay_alters_is_found_at_the_next_head_and_an_honest_one_is_not_suspected() {
    for lies in [false, true] {
        let mut world = World::new(&[1]).await;
        // The last hash of each stream as this relay tells it.
        let mut told: BTreeMap<StreamId, Hash> = BTreeMap::new();
        world.lie(move |runs| {
            for run in runs.iter_mut().filter(|_| lies) {
                let stream = run.stream;
                for record in run.records.iter_mut().filter(|_| stream.lane == Lane::Inventory) {
                    if record.class == class::INVENTORY {
                        record.body = report(&["harmless"]);
                    }
                    record.prev = told.get(&stream).copied().unwrap_or_default();
                    told.insert(stream, record.hash(&stream));
                }
            }
        });
        world.connect(1).await;
        world.pass(2_000).await;
        let shown = world.inventory(1).await.expect("an inventory");
        assert_eq!(shown.sections["software"].contains_key("harmless"), lies, "it comes unnoticed");
        assert!(world.audit("alert.stream_head_mismatch").await.is_empty());
        world.pass(PAST_A_HEAD_MS).await;
        world.pass(2_000).await;
        assert_eq!(world.signed, 1, "the device has signed");
        let shown = |message: &Message| match message {
            Message::Records(runs) => runs.iter().map(|run| run.receipts.len()).sum(),
            _ => 0,
        };
        assert_eq!(world.wire.iter().map(shown).sum::<usize>(), 1, "its receipt went up once");
        let told = world.audit("alert.stream_head_mismatch").await;
        assert_eq!(told.len(), usize::from(lies), "{told:?}");
        let names = |told: &String| {
            told.contains(&node(1).to_string()) && told.contains(&format!("brought by {}", node(world::RELAY)))
        };
        assert!(told.iter().all(names), "{told:?}");
        assert!(world.dead_letters().await.is_empty());
    }
}
