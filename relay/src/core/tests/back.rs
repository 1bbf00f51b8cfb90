//! What is given back, by whom and when: late orders, cancelled ones, whatever came first, crashes in between.

use super::*;
use branchline_node::store::Table;
use branchline_protocol::{
    document::TimeStatement,
    job::{CANCEL, Cancel},
    record::Record,
};
use std::collections::BTreeSet;

/// Of the orders of these tests.
pub const FETCH_BY: u64 = 1_000_000;
const REPORT_BY: u64 = FETCH_BY + 10 + 86_400_000;

pub fn number(n: u64) -> OrderNumber {
    OrderNumber { term: 1, number: n }
}

/// The order that cancels `target` on these devices.
pub fn cancel(n: u64, target: u64, devices: &[u128]) -> OrderMessage {
    let mut message = order(n, devices, &server_key());
    let mut payload: Payload = rmp_serde::from_slice(&message.envelope.payload).unwrap();
    message.args = rmp_serde::to_vec_named(&Cancel { target: number(target) }).unwrap().into();
    (payload.verb, payload.class) = (CANCEL.into(), Class::Urgent);
    (payload.args_hash, payload.fetch_by) = (Hash::of(&message.args), Millis(REPORT_BY as i64));
    let bytes = rmp_serde::to_vec_named(&payload).unwrap();
    message.envelope = Envelope::sign(ORDER_PAYLOAD_TYPE, bytes, &server_key());
    message
}

impl Bench {
    pub fn given(&mut self, message: OrderMessage) -> Vec<Effect> {
        self.feed(parent_says(Message::Orders(vec![message])))
    }

    /// The relay has heard the server's time: before that nothing is late.
    pub fn timed(&mut self) {
        self.feed(parent_says(Message::Document(Kind::Time, statement(1, 1))));
    }

    /// What this relay wrote down as given back: (order, device).
    pub fn back(&self) -> BTreeSet<(u64, u128)> {
        let mut back = BTreeSet::new();
        self.store
            .scan_all(Table::Spool, |key, value| {
                // Devices' own records pass through here.
                if !key.starts_with(RELAY.bytes()) {
                    return;
                }
                let record: Record = rmp_serde::from_slice(&value).unwrap();
                if record.class == class::FACTS {
                    let facts: Facts = rmp_serde::from_slice(&record.body).unwrap();
                    for (order, fact, devices) in facts.facts.into_iter().filter(|(_, f, _)| *f == Fact::GivenBack) {
                        assert_eq!(fact, Fact::GivenBack);
                        back.extend(devices.into_iter().map(|d| (order.number, d.0.as_u128())));
                    }
                }
            })
            .unwrap();
        back
    }

    fn says(&mut self, child: &Arc<Child>, fact: Fact, order: u64, device: u128) -> Vec<Effect> {
        self.says_by(child, child.node, fact, order, device)
    }

    /// The same by a node below the child.
    pub fn says_by(&mut self, child: &Arc<Child>, by: NodeId, fact: Fact, order: u64, device: u128) -> Vec<Effect> {
        self.clock += 1;
        let mut spool = Spool::new(by, 1, self.clock);
        let facts = Facts { facts: vec![(number(order), fact, vec![node(device)])] };
        let mut batch = Batch::new();
        let body = rmp_serde::to_vec(&facts).unwrap();
        let mark = spool.append(Millis(5), Lane::Urgent, class::FACTS, None, body.into(), &mut batch);
        spool.committed(&mark);
        spool.link_up(RELAY, 1);
        let run = spool.take().unwrap().1.remove(0);
        self.feed(child_says(child, Message::Records(vec![run])))
    }

    pub fn nested(&mut self, relay: &Arc<Child>, device: u128, attachment: u64) -> Vec<Effect> {
        let entry = branchline_protocol::wire::PresenceEntry {
            node: node(device),
            role: Role::Agent,
            key: AttachmentKey { epoch: 1, attachment },
            via: vec![],
            reach: branchline_protocol::wire::Reach::Persistent,
            last_contact: Millis(1),
            next_contact: None,
            capabilities: [].into(),
            figures: None,
            settings: (0, 0),
            poll_interval_ms: None,
            slot: None,
        };
        self.feed(child_says(relay, Message::Presence { snapshot: false, entries: vec![entry] }))
    }
}

fn statement(time: u64, version: u64) -> Envelope {
    let (tenant, term, time) = (tenant(), 1, Millis(time as i64));
    let (order_floor, trust_version, settings_version, revocations_version) = (0, 1, 1, 1);
    let statement = TimeStatement {
        tenant,
        time,
        term,
        version,
        order_floor,
        trust_version,
        settings_version,
        revocations_version,
        restored_from: None,
    };
    statement.seal(&server_key())
}

