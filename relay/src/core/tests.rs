//! The core by hand: a parent and children that are nothing but messages, a disk that is real and may be closed at any
//! point, as a crash would.

use super::*;
use branchline_node::{
    downstream::Child,
    driver::Core as _,
    link::engine::LinkEnd,
    store::{Batch, Store, StoreHandle, StoreOptions},
    uplink::spool::Spool,
};
use branchline_protocol::{
    document::{Document, Kind, Revocations, TimeStatement},
    hash::Hash,
    id::{AttachmentKey, JobId, NodeId, OrderNumber, Role, TenantId, TraceId},
    job::{Class, End},
    order::{Envelope, Leaf, ORDER_PAYLOAD_TYPE, OrderMessage, Payload, Signer, Tree},
    record::{Fact, Facts, JobResult, Lane, Run, StreamId, class},
    time::{Millis, Mono, Now},
    trust::{KeyStatus, TrustDocument, TrustedKey},
    wire::{Ack, Contact, Greeting, Message, PresenceEntry, Reach, Welcome},
};
use bytes::Bytes;
use std::sync::Arc;
use uuid::Uuid;

mod bounds;
mod receipts;
const PARENT: NodeId = NodeId(Uuid::from_u128(1000));
const RELAY: NodeId = NodeId(Uuid::from_u128(500));

fn node(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(n))
}

fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

fn server_key() -> Signer {
    Signer::from_seed(&[9; 32])
}

fn at(ms: u64) -> Now {
    Now { mono: Mono(ms), wall: Millis(ms as i64), node: Millis(ms as i64) }
}

/// A relay on a disk.
struct Bench {
    core: RelayCore,
    store: StoreHandle,
    clock: u64,
    folder: tempfile::TempDir,
    /// Batches that were asked for and are not on disk.
    held: Vec<(Batch, u64)>,
    hold: bool,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let (core, store) = Self::open(&folder, 1);
        Bench { core, store, clock: 1, folder, held: Vec::new(), hold: false }
    }

    fn open(folder: &tempfile::TempDir, incarnation: u64) -> (RelayCore, StoreHandle) {
        let (store, _) = Store::open(&folder.path().join("relay.redb"), StoreOptions::new(1, incarnation)).unwrap();
        let key = Arc::new(Signer::from_seed(&[77; 32]));
        let me = Me { tenant: tenant(), node: RELAY, epoch: 1, name: "osaka".into(), signer: key };
        let key = TrustedKey { key: server_key().public(), role: "server".into(), status: KeyStatus::Active };
        let trust = TrustDocument { tenant: tenant(), term: 1, version: 1, cas: vec![], keys: vec![key] };
        let root = Signer::from_seed(&[1; 32]).public();
        (RelayCore::recover(me, root, trust, incarnation, &store).unwrap(), store)
    }

    /// What is not on disk is lost, and the relay starts again.
    fn crash(&mut self) {
        self.held.clear();
        self.store.stop().unwrap();
        let (core, store) = Self::open(&self.folder, self.clock + 100);
        (self.core, self.store) = (core, store);
    }

    fn feed(&mut self, event: Event) -> Vec<Effect> {
        let mut seen = Vec::new();
        self.clock += 1;
        let mut out = Vec::new();
        self.core.handle(at(self.clock), event, &mut out);
        self.settle(out, &mut seen);
        seen
    }

    fn settle(&mut self, effects: Vec<Effect>, seen: &mut Vec<Effect>) {
        for effect in effects {
            match <RelayCore>::into_commit(effect) {
                Ok((batch, token)) if self.hold => self.held.push((batch, token)),
                Ok((batch, token)) => self.write(batch, token, seen),
                Err(effect) => seen.push(effect),
            }
        }
    }

    fn write(&mut self, batch: Batch, token: u64, seen: &mut Vec<Effect>) {
        let (tx, rx) = std::sync::mpsc::channel();
        self.store.commit(batch, Box::new(move |done| tx.send(done).unwrap())).unwrap();
        rx.recv().unwrap().unwrap();
        let mut out = Vec::new();
        self.core.handle(at(self.clock), Event::Committed(token), &mut out);
        self.settle(out, seen);
    }

    /// The disk writes what it held back.
    fn flush(&mut self) -> Vec<Effect> {
        let mut seen = Vec::new();
        // What a commit leads to is written behind what waits, as the store does it.
        while let Some((batch, token)) = (!self.held.is_empty()).then(|| self.held.remove(0)) {
            self.write(batch, token, &mut seen);
        }
        self.hold = false;
        seen
    }

    fn parent_up(&mut self, store: u64) -> Vec<Effect> {
        self.feed(Event::ParentUp(Box::new(Welcome {
            protocol: 1,
            build: "0".into(),
            parent: PARENT,
            store,
            ancestors: vec![(PARENT, "hq".into())],
            lease: None,
            reconnect_spread_ms: 0,
            notice_port: 0,
        })))
    }

    fn child_up(&mut self, child: &Arc<Child>) -> Vec<Effect> {
        self.feed(Event::ChildUp(child.clone()))
    }
}

