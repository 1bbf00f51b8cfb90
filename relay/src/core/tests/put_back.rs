//! Disks that were put back to an older state: a child relay's, and this relay's own.

use super::{back::cancel, back::number, *};

/// The same relay on another opening of its store.
fn reopened(n: u128, session: u64, incarnation: u64) -> Arc<Child> {
    let mut again = Child::clone(&child(n, Role::Relay, session));
    again.greeting = Arc::new(Greeting { incarnation, ..Greeting::clone(&again.greeting) });
    Arc::new(again)
}

fn held_by_a_nested_relay() -> Bench {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let nested = child(7, Role::Relay, 1);
    bench.child_up(&nested);
    bench.nested(&nested, 1, 1);
    assert_eq!(orders_to(&bench.given(order(1, &[1], &server_key())), 7), [1]);
    bench.feed(child_says(&nested, Message::Taken(vec![(number(1), vec![node(1)])])));
    bench
}

#[test]
fn rly_8_rolled_back_a_child_relay_is_offered_again_what_it_held_and_another_link_of_one_opening_is_not() {
    let mut bench = held_by_a_nested_relay();
    let seen = bench.child_up(&child(7, Role::Relay, 2));
    assert!(orders_to(&seen, 7).is_empty(), "the same opening dialled again: it has what it took");
    let opened = reopened(7, 3, 9);
    assert_eq!(orders_to(&bench.child_up(&opened), 7), [1], "whatever its disk is now");
    assert_eq!(bench.core.ledger().holders(number(1), node(1)), [node(7)], "no new holder");
    bench.feed(child_says(&opened, Message::Taken(vec![(number(1), vec![node(1)])])));
    assert!(orders_to(&bench.child_up(&reopened(7, 4, 9)), 7).is_empty(), "and it is met from here on");
}

#[test]
fn rly_8_rolled_back_a_child_relay_is_offered_what_it_held_after_this_one_started_again_too() {
    let mut bench = held_by_a_nested_relay();
    bench.crash();
    let opened = reopened(7, 2, 9);
    bench.child_up(&opened);
    assert_eq!(orders_to(&bench.nested(&opened, 1, 1), 7), [1]);
}

#[test]
fn rolled_back_this_relay_catches_up_in_growing_steps_and_gives_nothing_back_on_its_own_word() {
    let mut bench = Bench::new();
    bench.given(order(1, &[1], &server_key()));
    let greeted = |bench: &mut Bench| {
        let seen = bench.feed(Event::Dialling(1));
        let attachment = |e: &Effect| if let Effect::Greet(_, g) = e { Some(g.attachment) } else { None };
        seen.iter().find_map(attachment).unwrap()
    };
    let mut numbers = vec![greeted(&mut bench)];
    for _ in 0..4 {
        bench.feed(Event::Overtaken);
        numbers.push(greeted(&mut bench));
    }
    assert_eq!(numbers, [1, 3, 6, 11, 20]);
    bench.crash();
    assert_eq!(greeted(&mut bench), 21, "on disk with each greeting");
    assert_eq!(bench.core.ledger().holders(number(1), node(1)), [node(1)]);
    let up = bench.parent_up(1);
    assert_eq!(records_up(&up).iter().filter(|(_, class)| *class == class::ALERT).count(), 1, "told once a minute");
    bench.given(cancel(2, 1, &[1]));
    assert!(bench.back().is_empty(), "the device may have it from the state that is gone");
}
