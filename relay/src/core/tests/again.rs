//! Streams that those above did not take from this relay: their devices are asked to send them once more.

use super::{
    back::number,
    put_back::{in_epoch, refused},
    *,
};

/// A device's spool, as its disk has it while it is attached here.
fn device() -> Spool {
    let mut spool = Spool::new(node(1), 1, 77);
    spool.link_up(RELAY, 1);
    spool
}

fn write(spool: &mut Spool, order: u64) -> Run {
    let body = results(1, order, "out").records.remove(0).body;
    let mark = spool.append(Millis(5), Lane::Work, class::RESULT, None, body, &mut Batch::new());
    spool.committed(&mark);
    spool.take().unwrap().1.remove(0)
}

fn foreign(run: &Run) -> Event {
    let upto = run.records.last().unwrap().number;
    let refused = run.records.iter().map(|record| (record.number, "foreign".into())).collect();
    parent_says(Message::Acks(vec![Ack { stream: run.stream, stored: upto, settled: upto, refused }]))
}

fn asked(effects: &[Effect], child: u128) -> Vec<StreamId> {
    let of = |e: &Effect| match e {
        Effect::ToChild(n, _, Lane::Control, Message::Again(streams)) if *n == node(child) => Some(streams.clone()),
        _ => None,
    };
    effects.iter().filter_map(of).flatten().collect()
}

#[test]
fn rly_9_what_those_above_did_not_take_its_device_sends_once_more_once_on_each_link() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    let mut spool = device();
    let run = write(&mut spool, 1);
    bench.feed(child_says(&agent, Message::Records(vec![run.clone()])));
    assert_eq!(asked(&bench.feed(foreign(&run)), 1), [run.stream]);
    assert!(!bench.core.spool().holds_of(node(1)));
    assert!(asked(&bench.feed(foreign(&run)), 1).is_empty(), "what is refused again is not asked for for ever");
    let again = child(1, Role::Agent, 2);
    assert_eq!(asked(&bench.child_up(&again), 1), [run.stream], "and anew on the next link");
    spool.again(&run.stream);
    let repeated = spool.take().unwrap().1.remove(0);
    assert_eq!(repeated.records, run.records);
    assert_eq!(
        records_up(&bench.feed(child_says(&again, Message::Records(vec![repeated])))),
        [(node(1), class::RESULT)]
    );
    assert!(asked(&bench.child_up(&child(1, Role::Agent, 3)), 1).is_empty(), "it is here");
}

#[test]
fn rly_9_what_follows_on_records_that_were_let_go_waits_for_them_and_ends_nothing() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    bench.given(order(2, &[1], &server_key()));
    let mut spool = device();
    let first = write(&mut spool, 1);
    bench.feed(child_says(&agent, Message::Records(vec![first.clone()])));
    bench.feed(foreign(&first));
    let again = child(1, Role::Agent, 2);
    bench.child_up(&again);
    let second = write(&mut spool, 2);
    let seen = bench.feed(child_says(&again, Message::Records(vec![second.clone()])));
    assert!(!records_up(&seen).contains(&(node(1), class::RESULT)), "the records before it are nowhere above");
    assert!(bench.core.ledger().row(number(2), node(1)).is_some(), "its order is not over here");
    let told = |e: &Effect| matches!(e, Effect::ToChild(_, _, _, Message::Acks(acks)) if acks.iter().any(|a| a.stored > 0 || a.settled > 0));
    assert!(!seen.iter().any(told), "nor is it stored");
    spool.again(&second.stream);
    let whole = spool.take().unwrap().1.remove(0);
    assert_eq!(whole.records.len(), 2);
    bench.feed(child_says(&again, Message::Records(vec![whole])));
    assert_eq!(bench.core.spool().unsettled_of(node(1)).count(), 2);
    assert_eq!(bench.core.ledger().row(number(2), node(1)), None);
}

#[test]
fn rly_9_a_device_that_is_away_is_asked_on_its_next_link_and_a_nested_relay_passes_it_on() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    let run = write(&mut device(), 1);
    bench.feed(child_says(&agent, Message::Records(vec![run.clone()])));
    bench.feed(Event::ChildGone(agent, LinkEnd::Silent));
    assert!(asked(&bench.feed(foreign(&run)), 1).is_empty());
    assert_eq!(asked(&bench.child_up(&child(1, Role::Agent, 2)), 1), [run.stream]);
    let seen = bench.feed(parent_says(Message::Again(vec![run.stream])));
    assert!(records_up(&seen).is_empty(), "nothing of it is here");
    let kept = results(2, 1, "out");
    let other = child(2, Role::Agent, 1);
    bench.child_up(&other);
    bench.feed(child_says(&other, Message::Records(vec![kept.clone()])));
    bench.feed(parent_says(Message::Acks(vec![Ack { stream: kept.stream, stored: 1, settled: 0, refused: vec![] }])));
    assert_eq!(records_up(&bench.feed(parent_says(Message::Again(vec![kept.stream])))), [(node(2), class::RESULT)]);
}

