//! The core driven by hand: batches become durable when a test says so, and a crash keeps what was durable.

mod documents;
mod inventory;
mod link;
mod orders;
mod random;
mod recall;
mod restart;
mod rolled_back;
mod room;
mod schedule;
mod signing;
mod steering;

use super::{AgentCore, Effect, Event, JobStart, Me, Rows, TAKEN_WAITS_MS};
use crate::{
    capabilities::{MANUAL_REFRESH, REFRESH_INVENTORY, RESTART, RUN_SCRIPT},
    platform::{Ended, JobLeft, SpawnFault, Status},
};
use branchline_node::{
    driver::{Core, Token},
    link::lanes::Received,
    store::{Batch, Op, Table},
};
use branchline_protocol::{
    document::{Document, Kind, Upstream},
    hash::Hash,
    id::{JobId, NodeId, OrderNumber, Role, TenantId, TraceId},
    job::{Class, RefreshInventory, RunScript, Runnable},
    order::{Envelope, Leaf, ORDER_PAYLOAD_TYPE, OrderMessage, Payload, Signer, Tree},
    record::{JobResult, Lane, Record, class},
    time::{Millis, Mono, Now},
    trust::{KeyStatus, TrustDocument, TrustedKey},
    wire::{Contact, Lease, Message, Welcome},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};
use uuid::Uuid;

pub const ME: NodeId = NodeId(Uuid::from_u128(7));
pub const PARENT: NodeId = NodeId(Uuid::from_u128(99));
pub const START: i64 = 1_000_000;

pub fn server() -> Signer {
    Signer::from_seed(&[1; 32])
}

pub fn root() -> Signer {
    Signer::from_seed(&[9; 32])
}

pub fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

pub fn trust(version: u64, signers: &[Signer]) -> TrustDocument {
    let key = |s: &Signer| TrustedKey { key: s.public(), role: "server".into(), status: KeyStatus::Active };
    TrustDocument { tenant: tenant(), term: 1, version, cas: vec![], keys: signers.iter().map(key).collect() }
}

pub fn me() -> Me {
    Me {
        tenant: tenant(),
        node: ME,
        epoch: 2,
        site: "osaka".into(),
        root: root().public(),
        build: "test".into(),
        contact: Contact::Persistent,
        platform: "linux",
        capabilities: [MANUAL_REFRESH, REFRESH_INVENTORY, RESTART, RUN_SCRIPT].map(str::to_owned).to_vec(),
        pid: 4242,
        signer: Arc::new(Signer::from_seed(&[42; 32])),
        unverified: false,
    }
}

pub fn upstream(name: &str) -> Upstream {
    let direct = vec!["10.0.0.1:1".into()];
    Upstream { id: PARENT, role: Role::Relay, name: name.into(), direct, gateways: vec![], near: false }
}

/// A store as a map: what a crash leaves.
#[derive(Clone, Default)]
pub struct Disk(pub BTreeMap<(Table, Vec<u8>), Bytes>);

impl Disk {
    pub fn apply(&mut self, batch: Batch) {
        for op in batch.ops {
            match op {
                Op::Put { table, key, value } => {
                    self.0.insert((table, key), value);
                }
                Op::Delete { table, key } => {
                    self.0.remove(&(table, key));
                }
                Op::DeleteRange { table, from, to_exclusive } => {
                    self.0.retain(|(t, k), _| *t != table || *k < from || *k >= to_exclusive);
                }
            }
        }
    }

    pub fn rows(&self) -> Rows {
        let mut rows = Rows::default();
        for ((table, key), value) in &self.0 {
            rows.tables.entry(*table).or_default().push((key.clone(), value.clone()));
        }
        rows
    }

    pub fn keys(&self, table: Table) -> Vec<Vec<u8>> {
        self.0.keys().filter(|(t, _)| *t == table).map(|(_, k)| k.clone()).collect()
    }

    pub fn records(&self, class: u16) -> Vec<Record> {
        let spool = self.0.iter().filter(|((t, _), _)| *t == Table::Spool);
        spool.map(|(_, value)| rmp_serde::from_slice::<Record>(value).unwrap()).filter(|r| r.class == class).collect()
    }

