//! What durability costs at one relay: orders taken and results acknowledged per second, syncs per 1,000 results, with the
//! production core, driver and store, and no network. Beside them the raw disk and the raw engine, measured in the same
//! run: only the ratios travel from one machine to another.
//!
//! `cargo bench -p branchline-relay --bench durability [-- FOLDER]`; the folder is where the disk to be measured is.

use branchline_node::{
    downstream::Child,
    driver::{Completion, Driver, Notify},
    node::Ambient,
    store::{Batch, Store, StoreHandle, StoreOptions, Table},
    time::NodeTime,
    uplink::spool::Spool,
};
use branchline_protocol::{
    hash::Hash,
    id::{AttachmentKey, JobId, NodeId, OrderNumber, Role, TenantId, TraceId},
    job::{Class, End},
    order::{Envelope, Leaf, ORDER_PAYLOAD_TYPE, OrderMessage, Payload, Signer, Tree},
    record::{JobResult, Lane, Run, class},
    time::{Millis, Now},
    trust::{KeyStatus, TrustDocument, TrustedKey},
    wire::{Contact, Greeting, Message, Welcome},
};
use branchline_relay::core::{Effect, Event, Me, RelayCore};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    fs::File,
    io::Write,
    path::Path,
    sync::{Arc, mpsc},
};
use uuid::Uuid;

/// Devices below the relay.
const DEVICES: u128 = 300;
/// Orders, each for every device: one round each.
const ROUNDS: u64 = 40;
/// Bytes of a result's output.
const OUTPUT: usize = 512;
/// Bytes of a raw write.
const PAGE: usize = 4_096;
/// Raw writes and raw commits.
const RAW: u64 = 2_000;

const RELAY: NodeId = NodeId(Uuid::from_u128(500));
const PARENT: NodeId = NodeId(Uuid::from_u128(1_000));

fn node(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(n))
}

fn tenant() -> TenantId {
    "bench".parse().expect("a tenant's name")
}

/// A relay without links: its effects are counted and passed over.
struct Bench {
    driver: Driver<RelayCore, StoreHandle>,
    done: mpsc::Receiver<Completion>,
    /// Commits under way.
    open: usize,
    store: StoreHandle,
    time: NodeTime,
    taken: u64,
    acked: u64,
}

impl Bench {
    fn new(folder: &Path, signer: &Signer, ambient: &Ambient) -> Bench {
        let (store, _) =
            Store::open(&folder.join("relay/store.redb"), StoreOptions::new(1, 1)).expect("the store opens");
        let key = Arc::new(Signer::from_seed(&[77; 32]));
        let me = Me { tenant: tenant(), node: RELAY, epoch: 1, name: "bench".into(), signer: key };
        let key = TrustedKey { key: signer.public(), role: "server".into(), status: KeyStatus::Active };
        let trust = TrustDocument { tenant: tenant(), term: 1, version: 1, cas: vec![], keys: vec![key] };
        let root = Signer::from_seed(&[1; 32]).public();
        let core = RelayCore::recover(me, root, trust, 1, &store).expect("an empty store");
        let (tell, done) = mpsc::channel();
        let notify: Notify = Arc::new(move |completion| drop(tell.send(completion)));
        let driver = Driver::new(core, store.clone(), notify);
        let time = NodeTime::new(ambient.clock.clone());
        Bench { driver, done, open: 0, store, time, taken: 0, acked: 0 }
    }

    fn feed(&mut self, event: Event) {
        let mut effects = Vec::new();
        let before = self.store_jobs();
        self.driver.handle(self.time.now(), event, |effect| effects.push(effect)).expect("the core goes on");
        self.open += self.store_jobs() - before;
        self.count(effects);
        while let Ok(done) = self.done.try_recv() {
            self.completed(done);
        }
    }

    /// Tokens the core has given out: one for each commit.
    fn store_jobs(&self) -> usize {
        self.driver.core().commits() as usize
    }

