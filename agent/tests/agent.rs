//! A whole agent against a parent made here: enrolment, link, real jobs under the shim, stop and start again.
#![cfg(target_os = "linux")]

use branchline_agent::{Agent, AgentConfig, AgentProcess, RunningAgent, Spared, platform::host};
use branchline_node::{
    config::Reach,
    enrol::{read_message, write_message},
    identity::{
        Authority, BUNDLE_VERSION, Bundle, Identity, KeyPair, Root, Subject, enrol_config, parent_config, request,
    },
    link::{
        codec::FrameCodec,
        engine::{self, LinkCommand, LinkCounters, LinkEvent, LinkSink, Side},
    },
    metrics::Metrics,
    node::{Ambient, Started},
    process::RunningNode,
    time::NodeTime,
};
use branchline_protocol::{
    document::Upstream,
    hash::Hash,
    id::{JobId, NodeId, OrderNumber, Role, TenantId, TraceId},
    inventory::{Report, ReportKind},
    job::{Class, End, RunScript, Runnable},
    order::{Envelope, Leaf, ORDER_PAYLOAD_TYPE, OrderMessage, Payload, Signer, Tree},
    record::{JobResult, Lane, Record, class},
    time::Millis,
    trust::{KeyStatus, TrustDocument, TrustedKey},
    wire::{Ack, Contact, EnrolAnswer, EnrolRequest, Frame, Greeting, Message, PREFACE_ACCEPTED, Preface, Welcome},
};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rustls_pki_types::CertificateDer;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::codec::Framed;
use uuid::Uuid;

/// Liveness only: far above anything a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);
const SERVER: NodeId = NodeId(Uuid::from_u128(1));
const DEVICE: NodeId = NodeId(Uuid::from_u128(7));

fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

async fn bounded<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("no {what}"))
}

/// What the parent saw on its links.
enum Seen {
    Up(Box<Greeting>, mpsc::Sender<LinkCommand>),
    Said(Message),
}

struct Parent {
    signer: Signer,
    authority: Authority,
    identity: Identity,
    ambient: Ambient,
    metrics: Metrics,
    enrolments: AtomicUsize,
    seen: mpsc::UnboundedSender<Seen>,
}

struct World {
    home: TempDir,
    parent: Arc<Parent>,
    seen: mpsc::UnboundedReceiver<Seen>,
    link: Option<mpsc::Sender<LinkCommand>>,
    records: Vec<(Lane, Record)>,
    taken: Vec<u64>,
    numbers: u64,
}

impl Parent {
    fn issue(&self, request: &[u8], role: Role, node: NodeId) -> CertificateDer<'static> {
        let subject = Subject { tenant: tenant(), role, node, epoch: 1, dns: vec![], ips: vec![] };
        let now = self.ambient.clock.wall();
        self.authority.issue(request, &subject, now.plus(-60_000), now.plus(86_400_000), node.0.as_u128()).unwrap()
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) -> Option<()> {
        let time = Arc::new(NodeTime::new(self.ambient.clock.clone()));
        let preface = stream.read_u8().await.ok()?;
        stream.write_u8(PREFACE_ACCEPTED).await.ok()?;
        if preface == Preface::Enrol.byte() {
            let tls = TlsAcceptor::from(enrol_config(&self.identity, time).unwrap());
            let mut stream = tls.accept(stream).await.ok()?;
            let ask: EnrolRequest = read_message(&mut stream).await.ok()?;
            assert_eq!((ask.token.as_str(), ask.role, ask.facts.name.as_str()), ("token", Role::Agent, "pc-1"));
            assert!(ask.facts.capabilities.contains(&"run_script".to_owned()));
            self.enrolments.fetch_add(1, Ordering::SeqCst);
            let chain = [self.issue(&ask.request, Role::Agent, DEVICE), self.authority.certificate().clone()];
            let chain = chain.iter().map(|c| Bytes::copy_from_slice(c)).collect();
            let answer = EnrolAnswer::Enrolled { node: DEVICE, epoch: 1, chain, documents: vec![] };
            write_message(&mut stream, &answer).await.ok()?;
            return stream.shutdown().await.ok();
        }
        let tls = parent_config(&self.identity, &[self.authority.certificate().clone()], time).unwrap();
        let stream = TlsAcceptor::from(tls).accept(stream).await.ok()?;
        let mut framed = Framed::new(stream, FrameCodec);
        let Some(Ok(Some(Frame::Greeting(greeting)))) = framed.next().await else { return None };
        let welcome = Welcome {
            protocol: 1,
            build: "test".into(),
            parent: SERVER,
            store: 5,
            ancestors: vec![],
            lease: None,
            reconnect_spread_ms: 0,
            notice_port: 0,
        };
        framed.send(Frame::Welcome(Box::new(welcome))).await.ok()?;
        let (commands, queue) = mpsc::channel(64);
        self.seen.send(Seen::Up(greeting, commands.clone())).ok()?;
        let counter = |name| self.metrics.counter(name, &[]);
        let counters = LinkCounters {
            protocol_errors: counter("branchline_protocol_errors_total"),
            unknown: counter("branchline_unknown_total"),
        };
        let side = Side::Parent { statement: watch::channel(None).1, spread: Box::new(|| 0), poll: false };
        let mut sink = ToTest { seen: self.seen.clone(), commands };
        engine::run(framed, queue, side, counters, &mut sink).await;
        Some(())
    }
}

