//! Workers: short-lived children that come from outside (a session begins because a device dialled) and are never
//! restarted by their parent. Pure. Factories and restarts are not here; a worker's own intensity is.

use std::collections::{BTreeMap, BTreeSet};

use branchline_protocol::time::Mono;

use super::error::AdoptError;
use super::exit::Exit;
use super::guard::{ChildId, Generation};
use super::intensity::{Fault, Intensity, Limit, OnFault, PastIntensity, Verdict};
use super::report::WorkersState;

/// Most names of one kind whose faults are remembered. Names are devices that made a worker of ours fault within the
/// window; 1,024 is three times a full relay, and past it the one quiet for longest is forgotten.
pub const REMEMBERED_MAX: usize = 1024;

/// What a kind of worker may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLimits {
    /// How many may live at once; one more is refused.
    pub live_max: usize,
    /// When one name is past its intensity.
    pub intensity: Limit,
    /// What follows then.
    pub past: PastIntensity,
}

/// A worker that may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    pub id: ChildId,
    pub generation: Generation,
}

/// What an end of a worker came to.
#[derive(Debug)]
pub struct WorkerEnd {
    pub name: String,
    pub exit: Exit,
    pub asked: bool,
    pub past: Option<PastIntensity>,
}

#[derive(Debug)]
struct Worker {
    kind: String,
    name: String,
    /// Set once it was asked to stop: when it is cut.
    stopping: Option<Mono>,
}

#[derive(Debug)]
struct Record {
    intensity: Intensity,
    generation: Generation,
    parked: bool,
    newest: Mono,
}

#[derive(Debug)]
struct Kind {
    needs: BTreeSet<ChildId>,
    limits: WorkerLimits,
    live: usize,
    begun: u64,
    restarts: u64,
    panics: u64,
    failures: u64,
    casualties: u64,
    /// Names with faults that still count, or parked ones.
    records: BTreeMap<String, Record>,
    first_fault: Option<Fault>,
}

/// All workers of one node.
#[derive(Debug, Default)]
pub struct Workers {
    kinds: BTreeMap<String, Kind>,
    live: BTreeMap<ChildId, Worker>,
}

impl Workers {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(&mut self, kind: &str, needs: BTreeSet<ChildId>, limits: WorkerLimits) {
        let fresh = Kind {
            needs,
            limits,
            live: 0,
            begun: 0,
            restarts: 0,
            panics: 0,
            failures: 0,
            casualties: 0,
            records: BTreeMap::new(),
            first_fault: None,
        };
        self.kinds.insert(kind.to_owned(), fresh);
    }

    pub fn needs(&self, kind: &str) -> Option<&BTreeSet<ChildId>> {
        self.kinds.get(kind).map(|kind| &kind.needs)
    }

    /// Takes on a worker. One that comes back after a fault is its next generation and counts as a restart.
    pub fn adopt(&mut self, kind: &str, name: &str, id: ChildId, now: Mono) -> Result<Adopted, AdoptError> {
        let Some(of) = self.kinds.get_mut(kind) else { return Err(AdoptError::UnknownKind(kind.to_owned())) };
        if of.records.get(name).is_some_and(|record| record.parked) {
            return Err(AdoptError::Parked);
        }
        if of.live >= of.limits.live_max {
            return Err(AdoptError::Full);
        }
        of.records.retain(|_, record| record.parked || !record.intensity.is_quiet(now));
        let generation = match of.records.get_mut(name) {
            Some(record) => {
                record.generation += 1;
                of.restarts += 1;
                record.generation
            }
            None => 1,
        };
        of.live += 1;
        of.begun += 1;
        self.live.insert(id, Worker { kind: kind.to_owned(), name: name.to_owned(), stopping: None });
        Ok(Adopted { id, generation })
    }

    /// An end was reported; `None` if that worker is not known any more.
    pub fn exited(&mut self, id: ChildId, exit: Option<Exit>, now: Mono) -> Option<WorkerEnd> {
        let worker = self.live.remove(&id)?;
        let of = self.kinds.get_mut(&worker.kind)?;
        of.live -= 1;
        // A worker's work ends when its last address goes; silence is an ordinary end here.
        let exit = exit.unwrap_or(Exit::Done);
        let asked = worker.stopping.is_some();
        match &exit {
            Exit::Panicked(_) => of.panics += 1,
            Exit::Failed(_) => of.failures += 1,
            Exit::Done | Exit::Stopped | Exit::PeerGone => {}
        }
        let mut past = None;
        if asked {
            of.casualties += u64::from(exit.is_fault());
        } else if exit.is_fault() {
            past = of.record(&worker.name, &exit, now);
        }
        Some(WorkerEnd { name: worker.name, exit, asked, past })
    }

