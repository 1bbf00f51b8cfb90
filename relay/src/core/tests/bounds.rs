//! Quotas and a full disk (RLY-10), repeats and acknowledgements (RLY-8), at a relay.

use super::*;
use branchline_node::uplink::spool::{Kind, Quotas};
use branchline_protocol::{job::Class, record::Alert};

const SMALL: Quotas = Quotas { results: 20_000, inventory: 10_000, logs: 10_000 };

fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.core.set_quotas(SMALL);
    bench
}

/// A device's spool and the link it sends on.
struct Device(Spool, Arc<Child>);

impl Device {
    fn new(n: u128) -> Device {
        let mut spool = Spool::new(node(n), 1, 77);
        spool.link_up(RELAY, 1);
        Device(spool, child(n, Role::Agent, n as u64))
    }

    fn add(&mut self, lane: Lane, class: u16, body: Vec<u8>) {
        let mark = self.0.append(Millis(5), lane, class, None, body.into(), &mut Batch::new());
        self.0.committed(&mark);
    }

    /// Sends what there is, each run by itself, on its lane.
    fn send(&mut self, bench: &mut Bench) -> Vec<Effect> {
        let mut seen = Vec::new();
        while let Some((lane, runs)) = self.0.take() {
            for run in runs {
                let credit = run.records.iter().map(|r| r.weight() as u32).sum();
                seen.extend(bench.feed(Event::ChildSaid(self.1.clone(), Message::Records(vec![run]), lane, credit)));
            }
        }
        seen
    }

    /// What it is told of its streams.
    fn hear(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::ToChild(to, _, _, Message::Acks(acks)) = effect
                && *to == self.1.node
            {
                for ack in acks {
                    self.0.acked(ack, &mut Batch::new()).unwrap();
                }
            }
        }
    }
}

fn released(effects: &[Effect], lane: Lane) -> u32 {
    effects
        .iter()
        .map(|e| if let Effect::ReleaseChild(_, _, l, n) = e { if *l == lane { *n } else { 0 } } else { 0 })
        .sum()
}

fn alerts(bench: &Bench) -> Vec<String> {
    let own = bench.core.spool().unsettled_of(RELAY).filter(|r| r.class == class::ALERT);
    own.map(|r| rmp_serde::from_slice::<Alert>(&r.body).unwrap().code).collect()
}

fn left(effects: &[Effect]) -> Vec<(u64, usize, String)> {
    let lists =
        effects.iter().filter_map(|e| if let Effect::ToParent(_, Message::Left(l)) = e { Some(l) } else { None });
    lists.flatten().map(|(order, devices, why)| (order.number, devices.len(), why.clone())).collect()
}

/// The parent stored and settled everything that was sent of a stream.
fn settle_all(bench: &mut Bench, effects: &[Effect]) -> Vec<Effect> {
    let runs =
        effects.iter().filter_map(|e| if let Effect::ToParent(_, Message::Records(r)) = e { Some(r) } else { None });
    let acks: Vec<Ack> = runs
        .flatten()
        .map(|run| {
            let upto = run.records.last().unwrap().number;
            Ack { stream: run.stream, stored: upto, settled: upto, refused: vec![] }
        })
        .collect();
    bench.feed(parent_says(Message::Acks(acks)))
}

#[test]
fn rly_10_at_the_quota_logs_are_held_back_results_and_urgent_orders_are_taken_and_one_alert_goes_up() {
    let mut bench = bench();
    let mut device = Device::new(1);
    bench.child_up(&device.1);
    for n in 1..=9 {
        device.add(Lane::Logs, class::LOG, vec![n; 904]);
    }
    let seen = device.send(&mut bench);
    assert_eq!(released(&seen, Lane::Logs), 9_000, "below the quota every byte of credit comes back");
    for n in 10..=12 {
        device.add(Lane::Logs, class::LOG, vec![n; 904]);
    }
    let seen = device.send(&mut bench);
    assert_eq!(released(&seen, Lane::Logs), 0, "at it none does: the device keeps the rest");
    assert_eq!(bench.core.spool().used(Kind::Logs), 12_000, "what came is kept, every record of it");
    assert_eq!(alerts(&bench), ["quota_reached"]);
    device.add(Lane::Logs, class::LOG, vec![13; 904]);
    device.send(&mut bench);
    assert_eq!(alerts(&bench), ["quota_reached"], "told once");

    device.add(Lane::Work, class::RESULT, vec![1; 904]);
    let seen = device.send(&mut bench);
    assert_eq!(released(&seen, Lane::Work), 1_000, "a result is taken as ever");
    let mut urgent = order(1, &[1], &server_key());
    urgent = reclassed(urgent, Class::Urgent);
    let seen = bench.feed(parent_says(Message::Orders(vec![urgent])));
    assert_eq!((taken(&seen), orders_to(&seen, 1)), (1, vec![1]), "and so is an urgent order");

    // The uplink returns, the parent settles, and the device may go on.
    let mut up = bench.parent_up(1);
    bench.clock += 2_000;
    up.extend(bench.feed(Event::Tick));
    let seen = settle_all(&mut bench, &up);
    assert_eq!(released(&seen, Lane::Logs), 4_000, "everything that was held comes back");
    assert_eq!(bench.core.spool().used(Kind::Logs), 0);
}

