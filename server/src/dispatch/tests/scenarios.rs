//! Scenarios of the requirements on the injected clock, as far as the server decides them; relay and agent have theirs.

use super::*;
use branchline_protocol::document::{Document, Kind, Revocations, Settings};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// An urgent order, as `run_script --class urgent`, that stands for a lock.
fn lock(number: u64, devices: &[u128], issued_at: u64, life: u64) -> Issue {
    let mut issue = issue(devices);
    let order = OrderNumber { term: 1, number };
    let leaves: Vec<Leaf> = devices.iter().map(|d| Leaf { device: node(*d), epoch: 1 }).collect();
    let tree = Tree::build(&tenant(), order, leaves);
    let job = JobId(Uuid::from_u128(1_000 + u128::from(number)));
    let fetch_by = Millis((issued_at + life) as i64);
    (issue.payload.number, issue.payload.job, issue.payload.class) = (order, job, Class::Urgent);
    (issue.payload.fetch_by, issue.payload.root) = (fetch_by, tree.root());
    issue.payload.leaf_count = tree.leaf_count();
    let bytes = rmp_serde::to_vec_named(&issue.payload).unwrap();
    let envelope = Envelope::sign(ORDER_PAYLOAD_TYPE, bytes, &Signer::from_seed(&[9; 32]));
    let all: Vec<u32> = (0..tree.leaf_count()).collect();
    (issue.job.id, issue.job.number, issue.job.class) = (job, order, Class::Urgent);
    (issue.job.fetch_by, issue.job.report_by) = (fetch_by, issue.payload.report_by());
    issue.job.envelope = envelope.clone();
    issue.devices.iter_mut().for_each(|row| row.job = job);
    issue.message = Some(OrderMessage { envelope, args: Bytes::new(), proof: tree.prove(&all) });
    issue
}

/// (lane, order numbers) of what a child is sent.
fn sent_to(effects: &[Effect], child: u128) -> Vec<(Lane, u64)> {
    let number = |m: &OrderMessage| rmp_serde::from_slice::<Payload>(&m.envelope.payload).unwrap().number.number;
    let to = effects.iter().filter_map(|e| match e {
        Effect::Send(n, _, lane, Message::Orders(list)) if *n == node(child) => Some((*lane, number(&list[0]))),
        _ => None,
    });
    to.collect()
}

impl Bench {
    /// (state, reason) of a job's row for a device.
    fn end_of(&self, number: u64, device: u128) -> Option<(State, Option<String>)> {
        let id = JobId(Uuid::from_u128(1_000 + u128::from(number)));
        let of = |op: &Op| match op {
            Op::JobDevice { device: d, job, state, reason, .. } if *d == node(device) && *job == id => {
                Some((*state, reason.clone()))
            }
            _ => None,
        };
        self.ops.iter().filter_map(of).next_back()
    }

    fn at(&mut self, ms: u64, event: Event) -> Vec<Effect> {
        self.clock = ms - 1;
        self.feed(event)
    }
}

fn poll(n: u128, session: u64) -> Arc<Child> {
    let lease = branchline_protocol::wire::Lease { interval_ms: 600_000, phase_ms: 0, waiter: 1 };
    Arc::new(Child { lease: Some(lease), ..Child::clone(&child(n, session)) })
}

#[test]
fn job_3_a_lock_for_a_device_that_was_away_three_days_is_sent_at_its_first_contact() {
    let mut bench = Bench::new();
    bench.feed(Event::Issue(Box::new(lock(5, &[1, 2], 10, 30 * DAY))));
    assert_eq!(
        sent_to(&bench.at(3 * DAY, Event::Up(child(1, 1))), 1),
        [(Lane::Urgent, 5)],
        "a persistent link: at once"
    );
    assert_eq!(
        sent_to(&bench.at(3 * DAY + 1, Event::Up(poll(2, 2))), 2),
        [(Lane::Urgent, 5)],
        "or the first urgent poll"
    );
}

