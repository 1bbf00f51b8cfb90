//! The door, the handshake and the slots together: what a child can do wrong before its session never costs a slot.

use super::*;
use crate::{
    config::LinkRate,
    downstream::{
        admission::{Admission, AdmissionConfig, Cap},
        gatekeeper::{Meters, SharedGauge},
    },
    identity::{Authority, Identity, KeyPair, Subject, child_config, parent_config, request, server_name},
    link::engine::{LinkCommand, LinkEnd, LinkEvent},
    metrics::Metrics,
    node::Ambient,
    supervise::{ChildSpec, Limit, PastIntensity, Supervisor, WorkerLimits, WorkerSpec},
    time::SystemClock,
};
use branchline_protocol::{
    hash::Hash,
    receipt::Receipt,
    record::Lane,
    time::Millis,
    wire::{Goodbye, Greeting, Resume},
};
use bytes::Bytes;
use std::sync::Mutex;
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_rustls::{TlsConnector, client};
use uuid::Uuid;

const NOW: Millis = Millis(1_790_000_000_000);
const PARENT: u128 = 100;
const HANDSHAKES: usize = 3;
const STRANGERS: usize = 8;
struct TestHost(Arc<ServerConfig>);

impl Host for TestHost {
    fn link_tls(&self, _: NodeId, _: &TenantId) -> Option<Arc<ServerConfig>> {
        Some(self.0.clone())
    }
    fn enrol(&self, _: BoxStream, _: Option<SocketAddr>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async {})
    }
    fn statement(&self, _: &TenantId) -> watch::Receiver<Option<Arc<Envelope>>> {
        watch::channel(None).1
    }
}

/// Keeps links, as every owner does: the newest of each node.
struct Owner {
    links: BTreeMap<NodeId, (AttachmentKey, LinkHandle)>,
    told: mpsc::UnboundedSender<String>,
}

impl Actor for Owner {
    type Context = Context<Self>;
}

impl Handler<FromChild> for Owner {
    type Result = ();
    fn handle(&mut self, said: FromChild, _: &mut Self::Context) {
        let text = match said {
            FromChild::Up { child, link } if self.links.get(&child.node).is_some_and(|(key, _)| *key > child.key) => {
                let _gone = link.ask(LinkCommand::Refuse(stale().into()));
                format!("late {}", child.session)
            }
            FromChild::Up { child, link } => {
                self.links.insert(child.node, (child.key, link));
                format!("up {}", child.session)
            }
            FromChild::Gone { child, end: LinkEnd::Closed(why) } => format!("gone {} {why:?}", child.session),
            FromChild::Gone { child, .. } => format!("gone {}", child.session),
            FromChild::Event { event: LinkEvent::Heard, .. } => return,
            FromChild::Event { child, event: LinkEvent::Message(m) } => {
                format!("{} message of {}: {}", child.session, m.bytes.len(), Hash::of(&m.bytes))
            }
            FromChild::Event { child, event } => format!("{} {event:?}", child.session),
            FromChild::Displaced { session, .. } => format!("displaced {session}"),
            FromChild::SlotKept { .. } | FromChild::GoesOff { .. } | FromChild::Stale { .. } => return,
        };
        let _ = self.told.send(text);
    }
}

struct World {
    tenant: TenantId,
    authority: Authority,
    time: NodeTime,
    reception: Arc<Reception>,
    gauge: SharedGauge,
    told: mpsc::UnboundedReceiver<String>,
    supervision: Supervision,
    metrics: Metrics,
}

type Linked = Framed<client::TlsStream<DuplexStream>, FrameCodec>;

