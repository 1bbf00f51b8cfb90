//! Orders: who runs what, once.

use super::*;
use crate::decide::{Counted, JOBS_AT_ONCE, OPEN_MAX, TAKEN_WAITS_MS};
use branchline_protocol::{job::End, record::Alert};

fn alerts(disk: &Disk) -> Vec<Alert> {
    disk.records(class::ALERT).iter().map(|r| rmp_serde::from_slice(&r.body).unwrap()).collect()
}

fn only_result(bench: &Bench) -> JobResult {
    let results = bench.disk.results();
    assert_eq!(results.len(), 1, "{results:?}");
    results[0].clone()
}

#[test]
fn job_13_nothing_is_started_or_acknowledged_before_the_intent_is_durable() {
    let mut bench = Bench::running();
    let before = bench.deliver(vec![script_order(1)]);
    assert!(starts(&before).is_empty() && taken(&before).is_empty() && releases(&before) == 0, "{before:?}");
    let after = bench.commit();
    assert!(releases(&after) > 0);
    let [start] = starts(&after)[..] else { panic!("{after:?}") };
    assert_eq!(start.env["BRANCHLINE_DEVICE"], ME.to_string());
    assert_eq!(start.env["BRANCHLINE_AGENT_PID"], "4242");
    assert_eq!(start.trace, TraceId(Uuid::from_u128(1_001)));
    assert_eq!(bench.disk.keys(Table::Journal).len(), 1);
    assert_eq!(known_taken(&mut bench, &after), [1]);
}

#[test]
fn the_word_that_an_order_was_taken_waits_for_a_short_jobs_result_and_no_longer_than_it_may() {
    let mut bench = Bench::running();
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1), script_order(2)])));
    assert_eq!(taken(&effects), [0u64; 0]);
    bench.pass(TAKEN_WAITS_MS - 1);
    assert_eq!(bench.core.next_deadline(bench.now), Some(bench.now.mono.plus(1)));
    let effects = bench.settle(ended(1, finished(0)));
    assert_eq!((sent(&effects).len(), taken(&effects)), (1, vec![]), "the result says it");
    assert_eq!(taken(&bench.settle(Event::Tick)), [0u64; 0]);
    bench.pass(1);
    assert_eq!(taken(&bench.settle(Event::Tick)), [2], "this one takes longer");
    // What was taken on a link that is gone is said when it is offered again.
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(3)])));
    bench.settle(Event::Down);
    bench.connect(None);
    bench.pass(TAKEN_WAITS_MS);
    assert_eq!(taken(&bench.settle(Event::Tick)), [0u64; 0]);
    assert_eq!(taken(&bench.settle(message(Lane::Work, Message::Orders(vec![script_order(3)])))), [3]);
}

#[test]
fn a_poll_says_at_once_what_it_has_taken_also_when_it_was_none_before() {
    let lease = Lease { interval_ms: 60_000, phase_ms: 1, waiter: 0 };
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    assert_eq!(taken(&bench.settle(Event::Lease(lease))), [1]);
    bench.settle(Event::Down);
    bench.connect(Some(lease));
    assert_eq!(taken(&bench.settle(message(Lane::Work, Message::Orders(vec![script_order(2)])))), [2]);
}

#[test]
fn job_13_the_same_order_delivered_twice_runs_once() {
    let mut bench = Bench::running();
    let first = bench.deliver(vec![script_order(1), script_order(1)]);
    let again = bench.deliver(vec![script_order(1)]);
    assert!(taken(&first).is_empty() && taken(&again).is_empty(), "not even the repetition is acknowledged too early");
    let all = bench.commit_all();
    assert_eq!(starts(&all).len(), 1);
    bench.settle(ended(1, finished(0)));
    let late = bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    assert_eq!((starts(&late).len(), taken(&late)), (0, vec![1]), "taken again, run never again");
    bench.crash();
    bench.wake();
    bench.connect(None);
    let later = bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    assert_eq!((starts(&later).len(), taken(&later)), (0, vec![1]));
    assert_eq!(bench.disk.results().len(), 1);
}

#[test]
fn job_13_the_result_and_its_journal_row_are_one_batch() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    let before = bench.event(ended(1, finished(0)));
    assert!(sent(&before).is_empty() && !before.contains(&Effect::RemoveJob(number(1))));
    assert_eq!(bench.pending.len(), 1);
    let tables: Vec<Table> = bench.pending[0]
        .0
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::Put { table, .. } => Some(*table),
            _ => None,
        })
        .collect();
    assert!(tables.contains(&Table::Journal) && tables.contains(&Table::Spool));
    let after = bench.commit();
    assert!(after.contains(&Effect::RemoveJob(number(1))));
    let records = sent(&after);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].1.trace, Some(TraceId(Uuid::from_u128(1_001))), "OPS-9: the order's trace");
    let result = only_result(&bench);
    assert_eq!((result.end, result.exit_code, &result.stdout[..]), (End::Succeeded, Some(0), &b"out"[..]));
}

