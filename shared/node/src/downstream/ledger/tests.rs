use super::*;
use branchline_protocol::{
    hash::Hash,
    id::{JobId, TraceId},
    job::Class,
    order::{Envelope, Leaf, Tree},
};
use bytes::Bytes;
use uuid::Uuid;

fn node(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(n))
}

fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

const FIRST: OrderNumber = OrderNumber { term: 1, number: 1 };

fn order(number: OrderNumber, devices: &[u128]) -> (Payload, OrderMessage) {
    let leaves = devices.iter().map(|d| Leaf { device: node(*d), epoch: 1 }).collect();
    let tree = Tree::build(&tenant(), number, leaves);
    let payload = Payload {
        tenant: tenant(),
        number,
        job: JobId(Uuid::from_u128(1)),
        trace: TraceId(Uuid::from_u128(2)),
        verb: "run_script".into(),
        args_hash: Hash::of(b""),
        class: Class::Normal,
        issued_at: Millis(0),
        not_before: Millis(0),
        fetch_by: Millis(1_000),
        run_ms_max: 10,
        policy_version: 0,
        root: tree.root(),
        leaf_count: tree.leaf_count(),
        targets: vec![],
    };
    let all: Vec<u32> = (0..devices.len() as u32).collect();
    let envelope = Envelope { payload_type: String::new(), payload: Bytes::new(), signatures: vec![] };
    (payload, OrderMessage { envelope, args: Bytes::new(), proof: tree.prove(&all) })
}

fn ledger(devices: &[u128]) -> (Ledger, Payload) {
    let mut ledger = Ledger::default();
    let (payload, message) = order(FIRST, devices);
    assert_eq!(ledger.add(&tenant(), payload.clone(), message, None).unwrap().len(), devices.len());
    (ledger, payload)
}

/// Devices 1 to 9 hang here, 10 to 19 behind relay 100, others nowhere.
fn hop(device: NodeId) -> Option<NodeId> {
    match device.0.as_u128() {
        n @ 1..=9 => Some(node(n)),
        10..=19 => Some(node(100)),
        _ => None,
    }
}

#[test]
fn rly_3_an_order_crosses_once_per_child_with_a_proof_of_its_own_devices() {
    let (mut ledger, payload) = ledger(&[1, 2, 10, 11, 12, 50]);
    let offers = ledger.offers(Millis(0), None, hop);
    let per_child: Vec<(NodeId, usize)> = offers.iter().map(|o| (o.child, o.devices.len())).collect();
    assert_eq!(per_child, [(node(1), 1), (node(2), 1), (node(100), 3)]);
    for offer in &offers {
        offer.message.proof.verify(&tenant(), FIRST, payload.root, payload.leaf_count).unwrap();
        assert_eq!(offer.message.proof.leaves.len(), offer.devices.len(), "nobody else's leaf goes along");
    }
    assert!(ledger.offers(Millis(0), None, hop).is_empty(), "and not again");
    assert_eq!(ledger.row(FIRST, node(50)), Some(Row::Waiting));
}

#[test]
fn what_a_child_did_not_acknowledge_is_offered_again_and_what_it_took_is_not() {
    let (mut ledger, _) = ledger(&[1, 10]);
    ledger.offers(Millis(0), None, hop);
    assert_eq!(ledger.taken(node(100), FIRST, &[node(10)])[0].row, Some(Row::Held(node(100))));
    assert!(ledger.taken(node(100), FIRST, &[node(1)]).is_empty(), "it was never offered that one");
    ledger.child_gone(node(1), &[node(1)], false);
    ledger.child_gone(node(100), &[node(10)], false);
    let again = ledger.offers(Millis(0), None, hop);
    assert_eq!(again.iter().map(|o| o.child).collect::<Vec<_>>(), [node(1)]);
    ledger.child_gone(node(100), &[node(10)], true);
    assert_eq!(
        ledger.offers(Millis(0), Some(&[node(10)]), hop).len(),
        1,
        "a relay with a fresh disk is offered it anew"
    );
}

#[test]
fn a_device_that_moves_is_offered_there_and_an_end_removes_everything() {
    let (mut ledger, _) = ledger(&[10]);
    ledger.offers(Millis(0), None, hop);
    ledger.taken(node(100), FIRST, &[node(10)]);
    assert!(ledger.moved(node(10), Some(node(100))).is_empty(), "it did not move");
    assert_eq!(ledger.moved(node(10), Some(node(10))).len(), 1);
    assert_eq!(ledger.offers(Millis(0), None, Some)[0].child, node(10));
    assert_eq!(ledger.taken(node(10), FIRST, &[node(10)])[0].row, Some(Row::HandedOver));
    assert!(ledger.ended(FIRST, node(10)).is_some());
    assert!(ledger.ended(FIRST, node(10)).is_none());
    assert!(!ledger.contains(FIRST));
    assert_eq!(ledger.open_rows(), 0);
}

#[test]
fn exactly_at_fetch_by_it_is_still_offered_and_one_millisecond_later_not() {
    let (mut at, _) = ledger(&[1]);
    assert_eq!(at.offers(Millis(1_000), None, hop).len(), 1);
    let (mut past, _) = ledger(&[1]);
    assert!(past.offers(Millis(1_001), None, hop).is_empty());
    assert_eq!(past.past_fetch(Millis(1_001)).len(), 1);
}

#[test]
fn the_same_order_with_another_proof_adds_only_its_new_devices() {
    let (mut ledger, payload) = ledger(&[1, 2]);
    let (_, again) = order(FIRST, &[1, 2]);
    assert!(ledger.add(&tenant(), payload, again, None).unwrap().is_empty());
    assert_eq!(ledger.open_rows(), 2);
}
