use super::*;
use crate::identity::Root;
use branchline_protocol::trust::{KeyStatus, TrustedKey};

fn server() -> Signer {
    Signer::from_seed(&[3; 32])
}

fn node(n: u128) -> NodeId {
    NodeId(uuid::Uuid::from_u128(n))
}

fn trust(role: &str, status: KeyStatus) -> TrustDocument {
    let key = TrustedKey { key: server().public(), role: role.into(), status };
    TrustDocument { tenant: "acme".parse().unwrap(), term: 1, version: 1, cas: vec![], keys: vec![key] }
}

fn bundle_under(root: &Root) -> Bundle {
    Bundle {
        version: BUNDLE_VERSION,
        tenant: "acme".parse().unwrap(),
        site: "osaka".into(),
        role: Role::Relay,
        token: Some("one-time-token".into()),
        server: node(1),
        root_key: root.public(),
        trust: root.sign(&trust("server", KeyStatus::Active)),
        upstreams: vec![Upstream {
            id: node(1),
            role: Role::Server,
            name: "head office".into(),
            direct: vec!["10.0.0.1:13000".into()],
            gateways: vec!["https://gw.example.org:443".into()],
            near: false,
        }],
        link_token: "let-me-through".into(),
        outer_roots: vec![Bytes::from_static(&[1, 2, 3])],
        wake_port: 15_000,
        notice_port: 13_000,
    }
}

fn bundle() -> Bundle {
    bundle_under(&Root::create().unwrap())
}

#[test]
fn a_bundle_comes_back_from_two_lines_of_text() {
    let bundle = bundle();
    let text = bundle.seal(&server());
    assert_eq!(text.lines().count(), 2);
    assert!(text.ends_with('\n') && text.is_ascii());
    let opened = Bundle::open(&text).unwrap();
    assert_eq!(opened, bundle);
    assert_eq!(opened.trust_document().unwrap(), trust("server", KeyStatus::Active));
}

#[test]
fn top_15_a_bundle_altered_by_one_byte_is_rejected() {
    let text = bundle().seal(&server()).into_bytes();
    for position in 0..text.len() {
        for flip in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40] {
            let mut bad = text.clone();
            bad[position] ^= flip;
            let bad = String::from_utf8(bad).expect("7-bit changes of ASCII stay ASCII");
            assert!(Bundle::open(&bad).is_err(), "byte {position} with {flip:#x}");
        }
        let mut shorter = text.clone();
        shorter.remove(position);
        assert!(Bundle::open(std::str::from_utf8(&shorter).unwrap()).is_err(), "without byte {position}");
    }
}

#[test]
fn top_15_trailing_garbage_and_other_spellings_are_rejected() {
    let text = bundle().seal(&server());
    for bad in [
        format!("{text}\n"),
        format!("{text} "),
        format!("{text}{text}"),
        format!("\n{text}"),
        text.replace('\n', "\r\n"),
        text.trim_end().to_owned(),
        String::new(),
        HEADER.to_owned(),
    ] {
        assert!(Bundle::open(&bad).is_err(), "{bad:?}");
    }
    let line = text.strip_prefix(HEADER).unwrap().trim_end();
    let mut encoded = STANDARD.decode(line).unwrap();
    encoded.push(0);
    let longer = format!("{HEADER}{}\n", STANDARD.encode(encoded));
    assert!(matches!(Bundle::open(&longer), Err(BundleFault::Damaged(_))));
}

#[test]
fn another_version_is_rejected_by_its_number() {
    for version in [0, 2, u16::MAX] {
        let text = Bundle { version, ..bundle() }.seal(&server());
        assert_eq!(Bundle::open(&text), Err(BundleFault::UnknownVersion(version)));
    }
    let text = bundle().seal(&server()).replace("BUNDLE-1", "BUNDLE-2");
    assert_eq!(Bundle::open(&text), Err(BundleFault::NotABundle));
}

#[test]
fn a_bundle_is_signed_by_a_server_key_that_its_root_names() {
    let stranger = Signer::from_seed(&[4; 32]);
    assert_eq!(Bundle::open(&bundle().seal(&stranger)), Err(BundleFault::BadSignature));
    let root = Root::create().unwrap();
    for trust in [trust("operator", KeyStatus::Active), trust("server", KeyStatus::RetiredAt(1_000))] {
        let bundle = Bundle { trust: root.sign(&trust), ..bundle_under(&root) };
        assert_eq!(Bundle::open(&bundle.seal(&server())), Err(BundleFault::BadSignature));
    }
    let swapped = Bundle { root_key: Root::create().unwrap().public(), ..bundle() };
    let refused = Bundle::open(&swapped.seal(&server()));
    assert_eq!(refused, Err(BundleFault::Trust(DocumentFault::BadSignature)));
    let other = Bundle { tenant: "other".parse().unwrap(), ..bundle() };
    let refused = Bundle::open(&other.seal(&server()));
    assert_eq!(refused, Err(BundleFault::Trust(DocumentFault::OtherTenant("acme".parse().unwrap()))));
}

#[test]
fn a_second_signature_is_not_part_of_a_bundle() {
    let payload = rmp_serde::to_vec_named(&bundle()).unwrap();
    let mut envelope = Envelope::sign(PAYLOAD_TYPE, payload, &server());
    envelope.add_signature(&Signer::from_seed(&[4; 32]));
    assert!(matches!(Bundle::open(&spell(&envelope)), Err(BundleFault::Damaged(_))));
}

#[test]
fn a_text_at_the_bound_is_read_and_one_past_it_is_not() {
    // Base64 comes in fours, so the bound is met to within four bytes.
    let sized = |site_bytes| Bundle { site: "s".repeat(site_bytes), ..bundle() }.seal(&server());
    let (mut below, mut above) = (150_000, 200_000);
    while above - below > 1 {
        let middle = (below + above) / 2;
        *(if sized(middle).len() <= BUNDLE_BYTES_MAX { &mut below } else { &mut above }) = middle;
    }
    let (below, above) = (sized(below), sized(above));
    assert!(below.len() + 4 > BUNDLE_BYTES_MAX && above.len() < BUNDLE_BYTES_MAX + 4);
    assert!(Bundle::open(&below).is_ok());
    assert_eq!(Bundle::open(&above), Err(BundleFault::TooLarge(above.len())));
}

#[test]
fn tokens_do_not_show() {
    let shown = format!("{:?}", bundle());
    assert!(shown.contains("osaka") && shown.contains("masked"));
    assert!(!shown.contains("one-time-token") && !shown.contains("let-me-through"));
}
