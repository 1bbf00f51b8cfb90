//! One server with its real store, one relay whose words may be changed on their way up, devices below it.

use branchline_agent::{
    capabilities::{MANUAL_REFRESH, REFRESH_INVENTORY, RUN_SCRIPT},
    decide::{AgentCore, Effect as AgentEffect, Event as AgentEvent, Me as Device, Rows},
};
use branchline_node::{
    downstream::{
        Child,
        reception::{Facts, check},
    },
    driver::Core as _,
    identity::PeerIdentity,
    link::lanes::Received,
    store::{Scan, StoreError, Table},
};
use branchline_protocol::{
    hash::Hash,
    id::{AttachmentKey, NodeId, Role, TenantId},
    inventory::Snapshot,
    order::Signer,
    record::{Run, class},
    time::{Millis, Mono, Now},
    trust::{KeyStatus, TrustDocument, TrustedKey},
    wire::{Contact, Greeting, Message, Welcome},
};
use branchline_relay::core::{Effect as RelayEffect, Event as RelayEvent, Me as Relay, RelayCore};
use branchline_server::{
    dispatch::{Core, Effect, Event, Preloaded},
    store::{InventoryRow, NodeRow, Op, SqliteStore, Store},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use tempfile::TempDir;

/// The relay, by number.
pub const RELAY: u128 = 500;
const SERVER: u128 = 1_000;

pub fn node(n: u128) -> NodeId {
    NodeId(uuid::Uuid::from_u128(n))
}

pub fn tenant() -> TenantId {
    "acme".parse().expect("a name")
}

/// The key of a node's certificate.
pub fn key(n: u128) -> Signer {
    Signer::from_seed(&Hash::of(&n.to_be_bytes()).0)
}

type Lie = Box<dyn FnMut(&mut Vec<Run>)>;

enum Todo {
    Agent(u128, AgentEvent),
    Relay(RelayEvent),
    Server(Event),
}

/// See the module.
pub struct World {
    store: Arc<SqliteStore>,
    server: Core,
    relay: RelayCore,
    /// The relay as the server's child.
    uplink: Option<Arc<Child>>,
    agents: BTreeMap<u128, AgentCore>,
    links: BTreeMap<u128, Arc<Child>>,
    lie: Lie,
    now: Now,
    todo: VecDeque<Todo>,
    /// What the relay sent up, as it was changed.
    pub wire: Vec<Message>,
    /// Heads that went up.
    pub signed: usize,
    _folder: TempDir,
}

/// A disk with nothing on it: nobody starts twice here.
struct Empty;

impl Scan for Empty {
    fn scan_all(&self, _: Table, _: impl FnMut(&[u8], Bytes)) -> Result<(), StoreError> {
        Ok(())
    }
}

fn trust() -> TrustDocument {
    let key = TrustedKey { key: key(SERVER).public(), role: "server".into(), status: KeyStatus::Active };
    TrustDocument { tenant: tenant(), term: 1, version: 1, cas: vec![], keys: vec![key] }
}

fn row(n: u128) -> NodeRow {
    NodeRow {
        id: node(n),
        tenant: tenant(),
        role: if n == RELAY { Role::Relay } else { Role::Agent },
        site: "osaka".into(),
        name: format!("n{n}"),
        host_name: String::new(),
        platform: "virtual".into(),
        capabilities: [].into(),
        kind: "lan".into(),
        epoch: 1,
        attachment: 0,
        route: vec![],
        last_contact: None,
        enrolled_at: Millis(0),
        revoked_at: None,
        key_hash: Hash::of(&key(n).public().0),
        tags: vec![],
    }
}

/// A child as the reception lets it in: with the checks of production.
fn let_in(parent: u128, greeting: Greeting, session: u64) -> Arc<Child> {
    let peer = PeerIdentity {
        tenant: tenant(),
        role: greeting.role,
        node: greeting.node,
        epoch: 1,
        key: key(greeting.node.0.as_u128()).public(),
        serial_hex: "1".into(),
        not_before: Millis(0),
        not_after: Millis(i64::MAX),
    };
    check(node(parent), &Facts { open: true, ..Facts::default() }, &peer, &greeting).expect("a sound greeting");
    Arc::new(Child {
        session,
        tenant: tenant(),
        node: greeting.node,
        role: greeting.role,
        key: AttachmentKey { epoch: 1, attachment: greeting.attachment },
        greeting: Arc::new(greeting),
        lease: None,
        source: None,
        gateway: None,
        keys: None,
    })
}

fn welcome(parent: u128) -> Box<Welcome> {
    Box::new(Welcome {
        protocol: 1,
        build: "test".into(),
        parent: node(parent),
        store: 1,
        ancestors: vec![(node(parent), "above".into())],
        lease: None,
        reconnect_spread_ms: 0,
        notice_port: 0,
    })
}

impl World {
    /// Server and relay, connected, and these devices, enrolled and away.
    pub async fn new(devices: &[u128]) -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(&folder.path().join("server.db")).await.expect("a store");
        let root = key(0).public();
        let (name, signer) = ("osaka".to_string(), Arc::new(key(RELAY)));
        let me = Relay { tenant: tenant(), node: node(RELAY), epoch: 1, name, signer };
        let relay = RelayCore::recover(me, root, trust(), 7, &Empty).expect("an empty disk");
        let mut world = World {
            store,
            server: Core::default(),
            relay,
            uplink: None,
            agents: BTreeMap::new(),
            links: BTreeMap::new(),
            lie: Box::new(|_| {}),
            now: Now { mono: Mono(0), wall: Millis(1_790_000_000_000), node: Millis(1_790_000_000_000) },
            todo: VecDeque::new(),
            wire: Vec::new(),
            signed: 0,
            _folder: folder,
        };
        world.store.commit(vec![Op::Tenant(tenant()), Op::Site(tenant(), "osaka".into())]).await.expect("a store");
        world.feed(Todo::Server(Event::Tenant(tenant()))).await;
        for n in devices.iter().copied().chain([RELAY]) {
            world.store.commit(vec![Op::Node(row(n))]).await.expect("a store");
            world.feed(Todo::Server(Event::Node(Box::new(row(n))))).await;
        }
        for n in devices {
            let me = Device {
                tenant: tenant(),
                node: node(*n),
                epoch: 1,
                site: "osaka".into(),
                root,
                build: "test".into(),
                contact: Contact::Persistent,
                platform: "virtual",
                capabilities: [MANUAL_REFRESH, REFRESH_INVENTORY, RUN_SCRIPT].map(str::to_owned).to_vec(),
                pid: 1,
                signer: Arc::new(key(*n)),
                unverified: false,
            };
            let core = AgentCore::recover(me, trust(), vec![], 7, &Rows::default()).expect("an empty disk");
            world.agents.insert(*n, core);
        }
        world.feed(Todo::Relay(RelayEvent::Dialling(1, node(SERVER)))).await;
        world
    }

    /// What becomes of the runs that the relay sends up.
    pub fn lie(&mut self, lie: impl FnMut(&mut Vec<Run>) + 'static) {
        self.lie = Box::new(lie);
    }

    /// A device starts and greets the relay.
    pub async fn connect(&mut self, n: u128) {
        let zone = jiff::tz::TimeZone::UTC;
        for event in [
            AgentEvent::Surroundings { zone, boot: "once".into() },
            AgentEvent::Start,
            AgentEvent::ExecutorUp,
            AgentEvent::Dialling { dial: 1, parent: node(RELAY) },
            // After the greeting, which would name the head of what was there before it.
            AgentEvent::CollectorUp,
        ] {
            self.feed(Todo::Agent(n, event)).await;
        }
    }

    /// Time passes for everybody, and everybody looks at it.
    pub async fn pass(&mut self, ms: u64) {
        self.now.mono = self.now.mono.plus(ms);
        self.now.wall = self.now.wall.plus(ms as i64);
        self.now.node = self.now.node.plus(ms as i64);
        let devices: Vec<u128> = self.links.keys().copied().collect();
        for n in devices {
            self.feed(Todo::Agent(n, AgentEvent::Tick)).await;
        }
        self.feed(Todo::Relay(RelayEvent::Tick)).await;
    }

    pub async fn inventory(&self, n: u128) -> Option<InventoryRow> {
        self.store.inventory(&tenant(), node(n)).await.expect("a store")
    }

    pub async fn dead_letters(&self) -> Vec<(NodeId, String)> {
        let rows = self.store.dead_letters(&tenant(), 100).await.expect("a store");
        rows.into_iter().map(|row| (row.stream.node, row.code)).collect()
    }

    /// Audited acts of this kind, newest first.
    pub async fn audit(&self, what: &str) -> Vec<String> {
        let rows = self.store.audit(&tenant(), 1_000).await.expect("a store");
        rows.into_iter().filter(|row| row.what == what).map(|row| row.detail).collect()
    }

    async fn feed(&mut self, first: Todo) {
        self.todo.push_back(first);
        while let Some(next) = self.todo.pop_front() {
            match next {
                Todo::Agent(n, event) => self.agent(n, event),
                Todo::Relay(event) => self.relay(event),
                Todo::Server(event) => self.server(event).await,
            }
        }
    }

    fn agent(&mut self, n: u128, event: AgentEvent) {
        let mut effects = Vec::new();
        let Some(core) = self.agents.get_mut(&n) else { return };
        core.handle(self.now, event, &mut effects);
        for effect in effects {
            match effect {
                AgentEffect::Commit(_, token) => self.todo.push_back(Todo::Agent(n, AgentEvent::Committed(token))),
                AgentEffect::Greet(_, greeting) => {
                    let child = let_in(RELAY, *greeting, n as u64);
                    self.links.insert(n, child.clone());
                    self.todo.push_back(Todo::Relay(RelayEvent::ChildUp(child)));
                    self.todo.push_back(Todo::Agent(n, AgentEvent::Up(welcome(RELAY))));
                }
                AgentEffect::Send(lane, message) => {
                    let Some(child) = self.links.get(&n).cloned() else { continue };
                    self.todo.push_back(Todo::Relay(RelayEvent::ChildSaid(child, message, lane, 0)));
                }
                AgentEffect::Collect(_) => {
                    let items = [("true".to_string(), "1".into())].into();
                    let found = Snapshot { sections: [("software".to_string(), items)].into() };
                    self.todo.push_back(Todo::Agent(n, AgentEvent::Collected(found)));
                }
                _ => {}
            }
        }
    }

    fn relay(&mut self, event: RelayEvent) {
        let mut effects = Vec::new();
        self.relay.handle(self.now, event, &mut effects);
        for effect in effects {
            match effect {
                RelayEffect::Commit(_, token) => self.todo.push_back(Todo::Relay(RelayEvent::Committed(token))),
                RelayEffect::Greet(_, greeting) => {
                    let child = let_in(SERVER, *greeting, 1);
                    self.uplink = Some(child.clone());
                    self.todo.push_back(Todo::Server(Event::Up(child)));
                    self.todo.push_back(Todo::Relay(RelayEvent::ParentUp(welcome(SERVER))));
                }
                RelayEffect::ToParent(lane, mut message) => {
                    let Some(child) = self.uplink.clone() else { continue };
                    if let Message::Records(runs) = &mut message {
                        (self.lie)(runs);
                        let records = runs.iter().flat_map(|run| &run.records);
                        self.signed += records.filter(|record| record.class == class::HEAD).count();
                    }
                    // Through the encoding, as over a link.
                    let message = Message::decode(&message.encode()).expect("our own words");
                    self.wire.push(message.clone());
                    let preloaded = Preloaded::new();
                    self.todo.push_back(Todo::Server(Event::Said { child, message, lane, credit: 0, preloaded }));
                }
                RelayEffect::ToChild(to, _, lane, message) => {
                    let received = Received { lane, bytes: message.encode(), credit: 0 };
                    self.todo.push_back(Todo::Agent(to.0.as_u128(), AgentEvent::Received(received)));
                }
                RelayEffect::RefuseChild(_, _, refusal) => panic!("refused: {refusal}"),
                _ => {}
            }
        }
    }

    async fn server(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.server.handle(self.now, event, &mut effects);
        for effect in effects {
            match effect {
                Effect::Commit(ops, token) => {
                    self.store.commit(ops).await.expect("a store");
                    self.todo.push_back(Todo::Server(Event::Committed(token)));
                }
                Effect::Send(_, _, lane, message) => {
                    self.todo.push_back(Todo::Relay(RelayEvent::ParentSaid(message, lane, 0)));
                }
                Effect::Refuse(_, _, refusal) => panic!("refused: {refusal}"),
                _ => {}
            }
        }
    }
}
