//! Room for results (RLY-10): an order is taken only with room for what it will leave behind.

use super::*;
use crate::decide::{Counted, journal::RESULT_BYTES};
use branchline_node::uplink::spool::Quotas;
use branchline_protocol::{
    record::{Alert, StreamId},
    wire::Ack,
};

fn left(effects: &[Effect]) -> Vec<(u64, String)> {
    let lists = effects.iter().filter_map(|e| match e {
        Effect::Send(Lane::Control, Message::Left(list)) => Some(list),
        _ => None,
    });
    lists
        .flatten()
        .map(|(order, devices, why)| ((devices == &vec![ME]).then_some(order.number).unwrap(), why.clone()))
        .collect()
}

#[test]
fn rly_10_an_order_is_taken_while_there_is_room_for_its_result_and_not_for_a_byte_less() {
    // Two scripts that may leave 1,000 bytes on each of two outputs.
    let two = 2 * (RESULT_BYTES + 2 * 1_000);
    for (quota, takes) in [(two, vec![1, 2]), (two - 1, vec![1])] {
        let mut bench = Bench::running();
        bench.core.set_quotas(Quotas { results: quota, ..Quotas::AGENT });
        let mut effects = bench.deliver(vec![script_order(1), script_order(2)]);
        effects.extend(bench.commit_all());
        assert_eq!(known_taken(&mut bench, &effects), takes);
        let leaves: Vec<_> = if takes.len() == 2 { vec![] } else { vec![(2, "no_space".to_string())] };
        assert_eq!(left(&effects), leaves);
        assert_eq!(starts(&effects).len(), takes.len(), "and nothing else is started");
    }
}

#[test]
fn rly_10_room_is_free_again_once_the_result_is_settled_and_a_restart_forgets_no_promise() {
    let mut bench = Bench::running();
    let quotas = Quotas { results: RESULT_BYTES + 2_000, ..Quotas::AGENT };
    bench.core.set_quotas(quotas);
    let mut effects = bench.deliver(vec![script_order(1)]);
    effects.extend(bench.commit_all());
    assert_eq!(known_taken(&mut bench, &effects), [1]);
    bench.crash();
    bench.core.set_quotas(quotas);
    bench.wake();
    bench.connect(None);
    let effects = bench.deliver(vec![script_order(2)]);
    assert_eq!(left(&effects).len(), 1, "order 1 still has its promise");
    let result = bench.settle(ended(1, finished(0)));
    assert_eq!(left(&bench.deliver(vec![script_order(2)])).len(), 1, "its result is there");
    let stream = StreamId { node: ME, epoch: 2, incarnation: bench.openings, lane: Lane::Work };
    let upto = sent(&result).iter().filter(|(lane, _)| *lane == Lane::Work).map(|(_, r)| r.number).max().unwrap();
    let acks = vec![Ack { stream, stored: upto, settled: upto, refused: vec![] }];
    bench.settle(message(Lane::Control, Message::Acks(acks)));
    let mut effects = bench.deliver(vec![script_order(2)]);
    effects.extend(bench.commit_all());
    assert_eq!((known_taken(&mut bench, &effects), left(&effects)), (vec![2], vec![]));
}

#[test]
fn rly_10_on_a_full_disk_an_order_is_left_and_its_parent_is_told_at_once() {
    let mut bench = Bench::running();
    bench.settle(Event::LowSpace(true));
    let effects = bench.deliver(vec![script_order(1)]);
    assert_eq!(left(&effects), [(1, "no_space".to_string())], "no write stands before the answer");
    assert!(effects.contains(&Effect::Count(Counted::OrderLeft)));
    assert_eq!(bench.core.figures().open_orders, 0);
    bench.settle(Event::LowSpace(false));
    assert_eq!(left(&bench.deliver(vec![script_order(1)])), []);
}

#[test]
fn rly_10_no_inventory_is_collected_while_there_is_no_room_for_it() {
    let mut bench = Bench::running();
    bench.core.set_quotas(Quotas { inventory: 1, ..Quotas::AGENT });
    let mut effects = bench.deliver(vec![order(1, REFRESH_INVENTORY, refresh(true))]);
    effects.extend(bench.commit_all());
    assert_eq!(known_taken(&mut bench, &effects), [1]);
    assert!(!effects.iter().any(|e| matches!(e, Effect::Collect(_))), "the report before it waits to be settled");
    let stream = StreamId { node: ME, epoch: 2, incarnation: 1, lane: Lane::Inventory };
    let acks = vec![Ack { stream, stored: 1, settled: 1, refused: vec![] }];
    let effects = bench.settle(message(Lane::Control, Message::Acks(acks)));
    assert!(effects.iter().any(|e| matches!(e, Effect::Collect(_))));
}

#[test]
fn ops_7_a_disk_that_was_put_back_is_told_once_and_the_link_goes_on() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    bench.settle(ended(1, finished(0)));
    bench.crash();
    bench.wake();
    bench.connect(None);
    let stream = StreamId { node: ME, epoch: 2, incarnation: 1, lane: Lane::Work };
    for _ in 0..2 {
        let acks = vec![Ack { stream, stored: 99, settled: 1, refused: vec![] }];
        let effects = bench.settle(message(Lane::Control, Message::Acks(acks)));
        assert!(!effects.iter().any(|e| matches!(e, Effect::CloseLink(_))));
    }
    let alerts = bench.disk.records(class::ALERT);
    let codes: Vec<_> = alerts.iter().map(|r| rmp_serde::from_slice::<Alert>(&r.body).unwrap().code).collect();
    assert_eq!(codes, ["store_rolled_back"]);
}
