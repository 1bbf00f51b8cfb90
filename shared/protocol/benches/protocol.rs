//! What the protocol's pure parts cost on this machine: proofs, signatures, frames, records, differences of inventories.
//! Beside each stands what it rests on, measured in the same run: only ratios travel from one machine to another.
//!
//! `cargo bench -p branchline-protocol`

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use branchline_protocol::{
    hash::Hash,
    id::{JobId, NodeId, OrderNumber, TenantId, TraceId},
    inventory::{Report, ReportKind, Snapshot},
    job::{Class, End},
    order::{Cutter, Envelope, Leaf, ORDER_PAYLOAD_TYPE, OrderMessage, Payload, Signer, Tree, verify_order},
    record::{JobResult, Lane, Record, Run, StreamId, class},
    time::Millis,
    trust::{KeyStatus, TrustDocument, TrustedKey},
    wire::{Frame, Message},
};
use bytes::{Bytes, BytesMut};
use divan::{Bencher, black_box};
use serde_json::json;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Devices of an order.
const DEVICES: u128 = 300;
/// Packages of an inventory.
const PACKAGES: usize = 200;
/// Bytes of a result's output.
const OUTPUT: usize = 512;
const NUMBER: OrderNumber = OrderNumber { term: 1, number: 1 };

fn main() {
    divan::main();
}

fn tenant() -> TenantId {
    "bench".parse().expect("a tenant's name")
}

fn signer() -> Signer {
    Signer::from_seed(&[9; 32])
}

fn tree() -> Tree {
    let leaves = (1..=DEVICES).map(|n| Leaf { device: NodeId(Uuid::from_u128(n)), epoch: 1 }).collect();
    Tree::build(&tenant(), NUMBER, leaves)
}

fn order() -> (OrderMessage, TrustDocument) {
    let (tree, args) = (tree(), Bytes::from_static(&[7; 64]));
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
    let payload = rmp_serde::to_vec_named(&payload).expect("plain data");
    let envelope = Envelope::sign(ORDER_PAYLOAD_TYPE, payload, &signer());
    let all: Vec<u32> = (0..tree.leaf_count()).collect();
    let key = TrustedKey { key: signer().public(), role: "server".into(), status: KeyStatus::Active };
    let trust = TrustDocument { tenant: tenant(), term: 1, version: 1, cas: vec![], keys: vec![key] };
    (OrderMessage { envelope, args, proof: tree.prove(&all) }, trust)
}

/// One device's order, as it is sent to it.
fn order_of_one() -> (OrderMessage, TrustDocument) {
    let (message, trust) = order();
    let cutter = Cutter::new(&message.proof, &tenant(), NUMBER, DEVICES as u32).expect("a good proof");
    let proof = cutter.cut(&[150]).expect("it is in it");
    (OrderMessage { proof, ..message }, trust)
}

fn results(count: u64) -> Message {
    let result = JobResult {
        order: NUMBER,
        end: End::Succeeded,
        reason: None,
        exit_code: Some(0),
        stdout: Bytes::from(vec![b'x'; OUTPUT]),
        stderr: Bytes::new(),
        truncated: false,
        started_at: Some(Millis(1)),
        ended_at: Millis(2),
        simulated: false,
    };
    let body: Bytes = rmp_serde::to_vec_named(&result).expect("plain data").into();
    let prev = Hash([0; 32]);
    let record = |number| Record { number, prev, class: class::RESULT, trace: None, at: Millis(2), body: body.clone() };
    let stream = StreamId { node: NodeId(Uuid::from_u128(1)), epoch: 1, incarnation: 1, lane: Lane::Work };
    let records = (1..=count).map(record).collect();
    Message::Records(vec![Run { stream, records, settled: 0, receipts: vec![] }])
}

fn snapshot(version: &str) -> Snapshot {
    let package = |n: usize| {
        let version = if n == 0 { version.to_owned() } else { format!("1.{n}") };
        (format!("package-{n}"), json!({ "version": version, "architecture": "amd64", "publisher": "somebody" }))
    };
    Snapshot { sections: BTreeMap::from([("packages".into(), (0..PACKAGES).map(package).collect())]) }
}

mod reference {
    use super::*;

    #[divan::bench]
    fn blake3_of_600_hashes(bencher: Bencher) {
        // As many pairs as a tree of 300 leaves has nodes.
        let pair = |hash: Hash| {
            let mut both = [0; 64];
            both[..32].copy_from_slice(&hash.0);
            both[32..].copy_from_slice(&hash.0);
            Hash::of(black_box(&both))
        };
        bencher.bench(|| (0..600).fold(Hash([0; 32]), |hash, _| pair(hash)));
    }

    #[divan::bench]
    fn ed25519_sign(bencher: Bencher) {
        let (pair, text) = (Ed25519KeyPair::from_seed_unchecked(&[9; 32]).expect("a seed"), [1; 256]);
        bencher.bench(|| pair.sign(black_box(&text)));
    }

