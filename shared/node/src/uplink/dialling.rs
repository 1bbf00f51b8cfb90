//! The way to a parent and the life of a link there: the loop inside the uplink's actor. It dials by its [`Rhythm`], whom
//! its [`Path`] says, and moves a held link to a better way.
//!
//! ```text
//!   wait ──► dial each way in turn ──► greet ──► link ──────────────► ended ──► wait
//!                                        ▲        └─ probe succeeded ─┐
//!                                        └────────── goodbye: moving ◄┘
//! ```
//!
//! A move opens the new connection first, as far as the parent's identity. Then the old link says goodbye and the new one
//! greets, with an attachment of its own: what was under way is offered again there, as after any other loss.

use super::{
    actor::{Parts, Pokes, ToOwner, UplinkConfig, UplinkEvent},
    board::State,
    network::Network,
    path::{Path, Way},
    rhythm::Rhythm,
};
use crate::{
    identity::link_keys,
    link::{
        LinkHandle,
        codec::FrameCodec,
        dial::{DialFault, Route, parent_name},
        engine::{self, LinkCommand, LinkEnd, Side},
        lanes::Lanes,
    },
};
use branchline_protocol::{
    refusal::Refusal,
    time::Mono,
    wire::{Frame, Goodbye, HANDSHAKE_S, Lease, Preface, Resume, Welcome},
};
use futures_util::{FutureExt, SinkExt, StreamExt};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use tokio_rustls::client::TlsStream;
use tokio_util::codec::Framed;

/// Another list is followed within so long: a relay's at once, those of devices spread, for they all hear of it together.
const FOLLOW_RELAY_MS: u64 = 2_000;
const FOLLOW_DEVICE_MS: u64 = 60_000;
/// A link that is left has so long for its goodbye: the parent waits for the greeting meanwhile.
const GOODBYE: Duration = Duration::from_secs(2);
/// A gateway's "come later".
const GATEWAY_BUSY: &str = "gateway_busy";
/// What a parent says no by when another parent may say yes.
const ITS_OWN_REASONS: [&str; 3] = ["loop", "too_deep", GATEWAY_BUSY];

enum Ended {
    /// A link was up and ended.
    Link {
        end: LinkEnd,
        /// With it the link was a poll.
        lease: Option<Lease>,
        /// Whether its slot was lost while it was up.
        displaced: bool,
        /// Whether the poll's bounds were reached.
        more: bool,
    },
    /// A link was up and is given up for a better way, which is open.
    Moved(Box<(Way, Secured)>),
    /// A link was up and is lost because a load test said so.
    Dropped,
    /// No link came up on any route.
    Failed(String, Option<Refusal>),
}

