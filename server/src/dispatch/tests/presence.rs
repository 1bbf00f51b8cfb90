//! What is shown of devices whose parent has lost sight of them without their doing.

use super::*;
use crate::dispatch::PERSISTENT_MS;
use branchline_node::downstream::directory::AWAITED_MS;
use branchline_protocol::capability::Reached;
use branchline_protocol::wire::SlotStanding;

fn reason(bench: &Bench, n: u128) -> (&'static str, Option<String>) {
    let state = bench.core.tenant(&tenant()).unwrap();
    let standing = standing(state, &state.nodes[&node(n)], Millis(bench.clock as i64));
    (standing.state, standing.reason)
}

fn unknown(behind: &str) -> (&'static str, Option<String>) {
    ("unknown", Some(behind.into()))
}

fn timed_out() -> (&'static str, Option<String>) {
    ("offline", Some("timeout".into()))
}

#[test]
fn rly_11_devices_of_a_restarted_relay_are_unknown_until_they_are_back_or_two_minutes_are_over() {
    let mut bench = Bench::new();
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    bench.said(&relay, presence(vec![below(2, 1), below(3, 1)]));
    bench.feed(Event::Gone(relay, LinkEnd::Goodbye(Goodbye::Stopping)));
    assert_eq!(reason(&bench, 100), ("offline", Some("shutdown".into())));
    let again = child(100, 2);
    bench.feed(Event::Up(again.clone()));
    bench.said(&again, presence(vec![]));
    assert_eq!(reason(&bench, 2), unknown("behind n100"), "the relay has not heard of it yet");
    bench.feed(Event::Tick);
    let looked_at = bench.clock;
    bench.said(&again, Message::Presence { snapshot: false, entries: vec![below(2, 2)] });
    assert_eq!((bench.stands(2), bench.stands(3)), ("online", "unknown"));
    bench.clock = looked_at + AWAITED_MS as u64 - 2;
    bench.feed(Event::Tick);
    assert_eq!(reason(&bench, 3), unknown("behind n100"));
    bench.feed(Event::Tick);
    assert_eq!((reason(&bench, 3), bench.stands(2)), (timed_out(), "online"));
}

#[test]
fn devices_behind_a_nested_relay_that_is_awaited_are_unknown_behind_it() {
    let mut bench = Bench::new();
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    let nested = PresenceEntry { role: Role::Relay, ..below(101, 1) };
    let device = PresenceEntry { via: vec![node(101)], ..below(2, 1) };
    bench.said(&relay, presence(vec![nested.clone(), device.clone()]));
    assert_eq!((bench.stands(2), bench.stands(101)), ("online", "online"));
    bench.said(&relay, presence(vec![]));
    assert_eq!((reason(&bench, 101), reason(&bench, 2)), (unknown("behind n100"), unknown("behind n101")));
    bench.said(&relay, presence(vec![PresenceEntry { key: AttachmentKey { epoch: 1, attachment: 2 }, ..nested }]));
    assert_eq!((bench.stands(101), reason(&bench, 2)), ("online", unknown("behind n101")));
}

#[test]
fn after_a_restart_of_the_server_a_device_is_awaited_before_it_is_called_off() {
    let known = NodeRow { last_contact: Some(Millis(5)), attachment: 4, ..row(1) };
    let recovered = Recovered { nodes: vec![known], tenants: vec![tenant()], ..Recovered::default() };
    let mut bench = Bench { core: Core::recover(recovered).unwrap(), ..Bench::new() };
    assert_eq!(reason(&bench, 1), unknown("awaited"));
    bench.feed(Event::Tick);
    bench.clock += AWAITED_MS as u64;
    bench.feed(Event::Tick);
    assert_eq!(reason(&bench, 1), timed_out());
}

#[test]
fn a_link_that_the_server_ends_to_rebuild_itself_says_nothing_of_its_device() {
    let mut bench = Bench::new();
    bench.feed(Event::Up(child(1, 1)));
    bench.feed(Event::Gone(child(1, 1), LinkEnd::Closed(Goodbye::Stopping)));
    assert_eq!(reason(&bench, 1), unknown("awaited"));
    bench.feed(Event::Up(child(1, 2)));
    assert_eq!(bench.stands(1), "online");
    assert!(bench.core.is_stale(&child(1, 2)) && !bench.core.is_stale(&child(1, 3)));
}

fn through(gateway: Option<u128>, of: Arc<Child>) -> Arc<Child> {
    Arc::new(Child { gateway: gateway.map(node), ..Arc::unwrap_or_clone(of) })
}

fn reached(bench: &Bench, n: u128) -> Option<Reached> {
    let state = bench.core.tenant(&tenant()).unwrap();
    standing(state, &state.nodes[&node(n)], Millis(bench.clock as i64)).reached
}

