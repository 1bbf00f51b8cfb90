//! What the pure decisions of a parent and of a spool cost on this machine, without a socket and without a disk.
//!
//! `cargo bench -p branchline-node --features uplink,downstream --bench cores`

use branchline_node::{
    downstream::{
        admission::{Admission, AdmissionConfig, Ask, Cap, Effect, Event, Need, Want},
        ledger::{Kept, Ledger},
    },
    store::Batch,
    uplink::spool::Spool,
};
use branchline_protocol::{
    hash::Hash,
    id::{AttachmentKey, JobId, NodeId, OrderNumber, Role, TenantId, TraceId},
    job::Class,
    order::{Envelope, Leaf, ORDER_PAYLOAD_TYPE, OrderMessage, Payload, Signer, Tree},
    record::{Lane, StreamId, class},
    time::{Millis, Mono, Now},
    wire::Ack,
};
use bytes::Bytes;
use divan::{Bencher, black_box};
use uuid::Uuid;

/// Devices below one node.
const DEVICES: u64 = 300;
/// Bytes of a record's body.
const BODY: usize = 600;
const NUMBER: OrderNumber = OrderNumber { term: 1, number: 1 };

fn main() {
    divan::main();
}

fn node(n: u64) -> NodeId {
    NodeId(Uuid::from_u128(u128::from(n)))
}

fn tenant() -> TenantId {
    "bench".parse().expect("a tenant's name")
}

fn at(ms: u64) -> Now {
    Now { mono: Mono(ms), wall: Millis(ms as i64), node: Millis(ms as i64) }
}

mod admission {
    use super::*;

    fn ask(n: u64, session: u64) -> Event {
        Event::Ask(Ask {
            node: node(n),
            role: Role::Agent,
            key: AttachmentKey { epoch: 1, attachment: session },
            session,
            want: Want::Persistent,
            need: Need::Ordinary,
            wakeable: true,
            poll_interval_ms: None,
            pressing_ms: None,
        })
    }

    /// All slots are held, and as many wait as there are.
    fn full(waiting: u64) -> Admission {
        let mut admission = Admission::new(AdmissionConfig::new(Cap::new(300, false).expect("the most")));
        let mut out = Vec::new();
        (1..=DEVICES + waiting).for_each(|n| admission.handle(at(n), ask(n, n), &mut out));
        admission
    }

    #[divan::bench(args = [1, 1_000, 10_000])]
    fn a_slot_goes_to_the_first_in_line(bencher: Bencher, waiting: u64) {
        // A slot falls free, the first in line is woken and comes.
        bencher.with_inputs(|| full(waiting)).bench_local_refs(|admission| {
            let (mut out, session) = (Vec::new(), 1_000_000);
            admission.handle(at(20_000), Event::Gone { node: node(1), session: 1 }, &mut out);
            admission.handle(at(20_001), ask(DEVICES + 1, session), &mut out);
            assert!(matches!(out[..], [Effect::Wake { .. }, Effect::Replaced { .. }, Effect::Admitted { session: s }] if s == session), "{out:?}");
        });
    }
}

mod fan_out {
    use super::*;

    fn order() -> (Payload, OrderMessage) {
        let leaves = (1..=DEVICES).map(|n| Leaf { device: node(n), epoch: 1 }).collect();
        let (tree, args) = (Tree::build(&tenant(), NUMBER, leaves), Bytes::from_static(&[7; 64]));
        let payload = Payload {
            tenant: tenant(),
            number: NUMBER,
            job: JobId(Uuid::from_u128(50)),
            trace: TraceId(Uuid::from_u128(60)),
            verb: "run_script".into(),
            args_hash: Hash::of(&args),
            class: Class::Normal,
            issued_at: Millis(0),
            not_before: Millis(0),
            fetch_by: Millis(1_000),
            run_ms_max: 10,
            policy_version: 1,
            root: tree.root(),
            leaf_count: tree.leaf_count(),
            targets: vec![],
        };
        let bytes = rmp_serde::to_vec_named(&payload).expect("plain data");
        let envelope = Envelope::sign(ORDER_PAYLOAD_TYPE, bytes, &Signer::from_seed(&[9; 32]));
        let all: Vec<u32> = (0..tree.leaf_count()).collect();
        (payload, OrderMessage { envelope, args, proof: tree.prove(&all) })
    }

    /// Every device is a child: each is a holder before it is offered anything.
    fn add((payload, message): (Payload, OrderMessage)) -> Ledger {
        let mut ledger = Ledger::default();
        let keep = |device| Some(Kept::towards(Some(device)));
        ledger.add(&tenant(), payload, message, keep).expect("a good proof");
        ledger
    }

    #[divan::bench]
    fn take_an_order_for_300(bencher: Bencher) {
        bencher.with_inputs(order).bench_values(add);
    }

    #[divan::bench]
    fn plan_its_300_offers(bencher: Bencher) {
        bencher.with_inputs(|| add(order())).bench_refs(|ledger| {
            let round = ledger.offers(Millis(1), None, Some);
            assert_eq!(round.offers.len() as u64, DEVICES);
            round
        });
    }

    #[divan::bench]
    fn end_it_on_300(bencher: Bencher) {
        bencher.with_inputs(|| add(order())).bench_refs(|ledger| {
            (1..=DEVICES).for_each(|n| drop(black_box(ledger.ended(NUMBER, node(n)))));
        });
    }
}

mod spool {
    use super::*;

    const RECORDS: u64 = 100;

    fn written() -> (Spool, Batch) {
        let (mut spool, mut batch) = (Spool::new(node(1), 1, 7), Batch::new());
        for _ in 0..RECORDS {
            let body = Bytes::from(vec![b'x'; BODY]);
            let mark = spool.append(Millis(1), Lane::Work, class::RESULT, None, body, &mut batch);
            spool.committed(&mark);
        }
        (spool, batch)
    }

    #[divan::bench]
    fn append_100(bencher: Bencher) {
        bencher.bench(written);
    }

    #[divan::bench]
    fn send_and_settle_100(bencher: Bencher) {
        let stream = StreamId { node: node(1), epoch: 1, incarnation: 7, lane: Lane::Work };
        bencher.with_inputs(|| written().0).bench_refs(|spool| {
            spool.link_up(node(2), 1);
            while spool.take().is_some() {}
            let mut batch = Batch::new();
            let ack = Ack { stream, stored: RECORDS, settled: RECORDS, refused: vec![] };
            spool.acked(&ack, &mut batch).expect("all of it was sent");
            assert!(!batch.is_empty());
        });
    }
}
