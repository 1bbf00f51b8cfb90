//! Children that may hold an order which is over elsewhere are told so in signed words (DESIGN 5).

use super::*;
use branchline_protocol::order::Withdrawal;

/// What a child is to be told: order, devices, until.
fn told(effects: &[Effect], child: u128) -> Vec<(OrderNumber, Vec<NodeId>, Millis)> {
    let of = |effect: &Effect| match effect {
        Effect::Withdraw(n, _, list) if *n == node(child) => Some(list.clone()),
        _ => None,
    };
    let plain = |w: Withdrawal| {
        assert_eq!(w.tenant, tenant());
        (w.target, w.devices, w.until)
    };
    effects.iter().filter_map(of).flatten().map(plain).collect()
}

/// Relay 100 holds the order for devices 2 and 3, which have moved to relay 101.
fn moved() -> (Bench, Arc<Child>, Arc<Child>) {
    let mut bench = Bench::new();
    let (old, new) = (child(100, 1), child(101, 1));
    bench.feed(Event::Up(old.clone()));
    bench.feed(Event::Up(new.clone()));
    bench.said(&old, presence(vec![below(2, 1), below(3, 1)]));
    bench.issue(&[2, 3]);
    bench.said(&old, Message::Taken(vec![(ORDER, vec![node(2), node(3)])]));
    bench.said(&new, presence(vec![below(2, 2), below(3, 2)]));
    (bench, old, new)
}

fn succeeded(device: u128) -> Message {
    Message::Records(vec![spooled(device, vec![(class::RESULT, result(End::Succeeded))])])
}

/// fetch_by, the longest run, and a day.
const UNTIL: Millis = Millis(1_000 + 10 + 86_400_000);

#[test]
fn an_end_is_withdrawn_from_whoever_else_may_have_the_order_once_it_is_durable() {
    let (mut bench, ..) = moved();
    let new = child(101, 1);
    bench.hold = true;
    let seen = bench.said(&new, succeeded(2));
    assert!(told(&seen, 100).is_empty(), "not before the end is on disk");
    let seen = bench.flush();
    assert_eq!(told(&seen, 100), [(ORDER, vec![node(2)], UNTIL)]);
    assert!(told(&seen, 101).is_empty(), "not the one that brought it");
}

#[test]
fn a_child_that_is_away_is_told_when_it_comes_until_it_says_that_it_knows() {
    let (mut bench, old, new) = moved();
    bench.feed(Event::Gone(old, LinkEnd::Silent));
    let seen = bench.said(&new, succeeded(2));
    assert!(told(&seen, 100).is_empty());
    bench.said(&new, succeeded(3));
    for session in [2, 3] {
        let seen = bench.feed(Event::Up(child(100, session)));
        assert_eq!(told(&seen, 100), [(ORDER, vec![node(2), node(3)], UNTIL)], "in one signed word");
    }
    let link = child(100, 3);
    bench.said(&link, Message::Withdrawn(vec![(ORDER, vec![node(3)])]));
    assert_eq!(told(&bench.feed(Event::Up(child(100, 4))), 100), [(ORDER, vec![node(2)], UNTIL)]);
    bench.said(&child(100, 4), Message::Withdrawn(vec![(ORDER, vec![node(2), node(9)])]));
    assert!(told(&bench.feed(Event::Up(child(100, 5))), 100).is_empty());
}

#[test]
fn what_every_node_has_let_go_by_itself_is_not_withdrawn_any_more() {
    for (at, left) in [(UNTIL.0 as u64, 1), (UNTIL.0 as u64 + 1, 0)] {
        let (mut bench, old, new) = moved();
        bench.feed(Event::Gone(old, LinkEnd::Silent));
        bench.said(&new, succeeded(2));
        bench.clock = at - 1;
        bench.feed(Event::Tick);
        assert_eq!(told(&bench.feed(Event::Up(child(100, 2))), 100).len(), left, "at {at}");
    }
}

#[test]
fn what_waits_for_one_child_has_a_bound_and_a_word_names_so_many_devices() {
    use crate::dispatch::withdrawals::{Over, WAITING_MAX, Withdrawals};
    let mut waiting = Withdrawals::default();
    let over = |n: usize| Over { child: node(100), order: ORDER, device: node(n as u128), until: UNTIL };
    let told = |waiting: &Withdrawals| -> Vec<usize> {
        waiting.of(&tenant(), node(100)).iter().map(|withdrawal| withdrawal.devices.len()).collect()
    };
    assert_eq!(waiting.add(Millis(0), (0..1_025).map(over).collect()).len(), 1);
    assert_eq!(told(&waiting), [1_024, 1]);
    waiting.add(Millis(0), (1_025..WAITING_MAX + 1).map(over).collect());
    assert_eq!(told(&waiting).iter().sum::<usize>(), WAITING_MAX, "one more is not told");
    assert!(waiting.add(Millis(0), vec![over(WAITING_MAX + 1)]).is_empty());
}