    pub fn results(&self) -> Vec<JobResult> {
        self.records(class::RESULT).iter().map(|r| rmp_serde::from_slice(&r.body).unwrap()).collect()
    }
}

pub struct Bench {
    pub core: AgentCore,
    pub disk: Disk,
    pub pending: VecDeque<(Batch, Token)>,
    pub now: Now,
    pub openings: u64,
}

pub fn open(disk: &Disk, openings: u64) -> AgentCore {
    AgentCore::recover(me(), trust(1, &[server()]), vec![upstream("bundle")], openings, &disk.rows()).unwrap()
}

impl Bench {
    /// An agent that has never run, with executor and collector, not connected.
    pub fn new() -> Bench {
        let now = Now { mono: Mono(10), wall: Millis(START), node: Millis(START) };
        let disk = Disk::default();
        let core = open(&disk, 1);
        Bench { core, disk, pending: VecDeque::new(), now, openings: 1 }
    }

    /// The same, started, its first inventory sent, and connected.
    pub fn running() -> Bench {
        let mut bench = Bench::new();
        bench.wake();
        bench.settle(Event::Collected(super::tests::inventory::snapshot(1)));
        bench.connect(None);
        bench
    }

    pub fn wake(&mut self) -> Vec<Effect> {
        let mut all = self.event(Event::Start);
        all.extend(self.event(Event::ExecutorUp));
        all.extend(self.event(Event::CollectorUp));
        all.extend(self.commit_all());
        all
    }

    /// One event; batches wait.
    pub fn event(&mut self, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.core.handle(self.now, event, &mut out);
        let mut rest = Vec::new();
        for effect in out {
            match <AgentCore>::into_commit(effect) {
                Ok(commit) => self.pending.push_back(commit),
                Err(effect) => rest.push(effect),
            }
        }
        rest
    }

    /// The oldest batch becomes durable.
    pub fn commit(&mut self) -> Vec<Effect> {
        let (batch, token) = self.pending.pop_front().expect("a batch waits");
        self.disk.apply(batch);
        self.event(Event::Committed(token))
    }

    pub fn commit_all(&mut self) -> Vec<Effect> {
        let mut all = Vec::new();
        while !self.pending.is_empty() {
            all.extend(self.commit());
        }
        all
    }

    /// One event and all that becomes durable by it.
    pub fn settle(&mut self, event: Event) -> Vec<Effect> {
        let mut all = self.event(event);
        all.extend(self.commit_all());
        all
    }

    /// What was not durable is gone, and so is the process.
    pub fn crash(&mut self) {
        self.pending.clear();
        self.openings += 1;
        self.core = open(&self.disk, self.openings);
    }

    pub fn connect(&mut self, lease: Option<Lease>) -> Vec<Effect> {
        self.settle(Event::Up(Box::new(welcome(lease))))
    }

    pub fn pass(&mut self, ms: u64) {
        self.now.mono = self.now.mono.plus(ms);
        self.now.wall = self.now.wall.plus(ms as i64);
        self.now.node = self.now.node.plus(ms as i64);
    }

    pub fn deliver(&mut self, orders: Vec<OrderMessage>) -> Vec<Effect> {
        self.event(message(Lane::Work, Message::Orders(orders)))
    }
}

pub fn welcome(lease: Option<Lease>) -> Welcome {
    let (build, ancestors) = ("test".to_owned(), vec![]);
    Welcome { protocol: 1, build, parent: PARENT, store: 5, ancestors, lease, reconnect_spread_ms: 0, notice_port: 0 }
}

pub fn message(lane: Lane, message: Message) -> Event {
    let bytes = message.encode();
    let credit = bytes.len() as u32;
    Event::Received(Received { lane, bytes, credit })
}

pub fn document<D: Document>(document: &D, signer: &Signer) -> Event {
    let kind: Kind = D::KIND;
    message(Lane::Control, Message::Document(kind, document.seal(signer)))
}

pub fn number(n: u64) -> OrderNumber {
    OrderNumber { term: 1, number: n }
}

pub fn script() -> Bytes {
    let run = Runnable::Argv(vec!["true".into()]);
    rmp_serde::to_vec_named(&RunScript { run, time_out_ms: 60_000, output_cap: 1_000 }).unwrap().into()
}

