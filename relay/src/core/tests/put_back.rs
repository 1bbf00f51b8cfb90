//! Disks that were put back to an older state: a child relay's, and this relay's own.

use super::{
    back::{self, cancel, number},
    *,
};

/// The same relay on another opening of its store.
fn reopened(n: u128, session: u64, incarnation: u64) -> Arc<Child> {
    let mut again = Child::clone(&child(n, Role::Relay, session));
    again.greeting = Arc::new(Greeting { incarnation, ..Greeting::clone(&again.greeting) });
    Arc::new(again)
}

pub fn held_by_a_nested_relay() -> Bench {
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
        let seen = bench.feed(Event::Dialling(1, PARENT));
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

pub fn in_epoch(n: u128, session: u64, epoch: u32, attachment: u64) -> Arc<Child> {
    let mut child = Child::clone(&child(n, Role::Agent, session));
    child.key = AttachmentKey { epoch, attachment };
    Arc::new(child)
}

fn list(version: u64, raised: Vec<(NodeId, u32)>) -> Event {
    let (revoked, suspended) = (vec![], vec![]);
    let list = Revocations { tenant: tenant(), term: 1, version, revoked, suspended, raised, keep_connection: vec![] };
    parent_says(Message::Document(Kind::Revocations, list.seal(&server_key())))
}

pub fn refused(effects: &[Effect]) -> Vec<(NodeId, u64)> {
    let of = |e: &Effect| match e {
        Effect::RefuseChild(node, session, refusal) if refusal.is_stale_attachment() => Some((*node, *session)),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

#[test]
fn rolled_back_a_childs_attachment_is_remembered_across_a_restart_of_this_relay() {
    let mut bench = Bench::new();
    bench.child_up(&child(1, Role::Agent, 5));
    bench.crash();
    let again = in_epoch(1, 9, 1, 4);
    assert!(bench.core.is_stale(&again));
    assert_eq!(refused(&bench.child_up(&again)), [(node(1), 9)]);
    assert!(refused(&bench.child_up(&in_epoch(1, 10, 1, 6))).is_empty(), "that one was overtaken on its way");
}

#[test]
fn rolled_back_a_device_that_gives_a_number_twice_is_told_so_until_it_has_heard() {
    let mut bench = Bench::new();
    bench.child_up(&child(1, Role::Agent, 5));
    // The word may be lost with each of these links, and this relay restarted. One was refused before it was up.
    bench.feed(Event::Stale(node(1), AttachmentKey { epoch: 1, attachment: 5 }));
    for attachment in [6, 7] {
        bench.crash();
        let next = in_epoch(1, 9, 1, attachment);
        assert!(bench.core.is_stale(&next));
        assert_eq!(refused(&bench.child_up(&next)), [(node(1), 9)], "{attachment}");
    }
    assert!(refused(&bench.child_up(&in_epoch(1, 10, 1, 9))).is_empty(), "whoever heard it leaves out a number");
}

#[test]
fn rolled_back_a_device_whose_newer_links_the_parent_knows_is_told_so_and_its_next_link_is_no_newer_one() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let newer = |epoch, attachment| parent_says(Message::Newer(node(1), AttachmentKey { epoch, attachment }));
    bench.child_up(&child(1, Role::Agent, 5));
    assert!(refused(&bench.feed(newer(1, 4))).is_empty(), "it is newer than that");
    assert!(refused(&bench.feed(newer(1, 5))).is_empty(), "its records came before this relay's word of that link");
    assert!(refused(&bench.feed(newer(2, 1))).is_empty(), "of another epoch the list speaks");
    bench.hold = true;
    assert!(refused(&bench.feed(newer(1, 8))).is_empty(), "not before it is kept");
    assert_eq!(refused(&bench.flush()), [(node(1), 5)]);
    bench.crash();
    assert_eq!(refused(&bench.child_up(&in_epoch(1, 6, 1, 8))), [(node(1), 6)], "whatever became of the answer");
    let nested = child(7, Role::Relay, 1);
    bench.child_up(&nested);
    bench.nested(&nested, 2, 3);
    let told = || parent_says(Message::Newer(node(2), AttachmentKey { epoch: 1, attachment: 4 }));
    let passed = |e: &Effect| matches!(e, Effect::ToChild(n, _, _, Message::Newer(..)) if *n == node(7));
    assert!(bench.feed(told()).iter().any(passed), "the relay between ends it");
    // It did not hear so, or was away then: when it tells of that link again, it is told again.
    bench.feed(Event::ChildGone(nested, LinkEnd::Silent));
    assert!(!bench.feed(told()).iter().any(passed));
    let nested = child(7, Role::Relay, 2);
    bench.child_up(&nested);
    assert!(bench.nested(&nested, 2, 3).iter().any(passed), "told the same as before");
    assert!(!bench.nested(&nested, 2, 5).iter().any(passed), "it is newer than that");
}

#[test]
fn rolled_back_a_device_in_an_epoch_that_it_has_left_is_handed_the_list_and_nothing_else() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.feed(list(2, vec![(node(1), 2)]));
    bench.given(order(1, &[1], &server_key()));
    bench.crash();
    let past = in_epoch(1, 7, 1, 50);
    assert!(!bench.core.is_stale(&past), "it is let in");
    let seen = bench.child_up(&past);
    assert!(
        matches!(&seen[..], [Effect::ToChild(_, 7, Lane::Control, Message::Document(Kind::Revocations, _))]),
        "{seen:?}"
    );
    assert!(bench.feed(child_says(&past, Message::Taken(vec![(number(1), vec![node(1)])]))).is_empty());
    assert_eq!(orders_to(&bench.child_up(&in_epoch(1, 8, 2, 1)), 1), [1]);
}

#[test]
fn job_13_rolled_back_a_device_is_asked_again_for_what_it_had_and_only_it_says_that_it_never_had_it() {
    let mut bench = Bench::new();
    bench.timed();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    bench.given(order(1, &[1], &server_key()));
    bench.feed(child_says(&agent, Message::Taken(vec![(number(1), vec![node(1)])])));
    bench.clock = back::FETCH_BY + 1;
    assert!(orders_to(&bench.feed(list(2, vec![(node(1), 2)])), 1) == [1], "handed over and late, and asked again");
    bench.crash();
    let again = in_epoch(1, 8, 2, 1);
    assert_eq!(orders_to(&bench.child_up(&again), 1), [1], "known after a restart too");
    // Of an order that it never had a row for this relay says nothing either.
    bench.given(order(2, &[1], &server_key()));
    bench.feed(Event::Tick);
    assert!(bench.back().is_empty());
    bench.feed(child_says(&again, Message::Records(vec![results(1, 1, "out")])));
    assert_eq!(bench.core.ledger().row(number(1), node(1)), None, "its word is the end");
}

#[test]
fn rolled_back_a_device_is_told_on_each_link_what_it_said_it_has() {
    let handed = |seen: &[Effect], to: u128| -> Vec<OrderNumber> {
        let of = |e: &Effect| match e {
            Effect::ToChild(n, _, Lane::Control, Message::Handed(_, 1, orders)) if *n == node(to) => {
                Some(orders.clone())
            }
            _ => None,
        };
        seen.iter().filter_map(of).flatten().collect()
    };
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    bench.given(order(1, &[1], &server_key()));
    assert!(handed(&bench.child_up(&child(1, Role::Agent, 2)), 1).is_empty(), "it has said nothing yet");
    bench.feed(child_says(&child(1, Role::Agent, 2), Message::Taken(vec![(number(1), vec![node(1)])])));
    bench.crash();
    assert_eq!(handed(&bench.child_up(&child(1, Role::Agent, 3)), 1), [number(1)]);
    let nested = child(7, Role::Relay, 1);
    bench.child_up(&nested);
    bench.nested(&nested, 2, 1);
    let seen = bench.feed(parent_says(Message::Handed(node(2), 1, vec![number(9)])));
    assert_eq!(handed(&seen, 7), [number(9)], "and what the parent knows is passed on");
    let here = child(1, Role::Agent, 3);
    for (epoch, told) in [(1, vec![number(1), number(8)]), (2, vec![number(1)])] {
        bench.feed(Event::ChildGone(here.clone(), LinkEnd::Silent));
        bench.feed(parent_says(Message::Handed(node(1), epoch, vec![number(8)])));
        let again = in_epoch(1, 3, 1, 4 + u64::from(epoch));
        assert_eq!(handed(&bench.child_up(&again), 1), told, "kept for a child that is away, for its epoch alone");
    }
}

/// The acknowledgement that shows the old disk also settles what the alert about it is written behind.
#[test]
fn rolled_back_the_alert_about_an_old_disk_leaves_the_disk_readable() {
    let stranger = Signer::from_seed(&[77; 32]);
    let own = |effects: &[Effect]| -> Vec<StreamId> {
        let of = |e: &Effect| match e {
            Effect::ToParent(Lane::Work, Message::Records(runs)) => runs.first().map(|run| run.stream),
            _ => None,
        };
        effects.iter().filter_map(of).filter(|stream| stream.node == RELAY).collect()
    };
    let mut bench = Bench::new();
    bench.parent_up(1);
    let old = own(&bench.given(order(1, &[1], &stranger)))[0];
    bench.crash();
    bench.parent_up(1);
    bench.given(order(1, &[1], &stranger));
    let ack = |stream, upto| Ack { stream, stored: upto, settled: upto, refused: vec![] };
    let mut seen = bench.feed(parent_says(Message::Acks(vec![Ack { settled: 0, ..ack(old, 1) }])));
    seen.extend(bench.feed(Event::Tick));
    let new = own(&seen)[0];
    assert_ne!(old, new, "of another opening");
    bench.feed(parent_says(Message::Acks(vec![ack(new, 1), ack(old, 9)])));
    for _ in 0..2 {
        bench.crash();
        bench.parent_up(1);
        bench.given(order(1, &[1], &stranger));
    }
}
