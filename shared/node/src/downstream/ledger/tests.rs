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

/// Devices 1 to 9 hang here, 10 to 19 behind relay 100, others nowhere.
fn hop(device: NodeId) -> Option<NodeId> {
    match device.0.as_u128() {
        n @ 1..=9 => Some(node(n)),
        10..=19 => Some(node(100)),
        _ => None,
    }
}

/// A ledger whose rows know their way from the start, as they do when an order comes.
fn ledger(devices: &[u128]) -> (Ledger, Payload) {
    let mut ledger = Ledger::default();
    let (payload, message) = order(FIRST, devices);
    let added = ledger.add(&tenant(), payload.clone(), message, |d| Some(Kept::towards(hop(d)))).unwrap();
    assert_eq!(added.len(), devices.len());
    (ledger, payload)
}

fn children(round: &Round) -> Vec<NodeId> {
    round.offers.iter().map(|o| o.child).collect()
}

#[test]
fn rly_3_an_order_crosses_once_per_child_with_a_proof_of_its_own_devices() {
    let (mut ledger, payload) = ledger(&[1, 2, 10, 11, 12, 50]);
    let Round { offers, asks, .. } = ledger.offers(Millis(0), None, hop);
    assert!(asks.is_empty(), "the way was known when the order came: no commit of its own");
    let per_child: Vec<(NodeId, usize)> = offers.iter().map(|o| (o.child, o.devices.len())).collect();
    assert_eq!(per_child, [(node(1), 1), (node(2), 1), (node(100), 3)]);
    for offer in &offers {
        offer.message.proof.verify(&tenant(), FIRST, payload.root, payload.leaf_count).unwrap();
        assert_eq!(offer.message.proof.leaves.len(), offer.devices.len(), "nobody else's leaf goes along");
    }
    assert!(ledger.offers(Millis(0), None, hop).offers.is_empty(), "and not again");
    assert_eq!(ledger.row(FIRST, node(50)), Some(Row::Waiting));
}

#[test]
fn a_child_is_a_holder_durably_before_it_is_sent_anything() {
    let (mut ledger, _) = ledger(&[50]);
    assert!(ledger.is_free(FIRST, node(50)));
    let way = |_| Some(node(100));
    let round = ledger.offers(Millis(0), None, way);
    assert!(round.offers.is_empty());
    assert_eq!(round.asks[0].change.holders, [node(100)], "what the store is to have");
    assert!(ledger.is_free(FIRST, node(50)), "nothing was sent yet");
    assert!(ledger.offers(Millis(0), None, way).asks.is_empty(), "asked once");
    ledger.granted(&round.asks[0]);
    assert!(!ledger.is_free(FIRST, node(50)));
    assert_eq!(children(&ledger.offers(Millis(0), None, way)), [node(100)]);
}

#[test]
fn what_a_child_did_not_acknowledge_is_offered_again_and_what_it_took_is_not() {
    let (mut ledger, _) = ledger(&[1, 10]);
    ledger.offers(Millis(0), None, hop);
    assert_eq!(ledger.taken(node(100), FIRST, &[node(10)])[0].row, Some(Row::Held(node(100))));
    assert!(ledger.taken(node(100), FIRST, &[node(1)]).is_empty(), "it was never offered that one");
    ledger.child_gone(node(1), &[node(1)]);
    ledger.child_gone(node(100), &[node(10)]);
    assert_eq!(children(&ledger.offers(Millis(0), None, hop)), [node(1)]);
    let lost = ledger.child_lost(node(100));
    assert_eq!(lost[0].holders, [node(10)], "what the lost disk held may be at the device");
    let round = ledger.offers(Millis(0), Some(&[node(10)]), hop);
    ledger.granted(&round.asks[0]);
    let again = ledger.offers(Millis(0), Some(&[node(10)]), hop);
    assert_eq!(again.offers.len(), 1, "a relay with a fresh disk is offered it anew");
}

#[test]
fn a_device_that_moves_is_offered_there_and_an_end_removes_everything() {
    let (mut ledger, _) = ledger(&[10]);
    ledger.offers(Millis(0), None, hop);
    ledger.taken(node(100), FIRST, &[node(10)]);
    assert!(ledger.moved(node(10), Some(node(100))).is_empty(), "it did not move");
    assert_eq!(ledger.moved(node(10), Some(node(10))).len(), 1);
    let round = ledger.offers(Millis(0), None, Some);
    assert_eq!(round.asks[0].change.holders, [node(100), node(10)], "the old relay still has it");
    ledger.granted(&round.asks[0]);
    assert_eq!(children(&ledger.offers(Millis(0), None, Some)), [node(10)]);
    assert_eq!(ledger.taken(node(10), FIRST, &[node(10)])[0].row, Some(Row::HandedOver));
    assert_eq!(ledger.ended(FIRST, node(10)).unwrap().holders, [node(100), node(10)], "whom to tell");
    assert!(ledger.ended(FIRST, node(10)).is_none());
    assert!(!ledger.contains(FIRST));
    assert_eq!(ledger.open_rows(), 0);
}