/// Dials, and holds links, until it is told to stop.
pub(super) async fn for_ever(
    parts: Parts,
    mut config: watch::Receiver<UplinkConfig>,
    pokes: Arc<Pokes>,
    mut stop: watch::Receiver<bool>,
) {
    let mut rhythm = Rhythm::new(parts.time.now());
    let mut network = Network::default();
    let mut path = Path::new(config.borrow().node);
    let mut open = None;
    loop {
        let hosts: Vec<String> = config.borrow().upstreams.iter().flat_map(|up| up.direct.clone()).collect();
        loop {
            let wait = rhythm.due().since(parts.ambient.clock.mono());
            if wait == 0 || open.is_some() {
                break;
            }
            tokio::select! {
                _ = tokio::time::sleep(Duration::from_millis(wait)) => {}
                poke = pokes.next() => {
                    rhythm.poke(parts.time.now(), poke, parts.ambient.random.next_u64());
                }
                () = pokes.lose.notified() => rhythm.hold(),
                () = pokes.dial.notified() => rhythm.dial(parts.time.now()),
                () = network.came(&hosts), if rhythm.waits_for_network() => {
                    tracing::info!("a network has come");
                    rhythm.network_came(parts.time.now(), parts.ambient.random.next_u64());
                }
                _ = stop.wait_for(|s| *s) => return,
            }
        }
        let current = config.borrow_and_update().clone();
        adopt(&parts, &mut path, &current);
        let ended = tokio::select! {
            ended = attempt(&parts, current, &mut config, &mut rhythm, &mut path, open.take(), (&pokes, stop.clone())) => ended,
            _ = stop_while_dialling(stop.clone()) => return,
        };
        let mut broke = false;
        let (now, chance) = (parts.time.now(), parts.ambient.random.next_u64());
        let (state, why, refusal) = match ended {
            Ended::Link { end, lease, displaced, more } => {
                let state = match (&end, lease) {
                    (LinkEnd::Goodbye(Goodbye::Done), Some(lease)) => {
                        rhythm.polled(now, lease, more, chance);
                        State::BetweenPolls
                    }
                    // The parent closes when a displaced child has said that it is done, or a poll is over its bounds.
                    (LinkEnd::Lost(_), Some(lease)) if displaced || more => {
                        rhythm.polled(now, lease, more, chance);
                        State::BetweenPolls
                    }
                    (LinkEnd::Refused(refusal), _) => {
                        rhythm.refused(now, refusal, chance);
                        State::Refused
                    }
                    (LinkEnd::Goodbye(Goodbye::Replaced), _) => {
                        rhythm.failed(now, None, chance);
                        State::Refused
                    }
                    _ => {
                        broke = true;
                        rhythm.lost(now, chance);
                        State::Lost
                    }
                };
                let refusal = if let LinkEnd::Refused(r) = &end { Some(r.clone()) } else { None };
                (state, format!("{end:?}"), refusal)
            }
            Ended::Dropped => {
                broke = true;
                rhythm.hold();
                (State::Lost, "lost for a load test".into(), None)
            }
            Ended::Moved(better) => {
                parts.board.moves();
                let why = format!("moving to {:?}", better.0.route);
                open = Some(*better);
                (State::Lost, why, None)
            }
            Ended::Failed(why, refusal) => {
                let state = match &refusal {
                    Some(refusal) => {
                        rhythm.refused(now, refusal, chance);
                        State::Refused
                    }
                    None => {
                        rhythm.failed(now, None, chance);
                        State::NoRoute
                    }
                };
                (state, why, refusal)
            }
        };
        if broke {
            path.broke()
        } else {
            path.down()
        }
        parts.board.down(state, &why);
        // What was said before the loss is no reason to hurry after it: the owner pokes anew when it hears of it.
        while pokes.next().now_or_never().is_some() {}
        while pokes.dial.notified().now_or_never().is_some() {}
        let due = if open.is_some() { now.mono } else { rhythm.due() };
        let down = UplinkEvent::Down { why, refusal, due };
        if parts.owner.send(down).await.is_err() || *stop.borrow() {
            return;
        }
    }
}

fn adopt(parts: &Parts, path: &mut Path, config: &UplinkConfig) {
    let relay = config.preface == Preface::Uplink;
    let spread_ms = if relay { FOLLOW_RELAY_MS } else { FOLLOW_DEVICE_MS };
    let (now, chance) = (parts.time.now(), parts.ambient.random.next_u64());
    let spread_ms = spread_ms.min(config.probe_ms);
    path.configure(now, &config.upstreams, config.reach, config.probe_ms, spread_ms, chance);
}

/// While a link is up, stopping goes through the link's goodbye; only a dial under way is cut.
async fn stop_while_dialling(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|s| *s).await;
    // The link, if there is one, says goodbye within this time; a dial is cut after it.
    tokio::time::sleep(Duration::from_secs(2)).await;
}

