//! A server and its devices without sockets, actors and real time.

use branchline_agent::{
    capabilities::{MANUAL_REFRESH, REFRESH_INVENTORY, RUN_SCRIPT},
    decide::{AgentCore, Effect as AgentEffect, Event as AgentEvent, Me, Rows},
};
use branchline_node::{
    downstream::Child,
    driver::Core as _,
    identity::Bundle,
    link::{engine::LinkEnd, lanes::Received},
    node::Ambient,
    random::SeededRandom,
    store::{Op as AgentOp, Table},
    time::TestClock,
};
use branchline_protocol::{
    document::{Document, Kind, Settings},
    hash::Hash,
    id::{AttachmentKey, NodeId, Role, TenantId},
    inventory::{Items, Report, SECTIONS, Snapshot},
    order::Signer,
    record::{Record, class},
    time::{Millis, Mono, Now},
    wire::{Contact, Greeting, Message, Welcome},
};
use branchline_server::{
    api::control::TokenWish,
    dispatch::{Core, Effect, Event, Preloaded, standing},
    domain::{InitWish, Office},
    store::{NodeRow, Op, SqliteStore, Store},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use tempfile::TempDir;

/// Local time of all devices is nine hours ahead.
const OFFSET_H: i64 = 9;

/// A device, its disk, and what it would find.
pub struct Pc {
    pub id: NodeId,
    me: Me,
    core: AgentCore,
    disk: BTreeMap<(Table, Vec<u8>), Bytes>,
    openings: u64,
    link: Option<Arc<Child>>,
    packages: usize,
    /// What went over its link, both ways, in order: `record v2`, `settings 3` …
    pub wire: Vec<String>,
}

/// See the module.
pub struct World {
    pub store: Arc<SqliteStore>,
    pub office: Office,
    core: Core,
    pub pcs: Vec<Pc>,
    tenant: TenantId,
    bundle: Bundle,
    now: Now,
    sessions: u64,
    todo: VecDeque<Todo>,
    _folder: TempDir,
}

enum Todo {
    Agent(usize, AgentEvent),
    Server(Event),
}

/// Milliseconds of a local time in 2026, `06-03 10:00`.
pub fn local(text: &str) -> Millis {
    let number = |from: usize| text[from..from + 2].parse::<i64>().expect("a number");
    let (month, day, hour, minute) = (number(0), number(3), number(6), number(9));
    // Days before each month of a year that is no leap year.
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
    let days = 20_454 + before + day - 1;
    Millis(((days * 24 + hour - OFFSET_H) * 60 + minute) * 60_000)
}

impl World {
    /// PC-001 and PC-002, never started, at this local time.
    pub async fn new(at: &str) -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(&folder.path().join("server.db")).await.expect("a store");
        let ambient = Ambient { clock: TestClock::at(local(at)), random: SeededRandom::shared(1), ..Ambient::system() };
        let tenant: TenantId = "acme".parse().expect("a name");
        let wish = InitWish {
            server_name: "hq".into(),
            api_hosts: vec!["127.0.0.1".into()],
            tenants: vec![(tenant.clone(), vec!["osaka".into()])],
        };
        let office = Office::init(folder.path(), store.clone(), ambient, wish).await.expect("an office");
        office.set_advertised(vec!["127.0.0.1:1".into()], vec!["127.0.0.1:2".into()]).await.expect("ways");
        let wish = TokenWish {
            role: Role::Agent,
            site: "osaka".into(),
            parent: "server".into(),
            uses: 9,
            life_ms: 86_400_000,
        };
        let bundle = Bundle::open(&office.bundle(&tenant, "admin", &wish).await.expect("a bundle").0).expect("whole");
        let wall = local(at);
        let mut world = World {
            store,
            office,
            core: Core::default(),
            pcs: Vec::new(),
            tenant: tenant.clone(),
            bundle,
            now: Now { mono: Mono(1), wall, node: wall },
            sessions: 0,
            todo: VecDeque::new(),
            _folder: folder,
        };
        world.feed(Todo::Server(Event::Tenant(tenant))).await;
        world.tell_settings().await;
        for n in 1..=2 {
            world.enrol(n).await;
        }
        world
    }

    async fn enrol(&mut self, n: u8) {
        let id = NodeId(uuid::Uuid::from_u128(n.into()));
        let capabilities = [MANUAL_REFRESH, REFRESH_INVENTORY, RUN_SCRIPT].map(str::to_owned).to_vec();
        let row = NodeRow {
            id,
            tenant: self.tenant.clone(),
            role: Role::Agent,
            site: "osaka".into(),
            name: format!("PC-00{n}"),
            host_name: String::new(),
            platform: "virtual".into(),
            capabilities: capabilities.as_slice().into(),
            kind: "lan".into(),
            epoch: 1,
            attachment: 0,
            route: vec![],
            last_contact: None,
            enrolled_at: self.now.node,
            revoked_at: None,
            key_hash: Hash::of(&Signer::from_seed(&[n; 32]).public().0),
            tags: vec![],
        };
        self.store.commit(vec![Op::Node(row.clone())]).await.expect("a row");
        self.feed(Todo::Server(Event::Node(Box::new(row)))).await;
        let me = Me {
            tenant: self.tenant.clone(),
            node: id,
            epoch: 1,
            site: "osaka".into(),
            root: self.bundle.root_key,
            build: "test".into(),
            contact: Contact::Persistent,
            platform: "virtual",
            capabilities,
            pid: 1,
            signer: Arc::new(Signer::from_seed(&[n; 32])),
            unverified: false,
        };
        let core = opened(&me, &self.bundle, &BTreeMap::new(), 1);
        let (disk, wire) = (BTreeMap::new(), Vec::new());
        self.pcs.push(Pc { id, me, core, disk, openings: 1, link: None, packages: 1, wire });
    }

    /// The device's agent starts, again if it ran; the machine itself has been on since January.
    pub async fn start(&mut self, pc: usize) {
        let one = &mut self.pcs[pc];
        one.openings += 1;
        one.core = opened(&one.me, &self.bundle, &one.disk, one.openings);
        let zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(OFFSET_H as i8));
        self.cut(pc).await;
        for event in [
            AgentEvent::Surroundings { zone, boot: "january".into() },
            AgentEvent::Start,
            AgentEvent::ExecutorUp,
            AgentEvent::CollectorUp,
        ] {
            self.feed(Todo::Agent(pc, event)).await;
        }
    }

    pub async fn connect(&mut self, pc: usize) {
        self.feed(Todo::Agent(pc, AgentEvent::Dialling { dial: 1, parent: self.office.server_id() })).await;
    }

    pub async fn cut(&mut self, pc: usize) {
        if let Some(child) = self.pcs[pc].link.take() {
            self.feed(Todo::Server(Event::Gone(child, LinkEnd::Lost("cut".into())))).await;
            self.feed(Todo::Agent(pc, AgentEvent::Down)).await;
        }
    }

    /// One package more.
    pub fn install(&mut self, pc: usize) {
        self.pcs[pc].packages += 1;
    }

    pub async fn set(&mut self, change: impl FnOnce(&mut Settings)) -> u64 {
        let mut settings = self.settings();
        change(&mut settings);
        let version = self.office.set_settings(&self.tenant, "admin", settings).await.expect("settings").version;
        self.tell_settings().await;
        version
    }

    pub fn settings(&self) -> Settings {
        self.office.settings(&self.tenant).expect("settings")
    }

    async fn tell_settings(&mut self) {
        let (tenant, version) = (self.tenant.clone(), self.settings().version());
        let sealed = self.office.documents(&tenant, "osaka").into_iter().find(|(kind, _)| *kind == Kind::Settings);
        let (kind, envelope) = sealed.expect("settings");
        self.feed(Todo::Server(Event::Document(tenant, kind, String::new(), version, envelope))).await;
    }

    /// Time passes; agents' timers fire when they are due.
    pub async fn run_until(&mut self, at: &str) {
        let until = local(at);
        loop {
            let now = self.now;
            let due = |(n, pc): (usize, &Pc)| Some((pc.core.next_deadline(now)?, n));
            let Some((due, pc)) = self.pcs.iter().enumerate().filter_map(due).min() else { break };
            if now.wall.0 + due.since(now.mono) as i64 > until.0 {
                break;
            }
            self.pass(due.since(now.mono));
            self.feed(Todo::Agent(pc, AgentEvent::Tick)).await;
        }
        self.pass((until.0 - self.now.wall.0) as u64);
    }

    fn pass(&mut self, ms: u64) {
        self.now.mono = self.now.mono.plus(ms);
        self.now.wall = self.now.wall.plus(ms as i64);
        self.now.node = self.now.node.plus(ms as i64);
    }

    /// What the device shows of its settings: wanted, acknowledged.
    pub fn versions(&self, pc: usize) -> (u64, u64) {
        let state = self.core.tenant(&self.tenant).expect("a tenant");
        let row = &state.nodes[&self.pcs[pc].id];
        (self.settings().version, standing(state, row, self.now.node).settings.1)
    }

    /// What the server holds: when it was collected, under which settings, whether that differs from those in force.
    pub async fn held(&self, pc: usize) -> (Millis, u64, bool, Vec<String>) {
        let row = self.store.inventory(&self.tenant, self.pcs[pc].id).await.expect("a store").expect("an inventory");
        let sections = row.sections.keys().cloned().collect();
        (row.collected_at, row.settings_version, row.settings_version < self.settings().version, sections)
    }

    /// Reports in the device's own folder that the server has not settled.
    pub fn folder(&self, pc: usize) -> Vec<Report> {
        let rows = self.pcs[pc].disk.iter().filter(|((table, _), _)| *table == Table::Spool);
        let records = rows.map(|(_, value)| rmp_serde::from_slice::<Record>(value).expect("a record"));
        let reports = records.filter(|record| record.class == class::INVENTORY);
        reports.map(|record| rmp_serde::from_slice(&record.body).expect("a report")).collect()
    }

    async fn feed(&mut self, first: Todo) {
        self.todo.push_back(first);
        while let Some(next) = self.todo.pop_front() {
            match next {
                Todo::Agent(pc, event) => self.agent(pc, event),
                Todo::Server(event) => self.server(event).await,
            }
        }
    }

    fn agent(&mut self, pc: usize, event: AgentEvent) {
        let (now, mut effects) = (self.now, Vec::new());
        let one = &mut self.pcs[pc];
        one.core.handle(now, event, &mut effects);
        for effect in effects {
            match effect {
                AgentEffect::Commit(batch, token) => {
                    for op in batch.ops {
                        match op {
                            AgentOp::Put { table, key, value } => {
                                one.disk.insert((table, key), value);
                            }
                            AgentOp::Delete { table, key } => {
                                one.disk.remove(&(table, key));
                            }
                            AgentOp::DeleteRange { table, from, to_exclusive } => {
                                one.disk.retain(|(t, k), _| *t != table || *k < from || *k >= to_exclusive);
                            }
                        }
                    }
                    self.todo.push_back(Todo::Agent(pc, AgentEvent::Committed(token)));
                }
                AgentEffect::Greet(_, greeting) => {
                    self.sessions += 1;
                    let child = Arc::new(child(*greeting, self.sessions));
                    one.link = Some(child.clone());
                    let parent = self.bundle.server;
                    let welcome = Welcome {
                        protocol: 1,
                        build: "test".into(),
                        parent,
                        store: 1,
                        ancestors: vec![],
                        lease: None,
                        reconnect_spread_ms: 0,
                        notice_port: 0,
                    };
                    self.todo.push_back(Todo::Server(Event::Up(child)));
                    self.todo.push_back(Todo::Agent(pc, AgentEvent::Up(Box::new(welcome))));
                }
                AgentEffect::Send(lane, message) => {
                    let Some(child) = one.link.clone() else { continue };
                    one.wire.extend(told(&message));
                    // Through the encoding, as over a link.
                    let message = Message::decode(&message.encode()).expect("our own words");
                    let preloaded = Preloaded::new();
                    self.todo.push_back(Todo::Server(Event::Said { child, message, lane, credit: 0, preloaded }));
                }
                AgentEffect::Collect(sections) => {
                    let found = found(&sections, one.packages);
                    self.todo.push_back(Todo::Agent(pc, AgentEvent::Collected(found)));
                }
                _ => {}
            }
        }
    }

    async fn server(&mut self, event: Event) {
        let event = match event {
            Event::Said { child, message, lane, credit, .. } => {
                let mut preloaded = Preloaded::new();
                if let Some(row) = self.store.inventory(&self.tenant, child.node).await.expect("a store") {
                    preloaded.insert(child.node, (Snapshot { sections: row.sections }, row.collected_at));
                }
                Event::Said { child, message, lane, credit, preloaded }
            }
            other => other,
        };
        let mut effects = Vec::new();
        self.core.handle(self.now, event, &mut effects);
        for effect in effects {
            match effect {
                Effect::Commit(ops, token) => {
                    self.store.commit(ops).await.expect("a store");
                    self.todo.push_back(Todo::Server(Event::Committed(token)));
                }
                Effect::Send(node, session, lane, message) => {
                    let live = |pc: &Pc| pc.id == node && pc.link.as_ref().is_some_and(|link| link.session == session);
                    let Some(pc) = self.pcs.iter().position(live) else { continue };
                    self.pcs[pc].wire.extend(told(&message));
                    let received = Received { lane, bytes: message.encode(), credit: 0 };
                    self.todo.push_back(Todo::Agent(pc, AgentEvent::Received(received)));
                }
                Effect::Refuse(_, _, refusal) => panic!("refused: {refusal}"),
                _ => {}
            }
        }
    }
}

