use super::*;
use crate::identity::{PeerIdentity, peer_identity, request, server_name_text};
use branchline_protocol::id::NodeId;
use std::net::IpAddr;
use x509_parser::extensions::GeneralName;

const NOW: Millis = Millis(1_790_000_000_000);
const LATER: Millis = Millis(NOW.0 + 90 * 86_400_000);

fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

fn node() -> NodeId {
    "0190f0e0-0000-7000-8000-000000000001".parse().unwrap()
}

fn subject(role: Role) -> Subject {
    Subject { tenant: tenant(), role, node: node(), epoch: 3, dns: vec![], ips: vec![] }
}

fn authority() -> Authority {
    Authority::create(&tenant(), NOW).unwrap()
}

fn issue(subject: &Subject) -> Result<CertificateDer<'static>, AuthorityFault> {
    let key = KeyPair::generate().unwrap();
    authority().issue(&request(&key, "host"), subject, NOW, LATER, 0x1234)
}

#[test]
fn a_certificate_says_what_the_subject_says() {
    let key = KeyPair::generate().unwrap();
    let expected = PeerIdentity {
        tenant: tenant(),
        role: Role::Relay,
        node: node(),
        epoch: 3,
        key: key.public(),
        serial_hex: "1234".into(),
        not_before: NOW,
        not_after: LATER,
    };
    let request = request(&key, "host");
    let certificate = authority().issue(&request, &subject(Role::Relay), NOW, LATER, 0x1234).unwrap();
    assert_eq!(peer_identity(&[certificate]), Ok(expected));
}

#[test]
fn serials_come_back_from_the_smallest_to_the_largest() {
    let (authority, key) = (authority(), KeyPair::generate().unwrap().public());
    for serial in [0u128, 1, 0x7f, 0x80, 0xff, 0x100, 1 << 64, 1 << 127, u128::MAX] {
        let issued = authority.issue_for_key(key, &subject(Role::Agent), NOW, LATER, serial).unwrap();
        assert_eq!(peer_identity(&[issued]).unwrap().serial_hex, format!("{serial:x}"));
    }
}

#[test]
fn the_authority_is_a_ca_for_ten_years_and_signs_end_certificates_only() {
    let authority = authority();
    let ca = certificate::parse(authority.certificate()).unwrap();
    let constraints = ca.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    assert!(ca.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert_eq!(ca.validity().not_after.timestamp() * 1000, NOW.0 + CA_LIFE_MS);
    assert_eq!(ca.validity().not_before.timestamp() * 1000, NOW.0 - CA_BACKDATE_MS);
    assert_eq!(ca.subject(), ca.issuer());

    let der = issue(&subject(Role::Server)).unwrap();
    let issued = certificate::parse(&der).unwrap();
    assert!(!issued.is_ca());
    let usage = issued.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    assert_eq!(peer_identity(std::slice::from_ref(authority.certificate())), Err(IdentityFault::NoIdentity));
}

#[test]
fn only_parents_may_be_connected_to() {
    for (role, parent) in [(Role::Agent, false), (Role::Relay, true), (Role::Server, true), (Role::Gateway, true)] {
        let der = issue(&subject(role)).unwrap();
        let issued = certificate::parse(&der).unwrap();
        let usage = issued.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.any, "{role}");
        assert_eq!(usage.server_auth, parent, "{role}");
    }
}

#[test]
fn an_agent_may_be_asked_on_its_own_machine_and_nowhere_else() {
    for (ip, may) in [([127, 0, 0, 1], true), ([127, 77, 1, 9], true), ([10, 0, 0, 7], false)] {
        let der = issue(&Subject { ips: vec![ip.into()], ..subject(Role::Agent) }).unwrap();
        let usage = certificate::parse(&der).unwrap().extended_key_usage().unwrap().unwrap().value.server_auth;
        assert_eq!(usage, may, "{ip:?}");
    }
}

/// A request that asks for more: to be an authority, another node, the server.
#[test]
fn nothing_but_the_key_is_taken_from_a_request() {
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::default();
    greedy.distinguished_name.push(DnType::CommonName, "branchline acme authority");
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let stolen = format!("branchline://acme/server/{}/1", node());
    greedy.subject_alt_names = vec![SanType::URI(stolen.try_into().unwrap())];
    let der = greedy.serialize_request(&key.certificate_signer()).unwrap();

    let authority = authority();
    let issued = authority.issue(der.der(), &subject(Role::Agent), NOW, LATER, 9).unwrap();
    let plain = authority.issue_for_key(key.public(), &subject(Role::Agent), NOW, LATER, 9).unwrap();
    assert_eq!(issued, plain, "ed25519 signatures are deterministic, so equal bytes mean equal contents");
    assert_eq!(certificate::certified_key(&issued), Ok(key.public()));
}

#[test]
fn a_request_with_another_signature_or_kind_of_key_is_refused() {
    let key = KeyPair::generate().unwrap();
    let mut der = request(&key, "host");
    *der.last_mut().unwrap() ^= 1;
    let refused = authority().issue(&der, &subject(Role::Agent), NOW, LATER, 1);
    assert!(matches!(refused, Err(AuthorityFault::Identity(IdentityFault::RequestNotSigned))));

    let ecdsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let der = CertificateParams::default().serialize_request(&ecdsa).unwrap();
    let refused = authority().issue(der.der(), &subject(Role::Agent), NOW, LATER, 1);
    assert!(matches!(refused, Err(AuthorityFault::Identity(IdentityFault::MalformedRequest))));
}