async fn attempt(
    parts: &Parts,
    current: UplinkConfig,
    config: &mut watch::Receiver<UplinkConfig>,
    rhythm: &mut Rhythm,
    path: &mut Path,
    open: Option<(Way, Secured)>,
    ends: (&Pokes, watch::Receiver<bool>),
) -> Ended {
    let (mut faults, mut refusal) = (Vec::new(), None);
    let first = open.into_iter().map(|(way, stream)| (way, Some(stream)));
    let all: Vec<_> = first.chain(path.ways().iter().map(|way| (way.clone(), None))).collect();
    for (way, stream) in all {
        let moving = stream.is_some();
        let secured = match stream {
            Some(stream) => Ok(stream),
            None => secure(parts, &current, &way).await,
        };
        let greeted = match secured {
            Ok(stream) => greet(parts, &way, stream).await,
            Err(fault) => Err(fault),
        };
        match greeted {
            Ok(welcomed) => return hold(parts, config, rhythm, path, way, welcomed, ends).await,
            Err(Greeted::Fault { why, nobody }) => {
                faults.push(why);
                if nobody && path.waits_for(&way) {
                    break;
                }
            }
            Err(Greeted::Refused(no)) => {
                let its_own = ITS_OWN_REASONS.contains(&no.code.as_str());
                if its_own {
                    path.refused(parts.time.now(), &way);
                }
                // A link was given up for this one: whatever the reason, the way it was on is likely to be open.
                if no.is_stale_attachment() || !(its_own || moving) {
                    return Ended::Failed(no.to_string(), Some(no));
                }
                refusal.get_or_insert(no);
            }
        }
    }
    if let Some(refusal) = refusal {
        return Ended::Failed(refusal.to_string(), Some(refusal));
    }
    if faults.is_empty() {
        faults.push("no upstream may be dialled".into());
    }
    Ended::Failed(format!("no_route: {}", faults.join("; ")), None)
}

/// A welcomed link, to its end.
async fn hold(
    parts: &Parts,
    config: &mut watch::Receiver<UplinkConfig>,
    rhythm: &mut Rhythm,
    path: &mut Path,
    way: Way,
    (framed, welcome, resume, peer): Welcomed,
    (pokes, mut stop): (&Pokes, watch::Receiver<bool>),
) -> Ended {
    rhythm.welcomed(welcome.reconnect_spread_ms);
    path.up(parts.time.now(), &way, welcome.lease.is_none(), parts.ambient.random.next_u64());
    parts.board.up(&way, welcome.lease.is_some());
    let (link, commands) = LinkHandle::new();
    // Weak, so that the owner's dropping of its handle still ends the link.
    let farewell = link.weak();
    let up = UplinkEvent::Up { welcome: Box::new(welcome.clone()), route: way.route, peer, link };
    if parts.owner.send(up).await.is_err() {
        return Ended::Link { end: LinkEnd::Orphaned, lease: welcome.lease, displaced: false, more: false };
    }
    let mut sink = ToOwner { owner: parts.owner.clone(), lease: None, more: false, spread_ms: None };
    let mut lanes = Lanes::default();
    lanes.resume(resume);
    let (end, better) = {
        let run = engine::run_on(&mut lanes, framed, commands, Side::Child, parts.counters.clone(), &mut sink);
        let mut run = std::pin::pin!(run);
        tokio::select! {
            end = &mut run => (end, None),
            () = pokes.lose.notified() => return Ended::Dropped,
            _ = stop.wait_for(|s| *s) => {
                farewell.ask(LinkCommand::Goodbye(Goodbye::Stopping));
                (run.await, None)
            }
            better = find_better(parts, config, path) => {
                farewell.ask(LinkCommand::Goodbye(Goodbye::Moving));
                let end = timeout(GOODBYE, run).await;
                (end.unwrap_or(LinkEnd::Closed(Goodbye::Moving)), Some(better))
            }
        }
    };
    if let Some(ms) = sink.spread_ms {
        rhythm.spread(ms);
    }
    if let Some(better) = better {
        return Ended::Moved(Box::new(better));
    }
    let displaced = sink.lease.is_some();
    Ended::Link { end, lease: sink.lease.or(welcome.lease), displaced, more: sink.more }
}

/// Returns when a better way than the held link's is open.
async fn find_better(parts: &Parts, config: &mut watch::Receiver<UplinkConfig>, path: &mut Path) -> (Way, Secured) {
    loop {
        tokio::select! {
            changed = config.changed() => {
                if changed.is_err() {
                    return std::future::pending().await;
                }
                let current = config.borrow_and_update().clone();
                adopt(parts, path, &current);
            }
            () = until(parts, path.next_probe()) => {
                let current = config.borrow().clone();
                for way in path.better(parts.time.now()) {
                    match secure(parts, &current, &way).await {
                        Ok(stream) => return (way, stream),
                        Err(Greeted::Fault { why, .. }) => tracing::debug!(why, "not yet a better way"),
                        Err(Greeted::Refused(no)) => tracing::debug!(%no, "not yet a better way"),
                    }
                }
                path.probed_in_vain(parts.time.now(), parts.ambient.random.next_u64());
            }
        }
    }
}

