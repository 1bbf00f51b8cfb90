//! When a child is told what is stored and settled of its records: a device on a link that stays at the next tick (decisions 48, 49).

use super::*;
use branchline_protocol::{record::Alert, wire::Lease};

/// What a child is told: stored and settled, each stream by itself.
pub fn told(effects: &[Effect], n: u128) -> Vec<(u64, u64)> {
    let acks = effects.iter().filter_map(|e| match e {
        Effect::ToChild(child, _, _, Message::Acks(acks)) if *child == node(n) => Some(acks),
        _ => None,
    });
    acks.flatten().map(|ack| (ack.stored, ack.settled)).collect()
}

const NOTHING: [(u64, u64); 0] = [];

/// The next record of a device's spool, as its link sends it.
fn alert(spool: &mut Spool) -> Run {
    let body = rmp_serde::to_vec(&Alert { code: "full".into(), message: String::new() }).unwrap();
    let mark = spool.append(Millis(5), Lane::Work, class::ALERT, None, body.into(), &mut Batch::new());
    spool.committed(&mark);
    spool.link_up(node(100), 1);
    spool.take().unwrap().1.remove(0)
}

fn poll() -> Arc<Child> {
    let lease = Some(Lease { interval_ms: 60_000, phase_ms: 0, waiter: 0 });
    Arc::new(Child { lease, ..Child::clone(&child(1, Role::Agent, 1)) })
}

fn settles(run: &Run) -> Event {
    let last = run.records.last().unwrap().number;
    parent_says(Message::Acks(vec![Ack { stream: run.stream, stored: last, settled: last, refused: vec![] }]))
}

#[test]
fn what_is_stored_and_settled_by_the_next_tick_is_told_then_in_one_word_and_once() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    let mut spool = Spool::new(node(1), 1, 78);
    let (first, second) = (alert(&mut spool), alert(&mut spool));
    let seen = bench.feed(child_says(&agent, Message::Records(vec![first.clone()])));
    assert_eq!((records_up(&seen).len(), told(&seen, 1)), (1, vec![]), "it goes up at once");
    assert_eq!(told(&bench.feed(settles(&first)), 1), NOTHING);
    assert_eq!(told(&bench.feed(child_says(&agent, Message::Records(vec![second.clone()]))), 1), NOTHING);
    // Of the first only: what is stored behind it is told with it.
    assert_eq!(told(&bench.feed(Event::Tick), 1), [(2, 1)]);
    assert_eq!(told(&bench.feed(Event::Tick), 1), NOTHING);
    assert_eq!(told(&bench.feed(settles(&second)), 1), NOTHING);
    assert_eq!(told(&bench.feed(Event::Tick), 1), [(2, 2)]);
    assert_eq!(told(&bench.feed(Event::Tick), 1), NOTHING);
}

#[test]
fn what_is_not_settled_by_the_next_tick_is_told_as_stored() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    bench.feed(child_says(&agent, Message::Records(vec![results(1, 1, "out")])));
    assert_eq!(told(&bench.feed(Event::Tick), 1), [(1, 0)]);
    assert_eq!(told(&bench.feed(Event::Tick), 1), NOTHING);
}

#[test]
fn what_is_settled_of_a_stream_that_is_not_here_counts_as_stored() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.child_up(&child(1, Role::Agent, 1));
    // Its device brought it to another relay.
    assert_eq!(told(&bench.feed(settles(&results(1, 1, "out"))), 1), NOTHING);
    assert_eq!(told(&bench.feed(Event::Tick), 1), [(1, 1)]);
}

#[test]
fn what_is_settled_is_told_at_once_to_a_poll_and_to_a_relay() {
    for from in [poll(), child(1, Role::Relay, 1)] {
        let mut bench = Bench::new();
        bench.parent_up(1);
        bench.child_up(&from);
        let run = alert(&mut Spool::new(node(1), 1, 77));
        bench.feed(child_says(&from, Message::Records(vec![run.clone()])));
        assert_eq!(told(&bench.feed(settles(&run)), 1), [(1, 1)], "{from:?}");
        assert_eq!(told(&bench.feed(Event::Tick), 1), NOTHING);
    }
}

#[test]
fn what_is_refused_is_told_at_once_with_all_that_waited() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    let mut spool = Spool::new(node(1), 1, 78);
    let (first, second) = (alert(&mut spool), alert(&mut spool));
    bench.feed(child_says(&agent, Message::Records(vec![first.clone(), second])));
    bench.feed(settles(&first));
    let refused = Ack { stream: first.stream, stored: 2, settled: 0, refused: vec![(2, "bad_record".into())] };
    assert_eq!(told(&bench.feed(parent_says(Message::Acks(vec![refused]))), 1), [(2, 1)]);
    assert_eq!(told(&bench.feed(Event::Tick), 1), NOTHING);
}

#[test]
fn what_is_stored_is_told_at_once_to_a_poll_to_a_relay_and_while_there_is_no_parent() {
    for (parent, from) in [(false, child(1, Role::Agent, 1)), (true, poll()), (true, child(1, Role::Relay, 1))] {
        let mut bench = Bench::new();
        if parent {
            bench.parent_up(1);
        }
        bench.child_up(&from);
        let run = alert(&mut Spool::new(node(1), 1, 77));
        assert_eq!(told(&bench.feed(child_says(&from, Message::Records(vec![run]))), 1), [(1, 0)], "{from:?}");
        assert_eq!(told(&bench.feed(Event::Tick), 1), NOTHING);
    }
}

#[test]
fn what_was_owed_to_a_link_that_is_over_is_told_on_the_next_one_when_it_is_sent_again() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    let run = results(1, 1, "out");
    bench.feed(child_says(&agent, Message::Records(vec![run.clone()])));
    bench.feed(Event::ChildGone(agent, LinkEnd::Silent));
    let again = child(1, Role::Agent, 2);
    bench.child_up(&again);
    assert_eq!(told(&bench.feed(Event::Tick), 1), NOTHING, "nobody asked on this link");
    bench.feed(child_says(&again, Message::Records(vec![run])));
    assert_eq!(told(&bench.feed(Event::Tick), 1), [(1, 0)]);
}