#[test]
fn additional_names_are_carried_but_never_another_nodes() {
    let ips: Vec<IpAddr> = vec!["127.0.0.2".parse().unwrap(), "::1".parse().unwrap()];
    let extra = Subject { dns: vec!["localhost".into(), "mgmt.example.org".into()], ips, ..subject(Role::Server) };
    let der = issue(&extra).unwrap();
    assert_eq!(peer_identity(std::slice::from_ref(&der)).unwrap().node, node());
    let issued = certificate::parse(&der).unwrap();
    let names = &issued.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert!(names.contains(&GeneralName::DNSName("mgmt.example.org")));
    assert!(names.contains(&GeneralName::IPAddress(&[127, 0, 0, 2])));

    let other = server_name_text(NodeId::clone(&node()), &"other".parse().unwrap());
    for bad in [other.as_str(), "x.BRANCHLINE.internal", "x.branchline.internal.", "", "a b", "-", "ä"] {
        let refused = issue(&Subject { dns: vec![bad.into()], ..subject(Role::Server) });
        assert!(matches!(refused, Err(AuthorityFault::BadName(name)) if name == bad), "{bad:?}");
    }
}

#[test]
fn an_authority_names_nodes_of_its_own_tenant_only() {
    let other: TenantId = "other".parse().unwrap();
    let refused = issue(&Subject { tenant: other.clone(), ..subject(Role::Agent) });
    assert!(matches!(refused, Err(AuthorityFault::OtherTenant { .. })));

    // An authority of tenant other that lies: the name in its own certificate gives it away.
    let mut liar = Authority::create(&other, NOW).unwrap();
    liar.tenant = tenant();
    let key = KeyPair::generate().unwrap().public();
    let forged = liar.issue_for_key(key, &subject(Role::Agent), NOW, LATER, 1).unwrap();
    assert_eq!(peer_identity(&[forged]), Err(IdentityFault::OtherTenantsAuthority(tenant())));
}

#[test]
fn validity_is_what_x509_can_write_and_not_empty() {
    let (authority, key) = (authority(), KeyPair::generate().unwrap().public());
    let issue = |from, until| authority.issue_for_key(key, &subject(Role::Agent), Millis(from), Millis(until), 1);
    let last = TIME_MAX_S * 1000 + 999;
    assert!(issue(0, 0).is_ok());
    assert!(issue(0, last).is_ok());
    for (from, until) in [(0, last + 1), (-1, 0), (2_000, 1_999), (0, i64::MAX), (i64::MIN, 0)] {
        assert!(matches!(issue(from, until), Err(AuthorityFault::BadValidity)), "{from} to {until}");
    }
}

#[test]
fn an_authority_comes_back_from_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Authority::load(folder.path()), Err(AuthorityFault::File { .. })));
    let made = authority();
    made.save(folder.path()).unwrap();
    let read = Authority::load(folder.path()).unwrap();
    assert_eq!((read.tenant(), read.certificate()), (made.tenant(), made.certificate()));
    assert_eq!(read.key.public(), made.key.public());

    KeyPair::generate().unwrap().save_pem(&folder.path().join(KEY_FILE)).unwrap();
    let other_key = Authority::load(folder.path());
    assert!(matches!(other_key, Err(AuthorityFault::Identity(IdentityFault::OtherKey))));
    let key = KeyPair::generate().unwrap();
    let end = made.issue_for_key(key.public(), &subject(Role::Server), NOW, LATER, 1).unwrap();
    Authority { tenant: tenant(), key, certificate: end }.save(folder.path()).unwrap();
    assert!(matches!(Authority::load(folder.path()), Err(AuthorityFault::NotAnAuthority(_))));
}

/// Everything that travels to the authority and everything it keeps, searched for the node's secret.
#[test]
fn enr_7_keys_never_leave() {
    let (folder, node_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let key = KeyPair::generate().unwrap();
    key.save(&node_folder.path().join("key.der")).unwrap();
    let stored = fs::read(node_folder.path().join("key.der")).unwrap();
    // RFC 8410: the seed is the 32 bytes after the nested octet string's header.
    let header = [0x04, 0x22, 0x04, 0x20];
    let at = stored.windows(4).position(|bytes| bytes == header).unwrap() + 4;
    let seed = &stored[at..at + 32];
    let rebuilt = branchline_protocol::order::Signer::from_seed(seed.try_into().unwrap());
    assert_eq!(rebuilt.public(), key.public(), "this is the secret to look for");

    let authority = authority();
    let sent = request(&key, "host");
    let issued = authority.issue(&sent, &subject(Role::Agent), NOW, LATER, 1).unwrap();
    authority.save(folder.path()).unwrap();
    let mut seen = vec![sent, issued.to_vec(), format!("{authority:?} {key:?}").into_bytes()];
    for entry in fs::read_dir(folder.path()).unwrap() {
        let file = fs::read(entry.unwrap().path()).unwrap();
        if let Some(chain) = files::pem_to_certificates(&file) {
            seen.extend(chain.iter().map(|der| der.to_vec()));
        }
        if let Ok(own) = KeyPair::from_pem(&file) {
            assert_ne!(own.public(), key.public());
            let copy = folder.path().join("decoded.der");
            own.save(&copy).unwrap();
            seen.push(fs::read(copy).unwrap());
        }
        seen.push(file);
    }
    assert_eq!(seen.len(), 7, "request, certificate, debug text, and two files raw and decoded");
    let hex: String = seed.iter().map(|b| format!("{b:02x}")).collect();
    for bytes in &seen {
        for half in [&seed[..16], &seed[16..], &hex.as_bytes()[..32], &hex.as_bytes()[32..]] {
            assert!(!bytes.windows(half.len()).any(|window| window == half));
        }
    }
    assert!(seen[0].windows(32).any(|window| window == key.public().0), "the search does find what is there");
}
