//! Guard rails of inventory records (INV-13), and which settings a device has (ADM-14).

use super::*;
use branchline_protocol::{
    inventory::INVENTORY_BYTES_MAX,
    record::{Record, StreamId},
};

/// A device whose clock was wrong does not shut itself out: what is dated in the future is shown, marked, and gives way.
#[test]
fn inv_13_a_time_over_24_hours_ahead_is_stored_and_marked_and_gives_way_to_a_right_one() {
    let day = 24 * 3_600_000;
    let one = snapshot(&["a"]);
    let full = |at| (class::INVENTORY, report(ReportKind::Full, &one, &one, at));
    let shown = |bench: &Bench| -> Vec<(i64, bool)> {
        let of = |op: &Op| match op {
            Op::Inventory { collected_at, clock_skew, .. } => Some((collected_at.0, *clock_skew)),
            _ => None,
        };
        bench.ops.iter().filter_map(of).collect()
    };
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    // The clock stands one further when the message is heard.
    let now = bench.clock as i64 + 1;
    let ahead = now + day;
    bench.said(&agent, Message::Records(vec![spooled(1, vec![full(ahead)])]));
    assert_eq!(shown(&bench), [(ahead, false)], "exactly 24 h ahead is not over 24 h");
    let mut bench = Bench::new();
    bench.feed(Event::Up(agent.clone()));
    let records = vec![full(ahead + 1), full(now), full(now - 1)];
    bench.said(&agent, Message::Records(vec![spooled(1, records)]));
    assert_eq!(shown(&bench), [(ahead + 1, true), (now, false)], "then the right time, then an older one");
    assert_eq!(bench.ops.iter().filter(|op| matches!(op, Op::InventoryHistory { .. })).count(), 1);
}

#[test]
fn inv_13_an_inventory_at_16_mib_is_taken_and_one_byte_more_is_refused_and_blocks_nothing() {
    let body = |bytes: usize| {
        let with = |padding: usize| {
            let items = [("k".to_string(), serde_json::json!("x".repeat(padding)))].into();
            let whole = Snapshot { sections: BTreeMap::from([("other".to_string(), items)]) };
            report(ReportKind::Full, &whole, &whole, 5)
        };
        let overhead = with(70_000).len() - 70_000;
        let body = with(bytes - overhead);
        assert_eq!(body.len(), bytes);
        body
    };
    let most = INVENTORY_BYTES_MAX;
    for (bytes, refused) in [(most, 0), (most + 1, 1)] {
        let mut bench = Bench::new();
        let agent = child(1, 1);
        bench.feed(Event::Up(agent.clone()));
        // What a spool sends in two messages.
        let stream = StreamId { node: node(1), epoch: 1, incarnation: 77, lane: Lane::Work };
        let record = |number, prev, class, body: Vec<u8>| {
            let (trace, at, body) = (None, Millis(5), body.into());
            Record { number, prev, class, trace, at, body }
        };
        let large = record(1, Hash::ZERO, class::INVENTORY, body(bytes));
        let next = record(2, large.hash(&stream), class::RESULT, result(End::Succeeded));
        let seen = bench.said(
            &agent,
            Message::Records(vec![Run { stream, records: vec![large, next], settled: 0, receipts: vec![] }]),
        );
        assert_eq!(acked(&seen), [(2, 2, refused)]);
        let stored = bench.ops.iter().filter(|op| matches!(op, Op::Inventory { .. })).count();
        assert_eq!(stored, 1 - refused);
        let codes: Vec<String> = seen.iter().flat_map(refusals).collect();
        assert_eq!(codes, vec!["too_large".to_string(); refused]);
    }
}