fn reclassed(message: OrderMessage, class: Class) -> OrderMessage {
    let mut payload: Payload = rmp_serde::from_slice(&message.envelope.payload).unwrap();
    payload.class = class;
    let bytes = rmp_serde::to_vec_named(&payload).unwrap();
    OrderMessage { envelope: Envelope::sign(ORDER_PAYLOAD_TYPE, bytes, &server_key()), ..message }
}

#[test]
fn rly_10_held_credit_is_forgotten_with_its_link() {
    let mut bench = bench();
    let mut device = Device::new(1);
    bench.child_up(&device.1);
    device.add(Lane::Logs, class::LOG, vec![1; 12_000]);
    device.send(&mut bench);
    bench.child_up(&child(1, Role::Agent, 9));
    let mut up = bench.parent_up(1);
    bench.clock += 2_000;
    up.extend(bench.feed(Event::Tick));
    let seen = settle_all(&mut bench, &up);
    assert_eq!(released(&seen, Lane::Logs), 0, "a new link has a whole window of its own");
}

#[test]
fn rly_10_an_order_without_room_for_its_result_stays_with_the_parent_which_hears_why() {
    let mut bench = bench();
    bench.parent_up(1);
    // Room for 19 results of the usual size; the urgent ones have an eighth more.
    let devices: Vec<u128> = (1..=19).collect();
    let seen = bench.feed(parent_says(Message::Orders(vec![order(1, &devices, &server_key())])));
    assert_eq!((taken(&seen), left(&seen)), (1, vec![]), "at the bound");
    let seen = bench.feed(parent_says(Message::Orders(vec![order(2, &[1], &server_key())])));
    assert_eq!((taken(&seen), left(&seen)), (0, vec![(2, 1, "no_space".into())]), "one past it");
    assert!(!bench.core.ledger().contains(OrderNumber { term: 1, number: 2 }));
    let seen = bench.feed(parent_says(Message::Orders(vec![order(1, &devices, &server_key())])));
    assert_eq!(taken(&seen), 1, "one that is here is here");
    let urgent =
        |n, devices: &[u128]| Message::Orders(vec![reclassed(order(n, devices, &server_key()), Class::Urgent)]);
    assert_eq!(taken(&bench.feed(parent_says(urgent(3, &[1, 2])))), 1, "urgent ones at their bound");
    assert_eq!(left(&bench.feed(parent_says(urgent(4, &[1])))).len(), 1, "and past it");
    assert_eq!(alerts(&bench), ["no_space"], "told once");
}

#[test]
fn rly_10_on_a_full_disk_logs_go_and_no_order_is_taken_until_there_is_room() {
    let mut bench = bench();
    let mut device = Device::new(1);
    bench.child_up(&device.1);
    for n in 1..=8 {
        device.add(Lane::Logs, class::LOG, vec![n; 904]);
        device.add(Lane::Work, class::RESULT, vec![n; 404]);
    }
    device.send(&mut bench);
    bench.feed(Event::LowSpace(true));
    assert!(bench.core.spool().used(Kind::Logs) <= SMALL.logs / 2 + 300, "half of the logs' quota is free");
    assert_eq!(bench.core.spool().unsettled_of(node(1)).filter(|r| r.class == class::RESULT).count(), 8);
    assert_eq!(bench.core.spool().unsettled_of(node(1)).filter(|r| r.class == class::GAP).count(), 1, "counted");
    assert_eq!(alerts(&bench), ["disk_nearly_full"]);
    bench.feed(Event::LowSpace(true));
    assert_eq!(alerts(&bench).len(), 1);
    bench.parent_up(1);
    let seen = bench.feed(parent_says(Message::Orders(vec![order(1, &[1], &server_key())])));
    assert_eq!((taken(&seen), left(&seen).len()), (0, 1));
    bench.feed(Event::LowSpace(false));
    let seen = bench.feed(parent_says(Message::Orders(vec![order(1, &[1], &server_key())])));
    assert_eq!((taken(&seen), left(&seen).len()), (1, 0));
    bench.crash();
    assert_eq!(
        bench.core.spool().unsettled_of(node(1)).filter(|r| r.class == class::GAP).count(),
        1,
        "after a crash too"
    );
}