#[test]
fn job_4_exactly_at_fetch_by_it_is_still_offered_and_one_millisecond_later_not() {
    let (mut at, _) = ledger(&[1]);
    assert_eq!(at.offers(Millis(1_000), None, hop).offers.len(), 1);
    assert!(at.overdue(Millis(1_000)).is_empty());
    let (mut past, _) = ledger(&[1, 50]);
    assert!(past.offers(Millis(1_001), None, hop).offers.is_empty());
    let free: Vec<(NodeId, bool)> = past.overdue(Millis(1_001)).iter().map(|o| (o.device, o.free)).collect();
    assert_eq!(free, [(node(1), false), (node(50), true)], "what may have been sent is not known to have expired");
    let report_by = 1_000 + 10 + 86_400_000;
    assert!(!past.overdue(Millis(report_by))[0].silent);
    assert!(past.overdue(Millis(report_by + 1))[0].silent);
}

#[test]
fn what_its_last_holder_gave_back_is_free_and_offered_to_nobody() {
    let (mut ledger, _) = ledger(&[10]);
    ledger.offers(Millis(0), None, hop);
    ledger.taken(node(100), FIRST, &[node(10)]);
    ledger.moved(node(10), Some(node(200)));
    let ask = ledger.offers(Millis(0), None, |_| Some(node(200))).asks.remove(0);
    ledger.granted(&ask);
    assert_eq!(ledger.given_back(FIRST, node(10), node(200)).unwrap().holders, [node(100)]);
    assert!(!ledger.is_free(FIRST, node(10)));
    assert!(ledger.given_back(FIRST, node(10), node(77)).is_none(), "no holder, no news");
    assert!(ledger.given_back(FIRST, node(10), node(100)).unwrap().holders.is_empty());
    assert!(ledger.is_free(FIRST, node(10)));
    ledger.handed_over(FIRST, node(10));
    ledger.given_back(FIRST, node(10), node(100));
    assert!(!ledger.is_free(FIRST, node(10)), "a relay's word does not undo that the device has it");
    ledger.given_back(FIRST, node(10), node(10));
    assert!(ledger.is_free(FIRST, node(10)), "the device's own does");
    let round = ledger.offers(Millis(0), None, hop);
    assert!(round.offers.is_empty() && round.asks.is_empty());
}

#[test]
fn job_14_a_closed_row_is_offered_to_nobody_and_its_holders_are_all_told() {
    let (mut ledger, _) = ledger(&[10]);
    ledger.close(FIRST, node(10));
    assert!(ledger.offers(Millis(0), None, hop).offers.is_empty());
    let second = OrderNumber { term: 1, number: 2 };
    let (payload, message) = order(second, &[10]);
    ledger.add(&tenant(), payload, message, |_| Some(Kept::towards(Some(node(200))))).unwrap();
    let holders = ledger.holders(FIRST, node(10)).to_vec();
    ledger.also(second, node(10), holders);
    let told: Vec<NodeId> = ledger.also_offers(|_| true).iter().map(|o| o.child).collect();
    assert_eq!(told, [node(100)], "the relay that the device left");
    assert!(ledger.also_offers(|_| true).is_empty());
    ledger.child_gone(node(100), &[]);
    assert!(ledger.also_offers(|c| c != node(100)).is_empty(), "not while it is away");
    assert_eq!(ledger.also_offers(|_| true).len(), 1);
    ledger.taken(node(100), second, &[node(10)]);
    ledger.child_gone(node(100), &[]);
    assert!(ledger.also_offers(|_| true).is_empty(), "taken once is enough");
}

#[test]
fn the_same_order_with_another_proof_adds_only_its_new_devices() {
    let (mut ledger, payload) = ledger(&[1, 2]);
    let (_, again) = order(FIRST, &[1, 2]);
    assert!(ledger.add(&tenant(), payload, again, |_| Some(Kept::default())).unwrap().is_empty());
    assert_eq!(ledger.open_rows(), 2);
}

#[test]
fn rly_9_the_word_of_a_relay_that_never_had_the_order_keeps_it_from_nobody() {
    let (mut ledger, _) = ledger(&[50]);
    assert!(ledger.given_back(FIRST, node(50), node(77)).is_none());
    let round = ledger.offers(Millis(0), None, |_| Some(node(101)));
    assert_eq!(round.asks.len(), 1, "it is still on offer");
    assert!(ledger.given_back(FIRST, node(50), node(50)).is_none(), "the device's own word counts always");
    assert!(ledger.offers(Millis(0), None, |_| Some(node(102))).asks.is_empty());
}