fn opened(me: &Me, bundle: &Bundle, disk: &BTreeMap<(Table, Vec<u8>), Bytes>, openings: u64) -> AgentCore {
    let mut rows = Rows::default();
    for ((table, key), value) in disk {
        rows.tables.entry(*table).or_default().push((key.clone(), value.clone()));
    }
    let trust = bundle.trust_document().expect("trust");
    AgentCore::recover(me.clone(), trust, bundle.upstreams.clone(), openings, &rows).expect("a sound disk")
}

fn child(greeting: Greeting, session: u64) -> Child {
    Child {
        session,
        tenant: greeting.tenant.clone(),
        node: greeting.node,
        role: greeting.role,
        key: AttachmentKey { epoch: greeting.epoch, attachment: greeting.attachment },
        greeting: Arc::new(greeting),
        lease: None,
        source: None,
        gateway: None,
        keys: None,
    }
}

/// What a device finds in these sections, in all when none is named.
fn found(sections: &[String], packages: usize) -> Snapshot {
    let wanted = SECTIONS.into_iter().filter(|name| sections.is_empty() || sections.iter().any(|s| s == name));
    let items = |name: &str| -> Items {
        let count = if name == "software" { packages } else { 1 };
        (0..count).map(|n| (format!("{name}-{n}"), "1".into())).collect()
    };
    Snapshot { sections: wanted.map(|name| (name.to_owned(), items(name))).collect() }
}

/// The parts of a message that a test asks about.
fn told(message: &Message) -> Vec<String> {
    match message {
        Message::Records(runs) => {
            let records = runs.iter().flat_map(|run| &run.records).filter(|record| record.class == class::INVENTORY);
            let report = |record: &Record| rmp_serde::from_slice::<Report>(&record.body).expect("a report");
            records.map(report).map(|report| format!("record v{}", report.settings_version)).collect()
        }
        Message::Document(Kind::Settings, envelope) => {
            let settings: Settings = rmp_serde::from_slice(&envelope.payload).expect("settings");
            vec![format!("settings v{}", settings.version)]
        }
        Message::Versions(versions) => vec![format!("has v{}", versions[3].1)],
        _ => Vec::new(),
    }
}
