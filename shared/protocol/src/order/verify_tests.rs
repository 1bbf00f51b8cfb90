use super::*;
use crate::{
    id::{JobId, OrderNumber, TraceId},
    job::{Class, VERBS},
    order::{Leaf, MultiProof, Signer, Tree},
    time::Millis,
    trust::{KeyStatus, TrustedKey},
};
use bytes::Bytes;
use uuid::Uuid;

const NUMBER: OrderNumber = OrderNumber { term: 1, number: 40 };
const SERVER: u8 = 1;
const RETIRED_AT_40: u8 = 2;
const RETIRED_AT_41: u8 = 3;
const OPERATOR: u8 = 4;
const STRANGER: u8 = 5;

fn signer(seed: u8) -> Signer {
    Signer::from_seed(&[seed; 32])
}

fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

fn device(i: u128) -> NodeId {
    NodeId(Uuid::from_u128(i))
}

fn trust() -> TrustDocument {
    let key = |seed, role: &str, status| TrustedKey { key: signer(seed).public(), role: role.into(), status };
    TrustDocument {
        tenant: tenant(),
        term: 1,
        version: 1,
        cas: vec![],
        keys: vec![
            key(SERVER, "server", KeyStatus::Active),
            key(RETIRED_AT_40, "server", KeyStatus::RetiredAt(40)),
            key(RETIRED_AT_41, "server", KeyStatus::RevokedFrom(41)),
            key(OPERATOR, "operator", KeyStatus::Active),
        ],
    }
}

fn tree() -> Tree {
    Tree::build(&tenant(), NUMBER, (0..9).map(|i| Leaf { device: device(i), epoch: 1 }).collect())
}

fn payload(verb: &str, args: &[u8]) -> Payload {
    Payload {
        tenant: tenant(),
        number: NUMBER,
        job: JobId(Uuid::from_u128(1)),
        trace: TraceId(Uuid::from_u128(2)),
        verb: verb.into(),
        args_hash: Hash::of(args),
        class: Class::Normal,
        issued_at: Millis(1_000),
        not_before: Millis(1_000),
        fetch_by: Millis(2_000),
        run_ms_max: 60_000,
        policy_version: 0,
        root: tree().root(),
        leaf_count: tree().leaf_count(),
        targets: vec![],
    }
}

fn message(payload: &Payload, args: Vec<u8>, seed: u8) -> OrderMessage {
    let bytes = rmp_serde::to_vec_named(payload).unwrap();
    let envelope = Envelope::sign(ORDER_PAYLOAD_TYPE, bytes, &signer(seed));
    OrderMessage { envelope, args: args.into(), proof: tree().prove(&[2, 5]) }
}

fn order() -> OrderMessage {
    message(&payload("run_script", b"args"), b"args".to_vec(), SERVER)
}

fn check(message: &OrderMessage) -> Result<VerifiedOrder, OrderFault> {
    verify_order(message, &tenant(), &trust())
}

/// Changes what was signed and leaves the signature as it was.
fn tampered(change: impl Fn(&mut Payload)) -> OrderMessage {
    let mut message = order();
    let mut payload: Payload = rmp_serde::from_slice(&message.envelope.payload).unwrap();
    change(&mut payload);
    message.envelope.payload = rmp_serde::to_vec_named(&payload).unwrap().into();
    message
}

fn refused_as_bad_signature(message: &OrderMessage) -> OrderFault {
    let fault = check(message).unwrap_err();
    assert_eq!(fault.code(), "bad_signature", "{fault}");
    fault
}

#[test]
fn an_order_of_the_server_is_taken_and_names_its_leaves() {
    let message = order();
    let verified = check(&message).unwrap();
    assert_eq!(verified.payload, payload("run_script", b"args"));
    assert!(verified.names(&message, device(2), 1) && verified.names(&message, device(5), 1));
    assert!(!verified.names(&message, device(3), 1), "a target, but not below this child");
    assert!(!verified.names(&message, device(2), 2), "another life of the device");
}

