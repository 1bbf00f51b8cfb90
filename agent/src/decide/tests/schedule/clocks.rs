//! Clocks that are set, zones that change, and the other schedules (INV-3, INV-8).

use super::*;

fn new_york() -> TimeZone {
    TimeZone::fixed(jiff::tz::offset(-5))
}

#[test]
fn inv_3_a_clock_set_back_brings_no_second_09_00_of_that_date() {
    let mut pc = Pc::new("2026-11-23T08:30:00");
    pc.run_until("2026-11-24T10:00:00");
    pc.news();
    pc.set_clock("2026-11-24T07:00:00");
    pc.run_until("2026-11-24T23:00:00");
    assert!(pc.news().is_empty(), "Tuesday had its own");
    pc.set_clock("2026-11-23T08:00:00");
    pc.run_until("2026-11-24T23:00:00");
    assert!(pc.news().is_empty(), "so had Monday");
    pc.run_until("2026-11-25T10:00:00");
    assert_eq!(pc.sent.len(), 1, "and Wednesday gets its own");
}

#[test]
fn inv_3_a_clock_that_was_years_ahead_holds_nothing_up() {
    // Tuesday has no 09:00 of its own; by the daily rule it is made up for.
    for (schedule, sent) in [("daily", 2), ("monthly 25 09:00", 1), ("cron 0 9 * * *", 1)] {
        let mut pc = Pc::new("2026-11-23T08:30:00");
        pc.set(|s| s.schedule = schedule.parse().unwrap());
        pc.run_until("2026-11-23T12:00:00");
        pc.set_clock("2041-01-25T12:00:00");
        pc.run_until("2041-01-25T13:00:00");
        pc.set_clock("2026-11-24T12:00:00");
        pc.news();
        pc.run_until("2026-11-25T10:00:00");
        assert_eq!(pc.sent.len(), sent, "{schedule}");
    }
}

#[test]
fn inv_3_a_change_of_zone_brings_at_most_one_09_00_of_a_local_date() {
    let mut pc = Pc::new("2026-11-23T08:30:00");
    pc.run_until("2026-11-24T09:10:00");
    assert_eq!(pc.news().len(), 2);
    // 19:10 of the day before: that date had its own.
    pc.zone = new_york();
    pc.surroundings();
    pc.run_until("2026-11-24T23:00:00");
    assert!(pc.news().is_empty(), "Tuesday's 09:00 comes again and is sent once");
    pc.run_until("2026-11-25T10:00:00");
    assert_eq!(pc.news(), diffs(&["11-25 09:00:00"]));
    pc.zone = tokyo();
    pc.surroundings();
    pc.run_until("2026-11-26T08:59:59");
    assert!(pc.news().is_empty(), "in Tokyo it is the 26th, before 09:00");
    pc.run_until("2026-11-26T10:00:00");
    assert_eq!(pc.news(), diffs(&["11-26 09:00:00"]));
}

#[test]
fn inv_3_a_machine_that_slept_over_09_00_sends_when_it_wakes() {
    let mut pc = Pc::new("2026-11-23T08:30:00");
    pc.news();
    pc.run_until("2026-11-23T18:00:00");
    // Asleep: the wall clock goes on, the monotonic one does not.
    pc.set_clock("2026-11-24T10:30:00");
    pc.run_until("2026-11-24T18:00:00");
    assert_eq!(pc.sent.len(), 1);
    pc.set_clock("2026-11-26T08:00:00");
    pc.run_until("2026-11-26T08:59:59");
    assert_eq!(pc.sent.len(), 1, "a date that is over is over");
}

#[test]
fn inv_2_the_hour_is_the_settings_own_and_its_change_is_not_for_what_is_past() {
    let mut pc = Pc::new("2026-11-23T08:30:00");
    pc.set(|s| s.inventory_hour = 11);
    pc.news();
    pc.run_until("2026-11-24T10:00:00");
    assert!(pc.news().is_empty());
    pc.set(|s| s.inventory_hour = 7);
    pc.run_until("2026-11-25T06:59:59");
    assert!(pc.news().is_empty(), "07:00 of that day was over");
    pc.run_until("2026-11-25T12:00:00");
    assert_eq!(pc.news(), diffs(&["11-25 07:00:00"]));
    pc.start("2026-11-25T12:00:01");
    pc.news();
    pc.start("2026-11-26T06:59:59");
    assert!(pc.news().is_empty(), "before the hour");
    pc.start("2026-11-26T07:00:00");
    assert_eq!(pc.news(), diffs(&["11-26 07:00:00"]));
}

