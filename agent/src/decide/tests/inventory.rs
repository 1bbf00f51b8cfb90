//! Inventory: what is collected, when, and what is sent of it.

use super::*;
use crate::decide::inventory::{Inventory, Request};
use branchline_protocol::{
    document::Settings,
    inventory::{CLOCK_SKEW_MS, INVENTORY_BYTES_MAX, Items, Report, ReportKind, Snapshot},
    job::End,
};
use serde_json::json;

pub fn snapshot(version: u32) -> Snapshot {
    let items = |key: &str, value| Items::from([(key.to_owned(), value)]);
    let sections = [
        ("os".to_owned(), items("kernel", json!("6.1"))),
        ("software".to_owned(), items("bash:amd64", json!({"version": version, "source": "dpkg"}))),
    ];
    Snapshot { sections: sections.into() }
}

fn collects(effects: &[Effect]) -> usize {
    effects.iter().filter(|e| matches!(e, Effect::Collect(_))).count()
}

fn reports(disk: &Disk) -> Vec<Report> {
    disk.records(class::INVENTORY).iter().map(|r| rmp_serde::from_slice(&r.body).unwrap()).collect()
}

#[test]
fn inv_1_a_fresh_agent_sends_everything_by_itself_and_a_restarted_one_does_not_again() {
    let mut bench = Bench::new();
    assert_eq!(collects(&bench.wake()), 1);
    bench.settle(Event::Collected(snapshot(1)));
    let all = reports(&bench.disk);
    assert_eq!((all.len(), all[0].kind, all[0].order), (1, ReportKind::Full, None));
    let mut state = Snapshot::default();
    state.apply(&all[0]).unwrap();
    assert_eq!(state, snapshot(1));
    bench.crash();
    assert_eq!(collects(&bench.wake()), 0);
}

#[test]
fn inv_1_a_first_collection_that_was_not_durable_is_made_again() {
    let mut bench = Bench::new();
    bench.wake();
    bench.event(Event::Collected(snapshot(1)));
    bench.crash();
    assert_eq!(collects(&bench.wake()), 1);
}

/// INV-5: full first, then differences, full where it is asked for; INV-4 (the agent's side): no difference is an empty
/// difference with the same digest.
#[test]
fn inv_5_kinds_of_report_and_inv_4_an_equal_collection_changes_nothing() {
    let mut bench = Bench::new();
    bench.wake();
    bench.connect(None);
    bench.settle(Event::Collected(snapshot(1)));
    let asked = [(1, false, 1), (2, false, 2), (3, true, 2)];
    for (n, full, version) in asked {
        let effects =
            bench.settle(message(Lane::Work, Message::Orders(vec![order(n, REFRESH_INVENTORY, refresh(full))])));
        assert_eq!(collects(&effects), 1);
        bench.pass(10);
        let effects = bench.settle(Event::Collected(snapshot(version)));
        let lanes: Vec<Lane> = sent(&effects).iter().map(|(lane, _)| *lane).collect();
        assert_eq!(lanes, [Lane::Work, Lane::Inventory], "result and report of one batch");
    }
    let all = reports(&bench.disk);
    let kinds: Vec<_> = all.iter().map(|r| (r.kind, r.order.map(|o| o.number))).collect();
    let (full, diff) = (ReportKind::Full, ReportKind::Diff);
    assert_eq!(kinds, [(full, None), (diff, Some(1)), (diff, Some(2)), (full, Some(3))]);
    assert!(all[1].changes.is_empty() && all[1].digest == all[0].digest);
    assert_eq!(all[2].changes.len(), 1, "only the changed section");
    let mut state = Snapshot::default();
    all.iter().for_each(|r| state.apply(r).unwrap());
    assert_eq!(state, snapshot(2));
    let results = bench.disk.results();
    assert!(results.len() == 3 && results.iter().all(|r| r.end == End::Succeeded), "{results:?}");
}

#[test]
fn inv_5_the_base_is_what_was_journalled_with_the_report() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![order(1, REFRESH_INVENTORY, refresh(false))])));
    bench.event(Event::Collected(snapshot(2)));
    bench.crash();
    assert_eq!(collects(&bench.wake()), 1, "the order's collection is made again");
    bench.settle(Event::Collected(snapshot(2)));
    let all = reports(&bench.disk);
    let mut state = Snapshot::default();
    all.iter().for_each(|r| state.apply(r).unwrap());
    assert_eq!((all.len(), state), (2, snapshot(2)));
    assert_eq!(bench.disk.results().len(), 1);
}

