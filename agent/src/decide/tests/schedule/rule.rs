//! The 09:00 rule, case by case (INV-2, S-9). 23 November 2026 is a Monday.

use super::*;

/// A device whose previous start was then, and that was switched off at once.
fn after(previous: &str) -> Pc {
    let mut pc = Pc::new(previous);
    assert_eq!(pc.news().len(), 1);
    pc.bench.settle(Event::Down);
    pc
}

#[test]
fn s_9_a_exactly_24_hours_after_the_previous_start_it_sends_at_the_start() {
    let mut pc = after("2026-11-23T08:00:00");
    pc.start("2026-11-24T08:00:00");
    assert_eq!(pc.times(), [("11-24 08:00:00".to_string(), "11-24 08:00:00".to_string())]);
    pc.run_until("2026-11-24T23:59:59");
    assert!(pc.news().is_empty(), "that was this day's");
}

#[test]
fn s_9_b_a_start_within_24_hours_before_09_00_sends_at_09_00() {
    let mut pc = after("2026-11-23T08:30:00");
    pc.start("2026-11-24T08:00:00");
    pc.run_until("2026-11-24T08:59:59");
    assert!(pc.news().is_empty() && pc.collected.len() == 1, "nothing is even collected before");
    pc.run_until("2026-11-24T23:59:59");
    let times = pc.times();
    assert_eq!(times.len(), 1);
    assert_eq!(times[0].0, "11-24 09:00:00");
    assert!(("11-24 09:00:00"..="11-24 09:05:00").contains(&&*times[0].1), "{times:?}");
}

#[test]
fn s_9_b_with_the_server_away_it_is_collected_at_09_00_and_sent_at_contact() {
    let mut pc = after("2026-11-23T08:30:00");
    pc.start_offline("2026-11-24T08:00:00");
    pc.run_until("2026-11-24T15:30:00");
    assert!(pc.news().is_empty());
    pc.connect();
    assert_eq!(pc.times(), [("11-24 09:00:00".to_string(), "11-24 15:30:00".to_string())]);
}

#[test]
fn s_9_c_a_start_before_09_00_after_a_late_one_waits_for_09_00() {
    let mut pc = after("2026-11-23T10:00:00");
    pc.start("2026-11-24T07:00:00");
    pc.run_until("2026-11-24T23:59:59");
    assert_eq!(pc.news(), diffs(&["11-24 09:00:00"]));
}

#[test]
fn s_9_d_after_a_weekend_it_sends_at_the_start() {
    let mut pc = after("2026-11-20T08:00:00");
    pc.start("2026-11-23T07:00:00");
    pc.run_until("2026-11-23T23:59:59");
    assert_eq!(pc.news(), diffs(&["11-23 07:00:00"]));
}

#[test]
fn s_9_e_a_start_at_exactly_09_00_counts_as_after() {
    for previous in ["2026-11-20T08:00:00", "2026-11-23T10:00:00", "2026-11-24T08:59:59"] {
        let mut pc = after(previous);
        pc.start("2026-11-24T09:00:00");
        assert_eq!(pc.times(), [("11-24 09:00:00".to_string(), "11-24 09:00:00".to_string())], "{previous}");
        pc.run_until("2026-11-24T23:59:59");
        assert!(pc.news().is_empty(), "{previous}");
    }
}

#[test]
fn s_9_f_each_start_after_09_00_sends() {
    let mut pc = after("2026-11-24T12:00:00");
    pc.start("2026-11-24T13:00:00");
    assert_eq!(pc.news(), diffs(&["11-24 13:00:00"]));
    pc.bench.settle(Event::Down);
    pc.start("2026-11-24T13:00:01");
    assert_eq!(pc.news(), diffs(&["11-24 13:00:01"]));
}

#[test]
fn s_9_g_switched_off_before_09_00_it_sends_nothing_that_day() {
    let mut pc = after("2026-11-23T08:30:00");
    pc.start("2026-11-24T08:00:00");
    pc.run_until("2026-11-24T08:45:00");
    pc.start("2026-11-25T07:00:00");
    assert!(pc.news().is_empty(), "nothing on Tuesday, and less than 24 hours passed");
    pc.run_until("2026-11-25T12:00:00");
    assert_eq!(pc.news(), diffs(&["11-25 09:00:00"]));
}

#[test]
fn s_9_h_the_first_start_ever_sends_everything_at_once() {
    let mut pc = Pc::new("2026-11-24T06:00:00");
    assert_eq!(pc.news(), [(ReportKind::Full, "11-24 06:00:00".to_string())]);
    pc.run_until("2026-11-24T23:59:59");
    assert!(pc.news().is_empty());
}

#[test]
fn s_9_unchanged_content_is_an_empty_difference() {
    let mut pc = after("2026-11-24T12:00:00");
    pc.start("2026-11-24T13:00:00");
    assert!(pc.sent[0].report.changes.is_empty());
    pc.packages = 2;
    pc.start("2026-11-24T14:00:00");
    assert_eq!(pc.sent[1].report.changes.len(), 1);
}

#[test]
fn inv_2_a_millisecond_short_of_24_hours_is_less_and_24_hours_are_not() {
    for (short_ms, sends) in [(1, 0), (0, 1)] {
        let mut pc = after("2026-11-23T08:00:00");
        pc.sleep_until("2026-11-24T07:59:00");
        pc.bench.pass(60_000 - short_ms);
        pc.bench.crash();
        pc.starts += 1;
        pc.surroundings();
        let effects = pc.bench.wake();
        pc.absorb(effects);
        pc.connect();
        assert_eq!(pc.news().len(), sends, "{short_ms} ms short");
    }
}

