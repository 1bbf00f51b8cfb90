//! What a load test has its agents do. Nothing here can be asked for by a message or a configuration file.

use super::RunningAgent;
use crate::{actors::Happened, decide::Event};
use branchline_node::uplink::UplinkCommand;

impl RunningAgent {
    /// Loses the link without a word, as a cut cable does; no dial follows before [`RunningAgent::dial`].
    pub fn lose_link(&self) {
        self.steer(UplinkCommand::Lose);
    }

    /// Dials now, without back-off.
    pub fn dial(&self) {
        self.steer(UplinkCommand::Dial);
    }

    fn steer(&self, command: UplinkCommand) {
        // One command at a time, and none may be lost to a full mailbox.
        if let Some(uplink) = self.parts.uplink.get() {
            uplink.do_send(command);
        }
    }

    /// Collects the inventory now, as at the time of its schedule, and sends the difference, or all of it the first time.
    pub fn collect(&self) {
        if let Some(keeper) = self.parts.keeper.get() {
            // Once a step of the leader's, who counts what comes of it.
            keeper.do_send(Happened(Event::Collect));
        }
    }

    /// How often it dialled, by any way.
    pub fn dials(&self) -> u64 {
        self.parts.board.dialled()
    }
}