#[test]
fn job_13_after_a_crash_an_intent_is_looked_at_and_never_started() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    bench.crash();
    let effects = bench.wake();
    assert!(starts(&effects).is_empty());
    assert!(effects.contains(&Effect::Resume(number(1))));
    assert!(effects.contains(&Effect::KeepJobs(vec![number(1)])));
    bench.settle(ended(1, JobLeft::Cut));
    let result = only_result(&bench);
    assert_eq!((result.end, result.reason.as_deref()), (End::OutcomeUnknown, Some("cut")));
}

#[test]
fn job_13_what_was_received_and_not_begun_is_begun_after_a_crash() {
    let mut bench = Bench::running();
    let mut later = payload(1, RUN_SCRIPT, &script());
    later.not_before = Millis(START + 5_000);
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![sign(later, script(), mine(), &server())])));
    assert_eq!((known_taken(&mut bench, &effects), starts(&effects).len()), (vec![1], 0));
    assert_eq!(bench.core.next_deadline(bench.now), Some(bench.now.mono.plus(5_000 - TAKEN_WAITS_MS)));
    bench.crash();
    assert!(starts(&bench.wake()).is_empty());
    bench.pass(4_999 - TAKEN_WAITS_MS);
    assert!(starts(&bench.settle(Event::Tick)).is_empty());
    bench.pass(1);
    assert_eq!(starts(&bench.settle(Event::Tick)).len(), 1);
}

#[test]
fn a_fresh_executor_takes_over_what_the_broken_one_had() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    bench.deliver(vec![script_order(2)]);
    let effects = bench.settle(Event::ExecutorUp);
    assert!(effects.contains(&Effect::Resume(number(1))), "it was given to the broken one");
    assert!(!effects.contains(&Effect::Resume(number(2))));
    assert_eq!(starts(&effects).len(), 1, "and this one was not");
}

#[test]
fn rly_13_an_order_of_a_stranger_is_counted_and_told_and_never_runs() {
    let mut bench = Bench::running();
    let forged = sign(payload(1, RUN_SCRIPT, &script()), script(), mine(), &Signer::from_seed(&[66; 32]));
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![forged.clone(), forged])));
    assert_eq!(effects.iter().filter(|e| **e == Effect::Count(Counted::OrderRefused)).count(), 2);
    assert!(starts(&effects).is_empty() && taken(&effects).is_empty() && bench.disk.results().is_empty());
    assert!(releases(&effects) > 0, "its credit is given back");
    assert_eq!(alerts(&bench.disk).len(), 1, "one alert a minute");
    assert_eq!(alerts(&bench.disk)[0].code, "order_refused");
    let genuine = bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    assert_eq!(starts(&genuine).len(), 1, "the server's own order of that number still runs");
}

#[test]
fn job_15_an_altered_order_never_runs_and_is_refused_where_the_server_signed_it() {
    type Alter = fn(&mut OrderMessage);
    let altered: [(&str, Alter, bool); 5] = [
        ("arguments", |m| m.args = refresh(true), true),
        ("target", |m| m.proof.leaves[0].1.device = NodeId(Uuid::from_u128(5)), false),
        ("proof", |m| m.proof.siblings[0] = Hash::of(b"x"), true),
        (
            "expiry",
            |m| {
                let mut payload: Payload = rmp_serde::from_slice(&m.envelope.payload).unwrap();
                payload.fetch_by = Millis(i64::MAX);
                m.envelope.payload = rmp_serde::to_vec_named(&payload).unwrap().into();
            },
            false,
        ),
        (
            "kind",
            |m| {
                let mut payload: Payload = rmp_serde::from_slice(&m.envelope.payload).unwrap();
                payload.verb = REFRESH_INVENTORY.into();
                m.envelope.payload = rmp_serde::to_vec_named(&payload).unwrap().into();
            },
            false,
        ),
    ];
    for (what, alter, attributed) in altered {
        let mut bench = Bench::running();
        let mut message_of = script_order(1);
        alter(&mut message_of);
        let effects = bench.settle(message(Lane::Work, Message::Orders(vec![message_of])));
        assert!(starts(&effects).is_empty(), "{what}");
        assert!(!effects.iter().any(|e| matches!(e, Effect::Collect(_))), "{what}");
        assert_eq!(alerts(&bench.disk).len(), 1, "{what}");
        if attributed {
            let result = only_result(&bench);
            assert_eq!((result.end, result.reason.as_deref()), (End::Refused, Some("bad_signature")), "{what}");
        } else {
            assert!(bench.disk.results().is_empty(), "{what}: it cannot be said whose order this is");
        }
    }
}