struct ToTest {
    seen: mpsc::UnboundedSender<Seen>,
    commands: mpsc::Sender<LinkCommand>,
}

impl LinkSink for ToTest {
    async fn deliver(&mut self, event: LinkEvent) {
        if let LinkEvent::Message(received) = event {
            let _ = self.commands.try_send(LinkCommand::Release(received.lane, received.credit));
            let _ = self.seen.send(Seen::Said(Message::decode(&received.bytes).unwrap()));
        }
    }
}

impl World {
    async fn new() -> World {
        let home = tempfile::tempdir().unwrap();
        let ambient = Ambient::system();
        let now = ambient.clock.wall();
        let (signer, root) = (Signer::from_seed(&[1; 32]), Root::create().unwrap());
        let authority = Authority::create(&tenant(), now).unwrap();
        let key = KeyPair::generate().unwrap();
        let subject =
            Subject { tenant: tenant(), role: Role::Server, node: SERVER, epoch: 1, dns: vec![], ips: vec![] };
        let certificate =
            authority.issue(&request(&key, "hq"), &subject, now.plus(-60_000), now.plus(86_400_000), 1).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let trusted = TrustedKey { key: signer.public(), role: "server".into(), status: KeyStatus::Active };
        let trust = TrustDocument {
            tenant: tenant(),
            term: 1,
            version: 1,
            cas: vec![Bytes::copy_from_slice(authority.certificate())],
            keys: vec![trusted],
        };
        let bundle = Bundle {
            version: BUNDLE_VERSION,
            tenant: tenant(),
            site: "hq".into(),
            role: Role::Agent,
            token: Some("token".into()),
            server: SERVER,
            root_key: root.public(),
            trust: root.sign(&trust),
            upstreams: vec![Upstream {
                id: SERVER,
                role: Role::Server,
                name: "hq".into(),
                direct: vec![listener.local_addr().unwrap().to_string()],
                gateways: vec![],
                near: false,
            }],
            link_token: String::new(),
            outer_roots: vec![],
            wake_port: 0,
            notice_port: 0,
        };
        std::fs::write(home.path().join("bundle"), bundle.seal(&signer)).unwrap();
        // What a test sees of its few links: nobody is to wait for it to look.
        let (seen, from_links) = mpsc::unbounded_channel();
        let identity = Identity::new(vec![certificate], key).unwrap();
        let parent = Arc::new(Parent {
            signer,
            authority,
            identity,
            ambient,
            metrics: Metrics::new(),
            enrolments: AtomicUsize::new(0),
            seen,
        });
        let of = parent.clone();
        actix_rt::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                actix_rt::spawn(of.clone().serve(stream));
            }
        });
        World { home, parent, seen: from_links, link: None, records: vec![], taken: vec![], numbers: 0 }
    }

    fn config(&self) -> AgentConfig {
        AgentConfig {
            name: "pc-1".into(),
            state_dir: self.home.path().join("agent"),
            bundle: self.home.path().join("bundle"),
            bind_source: None,
            reach: Reach::Any,
            probe_interval_s: 900,
            private: None,
            contact: Contact::Persistent,
            wake_port: None,
            quotas: branchline_node::uplink::spool::Quotas::AGENT,
            restart: false,
        }
    }

    async fn agent(&self) -> RunningAgent {
        self.spared(Spared::default()).await
    }

    async fn spared(&self, spared: Spared) -> RunningAgent {
        let shim = vec![env!("CARGO_BIN_EXE_branchline-agent").to_owned(), "shim".to_owned()];
        let process = AgentProcess { pid: 4242, shim };
        let agent = Agent::start_spared(self.config(), Ambient::system(), host(), process, spared);
        bounded("agent", agent).await.unwrap()
    }

    /// The next greeting.
    async fn up(&mut self) -> Greeting {
        loop {
            if let Seen::Up(greeting, link) = bounded("greeting", self.seen.recv()).await.unwrap() {
                self.link = Some(link);
                return *greeting;
            }
        }
    }

    fn say(&self, lane: Lane, message: Message) {
        self.link.as_ref().unwrap().try_send(LinkCommand::Send(lane, message.encode())).unwrap();
    }

    /// Looks at what comes, and acknowledges it as stored, until there is what is wanted.
    async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&World) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self) {
                return found;
            }
            match bounded(what, self.seen.recv()).await.unwrap() {
                Seen::Said(Message::Records(runs)) => {
                    for run in runs {
                        let stored = run.records.last().unwrap().number;
                        let ack = Ack { stream: run.stream, stored, settled: 0, refused: vec![] };
                        self.say(Lane::Control, Message::Acks(vec![ack]));
                        self.records.extend(run.records.into_iter().map(|r| (run.stream.lane, r)));
                    }
                }
                Seen::Said(Message::Taken(list)) => self.taken.extend(list.iter().map(|(order, _)| order.number)),
                Seen::Said(other) => panic!("unexpected: {other:?}"),
                Seen::Up(_, link) => self.link = Some(link),
            }
        }
    }

    fn results(&self, number: u64) -> Vec<JobResult> {
        let results = self.records.iter().filter(|(_, r)| r.class == class::RESULT);
        let results = results.map(|(_, r)| rmp_serde::from_slice::<JobResult>(&r.body).unwrap());
        results.filter(|r| r.order.number == number).collect()
    }

    fn order(&mut self, script: &str) -> OrderMessage {
        self.numbers += 1;
        let run = Runnable::Script { interpreter: None, content: Bytes::copy_from_slice(script.as_bytes()) };
        let args = RunScript { run, time_out_ms: 60_000, output_cap: 65_536 };
        let args: Bytes = rmp_serde::to_vec_named(&args).unwrap().into();
        let number = OrderNumber { term: 1, number: self.numbers };
        let tree = Tree::build(&tenant(), number, vec![Leaf { device: DEVICE, epoch: 1 }]);
        let now = self.parent.ambient.clock.wall();
        let payload = Payload {
            tenant: tenant(),
            number,
            job: JobId(Uuid::from_u128(50)),
            trace: TraceId(Uuid::from_u128(60)),
            verb: "run_script".into(),
            args_hash: Hash::of(&args),
            class: Class::Normal,
            issued_at: now,
            not_before: Millis(0),
            fetch_by: now.plus(3_600_000),
            run_ms_max: 60_000,
            policy_version: 1,
            root: tree.root(),
            leaf_count: 1,
            targets: vec![],
        };
        let payload = rmp_serde::to_vec_named(&payload).unwrap();
        let envelope = Envelope::sign(ORDER_PAYLOAD_TYPE, payload, &self.parent.signer);
        OrderMessage { envelope, args, proof: tree.prove(&[0]) }
    }
}

