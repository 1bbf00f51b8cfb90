//! A disk that was put back to an older state: how this device learns of it, what it does until it has another epoch, and
//! what becomes of orders of the epochs before (DESIGN 5).

use super::*;
use branchline_protocol::{
    chain::ROLLBACK,
    document::Revocations,
    job::End,
    record::{Alert, RolledBack, StreamId},
    wire::Ack,
};

fn list(version: u64, raised: Vec<(NodeId, u32)>) -> Event {
    let (revoked, suspended) = (vec![], vec![]);
    document(
        &Revocations { tenant: tenant(), term: 1, version, revoked, suspended, raised, keep_connection: vec![] },
        &server(),
    )
}

/// What the disk has to tell of itself: the epochs that are named.
fn told(bench: &Bench) -> Vec<u32> {
    let records = bench.disk.records(class::ROLLED_BACK);
    records.iter().map(|r| rmp_serde::from_slice::<RolledBack>(&r.body).unwrap().epoch).collect()
}

fn greeted(effects: &[Effect]) -> (u32, u64) {
    let greeting = effects.iter().find_map(|e| if let Effect::Greet(_, g) = e { Some(g) } else { None }).unwrap();
    (greeting.epoch, greeting.attachment)
}

fn left(effects: &[Effect]) -> Vec<String> {
    let lists = effects.iter().filter_map(|e| if let Effect::Send(_, Message::Left(l)) = e { Some(l) } else { None });
    lists.flatten().map(|(_, _, why)| why.clone()).collect()
}

fn bound_to(epoch: u32, n: u64) -> OrderMessage {
    sign(payload(n, RUN_SCRIPT, &script()), script(), Leaf { device: ME, epoch }, &server())
}

#[test]
fn rolled_back_is_known_by_a_refusal_as_stale_said_durably_and_nothing_is_taken_or_begun() {
    let mut bench = Bench::running();
    let mut later = payload(1, RUN_SCRIPT, &script());
    later.not_before = Millis(START + 60_000);
    bench.settle(message(Lane::Work, Message::Orders(vec![sign(later, script(), mine(), &server())])));
    bench.settle(Event::Down);
    assert_eq!(greeted(&bench.settle(Event::Dialling { dial: 1, parent: PARENT })), (2, 1));
    bench.settle(Event::Overtaken);
    assert_eq!(told(&bench), [2]);
    let alerts = bench.disk.records(class::ALERT);
    let codes: Vec<_> = alerts.iter().map(|r| rmp_serde::from_slice::<Alert>(&r.body).unwrap().code).collect();
    assert_eq!(codes, ["store_rolled_back"]);
    assert_eq!(greeted(&bench.settle(Event::Dialling { dial: 2, parent: PARENT })), (2, 3), "it catches up");
    bench.settle(Event::Overtaken);
    assert_eq!(greeted(&bench.settle(Event::Dialling { dial: 3, parent: PARENT })), (2, 6), "in growing steps");
    assert_eq!(told(&bench), [2], "once");
    bench.crash();
    bench.wake();
    bench.connect(None);
    assert_eq!(left(&bench.settle(message(Lane::Work, Message::Orders(vec![script_order(2)])))), ["rolled_back"]);
    let cancel = rmp_serde::to_vec_named(&branchline_protocol::job::Cancel { target: number(5) }).unwrap().into();
    let cancel = order(3, branchline_protocol::job::CANCEL, cancel);
    assert_eq!(
        left(&bench.settle(message(Lane::Urgent, Message::Orders(vec![cancel])))),
        ["rolled_back"],
        "nor a cancel: it would be answered by what this disk knows"
    );
    bench.pass(60_000);
    assert!(starts(&bench.settle(Event::Tick)).is_empty(), "what was taken is not begun");
    let due = bench.core.next_deadline(bench.now).is_some_and(|at| at <= bench.now.mono);
    assert!(!due, "nor is its time awaited for ever");
}

#[test]
fn rolled_back_is_known_by_records_that_others_remember_and_by_a_number_with_another_hash() {
    let forked = vec![(1, ROLLBACK.to_string())];
    for (stored, refused) in [(99, vec![]), (0, forked)] {
        let mut bench = Bench::running();
        bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
        bench.settle(ended(1, finished(0)));
        bench.crash();
        bench.wake();
        bench.connect(None);
        let of = |epoch| {
            let stream = StreamId { node: ME, epoch, incarnation: 1, lane: Lane::Work };
            let acks = vec![Ack { stream, stored, settled: stored.min(1), refused: refused.clone() }];
            message(Lane::Control, Message::Acks(acks))
        };
        bench.settle(of(1));
        assert!(told(&bench).is_empty(), "an earlier epoch's disk has been dealt with");
        bench.settle(of(2));
        assert_eq!(told(&bench), [2]);
    }
}