#[test]
fn inv_8_monthly_day_3_runs_on_day_3_and_a_start_of_the_machine_sends_nothing() {
    let mut pc = Pc::new("2026-05-20T08:00:00");
    pc.set(|s| s.schedule = "monthly 3 10:00".parse().unwrap());
    pc.news();
    for start in ["2026-05-28T12:00:00", "2026-06-03T09:00:00"] {
        pc.start(start);
    }
    assert!(pc.news().is_empty());
    pc.run_until("2026-07-20T00:00:00");
    assert_eq!(pc.news(), diffs(&["06-03 10:00:00", "07-03 10:00:00"]));
}

#[test]
fn inv_8_day_31_runs_on_the_30th_of_june() {
    let mut pc = Pc::new("2026-05-20T08:00:00");
    pc.set(|s| s.schedule = "monthly 31 10:00".parse().unwrap());
    pc.news();
    pc.run_until("2026-08-01T00:00:00");
    assert_eq!(pc.news(), diffs(&["05-31 10:00:00", "06-30 10:00:00", "07-31 10:00:00"]));
}

#[test]
fn inv_8_a_cron_schedule_runs_in_the_devices_own_time() {
    let mut pc = Pc::new("2026-11-23T08:00:00");
    pc.set(|s| s.schedule = "cron 30 6,18 * * mon-fri".parse().unwrap());
    pc.news();
    pc.run_until("2026-11-24T12:00:00");
    assert_eq!(pc.news(), diffs(&["11-23 18:30:00", "11-24 06:30:00"]));
    pc.zone = new_york();
    pc.surroundings();
    pc.run_until("2026-11-24T12:00:00");
    assert_eq!(pc.news(), diffs(&["11-24 06:30:00"]), "06:30 there is another instant");
}

#[test]
fn inv_8_a_monthly_start_missed_while_off_is_made_up_only_if_settings_say_so() {
    for (catch_up, made) in [(false, 0), (true, 1)] {
        let mut pc = Pc::new("2026-05-20T08:00:00");
        pc.set(|s| {
            s.schedule = "monthly 3 10:00".parse().unwrap();
            s.catch_up_missed = catch_up;
        });
        pc.run_until("2026-06-03T09:00:00");
        pc.news();
        pc.start("2026-06-05T15:00:00");
        assert_eq!(pc.news().len(), made);
        pc.start("2026-06-06T15:00:00");
        assert!(pc.news().is_empty());
        pc.run_until("2026-07-03T12:00:00");
        assert_eq!(pc.news(), diffs(&["07-03 10:00:00"]));
    }
}

#[test]
fn inv_8_an_agent_that_was_down_while_the_machine_ran_makes_it_late_and_once() {
    let mut pc = Pc::new("2026-06-03T08:00:00");
    pc.set(|s| s.schedule = "monthly 3 10:00".parse().unwrap());
    pc.news();
    pc.restart("2026-06-03T10:20:00");
    pc.run_until("2026-06-03T11:00:00");
    assert_eq!(pc.news(), diffs(&["06-03 10:20:00"]));
    pc.restart("2026-06-03T11:00:00");
    pc.set_clock("2026-06-03T09:00:00");
    pc.run_until("2026-06-03T23:00:00");
    assert!(pc.news().is_empty());
}

#[test]
fn inv_8_another_schedule_counts_from_now_on() {
    let mut pc = Pc::new("2026-11-23T08:30:00");
    pc.run_until("2026-11-24T10:00:00");
    pc.news();
    pc.set(|s| s.schedule = "monthly 24 12:00".parse().unwrap());
    pc.run_until("2026-11-24T13:00:00");
    assert_eq!(pc.news(), diffs(&["11-24 12:00:00"]), "the day's 09:00 was another schedule's");
    pc.set(|s| s.schedule = "daily".parse().unwrap());
    pc.run_until("2026-11-25T08:00:00");
    assert!(pc.news().is_empty(), "09:00 was over");
    pc.run_until("2026-11-25T10:00:00");
    assert_eq!(pc.news(), diffs(&["11-25 09:00:00"]));
}
