use super::*;
use crate::{
    identity::{Authority, Subject, request, server_name},
    time::{NodeTime, TestClock},
};
use branchline_protocol::{
    id::{NodeId, Role, TenantId},
    time::Millis,
};
use rustls::{ProtocolVersion, pki_types::ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

const NOW: Millis = Millis(1_790_000_000_000);
const LIFE_MS: i64 = 90 * 86_400_000;

/// A tenant with its authority, and the time its nodes believe in.
struct World {
    tenant: TenantId,
    authority: Authority,
    clock: Arc<TestClock>,
}

impl World {
    fn new() -> World {
        let tenant: TenantId = "acme".parse().unwrap();
        World { authority: Authority::create(&tenant, NOW).unwrap(), tenant, clock: TestClock::at(NOW) }
    }

    fn time(&self) -> Arc<dyn TimeProvider> {
        Arc::new(NodeTime::new(self.clock.clone()))
    }

    fn roots(&self) -> [CertificateDer<'static>; 1] {
        [self.authority.certificate().clone()]
    }

    fn identity(&self, role: Role, n: u128) -> Identity {
        let key = KeyPair::generate().unwrap();
        let node = NodeId(uuid::Uuid::from_u128(n));
        let subject = Subject { tenant: self.tenant.clone(), role, node, epoch: 1, dns: vec![], ips: vec![] };
        let until = NOW.plus(LIFE_MS);
        let certificate = self.authority.issue(&request(&key, "host"), &subject, NOW, until, n).unwrap();
        Identity::new(vec![certificate], key).unwrap()
    }

    fn name(&self, identity: &Identity) -> ServerName<'static> {
        server_name(identity.subject.node, &self.tenant)
    }

    /// A link between two nodes of this world; the parent's name is the one the child expects.
    async fn link(&self, child: &Identity, parent: &Identity) -> Result<Ends, Refused> {
        let up = child_config(Some(child), &self.roots(), self.time()).unwrap();
        let down = parent_config(parent, &self.roots(), self.time()).unwrap();
        handshake(up, down, self.name(parent)).await
    }
}

type Ends = (client::TlsStream<DuplexStream>, server::TlsStream<DuplexStream>);

/// What either end said, the child's first.
#[derive(Debug)]
struct Refused(String);

/// Both ends in memory, with a byte each way: under TLS 1.3 a child learns only then that its certificate was refused.
async fn handshake(up: Arc<ClientConfig>, down: Arc<ServerConfig>, name: ServerName<'static>) -> Result<Ends, Refused> {
    let (near, far) = tokio::io::duplex(16_384);
    let child = async {
        let mut stream = TlsConnector::from(up).connect(name, near).await?;
        stream.write_u8(1).await?;
        stream.flush().await?;
        stream.read_u8().await?;
        io::Result::Ok(stream)
    };
    let parent = async {
        let mut stream = TlsAcceptor::from(down).accept(far).await?;
        stream.read_u8().await?;
        stream.write_u8(2).await?;
        stream.flush().await?;
        io::Result::Ok(stream)
    };
    match tokio::join!(child, parent) {
        (Ok(child), Ok(parent)) => Ok((child, parent)),
        (child, parent) => Err(Refused(format!("child: {:?}; parent: {:?}", child.err(), parent.err()))),
    }
}

#[track_caller]
fn refused_for(outcome: Result<Ends, Refused>, reason: &str) {
    match outcome {
        Ok(_) => panic!("the handshake went through"),
        Err(Refused(said)) => assert!(said.contains(reason), "{said}"),
    }
}