/// Returns at an instant of the node's clock; never where there is none.
async fn until(parts: &Parts, at: Option<Mono>) {
    let Some(at) = at else { return std::future::pending().await };
    loop {
        match at.since(parts.ambient.clock.mono()) {
            0 => return,
            wait => tokio::time::sleep(Duration::from_millis(wait)).await,
        }
    }
}

enum Greeted {
    Fault {
        why: String,
        /// Its machine answered that nobody listens.
        nobody: bool,
    },
    Refused(Refusal),
}

/// A connection, and the parent's own address: none behind a gateway.
type Secured = (TlsStream<crate::link::BoxStream>, Option<SocketAddr>);
type Link = Framed<Box<TlsStream<crate::link::BoxStream>>, FrameCodec>;
/// A link that was welcomed, with what goes on from the last one.
type Welcomed = (Link, Welcome, Vec<Resume>, Option<SocketAddr>);

/// A connection to the parent with its identity verified and nothing said.
async fn secure(parts: &Parts, config: &UplinkConfig, way: &Way) -> Result<Secured, Greeted> {
    parts.board.dials(way);
    tracing::debug!(node = %config.node, route = ?way.route, "dials");
    let name = parent_name(way.parent, &config.tenant);
    match config.dialler.secure_at(&way.route, config.preface, &config.tls, name).await {
        Ok(secured) => Ok(secured),
        Err(DialFault::Gateway { status, retry_after_s: Some(s), url }) => {
            let refusal =
                Refusal::new(status, GATEWAY_BUSY, format!("{url} asked to wait")).retry_after(s.min(3_600) * 1_000);
            Err(Greeted::Refused(refusal))
        }
        Err(DialFault::Busy { wait_ms }) => {
            let busy = Refusal::new(429, "busy", "the parent takes links by a rate and asked to wait");
            Err(Greeted::Refused(busy.retry_after(wait_ms.into())))
        }
        Err(e) => {
            if e.is_impostor() {
                parts.board.impostor();
                tracing::warn!(parent = %way.parent, route = ?way.route, error = %e, "another identity answers there");
            }
            let nobody = matches!(&e, DialFault::Connect(_, e) if e.kind() == std::io::ErrorKind::ConnectionRefused);
            Err(Greeted::Fault { why: format!("{:?}: {e}", way.route), nobody })
        }
    }
}

async fn greet(parts: &Parts, way: &Way, (stream, peer): Secured) -> Result<Welcomed, Greeted> {
    let fault = |e: String| Greeted::Fault { why: format!("{:?}: {e}", way.route), nobody: false };
    let (reply, greeting) = oneshot::channel();
    let through_gateway = matches!(way.route, Route::Gateway(_));
    let keys = peer.and_then(|_| link_keys(stream.get_ref().1));
    let dialling = UplinkEvent::Dialling { parent: way.parent, role: way.role, through_gateway, keys, reply };
    parts.owner.send(dialling).await.map_err(|e| fault(e.to_string()))?;
    let greeting = greeting.await.map_err(|_| fault("no greeting was given".into()))?;
    let mut framed = Framed::with_capacity(Box::new(stream), FrameCodec, 1024);
    let talk = async {
        framed.send(Frame::Greeting(Box::new(greeting))).await.map_err(|e| fault(e.to_string()))?;
        let (mut answer, mut resume) = (framed.next().await, Vec::new());
        if let Some(Ok(Some(Frame::Resume(list)))) = answer {
            (answer, resume) = (framed.next().await, list);
        }
        match answer {
            Some(Ok(Some(Frame::Welcome(welcome)))) => Ok((*welcome, resume)),
            Some(Ok(Some(Frame::Refused(refusal)))) => Err(Greeted::Refused(refusal)),
            Some(Ok(other)) => Err(fault(format!("instead of a welcome: {other:?}"))),
            Some(Err(e)) => Err(fault(e.to_string())),
            None => Err(fault("the parent closed the stream".into())),
        }
    };
    let (welcome, resume) =
        timeout(Duration::from_secs(HANDSHAKE_S), talk).await.map_err(|_| fault("no welcome in time".into()))??;
    Ok((framed, welcome, resume, peer))
}