fn line_count(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[actix_rt::test]
async fn job_13_enr_7_an_agent_enrols_sends_its_inventory_and_runs_an_order_once() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let state = world.config().state_dir;
    let told: Started = serde_json::from_slice(&std::fs::read(state.join("node.json")).unwrap()).unwrap();
    assert_eq!((told.id, told.name.as_str()), (DEVICE, "pc-1"));
    let greeting = world.up().await;
    assert_eq!((greeting.node, greeting.attachment, greeting.contact), (DEVICE, 1, Contact::Persistent));

    let report: Report = world
        .until("inventory", |w| {
            let record = w.records.iter().find(|(lane, r)| (*lane, r.class) == (Lane::Inventory, class::INVENTORY))?;
            Some(rmp_serde::from_slice(&record.1.body).unwrap())
        })
        .await;
    assert_eq!((report.kind, report.order), (ReportKind::Full, None), "INV-1");

    let marks: PathBuf = world.home.path().join("marks");
    let script =
        format!("echo ran >> {}; printf '%s %s' \"$BRANCHLINE_DEVICE\" \"$BRANCHLINE_AGENT_PID\"", marks.display());
    let order = world.order(&script);
    world.say(Lane::Work, Message::Orders(vec![order.clone()]));
    let result = world.until("result", |w| w.results(1).first().cloned()).await;
    assert_eq!((result.end, result.exit_code, result.simulated), (End::Succeeded, Some(0), false));
    assert_eq!(result.stdout, format!("{DEVICE} 4242"));
    assert!(result.started_at.unwrap() <= result.ended_at);
    // A result that is soon there says that the order was taken; one that comes again is answered at once.
    let known = world.taken.len();
    world.say(Lane::Work, Message::Orders(vec![order.clone()]));
    world.until("acknowledgement", |w| (w.taken.len() > known).then_some(())).await;

    bounded("stop", agent.stop()).await;
    // Enrolled once; the order is known after a restart, and its unsettled result is not lost.
    let agent = world.agent().await;
    let greeting = world.up().await;
    assert_eq!((greeting.attachment, greeting.node), (2, DEVICE));
    let known = world.taken.len();
    world.say(Lane::Work, Message::Orders(vec![order]));
    world.until("acknowledgement after the restart", |w| (w.taken.len() > known).then_some(())).await;
    assert!(world.taken.iter().all(|number| *number == 1));
    assert_eq!(world.parent.enrolments.load(Ordering::SeqCst), 1);
    assert_eq!(line_count(&marks), 1, "it ran once");
    assert!(!agent.metrics().render().contains("branchline_restarts_total 1"), "no actor faulted");
    bounded("stop", agent.stop()).await;
    let counted = world.parent.metrics.render();
    assert!(counted.contains("branchline_protocol_errors_total 0"), "the agent keeps to the protocol: {counted}");
}

