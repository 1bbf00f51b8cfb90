//! A relay speaks only for devices that say they are attached below it, and what it brings is what they wrote (RLY-9,
//! DESIGN 6).

use super::*;
use crate::dispatch::{receipts::HEAD_MISSING_MS, streams::STREAMS_KEPT};
use branchline_node::uplink::spool::HEADS_EVERY_MS;
use branchline_protocol::{
    chain::Position,
    receipt::{Head, Receipt},
    record::{Record, StreamId},
};

/// The key of a node's certificate.
pub fn key(node: NodeId) -> Signer {
    Signer::from_seed(&Hash::of(node.bytes()).0)
}

/// What a node says of itself when it greets a parent, all of its streams being new.
pub fn receipt(node: NodeId, parent: NodeId, attachment: u64) -> Receipt {
    let (key, heads) = (key(node).public(), vec![]);
    Receipt { tenant: tenant(), node, key, epoch: 1, attachment, parent, heads, complete: true }
}

/// A device with a disk and a key.
struct Device {
    node: NodeId,
    spool: Spool,
    attachment: u64,
    at: i64,
}

impl Device {
    fn new(n: u128) -> Device {
        let spool = Spool::new(node(n), 1, 77).with_signer(tenant(), Arc::new(key(node(n))));
        Device { node: node(n), spool, attachment: 0, at: 5 }
    }

    /// Its receipt for this parent.
    fn attach(&mut self, parent: u128) -> Envelope {
        self.attachment += 1;
        self.spool.link_up(node(parent), self.attachment);
        let (heads, complete) = self.spool.own_heads();
        Receipt { heads, complete, ..receipt(self.node, node(parent), self.attachment) }.seal(&key(self.node))
    }

    fn write(&mut self, code: &str) {
        let alert = branchline_protocol::record::Alert { code: code.into(), message: String::new() };
        let body = rmp_serde::to_vec(&alert).unwrap().into();
        let mark = self.spool.append(Millis(self.at), Lane::Work, class::ALERT, None, body, &mut Batch::new());
        self.spool.committed(&mark);
    }

    /// The head of what was written.
    fn sign(&mut self) {
        self.at += HEADS_EVERY_MS;
        let mark = self.spool.sign_heads(Millis(self.at), false, &mut Batch::new()).expect("something is unsigned");
        self.spool.committed(&mark);
    }

    fn send(&mut self, receipts: Vec<Envelope>) -> Run {
        let run = self.spool.take().expect("something to send").1.remove(0);
        Run { receipts, ..run }
    }
}

fn audits(bench: &Bench, what: &str) -> Vec<String> {
    let of = |op: &Op| match op {
        Op::Audit(row) if row.what == what => Some(row.detail.clone()),
        _ => None,
    };
    bench.ops.iter().filter_map(of).collect()
}

fn refused(bench: &Bench) -> Vec<(u64, String)> {
    let of = |op: &Op| match op {
        Op::DeadLetter(row) => Some((row.number, row.code.clone())),
        _ => None,
    };
    bench.ops.iter().filter_map(of).collect()
}

/// A bench with these relays up.
fn with_relays(relays: &[u128]) -> (Bench, Vec<Arc<Child>>) {
    let mut bench = Bench::new();
    let links: Vec<Arc<Child>> = relays.iter().map(|n| child(*n, 1)).collect();
    links.iter().for_each(|link| _ = bench.feed(Event::Up(link.clone())));
    (bench, links)
}

fn records(runs: Vec<Run>) -> Message {
    Message::Records(runs)
}

/// The same records with others' hashes: what a relay makes of a stream that it altered.
fn chained(stream: StreamId, records: Vec<Record>) -> Vec<Record> {
    let mut prev = records.first().map_or(Hash::ZERO, |record| record.prev);
    let link = |record| {
        let record = Record { prev, ..record };
        prev = record.hash(&stream);
        record
    };
    records.into_iter().map(link).collect()
}

