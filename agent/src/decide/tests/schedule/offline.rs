//! Out of contact, and back (INV-9, INV-10, ADM-14).

use super::*;
use branchline_protocol::document::Revocations;

#[test]
fn inv_9_three_collections_offline_are_three_records_in_order_with_their_times_and_no_restart_loses_one() {
    let mut pc = Pc::new("2026-11-23T08:30:00");
    pc.news();
    pc.happens(Event::Down);
    for (day, packages) in [(24, 2), (25, 3), (26, 4)] {
        pc.packages = packages;
        pc.run_until(&format!("2026-11-{day}T09:02:00"));
        // In the middle of the five minutes, and before the report is due.
        pc.go(&format!("2026-11-{day}T09:02:00"), false);
    }
    pc.run_until("2026-11-26T15:00:00");
    assert!(pc.news().is_empty());
    pc.connect();
    let mut state = snapshot(1);
    for (sent, packages) in pc.sent.iter().zip([2, 3, 4]) {
        state.apply(&sent.report).unwrap();
        assert_eq!(state, snapshot(packages));
    }
    assert_eq!(pc.news(), diffs(&["11-24 09:00:00", "11-25 09:00:00", "11-26 09:00:00"]));
}

#[test]
fn inv_10_new_settings_count_from_contact_and_records_before_name_the_old_ones() {
    let mut pc = Pc::new("2026-06-01T08:00:00");
    pc.set(|s| s.schedule = "monthly 3 10:00".parse().unwrap());
    let old = pc.settings.version;
    pc.news();
    pc.happens(Event::Down);
    pc.run_until("2026-06-04T12:00:00");
    pc.connect();
    pc.set(|s| s.collect = vec!["os".into()]);
    pc.run_until("2026-06-20T00:00:00");
    assert_eq!(pc.sent.len(), 1, "comparable inventory comes with the next scheduled run");
    assert_eq!(pc.sent[0].report.settings_version, old);
    pc.run_until("2026-07-03T12:00:00");
    assert_eq!(pc.sent[1].report.settings_version, old + 1);
    assert_eq!(pc.news(), diffs(&["06-03 10:00:00", "07-03 10:00:00"]));
}

#[test]
fn inv_10_a_collection_under_way_belongs_to_the_settings_it_began_under() {
    let mut pc = Pc::new("2026-11-23T08:30:00");
    pc.set(|s| s.poll_normal_s = 7_200);
    let old = pc.settings.version;
    pc.news();
    let asked = pc.refresh_order();
    pc.bench.settle(asked);
    pc.set(|s| s.collect = vec!["os".into()]);
    pc.happens(Event::Collected(snapshot(1)));
    assert_eq!(pc.sent[0].report.settings_version, old);
}

#[test]
fn inv_10_collect_on_return_makes_one_record_more_with_the_new_version_at_contact() {
    let mut pc = Pc::new("2026-11-23T09:30:00");
    pc.happens(Event::Down);
    pc.run_until("2026-11-23T12:00:00");
    pc.news();
    pc.connect();
    pc.set(|s| s.collect_on_return = true);
    assert_eq!(pc.sent[0].report.settings_version, pc.settings.version);
    assert_eq!(pc.times(), [("11-23 12:00:00".to_string(), "11-23 12:00:00".to_string())]);
    pc.run_until("2026-11-24T08:00:00");
    assert!(pc.news().is_empty(), "once");
    // Over a link that was there it comes to everybody, so the answer is spread.
    pc.set(|s| s.poll_normal_s = 1_800);
    assert_eq!((pc.collected.last().unwrap().as_str(), pc.sent.len()), ("11-24 08:00:00", 0));
    pc.run_until("2026-11-24T08:05:00");
    assert_eq!(pc.news(), diffs(&["11-24 08:00:00"]));
    pc.set(|s| s.collect_on_return = false);
    pc.run_until("2026-11-24T08:59:59");
    assert!(pc.news().is_empty());
}