#[test]
fn inv_6_sections_that_the_server_lacks_bring_a_full_report() {
    let mut bench = Bench::running();
    let effects = bench.settle(message(Lane::Control, Message::Sections(ME, vec!["os".into()])));
    assert_eq!(collects(&effects), 1);
    let again = bench.settle(message(Lane::Control, Message::Sections(ME, vec![])));
    let third = bench.settle(message(Lane::Control, Message::Sections(ME, vec![])));
    assert_eq!((collects(&again), collects(&third)), (0, 0), "one at a time");
    let others = Message::Sections(NodeId(Uuid::from_u128(1)), vec![]);
    assert!(releases(&bench.settle(message(Lane::Control, others))) > 0);
    let effects = bench.settle(Event::Collected(snapshot(1)));
    assert_eq!(collects(&effects), 1, "asked for once more while it was collecting");
    assert_eq!(collects(&bench.settle(Event::Collected(snapshot(1)))), 0, "and not three times");
    assert!(reports(&bench.disk).iter().all(|r| r.kind == ReportKind::Full));
}

#[test]
fn inv_13_an_inventory_over_the_bound_is_not_sent_and_the_order_says_so() {
    let mut bench = Bench::running();
    let huge = |bytes: usize| {
        let items = Items::from([("k".to_owned(), json!("x".repeat(bytes)))]);
        Snapshot { sections: [("os".to_owned(), items)].into() }
    };
    let overhead = {
        let mut probe = crate::decide::Inventory::default();
        let request = crate::decide::InventoryRequest { order: Some(number(1)), full: true };
        let body = probe.report(request, huge(70_000), bench.now.node, 0, &mut Batch::new()).unwrap();
        body.len() - 70_000
    };
    for (n, over) in [(1, 0), (2, 1)] {
        bench.settle(message(Lane::Work, Message::Orders(vec![order(n, REFRESH_INVENTORY, refresh(true))])));
        bench.settle(Event::Collected(huge(INVENTORY_BYTES_MAX - overhead + over)));
    }
    let results = bench.disk.results();
    let told: Vec<_> = results.iter().map(|r| (r.end, r.reason.as_deref())).collect();
    assert_eq!(told, [(End::Succeeded, None), (End::Failed, Some("too_large"))]);
    assert_eq!(reports(&bench.disk).len(), 2, "the first one and the one at the bound");
}

#[test]
fn inv_8_settings_say_what_is_collected_and_a_report_names_them() {
    let mut bench = Bench::running();
    let settings = Settings { version: 8, collect: vec!["os".into()], ..Settings::first(tenant(), 1) };
    bench.settle(document(&settings, &server()));
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![order(1, REFRESH_INVENTORY, refresh(false))])));
    assert!(effects.contains(&Effect::Collect(vec!["os".into()])));
    let mut only_os = snapshot(1);
    only_os.sections.remove("software");
    bench.settle(Event::Collected(only_os.clone()));
    let all = reports(&bench.disk);
    assert_eq!(all[1].settings_version, 8);
    bench.crash();
    bench.wake();
    bench.connect(None);
    bench.settle(message(Lane::Work, Message::Orders(vec![order(2, REFRESH_INVENTORY, refresh(false))])));
    bench.settle(Event::Collected(only_os));
    assert!(reports(&bench.disk)[2].changes.is_empty(), "the section that is gone is gone from the base on disk too");
}

#[test]
fn a_fresh_collector_begins_again() {
    let mut bench = Bench::new();
    assert_eq!(collects(&bench.wake()), 1);
    assert_eq!(collects(&bench.settle(Event::CollectorUp)), 1);
    bench.settle(Event::Collected(snapshot(1)));
    bench.settle(Event::Collected(snapshot(1)));
    assert_eq!(reports(&bench.disk).len(), 1, "a second answer is nobody's");
}

/// INV-13: no report is dated before the one before it, across restarts and whatever the clock does; only a date that was
/// wrong by more than the skew does not bind the later ones.
#[test]
fn inv_13_a_later_report_is_never_dated_before_an_earlier_one() {
    const HOUR: i64 = 3_600_000;
    let mut disk = Disk::default();
    let steps = [
        (START, START),
        (START - HOUR, START),
        (START + CLOCK_SKEW_MS, START + CLOCK_SKEW_MS),
        (START, START + CLOCK_SKEW_MS),
        (START - 1, START - 1),
    ];
    for (n, (at, dated)) in steps.into_iter().enumerate() {
        let mut inventory = Inventory::default();
        for ((table, key), value) in &disk.0 {
            assert_eq!(*table, Table::Inventory);
            inventory.recover(key, value).unwrap();
        }
        let mut batch = Batch::default();
        let asked = Request { order: None, full: false };
        let body = inventory.report(asked, snapshot(n as u32), Millis(at), 1, &mut batch).unwrap();
        disk.apply(batch);
        assert_eq!(rmp_serde::from_slice::<Report>(&body).unwrap().collected_at, Millis(dated), "step {n}");
    }
    assert!(Inventory::default().recover(b"base", b"short").is_err());
}
