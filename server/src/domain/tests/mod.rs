//! An office over a real store in a folder of its own, and new nodes that speak to it over TLS in memory.

mod bundles;
mod documents;
mod enrolling;
mod faulty_store;
mod founding;
mod keeping;
mod recovery;
mod secrets;
mod settings;

use super::{InitWish, Office, OfficeFault, reception::Outcome};
use crate::{
    api::control::TokenWish,
    store::{SqliteStore, Store},
};
use branchline_node::{
    enrol::{read_message, write_message},
    identity::{Bundle, Identity, KeyPair, child_config, request, server_name},
    node::Ambient,
    random::SeededRandom,
    time::{NodeTime, TestClock},
};
use branchline_protocol::{
    document::Kind,
    id::{NodeId, Role, TenantId},
    order::Envelope,
    refusal::Refusal,
    time::Millis,
    wire::{DeviceFacts, EnrolAnswer, EnrolRequest},
};
use faulty_store::FaultyStore;
use rustls::pki_types::CertificateDer;
use std::{io, path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

const NOW: Millis = Millis(1_790_000_000_000);
const DAY_MS: u64 = 86_400_000;

fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

fn acme() -> TenantId {
    tenant("acme")
}

fn wish() -> InitWish {
    InitWish {
        server_name: "main".into(),
        api_hosts: vec!["127.77.0.1:8383".into()],
        tenants: vec![(acme(), vec!["hq".into(), "osaka".into()]), (tenant("other"), vec!["osaka".into()])],
    }
}

fn token_wish(role: Role, site: &str, parent: &str) -> TokenWish {
    TokenWish { role, site: site.into(), parent: parent.into(), uses: 1, life_ms: DAY_MS }
}

struct World {
    folder: TempDir,
    clock: Arc<TestClock>,
    store: Arc<FaultyStore>,
    office: Office,
}

impl World {
    async fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let clock = TestClock::at(NOW);
        let store = open_store(folder.path()).await;
        let office = Office::init(folder.path(), store.clone(), ambient(&clock, 1), wish()).await.unwrap();
        office.set_advertised(vec!["127.0.0.1:13000".into()], vec!["127.0.0.1:8443".into()]).await.unwrap();
        World { folder, clock, store, office }
    }

    /// The office after a restart of its process.
    async fn restarted(self) -> World {
        let World { folder, clock, store, office } = self;
        drop(office);
        store.close().await;
        drop(store);
        let store = open_store(folder.path()).await;
        let office = Office::open(folder.path(), store.clone(), ambient(&clock, 2)).await.unwrap();
        World { folder, clock, store, office }
    }

    async fn bundle(&self, wish: &TokenWish) -> Bundle {
        let tenant = if wish.role == Role::Gateway { TenantId::system() } else { acme() };
        Bundle::open(&self.office.bundle(&tenant, "admin", wish).await.unwrap().0).unwrap()
    }

    async fn agent_bundle(&self) -> Bundle {
        self.bundle(&token_wish(Role::Agent, "osaka", "server")).await
    }

    /// Both ends of an `enrol` stream up to TLS: the child's, and the office at work on the other.
    async fn knock<S>(&self, bundle: &Bundle, wrap: impl FnOnce(DuplexStream) -> S) -> io::Result<Stream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (near, far) = tokio::io::duplex(65_536);
        let office = self.office.clone();
        let served = tokio::spawn(async move {
            match office.accept_enrol(far).await {
                Ok(stream) => office.enrol(stream, None).await,
                Err(e) => Outcome::Unanswered(e.to_string()),
            }
        });
        let trust = bundle.trust_document().unwrap();
        let roots: Vec<_> = trust.cas.iter().map(|ca| CertificateDer::from(ca.to_vec())).collect();
        let tls = child_config(None, &roots, Arc::new(NodeTime::new(self.clock.clone()))).unwrap();
        let name = server_name(bundle.server, &bundle.tenant);
        let child = TlsConnector::from(tls).connect(name, wrap(near)).await?;
        Ok((child, served))
    }

    /// One whole exchange; `None` if no answer came.
    async fn ask(&self, bundle: &Bundle, request: &EnrolRequest) -> (Option<EnrolAnswer>, Outcome) {
        let (mut child, served) = self.knock(bundle, |stream| stream).await.unwrap();
        write_message(&mut child, request).await.unwrap();
        let answer = read_message(&mut child).await.ok();
        (answer, soon(served).await.unwrap())
    }

    /// Enrols and says what was refused.
    async fn enrol(&self, bundle: &Bundle, key: &KeyPair, name: &str) -> Result<Enrolled, Refusal> {
        match self.ask(bundle, &request_of(bundle, key, name)).await.0.expect("no answer came") {
            EnrolAnswer::Enrolled { node, epoch: _, chain, documents } => {
                let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
                let identity = Identity::new(chain, key.clone()).unwrap();
                assert_eq!(identity.subject.node, node);
                Ok(Enrolled { identity, documents })
            }
            EnrolAnswer::Refused(refusal) => Err(refusal),
        }
    }

    async fn node_count(&self) -> usize {
        self.store.nodes().await.unwrap().len()
    }

    async fn row(&self, node: NodeId) -> crate::store::NodeRow {
        self.store.nodes().await.unwrap().into_iter().find(|row| row.id == node).unwrap()
    }
}

type Stream<S> = (tokio_rustls::client::TlsStream<S>, tokio::task::JoinHandle<Outcome>);

struct Enrolled {
    identity: Identity,
    documents: Vec<(Kind, Envelope)>,
}

impl Enrolled {
    fn id(&self) -> NodeId {
        self.identity.subject.node
    }
}

impl std::fmt::Debug for Enrolled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.identity.subject)
    }
}

fn ambient(clock: &Arc<TestClock>, seed: u64) -> Ambient {
    Ambient { clock: clock.clone(), random: SeededRandom::shared(seed), ..Ambient::system() }
}

async fn open_store(folder: &Path) -> Arc<FaultyStore> {
    FaultyStore::over(SqliteStore::open(&folder.join("store.db")).await.unwrap())
}

fn new_key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn request_of(bundle: &Bundle, key: &KeyPair, name: &str) -> EnrolRequest {
    EnrolRequest {
        protocol: 1,
        tenant: bundle.tenant.clone(),
        role: bundle.role,
        site: bundle.site.clone(),
        token: bundle.token.clone().unwrap(),
        request: request(key, name).into(),
        facts: DeviceFacts {
            name: name.into(),
            host_name: format!("{name}.example"),
            platform: "linux".into(),
            capabilities: vec!["run_script".into()],
            build: "1".into(),
            addresses: if bundle.role == Role::Agent { vec![] } else { vec!["127.0.0.9:13000".into()] },
        },
    }
}

/// A wait that a broken test does not hang in.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), work).await.expect("it takes too long")
}

#[track_caller]
fn refused_with<T: std::fmt::Debug>(outcome: Result<T, Refusal>, status: u16, code: &str) {
    let no = outcome.unwrap_err();
    assert_eq!((no.status, &no.code[..]), (status, code), "{no}");
}