    /// Everyone who lives, in order of adoption.
    pub fn live(&self) -> Vec<ChildId> {
        self.live.keys().copied().collect()
    }

    pub fn name(&self, id: ChildId) -> Option<&str> {
        self.live.get(&id).map(|worker| worker.name.as_str())
    }

    /// Marks one as asked to stop; false if it has ended.
    pub fn ask(&mut self, id: ChildId, until: Mono) -> bool {
        self.live.get_mut(&id).map(|worker| worker.stopping = Some(until)).is_some()
    }

    /// Marks those that need one of `failed` as asked to stop and names them.
    pub fn ask_those_needing(&mut self, failed: &BTreeSet<ChildId>, until: Mono) -> Vec<ChildId> {
        let mut asked = Vec::new();
        for (id, worker) in &mut self.live {
            let hit = self.kinds.get(&worker.kind).is_some_and(|kind| !kind.needs.is_disjoint(failed));
            if hit && worker.stopping.is_none() {
                worker.stopping = Some(until);
                asked.push(*id);
            }
        }
        asked
    }

    /// Whether one that needs one of `failed` is still stopping.
    pub fn any_stopping(&self, failed: &BTreeSet<ChildId>) -> bool {
        self.live.values().any(|worker| {
            worker.stopping.is_some()
                && self.kinds.get(&worker.kind).is_some_and(|kind| !kind.needs.is_disjoint(failed))
        })
    }

    /// Forgets those whose time to stop is over and names them.
    pub fn cut_overdue(&mut self, now: Mono) -> Vec<(ChildId, String)> {
        let overdue = self.live.iter().filter(|(_, worker)| worker.stopping.is_some_and(|until| until <= now));
        let overdue: Vec<ChildId> = overdue.map(|(id, _)| *id).collect();
        overdue.into_iter().filter_map(|id| Some((id, self.cut(id)?))).collect()
    }

    /// Forgets one without waiting for its end.
    pub fn cut(&mut self, id: ChildId) -> Option<String> {
        let worker = self.live.remove(&id)?;
        if let Some(kind) = self.kinds.get_mut(&worker.kind) {
            kind.live -= 1;
        }
        Some(worker.name)
    }

    pub fn next_due(&self) -> Option<Mono> {
        self.live.values().filter_map(|worker| worker.stopping).min()
    }

    /// Forgets the faults of a parked name; false if none of that name is parked.
    pub fn release(&mut self, name: &str) -> bool {
        let mut found = false;
        for kind in self.kinds.values_mut() {
            if kind.records.get(name).is_some_and(|record| record.parked) {
                kind.records.remove(name);
                found = true;
            }
        }
        found
    }

    pub fn first_fault_of(&self, name: &str) -> Option<Fault> {
        self.kinds.values().find_map(|kind| kind.records.get(name)?.intensity.first_fault().cloned())
    }

    pub fn states(&self) -> Vec<WorkersState> {
        let states = self.kinds.iter().map(|(name, kind)| WorkersState {
            kind: name.clone(),
            live: kind.live,
            begun: kind.begun,
            restarts: kind.restarts,
            panics: kind.panics,
            failures: kind.failures,
            casualties: kind.casualties,
            parked: kind.records.iter().filter(|(_, record)| record.parked).map(|(name, _)| name.clone()).collect(),
            first_fault: kind.first_fault.clone(),
        });
        states.collect()
    }
}

impl Kind {
    fn record(&mut self, name: &str, exit: &Exit, now: Mono) -> Option<PastIntensity> {
        if self.records.values().all(|record| record.intensity.is_quiet(now)) {
            self.first_fault = Some(Fault { at: now, text: format!("{name}: {exit}") });
        }
        if !self.records.contains_key(name) && self.records.len() >= REMEMBERED_MAX {
            // Parked ones go last: their report is worth more than four faults of someone else.
            let oldest = self.records.iter().min_by_key(|(_, record)| (record.parked, record.newest));
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.records.remove(&oldest);
            }
        }
        let WorkerLimits { intensity, past, .. } = self.limits;
        let record = self.records.entry(name.to_owned()).or_insert_with(|| Record {
            intensity: Intensity::new(intensity, OnFault::Never, past),
            generation: 1,
            parked: false,
            newest: now,
        });
        record.newest = now;
        match record.intensity.on_exit(now, exit) {
            Verdict::Park => {
                record.parked = true;
                Some(PastIntensity::Park)
            }
            Verdict::EndProcess(code) => Some(PastIntensity::EndProcess(code)),
            Verdict::Restart { .. } | Verdict::Leave => None,
        }
    }
}