    #[divan::bench]
    fn ed25519_verify(bencher: Bencher) {
        let (pair, text) = (Ed25519KeyPair::from_seed_unchecked(&[9; 32]).expect("a seed"), [1; 256]);
        let (key, signature) = (UnparsedPublicKey::new(&ED25519, pair.public_key()), pair.sign(&text));
        bencher.bench(|| assert!(key.verify(black_box(&text), signature.as_ref()).is_ok()));
    }

    #[divan::bench]
    fn copy_of_a_result(bencher: Bencher) {
        let bytes = results(1).encode();
        bencher.bench(|| black_box(&bytes[..]).to_vec());
    }
}

mod proofs {
    use super::*;

    #[divan::bench]
    fn build_for_300_devices(bencher: Bencher) {
        bencher.bench(tree);
    }

    #[divan::bench]
    fn prove_all_300(bencher: Bencher) {
        let (tree, all) = (tree(), (0..DEVICES as u32).collect::<Vec<_>>());
        bencher.bench(|| tree.prove(black_box(&all)));
    }

    #[divan::bench]
    fn climb_all_300(bencher: Bencher) {
        let (message, _) = order();
        bencher.bench(|| Cutter::new(black_box(&message.proof), &tenant(), NUMBER, DEVICES as u32).is_ok());
    }

    #[divan::bench]
    fn cut_for_one_of_300(bencher: Bencher) {
        let (message, _) = order();
        let cutter = Cutter::new(&message.proof, &tenant(), NUMBER, DEVICES as u32).expect("a good proof");
        bencher.bench(|| cutter.cut(black_box(&[150])));
    }
}

mod envelopes {
    use super::*;

    #[divan::bench]
    fn verify_an_order_of_300(bencher: Bencher) {
        let (message, trust) = order();
        bencher.bench(|| assert!(verify_order(black_box(&message), &tenant(), &trust).is_ok()));
    }

    #[divan::bench]
    fn verify_an_order_of_one(bencher: Bencher) {
        let (message, trust) = order_of_one();
        bencher.bench(|| assert!(verify_order(black_box(&message), &tenant(), &trust).is_ok()));
    }
}

mod wire {
    use super::*;

    #[divan::bench(args = [1, 100])]
    fn encode_results(bencher: Bencher, count: u64) {
        let message = results(count);
        bencher.bench(|| black_box(&message).encode());
    }

    #[divan::bench(args = [1, 100])]
    fn decode_results(bencher: Bencher, count: u64) {
        let bytes = results(count).encode();
        bencher.bench(|| assert!(Message::decode(black_box(&bytes)).is_ok()));
    }

    #[divan::bench]
    fn encode_a_frame(bencher: Bencher) {
        let bytes = results(1).encode();
        let total = bytes.len() as u32;
        let frame = Frame::Data { lane: Lane::Work, message: 1, offset: 0, total, bytes };
        bencher.with_inputs(|| BytesMut::with_capacity(4_096)).bench_refs(|out| black_box(&frame).encode(out));
    }

    #[divan::bench]
    fn decode_a_frame(bencher: Bencher) {
        let bytes = results(1).encode();
        let total = bytes.len() as u32;
        let mut out = BytesMut::new();
        Frame::Data { lane: Lane::Work, message: 1, offset: 0, total, bytes }.encode(&mut out);
        let frame = out.freeze();
        bencher.bench(|| assert!(matches!(Frame::decode(black_box(frame.clone())), Ok(Some(_)))));
    }
}

mod inventories {
    use super::*;

    fn report(kind: ReportKind, from: &Snapshot, to: &Snapshot) -> Report {
        let changes = if kind == ReportKind::Full { to.full() } else { to.difference(from) };
        Report { kind, collected_at: Millis(1), settings_version: 1, order: None, changes, digest: to.digest() }
    }

    #[divan::bench]
    fn difference_of_one_package_in_200(bencher: Bencher) {
        let (old, new) = (snapshot("1.0"), snapshot("2.0"));
        bencher.bench(|| black_box(&new).difference(&old));
    }

    #[divan::bench]
    fn apply_one_package_in_200(bencher: Bencher) {
        let (old, new) = (snapshot("1.0"), snapshot("2.0"));
        let report = report(ReportKind::Diff, &old, &new);
        bencher.with_inputs(|| old.clone()).bench_refs(|held| assert!(held.apply(black_box(&report)).is_ok()));
    }

    #[divan::bench]
    fn apply_200_packages(bencher: Bencher) {
        let (old, new) = (Snapshot::default(), snapshot("2.0"));
        let report = report(ReportKind::Full, &old, &new);
        bencher.with_inputs(Snapshot::default).bench_refs(|held| assert!(held.apply(black_box(&report)).is_ok()));
    }
}
