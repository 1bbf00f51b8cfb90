//! The core by hand: children that are nothing but messages, commits that are carried out when the test says so.

mod inventory;
mod presence;
mod put_back;
mod receipts;
mod select;
mod upward;
mod withdrawals;
use super::*;
use crate::store::{JobDeviceRow, JobRow, NodeRow, Op};
use branchline_node::{downstream::Child, link::engine::LinkEnd, store::Batch, uplink::spool::Spool};
use branchline_protocol::{
    hash::Hash,
    id::{AttachmentKey, JobId, NodeId, OrderNumber, Role, TenantId, TraceId},
    inventory::{Report, ReportKind, Snapshot},
    job::{Class, End, State},
    order::{Envelope, Leaf, ORDER_PAYLOAD_TYPE, OrderMessage, Payload, Signer, Tree},
    record::{Fact, Facts, JobResult, Lane, Run, class},
    time::{Millis, Mono, Now},
    wire::{Contact, Goodbye, Greeting, Message, PresenceEntry, Reach},
};
use bytes::Bytes;
use presence::{below, presence};
use receipts::{key, receipt};
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

fn node(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(n))
}

fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

fn at(ms: u64) -> Now {
    Now { mono: Mono(ms), wall: Millis(ms as i64), node: Millis(ms as i64) }
}

const ORDER: OrderNumber = OrderNumber { term: 1, number: 1 };
const JOB: JobId = JobId(Uuid::from_u128(42));

/// A core, everything it made durable, and what it did.
struct Bench {
    core: Core,
    ops: Vec<Op>,
    clock: u64,
    held: Vec<(Vec<Op>, Token)>,
    hold: bool,
}

impl Bench {
    /// Devices 1 to 9, relays 100 and 101.
    fn new() -> Bench {
        let mut bench = Bench { core: Core::default(), ops: Vec::new(), clock: 10, held: Vec::new(), hold: false };
        for n in (1..=9).chain([100, 101]) {
            bench.feed(Event::Node(Box::new(row(n))));
        }
        bench
    }

    fn feed(&mut self, event: Event) -> Vec<Effect> {
        self.clock += 1;
        let (mut out, mut seen) = (Vec::new(), Vec::new());
        self.core.handle(at(self.clock), event, &mut out);
        self.settle(out, &mut seen);
        seen
    }

    fn settle(&mut self, effects: Vec<Effect>, seen: &mut Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Commit(ops, token) if self.hold => self.held.push((ops, token)),
                Effect::Commit(ops, token) => self.write(ops, token, seen),
                other => seen.push(other),
            }
        }
    }

    fn write(&mut self, ops: Vec<Op>, token: Token, seen: &mut Vec<Effect>) {
        self.ops.extend(ops);
        let mut out = Vec::new();
        self.core.handle(at(self.clock), Event::Committed(token), &mut out);
        self.settle(out, seen);
    }

    fn flush(&mut self) -> Vec<Effect> {
        self.hold = false;
        let mut seen = Vec::new();
        for (ops, token) in std::mem::take(&mut self.held) {
            self.write(ops, token, &mut seen);
        }
        seen
    }

    /// What an honest child says: a relay with receipts of the devices whose records it brings.
    fn said(&mut self, child: &Arc<Child>, message: Message) -> Vec<Effect> {
        let mut message = message;
        if let Message::Records(runs) = &mut message {
            for run in runs.iter_mut().filter(|r| r.stream.node != child.node && r.receipts.is_empty()) {
                let attachment = 1_000_000 + self.clock;
                run.receipts = vec![receipt(run.stream.node, child.node, attachment).seal(&key(run.stream.node))];
            }
        }
        self.said_bare(child, message)
    }

    fn said_bare(&mut self, child: &Arc<Child>, message: Message) -> Vec<Effect> {
        let preloaded = Preloaded::new();
        self.feed(Event::Said { child: child.clone(), message, lane: Lane::Work, credit: 7, preloaded })
    }

    fn issue(&mut self, devices: &[u128]) -> Vec<Effect> {
        self.feed(Event::Issue(Box::new(issue(devices))))
    }

    /// The states a device went through in the store.
    fn states(&self, device: u128) -> Vec<State> {
        let of = |op: &Op| match op {
            Op::JobDevice { device: d, state, .. } if *d == node(device) => Some(*state),
            _ => None,
        };
        self.ops.iter().filter_map(of).collect()
    }

    fn stands(&self, device: u128) -> &'static str {
        let state = self.core.tenant(&tenant()).unwrap();
        let standing = standing(state, &state.nodes[&node(device)], Millis(self.clock as i64));
        // The short form tells the same.
        let contacts = contacts(state, &[node(device)]);
        assert_eq!(contacts.next.get(&node(device)).copied(), standing.next_contact);
        assert_eq!(contacts.suspended.contains(&node(device)), standing.state == "suspended");
        standing.state
    }
}