#[test]
fn rly_9_records_of_a_node_that_is_not_the_tenants_are_refused_and_audited() {
    let mut bench = Bench::new();
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    let foreign = spooled(77, vec![(class::RESULT, result(End::Succeeded))]);
    let own = spooled(2, vec![(class::ALERT, vec![0xc1])]);
    let seen = bench.said(&relay, Message::Records(vec![foreign, own]));
    assert_eq!(acked(&seen), [(1, 1, 1), (1, 1, 1)]);
    assert!(!bench.ops.iter().any(|op| matches!(op, Op::Stream(_, row) if row.stream.node == node(77))));
}

#[test]
fn rly_9_an_invented_result_is_refused_and_audited_and_the_rest_of_the_batch_is_kept() {
    let (mut bench, links) = with_relays(&[100]);
    bench.issue(&[2, 3]);
    let (mut honest, mut victim) = (Device::new(2), Device::new(3));
    let receipt = honest.attach(100);
    honest.write("heat");
    victim.attach(101);
    let invented = spooled(3, vec![(class::RESULT, result(End::Succeeded))]);
    let seen = bench.said_bare(&links[0], records(vec![invented, honest.send(vec![receipt])]));
    assert_eq!(acked(&seen), [(1, 1, 1), (1, 1, 0)], "refused by its name, and it blocks nothing");
    assert!(bench.states(3).is_empty());
    assert_eq!(refused(&bench), [(1, "foreign".to_string())]);
    assert_eq!((audits(&bench, "record.refused").len(), audits(&bench, "alert.heat").len()), (1, 1));
}

#[test]
fn rly_9_receipts_forged_or_of_another_tenant_device_parent_or_epoch_let_nobody_speak() {
    let good = receipt(node(2), node(100), 7);
    let (own, thief) = (key(node(2)), Signer::from_seed(&[66; 32]));
    let bad = [
        ("forged", good.seal(&thief)),
        ("with the forger's key", Receipt { key: thief.public(), ..good.clone() }.seal(&thief)),
        ("of another tenant", Receipt { tenant: "other".parse().unwrap(), ..good.clone() }.seal(&own)),
        ("of another device", receipt(node(3), node(100), 7).seal(&key(node(3)))),
        ("for another parent", Receipt { parent: node(101), ..good.clone() }.seal(&own)),
        ("of an earlier life", Receipt { epoch: 0, ..good.clone() }.seal(&own)),
    ];
    for (what, receipt) in bad {
        let (mut bench, links) = with_relays(&[100, 101]);
        bench.issue(&[2]);
        let run = Run { receipts: vec![receipt], ..spooled(2, vec![(class::RESULT, result(End::Succeeded))]) };
        let seen = bench.said_bare(&links[0], records(vec![run.clone()]));
        assert_eq!((acked(&seen), bench.states(2).len()), (vec![(1, 1, 1)], 0), "{what}");
        assert_eq!(audits(&bench, "record.refused").len(), 1, "{what}");
        // A good one beside it is looked at all the same.
        let both = Run { receipts: vec![run.receipts[0].clone(), good.seal(&own)], ..run };
        assert_eq!(acked(&bench.said_bare(&links[0], records(vec![both]))), [(1, 1, 0)], "{what}");
        assert_eq!(bench.states(2), [State::Succeeded], "{what}");
    }
}

#[test]
fn rly_9_what_the_old_relay_brings_late_still_counts_and_what_it_invents_later_does_not() {
    let (mut bench, links) = with_relays(&[100, 101]);
    let mut device = Device::new(2);
    let first = device.attach(100);
    device.write("one");
    device.write("two");
    let late = device.send(vec![first.clone()]);
    let second = device.attach(101);
    device.write("three");
    // The old relay knows all three: the third it was not given, it made it.
    let invented = Run { receipts: vec![first.clone()], ..device.send(vec![]) };
    assert_eq!(invented.records.len(), 3);
    let mut elsewhere = Device::new(2);
    elsewhere.spool = Spool::new(node(2), 1, 666);
    elsewhere.spool.link_up(node(100), 1);
    elsewhere.write("of a stream that never was");
    let never = elsewhere.send(vec![first]);
    // The newer receipt is known before the old relay comes with what it has.
    let mut fourth = Device::new(2);
    fourth.spool = Spool::new(node(2), 1, 78).with_signer(tenant(), Arc::new(key(node(2))));
    fourth.spool.link_up(node(101), 1);
    fourth.write("new");
    bench.said_bare(&links[1], records(vec![fourth.send(vec![second.clone()])]));
    assert_eq!(acked(&bench.said_bare(&links[0], records(vec![late]))), [(2, 2, 0)], "late, and counted");
    let seen = bench.said_bare(&links[0], records(vec![invented.clone(), never]));
    assert_eq!(acked(&seen), [(3, 3, 1), (1, 1, 1)]);
    assert_eq!(refused(&bench), [(3, "foreign".to_string()), (1, "foreign".to_string())]);
    assert!(audits(&bench, "alert.three").is_empty());
    assert_eq!((audits(&bench, "alert.one").len(), audits(&bench, "alert.two").len()), (1, 1));
    // The new relay brings the very same record.
    let seen = bench.said_bare(&links[1], records(vec![Run { receipts: vec![second], ..invented }]));
    assert_eq!((acked(&seen), audits(&bench, "alert.three").len()), (vec![(3, 3, 0)], 1));
    // Back at the first relay, with a receipt that says so.
    let third = device.attach(100);
    device.write("four");
    let seen = bench.said_bare(&links[0], records(vec![device.send(vec![third])]));
    assert_eq!((acked(&seen), audits(&bench, "alert.four").len()), (vec![(4, 4, 0)], 1));
}

