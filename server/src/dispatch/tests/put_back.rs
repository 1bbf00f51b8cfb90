//! Disks of nodes below that were put back to an older state.

use super::*;

/// The same relay on another opening of its store.
fn reopened(session: u64, incarnation: u64) -> Arc<Child> {
    let mut again = Child::clone(&child(100, session));
    again.greeting = Arc::new(Greeting { incarnation, ..Greeting::clone(&again.greeting) });
    Arc::new(again)
}

#[test]
fn rly_8_rolled_back_a_relay_is_offered_again_what_it_held_and_another_link_of_one_opening_is_not() {
    let mut bench = Bench::new();
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    bench.said(&relay, presence(vec![below(2, 1)]));
    bench.issue(&[2]);
    bench.said(&relay, Message::Taken(vec![(ORDER, vec![node(2)])]));
    let again = bench.feed(Event::Up(child(100, 2)));
    assert!(orders_to(&again, 100).is_empty(), "the same opening dialled again: it has what it took");
    let opened = reopened(3, 9);
    assert_eq!(orders_to(&bench.feed(Event::Up(opened.clone())), 100), [1], "whatever its disk is now");
    bench.said(&opened, Message::Taken(vec![(ORDER, vec![node(2)])]));
    assert!(orders_to(&bench.feed(Event::Up(reopened(4, 9))), 100).is_empty(), "and it is met from here on");
}

#[test]
fn rly_9_the_same_attachment_twice_is_not_a_newer_one() {
    let mut bench = Bench::new();
    bench.feed(Event::Up(child(1, 5)));
    let mut again = Child::clone(&child(1, 6));
    again.key.attachment = 5;
    assert!(bench.core.is_stale(&again));
    let seen = bench.feed(Event::Up(Arc::new(again)));
    assert!(seen.iter().any(|e| matches!(e, Effect::Refuse(_, 6, refusal) if refusal.is_stale_attachment())));
}
