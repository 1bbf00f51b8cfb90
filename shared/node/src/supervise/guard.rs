//! What a child holds of its parent: the guard that reports its end, whatever that end is. Nothing here decides what
//! follows from an end.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::{Message, Recipient};
use tokio::task::AbortHandle;

use super::exit::Exit;

/// Numbers the children and workers of one supervisor in the order in which they were made known to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildId(pub(super) u64);

/// Which value of a child this is: 1 for the first, +1 for each fresh one.
pub type Generation = u64;

/// What a guard says when it is dropped.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub(super) struct Exited {
    pub id: ChildId,
    pub generation: Generation,
    /// `None`: it went without a word and without being asked.
    pub exit: Option<Exit>,
}

/// Asks a child to stop: run once, from the supervisor's thread or the child's.
pub(super) type StopFn = Box<dyn FnOnce() + Send>;

/// Owned by one generation of a child; its drop is the report of that child's end.
///
/// Keep it as a field of the actor. Then it is dropped with the actor however the actor ends, also when a handler or a
/// future of its context panics. The actor's value goes before its mailbox does, so the supervisor has the report
/// before anyone can find the address closed.
#[must_use = "dropping the guard reports the end of the child"]
pub struct ExitGuard {
    id: ChildId,
    generation: Generation,
    name: String,
    said: Option<Exit>,
    shared: Arc<Shared>,
    parent: Recipient<Exited>,
}

impl ExitGuard {
    pub(super) fn new(
        id: ChildId,
        generation: Generation,
        name: String,
        shared: Arc<Shared>,
        parent: Recipient<Exited>,
    ) -> Self {
        ExitGuard { id, generation, name, said: None, shared, parent }
    }

    /// The child's name, for its log lines.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which value of the child holds this guard.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Says how the child ends; call it just before stopping. A fault already said is kept: the first one is the cause.
    pub fn set(&mut self, exit: Exit) {
        if !self.said.as_ref().is_some_and(Exit::is_fault) {
            self.said = Some(exit.bounded());
        }
    }

    /// How this child is asked to stop, for one that was not started with [`run`](super::run::run). If it was asked
    /// already, `stop` is called at once.
    pub fn on_stop(&self, stop: impl FnOnce() + Send + 'static) {
        let mut inner = self.shared.lock();
        if inner.asked {
            drop(inner);
            stop();
        } else {
            inner.stop = Some(Box::new(stop));
        }
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}

impl Drop for ExitGuard {
    /// Runs while a panic unwinds, so nothing here may panic or wait: locks ignore poison and are held for a few moves.
    fn drop(&mut self) {
        let (panic, asked, rest) = {
            let mut inner = self.shared.lock();
            (inner.panic.take(), inner.asked, (inner.stop.take(), inner.cut.take()))
        };
        // The stop closure may own the last address of this very actor: it is dropped outside the lock.
        drop(rest);
        let exit = match (panic, self.said.take()) {
            (Some(text), _) => Some(Exit::Panicked(text)),
            (None, _) if std::thread::panicking() => Some(Exit::panicked("no message: caught outside the boundary")),
            (None, Some(said)) => Some(said),
            (None, None) => asked.then_some(Exit::Stopped),
        };
        // `do_send` passes over the mailbox bound, which is right here: a report must not be lost and cannot wait, and
        // there is one per generation, whose number is bounded by the restart intensity and by the worker limits.
        self.parent.do_send(Exited { id: self.id, generation: self.generation, exit });
    }
}

impl fmt::Debug for ExitGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExitGuard")
            .field("name", &self.name)
            .field("id", &self.id)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// What supervisor, guard and panic boundary of one generation share.
#[derive(Default)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Message of a panic that the boundary caught.
    panic: Option<String>,
    asked: bool,
    stop: Option<StopFn>,
    cut: Option<AbortHandle>,
    /// Set by a test; the actor's next turn panics.
    #[cfg(feature = "fault_points")]
    fault: bool,
    #[cfg(feature = "fault_points")]
    turn: Option<std::task::Waker>,
}

impl Shared {
    /// Asks the child to stop; the second time nothing happens.
    pub fn ask(&self) {
        let stop = {
            let mut inner = self.lock();
            inner.asked = true;
            inner.stop.take()
        };
        if let Some(stop) = stop {
            stop();
        }
    }

    /// Ends the child without asking: its future is dropped the next time its thread is free. Says whether there was
    /// anything to cut; a child started without [`run`](super::run::run) cannot be.
    pub fn cut(&self) -> bool {
        let cut = self.lock().cut.take();
        cut.inspect(AbortHandle::abort).is_some()
    }

    /// Makes the actor's next turn panic, and gives it one.
    #[cfg(feature = "fault_points")]
    pub fn inject_fault(&self) {
        let turn = {
            let mut inner = self.lock();
            inner.fault = true;
            inner.turn.clone()
        };
        if let Some(turn) = turn {
            turn.wake();
        }
    }

    /// Stands at the beginning of each turn.
    #[cfg(feature = "fault_points")]
    pub fn fault_point(&self, task: &std::task::Context<'_>) {
        let mut inner = self.lock();
        inner.turn = Some(task.waker().clone());
        let fault = std::mem::take(&mut inner.fault);
        drop(inner);
        assert!(!fault, "a fault that a test asked for");
    }

    pub fn note_panic(&self, text: String) {
        self.lock().panic = Some(text);
    }

    pub fn cut_with(&self, handle: AbortHandle) {
        self.lock().cut = Some(handle);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
