//! The actor with the socket. Its core are [`Waker`] and [`Notices`]; the keyring outlives it.

use super::{Keyring, Notices, Waker};
use crate::{
    downstream::FromChild,
    metrics::Metrics,
    supervise::{Drain, Exit, ExitGuard},
    time::NodeTime,
};
use actix::prelude::*;
use branchline_protocol::{
    datagram::{DATAGRAM_BYTES_MAX, Datagram, Ignored, Kind},
    id::NodeId,
    time::Mono,
};
use metrics::Counter;
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::net::UdpSocket;

/// Datagrams read before others on the arbiter have their turn.
const AT_ONCE: usize = 64;
/// Devices that may be asked for and not looked at yet; one more waits for its poll.
const MAILBOX: usize = 16_384;

/// Something waits for a device that has no link.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Want(pub NodeId);

/// What every generation of a beacon works with.
#[derive(Clone)]
pub struct BeaconSetup {
    /// Node time.
    pub time: NodeTime,
    /// What is known of devices.
    pub keyring: Keyring,
    /// Counts the wakes of this node; starts above every number of an earlier process.
    pub counter: Arc<AtomicU64>,
    sent: Counter,
    unsent: Counter,
    unwanted: Counter,
    taken: Counter,
    ignored: BTreeMap<Ignored, Counter>,
}

impl BeaconSetup {
    /// With counters in a node's registry. `generation` is higher at each start of the node.
    pub fn new(time: NodeTime, keyring: Keyring, generation: u32, metrics: &Metrics) -> BeaconSetup {
        let result = |word| metrics.counter("branchline_notices_total", &[("result", word)]);
        BeaconSetup {
            time,
            keyring,
            counter: Arc::new(AtomicU64::new(u64::from(generation) << 32)),
            sent: metrics.counter("branchline_wakes_sent_total", &[]),
            unsent: metrics.counter("branchline_wakes_unsent_total", &[("reason", "socket")]),
            unwanted: metrics.counter("branchline_wakes_unsent_total", &[("reason", "too_many")]),
            taken: result("taken"),
            ignored: Ignored::ALL.into_iter().map(|why| (why, result(why.as_str()))).collect(),
        }
    }
}

/// See the module.
pub struct Beacon {
    guard: ExitGuard,
    bound: Option<std::net::UdpSocket>,
    socket: Option<Arc<UdpSocket>>,
    setup: BeaconSetup,
    owner: Recipient<FromChild>,
    waker: Waker,
    timer: Option<(Mono, SpawnHandle)>,
}

impl Beacon {
    /// On a bound socket that does not block. `owner` hears who goes off.
    pub fn new(
        guard: ExitGuard,
        bound: std::net::UdpSocket,
        setup: BeaconSetup,
        owner: Recipient<FromChild>,
    ) -> Beacon {
        Beacon { guard, bound: Some(bound), socket: None, setup, owner, waker: Waker::default(), timer: None }
    }

    /// Sends the copies that are due, to devices that sleep and told where they hear.
    fn send_due(&mut self, ctx: &mut Context<Self>) {
        let now = self.setup.time.now();
        let keyring = self.setup.keyring.clone();
        let wakeable = |node| keyring.get(node).filter(|known| known.sleeps && known.address.is_some());
        for (device, key) in self.waker.due(now.mono, |node| wakeable(node).map(|known| known.key)) {
            let Some(known) = wakeable(device) else { continue };
            let (Some(address), Some(socket)) = (known.address, &self.socket) else { continue };
            let counter = self.setup.counter.fetch_add(1, Ordering::Relaxed) + 1;
            let wake = Datagram { kind: Kind::Wake, device, key, counter, at: now.shown() };
            // One that cannot be sent is like one that is lost.
            match socket.try_send_to(&wake.seal(&known.keys.wake), address) {
                Ok(_) => self.setup.sent.increment(1),
                Err(error) => {
                    tracing::debug!(%device, %address, %error, "a wake was not sent");
                    self.setup.unsent.increment(1);
                }
            }
        }
        self.arm(ctx);
    }

    fn arm(&mut self, ctx: &mut Context<Self>) {
        let due = self.waker.next_deadline();
        if due == self.timer.map(|(at, _)| at) {
            return;
        }
        if let Some((_, timer)) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if let Some(due) = due {
            let wait = due.since(self.setup.time.now().mono).max(1);
            let timer = ctx.run_later(Duration::from_millis(wait), |actor, ctx| {
                actor.timer = None;
                actor.send_due(ctx);
            });
            self.timer = Some((due, timer));
        }
    }
}

/// Hears notices for ever. Whatever comes, nothing goes back.
async fn hear(socket: Arc<UdpSocket>, setup: BeaconSetup, owner: Recipient<FromChild>) -> io::Result<()> {
    let mut notices = Notices::default();
    let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
    loop {
        socket.readable().await?;
        for _ in 0..AT_ONCE {
            let bytes = match socket.try_recv_from(&mut buffer) {
                Ok((length, _)) => &buffer[..length],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // The system's word on something sent earlier, or short of memory: the next one may be good.
                    tracing::debug!(%error, "hearing notices");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    break;
                }
            };
            match notices.hear(setup.time.now(), bytes, |node| setup.keyring.get(node)) {
                Ok((tenant, node, key)) => {
                    setup.taken.increment(1);
                    tracing::info!(%node, attachment = key.attachment, "it says that it goes off");
                    // Full: the link's own end, or its silence, says the same later.
                    let _ = owner.try_send(FromChild::GoesOff { tenant, node, key });
                }
                Err(why) => setup.ignored.get(&why).iter().for_each(|counter| counter.increment(1)),
            }
        }
        tokio::task::yield_now().await;
    }
}

impl Actor for Beacon {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let socket = self.bound.take().map(UdpSocket::from_std);
        let socket = match socket {
            Some(Ok(socket)) => Arc::new(socket),
            Some(Err(error)) => {
                self.guard.set(Exit::failed(error));
                return ctx.stop();
            }
            None => return,
        };
        self.socket = Some(socket.clone());
        let hears = hear(socket, self.setup.clone(), self.owner.clone());
        ctx.spawn(hears.into_actor(self).map(|ended, actor, ctx| {
            if let Err(error) = ended {
                actor.guard.set(Exit::failed(error));
            }
            ctx.stop();
        }));
    }
}

impl Handler<Want> for Beacon {
    type Result = ();
    fn handle(&mut self, Want(node): Want, ctx: &mut Self::Context) {
        let known = self.setup.keyring.get(node);
        let Some(known) = known.filter(|known| known.sleeps && known.address.is_some()) else { return };
        if !self.waker.want(self.setup.time.now().mono, node, known.key) {
            self.setup.unwanted.increment(1);
        }
        self.send_due(ctx);
    }
}

impl Handler<Drain> for Beacon {
    type Result = ();
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.guard.set(Exit::Stopped);
        ctx.stop();
    }
}