    fn completed(&mut self, done: Completion) {
        self.open -= 1;
        let mut effects = Vec::new();
        let before = self.store_jobs();
        self.driver.completed(self.time.now(), done, |effect| effects.push(effect)).expect("the core goes on");
        self.open += self.store_jobs() - before;
        self.count(effects);
    }

    fn count(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::ToParent(_, Message::Taken(list)) => self.taken += list.len() as u64,
                Effect::ToChild(_, _, _, Message::Acks(acks)) => self.acked += acks.len() as u64,
                _ => {}
            }
        }
    }

    /// Everything that was asked for is durable.
    fn settle(&mut self) {
        while self.open > 0 {
            let done = self.done.recv().expect("the store answers");
            self.completed(done);
        }
    }
}

fn child(n: u128) -> Arc<Child> {
    let greeting = Greeting {
        protocol: 1,
        build: "bench".into(),
        tenant: tenant(),
        node: node(n),
        role: Role::Agent,
        epoch: 1,
        attachment: 1,
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
        session: n as u64,
        tenant: tenant(),
        node: node(n),
        role: Role::Agent,
        key: AttachmentKey { epoch: 1, attachment: 1 },
        greeting: Arc::new(greeting),
        lease: None,
        source: None,
        gateway: None,
        keys: None,
    })
}

fn order(number: u64, now: Now, signer: &Signer) -> OrderMessage {
    let number = OrderNumber { term: 1, number };
    let leaves = (1..=DEVICES).map(|d| Leaf { device: node(d), epoch: 1 }).collect();
    let tree = Tree::build(&tenant(), number, leaves);
    let args = Bytes::from_static(b"args");
    let payload = Payload {
        tenant: tenant(),
        number,
        job: JobId(Uuid::from_u128(u128::from(number.number))),
        trace: TraceId(Uuid::from_u128(2)),
        verb: "run_script".into(),
        args_hash: Hash::of(&args),
        class: Class::Normal,
        issued_at: now.node,
        not_before: Millis(0),
        fetch_by: now.node.plus(3_600_000),
        run_ms_max: 10,
        policy_version: 0,
        root: tree.root(),
        leaf_count: tree.leaf_count(),
        targets: vec![],
    };
    let bytes = rmp_serde::to_vec_named(&payload).expect("plain data");
    let all: Vec<u32> = (0..tree.leaf_count()).collect();
    OrderMessage { envelope: Envelope::sign(ORDER_PAYLOAD_TYPE, bytes, signer), args, proof: tree.prove(&all) }
}

/// Each device's results, as its own spool sends them: one run a round.
fn results() -> Vec<VecDeque<Run>> {
    let of = |device| {
        let mut spool = Spool::new(node(device), 1, 77);
        spool.link_up(RELAY, 1);
        let mut runs = VecDeque::new();
        for number in 1..=ROUNDS {
            let result = JobResult {
                order: OrderNumber { term: 1, number },
                end: End::Succeeded,
                reason: None,
                exit_code: Some(0),
                stdout: vec![b'x'; OUTPUT].into(),
                stderr: Bytes::new(),
                truncated: false,
                started_at: None,
                ended_at: Millis(5),
                simulated: false,
            };
            let body = rmp_serde::to_vec(&result).expect("plain data");
            let mark = spool.append(Millis(5), Lane::Work, class::RESULT, None, body.into(), &mut Batch::new());
            spool.committed(&mark);
            runs.extend(spool.take().expect("something to send").1);
        }
        runs
    };
    (1..=DEVICES).map(of).collect()
}

/// Milliseconds that work takes, at least one.
fn timed(ambient: &Ambient, work: impl FnOnce()) -> f64 {
    let start = ambient.clock.mono();
    work();
    ambient.clock.mono().since(start).max(1) as f64
}

