//! The device's UDP port: hears wakes and has the keeper poll for those that hold (ADM-15, ADM-16). It answers nothing.

use super::{
    farewell::Farewell,
    keeper::{Happened, Keeper},
    root::Parts,
};
use crate::decide::{Event, Heard, WakeKeys, Wakeful};
use actix::prelude::*;
use branchline_node::supervise::{Drain, Exit, ExitGuard};
use branchline_protocol::datagram::{DATAGRAM_BYTES_MAX, Ignored};
use metrics::Counter;
use std::{collections::BTreeMap, io, net::IpAddr, sync::Arc, time::Duration};
use tokio::{net::UdpSocket, sync::watch};

/// Datagrams read before others on the arbiter have their turn.
const AT_ONCE: usize = 64;
/// What the doorbell works with; outlives it.
pub(crate) struct Door {
    /// Where it hears; `None`: nowhere.
    pub socket: Option<std::net::UdpSocket>,
    /// The address it is bound to, or sends from.
    pub own: IpAddr,
    /// The keys that are good.
    pub keys: watch::Sender<WakeKeys>,
    /// Whom to tell at the end.
    pub farewell: watch::Sender<Option<Farewell>>,
}

/// The actor.
pub(crate) struct Doorbell {
    guard: ExitGuard,
    parts: Arc<Parts>,
    keeper: Addr<Keeper>,
}

impl Doorbell {
    pub(crate) fn new(guard: ExitGuard, parts: Arc<Parts>, keeper: Addr<Keeper>) -> Doorbell {
        Doorbell { guard, parts, keeper }
    }
}

struct Results {
    poll: Counter,
    held_back: Counter,
    ignored: BTreeMap<Ignored, Counter>,
}

impl Results {
    fn new(parts: &Parts) -> Results {
        let result = |word| parts.metrics.counter("branchline_wakes_total", &[("result", word)]);
        Results {
            poll: result("poll"),
            held_back: result("held_back"),
            ignored: Ignored::ALL.into_iter().map(|why| (why, result(why.as_str()))).collect(),
        }
    }

    fn count(&self, heard: Heard) {
        match heard {
            Heard::Poll => self.poll.increment(1),
            Heard::HeldBack => self.held_back.increment(1),
            Heard::Ignored(why) => self.ignored.get(&why).iter().for_each(|counter| counter.increment(1)),
        }
    }
}

/// Hears wakes for ever.
async fn hear(socket: std::net::UdpSocket, parts: Arc<Parts>, keeper: Addr<Keeper>) -> io::Result<()> {
    let socket = UdpSocket::from_std(socket)?;
    let results = Results::new(&parts);
    let mut wakeful = Wakeful::new(parts.me.node);
    let mut keys = parts.wake.keys.subscribe();
    wakeful.adopt(parts.time.now().mono, keys.borrow_and_update().clone());
    let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
    loop {
        let wait = wakeful.next_deadline().map(|due| due.since(parts.time.now().mono));
        let due = async move {
            match wait {
                Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                None => std::future::pending().await,
            }
        };
        let mut polls = false;
        tokio::select! {
            // New keys first: what was sent under them is judged by them.
            biased;
            changed = keys.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                wakeful.adopt(parts.time.now().mono, keys.borrow_and_update().clone());
            }
            () = due => polls = wakeful.tick(parts.time.now().mono),
            readable = socket.readable() => {
                readable?;
                for _ in 0..AT_ONCE {
                    let bytes = match socket.try_recv_from(&mut buffer) {
                        Ok((length, _)) => &buffer[..length],
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => {
                            tracing::debug!(%error, "hearing wakes");
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            break;
                        }
                    };
                    let heard = wakeful.hear(parts.time.now(), bytes);
                    results.count(heard);
                    polls |= heard == Heard::Poll;
                }
            }
        }
        if polls {
            tracing::info!(node = %parts.me.node, "woken");
            // Its loss would let a device sleep on. At most one in five seconds, so the mailbox's bound may be passed over.
            keeper.do_send(Happened(Event::Woken(wakeful.heard())));
        }
        tokio::task::yield_now().await;
    }
}

impl Actor for Doorbell {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let socket = match self.parts.wake.socket.as_ref().map(std::net::UdpSocket::try_clone) {
            Some(Ok(socket)) => socket,
            Some(Err(error)) => {
                self.guard.set(Exit::failed(error));
                return ctx.stop();
            }
            None => return,
        };
        let hears = hear(socket, self.parts.clone(), self.keeper.clone());
        ctx.spawn(hears.into_actor(self).map(|ended, actor, ctx| {
            if let Err(error) = ended {
                actor.guard.set(Exit::failed(error));
            }
            ctx.stop();
        }));
    }
}

impl Handler<Drain> for Doorbell {
    type Result = ();
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.guard.set(Exit::Stopped);
        ctx.stop();
    }
}