impl World {
    async fn new(slots: i64, rate: LinkRate) -> World {
        let tenant: TenantId = "acme".parse().unwrap();
        let authority = Authority::create(&tenant, NOW).unwrap();
        let ambient = Ambient { clock: SystemClock::shared(), ..Ambient::system() };
        let time = NodeTime::new(ambient.clock.clone());
        time.learn(NOW);
        let roots = [authority.certificate().clone()];
        let own = identity(&authority, Role::Server, PARENT);
        let tls = parent_config(&own, &roots, Arc::new(time.clone())).unwrap();
        let metrics = Metrics::new();
        let supervision = Supervisor::start(ambient.clock.clone(), None);
        let (told, heard) = mpsc::unbounded_channel();
        let owner = Owner { links: BTreeMap::new(), told }.start().recipient();
        let config = AdmissionConfig::new(Cap::new(slots, false).unwrap());
        let gauge: SharedGauge = Arc::new(Mutex::new(Admission::new(config.clone()).gauge()));
        let gatekeeper: ChildAddr<Gatekeeper> = ChildAddr::new();
        let (at, to, shared, meters, clock) =
            (gatekeeper.clone(), owner.clone(), gauge.clone(), Meters::new(&metrics), time.clone());
        let mut recovering = false;
        let facts = watch::channel(Facts { open: true, ..Facts::default() }).1;
        let seen = facts.clone();
        let spec = ChildSpec::new("gatekeeper", move |guard| {
            let core = match std::mem::replace(&mut recovering, true) {
                false => Admission::new(config.clone()),
                true => Admission::recovering(config.clone(), clock.now()),
            };
            let (time, ambient, to, gauge) = (clock.clone(), ambient.clone(), to.clone(), shared.clone());
            let (meters, facts) = (meters.clone(), seen.clone());
            at.renew(run(guard, move |_, guard| {
                Gatekeeper::new(guard, core, time, ambient, to, facts, (gauge, meters))
            }));
            Ok(())
        });
        supervision.start_child(spec).await.unwrap();
        let limits = WorkerLimits { live_max: 1_000, intensity: Limit::default(), past: PastIntensity::Park };
        let needs = vec!["gatekeeper".to_string()];
        supervision.add_workers(WorkerSpec { kind: "session".into(), needs, limits }).await.unwrap();
        let reception = Arc::new(Reception {
            node: NodeId(Uuid::from_u128(PARENT)),
            store: 1,
            host: Arc::new(TestHost(tls)),
            facts,
            time: time.clone(),
            door: Door::new(rate, time.clone(), &metrics),
            gatekeeper,
            owner,
            supervision: supervision.clone(),
            counters: LinkCounters { protocol_errors: Counter::noop(), unknown: Counter::noop() },
            accepts: BTreeMap::new(),
            link_tls_failures: Counter::noop(),
            sessions: Arc::default(),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            partials: Arc::default(),
            enrolments: Arc::new(Semaphore::new(1)),
            notice_port: 0,
        });
        World { tenant, authority, time, reception, gauge, told: heard, supervision, metrics }
    }

    /// A connection; what the child has not read beyond so many bytes makes the parent wait.
    fn connect(&self, pipe: usize) -> DuplexStream {
        let (near, far) = tokio::io::duplex(pipe);
        actix_rt::spawn(self.reception.clone().serve(Box::new(far), None, None));
        near
    }

    /// A child up to the point where its greeting is sent.
    async fn greet(&self, device: u128, attachment: u64, pipe: usize) -> Linked {
        let mut stream = self.connect(pipe);
        stream.write_u8(Preface::Link.byte()).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), PREFACE_ACCEPTED);
        let own = identity(&self.authority, Role::Agent, device);
        let roots = [self.authority.certificate().clone()];
        let tls = child_config(Some(&own), &roots, Arc::new(self.time.clone())).unwrap();
        let name = server_name(NodeId(Uuid::from_u128(PARENT)), &self.tenant);
        let stream = TlsConnector::from(tls).connect(name, stream).await.unwrap();
        let mut framed = Framed::new(stream, FrameCodec);
        let receipt = Receipt {
            tenant: self.tenant.clone(),
            node: own.subject.node,
            key: own.key.public(),
            epoch: 1,
            attachment,
            parent: NodeId(Uuid::from_u128(PARENT)),
            heads: vec![],
            complete: true,
        };
        let greeting = Greeting {
            protocol: 1,
            build: "0".into(),
            tenant: self.tenant.clone(),
            node: own.subject.node,
            role: Role::Agent,
            epoch: 1,
            attachment,
            incarnation: 1,
            disk: 0,
            age: 0,
            contact: Contact::Persistent,
            depth_below: 0,
            stored_at: None,
            documents: vec![],
            term: 1,
            wake_port: 0,
            receipt: Some(receipt.seal(&own.key.signer())),
            capabilities: [].into(),
            next_poll_s: None,
        };
        framed.send(Frame::Greeting(Box::new(greeting))).await.unwrap();
        framed
    }

    /// The parent's answer to a greeting: `welcome`, or the refusal's code.
    async fn link(&self, device: u128, attachment: u64) -> (String, Linked) {
        let mut link = self.greet(device, attachment, 1 << 16).await;
        let answer = match link.next().await {
            Some(Ok(Some(Frame::Welcome(_)))) => "welcome".to_string(),
            Some(Ok(Some(Frame::Refused(refusal)))) => refusal.code,
            other => format!("{other:?}"),
        };
        (answer, link)
    }

    async fn hears(&mut self, wanted: &str) {
        let heard = timeout(Duration::from_secs(60), self.told.recv()).await;
        assert_eq!(heard.ok().flatten().as_deref(), Some(wanted));
    }

    fn used(&self) -> u16 {
        self.gauge.lock().unwrap().used
    }

    async fn used_becomes(&self, used: u16) {
        for _ in 0..6_000 {
            if self.used() == used {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} slots are used, not {used}", self.used());
    }
}