#[test]
fn rly_9_a_relay_speaks_for_devices_of_a_relay_that_says_it_is_below_it() {
    let (mut bench, links) = with_relays(&[100, 101]);
    let mut device = Device::new(2);
    let at_nested = device.attach(101);
    device.write("deep");
    let run = device.send(vec![]);
    let seen = bench.said_bare(&links[0], records(vec![Run { receipts: vec![at_nested.clone()], ..run.clone() }]));
    assert_eq!(acked(&seen), [(1, 1, 1)], "nobody says that 101 is below 100");
    let nested = receipt(node(101), node(100), 9).seal(&key(node(101)));
    let seen = bench.said_bare(&links[0], records(vec![Run { receipts: vec![at_nested, nested], ..run }]));
    assert_eq!((acked(&seen), audits(&bench, "alert.deep").len()), (vec![(1, 1, 0)], 1));
}

#[test]
fn a_receipt_is_verified_once_for_each_attachment_whatever_comes_under_it() {
    let (mut bench, links) = with_relays(&[100]);
    let mut devices: Vec<Device> = (2..=9).map(Device::new).collect();
    for attachment in 1..=3u64 {
        let receipts: Vec<Envelope> = devices.iter_mut().map(|device| device.attach(100)).collect();
        for _ in 0..20 {
            devices.iter_mut().for_each(|device| device.write("x"));
            let runs = devices.iter_mut().zip(&receipts).map(|(device, receipt)| device.send(vec![receipt.clone()]));
            bench.said_bare(&links[0], records(runs.collect()));
        }
        let verified = bench.core.tenant(&tenant()).unwrap().receipts.verified();
        assert_eq!(verified, attachment * devices.len() as u64);
    }
    assert_eq!(audits(&bench, "alert.x").len(), 3 * 20 * devices.len());
}

#[test]
fn a_record_that_was_altered_on_its_way_is_found_at_the_next_head_and_names_relay_and_device() {
    for altered in [false, true] {
        let (mut bench, links) = with_relays(&[100]);
        let mut device = Device::new(2);
        let receipt = device.attach(100);
        ["one", "two", "three"].into_iter().for_each(|code| device.write(code));
        device.sign();
        let mut run = device.send(vec![receipt]);
        if altered {
            let alert = branchline_protocol::record::Alert { code: "lie".into(), message: String::new() };
            run.records[1].body = rmp_serde::to_vec(&alert).unwrap().into();
            run.records = chained(run.stream, run.records);
        }
        assert_eq!(acked(&bench.said_bare(&links[0], records(vec![run]))), [(4, 4, 0)], "the chain holds either way");
        let told = audits(&bench, "alert.stream_head_mismatch");
        assert_eq!(told.len(), usize::from(altered), "{told:?}");
        if let Some(told) = told.first() {
            assert!(told.contains(&node(100).to_string()) && told.contains("up to number 3"), "{told}");
            assert!(told.contains(&node(2).to_string()), "{told}");
        }
    }
}

