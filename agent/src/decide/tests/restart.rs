//! Restarts of the machine, judged in its next life.

use super::{steering::cancel_of, *};
use crate::{
    capabilities::RESTART,
    decide::RESTART_WITHIN_MS,
    platform::{Ended, SpawnFault, Status},
};
use branchline_protocol::job::End;

fn restart_order(n: u64) -> OrderMessage {
    order(n, RESTART, Bytes::new())
}

/// An agent in the machine's `life`th life, connected.
fn wake_in(bench: &mut Bench, life: u32) -> Vec<Effect> {
    bench.event(Event::Surroundings { zone: jiff::tz::TimeZone::UTC, boot: format!("life {life}") });
    let effects = bench.wake();
    bench.connect(None);
    effects
}

fn running() -> Bench {
    let mut bench = Bench::new();
    wake_in(&mut bench, 1);
    bench.settle(Event::Collected(inventory::snapshot(1)));
    bench
}

fn give(bench: &mut Bench, orders: Vec<OrderMessage>) -> Vec<u64> {
    let effects = bench.settle(message(Lane::Work, Message::Orders(orders)));
    starts(&effects).iter().map(|start| start.order.number).collect()
}

fn told(bench: &Bench) -> Vec<(u64, End, Option<String>)> {
    bench.disk.results().into_iter().map(|r| (r.order.number, r.end, r.reason)).collect()
}

fn resumed(effects: &[Effect]) -> usize {
    effects.iter().filter(|e| matches!(e, Effect::Resume(_))).count()
}

#[test]
fn job_2_a_restart_succeeded_once_the_machine_is_in_another_life() {
    let mut bench = running();
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![restart_order(1)])));
    let begun = starts(&effects);
    assert!(begun.len() == 1 && begun[0].restarts);
    bench.pass(50);
    bench.settle(ended(1, finished(0)));
    assert!(told(&bench).is_empty(), "the command was given, and nothing is known yet");

    bench.crash();
    bench.pass(30_000);
    let effects = wake_in(&mut bench, 2);
    assert!(starts(&effects).is_empty() && resumed(&effects) == 0, "never a second time");
    assert_eq!(told(&bench), [(1, End::Succeeded, None)]);
    let result = &bench.disk.results()[0];
    assert_eq!((result.started_at, result.ended_at), (Some(Millis(START)), Millis(START + 30_050)));
    bench.crash();
    wake_in(&mut bench, 3);
    assert_eq!(told(&bench).len(), 1);
    assert_eq!(give(&mut bench, vec![restart_order(1)]), [] as [u64; 0], "JOB-13");
}

/// The machine's end may come before the agent knows that the command was given, or even before the command was.
#[test]
fn a_restart_cut_at_any_point_is_judged_by_the_machines_life_alone() {
    for (life, left, end) in [
        (2, None, Some((End::Succeeded, None))),
        (1, Some(JobLeft::Cut), Some((End::Failed, Some("not_restarted")))),
        (1, Some(finished(0)), Some((End::Failed, Some("not_restarted")))),
        (1, Some(finished(1)), Some((End::Failed, Some("exit_code")))),
    ] {
        let mut bench = running();
        give(&mut bench, vec![restart_order(1)]);
        bench.crash();
        let effects = wake_in(&mut bench, life);
        assert_eq!((starts(&effects).len(), resumed(&effects)), (0, usize::from(life == 1)));
        if let Some(left) = left {
            bench.settle(ended(1, left));
        }
        bench.pass(RESTART_WITHIN_MS);
        bench.settle(Event::Tick);
        let wanted: Vec<_> = end.into_iter().map(|(end, why)| (1, end, why.map(str::to_owned))).collect();
        assert_eq!(told(&bench), wanted, "{life}");
    }
}

#[test]
fn a_machine_that_lives_on_has_not_restarted() {
    let mut bench = running();
    give(&mut bench, vec![restart_order(1)]);
    bench.settle(ended(1, finished(0)));
    bench.pass(RESTART_WITHIN_MS - 1);
    bench.settle(Event::Tick);
    assert!(told(&bench).is_empty());
    assert_eq!(bench.core.next_deadline(bench.now), Some(bench.now.mono.plus(1)));
    bench.pass(1);
    bench.settle(Event::Tick);
    assert_eq!(told(&bench), [(1, End::Failed, Some("not_restarted".to_owned()))]);
    assert_eq!(give(&mut bench, vec![script_order(2)]), [2], "work goes on");
}

#[test]
fn a_restart_waits_for_what_runs_and_nothing_overtakes_it() {
    let mut bench = running();
    // Ordered before it, though taken later.
    assert_eq!(give(&mut bench, vec![restart_order(3), script_order(1), script_order(2)]), [1, 2]);
    assert_eq!(give(&mut bench, vec![script_order(4)]), [] as [u64; 0]);
    assert_eq!(starts(&bench.settle(ended(1, finished(0)))).len(), 0);
    let effects = bench.settle(ended(2, finished(0)));
    assert_eq!(starts(&effects).iter().map(|s| s.order.number).collect::<Vec<_>>(), [3]);
    assert!(starts(&bench.settle(ended(3, finished(0)))).is_empty());
    let tick = bench.core.next_deadline(bench.now);
    assert!(tick.is_none_or(|at| at > bench.now.mono), "nothing is due that cannot be done: {tick:?}");
    bench.crash();
    let effects = wake_in(&mut bench, 2);
    assert_eq!(starts(&effects).iter().map(|s| s.order.number).collect::<Vec<_>>(), [4], "after the restart");
}

#[test]
fn job_14_a_cancelled_restart_is_not_commanded_or_ends_as_cancelled() {
    let mut bench = running();
    assert_eq!(give(&mut bench, vec![script_order(1), restart_order(2)]), [1]);
    bench.settle(message(Lane::Urgent, Message::Orders(vec![cancel_of(3, 2)])));
    assert_eq!(starts(&bench.settle(ended(1, finished(0)))).len(), 0);

    assert_eq!(give(&mut bench, vec![restart_order(4)]), [4]);
    let effects = bench.settle(message(Lane::Urgent, Message::Orders(vec![cancel_of(5, 4)])));
    assert!(effects.contains(&Effect::Kill(number(4))));
    let status =
        Status { ended: Ended::Signalled(15), cancelled: true, ..Status::not_started(SpawnFault::NotFound, None) };
    bench.settle(ended(4, JobLeft::Finished(status, Bytes::new(), Bytes::new())));
    assert_eq!(told(&bench).last().map(|(n, end, _)| (*n, *end)), Some((4, End::Failed)));
}

#[test]
fn top_14_a_machine_that_cannot_answers_unsupported() {
    let mut bench = running();
    let incapable = Me { capabilities: vec![], ..me() };
    let trust = trust(1, &[server()]);
    bench.core = AgentCore::recover(incapable, trust, vec![upstream("bundle")], 2, &bench.disk.rows()).unwrap();
    wake_in(&mut bench, 1);
    give(&mut bench, vec![restart_order(1)]);
    assert_eq!(told(&bench), [(1, End::Unsupported, Some("restart, linux".to_owned()))]);
}