fn identity(authority: &Authority, role: Role, n: u128) -> Identity {
    let key = KeyPair::generate().unwrap();
    let node = NodeId(Uuid::from_u128(n));
    let subject = Subject { tenant: authority.tenant().clone(), role, node, epoch: 1, dns: vec![], ips: vec![] };
    let certificate = authority.issue(&request(&key, "host"), &subject, NOW, NOW.plus(86_400_000), n).unwrap();
    Identity::new(vec![certificate], key).unwrap()
}

#[actix_rt::test]
async fn adm_5_a_child_that_never_reads_its_welcome_holds_its_slot_for_10_s_at_most() {
    let world = World::new(300, LinkRate::default()).await;
    // The pipe takes less than a welcome, and nobody empties it any more.
    let silent = world.greet(7, 1, 64).await;
    world.used_becomes(1).await;
    world.used_becomes(0).await;
    drop(silent);
    let (answer, _link) = world.link(7, 2).await;
    assert_eq!((answer.as_str(), world.used()), ("welcome", 1), "the slot is there for the next");
}

#[actix_rt::test]
async fn adm_5_a_handshake_that_never_authenticates_ends_10_s_after_it_began() {
    let world = World::new(300, LinkRate::default()).await;
    tokio::time::pause();
    let from = timer_now();
    let mut stream = world.connect(1 << 16);
    tokio::time::sleep(Duration::from_secs(9)).await;
    stream.write_u8(Preface::Link.byte()).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), PREFACE_ACCEPTED);
    assert!(stream.read_u8().await.is_err(), "closed");
    let open = timer_now() - from;
    assert!((Duration::from_secs(10)..Duration::from_millis(10_100)).contains(&open), "{open:?}");
    assert_eq!(world.used(), 0);
}

#[actix_rt::test]
async fn adm_5_the_newest_attachment_takes_over_from_a_half_open_link_and_keeps_the_slot() {
    let mut world = World::new(300, LinkRate::default()).await;
    let (answer, half_open) = world.link(7, 5).await;
    assert_eq!(answer, "welcome");
    world.hears("up 1").await;
    let (answer, newest) = world.link(7, 6).await;
    assert_eq!(answer, "welcome");
    // The old session is told to go; its end, which comes after the new one is up, frees nothing.
    let mut heard = Vec::new();
    while heard.len() < 2 {
        heard.push(timeout(Duration::from_secs(60), world.told.recv()).await.unwrap().unwrap());
    }
    heard.sort();
    assert_eq!(heard, ["gone 1 Replaced", "up 2"]);
    let (answer, _) = world.link(7, 6).await;
    assert_eq!(answer, "stale_attachment", "as new is not newer");
    let (answer, _) = world.link(7, 5).await;
    assert_eq!(answer, "stale_attachment");
    assert_eq!(world.used(), 1);
    drop(half_open);
    drop(newest);
    world.hears("gone 2").await;
    world.used_becomes(0).await;
}

#[actix_rt::test]
async fn adm_5_a_link_overtaken_before_its_session_is_up_is_refused_and_its_end_frees_nothing() {
    let mut world = World::new(300, LinkRate::default()).await;
    // It is admitted and hangs in its welcome.
    let mut slow = world.greet(7, 5, 64).await;
    world.used_becomes(1).await;
    let (answer, _newest) = world.link(7, 6).await;
    assert_eq!(answer, "welcome");
    world.hears("up 2").await;
    assert!(matches!(slow.next().await, Some(Ok(Some(Frame::Welcome(_))))), "now it reads");
    let told = slow.next().await;
    assert!(matches!(&told, Some(Ok(Some(Frame::Refused(r)))) if r.code == "replaced"), "{told:?}");
    world.hears("late 1").await;
    world.hears("gone 1").await;
    assert_eq!(world.used(), 1);
}

