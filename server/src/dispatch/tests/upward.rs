//! What comes up: repeats, gaps, holes, refused records, streams that are forgotten.

use super::*;
use crate::{
    dispatch::{left::LEFT_FOR_MS, streams::STREAMS_KEPT},
    store::DEAD_LETTER_BYTES_MAX,
};
use branchline_node::uplink::spool::Quotas;

fn audits(bench: &Bench, what: &str) -> Vec<String> {
    let of = |op: &Op| match op {
        Op::Audit(row) if row.what == what => Some(row.detail.clone()),
        _ => None,
    };
    bench.ops.iter().filter_map(of).collect()
}

fn letters(bench: &Bench) -> Vec<(u64, String)> {
    let of = |op: &Op| match op {
        Op::DeadLetter(row) => Some((row.number, row.code.clone())),
        _ => None,
    };
    bench.ops.iter().filter_map(of).collect()
}

/// What a device with this incarnation sends, one run a message.
fn all_of(incarnation: u64, records: Vec<(u16, Vec<u8>)>) -> Vec<Run> {
    let mut spool = Spool::new(node(1), 1, incarnation);
    for (class, body) in records {
        let mark = spool.append(Millis(5), Lane::Work, class, None, body.into(), &mut Batch::new());
        spool.committed(&mark);
    }
    spool.link_up(node(0), 1);
    std::iter::from_fn(|| spool.take()).flat_map(|(_, runs)| runs).collect()
}

fn alert(code: &str) -> Vec<u8> {
    rmp_serde::to_vec(&branchline_protocol::record::Alert { code: code.into(), message: String::new() }).unwrap()
}

#[test]
fn rly_8_what_is_known_is_not_acknowledged_before_it_is_on_disk_either() {
    let mut bench = Bench::new();
    let link = child(1, 1);
    bench.feed(Event::Up(link.clone()));
    let runs = all_of(77, vec![(class::ALERT, alert("heat"))]);
    bench.hold = true;
    assert_eq!(acked(&bench.said(&link, Message::Records(runs.clone()))), []);
    assert_eq!(acked(&bench.said(&link, Message::Records(runs))), [], "it is known, and on its way to the disk");
    assert_eq!(acked(&bench.flush()), [(1, 1, 0), (1, 1, 0)]);
}

#[test]
fn rly_8_an_acknowledgement_dropped_five_times_leaves_one_stored_copy_and_one_state_change() {
    let mut bench = Bench::new();
    bench.issue(&[1]);
    let mut device = Spool::new(node(1), 1, 77);
    for (class, body) in [(class::RESULT, result(End::Succeeded)), (class::ALERT, alert("heat"))] {
        let mark = device.append(Millis(5), Lane::Work, class, None, body.into(), &mut Batch::new());
        device.committed(&mark);
    }
    let mut told = Vec::new();
    for session in 1..=6 {
        let link = child(1, session);
        bench.feed(Event::Up(link.clone()));
        device.link_up(node(0), session);
        while let Some((_, runs)) = device.take() {
            told = bench.said(&link, Message::Records(runs));
        }
        if session <= 5 {
            device.link_down();
        }
    }
    assert_eq!(bench.states(1), [State::Succeeded]);
    assert_eq!(audits(&bench, "alert.heat").len(), 1);
    assert_eq!(acked(&told), [(2, 2, 0)]);
    let ack = told
        .iter()
        .find_map(|e| if let Effect::Send(_, _, _, Message::Acks(a)) = e { Some(a[0].clone()) } else { None });
    device.acked(&ack.unwrap(), &mut Batch::new()).unwrap();
    assert_eq!(device.figures().spool_records, 0, "the sixth arrives and frees it");
}

