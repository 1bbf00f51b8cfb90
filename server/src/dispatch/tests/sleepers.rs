//! Devices without a slot that hang on the server itself: their polls, who is woken for what, and that they go off.

use super::*;
use branchline_node::downstream::beacon::Reachable;
use branchline_protocol::{
    datagram::{DatagramKey, LinkKeys},
    wire::Lease,
};
use std::net::SocketAddr;

/// A child that polls; `port` 0: it hears no wakes.
fn poll(n: u128, session: u64, port: u16) -> Arc<Child> {
    let plain = child(n, session);
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
    bench.feed(Event::Gone(child.clone(), LinkEnd::Closed(Goodbye::Done)))
}

#[test]
fn adm_2_a_poll_ends_when_what_it_was_offered_is_taken() {
    let mut bench = Bench::new();
    bench.issue(&[1]);
    let lease = branchline_protocol::wire::Lease { interval_ms: 1_000, phase_ms: 0, waiter: 1 };
    let poll = Arc::new(Child { lease: Some(lease), ..Child::clone(&child(1, 1)) });
    let goodbye = |effects: &[Effect]| effects.iter().any(|e| matches!(e, Effect::Goodbye(_, 1, Goodbye::Done)));
    assert_eq!(orders_to(&bench.feed(Event::Up(poll.clone())), 1), [1]);
    assert!(!goodbye(&bench.feed(Event::Done(poll.clone()))), "it has an order in hand that is not journalled");
    let seen = bench.said(&poll, Message::Taken(vec![(ORDER, vec![node(1)])]));
    assert!(goodbye(&seen));
    assert_eq!(bench.states(1), [State::Delivered]);
}

#[test]
fn adm_15_a_sleeping_device_is_woken_once_its_order_is_durable() {
    let mut bench = Bench::new();
    let sleeper = poll(1, 1, 15_000);
    let seen = bench.feed(Event::Up(sleeper.clone()));
    assert!(seen.iter().any(|e| matches!(e, Effect::Reachable(n, Some(_)) if *n == node(1))), "{seen:?}");
    ended(&mut bench, &sleeper);
    assert_eq!(bench.stands(1), "online");
    bench.hold = true;
    assert_eq!(woken(&bench.issue(&[1])), [], "it would find nothing");
    assert_eq!(woken(&bench.flush()), [node(1)]);
}

#[test]
fn adm_17_a_device_that_came_through_the_gateway_is_never_woken() {
    let mut bench = Bench::new();
    let outside = Arc::new(Child { gateway: Some(node(300)), ..Child::clone(&poll(1, 1, 15_000)) });
    bench.feed(Event::Up(outside.clone()));
    ended(&mut bench, &outside);
    assert_eq!(woken(&bench.issue(&[1])), []);
}

#[test]
fn adm_15_a_device_that_goes_outside_is_forgotten_and_one_inside_is_known_after_a_restart() {
    let mut bench = Bench::new();
    let sleeper = poll(1, 1, 15_000);
    bench.feed(Event::Up(sleeper.clone()));
    let row = |bench: &Bench| {
        let wake = |op: &&Op| matches!(op, Op::Meta(key, _) if key == &format!("wake/acme/{}", node(1)));
        let last = bench.ops.iter().rfind(wake);
        last.and_then(|op| if let Op::Meta(_, value) = op { Reachable::from_bytes(value) } else { None })
    };
    let known = row(&bench).expect("a row");
    assert_eq!(Some(&known), sleeper.reachable().as_ref());
    let found = Recovered { reachable: vec![(node(1), known)], tenants: vec![tenant()], ..Recovered::default() };
    let mut again = Bench { core: Core::recover(found).unwrap(), ..Bench::new() };
    again.feed(Event::Node(Box::new(super::row(1))));
    again.issue(&[1]);
    assert_eq!(woken(&again.feed(Event::Tick)), [node(1)], "nothing was heard of it since the start");
    assert_eq!(woken(&again.feed(Event::Tick)), [], "once");
    bench.feed(Event::Up(Arc::new(Child { gateway: Some(node(300)), ..Child::clone(&poll(1, 2, 15_000)) })));
    assert_eq!(row(&bench), None);
}

#[test]
fn adm_18_a_notice_shows_the_device_as_shut_down_and_drops_its_link() {
    let mut bench = Bench::new();
    let holder = child(1, 5);
    bench.feed(Event::Up(holder.clone()));
    let key = |attachment| AttachmentKey { epoch: 1, attachment };
    assert!(bench.feed(Event::GoesOff(tenant(), node(1), key(4))).is_empty());
    assert!(bench.feed(Event::GoesOff("other".parse().unwrap(), node(1), key(5))).is_empty(), "another tenant's");
    assert_eq!(bench.stands(1), "online");
    let seen = bench.feed(Event::GoesOff(tenant(), node(1), key(5)));
    assert!(seen.iter().any(|e| matches!(e, Effect::Drop(n, 5) if *n == node(1))), "{seen:?}");
    bench.feed(Event::Gone(holder, LinkEnd::Orphaned));
    let state = bench.core.tenant(&tenant()).unwrap();
    assert_eq!(state.directory.get(node(1)).unwrap().reach, Reach::GoneShutdown, "and not lost");
    bench.feed(Event::Up(child(1, 6)));
    assert!(bench.feed(Event::GoesOff(tenant(), node(1), key(5))).is_empty());
    assert_eq!(bench.stands(1), "online");
}

#[test]
fn adm_3_an_order_in_progress_asks_for_the_slot_of_a_device_that_hangs_here_and_of_no_other() {
    let mut bench = Bench::new();
    let (device, relay) = (child(1, 1), child(100, 2));
    bench.feed(Event::Up(device.clone()));
    bench.feed(Event::Up(relay.clone()));
    bench.said(&relay, presence(vec![below(2, 1)]));
    assert!(bench.core.demands().is_empty());
    bench.issue(&[1, 2]);
    let asked = bench.core.demands();
    assert_eq!(asked.iter().map(|(n, d)| (*n, d.in_progress, d.urgent)).collect::<Vec<_>>(), [(node(1), true, false)]);
    // It goes below the relay: the slot is the relay's to keep.
    bench.said(&relay, presence(vec![below(1, 2)]));
    assert!(bench.core.demands().is_empty());
}