#[test]
fn an_order_for_an_earlier_life_of_this_device_does_not_run() {
    let mut bench = Bench::running();
    let leaf = Leaf { device: ME, epoch: 1 };
    let other = sign(payload(1, RUN_SCRIPT, &script()), script(), leaf, &server());
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![other])));
    assert_eq!((starts(&effects).len(), known_taken(&mut bench, &effects)), (0, vec![1]));
    let result = only_result(&bench);
    assert_eq!((result.end, result.reason.as_deref()), (End::OutcomeUnknown, Some("rolled_back")));
}

#[test]
fn an_order_is_journalled_at_its_last_instant_and_not_one_past_it() {
    // Without a statement there is no last instant: this machine's clock may be anything.
    for (past, stated, runs) in [(0, true, 1), (1, true, 0), (1, false, 1)] {
        let mut bench = Bench::running();
        if stated {
            bench.settle(document(&super::documents::statement(1, START, 0), &server()));
        }
        bench.now.node = Millis(START + 3_600_000 + past);
        let effects = bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
        assert_eq!((starts(&effects).len(), known_taken(&mut bench, &effects).len()), (runs, runs));
        assert_eq!(effects.contains(&Effect::Count(Counted::OrderLate)), runs == 0);
        assert_eq!(bench.disk.results().len(), 0);
    }
}

#[test]
fn top_14_an_unknown_verb_and_a_missing_capability_are_unsupported() {
    let mut bench = Bench::running();
    bench.core.me.capabilities = vec![RUN_SCRIPT.into()];
    let orders = vec![order(1, "lock", Bytes::new()), order(2, REFRESH_INVENTORY, refresh(false))];
    let effects = bench.settle(message(Lane::Work, Message::Orders(orders)));
    assert_eq!(known_taken(&mut bench, &effects), [1, 2]);
    let told: Vec<_> = bench.disk.results().into_iter().map(|r| (r.end, r.reason.unwrap())).collect();
    let unsupported = |capability: &str| (End::Unsupported, format!("{capability}, linux"));
    assert_eq!(told, [unsupported("lock"), unsupported("refresh_inventory")]);
}

#[test]
fn arguments_that_cannot_be_read_are_refused() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![order(1, RUN_SCRIPT, Bytes::from_static(b"\xc1"))])));
    let result = only_result(&bench);
    assert_eq!((result.end, result.reason.as_deref()), (End::Refused, Some("malformed")));
}

#[test]
fn four_jobs_run_at_once_and_the_fifth_follows_the_first_end() {
    let mut bench = Bench::running();
    let count = JOBS_AT_ONCE as u64;
    let orders = (1..=count + 1).map(script_order).collect();
    let effects = bench.settle(message(Lane::Work, Message::Orders(orders)));
    assert_eq!(known_taken(&mut bench, &effects).len(), JOBS_AT_ONCE + 1);
    assert_eq!(starts(&effects).len(), JOBS_AT_ONCE);
    let after = bench.settle(ended(2, finished(0)));
    assert_eq!(starts(&after).iter().map(|s| s.order.number).collect::<Vec<_>>(), [count + 1]);
}

#[test]
fn open_orders_are_bounded_and_one_more_stays_with_the_parent() {
    let mut bench = Bench::running();
    let later = |n| {
        let mut later = payload(n, RUN_SCRIPT, &script());
        later.not_before = Millis(START + 50_000);
        sign(later, script(), mine(), &server())
    };
    let effects = bench.settle(message(Lane::Work, Message::Orders((1..=OPEN_MAX as u64).map(later).collect())));
    assert_eq!(known_taken(&mut bench, &effects).len(), OPEN_MAX);
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![later(9_999)])));
    assert!(taken(&effects).is_empty() && effects.contains(&Effect::Count(Counted::OrderLeft)));
    assert!(releases(&effects) > 0);
    assert_eq!(bench.disk.keys(Table::Journal).len(), OPEN_MAX);
}

#[test]
fn with_the_disk_nearly_full_an_order_stays_with_the_parent() {
    let mut bench = Bench::running();
    bench.settle(Event::LowSpace(true));
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    assert!(taken(&effects).is_empty() && starts(&effects).is_empty());
    bench.settle(Event::LowSpace(false));
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    assert_eq!(starts(&effects).len(), 1);
}