#[test]
fn log_4_dropped_records_reach_the_server_counted_and_the_rest_follows() {
    let mut bench = Bench::new();
    let link = child(1, 1);
    bench.feed(Event::Up(link.clone()));
    let mut device = Spool::new(node(1), 1, 77).with_quotas(Quotas { logs: 5_000, ..Quotas::AGENT });
    for n in 1..=20u8 {
        let body = vec![n; 904].into();
        let mark = device.append(Millis(5), Lane::Logs, class::LOG, None, body, &mut Batch::new());
        device.committed(&mark);
    }
    device.link_up(node(0), 1);
    let (_, runs) = device.take().unwrap();
    let kept = runs[0].records.len() as u64 - 1;
    let seen = bench.said(&link, Message::Records(runs.clone()));
    assert_eq!(acked(&seen), [(20, 20, 0)]);
    let dropped = 20 - kept;
    let bytes = dropped * 904;
    let told = format!("logs records of {}: 1 to {dropped}, {dropped} in number, {bytes} bytes, quota", node(1));
    assert_eq!(audits(&bench, "records.dropped"), [told]);
    bench.said(&link, Message::Records(runs));
    assert_eq!(audits(&bench, "records.dropped").len(), 1, "a repeated gap is known");
    assert_eq!(letters(&bench), []);
}

#[test]
fn a_hole_is_answered_by_its_name_and_nothing_after_it_is_stored() {
    let mut bench = Bench::new();
    let link = child(1, 1);
    bench.feed(Event::Up(link.clone()));
    let whole = spooled(1, (0..4).map(|n| (class::ALERT, alert(&n.to_string()))).collect());
    let part = |numbers: &[usize], settled| {
        let records = numbers.iter().map(|n| whole.records[n - 1].clone()).collect();
        Message::Records(vec![Run { records, settled, ..whole.clone() }])
    };
    bench.said(&link, part(&[1], 0));
    let seen = bench.said(&link, part(&[3, 4], 1));
    assert_eq!(acked(&seen), [(1, 1, 1)]);
    assert_eq!(letters(&bench), [(3, "hole".into())]);
    assert!(audits(&bench, "alert.2").is_empty());
    let seen = bench.said(&link, part(&[2, 3, 4], 0));
    assert_eq!(acked(&seen), [(4, 4, 0)], "the child repeats, and all is there");
}

#[test]
fn ops_7_a_server_put_back_to_an_older_state_goes_on_where_its_children_are() {
    let mut bench = Bench::new();
    let link = child(1, 1);
    bench.feed(Event::Up(link.clone()));
    let whole = spooled(1, (0..9).map(|n| (class::ALERT, alert(&n.to_string()))).collect());
    let first = Run { records: whole.records[..2].to_vec(), ..whole.clone() };
    bench.said(&link, Message::Records(vec![first]));
    // The device had 7 settled by the server as it was before it was put back; it has nothing older than 8.
    let rest = Run { records: whole.records[7..].to_vec(), settled: 7, ..whole };
    let seen = bench.said(&link, Message::Records(vec![rest]));
    assert_eq!(acked(&seen), [(9, 9, 0)]);
    let told = format!("work records of {}: 3 to 7 were settled, says the sender", node(1));
    assert_eq!(audits(&bench, "stream.resumed"), [told]);
    assert_eq!(audits(&bench, "alert.7").len(), 1);
}

#[test]
fn refused_records_are_kept_as_dead_letters_block_nothing_and_are_audited_once_a_minute() {
    let mut bench = Bench::new();
    let link = child(1, 1);
    bench.feed(Event::Up(link.clone()));
    let mut records: Vec<_> = (0..5).map(|_| (class::RESULT, b"no result".to_vec())).collect();
    records.push((class::RESULT, vec![0xc1; DEAD_LETTER_BYTES_MAX + 1]));
    records.push((class::ALERT, alert("after")));
    let mut told = Vec::new();
    for run in all_of(77, records) {
        told.extend(acked(&bench.said(&link, Message::Records(vec![run]))));
    }
    assert_eq!(told, [(5, 5, 5), (6, 6, 1), (7, 7, 0)]);
    assert_eq!(letters(&bench).len(), 6);
    assert_eq!(audits(&bench, "alert.after").len(), 1);
    assert_eq!(audits(&bench, "record.refused").len(), 1);
    let cut = bench.ops.iter().find_map(|op| match op {
        Op::DeadLetter(row) if row.number == 6 => Some((row.bytes as usize, row.body.len())),
        _ => None,
    });
    assert_eq!(cut, Some((DEAD_LETTER_BYTES_MAX + 1, DEAD_LETTER_BYTES_MAX)));
    bench.clock += 60_000;
    bench.said(&link, Message::Records(all_of(78, vec![(class::RESULT, b"x".to_vec())])));
    let told = audits(&bench, "record.refused");
    assert_eq!(told.len(), 2);
    assert!(told[1].ends_with("6 since the last audit: malformed"), "{}", told[1]);
}

