//! Devices without a slot: who is woken for what, what the disk knows of them, and that they go off.

use super::*;
use branchline_protocol::{
    datagram::{DatagramKey, LinkKeys},
    wire::{Goodbye, Lease},
};
use std::net::SocketAddr;

/// A child that polls; `port` 0: it hears no wakes.
fn poll(n: u128, session: u64, port: u16) -> Arc<Child> {
    let plain = child(n, Role::Agent, session);
    let greeting = Greeting { wake_port: port, ..Greeting::clone(&plain.greeting) };
    let lease = Some(Lease { interval_ms: 3_000_000, phase_ms: 0, waiter: 0 });
    let key = DatagramKey([session as u8; 32]);
    Arc::new(Child {
        greeting: Arc::new(greeting),
        lease,
        source: Some(SocketAddr::from(([10, 0, 0, 1], 40_000))),
        keys: Some(LinkKeys { wake: key, notice: key }),
        ..Child::clone(&plain)
    })
}

fn woken(effects: &[Effect]) -> Vec<NodeId> {
    let woken = |e: &Effect| if let Effect::Wake(node) = e { Some(*node) } else { None };
    effects.iter().filter_map(woken).collect()
}

fn ended(bench: &mut Bench, child: &Arc<Child>) -> Vec<Effect> {
    bench.feed(Event::ChildGone(child.clone(), LinkEnd::Closed(Goodbye::Done)))
}

fn given(bench: &mut Bench, number: u64, device: u128) -> Vec<Effect> {
    bench.feed(parent_says(Message::Orders(vec![order(number, &[device], &server_key())])))
}

#[test]
fn adm_15_a_sleeping_device_is_woken_for_an_order_and_a_device_that_only_polls_is_not() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    for (device, port) in [(1, 15_000), (2, 0)] {
        let sleeper = poll(device, device as u64, port);
        bench.child_up(&sleeper);
        assert_eq!(woken(&given(&mut bench, device as u64, device)), [], "its poll is up");
        bench.feed(child_says(&sleeper, Message::Taken(vec![(number(device as u64), vec![node(device)])])));
        ended(&mut bench, &sleeper);
    }
    assert_eq!(woken(&given(&mut bench, 11, 1)), [node(1)]);
    assert_eq!(woken(&given(&mut bench, 12, 2)), []);
}

#[test]
fn adm_15_an_order_that_comes_while_a_poll_ends_wakes_once_it_has_ended() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let sleeper = poll(1, 1, 15_000);
    bench.child_up(&sleeper);
    given(&mut bench, 1, 1);
    assert_eq!(woken(&ended(&mut bench, &sleeper)), [node(1)]);
    let again = poll(1, 2, 15_000);
    bench.child_up(&again);
    let lost = bench.feed(Event::ChildGone(again, LinkEnd::Lost("cut".into())));
    assert_eq!(woken(&lost), [], "it dials by itself");
}

#[test]
fn adm_17_only_the_parent_on_its_own_network_wakes() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let plain = poll(1, 1, 15_000);
    let outside = Arc::new(Child { gateway: Some(node(300)), ..Child::clone(&plain) });
    assert!(plain.is_wakeable() && !outside.is_wakeable());
    let deaf = Arc::new(Child { keys: None, ..Child::clone(&plain) });
    assert!(!deaf.is_wakeable(), "of a node whose datagrams are switched off");
    bench.child_up(&outside);
    ended(&mut bench, &outside);
    assert_eq!(woken(&given(&mut bench, 1, 1)), []);
    // A relay below wakes its own.
    bench.child_up(&child(100, Role::Relay, 1));
    let entry = PresenceEntry {
        node: node(2),
        role: Role::Agent,
        key: AttachmentKey { epoch: 1, attachment: 1 },
        via: vec![],
        reach: Reach::Wakeable,
        last_contact: Millis(1),
        next_contact: None,
        capabilities: [].into(),
        figures: None,
        settings: (0, 0),
        poll_interval_ms: None,
        slot: None,
    };
    let relay = child(100, Role::Relay, 1);
    bench.feed(child_says(&relay, Message::Presence { snapshot: true, entries: vec![entry] }));
    bench.feed(Event::ChildGone(relay, LinkEnd::Silent));
    assert_eq!(woken(&given(&mut bench, 2, 2)), []);
}

#[test]
fn adm_15_after_a_restart_what_was_held_wakes_whom_the_disk_knows() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let sleeper = poll(1, 1, 15_000);
    let seen = bench.child_up(&sleeper);
    let told = seen.iter().any(|e| matches!(e, Effect::Reachable(n, Some(_)) if *n == node(1)));
    assert!(told, "{seen:?}");
    ended(&mut bench, &sleeper);
    given(&mut bench, 1, 1);
    bench.crash();
    let known: Vec<_> = bench.core.recovered_sleepers().map(|(n, known)| (*n, known.clone())).collect();
    assert_eq!(known, [(node(1), sleeper.reachable().unwrap())]);
    assert_eq!(woken(&bench.feed(Event::Tick)), [node(1)]);
    assert_eq!(woken(&bench.feed(Event::Tick)), [], "once");
    // It comes without a port: the disk forgets it.
    bench.child_up(&Arc::new(Child { keys: None, ..Child::clone(&poll(1, 2, 0)) }));
    bench.crash();
    assert_eq!(bench.core.recovered_sleepers().count(), 0);
}

#[test]
fn adm_18_a_notice_ends_the_link_it_names_and_no_other() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let holder = child(1, Role::Agent, 5);
    bench.child_up(&holder);
    given(&mut bench, 1, 1);
    let key = |attachment| AttachmentKey { epoch: 1, attachment };
    assert!(bench.feed(Event::GoesOff(node(1), key(4))).is_empty(), "of an earlier link");
    assert!(bench.feed(Event::GoesOff(node(2), key(5))).is_empty(), "of somebody else");
    assert_eq!(bench.core.links(), 1);
    let seen = bench.feed(Event::GoesOff(node(1), key(5)));
    assert!(seen.iter().any(|e| matches!(e, Effect::DropChild(n, 5) if *n == node(1))), "{seen:?}");
    assert_eq!(bench.core.links(), 0);
    assert!(bench.feed(Event::GoesOff(node(1), key(5))).is_empty(), "the second copy");
    bench.feed(Event::ChildGone(holder, LinkEnd::Orphaned));
    let up = bench.feed(Event::Tick);
    let reach = up.iter().find_map(|e| match e {
        Effect::ToParent(_, Message::Presence { entries, .. }) => entries.iter().find(|e| e.node == node(1)),
        _ => None,
    });
    assert_eq!(reach.map(|entry| entry.reach), Some(Reach::GoneShutdown), "told upward at the next tick: {up:?}");
    let seen = bench.child_up(&child(1, Role::Agent, 6));
    assert_eq!(orders_to(&seen, 1), [1], "what was on the dropped link is offered again");
    assert!(bench.feed(Event::GoesOff(node(1), key(5))).is_empty(), "told again after it came back");
    assert_eq!(bench.core.links(), 1);
}

#[test]
fn adm_18_a_device_that_went_off_is_not_woken() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let sleeper = poll(1, 1, 15_000);
    bench.child_up(&sleeper);
    ended(&mut bench, &sleeper);
    bench.feed(Event::GoesOff(node(1), sleeper.key));
    assert_eq!(woken(&given(&mut bench, 1, 1)), []);
}

fn number(n: u64) -> OrderNumber {
    OrderNumber { term: 1, number: n }
}
