//! Starting a supervised actor behind a panic boundary. Not for actors outside a supervisor, which need no guard.
//!
//! What actix 0.13.5 and tokio do with a panic in a handler or in a future of `ctx.spawn`: tokio catches it at the
//! task, so the thread, its arbiter and the other actors on it live on; the actor's context is dropped *while the panic
//! unwinds*, and that drop calls `stopping` and `stopped` on the broken value. A second panic there (or a `stopping`
//! that answers `Continue`, which polls the broken future again) would abort the whole process. The boundary catches
//! the panic before the context is dropped: the message is kept for the report, and a second panic is only caught too.
//!
//! A future given to `tokio::spawn` or `actix_rt::spawn` is a task of its own, outside every boundary: its panic ends
//! that task and nobody hears of it. A supervised actor spawns into its own context.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use actix_rt::ArbiterHandle;

use super::address::ChildAddr;
use super::exit::Exit;
use super::guard::{ExitGuard, Shared};

/// Asks a supervised actor to finish what it holds and then to stop (`ctx.stop()`). One that does not within the time
/// its supervisor gives it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// Starts an actor on the calling thread's arbiter. `make` receives the context and the guard, which the actor keeps.
pub fn run<A>(guard: ExitGuard, make: impl FnOnce(&mut Context<A>, ExitGuard) -> A) -> Addr<A>
where
    A: Actor<Context = Context<A>> + Handler<Drain>,
{
    let shared = guard.shared();
    let mut context = Context::new();
    let addr = context.address();
    let asked = addr.clone();
    // One notice per generation, so passing over the mailbox bound is harmless; a full mailbox must not stop a stop.
    guard.on_stop(move || asked.do_send(Drain));
    let actor = make(&mut context, guard);
    let boundary = Boundary { inner: Some(Box::pin(context.into_future(actor))), shared: Arc::clone(&shared) };
    shared.cut_with(actix_rt::spawn(boundary).abort_handle());
    addr
}

/// Starts an actor on another arbiter; `at` is renewed there, before the actor handles its first message. If the
/// arbiter has ended the guard is dropped, which is reported like any other end.
pub fn run_in<A>(
    arbiter: &ArbiterHandle,
    guard: ExitGuard,
    at: &ChildAddr<A>,
    make: impl FnOnce(&mut Context<A>, ExitGuard) -> A + Send + 'static,
) where
    A: Actor<Context = Context<A>> + Handler<Drain>,
{
    let at = at.clone();
    arbiter.spawn_fn(move || at.renew(run(guard, make)));
}

/// The message of a caught panic.
pub(super) fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&'static str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message: not a text".to_owned());
    match Exit::panicked(text) {
        Exit::Panicked(text) => text,
        _ => String::new(),
    }
}

struct Boundary<F> {
    /// `None` once the actor has ended.
    inner: Option<Pin<Box<F>>>,
    shared: Arc<Shared>,
}

impl<F: Future<Output = ()>> Future for Boundary<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(inner) = this.inner.as_mut() else { return Poll::Ready(()) };
        let turn = || {
            #[cfg(feature = "fault_points")]
            this.shared.fault_point(task);
            inner.as_mut().poll(task)
        };
        match catch_unwind(AssertUnwindSafe(turn)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(())) => {}
            Err(payload) => self.shared.note_panic(panic_text(&*payload)),
        }
        let ended = self.inner.take();
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(ended))) {
            // The report has gone out with the actor's value; this panic came from the rest of it.
            tracing::error!(panic = %panic_text(&*payload), "a supervised actor panicked while it was dropped");
        }
        Poll::Ready(())
    }
}
