//! Cancelled, and late: whichever is journalled first counts, whatever crashes.

use super::*;
use branchline_protocol::{
    document::Revocations,
    job::{CANCEL, Cancel, End, cancel},
    record::{Fact, Facts},
};

pub fn cancel_of(n: u64, target: u64) -> OrderMessage {
    let args: Bytes = rmp_serde::to_vec_named(&Cancel { target: number(target) }).unwrap().into();
    let payload = Payload { class: Class::Urgent, run_ms_max: 0, ..payload(n, CANCEL, &args) };
    sign(payload, args, mine(), &server())
}

fn give(bench: &mut Bench, order: OrderMessage) -> Vec<Effect> {
    bench.settle(message(Lane::Urgent, Message::Orders(vec![order])))
}

fn told(bench: &Bench, n: u64) -> Vec<(End, Option<String>)> {
    let results = bench.disk.results().into_iter().filter(|r| r.order == number(n));
    results.map(|r| (r.end, r.reason)).collect()
}

fn word(word: &str) -> Vec<(End, Option<String>)> {
    vec![(End::Succeeded, Some(word.to_owned()))]
}

fn killed() -> JobLeft {
    let JobLeft::Finished(status, out, err) = finished(0) else { unreachable!() };
    JobLeft::Finished(Status { ended: Ended::Signalled(9), cancelled: true, ..status }, out, err)
}

#[test]
fn job_14_what_is_cancelled_before_it_came_never_runs() {
    let mut bench = Bench::running();
    let before = bench.deliver(vec![cancel_of(2, 1)]);
    assert!(taken(&before).is_empty(), "not before it is journalled");
    let after = bench.commit();
    assert_eq!(known_taken(&mut bench, &after), [2]);
    assert_eq!(told(&bench, 2), word(cancel::CANCELLED));
    bench.crash();
    bench.wake();
    bench.connect(None);
    let seen = give(&mut bench, script_order(1));
    assert_eq!((taken(&seen), starts(&seen).len()), (vec![1], 0));
    assert!(told(&bench, 1).is_empty(), "the cancel's own result has told it");
    give(&mut bench, cancel_of(2, 1));
    assert_eq!(told(&bench, 2).len(), 1, "a repeated cancel says nothing new");
}

#[test]
fn job_14_what_was_received_and_not_begun_is_closed() {
    let mut bench = Bench::running();
    let mut later = payload(1, RUN_SCRIPT, &script());
    later.not_before = Millis(START + 5_000);
    give(&mut bench, sign(later, script(), mine(), &server()));
    give(&mut bench, cancel_of(2, 1));
    assert_eq!(told(&bench, 2), word(cancel::CANCELLED));
    bench.pass(6_000);
    assert!(starts(&bench.settle(Event::Tick)).is_empty());
    bench.crash();
    assert!(starts(&bench.wake()).is_empty());
    assert_eq!(bench.core.figures().open_orders, 0);
}

#[test]
fn job_14_in_one_message_the_cancel_wins_over_what_is_not_journalled() {
    let mut bench = Bench::running();
    bench.deliver(vec![script_order(1), cancel_of(2, 1)]);
    let seen = bench.commit_all();
    assert!(starts(&seen).is_empty());
    assert_eq!(told(&bench, 2), word(cancel::CANCELLED));
}

#[test]
fn job_14_what_runs_is_killed_and_its_own_result_tells() {
    let mut bench = Bench::running();
    give(&mut bench, script_order(1));
    let seen = give(&mut bench, cancel_of(2, 1));
    assert!(seen.contains(&Effect::Kill(number(1))));
    assert_eq!(told(&bench, 2), word(cancel::RUNNING));
    bench.settle(ended(1, killed()));
    assert_eq!(told(&bench, 1), [(End::Failed, Some("cancelled".to_owned()))]);
}

#[test]
fn job_14_a_kill_that_a_crash_forgot_is_done_by_whoever_takes_the_job_over() {
    let mut bench = Bench::running();
    give(&mut bench, script_order(1));
    bench.deliver(vec![cancel_of(2, 1)]);
    let (batch, _) = bench.pending.pop_front().unwrap();
    bench.disk.apply(batch);
    bench.crash();
    let seen = bench.wake();
    let position = |wanted: &Effect| seen.iter().position(|e| e == wanted);
    assert!(position(&Effect::Resume(number(1))) < position(&Effect::Kill(number(1))), "{seen:?}");
    assert!(position(&Effect::Kill(number(1))).is_some());
}