#[actix_rt::test]
async fn adm_2_after_a_rebuilt_gatekeeper_there_are_never_more_than_the_slots() {
    let mut world = World::new(2, LinkRate::default()).await;
    let (first, one) = world.link(1, 1).await;
    let (second, _two) = world.link(2, 1).await;
    assert_eq!((first.as_str(), second.as_str(), world.used()), ("welcome", "welcome", 2));
    world.hears("up 1").await;
    world.hears("up 2").await;
    tokio::time::pause();
    world.reception.gatekeeper.living().await.send(Break).await.unwrap_err();
    // Every session of the node closes in good order before the new gatekeeper lives.
    let mut gone = [world.told.recv().await.unwrap(), world.told.recv().await.unwrap()];
    gone.sort();
    assert_eq!(gone, ["gone 1 Stopping", "gone 2 Stopping"]);
    drop(one);
    let from = timer_now();
    let (answer, _) = world.link(3, 1).await;
    assert_eq!(answer, "busy", "for 5 s a stranger takes nobody's slot");
    let (answer, _) = world.link(1, 2).await;
    assert_eq!(answer, "busy", "a greeting is a stranger too: its session is gone");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(timer_now() - from >= Duration::from_secs(5));
    let mut links = Vec::new();
    for device in 1..=4 {
        let (answer, link) = world.link(device, 3).await;
        assert_eq!(answer, "welcome");
        links.push(link);
        assert!(world.used() <= 2);
    }
    assert_eq!(world.used(), 2);
    let snapshot = world.supervision.snapshot().await.unwrap();
    assert_eq!(snapshot.child("gatekeeper").unwrap().restarts, 1);
}

#[actix_rt::test]
async fn a_message_that_a_lost_link_cut_off_is_gone_on_with_on_the_next_link_of_its_child_alone() {
    let mut world = World::new(300, LinkRate::default()).await;
    let message = Bytes::from((0..200_000u32).map(|n| n.wrapping_mul(n) as u8).collect::<Vec<_>>());
    let piece = |offset: usize, upto: usize| {
        let (total, bytes) = (message.len() as u32, message.slice(offset..upto));
        Frame::Data { lane: Lane::Inventory, message: 1, offset: offset as u32, total, bytes }
    };
    let (_, mut first) = world.link(7, 1).await;
    first.send(piece(0, 60_000)).await.unwrap();
    first.send(piece(60_000, 120_000)).await.unwrap();
    first.send(Frame::Heartbeat).await.unwrap();
    while !matches!(first.next().await, Some(Ok(Some(Frame::Alive(_))))) {}
    drop(first);
    world.hears("up 1").await;
    world.hears("gone 1").await;

    let mut other = world.greet(8, 1, 1 << 16).await;
    assert!(matches!(other.next().await, Some(Ok(Some(Frame::Welcome(_))))), "nothing is held of another child");
    world.hears("up 2").await;
    let mut second = world.greet(7, 2, 1 << 16).await;
    let Some(Ok(Some(Frame::Resume(told)))) = second.next().await else { panic!("what is held") };
    let hash = Hash::of(&message[..120_000]);
    assert_eq!(told, [Resume { lane: Lane::Inventory, total: 200_000, held: 120_000, hash }]);
    assert!(matches!(second.next().await, Some(Ok(Some(Frame::Welcome(_))))));
    world.hears("up 3").await;
    second.send(piece(120_000, 180_000)).await.unwrap();
    second.send(piece(180_000, 200_000)).await.unwrap();
    world.hears(&format!("3 message of 200000: {}", Hash::of(&message))).await;
}

#[actix_rt::test]
async fn adm_5_strangers_that_say_nothing_keep_nobody_out_up_to_their_bound() {
    let world = World::new(300, LinkRate::default()).await;
    let silent: Vec<_> = (1..STRANGERS).map(|_| world.connect(1 << 16)).collect();
    let (answer, _link) = world.link(7, 1).await;
    assert_eq!(answer, "welcome", "the last place is enough");
    let mut last = world.connect(1 << 16);
    actix_rt::task::yield_now().await;
    let mut past = world.connect(1 << 16);
    assert!(past.read_u8().await.is_err(), "one past the bound is closed");
    last.write_u8(Preface::Link.byte()).await.unwrap();
    assert_eq!(last.read_u8().await.unwrap(), PREFACE_ACCEPTED);
    drop(silent);
}