#[test]
fn a_head_that_a_relay_altered_or_moved_is_no_head() {
    type Lie = fn(&mut Vec<Record>);
    let lies: [Lie; 2] = [
        // The signature does not hold.
        |records| {
            let mut body = records[3].body.to_vec();
            let last = body.len() - 1;
            body[last] ^= 1;
            records[3].body = body.into();
        },
        // One left out, the rest renumbered.
        |records| {
            records.remove(1);
            records.iter_mut().enumerate().for_each(|(n, record)| record.number = n as u64 + 1);
        },
    ];
    for lie in lies {
        let (mut bench, links) = with_relays(&[100]);
        let mut device = Device::new(2);
        let receipt = device.attach(100);
        ["one", "two", "three"].into_iter().for_each(|code| device.write(code));
        device.sign();
        let mut run = device.send(vec![receipt]);
        lie(&mut run.records);
        run.records = chained(run.stream, run.records);
        bench.said_bare(&links[0], records(vec![run]));
        assert_eq!(audits(&bench, "alert.stream_head_mismatch").len(), 1);
    }
}

#[test]
fn a_relay_that_lets_heads_vanish_is_found_by_their_absence_and_a_device_that_slept_is_not_suspected() {
    for (wait, greets, told) in
        [(HEAD_MISSING_MS, false, 0), (HEAD_MISSING_MS + 1, false, 1), (HEAD_MISSING_MS + 1, true, 0)]
    {
        let (mut bench, links) = with_relays(&[100]);
        let mut device = Device::new(2);
        let mut shown = device.attach(100);
        device.write("one");
        let first = device.send(vec![shown.clone()]);
        bench.said_bare(&links[0], records(vec![first.clone()]));
        bench.clock += wait as u64 - 1;
        if greets {
            // It tells where its streams stand: nothing is missing.
            let held = bench.core.tenant(&tenant()).unwrap().streams.get(&first.stream).unwrap();
            let heads = vec![Head::of(&first.stream, held.upto, held.head)];
            shown = Receipt { heads, ..receipt(node(2), node(100), 9) }.seal(&key(node(2)));
        }
        device.write("two");
        device.spool.link_up(node(100), 99);
        bench.said_bare(&links[0], records(vec![device.send(vec![shown])]));
        let alerts = audits(&bench, "alert.stream_head_mismatch");
        assert_eq!(alerts.len(), told, "after {wait} ms, greets {greets}: {alerts:?}");
        assert!(alerts.iter().all(|told| told.contains("nothing of it for a quarter of an hour")), "{alerts:?}");
    }
}

/// A device that was started so often, each time with something to tell, before a relay could tell any of it.
fn restarted(times: usize) -> (Vec<Run>, Vec<Position>) {
    let of = |incarnation| {
        let mut device = Device::new(2);
        device.spool = Spool::new(node(2), 1, incarnation).with_signer(tenant(), Arc::new(key(node(2))));
        let receipt = device.attach(100);
        device.write(&format!("opening_{incarnation}"));
        let run = device.send(vec![receipt]);
        let head = run.records[0].hash(&run.stream);
        (run, Position { upto: 1, head })
    };
    (1..=times as u64).map(of).unzip()
}

#[test]
fn of_more_streams_in_one_message_than_are_remembered_each_is_acknowledged() {
    let (mut bench, links) = with_relays(&[100]);
    let (runs, _) = restarted(STREAMS_KEPT + 2);
    let seen = bench.said_bare(&links[0], records(runs.clone()));
    assert_eq!(acked(&seen), vec![(1, 1, 0); STREAMS_KEPT + 2], "or it is kept below and sent again for ever");
    // Those that are remembered are known when they come again.
    let again = runs.into_iter().skip(2).collect();
    assert_eq!(acked(&bench.said_bare(&links[0], records(again))), vec![(1, 1, 0); STREAMS_KEPT]);
    for n in 1..=STREAMS_KEPT + 2 {
        assert_eq!(audits(&bench, &format!("alert.opening_{n}")).len(), 1);
    }
}