fn child(n: u128, role: Role, session: u64) -> Arc<Child> {
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

fn order(number: u64, devices: &[u128], signer: &Signer) -> OrderMessage {
    let number = OrderNumber { term: 1, number };
    let leaves = devices.iter().map(|d| Leaf { device: node(*d), epoch: 1 }).collect();
    let tree = Tree::build(&tenant(), number, leaves);
    let args = Bytes::from_static(b"args");
    let payload = Payload {
        tenant: tenant(),
        number,
        job: JobId(Uuid::from_u128(1)),
        trace: TraceId(Uuid::from_u128(2)),
        verb: "run_script".into(),
        args_hash: Hash::of(&args),
        class: Class::Normal,
        issued_at: Millis(0),
        not_before: Millis(0),
        fetch_by: Millis(1_000_000),
        run_ms_max: 10,
        policy_version: 0,
        root: tree.root(),
        leaf_count: tree.leaf_count(),
        targets: vec![],
    };
    let envelope = Envelope::sign(ORDER_PAYLOAD_TYPE, rmp_serde::to_vec_named(&payload).unwrap(), signer);
    let all: Vec<u32> = (0..tree.leaf_count()).collect();
    OrderMessage { envelope, args, proof: tree.prove(&all) }
}

fn parent_says(message: Message) -> Event {
    Event::ParentSaid(message, Lane::Work, 10)
}

fn child_says(child: &Arc<Child>, message: Message) -> Event {
    Event::ChildSaid(child.clone(), message, Lane::Work, 10)
}

/// A device's own spool, so that streams are as an agent makes them.
fn results(device: u128, order: u64, text: &'static str) -> Run {
    let mut spool = Spool::new(node(device), 1, 77);
    let result = JobResult {
        order: OrderNumber { term: 1, number: order },
        end: End::Succeeded,
        reason: None,
        exit_code: Some(0),
        stdout: Bytes::from_static(text.as_bytes()),
        stderr: Bytes::new(),
        truncated: false,
        started_at: None,
        ended_at: Millis(5),
        simulated: false,
    };
    let mut batch = Batch::new();
    let body = rmp_serde::to_vec(&result).unwrap();
    let mark = spool.append(Millis(5), Lane::Work, class::RESULT, None, body.into(), &mut batch);
    spool.committed(&mark);
    spool.link_up(RELAY, 1);
    spool.take().unwrap().1.remove(0)
}

fn orders_to(effects: &[Effect], child: u128) -> Vec<usize> {
    let to = |e: &Effect| match e {
        Effect::ToChild(n, _, _, Message::Orders(list)) if *n == node(child) => Some(list[0].proof.leaves.len()),
        _ => None,
    };
    effects.iter().filter_map(to).collect()
}

fn taken(effects: &[Effect]) -> usize {
    effects.iter().filter(|e| matches!(e, Effect::ToParent(_, Message::Taken(_)))).count()
}

fn records_up(effects: &[Effect]) -> Vec<(NodeId, u16)> {
    let runs = effects.iter().filter_map(|e| match e {
        Effect::ToParent(_, Message::Records(runs)) => Some(runs),
        _ => None,
    });
    runs.flatten().flat_map(|r| r.records.iter().map(|rec| (r.stream.node, rec.class))).collect()
}

#[test]
fn rly_3_one_order_from_above_goes_once_to_each_child_and_to_nobody_else() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    for n in [1, 2, 3] {
        bench.child_up(&child(n, Role::Agent, n as u64));
    }
    let seen = bench.feed(parent_says(Message::Orders(vec![order(1, &[1, 2], &server_key())])));
    assert_eq!(taken(&seen), 1);
    assert_eq!((orders_to(&seen, 1), orders_to(&seen, 2)), (vec![1], vec![1]), "each with its own leaf only");
    assert!(orders_to(&seen, 3).is_empty());
    let seen = bench.feed(parent_says(Message::Orders(vec![order(1, &[1, 2], &server_key())])));
    assert_eq!(taken(&seen), 1, "a repeated order is acknowledged again");
    assert!(orders_to(&seen, 1).is_empty(), "and not handed on again");
}