#[test]
fn job_4_an_unsent_order_goes_back_one_millisecond_past_its_time_with_the_uplink_cut() {
    let mut bench = Bench::new();
    bench.timed();
    bench.given(order(1, &[1, 2], &server_key()));
    bench.child_up(&child(2, Role::Agent, 2));
    bench.clock = FETCH_BY - 1;
    bench.feed(Event::Tick);
    assert!(bench.back().is_empty(), "exactly at fetch_by it may still be fetched");
    bench.feed(Event::Tick);
    assert_eq!(bench.back(), [(1, 1)].into(), "device 2 may have it");
    assert_eq!(bench.core.ledger().open_rows(), 1);
    bench.crash();
    assert_eq!(bench.back(), [(1, 1)].into(), "told durably, in the same write");
    assert!(orders_to(&bench.child_up(&child(1, Role::Agent, 3)), 1).is_empty(), "and never handed on");
    let up = bench.parent_up(1);
    assert!(records_up(&up).contains(&(RELAY, class::FACTS)));
    bench.clock = REPORT_BY;
    bench.feed(Event::Tick);
    assert_eq!(bench.core.ledger().open_rows(), 0, "nobody waits for it any more");
}

#[test]
fn job_4_what_a_device_gives_back_this_relay_gives_back_too() {
    let mut bench = Bench::new();
    bench.timed();
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    assert_eq!(orders_to(&bench.given(order(1, &[1], &server_key())), 1), [1]);
    bench.says(&agent, Fact::GivenBack, 1, 1);
    assert!(bench.back().is_empty(), "not before it is late by this relay's own time");
    let again = child(1, Role::Agent, 2);
    assert!(orders_to(&bench.child_up(&again), 1).is_empty(), "nor is it handed on again");
    bench.clock = FETCH_BY;
    bench.feed(Event::Tick);
    assert_eq!((bench.back(), bench.core.ledger().open_rows()), ([(1, 1)].into(), 0));
}

#[test]
fn rly_9_a_device_gives_nothing_back_for_others() {
    let mut bench = Bench::new();
    let (one, two) = (child(1, Role::Agent, 1), child(2, Role::Agent, 2));
    bench.child_up(&one);
    bench.child_up(&two);
    bench.given(order(1, &[1, 2], &server_key()));
    bench.says(&one, Fact::GivenBack, 1, 2);
    assert!(bench.back().is_empty());
    assert_eq!(bench.core.ledger().holders(number(1), node(2)), [node(2)]);
}

#[test]
fn a_late_order_is_taken_and_given_back_and_stays_late_after_a_restart() {
    let mut bench = Bench::new();
    bench.feed(parent_says(Message::Document(Kind::Time, statement(1, 1))));
    bench.child_up(&child(1, Role::Agent, 1));
    bench.clock = FETCH_BY;
    let seen = bench.given(order(1, &[1], &server_key()));
    assert_eq!((taken(&seen), orders_to(&seen, 1).len()), (1, 0));
    assert_eq!(bench.back(), [(1, 1)].into());
    bench.crash();
    assert_eq!(bench.core.kept_time(), Some(Millis(FETCH_BY as i64 + 1)), "node time goes on from where it said so");
}

#[test]
fn job_4_node_time_is_written_down_every_ten_minutes_so_that_a_cut_relay_expires_in_time_after_a_restart() {
    let mut bench = Bench::new();
    bench.feed(Event::Tick);
    bench.crash();
    assert_eq!(bench.core.kept_time(), None, "the wall clock alone is nobody's word");
    bench.clock = 1_000;
    let seen = bench.feed(parent_says(Message::Document(Kind::Time, statement(5_000, 1))));
    assert!(seen.iter().any(|e| matches!(e, Effect::LearnTime(Millis(5_000), _))));
    bench.crash();
    assert_eq!(bench.core.kept_time(), Some(Millis(5_000)));
    assert!(bench.core.shelf().time().is_some(), "children are told it too");
    let fsyncs = bench.store.fsyncs();
    bench.clock = 5_000;
    (0..100).for_each(|_| drop(bench.feed(Event::Tick)));
    bench.feed(parent_says(Message::Document(Kind::Time, statement(65_000, 2))));
    assert_eq!(bench.store.fsyncs(), fsyncs, "no sync for a minute's statement");
    bench.clock = 605_000;
    bench.feed(Event::Tick);
    bench.crash();
    assert_eq!(bench.core.kept_time(), Some(Millis(605_001)));
}

