//! A server that was put back to an older state is told what it may not know, once for each term (OPS-7).

use super::{
    documents::{revocations, statement},
    *,
};
use branchline_protocol::{
    document::TimeStatement,
    wire::{Ack, Recall},
};

/// The server acknowledges every record that is on disk.
fn acknowledge(bench: &mut Bench) {
    let mut last: BTreeMap<u8, (branchline_protocol::record::StreamId, u64)> = BTreeMap::new();
    for (table, key) in bench.disk.0.keys() {
        if *table == Table::Spool {
            let stream = branchline_protocol::record::StreamId::from_key(&key[..29]).unwrap();
            let number = u64::from_be_bytes(key[29..].try_into().unwrap());
            last.insert(key[28], (stream, number));
        }
    }
    let ack = |(stream, upto)| Ack { stream, stored: upto, settled: upto, refused: vec![] };
    bench.settle(message(Lane::Control, Message::Acks(last.into_values().map(ack).collect())));
}

fn restored(term: u32, version: u64, saved: i64) -> TimeStatement {
    TimeStatement { term, restored_from: Some(Millis(saved)), ..statement(version, START, 0) }
}

/// (class, order number) of what was sent beside inventory.
fn told(effects: &[Effect]) -> Vec<(u16, u64)> {
    let of = |(_, r): &(Lane, Record)| match r.class {
        class::RESULT => Some((r.class, rmp_serde::from_slice::<JobResult>(&r.body).unwrap().order.number)),
        class::ORDER => {
            let message: OrderMessage = rmp_serde::from_slice(&r.body).unwrap();
            let payload: Payload = rmp_serde::from_slice(&message.envelope.payload).unwrap();
            Some((r.class, payload.number.number))
        }
        _ => None,
    };
    sent(effects).iter().filter_map(of).collect()
}

/// A device with a link whose jobs 1 and 2 are done and settled.
fn two_settled() -> Bench {
    let mut bench = Bench::running();
    for n in [1, 2] {
        bench.settle(message(Lane::Work, Message::Orders(vec![script_order(n)])));
        bench.settle(ended(n, finished(0)));
        acknowledge(&mut bench);
    }
    assert!(bench.disk.results().is_empty(), "settled, and gone from the spool");
    bench
}

#[test]
fn ops_7_settled_results_are_told_again_with_their_orders_to_a_restored_server_and_only_once() {
    let mut bench = two_settled();
    let saved = START - 1;
    let seen = bench.settle(document(&restored(2, 1, saved), &server()));
    assert_eq!(told(&seen), [(class::ORDER, 1), (class::RESULT, 1), (class::ORDER, 2), (class::RESULT, 2)]);
    // The next statement, the next link, the next process.
    assert_eq!(told(&bench.settle(document(&restored(2, 2, saved), &server()))), []);
    acknowledge(&mut bench);
    bench.crash();
    bench.wake();
    assert_eq!(told(&bench.connect(None)), []);
    assert_eq!(told(&bench.settle(document(&restored(2, 3, saved), &server()))), []);
    // The next restore.
    let seen = bench.settle(document(&restored(3, 4, saved), &server()));
    assert_eq!(told(&seen).len(), 4);
}

#[test]
fn ops_7_what_the_backup_knows_is_not_told_again_and_a_first_term_asks_for_nothing() {
    let mut bench = two_settled();
    assert_eq!(told(&bench.settle(document(&statement(1, START, 0), &server()))), []);
    let later = START + 86_400_000;
    assert_eq!(told(&bench.settle(document(&restored(2, 2, later), &server()))), []);
}

#[test]
fn ops_7_an_order_of_the_old_term_that_runs_is_told_of_and_its_result_comes_behind_it() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    let seen = bench.settle(document(&restored(2, 1, START), &server()));
    assert_eq!(told(&seen), [(class::ORDER, 1)]);
    let seen = bench.settle(ended(1, finished(0)));
    assert_eq!(told(&seen), [(class::ORDER, 1), (class::RESULT, 1)]);
    // An order of the new term needs no such thing.
    let mut payload = payload(1, RUN_SCRIPT, &script());
    (payload.number.term, payload.job) = (2, JobId(Uuid::from_u128(77)));
    let number = payload.number;
    bench.settle(message(Lane::Work, Message::Orders(vec![sign(payload, script(), mine(), &server())])));
    let seen = bench.settle(Event::JobEnded { order: number, left: finished(0) });
    assert_eq!(told(&seen), [(class::RESULT, 1)]);
}

#[test]
fn ops_7_a_result_on_its_way_at_the_restore_is_told_again_behind_its_order() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    bench.settle(ended(1, finished(0)));
    let seen = bench.settle(document(&restored(2, 1, START), &server()));
    assert_eq!(told(&seen), [(class::ORDER, 1), (class::RESULT, 1)]);
    assert_eq!(bench.disk.results().len(), 2, "the first is not settled");
}

#[test]
fn ops_7_an_order_that_comes_again_after_the_restore_is_not_started_again() {
    let mut bench = two_settled();
    bench.settle(document(&restored(2, 1, START - 1), &server()));
    let seen = bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    assert_eq!((starts(&seen).len(), taken(&seen)), (0, vec![1]));
}

#[test]
fn ops_7_a_full_disk_takes_the_room_of_settled_results() {
    let mut bench = two_settled();
    bench.settle(Event::LowSpace(true));
    assert_eq!(told(&bench.settle(document(&restored(2, 1, START - 1), &server()))), []);
    let kept = bench.disk.keys(Table::Meta).into_iter().filter(|key| key.starts_with(b"kept-")).count();
    assert_eq!(kept, 1, "only for which term it was");
}

#[test]
fn ops_7_a_device_tells_the_documents_that_are_newer() {
    let mut bench = Bench::running();
    let list = revocations(5, vec![(NodeId(Uuid::from_u128(3)), 1)]);
    bench.settle(document(&list, &server()));
    let newest = OrderNumber { term: 1, number: 0 };
    let mut ask = |version| {
        let recall = Recall { documents: vec![(Kind::Revocations, (1, version)), (Kind::Settings, (0, 0))], newest };
        let seen = bench.settle(message(Lane::Control, Message::Recall(recall)));
        let answers = seen.iter().filter_map(|e| match e {
            Effect::Send(Lane::Control, Message::Recalled(recalled)) => Some(recalled.clone()),
            _ => None,
        });
        let [answer] = &answers.collect::<Vec<_>>()[..] else { panic!("one answer: {seen:?}") };
        assert!(answer.last);
        answer.documents.clone()
    };
    assert_eq!(ask(4), [(Kind::Revocations, list.seal(&server()))]);
    assert_eq!(ask(5), []);
}