#[test]
fn rly_8_rolled_back_a_child_opened_anew_is_offered_what_it_held_and_stays_a_holder() {
    let (mut ledger, _) = ledger(&[10, 11, 1]);
    ledger.offers(Millis(0), None, hop);
    ledger.taken(node(100), FIRST, &[node(10), node(11)]);
    ledger.handed_over(FIRST, node(11));
    let changes = ledger.child_reopened(node(100));
    assert_eq!(changes.iter().map(|c| (c.device, c.row)).collect::<Vec<_>>(), [(node(10), Some(Row::Waiting))]);
    assert_eq!(ledger.holders(FIRST, node(10)), [node(100)]);
    let round = ledger.offers(Millis(0), None, hop);
    assert_eq!((children(&round), round.offers[0].devices.clone()), (vec![node(100)], vec![node(10)]));
    assert_eq!(ledger.doubted().len(), 2, "each device but the one that hangs here and is a holder already");
    assert_eq!(ledger.holders(FIRST, node(10)), [node(100), node(10)]);
    assert!(ledger.doubted().is_empty());
}

#[test]
fn job_13_rolled_back_a_device_in_another_epoch_is_offered_what_it_had_late_and_closed_too() {
    let (mut ledger, payload) = ledger(&[1, 50]);
    ledger.offers(Millis(0), None, hop);
    ledger.taken(node(1), FIRST, &[node(1)]);
    ledger.close(FIRST, node(1));
    let late = payload.fetch_by.plus(1);
    assert!(ledger.raised(node(1), 1, false).is_empty(), "the epoch that it binds is no other");
    assert!(ledger.offers(late, None, hop).offers.is_empty());
    assert_eq!(ledger.raised(node(1), 2, false).len(), 1);
    assert!(ledger.raised(node(1), 2, false).is_empty(), "once");
    assert!(ledger.handed_over(FIRST, node(1)).is_none(), "what is told of the earlier epoch comes late");
    assert_eq!(children(&ledger.offers(late, None, hop)), [node(1)]);
    assert_eq!(ledger.taken(node(1), FIRST, &[node(1)])[0].row, Some(Row::HandedOver), "it knows it still");
    assert_eq!(ledger.raised(node(1), 3, false)[0].row, Some(Row::Waiting), "put back once more: asked once more");
    assert!(ledger.raised(node(1), 3, false).is_empty());
    ledger.offers(late, None, hop);
    ledger.taken(node(1), FIRST, &[node(1)]);
    ledger.raised(node(50), 2, false);
    let overdue = ledger.overdue(late);
    let seen: Vec<_> = overdue.iter().map(|o| (o.device, o.handed_over, o.free)).collect();
    assert_eq!(
        seen,
        [(node(1), true, false), (node(50), false, true)],
        "what nobody was offered has expired all the same"
    );
}

#[test]
fn adm_9_open_orders_ask_for_a_slot_of_the_nodes_own_children_until_they_are_over() {
    use crate::downstream::admission::Demand;
    const SECOND: OrderNumber = OrderNumber { term: 1, number: 2 };
    let mut ledger = Ledger::default();
    let kept = |d| Some(Kept::towards(hop(d)));
    let (payload, message) = order(FIRST, &[1, 2, 10]);
    ledger.add(&tenant(), payload, message, kept).unwrap();
    let (payload, message) = order(SECOND, &[2, 3]);
    ledger.add(&tenant(), Payload { class: Class::Urgent, ..payload }, message, kept).unwrap();
    let demands = |ledger: &Ledger| ledger.demands((1..10).map(node));
    let of = |urgent, in_progress| Demand { urgent, in_progress };
    assert_eq!(demands(&ledger), [(node(2), of(true, false)), (node(3), of(true, false))].into(), "a normal one waits");
    ledger.offers(Millis(0), None, hop);
    let on_their_way = [(node(1), of(false, true)), (node(2), of(true, true)), (node(3), of(true, true))];
    assert_eq!(demands(&ledger), on_their_way.into(), "and nothing is asked for a device below a relay");
    ledger.taken(node(2), SECOND, &[node(2)]);
    ledger.taken(node(1), FIRST, &[node(1)]);
    ledger.ended(SECOND, node(2));
    ledger.ended(FIRST, node(2));
    ledger.child_gone(node(3), &[node(3)]);
    assert_eq!(demands(&ledger), [(node(1), of(false, true)), (node(3), of(true, false))].into());
    ledger.close(SECOND, node(3));
    ledger.ended(FIRST, node(1));
    assert_eq!(demands(&ledger), [].into(), "one that is given to nobody any more asks for nothing");
}