#[test]
fn job_14_an_order_nobody_was_offered_goes_back_and_the_cancel_goes_on_to_the_device() {
    let mut bench = Bench::new();
    bench.given(order(1, &[1, 2], &server_key()));
    bench.child_up(&child(2, Role::Agent, 2));
    bench.hold = true;
    let seen = bench.given(cancel(2, 1, &[1, 2]));
    assert_eq!(taken(&seen), 0, "not before the tombstones are on disk");
    let seen = bench.flush();
    assert_eq!((taken(&seen), orders_to(&seen, 2)), (1, vec![1]), "the device that may have it is told");
    assert_eq!(bench.back(), [(1, 1)].into());
    let seen = bench.child_up(&child(1, Role::Agent, 1));
    assert_eq!(orders_to(&seen, 1), [1], "the cancel alone");
    assert_eq!(bench.core.ledger().row(number(1), node(1)), None);
}

#[test]
fn job_14_a_cancel_that_came_first_is_remembered_across_a_crash_and_the_order_is_never_handed_on() {
    let mut bench = Bench::new();
    bench.timed();
    bench.given(cancel(2, 1, &[1]));
    bench.crash();
    let agent = child(1, Role::Agent, 1);
    assert_eq!(orders_to(&bench.child_up(&agent), 1), [1], "the cancel");
    bench.feed(child_says(&agent, Message::Taken(vec![(number(2), vec![node(1)])])));
    let seen = bench.given(order(1, &[1], &server_key()));
    assert_eq!((taken(&seen), orders_to(&seen, 1).len()), (1, 0), "taken, and given back");
    assert_eq!(bench.back(), [(1, 1)].into());
    bench.clock = REPORT_BY;
    bench.feed(Event::Tick);
    bench.crash();
    assert!(!bench.core.is_dead(at(1), number(1), Millis(FETCH_BY as i64), node(1)), "forgotten after report_by");
}

#[test]
fn job_14_nothing_is_given_back_while_a_result_of_it_is_on_its_way() {
    let mut bench = Bench::new();
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    bench.given(order(1, &[1], &server_key()));
    bench.feed(child_says(&agent, Message::Taken(vec![(number(1), vec![node(1)])])));
    bench.feed(child_says(&agent, Message::Records(vec![results(1, 1, "out")])));
    // The parent did not hear that it was taken, and offers it again behind the cancel.
    bench.given(cancel(2, 1, &[1]));
    bench.given(order(1, &[1], &server_key()));
    assert!(bench.back().is_empty(), "the device ran it");
}

#[test]
fn job_14_an_order_that_comes_again_while_its_result_is_on_its_way_is_not_given_back_when_it_is_cancelled() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    bench.given(order(1, &[1], &server_key()));
    bench.feed(child_says(&agent, Message::Taken(vec![(number(1), vec![node(1)])])));
    bench.feed(child_says(&agent, Message::Records(vec![results(1, 1, "out")])));
    bench.feed(Event::ChildGone(agent, LinkEnd::Silent));
    let seen = bench.given(order(1, &[1], &server_key()));
    let taken = |e: &Effect| matches!(e, Effect::ToParent(_, Message::Taken(t)) if *t == [(number(1), vec![node(1)])]);
    assert!(seen.iter().any(taken), "{seen:?}");
    bench.given(cancel(2, 1, &[1]));
    assert_eq!(bench.back(), BTreeSet::new());
}

#[test]
fn job_14_a_cancelled_order_that_was_offered_stays_until_its_holders_answer() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let nested = child(7, Role::Relay, 1);
    bench.child_up(&nested);
    bench.nested(&nested, 1, 1);
    assert_eq!(orders_to(&bench.given(order(1, &[1], &server_key())), 7), [1]);
    bench.feed(child_says(&nested, Message::Taken(vec![(number(1), vec![node(1)])])));
    // The device moves here: it is offered what the nested relay holds, too.
    let here = child(1, Role::Agent, 5);
    assert_eq!(orders_to(&bench.child_up(&here), 1), [1]);
    bench.crash();
    bench.child_up(&child(1, Role::Agent, 6));
    let seen = bench.given(cancel(2, 1, &[1]));
    assert_eq!(orders_to(&seen, 1), [1]);
    bench.crash();
    let nested = child(7, Role::Relay, 2);
    assert_eq!(orders_to(&bench.child_up(&nested), 7), [1], "the relay it left is told, after a crash too");
    bench.says(&nested, Fact::GivenBack, 1, 1);
    assert!(bench.back().is_empty(), "the device may have it");
    let here = child(1, Role::Agent, 7);
    bench.child_up(&here);
    bench.says(&here, Fact::GivenBack, 1, 1);
    assert_eq!(bench.back(), [(1, 1)].into());
}