#[test]
fn rolled_back_is_said_again_on_each_link_until_another_epoch_is_given() {
    let mut bench = Bench::running();
    bench.settle(Event::Overtaken);
    let settle = |bench: &mut Bench, upto| {
        let stream = StreamId { node: ME, epoch: 2, incarnation: 1, lane: Lane::Urgent };
        let acks = vec![Ack { stream, stored: upto, settled: upto, refused: vec![] }];
        bench.settle(message(Lane::Control, Message::Acks(acks)));
    };
    bench.settle(Event::Down);
    bench.connect(None);
    assert_eq!(told(&bench).len(), 1, "it is on its way already");
    settle(&mut bench, 1);
    assert!(told(&bench).is_empty(), "the server has heard of it");
    bench.settle(Event::Down);
    let effects = bench.connect(None);
    assert!(sent(&effects).iter().any(|(_, record)| record.class == class::ROLLED_BACK));
    bench.settle(list(1, vec![(ME, 3)]));
    bench.settle(Event::Down);
    bench.connect(None);
    settle(&mut bench, 2);
    bench.settle(Event::Down);
    bench.connect(None);
    assert!(told(&bench).is_empty(), "it is over");
}

/// A server that died between its write and the next epoch has it on disk, and forgot it.
#[test]
fn rolled_back_is_said_again_after_ten_minutes_on_one_link_too_once_it_is_settled() {
    let mut bench = Bench::running();
    bench.settle(Event::Overtaken);
    let due = |bench: &Bench| bench.core.rolled_back_due().is_some_and(|at| at <= bench.now.mono);
    bench.pass(super::super::rolled_back::TELL_EVERY_MS);
    assert!(due(&bench));
    bench.settle(Event::Tick);
    assert_eq!(told(&bench).len(), 2, "its settlement may have been told to nobody");
    let stream = StreamId { node: ME, epoch: 2, incarnation: 1, lane: Lane::Urgent };
    let acks = vec![Ack { stream, stored: 3, settled: 3, refused: vec![] }];
    bench.settle(message(Lane::Control, Message::Acks(acks)));
    bench.pass(super::super::rolled_back::TELL_EVERY_MS - 1);
    assert!(!due(&bench));
    bench.settle(Event::Tick);
    assert!(told(&bench).is_empty());
    bench.pass(1);
    assert!(due(&bench));
    bench.settle(Event::Tick);
    assert_eq!(told(&bench), [2]);
    bench.settle(list(1, vec![(ME, 3)]));
    assert_eq!(bench.core.rolled_back_due(), None);
}

/// It says so in a poll; the answer comes when it has gone, and the server forgets.
#[test]
fn rolled_back_a_device_that_only_polls_says_it_again_after_ten_minutes_too() {
    let lease = Lease { interval_ms: 60_000, phase_ms: 1, waiter: 0 };
    let mut bench = Bench::running();
    bench.settle(Event::Overtaken);
    let polled = |bench: &mut Bench| {
        bench.settle(Event::Down);
        assert_eq!(bench.core.rolled_back_due(), None, "nothing can be said without a link");
        let effects = bench.connect(Some(lease));
        sent(&effects).iter().filter(|(_, record)| record.class == class::ROLLED_BACK).count()
    };
    polled(&mut bench);
    let stream = StreamId { node: ME, epoch: 2, incarnation: 1, lane: Lane::Urgent };
    let acks = vec![Ack { stream, stored: 1, settled: 0, refused: vec![] }];
    bench.settle(message(Lane::Control, Message::Acks(acks)));
    bench.pass(super::super::rolled_back::TELL_EVERY_MS - 1);
    assert_eq!(polled(&mut bench), 0, "it is on its way");
    bench.pass(1);
    assert_eq!(polled(&mut bench), 1);
    assert_eq!(polled(&mut bench), 1, "sent again, for nobody stored it");
    assert_eq!(told(&bench).len(), 2, "and said no third time");
}

#[test]
fn rolled_back_another_epoch_begins_with_its_first_link_and_survives_a_crash() {
    let mut bench = Bench::running();
    bench.settle(Event::Dialling { dial: 1, parent: PARENT });
    bench.settle(Event::Overtaken);
    let effects = bench.event(list(1, vec![(NodeId(Uuid::from_u128(8)), 9), (ME, 3)]));
    assert!(!effects.contains(&Effect::Redial), "not before the list is on disk");
    assert!(bench.commit_all().contains(&Effect::Redial));
    let effects = bench.settle(Event::Down);
    assert!(effects.iter().any(|e| matches!(e, Effect::Poke(branchline_node::uplink::Poke::Urgent))), "at once");
    assert_eq!(greeted(&bench.settle(Event::Dialling { dial: 2, parent: PARENT })), (3, 1));
    bench.crash();
    bench.wake();
    assert_eq!(greeted(&bench.settle(Event::Dialling { dial: 1, parent: PARENT })), (3, 2));
    bench.connect(None);
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![bound_to(3, 1)])));
    assert_eq!(starts(&effects).len(), 1, "orders of this epoch run");
    assert_eq!(sent(&bench.settle(ended(1, finished(0)))).len(), 1);
    for (version, raised) in [(1, 3), (2, 3), (3, 2)] {
        let effects = bench.settle(list(version, vec![(ME, raised)]));
        assert!(!effects.contains(&Effect::Redial), "a replay, or an older epoch, changes nothing");
    }
    assert_eq!(bench.core.me.epoch, 3);
}

