//! When records go up: at once, or together with those that come after them (pure; RLY-4).

use super::{Effect, RelayCore};
use branchline_node::{defects::Defects, uplink::spool::GATHER_BYTES};
use branchline_protocol::{record::Lane, time::Mono, wire::Message};

/// Milliseconds that inventory and logs may gather before they go up in one message.
const GATHER_MS: u64 = 1_000;

/// What gathers.
#[derive(Default)]
pub(super) struct Gather {
    /// When everything went up last.
    at: u64,
    /// Lanes that go up as soon as nothing of theirs is under way: a full message of them had gathered.
    burst: [bool; 5],
}

impl Gather {
    /// Whether what has gathered is to go up now; then it gathers anew.
    pub(super) fn is_due(&mut self, now: Mono) -> bool {
        let due = now.0 >= self.at + GATHER_MS;
        if due {
            self.at = now.0;
        }
        due
    }
}

impl<D: Defects> RelayCore<D> {
    /// Sends what may be sent. While records of a lane are under way, later ones gather; inventory and logs gather up
    /// to a second even so (RLY-4), unless a message is full: then more of them would not make fewer messages, and all that comes
    /// goes up like any other until nothing is left.
    pub(super) fn pump(&mut self, flush: bool, out: &mut Vec<Effect>) {
        if !self.parent_up {
            return;
        }
        let idle: [bool; 5] = Lane::ALL.map(|l| self.spool.in_flight(l) == 0);
        for lane in [Lane::Inventory, Lane::Logs] {
            self.gather.burst[lane as usize] |= self.spool.gathered(lane) >= GATHER_BYTES as u64;
        }
        let (burst, mut taken) = (self.gather.burst, [false; 5]);
        let may = |lane: Lane| match lane {
            Lane::Inventory | Lane::Logs => flush || (burst[lane as usize] && idle[lane as usize]),
            _ => flush || idle[lane as usize],
        };
        while let Some((lane, mut runs)) = self.spool.take_of(may) {
            taken[lane as usize] = true;
            self.receipts.accompany(self.me.node, &mut runs);
            out.push(Effect::ToParent(lane, Message::Records(runs)));
        }
        for lane in Lane::ALL.map(|lane| lane as usize) {
            self.gather.burst[lane] &= taken[lane] || !idle[lane];
        }
        let keys = self.spool.to_load();
        if !keys.is_empty() {
            out.push(Effect::Load(keys));
        }
    }
}
