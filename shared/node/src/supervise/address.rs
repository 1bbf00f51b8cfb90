//! An address that outlives restarts. Only for children that are restarted; a worker's address is handed to those who
//! need it and ends with the worker.

use std::fmt;
use std::sync::Arc;

use actix::dev::{MessageResponse, ToEnvelope};
use actix::prelude::SendError;
use actix::{Actor, Addr, Handler, Message};
use tokio::sync::watch;

/// A handle on whichever generation of a child lives. The child's factory renews it; everyone else only reads it.
pub struct ChildAddr<A: Actor> {
    cell: Arc<watch::Sender<Option<Addr<A>>>>,
}

/// Why a message did not reach a child; the message comes back.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReached<M> {
    /// No generation lives: it is being restarted, or it ended.
    #[error("child is down")]
    Down(M),
    /// Its mailbox is full: leave the matter where it is kept and try later.
    #[error("child's mailbox is full")]
    Full(M),
}

impl<A: Actor> ChildAddr<A> {
    /// A handle on a child that was not started yet.
    pub fn new() -> Self {
        ChildAddr { cell: Arc::new(watch::Sender::new(None)) }
    }

    /// Points the handle to a fresh generation. Called by the child's factory only.
    pub fn renew(&self, addr: Addr<A>) {
        self.cell.send_replace(Some(addr));
    }

    /// The living generation's address. Use it at once: kept, it grows stale at the next restart.
    pub fn get(&self) -> Option<Addr<A>> {
        self.cell.borrow().clone().filter(Addr::connected)
    }

    /// Waits until a generation lives. The caller bounds the wait.
    pub async fn living(&self) -> Addr<A> {
        let mut watched = self.cell.subscribe();
        loop {
            if let Some(addr) = watched.borrow_and_update().clone().filter(Addr::connected) {
                return addr;
            }
            // `self` owns the sender, so it cannot close while this waits.
            let _renewed = watched.changed().await;
        }
    }

    /// Sends within the mailbox's bound.
    ///
    /// # Errors
    /// The message, with the reason it was not taken.
    pub fn try_send<M>(&self, message: M) -> Result<(), NotReached<M>>
    where
        M: Message + Send + 'static,
        M::Result: MessageResponse<A, M> + Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        let Some(addr) = self.get() else { return Err(NotReached::Down(message)) };
        addr.try_send(message).map_err(|error| match error {
            SendError::Full(message) => NotReached::Full(message),
            SendError::Closed(message) => NotReached::Down(message),
        })
    }
}

impl<A: Actor> Clone for ChildAddr<A> {
    fn clone(&self) -> Self {
        ChildAddr { cell: Arc::clone(&self.cell) }
    }
}

impl<A: Actor> Default for ChildAddr<A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Actor> fmt::Debug for ChildAddr<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildAddr").field("living", &self.get().is_some()).finish()
    }
}