fn main() {
    let ambient = Ambient::system();
    // `cargo bench` adds arguments of its own.
    let chosen = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let folder = match &chosen {
        Some(path) => tempfile::tempdir_in(path),
        None => tempfile::tempdir(),
    }
    .expect("a folder to measure in");
    let signer = Signer::from_seed(&[9; 32]);

    let mut file = File::create(folder.path().join("raw")).expect("a file");
    let raw_ms = timed(&ambient, || {
        for _ in 0..RAW {
            file.write_all(&[7; PAGE]).and_then(|()| file.sync_data()).expect("the disk writes");
        }
    });
    let raw = RAW as f64 / raw_ms * 1_000.0;

    let (engine, _) = Store::open(&folder.path().join("engine/store.redb"), StoreOptions::new(1, 1)).expect("it opens");
    let (tell, done) = mpsc::channel();
    let engine_ms = timed(&ambient, || {
        for n in 0..RAW {
            let (tell, mut batch) = (tell.clone(), Batch::new());
            batch.put(Table::Spool, n.to_be_bytes().to_vec(), vec![7; OUTPUT]);
            engine.commit(batch, Box::new(move |result| drop(tell.send(result)))).expect("room in the queue");
            done.recv().expect("an answer").expect("it is durable");
        }
    });
    let commits = RAW as f64 / engine_ms * 1_000.0;

    let mut bench = Bench::new(folder.path(), &signer, &ambient);
    let welcome = Welcome {
        protocol: 1,
        build: "bench".into(),
        parent: PARENT,
        store: 1,
        ancestors: vec![],
        lease: None,
        reconnect_spread_ms: 0,
        notice_port: 0,
    };
    bench.feed(Event::ParentUp(Box::new(welcome)));
    let children: Vec<Arc<Child>> = (1..=DEVICES).map(child).collect();
    children.iter().for_each(|c| bench.feed(Event::ChildUp(c.clone())));
    bench.settle();
    let now = bench.time.now();
    let orders: Vec<OrderMessage> = (1..=ROUNDS).map(|n| order(n, now, &signer)).collect();
    let mut all = results();

    let before = bench.store.fsyncs();
    let orders_ms = timed(&ambient, || {
        for order in orders {
            bench.feed(Event::ParentSaid(Message::Orders(vec![order]), Lane::Work, 1));
        }
        bench.settle();
    });
    assert_eq!(bench.taken, ROUNDS, "every order was taken");
    let order_commits = bench.store.fsyncs() - before;

    let before = bench.store.fsyncs();
    let results_ms = timed(&ambient, || {
        // A round: each device one result, as after a job; the next when all are acknowledged.
        for round in 1..=ROUNDS {
            for (child, runs) in children.iter().zip(&mut all) {
                let run = runs.pop_front().expect("one a round");
                bench.feed(Event::ChildSaid(child.clone(), Message::Records(vec![run]), Lane::Work, 1));
            }
            bench.settle();
            assert_eq!(bench.acked, round * DEVICES as u64, "every result was acknowledged");
        }
    });
    let result_commits = bench.store.fsyncs() - before;

    let total = ROUNDS as f64 * DEVICES as f64;
    let (orders_s, results_s) = (ROUNDS as f64 / orders_ms * 1_000.0, total / results_ms * 1_000.0);
    let told = serde_json::json!({
        "devices": DEVICES as u64,
        "raw_fsyncs_per_s": raw.round(),
        "raw_commits_per_s": commits.round(),
        "orders_per_s": orders_s.round(),
        "results_per_s": results_s.round(),
        // A commit syncs the file once, as long as it is short.
        "fsyncs_per_1000_results": (1_000.0 * result_commits as f64 / total * 10.0).round() / 10.0,
        "fsyncs_per_order": (order_commits as f64 / ROUNDS as f64 * 100.0).round() / 100.0,
        "results_per_raw_commit": (results_s / commits * 10.0).round() / 10.0,
        "results_per_raw_fsync": (results_s / raw * 10.0).round() / 10.0,
    });
    println!("{told}");
}
