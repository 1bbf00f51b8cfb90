//! An HTTP server as a supervised actor: if it ends by itself its parent builds a new one on the same socket.

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, WrapFuture, fut::ActorFutureExt};
use actix_web::dev::{Server, ServerHandle};
use branchline_node::node::exit_code;
use branchline_node::supervise::{ChildSpec, Drain, Exit, ExitGuard, PastIntensity, run};
use std::{io, net::TcpListener};

/// Runs one HTTP server.
pub struct Listener {
    guard: ExitGuard,
    server: Option<Server>,
    handle: ServerHandle,
}

/// The child that runs the server which `make` builds on `socket`.
pub fn child(
    name: &str,
    socket: TcpListener,
    make: impl Fn(TcpListener) -> io::Result<Server> + Send + 'static,
) -> ChildSpec {
    ChildSpec::new(name, move |guard| {
        // The socket stays open between two generations, so that callers wait instead of being refused.
        let server = socket.try_clone().and_then(&make).map_err(|e| format!("listen: {e}"))?;
        let handle = server.handle();
        run(guard, |_ctx, guard| Listener { guard, server: Some(server), handle });
        Ok(())
    })
    .past(PastIntensity::EndProcess(exit_code::SUPERVISION))
}

impl Actor for Listener {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(server) = self.server.take() else { return };
        let ended = server.into_actor(self).map(|end, actor, ctx| {
            match end {
                Ok(()) => actor.guard.set(Exit::Stopped),
                Err(e) => actor.guard.set(Exit::failed(format!("http server: {e}"))),
            }
            ctx.stop();
        });
        ctx.spawn(ended);
    }
}

impl Handler<Drain> for Listener {
    type Result = ();

    fn handle(&mut self, Drain: Drain, ctx: &mut Self::Context) {
        // Pipes have said goodbye by now; whoever is in the middle of a handshake is cut. The server's own end, above,
        // stops the actor.
        ctx.spawn(self.handle.stop(false).into_actor(self));
    }
}