#[test]
fn rly_10_what_a_device_left_here_waits_is_told_upwards_and_is_offered_again_later() {
    let mut bench = bench();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    bench.child_up(&child(2, Role::Agent, 2));
    let seen = bench.feed(parent_says(Message::Orders(vec![order(1, &[1, 2], &server_key())])));
    assert_eq!((orders_to(&seen, 1), orders_to(&seen, 2)), (vec![1], vec![1]));
    let number = OrderNumber { term: 1, number: 1 };
    let says = Message::Left(vec![(number, vec![node(1), node(2)], "no_space".into())]);
    let seen = bench.feed(child_says(&agent, says));
    assert_eq!(left(&seen), [(1, 1, "no_space".into())], "for itself, not for its neighbour");
    let seen = bench.feed(parent_says(Message::Orders(vec![order(2, &[1, 2], &server_key())])));
    assert_eq!((orders_to(&seen, 1), orders_to(&seen, 2)), (vec![], vec![1]), "it is left alone for a while");
    bench.clock += LEFT_FOR_MS - 10;
    assert!(orders_to(&bench.feed(Event::Tick), 1).is_empty());
    bench.clock += 10;
    assert_eq!(orders_to(&bench.feed(Event::Tick), 1).len(), 2, "then both are offered");
    let seen = bench.feed(child_says(&agent, Message::Taken(vec![(number, vec![node(1)])])));
    assert!(left(&seen).is_empty());
}

#[test]
fn rly_8_acknowledgements_dropped_five_times_on_both_sides_leave_one_stored_copy() {
    let mut bench = Bench::new();
    let mut device = Device::new(1);
    for n in 1..=3 {
        device.add(Lane::Work, class::RESULT, vec![n; 10]);
    }
    let mut up = Vec::new();
    for round in 1..=5 {
        // Every link of both ends is lost before an acknowledgement arrives, and both disks are taken for others.
        device.1 = child(1, Role::Agent, round);
        device.0.link_up(RELAY, round);
        bench.feed(Event::ParentDown);
        bench.child_up(&device.1);
        let mut seen = bench.parent_up(round);
        seen.extend(device.send(&mut bench));
        up.push(seen);
    }
    assert_eq!(bench.core.spool().figures().spool_records, 3, "one copy of each");
    let carried: Vec<_> = up
        .iter()
        .flatten()
        .filter_map(|e| if let Effect::ToParent(_, Message::Records(runs)) = e { Some(runs.clone()) } else { None })
        .flatten()
        .flat_map(|run| run.records)
        .collect();
    assert_eq!(carried.len(), 5 * 3, "and each was offered to every parent");
    settle_all(&mut bench, up.last().unwrap());
    assert_eq!(bench.core.spool().figures().spool_records, 0);
    device.hear(&bench.feed(Event::Tick));
    assert_eq!(device.0.figures().spool_records, 0, "settled at its origin too");
}

#[test]
fn a_hole_is_answered_by_its_name_and_nothing_of_it_is_stored() {
    let mut bench = Bench::new();
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    let whole = {
        let mut device = Device::new(1);
        (1..=3).for_each(|n| device.add(Lane::Work, class::RESULT, vec![n; 10]));
        device.0.take().unwrap().1.remove(0)
    };
    let part = |numbers: &[usize]| {
        let records = numbers.iter().map(|n| whole.records[n - 1].clone()).collect();
        Message::Records(vec![Run { records, ..whole.clone() }])
    };
    bench.feed(child_says(&agent, part(&[1])));
    let seen = bench.feed(child_says(&agent, part(&[3])));
    let told = seen
        .iter()
        .find_map(|e| if let Effect::ToChild(_, _, _, Message::Acks(a)) = e { Some(a[0].clone()) } else { None });
    let told = told.unwrap();
    assert_eq!((told.stored, told.refused), (1, vec![(3, "hole".to_string())]));
    assert_eq!(bench.core.spool().figures().spool_records, 2, "record 1 and the alert");
    let seen = bench.feed(child_says(&agent, part(&[2, 3])));
    assert!(seen.iter().any(|e| matches!(e, Effect::ToChild(_, _, _, Message::Acks(a)) if a[0].stored == 3)));
}

