//! The processes of a device's jobs, and what they did to the world. Both survive the agent's process; what the world
//! remembers survives everything.

use branchline_agent::platform::{Ended, JobLeft, SpawnFault, Status};
use branchline_protocol::{id::OrderNumber, job::RunScript};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What is in a job's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folder {
    /// Its shim lives.
    Running {
        /// Which run: an event about another one is idle.
        run: u64,
    },
    /// The shim left this.
    Ended(Ended),
    /// Neither shim nor status.
    Cut,
}

/// What the world saw of one order on one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// How often it was begun.
    pub starts: u32,
    /// The code with which it ended by itself.
    pub exit: Option<i32>,
    /// It was cut, or killed, in mid-run.
    pub cut: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Jobs {
    folders: BTreeMap<OrderNumber, Folder>,
    /// What was ordered: the world's memory, for its own clock.
    pub specs: BTreeMap<OrderNumber, RunScript>,
    /// What the world saw.
    pub truth: BTreeMap<OrderNumber, Truth>,
}

impl Jobs {
    /// A process is begun, unless the folder was used before.
    pub fn start(&mut self, order: OrderNumber, run: u64) -> bool {
        if self.folders.contains_key(&order) {
            return false;
        }
        self.folders.insert(order, Folder::Running { run });
        self.truth.entry(order).or_default().starts += 1;
        true
    }

    /// The run's process ended by itself. `false`: it was cut before.
    pub fn finish(&mut self, order: OrderNumber, run: u64, exit: i32) -> bool {
        match self.folders.get_mut(&order) {
            Some(folder) if *folder == (Folder::Running { run }) => {
                *folder = Folder::Ended(Ended::Exited(exit));
                self.truth.entry(order).or_default().exit = Some(exit);
                true
            }
            _ => false,
        }
    }

    /// What a look at the folder finds.
    pub fn left(&self, order: OrderNumber) -> JobLeft {
        match self.folders.get(&order) {
            None | Some(Folder::Cut) => JobLeft::Cut,
            Some(Folder::Running { .. }) => JobLeft::Running { shim: 1, program: Some(2) },
            Some(Folder::Ended(ended)) => {
                let status = Status {
                    ended: ended.clone(),
                    cancelled: matches!(ended, Ended::Signalled(_)),
                    ..Status::not_started(SpawnFault::NotFound, None)
                };
                JobLeft::Finished(status, Bytes::from_static(b"out"), Bytes::new())
            }
        }
    }

    /// Jobs whose processes live.
    pub fn running(&self) -> Vec<OrderNumber> {
        let running = self.folders.iter().filter(|(_, folder)| matches!(folder, Folder::Running { .. }));
        running.map(|(order, _)| *order).collect()
    }

    /// Shim and program are gone at once, as by a power cut.
    pub fn cut(&mut self, order: OrderNumber) {
        if let Some(folder) = self.folders.get_mut(&order)
            && matches!(folder, Folder::Running { .. })
        {
            *folder = Folder::Cut;
            self.truth.entry(order).or_default().cut = true;
        }
    }

    /// The agent ends the job.
    pub fn kill(&mut self, order: OrderNumber) -> bool {
        match self.folders.get_mut(&order) {
            Some(folder) if matches!(folder, Folder::Running { .. }) => {
                *folder = Folder::Ended(Ended::Signalled(9));
                self.truth.entry(order).or_default().cut = true;
                true
            }
            _ => false,
        }
    }

    /// What an ended job left is gone.
    pub fn forget(&mut self, order: OrderNumber) {
        self.folders.retain(|of, folder| *of != order || matches!(folder, Folder::Running { .. }));
    }

    /// The result is durable.
    pub fn remove(&mut self, order: OrderNumber) {
        self.folders.remove(&order);
    }

    /// Only these folders stay.
    pub fn keep(&mut self, orders: &[OrderNumber]) {
        self.folders.retain(|order, _| orders.contains(order));
    }

    /// The folders, for a snapshot of the machine.
    pub fn folders(&self) -> BTreeMap<OrderNumber, Folder> {
        self.folders.clone()
    }

    /// The machine is that of the snapshot: what ran then is cut, what ran now is gone.
    pub fn restore(&mut self, folders: BTreeMap<OrderNumber, Folder>) {
        for order in self.running() {
            self.cut(order);
        }
        self.folders = folders;
        for folder in self.folders.values_mut().filter(|folder| matches!(folder, Folder::Running { .. })) {
            *folder = Folder::Cut;
        }
    }
}
