//! What a supervisor tells: states for operators and tests, the end of a node, the result of an orderly stop. Plain
//! values; nothing here decides.

use serde::{Deserialize, Serialize};

use super::guard::Generation;
use super::intensity::Fault;

/// What a child is doing, as its parent sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildLife {
    /// A generation of it lives.
    Running,
    /// It is down or going down, and a fresh one will be built as soon as what it needs lives.
    Restarting,
    /// It faulted too often and stays down until it is released.
    Parked,
    /// It ended as it should and stays so.
    Ended,
}

/// One child that is restarted from a factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildState {
    /// Its name within the node.
    pub name: String,
    /// Which value of it lives or lived last; 0 before the first.
    pub generation: Generation,
    /// Fresh values built after the first, for its own faults and for those of what it needs.
    pub restarts: u64,
    /// Ends by panic, casualties included.
    pub panics: u64,
    /// Ends by an error, casualties included.
    pub failures: u64,
    /// Of these faults, how many happened while its parent was taking it down.
    pub casualties: u64,
    /// What it is doing.
    pub state: ChildLife,
    /// The fault that began the newest episode; never a casualty.
    pub first_fault: Option<Fault>,
}

/// All workers of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkersState {
    /// The kind's name, such as `session`.
    pub kind: String,
    /// How many live.
    pub live: usize,
    /// How many ever began.
    pub begun: u64,
    /// How many of those began again within the window after a fault of the same name.
    pub restarts: u64,
    /// Ends by panic, casualties included.
    pub panics: u64,
    /// Ends by an error, casualties included.
    pub failures: u64,
    /// Of these faults, how many happened while the parent was taking them down.
    pub casualties: u64,
    /// Names past their intensity, which are refused until they are released.
    pub parked: Vec<String>,
    /// The fault that began the newest episode of this kind, with the worker's name.
    pub first_fault: Option<Fault>,
}

/// Everything one supervisor knows of its node's actors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// In the order in which they were added.
    pub children: Vec<ChildState>,
    /// By kind.
    pub workers: Vec<WorkersState>,
}

impl Snapshot {
    /// The child of that name.
    pub fn child(&self, name: &str) -> Option<&ChildState> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The workers of that kind.
    pub fn workers_of(&self, kind: &str) -> Option<&WorkersState> {
        self.workers.iter().find(|workers| workers.kind == kind)
    }
}

/// A child the node cannot do without is past its intensity: the owner stops the rest and ends the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEnd {
    /// The process's exit code.
    pub exit_code: i32,
    /// Who is to blame.
    pub child: String,
    /// What began it.
    pub first_fault: Option<Fault>,
}

/// How an orderly stop went. Who was down already is in none of the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopReport {
    /// Ended as asked, in the order in which they ended.
    pub drained: Vec<String>,
    /// Ended by a fault on the way.
    pub faulted: Vec<String>,
    /// Did not end in time.
    pub cut: Vec<String>,
}

impl StopReport {
    /// Whether everyone ended as asked.
    pub fn is_clean(&self) -> bool {
        self.faulted.is_empty() && self.cut.is_empty()
    }
}