fn row(n: u128) -> NodeRow {
    NodeRow {
        id: node(n),
        tenant: tenant(),
        role: if n >= 100 { Role::Relay } else { Role::Agent },
        site: "hq".into(),
        name: format!("n{n}"),
        host_name: String::new(),
        platform: "linux".into(),
        capabilities: [].into(),
        kind: "lan".into(),
        epoch: 1,
        attachment: 0,
        route: vec![],
        last_contact: None,
        enrolled_at: Millis(0),
        revoked_at: None,
        key_hash: Hash::of(&key(node(n)).public().0),
        tags: vec![],
    }
}

fn child(n: u128, session: u64) -> Arc<Child> {
    let role = if n >= 100 { Role::Relay } else { Role::Agent };
    let greeting = Greeting {
        protocol: 1,
        build: "0".into(),
        tenant: tenant(),
        node: node(n),
        role,
        epoch: 1,
        attachment: session,
        incarnation: 1,
        disk: 1,
        age: 0,
        contact: Contact::Persistent,
        depth_below: 0,
        stored_at: None,
        documents: vec![],
        term: 1,
        wake_port: 0,
        receipt: None,
        capabilities: [].into(),
        next_poll_s: None,
    };
    Arc::new(Child {
        session,
        tenant: tenant(),
        node: node(n),
        role,
        key: AttachmentKey { epoch: 1, attachment: session },
        greeting: Arc::new(greeting),
        lease: None,
        source: None,
        gateway: None,
        keys: None,
    })
}

