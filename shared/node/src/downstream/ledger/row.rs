//! What a ledger holds of one order on one device, and what it tells its owner.

use branchline_protocol::{
    id::{Epoch, NodeId, OrderNumber},
    order::{OrderMessage, Payload},
};
use std::sync::Arc;

/// Where one device's order stands at this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Row {
    /// On no link. It may have been: see [`Kept::holders`].
    #[default]
    Waiting,
    /// On a link, not acknowledged. Never durable: after a crash it is waiting again.
    Offered(NodeId),
    /// Durable at that child relay.
    Held(NodeId),
    /// The device journalled it.
    HandedOver,
}

/// What a store remembers of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Where it stands.
    pub row: Row,
    /// Children to which it was ever offered and that have not given it back: any of them may have it on disk, and the
    /// device may start it. Durable before the first send to each.
    pub holders: Vec<NodeId>,
    /// A holder of a row whose own commit is under way: nothing goes to it before [`super::Ledger::granted`].
    pub asked: Option<NodeId>,
    /// It is offered to nobody any more: it was cancelled, or a child gave it back.
    pub closed: bool,
    /// It is of an epoch that the device has left: see [`super::Ledger::raised`].
    pub past: bool,
}

impl Kept {
    /// A new row that is durable, with the child it is about to be offered to.
    pub fn towards(hop: Option<NodeId>) -> Kept {
        Kept { holders: hop.into_iter().collect(), ..Kept::default() }
    }

    /// The same for a row that is about to become durable.
    pub fn asking(hop: Option<NodeId>) -> Kept {
        Kept { asked: hop, ..Kept::default() }
    }
}

/// A row changed, for the owner's store and view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The order.
    pub order: OrderNumber,
    /// The device.
    pub device: NodeId,
    /// Its row now; `None`: it is over, the row is gone.
    pub row: Option<Row>,
    /// Who may have it, those included whose commit is under way; of a row that is gone, who had.
    pub holders: Vec<NodeId>,
}

/// A child that is to be offered a row for the first time: once the row with these holders is durable, say
/// [`super::Ledger::granted`] and look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The row as the store is to have it.
    pub change: Change,
    /// The new holder.
    pub child: NodeId,
}

/// One order for one child, its proof cut for the devices behind that child.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The child.
    pub child: NodeId,
    /// The order's payload.
    pub payload: Arc<Payload>,
    /// What to send.
    pub message: OrderMessage,
    /// The devices it is for.
    pub devices: Vec<NodeId>,
}

/// What a look for open ways brought.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// To be sent.
    pub offers: Vec<Offer>,
    /// To be committed first.
    pub asks: Vec<Ask>,
    /// Devices for which something waits and that no child leads to now; one may be named more than once.
    pub unreached: Vec<NodeId>,
}

/// A row past its order's `fetch_by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// The order.
    pub order: OrderNumber,
    /// The device.
    pub device: NodeId,
    /// The device journalled it.
    pub handed_over: bool,
    /// Nobody below can have it: see [`super::Ledger::is_free`].
    pub free: bool,
    /// Past `report_by` too.
    pub silent: bool,
}

/// A row in memory.
pub(super) struct Entry {
    /// Which of the order's proofs has its leaf.
    pub proof: usize,
    /// The leaf's position there.
    pub position: usize,
    pub row: Row,
    pub holders: Vec<NodeId>,
    /// Holders whose commit is under way: nothing was sent to them yet.
    pub asked: Vec<NodeId>,
    pub closed: bool,
    /// The epoch in which the device is asked for it again, if it left the order's; else 0.
    pub past: Epoch,
}

impl Entry {
    /// Whether it is of an epoch that the device has left.
    pub fn is_past(&self) -> bool {
        self.past > 0
    }

    pub fn change(&self, order: OrderNumber, device: NodeId) -> Change {
        let mut holders = self.holders.clone();
        holders.extend(self.asked.iter().filter(|child| !self.holders.contains(child)));
        Change { order, device, row: Some(self.row), holders }
    }

    /// Whether nobody below can have it: nothing was ever sent that was not given back.
    pub fn is_free(&self) -> bool {
        self.row != Row::HandedOver && self.holders.is_empty()
    }
}