fn refusals(effect: &Effect) -> Vec<String> {
    match effect {
        Effect::Send(_, _, _, Message::Acks(acks)) => {
            acks.iter().flat_map(|a| a.refused.iter().map(|(_, code)| code.clone())).collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn inv_13_a_wrong_type_is_refused_by_the_fields_name_and_an_unknown_field_is_kept_as_it_is() {
    #[derive(serde::Serialize, Clone)]
    struct Wire {
        kind: serde_json::Value,
        collected_at: serde_json::Value,
        settings_version: serde_json::Value,
        order: serde_json::Value,
        changes: serde_json::Value,
        digest: Hash,
        from_a_later_build: serde_json::Value,
    }
    use serde_json::json;
    let empty = Snapshot::default();
    let good = Wire {
        kind: json!("full"),
        collected_at: json!(5),
        settings_version: json!(1),
        order: json!(null),
        changes: json!([]),
        digest: empty.digest(),
        from_a_later_build: json!({"x": [1]}),
    };
    let bad = [
        ("kind", Wire { kind: json!("half"), ..good.clone() }),
        ("collected_at", Wire { collected_at: json!("noon"), ..good.clone() }),
        ("settings_version", Wire { settings_version: json!(-1), ..good.clone() }),
        ("order", Wire { order: json!("first"), ..good.clone() }),
        ("changes", Wire { changes: json!({"os": 1}), ..good.clone() }),
    ];
    for (field, wire) in bad {
        let mut bench = Bench::new();
        let agent = child(1, 1);
        bench.feed(Event::Up(agent.clone()));
        let record = (class::INVENTORY, rmp_serde::to_vec_named(&wire).unwrap());
        let seen = bench.said(&agent, Message::Records(vec![spooled(1, vec![record])]));
        assert_eq!(seen.iter().flat_map(refusals).collect::<Vec<_>>(), ["malformed"]);
        let told = bench.ops.iter().any(|op| {
            matches!(op, Op::Audit(row) if row.what == "record.refused" && row.detail.ends_with(&format!("malformed in {field}")))
        });
        assert!(told, "{field}");
        assert!(!bench.ops.iter().any(|op| matches!(op, Op::Inventory { .. })));
    }
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    let record = (class::INVENTORY, rmp_serde::to_vec_named(&good).unwrap());
    let seen = bench.said(&agent, Message::Records(vec![spooled(1, vec![record])]));
    assert!(seen.iter().flat_map(refusals).next().is_none(), "a field of a later build is no fault");
    // Sections, items and values that this build does not know.
    let odd = json!({"quantum": {"qubit 1": {"spin": [0.5, null, {"x": "y"}]}}, "os": {"later": {"field": true}}});
    let whole: Snapshot = serde_json::from_value(odd).unwrap();
    let record = (class::INVENTORY, report(ReportKind::Full, &whole, &whole, 6));
    let mut bench = Bench::new();
    bench.feed(Event::Up(agent.clone()));
    bench.said(&agent, Message::Records(vec![spooled(1, vec![record])]));
    let kept = bench.ops.iter().find_map(|op| match op {
        Op::Inventory { put, .. } => Some(put.clone()),
        _ => None,
    });
    assert_eq!(kept.unwrap(), whole.sections);
}

#[test]
fn adm_14_a_device_says_which_settings_it_has_directly_and_through_its_relay() {
    let mut bench = Bench::new();
    let (relay, agent) = (child(100, 1), child(1, 1));
    let settings = |bench: &Bench, n: u128| {
        let state = bench.core.tenant(&tenant()).unwrap();
        standing(state, &state.nodes[&node(n)], Millis(bench.clock as i64)).settings
    };
    bench.feed(Event::Up(agent.clone()));
    assert_eq!(settings(&bench, 1), (0, 0));
    bench.said(&agent, Message::Versions(vec![(1, 9), (1, 9), (1, 9), (1, 4), (0, 0)]));
    assert_eq!(settings(&bench, 1), (1, 4));
    bench.feed(Event::Up(relay.clone()));
    let entries = vec![PresenceEntry { settings: (1, 5), ..below(2, 1) }];
    bench.said(&relay, Message::Presence { snapshot: true, entries });
    assert_eq!(settings(&bench, 2), (1, 5));
    // A greeting says it too.
    let mut greeting = Greeting::clone(&agent.greeting);
    greeting.documents = vec![(1, 9), (1, 9), (1, 9), (1, 6), (0, 0)];
    let again = Child { greeting: Arc::new(greeting), ..Child::clone(&child(1, 2)) };
    bench.feed(Event::Up(Arc::new(again)));
    assert_eq!(settings(&bench, 1), (1, 6));
}