#[test]
fn adm_14_a_version_is_acknowledged_once_it_is_on_disk() {
    let mut pc = Pc::new("2026-11-23T09:30:00");
    let mut settings = Settings { version: 7, ..Settings::first(tenant(), 1) };
    let acknowledged = |effects: &[Effect]| {
        let versions = effects.iter().filter_map(|e| match e {
            Effect::Send(Lane::Control, Message::Versions(versions)) => Some(versions[3]),
            _ => None,
        });
        versions.collect::<Vec<_>>()
    };
    assert!(acknowledged(&pc.bench.event(document(&settings, &server()))).is_empty());
    assert_eq!(acknowledged(&pc.bench.commit_all()), [(1, 7)]);
    assert!(acknowledged(&pc.bench.settle(document(&settings, &server()))).is_empty(), "nothing new");
    settings.version = 8;
    assert!(acknowledged(&pc.bench.settle(document(&settings, &Signer::from_seed(&[66; 32])))).is_empty(), "forged");
    settings.version = 6;
    assert!(acknowledged(&pc.bench.settle(document(&settings, &server()))).is_empty(), "older");
    pc.bench.crash();
    let greeting = pc.bench.settle(Event::Dialling { dial: 1, parent: PARENT });
    assert!(matches!(&greeting[..], [Effect::Greet(1, g)] if g.documents[3] == (1, 7)), "{greeting:?}");
}

#[test]
fn s_12_a_revoked_device_collects_no_more() {
    let mut pc = Pc::new("2026-11-23T08:30:00");
    let list = Revocations {
        tenant: tenant(),
        term: 1,
        version: 2,
        revoked: vec![(ME, 2)],
        suspended: vec![],
        raised: vec![],
        keep_connection: vec![],
    };
    pc.happens(document(&list, &server()));
    pc.news();
    pc.set(|s| s.collect_on_return = true);
    pc.run_until("2026-11-25T10:00:00");
    assert_eq!((pc.news().len(), pc.collected.len()), (0, 1));
}

#[test]
fn adm_8_hourly_contact_alone_collects_nothing_and_a_refresh_does() {
    let mut pc = Pc::new("2026-11-23T09:30:00");
    pc.news();
    for hour in 10..15 {
        pc.happens(Event::Down);
        pc.run_until(&format!("2026-11-23T{hour}:00:00"));
        pc.connect();
    }
    assert_eq!((pc.news().len(), pc.collected.len()), (0, 1));
    let asked = pc.refresh_order();
    pc.happens(asked);
    assert_eq!(pc.news(), diffs(&["11-23 14:00:00"]));
}

#[test]
fn adm_14_settings_that_came_after_a_poll_was_done_are_acknowledged_by_another_at_once() {
    let mut pc = Pc::new("2026-11-23T09:30:00");
    pc.happens(Event::Down);
    let lease = Lease { interval_ms: 3_600_000, phase_ms: 0, waiter: 0 };
    let pokes = |effects: &[Effect]| effects.iter().any(|e| matches!(e, Effect::Poke(..)));
    pc.bench.settle(Event::Dialling { dial: 1, parent: PARENT });
    let up = pc.bench.connect(Some(lease));
    pc.absorb(up);
    let settings = Settings { version: 7, ..Settings::first(tenant(), 1) };
    pc.bench.settle(document(&settings, &server()));
    assert!(pokes(&pc.bench.settle(Event::Down)), "it had said that it is done");
    let greeting = pc.bench.settle(Event::Dialling { dial: 2, parent: PARENT });
    assert!(matches!(&greeting[..], [Effect::Greet(2, g)] if g.documents[3] == (1, 7)), "{greeting:?}");
    let up = pc.bench.connect(Some(lease));
    pc.absorb(up);
    assert!(!pokes(&pc.bench.settle(Event::Down)), "once");
}

#[test]
fn job_16_a_suspended_device_collects_nothing_by_itself_and_makes_up_for_the_day_when_it_is_revived() {
    let mut pc = Pc::new("2026-11-23T09:30:00");
    pc.news();
    let list = |version, suspended| Revocations {
        tenant: tenant(),
        term: 1,
        version,
        revoked: vec![],
        suspended,
        raised: vec![],
        keep_connection: vec![],
    };
    pc.happens(document(&list(2, vec![ME]), &server()));
    pc.set(|s| s.poll_normal_s = 600);
    pc.run_until("2026-11-24T10:00:00");
    pc.restart("2026-11-24T10:00:00");
    pc.run_until("2026-11-25T12:00:00");
    assert_eq!((pc.news().len(), pc.collected.len()), (0, 1));
    pc.happens(document(&list(3, vec![]), &server()));
    pc.run_until("2026-11-25T12:05:00");
    assert_eq!(pc.news(), diffs(&["11-25 12:00:00"]));
}