#[test]
fn rly_9_records_of_others_and_of_the_revoked_are_dead_letters_by_their_names() {
    let mut bench = Bench::new();
    let (device, relay) = (child(1, 1), child(100, 2));
    bench.feed(Event::Up(device.clone()));
    bench.feed(Event::Up(relay.clone()));
    let one = |n| spooled(n, vec![(class::ALERT, alert("x"))]);
    let seen = bench.said(&device, Message::Records(vec![one(2), one(1)]));
    assert_eq!(acked(&seen), [(1, 1, 1), (1, 1, 0)], "a device speaks for itself only, and the rest is kept");
    bench.feed(Event::Revoked(tenant(), node(3)));
    let seen = bench.said(&relay, Message::Records(vec![one(77), one(3), one(4)]));
    assert_eq!(acked(&seen), [(1, 1, 1), (1, 1, 1), (1, 1, 0)]);
    let codes: Vec<_> = letters(&bench).into_iter().map(|(_, code)| code).collect();
    assert_eq!(codes, ["foreign", "foreign", "revoked"]);
    assert_eq!(audits(&bench, "alert.x").len(), 2);
}

#[test]
fn streams_of_earlier_openings_are_forgotten_one_by_one() {
    let mut bench = Bench::new();
    let link = child(1, 1);
    bench.feed(Event::Up(link.clone()));
    for life in 1..=STREAMS_KEPT as u64 + 3 {
        bench.said(&link, Message::Records(all_of(1_000 - life, vec![(class::ALERT, alert("x"))])));
    }
    assert_eq!(bench.core.tenant(&tenant()).unwrap().streams.count(), STREAMS_KEPT);
    let gone: Vec<u64> = bench
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::StreamGone(_, stream) => Some(stream.incarnation),
            _ => None,
        })
        .collect();
    assert_eq!(gone, [999, 998, 997], "the oldest first");
}

#[test]
fn rly_10_an_order_that_a_child_has_no_room_for_shows_why_and_is_offered_again_later() {
    let mut bench = Bench::new();
    let link = child(1, 1);
    bench.feed(Event::Up(link.clone()));
    assert_eq!(orders_to(&bench.issue(&[1, 2]), 1), [1]);
    let says = || Message::Left(vec![(ORDER, vec![node(1), node(2)], "no_space".into())]);
    bench.said(&link, says());
    let shown: Vec<_> = bench
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::JobDevice { device, state, reason, .. } => Some((*device, *state, reason.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(shown, [(node(1), State::Queued, Some("no_space".into()))], "and not for its neighbour");
    // Node time stands still: the order's own time is not over.
    let left_at = bench.clock;
    let mut tick = |mono| {
        let mut out = Vec::new();
        bench.core.handle(Now { mono: Mono(mono), ..at(500) }, Event::Tick, &mut out);
        orders_to(&out, 1)
    };
    assert!(tick(left_at + LEFT_FOR_MS - 1).is_empty());
    assert_eq!(tick(left_at + LEFT_FOR_MS), [1]);
    bench.said(&link, says());
    assert_eq!(bench.states(1), [State::Queued], "written once a session");
}