fn issue(devices: &[u128]) -> Issue {
    let leaves: Vec<Leaf> = devices.iter().map(|d| Leaf { device: node(*d), epoch: 1 }).collect();
    let tree = Tree::build(&tenant(), ORDER, leaves);
    let payload = Payload {
        tenant: tenant(),
        number: ORDER,
        job: JOB,
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
    let signer = Signer::from_seed(&[9; 32]);
    let envelope = Envelope::sign(ORDER_PAYLOAD_TYPE, rmp_serde::to_vec_named(&payload).unwrap(), &signer);
    let all: Vec<u32> = (0..tree.leaf_count()).collect();
    let message = OrderMessage { envelope: envelope.clone(), args: Bytes::new(), proof: tree.prove(&all) };
    let rows = devices.iter().enumerate().map(|(i, d)| JobDeviceRow {
        job: JOB,
        leaf: Some(i as u32),
        device: Ok(node(*d)),
        epoch: 1,
        state: State::Queued,
        reason: None,
        changed_at: Millis(0),
        result: None,
        holders: vec![],
        delivered_at: None,
        late: false,
    });
    let job = JobRow {
        id: JOB,
        tenant: tenant(),
        number: ORDER,
        trace: payload.trace,
        verb: "run_script".into(),
        command: "true".into(),
        selector: "all".into(),
        class: Class::Normal,
        ordered_by: "me".into(),
        issued_at: Millis(0),
        fetch_by: payload.fetch_by,
        report_by: payload.report_by(),
        envelope,
        args: Bytes::new(),
        origin: None,
    };
    Issue { job, devices: rows.collect(), payload, message: Some(message), who: "me".into() }
}

fn spooled(device: u128, records: Vec<(u16, Vec<u8>)>) -> Run {
    let mut spool = Spool::new(node(device), 1, 77);
    for (class, body) in records {
        let mut batch = Batch::new();
        let mark = spool.append(Millis(5), Lane::Work, class, None, body.into(), &mut batch);
        spool.committed(&mark);
    }
    spool.link_up(node(0), 1);
    spool.take().unwrap().1.remove(0)
}

fn result(end: End) -> Vec<u8> {
    let result = JobResult {
        order: ORDER,
        end,
        reason: None,
        exit_code: Some(0),
        stdout: Bytes::from_static(b"out"),
        stderr: Bytes::new(),
        truncated: false,
        started_at: None,
        ended_at: Millis(5),
        simulated: false,
    };
    rmp_serde::to_vec(&result).unwrap()
}

fn report(kind: ReportKind, base: &Snapshot, now: &Snapshot, collected_at: i64) -> Vec<u8> {
    let changes = if kind == ReportKind::Full { now.full() } else { now.difference(base) };
    let collected_at = Millis(collected_at);
    rmp_serde::to_vec(&Report { kind, collected_at, settings_version: 1, order: None, changes, digest: now.digest() })
        .unwrap()
}

fn snapshot(packages: &[&str]) -> Snapshot {
    let software = packages.iter().map(|p| (p.to_string(), serde_json::json!({"version": "1"}))).collect();
    Snapshot { sections: BTreeMap::from([("software".to_string(), software)]) }
}

fn orders_to(effects: &[Effect], child: u128) -> Vec<usize> {
    let to = |e: &Effect| match e {
        Effect::Send(n, _, _, Message::Orders(list)) if *n == node(child) => Some(list[0].proof.leaves.len()),
        _ => None,
    };
    effects.iter().filter_map(to).collect()
}

fn acked(effects: &[Effect]) -> Vec<(u64, u64, usize)> {
    let acks = effects.iter().filter_map(|e| match e {
        Effect::Send(_, _, _, Message::Acks(acks)) => Some(acks),
        _ => None,
    });
    acks.flatten().map(|a| (a.stored, a.settled, a.refused.len())).collect()
}

#[test]
fn nothing_is_sent_or_answered_before_the_job_is_durable() {
    let mut bench = Bench::new();
    bench.feed(Event::Up(child(1, 1)));
    bench.hold = true;
    let seen = bench.issue(&[1]);
    assert!(seen.is_empty(), "{seen:?}");
    let seen = bench.flush();
    assert!(seen.iter().any(|e| matches!(e, Effect::Issued(JOB))));
    assert_eq!(orders_to(&seen, 1), [1]);
}

#[test]
fn rly_3_devices_behind_a_relay_get_the_order_in_one_message() {
    let mut bench = Bench::new();
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    bench.feed(Event::Up(child(1, 1)));
    bench.said(&relay, presence(vec![below(2, 1), below(3, 1), below(4, 1)]));
    let seen = bench.issue(&[1, 2, 3, 4]);
    assert_eq!((orders_to(&seen, 1), orders_to(&seen, 100)), (vec![1], vec![3]));
    bench.said(&relay, Message::Taken(vec![(ORDER, vec![node(2), node(3), node(4)])]));
    assert!(bench.states(2).is_empty(), "held by the relay is not delivered");
    let facts = Facts { facts: vec![(ORDER, Fact::HandedOver, vec![node(2)])] };
    bench.said(&relay, Message::Records(vec![spooled(100, vec![(class::FACTS, rmp_serde::to_vec(&facts).unwrap())])]));
    assert_eq!(bench.states(2), [State::Delivered]);
}

#[test]
fn rly_5_each_device_ends_by_its_own_result_and_once() {
    let mut bench = Bench::new();
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    bench.said(&relay, presence(vec![below(2, 1), below(3, 1)]));
    bench.issue(&[2, 3]);
    let runs = vec![
        spooled(2, vec![(class::RESULT, result(End::Succeeded))]),
        spooled(3, vec![(class::RESULT, result(End::Failed))]),
    ];
    let seen = bench.said(&relay, Message::Records(runs.clone()));
    assert_eq!(acked(&seen), [(1, 1, 0), (1, 1, 0)], "stored and settled at once: this is the server");
    assert_eq!((bench.states(2), bench.states(3)), (vec![State::Succeeded], vec![State::Failed]));
    let seen = bench.said(&relay, Message::Records(runs));
    assert_eq!(acked(&seen), [(1, 1, 0), (1, 1, 0)], "a repeated record is acknowledged");
    assert_eq!(bench.states(2).len(), 1, "and changes nothing (RLY-8)");
    let other = spooled(2, vec![(class::RESULT, result(End::Succeeded)), (class::RESULT, result(End::Failed))]);
    bench.said(&relay, Message::Records(vec![other]));
    assert_eq!(bench.states(2).len(), 1, "an end stays");
}

#[test]
fn rly_4_one_malformed_record_is_refused_alone() {
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    bench.issue(&[1]);
    let run = spooled(1, vec![(class::RESULT, vec![0xc1]), (class::RESULT, result(End::Succeeded))]);
    let seen = bench.said(&agent, Message::Records(vec![run]));
    assert_eq!(acked(&seen), [(2, 2, 1)]);
    assert_eq!(bench.states(1).last(), Some(&State::Succeeded));
    assert!(bench.ops.iter().any(|op| matches!(op, Op::Audit(a) if a.what == "record.refused")));
}

#[test]
fn a_device_that_moves_takes_its_waiting_orders_along() {
    let mut bench = Bench::new();
    let (a, b) = (child(100, 1), child(101, 1));
    bench.feed(Event::Up(a.clone()));
    bench.feed(Event::Up(b.clone()));
    bench.said(&a, presence(vec![below(2, 1)]));
    let seen = bench.issue(&[2]);
    assert_eq!(orders_to(&seen, 100), [1]);
    bench.said(&a, Message::Taken(vec![(ORDER, vec![node(2)])]));
    let seen = bench.said(&b, presence(vec![below(2, 2)]));
    assert_eq!(orders_to(&seen, 101), [1], "offered by its new way");
    let seen = bench.said(&b, Message::Records(vec![spooled(2, vec![(class::RESULT, result(End::Succeeded))])]));
    assert_eq!(bench.states(2), [State::Succeeded]);
    assert!(!seen.is_empty());
}

#[test]
fn a_cut_relay_leaves_its_devices_unknown_and_their_orders_wait() {
    let mut bench = Bench::new();
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    bench.said(&relay, presence(vec![below(2, 1)]));
    assert_eq!((bench.stands(2), bench.stands(3)), ("online", "unknown"));
    bench.feed(Event::Gone(relay, LinkEnd::Silent));
    assert_eq!((bench.stands(2), bench.stands(100)), ("unknown", "offline"));
    assert!(orders_to(&bench.issue(&[2]), 100).is_empty());
    let again = child(100, 2);
    let seen = bench.feed(Event::Up(again.clone()));
    assert_eq!(orders_to(&seen, 100), [1], "sent when the relay is back");
    assert_eq!(bench.stands(2), "online");
}

#[test]
fn enr_9_a_revoked_device_is_closed_its_open_jobs_are_cancelled_and_it_is_refused() {
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    bench.issue(&[1]);
    let seen = bench.feed(Event::Revoked(tenant(), node(1)));
    assert!(seen.iter().any(|e| matches!(e, Effect::Refuse(n, 1, r) if *n == node(1) && r.code == "revoked")));
    assert_eq!(bench.states(1), [State::Cancelled]);
    let seen = bench.feed(Event::Up(child(1, 2)));
    assert!(seen.iter().any(|e| matches!(e, Effect::Refuse(_, 2, r) if r.status == 401)));
    let late = bench.said(&agent, Message::Records(vec![spooled(1, vec![(class::RESULT, result(End::Succeeded))])]));
    assert!(acked(&late).is_empty(), "a link that is no more says nothing");
}

#[test]
fn inv_6_a_difference_on_a_missing_base_is_not_applied_and_the_whole_is_asked_for() {
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    let (old, new) = (snapshot(&["a"]), snapshot(&["a", "b"]));
    let run = spooled(1, vec![(class::INVENTORY, report(ReportKind::Diff, &old, &new, 5))]);
    let seen = bench.said(&agent, Message::Records(vec![run]));
    assert!(seen.iter().any(|e| matches!(e, Effect::Send(_, _, _, Message::Sections(n, _)) if *n == node(1))));
    assert!(bench.ops.iter().any(|op| matches!(op, Op::NeedFull(..))));
    assert!(!bench.ops.iter().any(|op| matches!(op, Op::Inventory { .. })), "no mixed state");
    let seen = bench.feed(Event::Up(child(1, 2)));
    assert!(
        seen.iter().any(|e| matches!(e, Effect::Send(_, _, _, Message::Sections(..)))),
        "asked again at the next contact"
    );
}

#[test]
fn inv_4_collection_time_moves_only_with_a_difference_and_inv_13_older_reports_go_to_history() {
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    let (one, two) = (snapshot(&["a"]), snapshot(&["a", "b"]));
    let times = |bench: &Bench| -> Vec<i64> {
        let of = |op: &Op| match op {
            Op::Inventory { collected_at, .. } => Some(collected_at.0),
            _ => None,
        };
        bench.ops.iter().filter_map(of).collect()
    };
    let records = vec![
        (class::INVENTORY, report(ReportKind::Full, &one, &one, 10)),
        (class::INVENTORY, report(ReportKind::Diff, &one, &one, 20)),
        (class::INVENTORY, report(ReportKind::Diff, &one, &two, 30)),
        (class::INVENTORY, report(ReportKind::Full, &one, &one, 25)),
    ];
    bench.said(&agent, Message::Records(vec![spooled(1, records)]));
    assert_eq!(times(&bench), [10, 10, 30], "unchanged: the old time; older: not applied");
    assert_eq!(bench.ops.iter().filter(|op| matches!(op, Op::InventoryHistory { .. })).count(), 1);
}

mod random;
mod recovery;
mod scenarios;
mod sleepers;
mod steering;
