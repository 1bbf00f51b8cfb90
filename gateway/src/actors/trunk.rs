//! One connection to the server: dialled, held, dialled again. Its streams are used by the pipes; the actor itself
//! holds the control stream, by which both ends know that the other lives.
//!
//! ```text
//! dial ──tls──► control stream ──first pong──► on the board ──ended, dead──► off the board ──wait──► dial
//! ```

use crate::{
    backoff::Backoff,
    gate::{BUILD, Gate},
};
use actix::{Actor, ActorContext, AsyncContext, Context, Handler, WrapFuture, fut::ActorFutureExt};
use branchline_node::{
    link::dial::{Dialler, Route},
    node::exit_code,
    supervise::{ChildSpec, Drain, Exit, ExitGuard, PastIntensity, run},
    trunk::{Beat, Heartbeat, Mux, MuxLimits, TrunkStream, control, write_header},
};
use branchline_protocol::wire::{HANDSHAKE_S, Preface, StreamHeader, TrunkControl};
use rustls::{ClientConfig, pki_types::ServerName};
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// What a trunk dials with.
#[derive(Clone)]
pub struct Way {
    /// The server's trunk port.
    pub address: String,
    /// Our source address.
    pub dialler: Dialler,
    /// Our certificate and whom we trust.
    pub tls: Arc<ClientConfig>,
    /// The only server that is accepted there.
    pub server: ServerName<'static>,
}

/// Holds one trunk.
pub struct Trunk {
    guard: ExitGuard,
    number: usize,
    way: Way,
    gate: Arc<Gate>,
    drain: CancellationToken,
}

/// The child that holds trunk `number`.
pub fn child(number: usize, way: Way, gate: Arc<Gate>) -> ChildSpec {
    ChildSpec::new(format!("trunk-{number}"), move |guard| {
        let (way, gate) = (way.clone(), Arc::clone(&gate));
        // A generation that panicked has left its trunk on the board.
        gate.board().down(number);
        run(guard, |_ctx, guard| Trunk { guard, number, way, gate, drain: CancellationToken::new() });
        Ok(())
    })
    .past(PastIntensity::EndProcess(exit_code::SUPERVISION))
}

impl Actor for Trunk {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let work = keep(self.number, self.way.clone(), Arc::clone(&self.gate), self.drain.clone());
        ctx.spawn(work.into_actor(self).map(|(), actor, ctx| {
            actor.guard.set(Exit::Stopped);
            ctx.stop();
        }));
    }
}

impl Handler<Drain> for Trunk {
    type Result = ();

    fn handle(&mut self, Drain: Drain, _ctx: &mut Self::Context) {
        self.drain.cancel();
    }
}

/// Why a trunk ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Dial(#[from] branchline_node::link::dial::DialFault),
    #[error(transparent)]
    Open(#[from] branchline_node::trunk::MuxFault),
    #[error(transparent)]
    Header(#[from] branchline_node::trunk::HeaderFault),
    #[error(transparent)]
    Control(#[from] branchline_node::trunk::ControlFault),
    #[error("the server ended the control stream")]
    NoControl,
    #[error("the server sent nothing for too long")]
    Dead,
    #[error("the control stream could not be opened within {HANDSHAKE_S} s")]
    Slow,
    #[error("the connection ended: {0}")]
    Connection(String),
}

/// Dials, holds and dials again until it is drained.
async fn keep(number: usize, way: Way, gate: Arc<Gate>, drain: CancellationToken) {
    let mut backoff = Backoff::default();
    while !drain.is_cancelled() {
        let held = hold(number, &way, &gate, &drain, &mut backoff).await;
        gate.board().down(number);
        gauge(&gate);
        let Err(ended) = held else { return };
        let wait_ms = backoff.failed(&*gate.random);
        tracing::warn!(trunk = number, server = %way.address, reason = %chain(&ended), wait_ms, "trunk is down");
        tokio::select! {
            () = drain.cancelled() => return,
            () = sleep(Duration::from_millis(wait_ms)) => {}
        }
    }
}

/// One life of a trunk. `Ok` once it is drained and has said goodbye.
async fn hold(
    number: usize,
    way: &Way,
    gate: &Gate,
    drain: &CancellationToken,
    backoff: &mut Backoff,
) -> Result<(), Ended> {
    let route = Route::Direct(way.address.clone());
    let dialled = way.dialler.secure(&route, Preface::Trunk, &way.tls, way.server.clone());
    let tls = tokio::select! {
        () = drain.cancelled() => return Ok(()),
        tls = dialled => tls?,
    };
    // The server opens no streams; whatever it opens is reset.
    let (mux, _) = Mux::client(tls, MuxLimits::default());
    let opened = async {
        let mut stream: TrunkStream = mux.open().await?;
        write_header(&mut stream, &StreamHeader { source: None, token: None }, b"").await?;
        Ok::<_, Ended>(stream)
    };
    let stream = timeout(Duration::from_secs(HANDSHAKE_S), opened).await.map_err(|_| Ended::Slow)??;
    let (mut reader, mut writer) = control(stream);
    let now = || gate.time.now();
    let mut beat = Heartbeat::pinging(now().mono);
    let mut established = false;
    loop {
        let wait = match beat.beat(now().mono) {
            Beat::Dead => {
                mux.close();
                return Err(Ended::Dead);
            }
            Beat::Ping => {
                beat.pinged(now().mono);
                let ping = TrunkControl::Ping { build: BUILD.into(), links: gate.links() as u32 };
                // A peer that takes nothing is as dead as one that says nothing.
                let sent = timeout(Duration::from_secs(HANDSHAKE_S), writer.write(&ping)).await;
                sent.map_err(|_| Ended::Dead)??;
                continue;
            }
            Beat::Wait(ms) => Duration::from_millis(ms),
        };
        let message = tokio::select! {
            () = drain.cancelled() => {
                mux.close();
                mux.ended().await;
                return Ok(());
            }
            reason = mux.ended() => return Err(Ended::Connection(reason)),
            () = sleep(wait) => continue,
            message = reader.read() => message?.ok_or(Ended::NoControl)?,
        };
        beat.heard(now().mono);
        match message {
            TrunkControl::Pong { build, .. } if !established => {
                established = true;
                backoff.worked();
                tracing::info!(trunk = number, server = %way.address, server_build = %build, "trunk is up");
                gate.board().up(number, mux.clone(), build, now());
                gauge(gate);
            }
            TrunkControl::Pong { build, .. } => gate.board().heard(number, build, now()),
            TrunkControl::LinkTokens(tokens) => gate.allow(tokens),
            // A ping is the gateway's to send.
            TrunkControl::Ping { .. } | TrunkControl::Unknown => {
                gate.metrics.counter("branchline_gateway_control_ignored_total", &[]).increment(1);
            }
        }
    }
}

fn gauge(gate: &Gate) {
    let trunks = gate.board().trunks();
    gate.metrics.gauge("branchline_gateway_trunks", &[]).set(trunks as f64);
}

/// An error with all its sources, as whoever logs prints it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