#[test]
fn top_7_how_a_device_is_reached_follows_its_newest_link() {
    let mut bench = Bench::new();
    assert_eq!(reached(&bench, 1), None, "nobody has heard of it");
    bench.feed(Event::Up(through(None, child(1, 1))));
    assert_eq!(reached(&bench, 1), Some(Reached::Direct));
    bench.feed(Event::Gone(child(1, 1), LinkEnd::Goodbye(Goodbye::Moving)));
    assert_eq!(reason(&bench, 1), unknown("awaited"), "it is on its way, not switched off");
    bench.feed(Event::Up(through(Some(60), child(1, 2))));
    assert_eq!((reached(&bench, 1), bench.stands(1)), (Some(Reached::Gateway), "online"));
    bench.feed(Event::Gone(child(1, 2), LinkEnd::Silent));
    assert_eq!(reached(&bench, 1), Some(Reached::Gateway), "where it was last");
    let relay = through(Some(60), child(100, 1));
    bench.feed(Event::Up(relay.clone()));
    bench.said(&relay, presence(vec![below(1, 3), below(2, 1)]));
    assert_eq!((reached(&bench, 1), reached(&bench, 2)), (Some(Reached::Relay), Some(Reached::Relay)));
    bench.feed(Event::Up(through(None, child(1, 4))));
    assert_eq!(reached(&bench, 1), Some(Reached::Direct), "back inside");
}

#[test]
fn adm_9_a_device_is_promised_what_its_parent_leases_and_only_while_it_is_online() {
    let mut bench = Bench::new();
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    let slot = Some(SlotStanding { since: Millis(7), waiter: 3 });
    let polls = PresenceEntry { reach: Reach::Polling, poll_interval_ms: Some(600_000), slot, ..below(2, 1) };
    bench.said(&relay, presence(vec![polls, below(3, 1)]));
    let shown = |bench: &Bench, n| {
        let state = bench.core.tenant(&tenant()).unwrap();
        let standing = standing(state, &state.nodes[&node(n)], Millis(bench.clock as i64));
        (standing.promise.map(|p| (p.urgent_ms, p.normal_ms)), standing.slot)
    };
    assert_eq!(shown(&bench, 2), (Some((660_000, 660_000)), slot));
    assert_eq!(shown(&bench, 3), (Some((PERSISTENT_MS, PERSISTENT_MS)), None));
    bench.feed(Event::Gone(relay, LinkEnd::Lost("cut".into())));
    assert_eq!(shown(&bench, 2), (None, slot), "nothing is promised behind a relay that is cut off");
}

/// A poll that takes nearly as long as the interval leaves little until the next.
#[test]
fn a_polling_device_is_away_after_three_intervals_of_its_lease_however_long_its_last_poll_took() {
    let mut bench = Bench::new();
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    let began = bench.clock as i64;
    let polls = PresenceEntry {
        reach: Reach::Polling,
        last_contact: Millis(began + 1_990),
        next_contact: Some(Millis(began + 2_000)),
        poll_interval_ms: Some(2_000),
        ..below(2, 1)
    };
    bench.said(&relay, presence(vec![polls]));
    bench.clock = (began + 8_000) as u64;
    assert_eq!(reason(&bench, 2), ("online", None));
    bench.clock += 1;
    assert_eq!(reason(&bench, 2), timed_out());
}

pub(super) fn below(n: u128, attachment: u64) -> PresenceEntry {
    PresenceEntry {
        node: node(n),
        role: Role::Agent,
        key: AttachmentKey { epoch: 1, attachment },
        via: vec![],
        reach: Reach::Persistent,
        last_contact: Millis(1),
        next_contact: None,
        capabilities: [].into(),
        figures: None,
        settings: (0, 0),
        poll_interval_ms: None,
        slot: None,
    }
}

pub(super) fn presence(entries: Vec<PresenceEntry>) -> Message {
    Message::Presence { snapshot: true, entries }
}

#[test]
fn devices_that_declared_the_same_share_its_text_after_a_restart() {
    let declared = |n, word: &str| NodeRow { capabilities: [word.to_owned()].into(), ..row(n) };
    let nodes = vec![declared(1, "restart"), declared(2, "restart"), declared(3, "run_script")];
    let core = Core::recover(Recovered { nodes, tenants: vec![tenant()], ..Recovered::default() }).unwrap();
    let [one, two, three] = [1, 2, 3].map(|n| &core.tenant(&tenant()).unwrap().nodes[&node(n)].capabilities);
    assert!(Arc::ptr_eq(one, two), "one text in memory");
    assert_eq!((&one[..], &three[..]), (&["restart".to_owned()][..], &["run_script".to_owned()][..]));
}