#[test]
fn nothing_is_told_before_it_is_on_disk() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    bench.hold = true;
    let seen = bench.feed(parent_says(Message::Orders(vec![order(1, &[1], &server_key())])));
    assert_eq!((taken(&seen), orders_to(&seen, 1).len()), (0, 0), "neither taken nor handed on");
    let seen = bench.feed(child_says(&agent, Message::Records(vec![results(1, 1, "out")])));
    assert!(!seen.iter().any(|e| matches!(e, Effect::ToChild(_, _, _, Message::Acks(_)) | Effect::ReleaseChild(..))));
    assert!(records_up(&seen).is_empty());
    let seen = bench.flush();
    assert_eq!(taken(&seen), 1);
    assert!(seen.iter().any(|e| matches!(e, Effect::ReleaseChild(..))));
    assert_eq!(records_up(&seen), [(node(1), class::RESULT)]);
    assert_eq!(owed::told(&bench.feed(Event::Tick), 1), [(1, 0)]);
}

#[test]
fn an_order_is_neither_acknowledged_nor_handed_on_before_it_is_on_disk_whatever_else_happens() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.hold = true;
    let mut seen = bench.feed(parent_says(Message::Orders(vec![order(1, &[1], &server_key())])));
    seen.extend(bench.feed(parent_says(Message::Orders(vec![order(1, &[1], &server_key())]))));
    seen.extend(bench.child_up(&child(1, Role::Agent, 1)));
    assert_eq!((taken(&seen), orders_to(&seen, 1).len()), (0, 0), "the repetition and the child's coming tell nothing");
    let seen = bench.flush();
    assert_eq!((taken(&seen), orders_to(&seen, 1)), (2, vec![1]));
}

#[test]
fn rly_13_an_order_that_does_not_verify_is_refused_reported_and_never_handed_on() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.child_up(&child(1, Role::Agent, 1));
    let stranger = Signer::from_seed(&[66; 32]);
    let mut altered = order(2, &[1], &server_key());
    altered.args = Bytes::from_static(b"other");
    for bad in [order(1, &[1], &stranger), altered] {
        let seen = bench.feed(parent_says(Message::Orders(vec![bad])));
        assert_eq!((taken(&seen), orders_to(&seen, 1).len()), (0, 0));
        assert!(seen.iter().any(|e| matches!(e, Effect::Refused("bad_signature"))));
        assert!(seen.iter().any(|e| matches!(e, Effect::ReleaseParent(..))), "the link goes on");
    }
    assert_eq!(bench.core.ledger().open_rows(), 0, "nothing was stored");
    assert_eq!(bench.core.spool().figures().spool_records, 2, "an alert each");
}

