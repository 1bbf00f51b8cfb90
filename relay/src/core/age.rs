//! How much is written on this relay's disk (DESIGN 5): counted with each batch, told to the parent a few times a second. A
//! parent that was told of more than a greeting names has met a newer state of the disk, however young the old one is.

use super::{Effect, persist, state::RelayCore};
use branchline_node::{
    defects::Defects,
    store::{Batch, Table},
};
use branchline_protocol::{record::Lane, wire::Message};

/// Batches: asked for, durable, and told to the parent of this link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Age {
    asked: u64,
    durable: u64,
    told: u64,
}

impl Age {
    /// As the disk has it.
    pub fn recovered(age: u64) -> Age {
        Age { asked: age, durable: age, told: 0 }
    }

    /// What the next batch makes it.
    pub fn next(&self) -> u64 {
        self.asked + 1
    }

    /// Another batch.
    pub fn count(&mut self, batch: &mut Batch) -> u64 {
        self.asked += 1;
        batch.put(Table::Meta, persist::AGE.to_vec(), self.asked.to_be_bytes().to_vec());
        self.asked
    }

    /// The disk has come to this.
    pub fn reached(&mut self, age: u64) {
        self.durable = self.durable.max(age);
    }

    /// Another parent, or another life of it, has been told what the greeting says, or nothing.
    pub fn link_up(&mut self) {
        self.told = 0;
    }

    fn due(&mut self) -> Option<u64> {
        let due = self.durable > self.told;
        self.told = self.durable;
        due.then_some(self.durable)
    }
}

impl<D: Defects> RelayCore<D> {
    /// Tells the parent how far the disk has come, if that is news.
    pub(super) fn tell_age(&mut self, out: &mut Vec<Effect>) {
        if self.parent_up
            && let Some(age) = self.age.due()
        {
            out.push(Effect::ToParent(Lane::Control, Message::Disk(self.disk.0, age)));
        }
    }
}