#[test]
fn streams_beyond_the_bound_are_not_remembered() {
    let mut again = super::super::again::Again::default();
    let stream = |incarnation| StreamId { node: node(1), epoch: 1, incarnation, lane: Lane::Work };
    let most = super::super::again::STREAMS_MAX as u64;
    (0..=most).for_each(|n| again.add(stream(n), node(1)));
    assert_eq!(again.due(node(1), 1).len() as u64, most);
    again.came(stream(0), node(1));
    again.add(stream(most), node(1));
    assert_eq!(again.due(node(1), 1), [stream(most)], "there is room again");
}

#[test]
fn rolled_back_a_relay_whose_disk_was_put_back_has_another_disk_to_its_parent() {
    let disk = |effects: &[Effect]| {
        let of = |e: &Effect| if let Effect::Greet(_, g) = e { Some(g.disk) } else { None };
        effects.iter().find_map(of).unwrap()
    };
    let mut bench = Bench::new();
    let first = disk(&bench.feed(Event::Dialling(1, PARENT)));
    bench.crash();
    assert_eq!(disk(&bench.feed(Event::Dialling(1, PARENT))), first, "a restart is none");
    bench.feed(Event::Overtaken);
    let second = disk(&bench.feed(Event::Dialling(2, PARENT)));
    assert_ne!(second, first);
    bench.feed(Event::Overtaken);
    assert_eq!(disk(&bench.feed(Event::Dialling(3, PARENT))), second, "found again while it catches up");
    bench.crash();
    assert_eq!(disk(&bench.feed(Event::Dialling(1, PARENT))), second, "it is on disk");
}

#[test]
fn rolled_back_what_a_child_relay_held_on_a_disk_that_is_gone_each_device_may_have() {
    let mut bench = super::put_back::held_by_a_nested_relay();
    let nested = child(7, Role::Relay, 1);
    let disk = nested.greeting.disk;
    bench.feed(child_says(&nested, Message::Disk(disk, 3)));
    assert_eq!(bench.core.ledger().holders(number(1), node(1)), [node(7)], "the same");
    let seen = bench.feed(child_says(&nested, Message::Disk(disk + 1, 3)));
    assert_eq!(orders_to(&seen, 7), [1], "it is offered it again");
    assert_eq!(bench.core.ledger().holders(number(1), node(1)), [node(1), node(7)]);
    bench.crash();
    bench.child_up(&child(7, Role::Relay, 2));
    assert!(bench.core.ledger().holders(number(1), node(1)).contains(&node(1)), "and after a restart");
    let agent = in_epoch(1, 9, 1, 9);
    assert!(refused(&bench.child_up(&agent)).is_empty());
    bench.feed(child_says(&agent, Message::Disk(5, 3)));
}

#[test]
fn rolled_back_a_relay_tells_how_much_is_on_its_disk_and_a_greeting_names_more() {
    let told = |effects: &[Effect]| {
        let of = |e: &Effect| if let Effect::ToParent(_, Message::Disk(_, age)) = e { Some(*age) } else { None };
        effects.iter().filter_map(of).collect::<Vec<_>>()
    };
    let greeted = |effects: &[Effect]| {
        let of = |e: &Effect| if let Effect::Greet(_, g) = e { Some(g.age) } else { None };
        effects.iter().find_map(of).unwrap()
    };
    let mut bench = Bench::new();
    let first = greeted(&bench.feed(Event::Dialling(1, PARENT)));
    assert_eq!(first, 1);
    assert!(told(&bench.feed(Event::Tick)).is_empty(), "nobody is above");
    bench.parent_up(1);
    assert_eq!(told(&bench.feed(Event::Tick)), [1]);
    assert!(told(&bench.feed(Event::Tick)).is_empty(), "nothing new");
    bench.hold = true;
    bench.given(order(1, &[1], &server_key()));
    assert!(told(&bench.feed(Event::Tick)).is_empty(), "not before it is on disk");
    bench.flush();
    assert_eq!(told(&bench.feed(Event::Tick)), [2]);
    bench.crash();
    assert_eq!(greeted(&bench.feed(Event::Dialling(1, PARENT))), 3);
}

#[test]
fn rolled_back_a_child_relay_that_told_of_more_than_it_greets_with_hears_that_its_disk_is_old() {
    let mut bench = Bench::new();
    let of_age = |session, age| {
        let mut nested = Child::clone(&child(7, Role::Relay, session));
        nested.greeting = Arc::new(Greeting { age, ..Greeting::clone(&nested.greeting) });
        Arc::new(nested)
    };
    let nested = of_age(1, 4);
    bench.child_up(&nested);
    bench.feed(child_says(&nested, Message::Disk(1, 9)));
    assert!(refused(&bench.child_up(&of_age(2, 10))).is_empty(), "a restart");
    bench.feed(child_says(&of_age(2, 10), Message::Disk(1, 12)));
    assert_eq!(refused(&bench.child_up(&of_age(3, 12))), [(node(7), 3)]);
    assert_eq!(refused(&bench.child_up(&of_age(4, 13))), [(node(7), 4)], "it has not heard");
    assert!(refused(&bench.child_up(&of_age(6, 13))).is_empty(), "whoever heard it leaves out a number");
    // What an agent says of its disk is nobody's business.
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    bench.feed(child_says(&agent, Message::Disk(1, 9)));
    assert!(refused(&bench.child_up(&child(1, Role::Agent, 2))).is_empty());
}