#[test]
fn job_15_an_altered_target_is_refused() {
    let mut message = order();
    message.proof.leaves[0].1.device = device(1_000);
    assert_eq!(refused_as_bad_signature(&message), OrderFault::Proof(ProofError::WrongRoot));
    let mut message = order();
    message.proof.leaves[0].1.epoch = 2;
    assert_eq!(refused_as_bad_signature(&message), OrderFault::Proof(ProofError::WrongRoot));
    let mut message = order();
    message.proof = MultiProof::default();
    assert_eq!(refused_as_bad_signature(&message), OrderFault::Proof(ProofError::Empty));
    // The whole list changed, with a tree to match.
    let own = Tree::build(&tenant(), NUMBER, vec![Leaf { device: device(1_000), epoch: 1 }]);
    let mut message = tampered(|p| (p.root, p.leaf_count) = (own.root(), 1));
    message.proof = own.prove(&[0]);
    assert_eq!(refused_as_bad_signature(&message), OrderFault::BadSignature);
    let message = tampered(|p| p.targets.push(device(1_000)));
    assert_eq!(refused_as_bad_signature(&message), OrderFault::BadSignature);
}

#[test]
fn job_15_an_altered_verb_is_refused() {
    let message = tampered(|p| p.verb = "refresh_inventory".into());
    assert_eq!(refused_as_bad_signature(&message), OrderFault::BadSignature);
}

#[test]
fn job_15_an_altered_expiry_is_refused() {
    let message = tampered(|p| p.fetch_by = p.fetch_by.plus(1));
    assert_eq!(refused_as_bad_signature(&message), OrderFault::BadSignature);
    let message = tampered(|p| p.run_ms_max += 1);
    assert_eq!(refused_as_bad_signature(&message), OrderFault::BadSignature);
}

#[test]
fn job_15_altered_arguments_are_refused() {
    let mut message = order();
    message.args = Bytes::from_static(b"argz");
    assert_eq!(refused_as_bad_signature(&message), OrderFault::ArgsAltered);
    let message = OrderMessage { args: Bytes::new(), ..order() };
    assert_eq!(refused_as_bad_signature(&message), OrderFault::ArgsAltered);
}

#[test]
fn rly_13_every_altered_byte_of_the_envelope_is_refused() {
    let good = order();
    for position in 0..good.envelope.payload.len() {
        let mut bytes = good.envelope.payload.to_vec();
        bytes[position] ^= 1;
        let mut message = good.clone();
        message.envelope.payload = bytes.into();
        assert_eq!(refused_as_bad_signature(&message), OrderFault::BadSignature, "payload byte {position}");
    }
    for position in 0..64 {
        let mut bytes = good.envelope.signatures[0].bytes.to_vec();
        bytes[position] ^= 1;
        let mut message = good.clone();
        message.envelope.signatures[0].bytes = bytes.into();
        assert_eq!(refused_as_bad_signature(&message), OrderFault::BadSignature, "signature byte {position}");
    }
    let mut message = good.clone();
    message.envelope.payload_type.push('x');
    assert_eq!(refused_as_bad_signature(&message), OrderFault::BadSignature);
}

#[test]
fn rly_13_another_tenants_order_is_refused() {
    let other: TenantId = "other".parse().unwrap();
    // Signed by a key that both tenants trust.
    let message = message(&Payload { tenant: other.clone(), ..payload("run_script", b"") }, vec![], SERVER);
    assert_eq!(refused_as_bad_signature(&message), OrderFault::OtherTenant(other.clone()));
    let foreign = verify_order(&order(), &other, &trust()).unwrap_err();
    assert_eq!(foreign, OrderFault::OtherTenant(tenant()));
    assert_eq!(foreign.code(), "bad_signature");
}