#[tokio::test]
async fn the_right_parent_and_child_learn_who_the_other_is() {
    let world = World::new();
    let (agent, relay) = (world.identity(Role::Agent, 1), world.identity(Role::Relay, 2));
    let (up, down) = world.link(&agent, &relay).await.unwrap();
    let (_, up) = up.get_ref();
    let (_, down) = down.get_ref();
    assert_eq!(peer_identity(down.peer_certificates().unwrap()).unwrap(), agent.subject);
    assert_eq!(peer_identity(up.peer_certificates().unwrap()).unwrap(), relay.subject);
    assert_eq!(up.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(up.alpn_protocol(), Some(LINK_ALPN));
    assert_eq!(down.alpn_protocol(), Some(LINK_ALPN));
    assert_eq!(up.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn adm_16_both_ends_and_nobody_else_know_the_keys_of_a_links_datagrams() {
    let world = World::new();
    let (agent, relay) = (world.identity(Role::Agent, 1), world.identity(Role::Relay, 2));
    let (up, down) = world.link(&agent, &relay).await.unwrap();
    let keys = link_keys(up.get_ref().1).unwrap();
    assert_eq!(link_keys(down.get_ref().1), Some(keys));
    assert_ne!(keys.wake, keys.notice, "one for each direction");
    let (next, _) = world.link(&agent, &relay).await.unwrap();
    let next = link_keys(next.get_ref().1).unwrap();
    assert!(next.wake != keys.wake && next.notice != keys.notice, "of each link its own");
}

#[tokio::test]
async fn nothing_is_remembered_between_sessions() {
    let world = World::new();
    let (agent, relay) = (world.identity(Role::Agent, 1), world.identity(Role::Relay, 2));
    let up = child_config(Some(&agent), &world.roots(), world.time()).unwrap();
    let down = parent_config(&relay, &world.roots(), world.time()).unwrap();
    for _ in 0..2 {
        let (child, parent) = handshake(up.clone(), down.clone(), world.name(&relay)).await.unwrap();
        assert_eq!(child.get_ref().1.tls13_tickets_received(), 0);
        for kind in [child.get_ref().1.handshake_kind(), parent.get_ref().1.handshake_kind()] {
            assert_eq!(kind, Some(rustls::HandshakeKind::Full));
        }
    }
    let https = https_config(relay.chain.clone(), relay.private_key(), world.time()).unwrap();
    for config in [&*down, &*enrol_config(&relay, world.time()).unwrap(), &https] {
        assert_eq!((config.send_tls13_tickets, config.max_early_data_size), (0, 0));
        assert!(!config.session_storage.can_cache() && !config.ticketer.enabled());
    }
    assert!(!up.enable_early_data);
}

#[tokio::test]
async fn a_node_of_another_authority_is_refused_by_both_ends() {
    let (world, stranger) = (World::new(), World::new());
    let (agent, relay) = (world.identity(Role::Agent, 1), world.identity(Role::Relay, 2));
    let false_relay = stranger.identity(Role::Relay, 2);
    refused_for(world.link(&agent, &false_relay).await, "BadSignature");
    let false_agent = stranger.identity(Role::Agent, 1);
    refused_for(world.link(&false_agent, &relay).await, "BadSignature");
}

#[tokio::test]
async fn another_node_of_the_tenant_is_not_the_parent_that_was_asked_for() {
    let world = World::new();
    let (agent, relay) = (world.identity(Role::Agent, 1), world.identity(Role::Relay, 2));
    let up = || child_config(Some(&agent), &world.roots(), world.time()).unwrap();
    let down = || parent_config(&relay, &world.roots(), world.time()).unwrap();
    let other_node = server_name(NodeId(uuid::Uuid::from_u128(3)), &world.tenant);
    refused_for(handshake(up(), down(), other_node).await, "NotValidForName");
    let other_tenant = server_name(relay.subject.node, &"other".parse().unwrap());
    refused_for(handshake(up(), down(), other_tenant).await, "NotValidForName");
}

#[tokio::test]
async fn a_certificate_is_good_to_its_last_second_of_node_time_and_no_longer() {
    let world = World::new();
    let (agent, relay) = (world.identity(Role::Agent, 1), world.identity(Role::Relay, 2));
    world.clock.advance(LIFE_MS);
    assert!(world.link(&agent, &relay).await.is_ok());
    world.clock.advance(1_000);
    refused_for(world.link(&agent, &relay).await, "Expired");
    world.clock.advance(-LIFE_MS - 2_000);
    refused_for(world.link(&agent, &relay).await, "NotValidYet");
}

#[tokio::test]
async fn the_parent_too_judges_by_its_own_node_time() {
    let world = World::new();
    let (agent, relay) = (world.identity(Role::Agent, 1), world.identity(Role::Relay, 2));
    let late: Arc<dyn TimeProvider> = Arc::new(NodeTime::new(TestClock::at(NOW.plus(LIFE_MS + 1_000))));
    let up = child_config(Some(&agent), &world.roots(), world.time()).unwrap();
    let down = parent_config(&relay, &world.roots(), late).unwrap();
    refused_for(handshake(up, down, world.name(&relay)).await, "CertificateExpired");
}

#[tokio::test]
async fn an_agent_is_nobodys_parent() {
    let world = World::new();
    let (agent, other) = (world.identity(Role::Agent, 1), world.identity(Role::Agent, 2));
    refused_for(world.link(&agent, &other).await, "InvalidPurpose");
}

#[tokio::test]
async fn without_a_certificate_a_child_can_enrol_and_nothing_else() {
    let world = World::new();
    let server = world.identity(Role::Server, 9);
    let up = || child_config(None, &world.roots(), world.time()).unwrap();
    let link = parent_config(&server, &world.roots(), world.time()).unwrap();
    refused_for(handshake(up(), link, world.name(&server)).await, "NoCertificatesPresented");
    let enrol = enrol_config(&server, world.time()).unwrap();
    let (child, parent) = handshake(up(), enrol, world.name(&server)).await.unwrap();
    assert!(parent.get_ref().1.peer_certificates().is_none());
    assert_eq!(peer_identity(child.get_ref().1.peer_certificates().unwrap()).unwrap(), server.subject);
}

#[tokio::test]
async fn the_outer_https_takes_a_gateways_public_certificate_of_any_make() {
    let world = World::new();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let public = rcgen::CertificateParams::new(vec!["gw.example.org".into()]).unwrap().self_signed(&key).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let down = https_config(vec![public.der().clone()], key, world.time()).unwrap();
    let up = outer_client_config(&[public.der().clone()], world.time()).unwrap();
    let name = ServerName::try_from("gw.example.org").unwrap();
    let (child, _) = handshake(up, Arc::new(down.clone()), name.clone()).await.unwrap();
    assert_eq!(child.get_ref().1.alpn_protocol(), Some(HTTP_ALPN));
    // A link is no HTTPS, even with the same certificates.
    let link = child_config(None, &[public.der().clone()], world.time()).unwrap();
    refused_for(handshake(link, Arc::new(down), name).await, "NoApplicationProtocol");
}

#[test]
fn who_trusts_nobody_gets_no_configuration() {
    let world = World::new();
    assert!(matches!(child_config(None, &[], world.time()), Err(TlsFault::NoRoots)));
    assert!(matches!(outer_client_config(&[], world.time()), Err(TlsFault::NoRoots)));
    let server = world.identity(Role::Server, 9);
    assert!(matches!(parent_config(&server, &[], world.time()), Err(TlsFault::NoRoots)));
    let garbage = [CertificateDer::from(vec![1, 2, 3])];
    assert!(matches!(child_config(None, &garbage, world.time()), Err(TlsFault::BadRoot(_))));
}

#[test]
fn an_identity_comes_back_and_never_with_another_key() {
    let (world, folder) = (World::new(), tempfile::tempdir().unwrap());
    assert!(matches!(Identity::load(folder.path()), Err(TlsFault::File { .. })));
    let old = world.identity(Role::Agent, 1);
    old.save(folder.path()).unwrap();
    let read = Identity::load(folder.path()).unwrap();
    assert_eq!((&read.subject, &read.chain, read.key.public()), (&old.subject, &old.chain, old.key.public()));
    assert!(!folder.path().join(NEXT_KEY_FILE).exists());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(folder.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let other = KeyPair::generate().unwrap();
    assert!(matches!(Identity::new(old.chain.clone(), other.clone()), Err(IdentityFault::OtherKey)));
    other.save_pem(&folder.path().join(KEY_FILE)).unwrap();
    assert!(matches!(Identity::load(folder.path()), Err(TlsFault::Identity(IdentityFault::OtherKey))));
}

/// The states a crash can leave while certificate and key are both replaced.
#[test]
fn a_crash_while_renewing_leaves_the_old_identity_or_the_new_one() {
    let (world, folder) = (World::new(), tempfile::tempdir().unwrap());
    let (old, new) = (world.identity(Role::Agent, 1), world.identity(Role::Agent, 2));
    let node = || Identity::load(folder.path()).unwrap().subject.node;
    old.save(folder.path()).unwrap();
    new.key.save_pem(&folder.path().join(NEXT_KEY_FILE)).unwrap();
    assert_eq!(node(), old.subject.node, "new key written");
    fs::write(folder.path().join(CERTIFICATE_FILE), files::certificates_to_pem(&new.chain)).unwrap();
    assert_eq!(node(), new.subject.node, "new certificate written");
    assert_eq!(node(), new.subject.node, "and settled by the load");
    assert!(!folder.path().join(NEXT_KEY_FILE).exists());
    fs::write(folder.path().join(NEXT_KEY_FILE), "torn").unwrap();
    assert_eq!(node(), new.subject.node);
}
