//! What lets a relay speak for a device: shown with the first records on each link, and kept with them (RLY-9).

use super::*;
use branchline_protocol::receipt::Receipt;

fn key(n: u128) -> Signer {
    Signer::from_seed(&Hash::of(&n.to_be_bytes()).0)
}

fn receipt(n: u128, parent: NodeId, attachment: u64, signer: &Signer) -> Envelope {
    let key = signer.public();
    let (node, heads) = (node(n), vec![]);
    Receipt { tenant: tenant(), node, key, epoch: 1, attachment, parent, heads, complete: true }.seal(signer)
}

/// A child with its receipt, as the reception lets it in.
fn greeted(n: u128, role: Role, session: u64) -> Arc<Child> {
    let mut child = Child::clone(&child(n, role, session));
    let receipt = Some(receipt(n, RELAY, session, &key(n)));
    child.greeting = Arc::new(Greeting { receipt, ..Greeting::clone(&child.greeting) });
    Arc::new(child)
}

/// Receipts of each run that went up: the stream's device, whose receipts.
fn shown(effects: &[Effect]) -> Vec<(NodeId, Vec<(NodeId, u64)>)> {
    let runs = effects.iter().filter_map(|e| match e {
        Effect::ToParent(_, Message::Records(runs)) => Some(runs),
        _ => None,
    });
    let read = |receipt: &Envelope| Receipt::read(receipt).map(|r| (r.node, r.attachment)).unwrap();
    let of = |run: &Run| (run.stream.node, run.receipts.iter().map(read).collect());
    runs.flatten().filter(|run| run.stream.node != RELAY).map(of).collect()
}

fn acks_to(effects: &[Effect], child: u128) -> Vec<Ack> {
    let acks = effects.iter().filter_map(|e| match e {
        Effect::ToChild(n, _, _, Message::Acks(acks)) if *n == node(child) => Some(acks.clone()),
        _ => None,
    });
    acks.flatten().collect()
}

fn stored(run: &Run) -> Message {
    let upto = run.records.last().unwrap().number;
    Message::Acks(vec![Ack { stream: run.stream, stored: upto, settled: 0, refused: vec![] }])
}

#[test]
fn rly_9_a_device_s_receipt_goes_up_with_its_first_records_on_each_link_and_outlives_a_crash() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let device = greeted(1, Role::Agent, 5);
    bench.child_up(&device);
    let mut spool = Spool::new(node(1), 1, 77);
    spool.link_up(RELAY, 1);
    let mut says = |bench: &mut Bench, device: &Arc<Child>| {
        let mark = spool.append(Millis(5), Lane::Work, 99, None, Bytes::from_static(b"x"), &mut Batch::new());
        spool.committed(&mark);
        let run = spool.take().unwrap().1.remove(0);
        let seen = bench.feed(child_says(device, Message::Records(vec![run.clone()])));
        bench.feed(parent_says(stored(&run)));
        shown(&seen)
    };
    assert_eq!(says(&mut bench, &device), [(node(1), vec![(node(1), 5)])]);
    assert_eq!(says(&mut bench, &device), [(node(1), vec![])], "once on this link");
    let again = greeted(1, Role::Agent, 6);
    bench.child_up(&again);
    assert_eq!(says(&mut bench, &again), [(node(1), vec![(node(1), 6)])], "a newer attachment has a newer one");
    bench.crash();
    assert_eq!(shown(&bench.parent_up(2)), [(node(1), vec![(node(1), 6)])], "it is kept with the records");
}

#[test]
fn a_receipt_that_nobody_needed_is_let_go_and_one_that_came_since_is_kept() {
    let mut bench = Bench::new();
    let device = greeted(1, Role::Agent, 5);
    bench.child_up(&device);
    let run = results(1, 1, "out");
    bench.feed(child_says(&device, Message::Records(vec![run.clone()])));
    bench.parent_up(1);
    let settled = Ack { stream: run.stream, stored: 1, settled: 1, refused: vec![] };
    bench.feed(parent_says(Message::Acks(vec![settled])));
    let rows = |bench: &Bench| {
        let mut rows = 0;
        let count = |key: &[u8], _| rows += usize::from(key.starts_with(b"receipt/"));
        branchline_node::store::Scan::scan_all(&bench.store, branchline_node::store::Table::Meta, count).unwrap();
        rows
    };
    assert_eq!(rows(&bench), 1);
    bench.crash();
    // It comes again, with a record, before the relay dials: what is let go then is what the restart found idle.
    let again = greeted(1, Role::Agent, 6);
    bench.child_up(&again);
    let mut later = results(1, 2, "more");
    later.stream.incarnation = 78;
    bench.feed(child_says(&again, Message::Records(vec![later])));
    bench.feed(Event::Dialling(1, PARENT));
    bench.crash();
    assert_eq!(shown(&bench.parent_up(2)), [(node(1), vec![(node(1), 6)])]);
    bench.crash();
    bench.feed(Event::Dialling(1, PARENT));
    assert_eq!(rows(&bench), 1, "still needed");
}