#[test]
fn a_nested_relay_that_lost_its_disk_leaves_the_device_as_holder() {
    let mut bench = Bench::new();
    let nested = child(7, Role::Relay, 1);
    bench.child_up(&nested);
    bench.nested(&nested, 1, 1);
    bench.given(order(1, &[1], &server_key()));
    bench.crash();
    let mut replaced = Child::clone(&child(7, Role::Relay, 2));
    replaced.greeting = Arc::new(Greeting { incarnation: 99, disk: 99, ..Greeting::clone(&replaced.greeting) });
    bench.child_up(&Arc::new(replaced));
    assert_eq!(bench.core.ledger().holders(number(1), node(1)), [node(1)], "known although this relay restarted");
    bench.given(cancel(2, 1, &[1]));
    assert!(bench.back().is_empty());
}

#[test]
fn an_order_that_comes_twice_for_overlapping_devices_is_whole_after_a_crash() {
    let mut bench = Bench::new();
    bench.given(order(1, &[1, 3], &server_key()));
    bench.given(order(1, &[1, 2], &server_key()));
    bench.crash();
    for device in [1, 2, 3] {
        assert_eq!(orders_to(&bench.child_up(&child(device, Role::Agent, 1)), device), [1], "device {device}");
    }
}

#[test]
fn this_disks_number_outlives_restarts() {
    let mut bench = Bench::new();
    let greeted = |seen: Vec<Effect>| {
        let greeting = seen.into_iter().find_map(|e| if let Effect::Greet(_, g) = e { Some(g) } else { None });
        greeting.unwrap().disk
    };
    let first = greeted(bench.feed(Event::Dialling(1, PARENT)));
    bench.crash();
    assert_eq!(greeted(bench.feed(Event::Dialling(1, PARENT))), first);
}

#[test]
fn job_16_a_suspended_device_is_handed_nothing_and_gets_what_waited_once_it_is_revived() {
    let mut bench = Bench::new();
    bench.child_up(&child(1, Role::Agent, 1));
    let list = |version: u64, suspended: Vec<NodeId>| {
        let list = Revocations {
            tenant: tenant(),
            term: 1,
            version,
            revoked: vec![],
            suspended,
            raised: vec![],
            keep_connection: vec![],
        };
        parent_says(Message::Document(Kind::Revocations, list.seal(&server_key())))
    };
    bench.feed(list(2, vec![node(1)]));
    bench.crash();
    assert!(orders_to(&bench.child_up(&child(1, Role::Agent, 2)), 1).is_empty());
    let seen = bench.given(order(1, &[1], &server_key()));
    assert_eq!((taken(&seen), orders_to(&seen, 1).len()), (1, 0), "remembered across a crash");
    bench.hold = true;
    assert!(orders_to(&bench.feed(list(3, vec![])), 1).is_empty());
    assert_eq!(orders_to(&bench.flush(), 1), [1], "once the newer list is on disk");
}

#[test]
fn off_3_on_return_a_relay_sends_what_it_holds_at_once_and_hands_down_revocations_first_and_orders_last() {
    let mut bench = Bench::new();
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    bench.feed(child_says(&agent, Message::Records(vec![results(1, 1, "out")])));
    let up = bench.parent_up(1);
    assert_eq!(records_up(&up), [(node(1), class::RESULT)], "before the parent has said anything");
    let list = Revocations {
        tenant: tenant(),
        term: 1,
        version: 2,
        revoked: vec![(node(9), 1)],
        suspended: vec![],
        raised: vec![],
        keep_connection: vec![],
    };
    bench.feed(parent_says(Message::Document(Kind::Revocations, list.seal(&server_key()))));
    bench.feed(parent_says(Message::Document(Kind::Time, statement(5, 1))));
    bench.feed(Event::ChildGone(agent, LinkEnd::Silent));
    bench.given(order(2, &[1], &server_key()));
    let seen = bench.child_up(&child(1, Role::Agent, 2));
    let down: Vec<&Message> = seen
        .iter()
        .filter_map(|e| match e {
            Effect::ToChild(_, _, _, message @ (Message::Document(..) | Message::Orders(_))) => Some(message),
            _ => None,
        })
        .collect();
    assert!(matches!(down.first(), Some(Message::Document(Kind::Revocations, _))), "{down:?}");
    assert!(matches!(down.last(), Some(Message::Orders(_))), "{down:?}");
}