#[test]
fn ops_7_a_parent_that_remembers_more_than_this_disk_is_heard_and_the_link_goes_on() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.feed(parent_says(Message::Orders(vec![order(2, &[1], &Signer::from_seed(&[66; 32]))])));
    let own = bench.core.spool().incarnation();
    bench.crash();
    bench.parent_up(2);
    let stream = StreamId { node: RELAY, epoch: 1, incarnation: own, lane: Lane::Work };
    let acks = vec![Ack { stream, stored: 9, settled: 9, refused: vec![] }];
    let seen = bench.feed(parent_says(Message::Acks(acks)));
    assert!(!seen.iter().any(|e| matches!(e, Effect::CloseParent(_))), "{seen:?}");
    assert_eq!(alerts(&bench), ["store_rolled_back"]);
}

#[test]
fn rly_7_one_flipped_bit_in_a_stored_record_is_found_at_the_start() {
    let mut bench = Bench::new();
    let mut device = Device::new(1);
    bench.child_up(&device.1);
    device.add(Lane::Work, class::RESULT, b"a result that will rot".repeat(3));
    device.send(&mut bench);
    bench.store.stop().unwrap();
    let path = bench.folder.path().join("relay.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    let pattern = b"a result that will rot";
    let hits: Vec<usize> = (0..bytes.len() - pattern.len()).filter(|at| bytes[*at..].starts_with(pattern)).collect();
    assert!(!hits.is_empty());
    hits.iter().for_each(|at| bytes[*at] ^= 1);
    std::fs::write(&path, bytes).unwrap();
    let (store, _) = Store::open(&path, StoreOptions::new(1, 9)).unwrap();
    let key = Arc::new(Signer::from_seed(&[77; 32]));
    let me = Me { tenant: tenant(), node: RELAY, epoch: 1, name: "osaka".into(), signer: key };
    let trust = TrustDocument { tenant: tenant(), term: 1, version: 1, cas: vec![], keys: vec![] };
    let found = RelayCore::recover(me, Signer::from_seed(&[1; 32]).public(), trust, 9, &store);
    let told = found.err().expect("it is found").to_string();
    assert!(told.starts_with("record ") && told.ends_with(" of table spool is damaged"), "{told}");
}

#[test]
fn rly_7_a_relay_that_was_cut_off_reads_back_what_memory_did_not_hold() {
    let mut bench = Bench::new();
    bench.core.set_memory(2_000);
    let mut device = Device::new(1);
    bench.child_up(&device.1);
    for n in 1..=50 {
        device.add(Lane::Work, class::RESULT, vec![n; 904]);
        device.send(&mut bench);
    }
    assert_eq!(bench.core.spool().used(Kind::Results), 50_000);
    assert!(bench.core.spool().in_memory() <= 2_000);
    let mut seen = bench.parent_up(1);
    let mut sent = Vec::new();
    // The parent stores what it gets, the disk gives what is asked for, until nothing moves any more.
    while !seen.is_empty() {
        let mut next = Vec::new();
        for effect in &seen {
            match effect {
                Effect::ToParent(_, Message::Records(runs)) => {
                    sent.extend(runs.iter().flat_map(|run| run.records.iter().map(|r| r.number)));
                }
                Effect::Load(keys) => {
                    let row = |key: &Vec<u8>| {
                        (key.clone(), bench.store.get(branchline_node::store::Table::Spool, key).unwrap())
                    };
                    let rows = keys.iter().map(row).collect();
                    next.extend(bench.feed(Event::Loaded(rows)));
                }
                _ => {}
            }
        }
        if seen.iter().any(|e| matches!(e, Effect::ToParent(_, Message::Records(_)))) {
            next.extend(settle_all(&mut bench, &seen));
        }
        seen = next;
    }
    assert_eq!(sent, (1..=50).collect::<Vec<u64>>(), "each once, in order");
    assert_eq!(bench.core.spool().figures().spool_records, 0);
}
