//! What an agent shows of itself.

use super::core::AgentCore;
use branchline_node::{defects::Defects, uplink::spool::SpoolFigures};
use branchline_protocol::id::{Attachment, Epoch};
use serde::Serialize;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// `up`, `polling` or `down`.
    pub link: &'static str,
    /// Whether this device is refused everywhere.
    pub revoked: bool,
    /// Orders that are not at their end.
    pub open_orders: usize,
    /// Ends remembered until the server's floor passes them.
    pub remembered_orders: usize,
    /// What waits to be sent or settled.
    pub spool: SpoolFigures,
    /// Reports of the inventory made since the start.
    pub reports: u64,
    /// Links begun in this device's epoch.
    pub attachment: Attachment,
    /// The epoch it goes by.
    pub epoch: Epoch,
    /// Whether its disk was found to be put back, and it waits for another epoch.
    pub rolled_back: bool,
}

impl<D: Defects> AgentCore<D> {
    /// What to show.
    pub fn figures(&self) -> Figures {
        let (open_orders, remembered_orders) = self.journal.counts();
        Figures {
            link: self.link.as_ref().map_or("down", |link| if link.poll { "polling" } else { "up" }),
            revoked: self.documents.revokes_me(),
            open_orders,
            remembered_orders,
            spool: self.spool.figures(),
            reports: self.inventory.reports(),
            attachment: self.attachment,
            epoch: self.me.epoch,
            rolled_back: self.is_rolled_back(),
        }
    }
}