#[actix_rt::test]
async fn adm_5_with_all_handshakes_under_way_the_next_child_gets_a_clear_answer() {
    let world = World::new(300, LinkRate::default()).await;
    let knock = async || {
        let mut stream = world.connect(1 << 16);
        stream.write_u8(Preface::Link.byte()).await.unwrap();
        let answer = stream.read_u8().await.unwrap();
        (answer, stream)
    };
    let mut under_way = Vec::new();
    for _ in 0..HANDSHAKES {
        let (answer, stream) = knock().await;
        assert_eq!(answer, PREFACE_ACCEPTED);
        under_way.push(stream);
    }
    let (answer, mut stream) = knock().await;
    assert_eq!((answer, stream.read_u32().await.unwrap()), (PREFACE_BUSY, 1_000));
    under_way.pop();
    let again = async {
        while knock().await.0 != PREFACE_ACCEPTED {
            actix_rt::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), again).await.expect("a place that fell free is there for the next");
}

#[actix_rt::test]
async fn adm_4_a_silent_childs_slot_is_free_90_s_after_its_last_frame() {
    let mut world = World::new(300, LinkRate::default()).await;
    let (_, mut link) = world.link(7, 1).await;
    world.hears("up 1").await;
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(50)).await;
    link.send(Frame::Heartbeat).await.unwrap();
    assert!(matches!(link.next().await, Some(Ok(Some(Frame::Alive(_))))));
    let heard = timer_now();
    while world.used() == 1 {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let silent = timer_now() - heard;
    assert!((Duration::from_secs(90)..Duration::from_secs(92)).contains(&silent), "{silent:?}");
    world.hears("gone 1").await;
}

#[actix_rt::test]
async fn rly_12_a_stop_tells_every_child_and_waits_for_none_that_does_not_listen() {
    let mut world = World::new(300, LinkRate::default()).await;
    let (_, mut good) = world.link(1, 1).await;
    world.hears("up 1").await;
    let mut deaf = world.greet(7, 1, 64).await;
    assert!(matches!(deaf.next().await, Some(Ok(Some(Frame::Welcome(_))))));
    world.hears("up 2").await;
    for _ in 0..10 {
        // The answers fill its pipe, and nobody empties it.
        deaf.send(Frame::Heartbeat).await.unwrap();
    }
    tokio::time::pause();
    let from = timer_now();
    world.supervision.stop(Duration::from_secs(10)).await.unwrap();
    let took = timer_now() - from;
    assert!(took <= Duration::from_millis(10_100), "{took:?}");
    assert!(matches!(good.next().await, Some(Ok(Some(Frame::Goodbye(Goodbye::Stopping))))));
    let mut gone = [world.told.recv().await.unwrap(), world.told.recv().await.unwrap()];
    gone.sort();
    assert_eq!(gone, ["gone 1 Stopping", "gone 2"]);
}

/// Makes the gatekeeper panic.
#[derive(Message)]
#[rtype(result = "()")]
struct Break;

impl Handler<Break> for Gatekeeper {
    type Result = ();
    fn handle(&mut self, _: Break, _: &mut Self::Context) {
        panic!("as the test asked");
    }
}

#[actix_rt::test]
async fn rly_11_above_the_rate_a_child_is_turned_away_before_any_handshake_and_told_when_to_come() {
    let world = World::new(300, LinkRate { per_second: 3, burst: 3 }).await;
    tokio::time::pause();
    let knock = async |preface: Preface| {
        let mut stream = world.connect(1 << 16);
        stream.write_u8(preface.byte()).await.unwrap();
        let mut answer = vec![stream.read_u8().await.unwrap()];
        if answer == [PREFACE_BUSY] {
            stream.read_to_end(&mut answer).await.unwrap();
        }
        (answer[0], answer.get(1..5).map(|ms| u32::from_be_bytes(ms.try_into().unwrap())))
    };
    assert_eq!(knock(Preface::Link).await, (PREFACE_ACCEPTED, None));
    assert_eq!(knock(Preface::Link).await, (PREFACE_ACCEPTED, None));
    assert_eq!(knock(Preface::Link).await, (PREFACE_BUSY, Some(1_000)));
    assert_eq!(knock(Preface::Link).await, (PREFACE_BUSY, Some(1_500)), "its own instant");
    assert_eq!(knock(Preface::Uplink).await, (PREFACE_ACCEPTED, None), "the relays' third");
    assert_eq!(knock(Preface::Enrol).await, (PREFACE_ACCEPTED, None), "not by this rate");
    let page = world.metrics.render();
    assert!(page.lines().any(|line| line == "branchline_links_turned_away_total 2"), "{page}");
}