#[test]
fn job_9_every_end_of_a_job_has_its_result() {
    let status = |ended| Status { ended, ..Status::not_started(SpawnFault::NotFound, None) };
    let left = |ended| JobLeft::Finished(status(ended), Bytes::new(), Bytes::new());
    let cases = [
        (left(Ended::Exited(0)), End::Succeeded, None, Some(0)),
        (left(Ended::Exited(3)), End::Failed, Some("exit_code"), Some(3)),
        (left(Ended::Signalled(9)), End::Failed, Some("signal 9"), None),
        (left(Ended::TimedOut), End::Failed, Some("time_out"), None),
        (left(Ended::NotStarted(SpawnFault::NotFound)), End::Failed, Some("not_found"), None),
        (left(Ended::NotStarted(SpawnFault::Interpreter)), End::Unsupported, Some("interpreter, linux"), None),
        (JobLeft::Cut, End::OutcomeUnknown, Some("cut"), None),
    ];
    for (left, end, reason, exit_code) in cases {
        let mut bench = Bench::running();
        bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
        bench.settle(ended(1, left));
        let result = only_result(&bench);
        assert_eq!((result.end, result.reason.as_deref(), result.exit_code), (end, reason, exit_code));
    }
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    let (order, reason) = (number(1), "not_started".to_owned());
    bench.settle(Event::JobNotStarted { order, end: End::Failed, reason });
    assert_eq!(only_result(&bench).reason.as_deref(), Some("not_started"));
}

#[test]
fn the_orders_bounds_lower_what_its_arguments_ask_for() {
    let mut bench = Bench::running();
    let run = Runnable::Argv(vec!["true".into()]);
    let args = RunScript { run, time_out_ms: u64::MAX, output_cap: u64::MAX };
    let args: Bytes = rmp_serde::to_vec_named(&args).unwrap().into();
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![order(1, RUN_SCRIPT, args)])));
    let start = starts(&effects)[0];
    assert_eq!(start.args.time_out_ms, 60_000, "the order's run_ms_max");
    assert_eq!(start.args.output_cap, crate::decide::OUTPUT_CAP_MAX);
}

#[test]
fn an_urgent_order_reports_on_the_urgent_lane_and_goes_first() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders((1..=4).map(script_order).collect())));
    let mut urgent = payload(9, RUN_SCRIPT, &script());
    urgent.class = Class::Urgent;
    let orders = vec![script_order(5), sign(urgent, script(), mine(), &server())];
    bench.settle(message(Lane::Work, Message::Orders(orders)));
    let after = bench.settle(ended(1, finished(0)));
    assert_eq!(starts(&after)[0].order, number(9));
    let records = sent(&bench.settle(ended(9, finished(0))));
    assert_eq!(records[0].0, Lane::Urgent);
}

#[test]
fn a_job_that_runs_two_seconds_has_one_progress_record() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    bench.pass(TAKEN_WAITS_MS);
    bench.settle(Event::Tick);
    assert_eq!(bench.core.next_deadline(bench.now), Some(bench.now.mono.plus(2_000 - TAKEN_WAITS_MS)));
    bench.pass(1_999 - TAKEN_WAITS_MS);
    bench.settle(Event::Tick);
    assert!(bench.disk.records(class::PROGRESS).is_empty());
    bench.pass(1);
    bench.settle(Event::Tick);
    bench.pass(60_000);
    bench.settle(Event::Tick);
    assert_eq!(bench.disk.records(class::PROGRESS).len(), 1);
    let later = bench.core.next_deadline(bench.now).map(|due| due.since(bench.now.mono));
    assert!(later.is_some_and(|ms| ms > 200_000), "only the next head's and the schedule's: {later:?}");
    bench.crash();
    bench.wake();
    bench.pass(60_000);
    bench.settle(Event::Tick);
    assert_eq!(bench.disk.records(class::PROGRESS).len(), 1, "remembered over a restart");
}

/// What people are shown: the machine's clock, unless it is behind what is proven; and no end before its beginning.
#[test]
fn a_result_is_dated_by_the_machines_clock_unless_it_is_behind_what_is_proven() {
    const HOUR: i64 = 3_600_000;
    // The clock's distance from node time at the start and at the end; start and end as shown, from node time's start.
    let cases = [(0, 0, 0, 10), (HOUR, HOUR, HOUR, HOUR + 10), (-HOUR, -HOUR, 0, 10), (HOUR, 0, HOUR, HOUR)];
    for (at_start, at_end, started, over) in cases {
        let mut bench = Bench::running();
        bench.now.wall = bench.now.node.plus(at_start);
        bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
        let begun_at = bench.now.wall;
        bench.pass(10);
        bench.now.wall = bench.now.node.plus(at_end);
        let status = Status {
            ended: Ended::Exited(0),
            started_at: (at_start == at_end).then_some(begun_at),
            ..Status::not_started(SpawnFault::NotFound, Some(bench.now.wall))
        };
        bench.settle(ended(1, JobLeft::Finished(status, Bytes::new(), Bytes::new())));
        let told = &bench.disk.results()[0];
        let from = Millis(START);
        let shown = (told.started_at.map(|at| at.0 - from.0), told.ended_at.0 - from.0);
        assert_eq!(shown, (Some(started), over), "{at_start} {at_end}");
    }
}