#[test]
fn s_6_job_4_a_lock_is_fetched_up_to_thirty_days_and_expired_a_second_later() {
    let start = 1_000;
    let mut bench = Bench::new();
    bench.clock = start;
    bench.feed(Event::Issue(Box::new(lock(5, &[1, 2, 3], start, 30 * DAY))));
    let fetched = |bench: &mut Bench, n: u128, at: u64| {
        bench.at(at - 1, Event::Tick);
        let device = poll(n, n as u64);
        let seen = bench.at(at, Event::Up(device.clone()));
        for _ in sent_to(&seen, n) {
            bench.clock = at - 1;
            bench.said(&device, Message::Taken(vec![(OrderNumber { term: 1, number: 5 }, vec![node(n)])]));
        }
        sent_to(&seen, n).len()
    };
    assert_eq!(fetched(&mut bench, 1, start + 30 * DAY - 1_000), 1);
    assert_eq!(fetched(&mut bench, 2, start + 30 * DAY), 1, "exactly thirty days");
    assert_eq!(fetched(&mut bench, 3, start + 30 * DAY + 1_000), 0);
    assert_eq!(bench.end_of(5, 3), Some((State::Expired, Some("not_fetched".into()))));
    assert_eq!((bench.end_of(5, 1).unwrap().0, bench.end_of(5, 2).unwrap().0), (State::Delivered, State::Delivered));
    let again = bench.clock + 1;
    let seen = bench.at(again, Event::Issue(Box::new(lock(6, &[3], again, 30 * DAY))));
    assert_eq!(sent_to(&seen, 3), [(Lane::Urgent, 6)], "issued anew it is a new job and delivered");
}

#[test]
fn s_5_a_relay_that_was_cut_off_for_a_day() {
    let (mut bench, relay) = (Bench::new(), child(100, 1));
    bench.feed(Event::Up(relay.clone()));
    bench.said(&relay, presence((1..=9).map(|n| below(n, 1)).collect()));
    let cut = 18 * HOUR;
    bench.at(cut, Event::Gone(relay, LinkEnd::Silent));
    let settings = Settings::first(tenant(), 1).seal(&Signer::from_seed(&[9; 32]));
    bench.feed(Event::Document(tenant(), Kind::Settings, String::new(), (1, 1), settings));
    // B, and C with a life of six hours; then device 4 is revoked.
    bench.feed(Event::Issue(Box::new(lock(11, &[1, 2, 3, 4], cut, 30 * DAY))));
    bench.feed(Event::Issue(Box::new(lock(12, &[1, 2], cut, 6 * HOUR))));
    let list = Revocations {
        tenant: tenant(),
        term: 1,
        version: 2,
        revoked: vec![(node(4), 1)],
        suspended: vec![],
        raised: vec![],
        keep_connection: vec![],
    };
    let sealed = list.seal(&Signer::from_seed(&[9; 32]));
    bench.feed(Event::Document(tenant(), Kind::Revocations, String::new(), (1, 2), sealed));
    bench.feed(Event::Revoked(tenant(), node(4)));
    bench.at(cut + 6 * HOUR + 1_000, Event::Tick);
    assert_eq!(bench.end_of(12, 1), Some((State::Expired, Some("not_fetched".into()))), "C is expired, confirmed");
    let state = bench.core.tenant(&tenant()).unwrap();
    let now = Millis(bench.clock as i64);
    let (device, osaka) =
        (standing(state, &state.nodes[&node(1)], now), standing(state, &state.nodes[&node(100)], now));
    assert_eq!((device.state, device.reason.as_deref()), ("unknown", Some("behind n100")));
    assert_eq!(osaka.unreachable_since, Some(Millis(cut as i64)));

    let back = child(100, 2);
    let seen = bench.at(cut + DAY, Event::Up(back.clone()));
    let position = |wanted: &dyn Fn(&Message) -> bool| {
        seen.iter().position(|e| matches!(e, Effect::Send(_, _, _, message) if wanted(message)))
    };
    let revocations = position(&|m| matches!(m, Message::Document(Kind::Revocations, _)));
    let settings = position(&|m| matches!(m, Message::Document(Kind::Settings, _)));
    let orders = position(&|m| matches!(m, Message::Orders(_)));
    assert_eq!(revocations, Some(0), "OFF-3: before anything else");
    assert!(settings.is_some() && settings < orders, "OFF-3: settings before orders");
    assert_eq!(sent_to(&seen, 100), [(Lane::Urgent, 11)], "B, and never C");
    let foreign = spooled(4, vec![(class::RESULT, result(End::Succeeded))]);
    let own = spooled(5, vec![(class::ALERT, vec![0xc1])]);
    let seen = bench.said(&back, Message::Records(vec![foreign, own]));
    assert_eq!(acked(&seen)[0].2, 1, "what the revoked device ran meanwhile is refused");
}

#[test]
fn an_order_nobody_was_handed_expires_one_millisecond_past_its_time() {
    let mut bench = Bench::new();
    bench.issue(&[1]);
    bench.clock = 999;
    bench.feed(Event::Tick);
    assert!(bench.states(1).is_empty(), "exactly at fetch_by it is still good");
    bench.feed(Event::Tick);
    assert_eq!(bench.states(1), [State::Expired]);
}