#[actix_rt::test]
async fn job_13_a_job_outlives_its_agent_and_is_reported_by_the_next_one() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    world.up().await;
    let (begun, go) = (world.home.path().join("begun"), world.home.path().join("go"));
    let script = format!("touch {}; while [ ! -e {} ]; do sleep 0.05; done; echo over", begun.display(), go.display());
    let order = world.order(&script);
    world.say(Lane::Work, Message::Orders(vec![order]));
    let begins = async {
        while !begun.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    bounded("begin", begins).await;
    bounded("stop", agent.stop()).await;
    let agent = world.agent().await;
    world.up().await;
    std::fs::write(&go, "").unwrap();
    let result = world.until("result", |w| w.results(1).first().cloned()).await;
    assert_eq!((result.end, &result.stdout[..]), (End::Succeeded, &b"over\n"[..]));
    bounded("stop", agent.stop()).await;
}

#[actix_rt::test]
async fn a_state_folder_in_use_and_a_damaged_bundle_are_told_with_their_exit_codes() {
    let world = World::new().await;
    let agent = world.agent().await;
    let process = AgentProcess { pid: 1, shim: vec!["/no/shim".into()] };
    let second = Agent::start(world.config(), Ambient::system(), host(), process.clone()).await;
    let fault = second.err().unwrap();
    assert_eq!((fault.code.as_str(), fault.exit_code), ("state_in_use", 5));
    bounded("stop", agent.stop()).await;
    std::fs::write(world.home.path().join("bundle"), "BRANCHLINE-BUNDLE-1\nAAAA\n").unwrap();
    let fault = Agent::start(world.config(), Ambient::system(), host(), process).await.err().unwrap();
    assert_eq!((fault.code.as_str(), fault.exit_code), ("bad_bundle", 2));
}

#[actix_rt::test]
async fn what_a_load_tests_agents_are_spared_they_do_not_do_and_no_other_agent_is_spared_it() {
    for (verification, journal) in [(false, false), (true, false), (false, true)] {
        let mut world = World::new().await;
        let agent = world.spared(Spared { verification, journal }).await;
        world.up().await;
        let mut order = world.order("true");
        order.envelope =
            Envelope::sign(ORDER_PAYLOAD_TYPE, order.envelope.payload.clone(), &Signer::from_seed(&[200; 32]));
        world.say(Lane::Work, Message::Orders(vec![order]));
        // Whose order a wrong signature is cannot be said, so that it ends nothing and is an alert.
        let answer = |w: &World| {
            let ended = w.results(1).first().map(|result| Some(result.end));
            ended.or_else(|| w.records.iter().any(|(_, r)| r.class == class::ALERT).then_some(None))
        };
        let ended = world.until("answer", answer).await;
        assert_eq!(ended, verification.then_some(End::Succeeded), "spared verification: {verification}");
        bounded("stop", agent.stop()).await;
        let kept = world.config().state_dir.join("agent.redb").exists();
        assert_eq!(kept, !journal, "spared the journal: {journal}");
        let agent = world.agent().await;
        // What it answered is known to a journal only.
        let attachment = world.up().await.attachment;
        assert_eq!(attachment, if journal { 1 } else { 2 }, "spared the journal: {journal}");
        bounded("stop", agent.stop()).await;
    }
}