pub fn refresh(full: bool) -> Bytes {
    rmp_serde::to_vec_named(&RefreshInventory { full }).unwrap().into()
}

pub fn payload(n: u64, verb: &str, args: &Bytes) -> Payload {
    Payload {
        tenant: tenant(),
        number: number(n),
        job: JobId(Uuid::from_u128(n.into())),
        trace: TraceId(Uuid::from_u128(1_000 + u128::from(n))),
        verb: verb.into(),
        args_hash: Hash::of(args),
        class: Class::Normal,
        issued_at: Millis(START),
        not_before: Millis(0),
        fetch_by: Millis(START + 3_600_000),
        run_ms_max: 60_000,
        policy_version: 1,
        root: Hash::ZERO,
        leaf_count: 0,
        targets: vec![],
    }
}

/// Signs a payload for this leaf among others.
pub fn sign(mut payload: Payload, args: Bytes, leaf: Leaf, signer: &Signer) -> OrderMessage {
    let other = |n| Leaf { device: NodeId(Uuid::from_u128(n)), epoch: 1 };
    let tree = Tree::build(&payload.tenant, payload.number, vec![other(1), leaf, other(2)]);
    (payload.root, payload.leaf_count) = (tree.root(), tree.leaf_count());
    let bytes = rmp_serde::to_vec_named(&payload).unwrap();
    OrderMessage { envelope: Envelope::sign(ORDER_PAYLOAD_TYPE, bytes, signer), args, proof: tree.prove(&[1]) }
}

pub fn mine() -> Leaf {
    Leaf { device: ME, epoch: 2 }
}

pub fn order(n: u64, verb: &str, args: Bytes) -> OrderMessage {
    sign(payload(n, verb, &args), args, mine(), &server())
}

pub fn script_order(n: u64) -> OrderMessage {
    order(n, RUN_SCRIPT, script())
}

pub fn finished(code: i32) -> JobLeft {
    let status = Status { ended: Ended::Exited(code), ..Status::not_started(SpawnFault::NotFound, None) };
    JobLeft::Finished(status, Bytes::from_static(b"out"), Bytes::new())
}

pub fn ended(n: u64, left: JobLeft) -> Event {
    Event::JobEnded { order: number(n), left }
}

pub fn starts(effects: &[Effect]) -> Vec<&JobStart> {
    effects.iter().filter_map(|e| if let Effect::Start(start) = e { Some(&**start) } else { None }).collect()
}

pub fn taken(effects: &[Effect]) -> Vec<u64> {
    let lists = effects.iter().filter_map(|e| match e {
        Effect::Send(Lane::Control, Message::Taken(list)) => Some(list),
        _ => None,
    });
    lists.flatten().map(|(order, devices)| (devices == &vec![ME]).then_some(order.number).unwrap()).collect()
}

/// The orders of which a parent that was told this knows that they were taken, by a word or by a result, once the word may
/// wait no longer.
pub fn known_taken(bench: &mut Bench, effects: &[Effect]) -> Vec<u64> {
    bench.pass(TAKEN_WAITS_MS);
    let later = bench.settle(Event::Tick);
    let results = sent(effects).into_iter().filter(|(_, record)| record.class == class::RESULT);
    let result = |record: Record| rmp_serde::from_slice::<JobResult>(&record.body).unwrap().order.number;
    let mut known: BTreeSet<u64> = results.map(|(_, record)| result(record)).collect();
    known.extend(taken(effects).into_iter().chain(taken(&later)));
    known.into_iter().collect()
}

pub fn releases(effects: &[Effect]) -> u32 {
    effects.iter().map(|e| if let Effect::Release(_, bytes) = e { *bytes } else { 0 }).sum()
}

pub fn sent(effects: &[Effect]) -> Vec<(Lane, Record)> {
    let runs = effects.iter().filter_map(|e| match e {
        Effect::Send(lane, Message::Records(runs)) => Some((*lane, runs)),
        _ => None,
    });
    runs.flat_map(|(lane, runs)| runs.iter().flat_map(move |r| r.records.iter().map(move |r| (lane, r.clone()))))
        .collect()
}
