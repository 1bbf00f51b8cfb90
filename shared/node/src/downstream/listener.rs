//! The link port: accepts on one task and hands each stream to the [`Reception`].

use super::reception::Reception;
use crate::supervise::{Drain, Exit, ExitGuard};
use actix::prelude::*;
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// The actor.
pub struct Listener {
    guard: ExitGuard,
    listener: Option<std::net::TcpListener>,
    accept_from: Arc<Vec<IpAddr>>,
    reception: Arc<Reception>,
}

impl Listener {
    /// On an already bound socket. An empty `accept_from` means anybody.
    pub fn new(
        guard: ExitGuard,
        listener: std::net::TcpListener,
        accept_from: Vec<IpAddr>,
        reception: Arc<Reception>,
    ) -> Self {
        Listener { guard, listener: Some(listener), accept_from: Arc::new(accept_from), reception }
    }
}

impl Actor for Listener {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(listener) = self.listener.take() else { return };
        let (accept_from, reception) = (self.accept_from.clone(), self.reception.clone());
        let work = async move {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (stream, source) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        // Out of descriptors, or the peer is gone already: neither is the end of the listener.
                        tracing::warn!(error = %e, "accept failed");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                if !accept_from.is_empty() && !accept_from.contains(&source.ip()) {
                    tracing::info!(%source, "refused: not an address links are accepted from");
                    continue;
                }
                let _ = stream.set_nodelay(true);
                actix_rt::spawn(reception.clone().serve(Box::new(stream), Some(source), None));
            }
        };
        ctx.spawn(work.into_actor(self).map(|result: std::io::Result<()>, actor, ctx| {
            if let Err(e) = result {
                actor.guard.set(Exit::Failed(e.to_string()));
            }
            ctx.stop();
        }));
    }
}

impl Handler<Drain> for Listener {
    type Result = ();
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.guard.set(Exit::Stopped);
        ctx.stop();
    }
}
