//! A disk that was put back to an older state (DESIGN 5): how this device learns of it, what it does until the server has
//! given it another epoch, and how it goes on in that.
//!
//! Nothing on the disk itself tells. What tells is that others know more of this device than its disk does: a parent knows
//! a newer link than the newest it ever made, the server more of its records, or either of an order that it has taken and
//! that is not in its journal. From then on it takes no order and begins
//! none, for it may have run it and forgotten; it says so on each link, and the server's list gives it the next epoch.

use super::{
    core::{ATTACHMENT, AgentCore, Turn},
    event::Effect,
};
use branchline_node::{defects::Defects, store::Table, uplink::Poke};
use branchline_protocol::{
    id::OrderNumber,
    job::End,
    record::{Lane, RolledBack, class},
    time::{Mono, Now},
};

/// Where the epoch is kept in which it was found, u32 big-endian.
pub(super) const ROLLED_BACK: &[u8] = b"rolled_back";
/// Reason of what may have been run and forgotten.
pub(super) const REASON: &str = "rolled_back";
/// Doublings of the step by which the attachment number catches up: about a million links in twenty refusals.
const DOUBLINGS_MAX: u32 = 20;
/// Milliseconds after which it is said again while no other epoch is given.
pub(super) const TELL_EVERY_MS: u64 = 600_000;

impl<D: Defects> AgentCore<D> {
    /// Whether this disk was put back in the present epoch.
    pub(super) fn is_rolled_back(&self) -> bool {
        self.rolled_back == Some(self.me.epoch)
    }

    /// A parent knows a newer attachment than this device has ever made as far as its disk knows. The number catches up
    /// in growing steps, each durable with the next greeting.
    pub(super) fn overtaken(&mut self, now: Now, turn: &mut Turn) {
        self.attachment = self.attachment.saturating_add(1 << self.overtaken.min(DOUBLINGS_MAX));
        self.overtaken = self.overtaken.saturating_add(1);
        self.put_back(now, "a parent knows newer links of this device than its disk does", turn);
    }

    /// A parent or the server was told that this device has these orders. It says so only of what is in its journal, and the
    /// journal keeps them until they are settled everywhere.
    pub(super) fn reminded(&mut self, now: Now, orders: &[OrderNumber], turn: &mut Turn) {
        if orders.iter().any(|order| !self.journal.knows(*order)) {
            self.put_back(now, "this device has said that it has orders that its disk does not know", turn);
        }
    }

    /// It is known from here on, durably, and told.
    pub(super) fn put_back(&mut self, now: Now, why: &str, turn: &mut Turn) {
        if self.is_rolled_back() {
            return;
        }
        self.rolled_back = Some(self.me.epoch);
        turn.batch.put(Table::Meta, ROLLED_BACK, self.me.epoch.to_be_bytes().to_vec());
        self.alert(now, "store_rolled_back", why.into(), turn);
        self.tell(now, why, turn);
    }

    /// When it is due to be said again on the link that is up.
    pub(super) fn rolled_back_due(&self) -> Option<Mono> {
        (self.is_rolled_back() && self.link.is_some()).then(|| self.rolled_back_told.plus(TELL_EVERY_MS))
    }

    /// A server that died when it had written this down and before it gave the epoch knows nothing of it. So it is said
    /// again whatever is in the spool: what the server settled of it a relay may have told while this device was away.
    pub(super) fn look_at_rolled_back(&mut self, now: Now, turn: &mut Turn) {
        if self.rolled_back_due().is_some_and(|due| due <= now.mono) {
            self.tell(now, "said before, and no other epoch was given", turn);
        }
    }

    /// Said again on each link, unless it is still on its way: the server may have had reason to wait. A device that only
    /// polls has no link long enough for more, so what has been on its way for as long as that is said again as well.
    pub(super) fn tell_rolled_back(&mut self, now: Now, turn: &mut Turn) {
        if !self.is_rolled_back() {
            return;
        }
        let is_on_its_way = self.spool.unsettled_of(self.me.node).any(|record| record.class == class::ROLLED_BACK);
        if !is_on_its_way || self.rolled_back_due().is_some_and(|due| due <= now.mono) {
            self.tell(now, "said before, and no other epoch was given", turn);
        }
    }

    fn tell(&mut self, now: Now, why: &str, turn: &mut Turn) {
        self.rolled_back_told = now.mono;
        let told = RolledBack { epoch: self.me.epoch, why: why.into() };
        let body = rmp_serde::to_vec_named(&told).expect("a notice is plain data");
        self.append(now, Lane::Urgent, class::ROLLED_BACK, None, body.into(), turn);
    }

    /// The server gave this device another epoch, with the list that is durable with this turn. Links are counted anew;
    /// what was taken and not begun may have been run since the old state, and is not begun again.
    pub(super) fn adopt_epoch(&mut self, now: Now, turn: &mut Turn) {
        let epoch = self.documents.my_epoch();
        if epoch <= self.me.epoch {
            return;
        }
        tracing::warn!(node = %self.me.node, from = self.me.epoch, to = epoch, "goes on in another epoch");
        self.me.epoch = epoch;
        self.spool.set_epoch(epoch);
        self.attachment = 0;
        turn.batch.put(Table::Meta, ATTACHMENT, 0u64.to_be_bytes().to_vec());
        (self.rolled_back, self.overtaken) = (None, 0);
        turn.batch.delete(Table::Meta, ROLLED_BACK);
        self.give_up_received(now, End::OutcomeUnknown, REASON, turn);
        turn.then(Effect::Redial);
    }

    /// Ends the link of the earlier epoch; the next one follows at once.
    pub(super) fn leave(&mut self, same_link: bool, out: &mut Vec<Effect>) {
        if same_link && self.link.is_some() {
            self.redial = true;
            self.link_down();
            out.push(Effect::Redial);
        } else {
            out.push(Effect::Poke(Poke::Urgent));
        }
    }
}