#[test]
fn rly_9_a_nested_relay_s_devices_are_spoken_for_by_its_own_receipt_too() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let nested = greeted(7, Role::Relay, 3);
    bench.child_up(&nested);
    let run = Run { receipts: vec![receipt(1, node(7), 9, &key(1))], ..results(1, 1, "out") };
    let seen = bench.feed(child_says(&nested, Message::Records(vec![run])));
    assert_eq!(shown(&seen), [(node(1), vec![(node(1), 9), (node(7), 3)])]);
    bench.crash();
    assert_eq!(shown(&bench.parent_up(2)), [(node(1), vec![(node(1), 9), (node(7), 3)])]);
}

#[test]
fn rly_9_a_nested_relay_cannot_speak_for_a_device_that_was_attached_here_without_its_word() {
    let forged = receipt(1, node(7), 9, &Signer::from_seed(&[66; 32]));
    let other = receipt(2, node(7), 9, &key(2));
    for (what, receipts) in [("none", vec![]), ("forged", vec![forged]), ("of another device", vec![other])] {
        let mut bench = Bench::new();
        bench.parent_up(1);
        bench.child_up(&greeted(1, Role::Agent, 5));
        let nested = greeted(7, Role::Relay, 3);
        bench.child_up(&nested);
        let run = Run { receipts, ..results(1, 1, "a lie") };
        let seen = bench.feed(child_says(&nested, Message::Records(vec![run.clone()])));
        assert!(!bench.core.spool().holds_of(node(1)), "{what}");
        let acks = acks_to(&seen, 7);
        assert_eq!((acks.len(), acks[0].refused.clone()), (1, vec![(1, "foreign".to_string())]), "{what}");
        assert!(acks_to(&seen, 1).is_empty(), "{what}: the device is not told");
        // With the device's own word it counts, however late.
        let run = Run { receipts: vec![receipt(1, node(7), 4, &key(1))], ..run };
        bench.feed(child_says(&nested, Message::Records(vec![run])));
        assert!(bench.core.spool().holds_of(node(1)), "{what}");
    }
}

#[test]
fn rly_9_what_those_above_call_foreign_is_forgotten_here_and_the_device_keeps_it() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let (device, nested) = (greeted(1, Role::Agent, 5), greeted(7, Role::Relay, 3));
    bench.child_up(&device);
    bench.child_up(&nested);
    let own = results(1, 1, "mine");
    bench.feed(child_says(&device, Message::Records(vec![own.clone()])));
    let below = Run { receipts: vec![receipt(2, node(7), 9, &key(2))], ..results(2, 1, "theirs") };
    bench.feed(child_says(&nested, Message::Records(vec![below.clone()])));
    let foreign = |run: &Run| Ack { stream: run.stream, stored: 1, settled: 1, refused: vec![(1, "foreign".into())] };
    let seen = bench.feed(parent_says(Message::Acks(vec![foreign(&own), foreign(&below)])));
    assert!(acks_to(&seen, 1).is_empty(), "what the device has it keeps: it may come another way");
    assert_eq!(acks_to(&seen, 7), [foreign(&below)], "the relay that brought it stops");
    assert_eq!(bench.core.spool().figures().spool_records, 0);
    bench.crash();
    assert!(records_up(&bench.parent_up(2)).is_empty(), "gone for good");
}

#[test]
fn a_run_with_receipts_at_their_bounds_is_carried_and_one_past_them_is_refused() {
    let large = |bytes: usize| Envelope { payload: vec![0; bytes].into(), ..receipt(1, node(7), 1, &key(1)) };
    let many = |count: u64| -> Vec<Envelope> { (0..count).map(|n| receipt(1, node(7), n, &key(1))).collect() };
    for (receipts, carried) in
        [(many(32), true), (many(33), false), (vec![large(32_768)], true), (vec![large(32_769)], false)]
    {
        let mut bench = Bench::new();
        bench.parent_up(1);
        let nested = greeted(7, Role::Relay, 3);
        bench.child_up(&nested);
        let run = Run { receipts, ..results(1, 1, "out") };
        let seen = bench.feed(child_says(&nested, Message::Records(vec![run])));
        assert_eq!(bench.core.spool().holds_of(node(1)), carried);
        assert_eq!(acks_to(&seen, 7)[0].refused.is_empty(), carried);
    }
}