#[test]
fn inv_3_a_device_that_stays_on_sends_at_each_09_00() {
    let mut pc = Pc::new("2026-11-23T08:30:00");
    pc.news();
    pc.run_until("2026-11-27T08:59:59");
    assert_eq!(pc.news(), diffs(&["11-24 09:00:00", "11-25 09:00:00", "11-26 09:00:00"]));
}

#[test]
fn inv_3_what_was_missed_is_caught_up_at_the_next_start_if_settings_say_so() {
    let mut pc = after("2026-11-23T08:30:00");
    pc.start("2026-11-24T08:00:00");
    pc.set(|s| s.catch_up_missed = true);
    pc.run_until("2026-11-24T08:45:00");
    pc.start("2026-11-24T08:50:00");
    assert!(pc.news().is_empty(), "nothing is missed yet");
    pc.run_until("2026-11-24T08:55:00");
    pc.start("2026-11-25T07:00:00");
    assert_eq!(pc.news(), diffs(&["11-25 07:00:00"]), "Tuesday's, at the next start");
    pc.run_until("2026-11-25T12:00:00");
    assert_eq!(pc.news(), diffs(&["11-25 09:00:00"]), "Wednesday has its own");
}

/// The wait for 09:00, the collection and the wait for its own moment each outlive the agent's process.
#[test]
fn inv_2_an_agent_started_again_goes_on_where_it_was() {
    let mut pc = after("2026-11-23T08:30:00");
    pc.start("2026-11-24T08:00:00");
    for at in ["2026-11-24T08:10:00", "2026-11-24T08:59:59"] {
        pc.restart(at);
        assert!(pc.news().is_empty(), "{at}: the machine did not start");
    }
    pc.restart("2026-11-24T09:00:30");
    pc.run_until("2026-11-24T09:10:00");
    assert_eq!(pc.news(), diffs(&["11-24 09:00:30"]), "it was on at 09:00");
    for at in ["2026-11-24T09:30:00", "2026-11-24T13:00:00"] {
        pc.restart(at);
        pc.run_until("2026-11-24T13:00:00");
        assert!(pc.news().is_empty(), "{at}: this day's is sent");
    }
    pc.run_until("2026-11-25T12:00:00");
    assert_eq!(pc.news(), diffs(&["11-25 09:00:00"]));
}

#[test]
fn inv_2_a_collection_cut_by_a_crash_is_made_again_and_only_once() {
    let mut pc = after("2026-11-22T08:00:00");
    // The machine starts, and the agent dies while it collects.
    pc.starts += 1;
    pc.sleep_until("2026-11-24T08:00:00");
    pc.bench.crash();
    pc.bench.settle(Event::Surroundings { zone: tokyo(), boot: format!("life {}", pc.starts) });
    let effects = pc.bench.wake();
    assert!(effects.iter().any(|e| matches!(e, Effect::Collect(_))));
    pc.bench.event(Event::Collected(snapshot(1)));
    pc.restart("2026-11-24T08:00:10");
    assert_eq!(pc.news(), diffs(&["11-24 08:00:10"]), "before 09:00, and not put off");
    pc.restart("2026-11-24T08:00:20");
    pc.run_until("2026-11-24T23:00:00");
    assert!(pc.news().is_empty());
}

#[test]
fn inv_2_all_devices_send_their_09_00_within_five_minutes_and_not_together() {
    let mut moments = std::collections::BTreeSet::new();
    for openings in 0..40 {
        let mut pc = after("2026-11-23T08:30:00");
        pc.bench.openings += openings;
        pc.start("2026-11-24T08:00:00");
        pc.run_until("2026-11-24T09:00:00");
        assert_eq!(pc.collected.last().unwrap(), "11-24 09:00:00");
        pc.run_until("2026-11-24T10:00:00");
        let times = pc.times();
        assert!(times.len() == 1 && times[0].1.as_str() <= "11-24 09:05:00", "{times:?}");
        moments.insert(times[0].1.clone());
    }
    assert!(moments.len() > 30, "{moments:?}");
}

#[test]
fn inv_2_a_report_that_waits_is_on_disk_and_goes_before_a_later_one() {
    let mut pc = after("2026-11-23T08:30:00");
    pc.start("2026-11-24T08:00:00");
    // Straight to 09:00, so that nothing is due of what is held.
    pc.run_until("2026-11-24T09:00:00");
    let waits = pc.bench.core.next_deadline(pc.bench.now).unwrap().since(pc.bench.now.mono);
    assert!((1..=INVENTORY_SPREAD_MS).contains(&waits), "{waits}");
    let mut copy = Pc { bench: Bench { disk: pc.bench.disk.clone(), ..Bench::new() }, ..Pc::off() };
    (copy.bench.now, copy.bench.openings, copy.starts) = (pc.bench.now, pc.bench.openings, pc.starts);
    copy.restart("2026-11-24T09:00:00");
    assert_eq!(copy.news(), diffs(&["11-24 09:00:00"]), "a restart sends it");
    pc.packages = 2;
    pc.bench.pass(1);
    let asked = pc.refresh_order();
    pc.happens(asked);
    let orders: Vec<_> = pc.sent.iter().map(|s| (s.report.order.is_some(), s.report.changes.len())).collect();
    assert_eq!(orders, [(false, 0), (true, 1)], "differences follow one another");
    pc.run_until("2026-11-24T23:00:00");
    assert_eq!(pc.news().len(), 2);
}