#[test]
fn a_stream_that_was_forgotten_and_comes_again_is_new_and_its_relay_not_suspected() {
    let (mut bench, links) = with_relays(&[100]);
    let (runs, at) = restarted(STREAMS_KEPT + 1);
    bench.said_bare(&links[0], records(runs.clone()));
    let held = |bench: &Bench, n: usize| bench.core.tenant(&tenant()).unwrap().streams.get(&runs[n].stream);
    assert_eq!((held(&bench, 0), held(&bench, 1)), (None, Some(at[1])));
    bench.clock += HEAD_MISSING_MS as u64 + 1;
    // The relay did not hear of it, and brings it again.
    assert_eq!(acked(&bench.said_bare(&links[0], records(vec![runs[0].clone()]))), [(1, 1, 0)]);
    assert_eq!((held(&bench, 0), held(&bench, 1)), (Some(at[0]), None));
    assert_eq!(audits(&bench, "alert.stream_head_mismatch"), Vec::<String>::new());
}

#[test]
fn a_greeting_exposes_what_was_altered_before_it_and_a_head_ahead_waits_for_its_records() {
    for (altered, ahead) in [(false, false), (true, false), (false, true), (true, true)] {
        let (mut bench, links) = with_relays(&[100, 101]);
        let mut device = Device::new(2);
        let first = device.attach(100);
        device.write("one");
        let mut run = device.send(vec![first]);
        if altered {
            run.records[0].at = Millis(6);
        }
        // The next greeting, to another relay, names the head; with a record of another stream it reaches the server.
        let second = device.attach(101);
        let mut fresh = Device::new(2);
        fresh.spool = Spool::new(node(2), 1, 78).with_signer(tenant(), Arc::new(key(node(2))));
        fresh.spool.link_up(node(101), 1);
        fresh.write("new");
        let newer = records(vec![fresh.send(vec![second])]);
        let older = records(vec![run]);
        if ahead {
            bench.said_bare(&links[1], newer);
            bench.said_bare(&links[0], older);
        } else {
            bench.said_bare(&links[0], older);
            bench.said_bare(&links[1], newer);
        }
        assert_eq!(audits(&bench, "alert.one").len(), 1);
        let told = audits(&bench, "alert.stream_head_mismatch");
        assert_eq!(told.len(), usize::from(altered), "altered {altered} ahead {ahead}: {told:?}");
        let named = format!("brought by {}", node(100));
        assert!(told.iter().all(|told| told.contains(&named)), "not the relay that it is at now: {told:?}");
    }
}

#[test]
fn thirty_two_receipts_of_a_run_are_looked_at_and_not_one_more() {
    for (before, taken) in [(31, true), (32, false)] {
        let (mut bench, links) = with_relays(&[100]);
        let mut receipts: Vec<Envelope> =
            (0..before).map(|n| receipt(node(2), node(101), 1 + n).seal(&key(node(2)))).collect();
        receipts.push(receipt(node(2), node(100), 99).seal(&key(node(2))));
        let run = Run { receipts, ..spooled(2, vec![(class::RESULT, result(End::Succeeded))]) };
        let seen = bench.said_bare(&links[0], records(vec![run]));
        assert_eq!(acked(&seen)[0].2 == 0, taken, "after {before} others");
    }
}

#[test]
fn eight_parents_of_a_device_are_remembered_and_the_ninth_takes_the_place_of_the_oldest() {
    for (parents, speaks) in [(8, true), (9, false)] {
        let (mut bench, links) = with_relays(&[100, 101]);
        let at = |parent: u128, attachment| receipt(node(2), node(parent), attachment).seal(&key(node(2)));
        let run = spooled(2, vec![(class::RESULT, result(End::Succeeded))]);
        let first = Run { receipts: vec![at(100, 1)], ..run.clone() };
        assert_eq!(acked(&bench.said_bare(&links[0], records(vec![first])))[0].2, 0);
        // Others that it was attached to; the relay that is its last tells of them.
        let mut receipts: Vec<Envelope> = (2..parents).map(|n| at(200 + n as u128, n)).collect();
        receipts.push(at(101, 50));
        let last = Run { receipts, ..spooled(2, vec![(class::RESULT, result(End::Succeeded))]) };
        assert_eq!(acked(&bench.said_bare(&links[1], records(vec![last])))[0].2, 0);
        let again = bench.said_bare(&links[0], records(vec![run]));
        assert_eq!(acked(&again)[0].2 == 0, speaks, "{parents} parents");
    }
}