#[test]
fn job_14_a_job_that_waits_for_an_executor_is_killed_once_it_has_one() {
    let mut bench = Bench::new();
    bench.settle(Event::Start);
    bench.connect(None);
    give(&mut bench, script_order(1));
    assert!(!give(&mut bench, cancel_of(2, 1)).contains(&Effect::Kill(number(1))), "nothing runs yet");
    let seen = bench.settle(Event::ExecutorUp);
    let kill = seen.iter().position(|e| *e == Effect::Kill(number(1)));
    let start = seen.iter().position(|e| matches!(e, Effect::Start(_)));
    assert!(start.is_some() && start < kill, "{seen:?}");
}

#[test]
fn job_14_what_is_at_its_end_stays() {
    let mut bench = Bench::running();
    give(&mut bench, script_order(1));
    bench.settle(ended(1, finished(0)));
    give(&mut bench, cancel_of(2, 1));
    assert_eq!(told(&bench, 2), word(cancel::ENDED));
    assert_eq!(told(&bench, 1), [(End::Succeeded, None)]);
}

#[test]
fn job_14_a_cancel_is_taken_when_no_other_order_is() {
    let mut bench = Bench::running();
    bench.settle(Event::LowSpace(true));
    assert!(taken(&give(&mut bench, script_order(3))).is_empty());
    let seen = give(&mut bench, cancel_of(2, 1));
    assert_eq!(known_taken(&mut bench, &seen), [2]);
}

#[test]
fn job_4_a_late_order_is_closed_and_given_back_and_never_runs_even_if_the_clock_goes_back() {
    let mut bench = Bench::running();
    bench.settle(document(&super::documents::statement(1, START, 0), &server()));
    bench.pass(3_600_001);
    let seen = give(&mut bench, script_order(1));
    assert_eq!((taken(&seen), starts(&seen).len()), (vec![], 0));
    let facts: Vec<Facts> =
        bench.disk.records(class::FACTS).iter().map(|r| rmp_serde::from_slice(&r.body).unwrap()).collect();
    assert_eq!(facts, [Facts { facts: vec![(number(1), Fact::GivenBack, vec![ME])] }]);
    bench.crash();
    bench.now.node = Millis(START);
    bench.wake();
    bench.connect(None);
    assert!(starts(&give(&mut bench, script_order(1))).is_empty());
}

fn suspended(version: u64, suspended: Vec<NodeId>) -> Event {
    let list = Revocations {
        tenant: tenant(),
        term: 1,
        version,
        revoked: vec![],
        suspended,
        raised: vec![],
        keep_connection: vec![],
    };
    document(&list, &server())
}

#[test]
fn job_16_a_suspended_device_begins_and_collects_nothing_across_restarts_until_it_is_revived() {
    let mut bench = Bench::running();
    let mut later = payload(1, RUN_SCRIPT, &script());
    later.not_before = Millis(START + 5_000);
    give(&mut bench, sign(later, script(), mine(), &server()));
    bench.settle(suspended(2, vec![ME]));
    bench.pass(6_000);
    assert!(starts(&bench.settle(Event::Tick)).is_empty());
    let due = bench.core.next_deadline(bench.now);
    assert!(due.is_none_or(|at| at > bench.now.mono), "it does not wake up for what it may not begin: {due:?}");
    bench.crash();
    assert!(starts(&bench.wake()).is_empty());
    bench.connect(None);
    let ask = bench.settle(message(Lane::Control, Message::Sections(ME, vec![])));
    assert!(!ask.iter().any(|e| matches!(e, Effect::Collect(_))), "{ask:?}");
    let seen = bench.settle(suspended(3, vec![]));
    assert_eq!(starts(&seen).len(), 1);
    assert!(seen.iter().any(|e| matches!(e, Effect::Collect(_))), "what was asked for is collected now");
}

#[test]
fn job_16_what_runs_when_it_is_suspended_ends_and_is_told() {
    let mut bench = Bench::running();
    give(&mut bench, script_order(1));
    bench.settle(suspended(2, vec![ME, NodeId(Uuid::from_u128(3))]));
    bench.settle(ended(1, finished(0)));
    assert_eq!(told(&bench, 1), [(End::Succeeded, None)]);
}