#[test]
fn rly_7_what_was_acknowledged_survives_a_crash_and_goes_up_once_the_link_is_back() {
    let mut bench = Bench::new();
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    bench.feed(parent_says(Message::Orders(vec![order(1, &[1, 2], &server_key())])));
    bench.feed(child_says(&agent, Message::Taken(vec![(OrderNumber { term: 1, number: 1 }, vec![node(1)])])));
    let seen = bench.feed(child_says(&agent, Message::Records(vec![results(1, 1, "out")])));
    assert!(records_up(&seen).is_empty(), "no uplink");
    bench.crash();
    assert_eq!(bench.core.ledger().open_rows(), 1, "device 2 is still waited for, device 1 is over");
    let seen = bench.parent_up(1);
    assert_eq!(records_up(&seen), [(node(1), class::RESULT)]);
    let seen = bench.child_up(&child(2, Role::Agent, 2));
    assert_eq!(orders_to(&seen, 2), [1], "handed on after the crash");
}

#[test]
fn a_relay_whose_clock_is_wrong_hands_orders_on_until_a_statement_tells_it_the_time() {
    let mut bench = Bench::new();
    bench.clock = 5_000_000;
    bench.child_up(&child(1, Role::Agent, 1));
    let seen = bench.feed(parent_says(Message::Orders(vec![order(1, &[1], &server_key())])));
    assert_eq!(orders_to(&seen, 1), [1], "past its last instant by this machine's clock alone");
    let statement = TimeStatement {
        tenant: tenant(),
        time: Millis(5_000_000),
        term: 1,
        version: 1,
        order_floor: 0,
        trust_version: 1,
        settings_version: 1,
        revocations_version: 1,
        restored_from: None,
    };
    bench.hold = true;
    let seen = bench.feed(Event::Alive(statement.seal(&server_key())));
    let learns = |e: &Effect| matches!(e, Effect::LearnTime(Millis(5_000_000), _));
    assert!(seen.iter().any(learns), "before its batch is durable: the next order is judged by it");
    bench.flush();
    let seen = bench.feed(parent_says(Message::Orders(vec![order(2, &[1], &server_key())])));
    assert_eq!(orders_to(&seen, 1), [] as [usize; 0], "past it by stated time");
}

#[test]
fn a_crash_before_the_write_leaves_nothing_and_the_child_repeats() {
    let mut bench = Bench::new();
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    bench.hold = true;
    bench.feed(child_says(&agent, Message::Records(vec![results(1, 1, "out")])));
    bench.crash();
    bench.hold = false;
    assert_eq!(bench.core.spool().figures().spool_records, 0);
    bench.child_up(&child(1, Role::Agent, 2));
    let again = child(1, Role::Agent, 2);
    let seen = bench.feed(child_says(&again, Message::Records(vec![results(1, 1, "out")])));
    assert!(seen.iter().any(|e| matches!(e, Effect::ToChild(_, _, _, Message::Acks(a)) if a[0].stored == 1)));
    assert_eq!(bench.core.spool().figures().spool_records, 1);
}

#[test]
fn rly_9_an_agent_speaks_for_itself_only() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    let own = results(1, 1, "mine");
    let seen = bench.feed(child_says(&agent, Message::Records(vec![results(2, 1, "forged"), own])));
    let kept = bench.core.spool().unsettled_of(node(1)).filter(|r| r.class == class::RESULT).count();
    assert_eq!(kept, 1, "the rest of the batch is kept");
    assert_eq!(bench.core.spool().unsettled_of(node(2)).count(), 0);
    assert_eq!(records_up(&seen), [(RELAY, class::ALERT)], "and an administrator is told");
    let refused = |e: &Effect| matches!(e, Effect::ToChild(_, _, _, Message::Acks(a)) if a.iter().any(|a| a.refused == [(1, "foreign".to_string())]));
    assert!(seen.iter().any(refused));
}

