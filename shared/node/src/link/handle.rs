//! How a link's owner speaks to it from anywhere in the node.

use super::engine::LinkCommand;
use branchline_protocol::record::Lane;
use bytes::Bytes;
use tokio::sync::mpsc;

/// Commands a link may have waiting; one more means that it is not keeping up and is closed.
pub const LINK_COMMANDS_MAX: usize = 1024;

/// Sends on a link. Bounded; dropping the last one ends the link.
#[derive(Clone, Debug)]
pub struct LinkHandle(mpsc::Sender<LinkCommand>);

/// Reaches a link without keeping it.
#[derive(Clone, Debug)]
pub struct WeakLink(mpsc::WeakSender<LinkCommand>);

impl LinkHandle {
    /// A handle and the end that [`super::engine::run`] takes.
    pub fn new() -> (LinkHandle, mpsc::Receiver<LinkCommand>) {
        let (tx, rx) = mpsc::channel(LINK_COMMANDS_MAX);
        (LinkHandle(tx), rx)
    }

    /// Asks the link for something. `false`: it is gone or not keeping up; drop the handle, it will come again.
    #[must_use]
    pub fn ask(&self, command: LinkCommand) -> bool {
        self.0.try_send(command).is_ok()
    }

    /// Sends a message.
    #[must_use]
    pub fn send(&self, lane: Lane, message: Bytes) -> bool {
        self.ask(LinkCommand::Send(lane, message))
    }

    /// Whether the link still takes commands.
    pub fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    /// A handle that does not keep the link.
    pub fn weak(&self) -> WeakLink {
        WeakLink(self.0.downgrade())
    }
}

impl WeakLink {
    /// As [`LinkHandle::ask`].
    pub fn ask(&self, command: LinkCommand) -> bool {
        self.0.upgrade().is_some_and(|tx| tx.try_send(command).is_ok())
    }
}