#[test]
fn rly_13_a_missing_or_foreign_signature_is_refused() {
    let mut message = order();
    message.envelope.signatures.clear();
    assert_eq!(refused_as_bad_signature(&message), OrderFault::BadSignature);
    for seed in [STRANGER, OPERATOR] {
        let message = self::message(&payload("run_script", b""), vec![], seed);
        assert_eq!(refused_as_bad_signature(&message), OrderFault::BadSignature);
    }
    // A stranger's signature under the server key's id.
    let mut message = self::message(&payload("run_script", b""), vec![], STRANGER);
    message.envelope.signatures[0].key = signer(SERVER).public().id();
    assert_eq!(refused_as_bad_signature(&message), OrderFault::BadSignature);
}

#[test]
fn rly_13_a_retired_key_counts_below_its_number_only() {
    let signed_by = |seed| message(&payload("run_script", b""), vec![], seed);
    assert!(check(&signed_by(RETIRED_AT_41)).is_ok());
    assert_eq!(refused_as_bad_signature(&signed_by(RETIRED_AT_40)), OrderFault::KeyNotValid(40));
    let mut both = signed_by(RETIRED_AT_40);
    both.envelope.add_signature(&signer(SERVER));
    assert!(check(&both).is_ok(), "one valid signature is enough, whichever comes first");
    let mut trust = trust();
    trust.keys.swap(0, 1);
    assert!(verify_order(&both, &tenant(), &trust).is_ok(), "whichever is known first");
}

#[test]
fn rly_13_what_the_server_signed_but_is_no_order_is_malformed() {
    let seal = |payload_type: &str, bytes: &'static [u8]| OrderMessage {
        envelope: Envelope::sign(payload_type, bytes, &signer(SERVER)),
        ..order()
    };
    let fault = check(&seal("application/vnd.branchline.settings.v1+msgpack", b"x")).unwrap_err();
    assert_eq!((fault.code(), fault), ("malformed", OrderFault::WrongType));
    let fault = check(&seal(ORDER_PAYLOAD_TYPE, b"\xc1 is no msgpack")).unwrap_err();
    assert!(matches!(fault, OrderFault::Malformed(_)) && fault.code() == "malformed");
}

#[test]
fn rly_13_an_envelope_of_64_kib_passes_and_one_byte_more_does_not() {
    let sized = |verb_bytes: usize| {
        let message = message(&payload(&"v".repeat(verb_bytes), b""), vec![], SERVER);
        (envelope_bytes(&message.envelope), message)
    };
    let (base, _) = sized(40_000);
    let (at_bound, message) = sized(40_000 + ENVELOPE_BYTES_MAX - base);
    assert_eq!(at_bound, ENVELOPE_BYTES_MAX);
    assert!(check(&message).is_ok());
    let (_, message) = sized(40_001 + ENVELOPE_BYTES_MAX - base);
    let fault = check(&message).unwrap_err();
    assert_eq!(fault, OrderFault::TooLarge { what: "envelope", found: 65_537, max: 65_536 });
    assert_eq!(fault.code(), "too_large");
}

#[test]
fn rly_13_eight_signatures_pass_and_nine_do_not() {
    let mut message = order();
    for seed in 10..17 {
        message.envelope.add_signature(&signer(seed));
    }
    assert!(check(&message).is_ok());
    message.envelope.add_signature(&signer(17));
    let fault = check(&message).unwrap_err();
    assert_eq!(fault, OrderFault::TooLarge { what: "number of signatures", found: 9, max: 8 });
}

#[test]
fn job_15_arguments_at_the_verbs_bound_pass_and_one_byte_more_does_not() {
    let known = VERBS.iter().map(|verb| (verb.name, verb.args_max));
    for (verb, max) in known.chain([("unknown_verb", SCRIPT_BYTES_MAX + 65_536)]) {
        let sized = |bytes: usize| message(&payload(verb, &vec![7; bytes]), vec![7; bytes], SERVER);
        assert!(check(&sized(max)).is_ok(), "{verb}");
        let fault = check(&sized(max + 1)).unwrap_err();
        assert_eq!(fault, OrderFault::TooLarge { what: "size of arguments", found: max + 1, max });
    }
}
