//! What this relay makes of it when it learns that its disk was put back to an older state. Its parents offer it anew what
//! it may have lost (RLY-8); what it handed on since is below and not known here.

use super::{
    Effect, persist,
    state::{After, RelayCore},
};
use branchline_node::{defects::Defects, store::Batch};
use branchline_protocol::time::Now;

/// Doublings of the step by which an attachment number catches up: about a million links in twenty refusals.
const DOUBLINGS_MAX: u32 = 20;

impl<D: Defects> RelayCore<D> {
    /// A parent knows a newer attachment than this relay has ever made as far as its disk knows. The number is this
    /// relay's own to raise; it catches up in growing steps, each durable with the next greeting.
    pub(super) fn overtaken(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.attachment = self.attachment.saturating_add(1 << self.overtaken.min(DOUBLINGS_MAX));
        self.overtaken = self.overtaken.saturating_add(1);
        self.put_back(now, "a parent knows newer links of this relay than its disk does", out);
    }

    /// Each device may have its orders from the state that is gone: none of them is given back on this relay's own word
    /// any more.
    pub(super) fn put_back(&mut self, now: Now, why: &str, out: &mut Vec<Effect>) {
        let mut batch = Batch::new();
        let changes = self.ledger.doubted();
        changes.iter().for_each(|change| persist::row(change, &mut batch));
        self.commit(now, batch, After::default(), out);
        self.alert_rarely(now, "store_rolled_back", why.into(), out);
    }
}