#[test]
fn rolled_back_only_the_servers_own_word_gives_another_epoch() {
    let mut bench = Bench::running();
    let (revoked, suspended, raised) = (vec![], vec![], vec![(ME, 3)]);
    let forged =
        Revocations { tenant: tenant(), term: 1, version: 1, revoked, suspended, raised, keep_connection: vec![] };
    let effects = bench.settle(document(&forged, &Signer::from_seed(&[66; 32])));
    assert!(!effects.contains(&Effect::Redial));
    assert_eq!(bench.core.me.epoch, 2);
}

#[test]
fn job_13_rolled_back_orders_of_an_earlier_epoch_end_unknown_late_or_not_unless_the_journal_has_them() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1), script_order(2)])));
    bench.settle(ended(1, finished(0)));
    let mut later = payload(3, RUN_SCRIPT, &script());
    later.not_before = Millis(START + 60_000);
    bench.settle(message(Lane::Work, Message::Orders(vec![sign(later, script(), mine(), &server())])));
    bench.settle(Event::Overtaken);
    bench.settle(list(1, vec![(ME, 3)]));
    bench.settle(Event::Down);
    bench.settle(document(&super::documents::statement(1, START, 0), &server()));
    bench.connect(None);
    bench.now.node = Millis(START + 3_600_001);
    let orders = [1, 2, 3, 4].map(|n| bound_to(2, n)).to_vec();
    let effects = bench.settle(message(Lane::Work, Message::Orders(orders)));
    assert_eq!((known_taken(&mut bench, &effects), starts(&effects).len()), (vec![1, 2, 3, 4], 0));
    bench.settle(ended(2, finished(1)));
    let mut ends: Vec<_> = bench.disk.results().into_iter().map(|r| (r.order.number, r.end, r.reason)).collect();
    ends.sort_by_key(|(order, ..)| *order);
    let unknown = |order| (order, End::OutcomeUnknown, Some("rolled_back".to_string()));
    let expected = [(1, End::Succeeded, None), (2, End::Failed, Some("exit_code".into())), unknown(3), unknown(4)];
    assert_eq!(ends, expected, "what was begun goes on, what was only taken may have run since, the rest is not known");
}

#[test]
fn an_order_for_a_later_epoch_stays_with_the_parent_until_this_device_has_heard_of_it() {
    let mut bench = Bench::running();
    assert_eq!(left(&bench.settle(message(Lane::Work, Message::Orders(vec![bound_to(3, 1)])))), ["epoch"]);
    bench.settle(list(1, vec![(ME, 3)]));
    bench.settle(Event::Down);
    bench.connect(None);
    assert_eq!(starts(&bench.settle(message(Lane::Work, Message::Orders(vec![bound_to(3, 1)])))).len(), 1);
}

#[test]
fn rolled_back_is_known_by_an_order_that_this_device_has_said_it_has() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1), script_order(2)])));
    bench.settle(ended(1, finished(0)));
    let handed = |node, epoch, orders: &[u64]| {
        message(Lane::Control, Message::Handed(node, epoch, orders.iter().map(|n| number(*n)).collect()))
    };
    bench.settle(handed(ME, 2, &[1, 2]));
    bench.settle(handed(NodeId(Uuid::from_u128(8)), 2, &[3]));
    bench.settle(handed(ME, 1, &[3]));
    assert!(told(&bench).is_empty(), "over or not, they are here; another device's, or another epoch's, say nothing");
    bench.settle(handed(ME, 2, &[2, 3]));
    assert_eq!(told(&bench), [2]);
}

#[test]
fn records_that_a_parent_has_no_more_are_sent_once_more_and_those_of_others_are_nobodys() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    let first = sent(&bench.settle(ended(1, finished(0)))).len();
    assert!(first > 0);
    let stream = |node| StreamId { node, epoch: 2, incarnation: 1, lane: Lane::Work };
    let stored = vec![Ack { stream: stream(ME), stored: first as u64, settled: 0, refused: vec![] }];
    bench.settle(message(Lane::Control, Message::Acks(stored)));
    let again = |node| message(Lane::Control, Message::Again(vec![stream(node)]));
    assert!(sent(&bench.settle(again(NodeId(Uuid::from_u128(8))))).is_empty());
    assert_eq!(sent(&bench.settle(again(ME))).len(), first);
}