#[test]
fn settled_reaches_the_child_that_brought_the_record_and_frees_the_spool() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    let run = results(1, 1, "out");
    let stream = run.stream;
    bench.feed(child_says(&agent, Message::Records(vec![run])));
    let ack = Ack { stream, stored: 1, settled: 1, refused: vec![] };
    // What its parent stored is not stored here.
    bench.feed(parent_says(Message::Acks(vec![Ack { stored: 2, ..ack.clone() }])));
    assert_eq!(owed::told(&bench.feed(Event::Tick), 1), [(1, 1)]);
    assert_eq!(bench.core.spool().figures().spool_records, 0);
    // Of a device's stream the server may have more, by another relay; of this relay's own it cannot.
    let more = Ack { stored: 9, settled: 9, ..ack };
    let seen = bench.feed(parent_says(Message::Acks(vec![more.clone()])));
    assert!(!seen.iter().any(|e| matches!(e, Effect::CloseParent(_))));
    let beyond = Ack { stream: StreamId { node: RELAY, incarnation: 1, ..stream }, ..more };
    let seen = bench.feed(parent_says(Message::Acks(vec![beyond])));
    assert!(seen.iter().any(|e| matches!(e, Effect::CloseParent(_))), "nobody acknowledges what was never sent");
}

#[test]
fn an_acknowledgement_that_is_refused_takes_back_nothing_of_those_before_it() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agent = child(1, Role::Agent, 1);
    bench.child_up(&agent);
    // A record of the relay's own: nobody but its parent can have it, and only as far as it was sent.
    let seen = bench.feed(parent_says(Message::Orders(vec![order(2, &[1], &Signer::from_seed(&[66; 32]))])));
    let own = seen.iter().find_map(|e| match e {
        Effect::ToParent(_, Message::Records(runs)) => runs.iter().map(|r| r.stream).find(|s| s.node == RELAY),
        _ => None,
    });
    let run = results(1, 1, "out");
    let settled = Ack { stream: run.stream, stored: 1, settled: 1, refused: vec![] };
    bench.feed(child_says(&agent, Message::Records(vec![run])));
    let beyond = Ack { stream: own.expect("an alert"), stored: 9, settled: 9, refused: vec![] };
    let seen = bench.feed(parent_says(Message::Acks(vec![settled, beyond])));
    assert!(seen.iter().any(|e| matches!(e, Effect::CloseParent(_))));
    assert_eq!(bench.core.spool().figures().spool_records, 1, "its own");
    bench.crash();
    assert_eq!(bench.core.spool().figures().spool_records, 1, "the disk says what memory said");
}

#[test]
fn rly_4_results_that_come_while_others_are_under_way_go_up_in_one_message() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let agents: Vec<_> = (1..=50).map(|n| child(n, Role::Agent, n as u64)).collect();
    let mut messages = 0;
    for agent in &agents {
        bench.child_up(agent);
    }
    for agent in &agents {
        let n = agent.node.0.as_u128();
        let seen = bench.feed(child_says(agent, Message::Records(vec![results(n, 1, "out")])));
        messages += seen.iter().filter(|e| matches!(e, Effect::ToParent(_, Message::Records(_)))).count();
    }
    assert_eq!(messages, 1, "the first went alone");
    let first = results(1, 1, "out").stream;
    let ack = Ack { stream: first, stored: 1, settled: 1, refused: vec![] };
    let seen = bench.feed(parent_says(Message::Acks(vec![ack])));
    let up = records_up(&seen);
    assert_eq!(up.len(), 49, "each device's own record, none merged");
    assert_eq!(seen.iter().filter(|e| matches!(e, Effect::ToParent(_, Message::Records(_)))).count(), 1);
}

mod again;
mod back;
mod facts;
mod gather;
mod links;
mod owed;
mod put_back;
mod random;
mod recall;
mod sleepers;
mod withdrawals;
