//! Who of one node lives, who waits, who goes down with whom: the pure core of the supervisor. Ends, requests and `now`
//! go in, [`Effect`]s come out. It starts nothing and holds no address.

use std::collections::{BTreeMap, BTreeSet};

use branchline_protocol::time::Mono;

use super::error::{AddError, AdoptError};
use super::exit::Exit;
use super::guard::{ChildId, Generation};
use super::intensity::{Intensity, Limit, OnFault, PastIntensity, Verdict};
use super::report::{ChildLife, ChildState, NodeEnd, Snapshot, StopReport};
use super::workers::{Adopted, WorkerEnd, WorkerLimits, Workers};

/// Time a child has to stop when what it needs has failed. It has nobody to drain to, so it gets time to put its
/// matters down and no more.
pub const TAKEDOWN_MS: u64 = 5_000;

/// What the supervisor's shell has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Call the child's factory for a fresh value.
    Start(ChildId, Generation),
    /// Ask the child or worker to stop.
    Ask(ChildId),
    /// It did not stop in time: end it without asking.
    Cut(ChildId, String),
    /// Someone was parked: tell the operator.
    Parked(String),
    /// The process has to end.
    End(NodeEnd),
    /// The orderly stop is complete.
    Stopped(StopReport),
}

/// What a child is, apart from its factory.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: String,
    pub needs: Vec<String>,
    pub limit: Limit,
    pub on_fault: OnFault,
    pub past: PastIntensity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Down until `due`, until its dependants are down and until what it needs lives.
    Waiting {
        due: Mono,
    },
    Running,
    /// Asked to stop; cut at `until`.
    Stopping {
        until: Mono,
    },
    Parked,
    Ended,
}

#[derive(Debug)]
struct Child {
    name: String,
    needs: BTreeSet<ChildId>,
    intensity: Intensity,
    life: Life,
    generation: Generation,
    restarts: u64,
    panics: u64,
    failures: u64,
    casualties: u64,
}

/// The stretch of an orderly stop that is being waited for.
#[derive(Debug)]
struct Stop {
    deadline: Mono,
    until: Mono,
    /// Waves still to be asked, the next one last.
    waves: Vec<Vec<ChildId>>,
    current: BTreeSet<ChildId>,
    report: StopReport,
}

#[derive(Debug)]
enum Phase {
    Living,
    /// `NodeEnd` was reported: nothing is restarted, the owner stops the rest.
    Ending,
    Stopping(Stop),
    Stopped,
}

/// All children and workers of one node.
#[derive(Debug)]
pub struct Family {
    children: BTreeMap<ChildId, Child>,
    workers: Workers,
    phase: Phase,
    newest_id: u64,
}

impl Family {
    pub fn new() -> Self {
        Family { children: BTreeMap::new(), workers: Workers::new(), phase: Phase::Living, newest_id: 0 }
    }

    /// Makes a child known; it is started by the next [`Family::step`] at which what it needs lives.
    pub fn add(&mut self, plan: Plan, now: Mono) -> Result<ChildId, AddError> {
        let needs = self.check(&plan.name, &plan.needs)?;
        let id = self.next_id();
        let child = Child {
            name: plan.name,
            needs,
            intensity: Intensity::new(plan.limit, plan.on_fault, plan.past),
            life: Life::Waiting { due: now },
            generation: 0,
            restarts: 0,
            panics: 0,
            failures: 0,
            casualties: 0,
        };
        self.children.insert(id, child);
        Ok(id)
    }

    /// Makes a kind of worker known.
    pub fn add_workers(&mut self, kind: &str, needs: &[String], limits: WorkerLimits) -> Result<(), AddError> {
        let needs = self.check(kind, needs)?;
        self.workers.add(kind, needs, limits);
        Ok(())
    }

    /// Takes on a worker that is about to begin.
    pub fn adopt(&mut self, kind: &str, name: &str, now: Mono) -> Result<Adopted, AdoptError> {
        if !matches!(self.phase, Phase::Living) {
            return Err(AdoptError::Ending);
        }
        let needs = self.workers.needs(kind).ok_or_else(|| AdoptError::UnknownKind(kind.to_owned()))?;
        if !self.are_up(needs) {
            return Err(AdoptError::NeedDown);
        }
        let id = ChildId(self.newest_id + 1);
        let adopted = self.workers.adopt(kind, name, id, now)?;
        self.newest_id = id.0;
        Ok(adopted)
    }

    /// An end was reported. Ends of an older generation, or of one that was cut, change nothing.
    pub fn exited(&mut self, id: ChildId, generation: Generation, exit: Option<Exit>, now: Mono) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.children.contains_key(&id) {
            self.child_exited(id, generation, exit, now, &mut effects);
        } else if let Some(WorkerEnd { name, exit, asked, past }) = self.workers.exited(id, exit, now) {
            if let Phase::Stopping(stop) = &mut self.phase
                && asked
            {
                stop.ended(id, &name, &exit);
            }
            match past {
                None => {}
                Some(PastIntensity::Park) => effects.push(Effect::Parked(name)),
                Some(PastIntensity::EndProcess(exit_code)) => {
                    let first_fault = self.workers.first_fault_of(&name);
                    self.end(NodeEnd { exit_code, child: name, first_fault }, &mut effects);
                }
            }
        }
        self.step(now, &mut effects);
        effects
    }

    /// Time went by, or a child was added.
    pub fn tick(&mut self, now: Mono) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.step(now, &mut effects);
        effects
    }

    /// Starts a parked child again, or forgets the faults of a parked worker, with a clean record. Says whether there
    /// was one of that name.
    pub fn release(&mut self, name: &str, now: Mono) -> (bool, Vec<Effect>) {
        let mut effects = Vec::new();
        let mut found = self.workers.release(name);
        for child in self.children.values_mut() {
            if child.name == name && child.life == Life::Parked && matches!(self.phase, Phase::Living) {
                child.intensity.forgive();
                child.life = Life::Waiting { due: now };
                found = true;
            }
        }
        self.step(now, &mut effects);
        (found, effects)
    }

    /// Begins the orderly stop: all workers first, then the children one by one in reverse order of their addition.
    /// Each wave may use an equal share of the time that is left, so that one stuck child cannot take the time of those
    /// it was built upon.
    pub fn stop(&mut self, within_ms: u64, now: Mono) -> Vec<Effect> {
        let mut effects = Vec::new();
        if matches!(self.phase, Phase::Living | Phase::Ending) {
            let mut waves = Vec::new();
            for (id, child) in &mut self.children {
                match child.life {
                    Life::Running | Life::Stopping { .. } => waves.push(vec![*id]),
                    Life::Waiting { .. } => child.life = Life::Ended,
                    Life::Parked | Life::Ended => {}
                }
            }
            let workers = self.workers.live();
            if !workers.is_empty() {
                waves.push(workers);
            }
            self.phase = Phase::Stopping(Stop {
                deadline: now.plus(within_ms),
                until: now,
                waves,
                current: BTreeSet::new(),
                report: StopReport::default(),
            });
        }
        self.step(now, &mut effects);
        effects
    }

    /// When [`Family::tick`] has something to do next, if nothing else happens.
    pub fn next_due(&self) -> Option<Mono> {
        match &self.phase {
            Phase::Stopped => None,
            Phase::Stopping(stop) => Some(stop.until),
            Phase::Ending => None,
            Phase::Living => {
                let children = self.children.iter().filter_map(|(id, child)| match child.life {
                    Life::Waiting { due } => self.may_start(*id).then_some(due),
                    Life::Stopping { until } => Some(until),
                    Life::Running | Life::Parked | Life::Ended => None,
                });
                children.chain(self.workers.next_due()).min()
            }
        }
    }

    /// The name and current generation of a child or worker.
    pub fn name(&self, id: ChildId) -> Option<&str> {
        self.children.get(&id).map(|child| child.name.as_str()).or_else(|| self.workers.name(id))
    }

    /// What operators and tests see.
    pub fn snapshot(&self) -> Snapshot {
        let children = self.children.values().map(|child| ChildState {
            name: child.name.clone(),
            generation: child.generation,
            restarts: child.restarts,
            panics: child.panics,
            failures: child.failures,
            casualties: child.casualties,
            state: match child.life {
                Life::Running => ChildLife::Running,
                Life::Waiting { .. } | Life::Stopping { .. } => ChildLife::Restarting,
                Life::Parked => ChildLife::Parked,
                Life::Ended => ChildLife::Ended,
            },
            first_fault: child.intensity.first_fault().cloned(),
        });
        Snapshot { children: children.collect(), workers: self.workers.states() }
    }

    fn check(&self, name: &str, needs: &[String]) -> Result<BTreeSet<ChildId>, AddError> {
        if !matches!(self.phase, Phase::Living) {
            return Err(AddError::Ending);
        }
        if self.children.values().any(|child| child.name == name) || self.workers.needs(name).is_some() {
            return Err(AddError::NameTaken(name.to_owned()));
        }
        let id_of = |need: &String| {
            let found = self.children.iter().find(|(_, child)| child.name == *need).map(|(id, _)| *id);
            found.ok_or_else(|| AddError::UnknownNeed(need.clone()))
        };
        needs.iter().map(id_of).collect()
    }

    fn next_id(&mut self) -> ChildId {
        self.newest_id += 1;
        ChildId(self.newest_id)
    }

    fn child_exited(
        &mut self,
        id: ChildId,
        generation: Generation,
        exit: Option<Exit>,
        now: Mono,
        effects: &mut Vec<Effect>,
    ) {
        let Some(child) = self.children.get_mut(&id) else { return };
        if child.generation != generation {
            return;
        }
        let asked = match child.life {
            Life::Running => false,
            Life::Stopping { .. } => true,
            Life::Waiting { .. } | Life::Parked | Life::Ended => return,
        };
        // A child that ends unasked and without a word has lost its last address or forgot to say why: no end it meant.
        let exit = exit.unwrap_or_else(|| Exit::failed("ended without being asked"));
        match &exit {
            Exit::Panicked(_) => child.panics += 1,
            Exit::Failed(_) => child.failures += 1,
            Exit::Done | Exit::Stopped | Exit::PeerGone => {}
        }
        if let Phase::Stopping(stop) = &mut self.phase {
            child.life = Life::Ended;
            child.casualties += u64::from(exit.is_fault());
            stop.ended(id, &child.name, &exit);
            return;
        }
        if matches!(self.phase, Phase::Ending) {
            // The cause is reported already and nothing is rebuilt any more.
            child.life = Life::Ended;
            child.casualties += u64::from(exit.is_fault());
            return;
        }
        if asked {
            // Its parent was taking it down: whatever happened to it on the way is a consequence.
            child.casualties += u64::from(exit.is_fault());
            child.life = Life::Waiting { due: now };
            return;
        }
        match child.intensity.on_exit(now, &exit) {
            Verdict::Leave if !exit.is_fault() => child.life = Life::Ended,
            Verdict::Restart { delay_ms } => {
                child.life = Life::Waiting { due: now.plus(delay_ms) };
                self.take_down_dependants(id, now, effects);
            }
            // A fault without a restart leaves the child down for good, which an operator has to know.
            Verdict::Leave | Verdict::Park => {
                child.life = Life::Parked;
                effects.push(Effect::Parked(child.name.clone()));
                self.take_down_dependants(id, now, effects);
            }
            Verdict::EndProcess(exit_code) => {
                child.life = Life::Parked;
                let first_fault = child.intensity.first_fault().cloned();
                let end = NodeEnd { exit_code, child: child.name.clone(), first_fault };
                self.end(end, effects);
            }
        }
    }

    fn end(&mut self, end: NodeEnd, effects: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Living) {
            self.phase = Phase::Ending;
            effects.push(Effect::End(end));
        }
    }

    fn take_down_dependants(&mut self, id: ChildId, now: Mono, effects: &mut Vec<Effect>) {
        let dependants = self.dependants(id);
        let until = now.plus(TAKEDOWN_MS);
        let failed: BTreeSet<ChildId> = dependants.iter().copied().chain([id]).collect();
        effects.extend(self.workers.ask_those_needing(&failed, until).into_iter().map(Effect::Ask));
        for dependant in dependants.into_iter().rev() {
            if let Some(child) = self.children.get_mut(&dependant)
                && child.life == Life::Running
            {
                child.life = Life::Stopping { until };
                effects.push(Effect::Ask(dependant));
            }
        }
    }

    /// Everyone who needs `id`, directly or through others. Needs point to lower ids, so one pass upward suffices.
    fn dependants(&self, id: ChildId) -> BTreeSet<ChildId> {
        let mut found = BTreeSet::new();
        for (other, child) in &self.children {
            if child.needs.iter().any(|need| *need == id || found.contains(need)) {
                found.insert(*other);
            }
        }
        found
    }

    fn are_up(&self, needs: &BTreeSet<ChildId>) -> bool {
        // One that ended because its work was done (a migration, say) is as good as one that lives.
        needs
            .iter()
            .all(|need| self.children.get(need).is_some_and(|child| matches!(child.life, Life::Running | Life::Ended)))
    }

    fn may_start(&self, id: ChildId) -> bool {
        let Some(child) = self.children.get(&id) else { return false };
        let mut affected = self.dependants(id);
        let dependant_stops = affected.iter().any(|dependant| {
            self.children.get(dependant).is_some_and(|child| matches!(child.life, Life::Stopping { .. }))
        });
        affected.insert(id);
        self.are_up(&child.needs) && !dependant_stops && !self.workers.any_stopping(&affected)
    }

    /// Does what is possible at `now`, from the whole state: it makes no difference what woke it.
    fn step(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Living => self.step_living(now, effects),
            Phase::Stopping(_) => self.step_stopping(now, effects),
            Phase::Ending | Phase::Stopped => {}
        }
    }

    fn step_living(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        effects.extend(self.workers.cut_overdue(now).into_iter().map(|(id, name)| Effect::Cut(id, name)));
        for (id, child) in &mut self.children {
            if matches!(child.life, Life::Stopping { until } if until <= now) {
                child.life = Life::Waiting { due: now };
                effects.push(Effect::Cut(*id, child.name.clone()));
            }
        }
        let ids: Vec<ChildId> = self.children.keys().copied().collect();
        for id in ids {
            let due =
                self.children.get(&id).is_some_and(|child| matches!(child.life, Life::Waiting { due } if due <= now));
            if due
                && self.may_start(id)
                && let Some(child) = self.children.get_mut(&id)
            {
                child.restarts += u64::from(child.generation > 0);
                child.generation += 1;
                child.life = Life::Running;
                effects.push(Effect::Start(id, child.generation));
            }
        }
    }

    fn step_stopping(&mut self, now: Mono, effects: &mut Vec<Effect>) {
        let Phase::Stopping(stop) = &mut self.phase else { return };
        loop {
            if !stop.current.is_empty() {
                if now < stop.until {
                    return;
                }
                for id in std::mem::take(&mut stop.current) {
                    let name = match self.children.get_mut(&id) {
                        Some(child) => {
                            child.life = Life::Ended;
                            Some(child.name.clone())
                        }
                        None => self.workers.cut(id),
                    };
                    if let Some(name) = name {
                        stop.report.cut.push(name.clone());
                        effects.push(Effect::Cut(id, name));
                    }
                }
            }
            let Some(wave) = stop.waves.pop() else { break };
            let waves_left = stop.waves.len() as u64 + 1;
            stop.until = now.plus(stop.deadline.since(now) / waves_left);
            for id in wave {
                let asked = match self.children.get_mut(&id) {
                    Some(child) if matches!(child.life, Life::Running | Life::Stopping { .. }) => {
                        child.life = Life::Stopping { until: stop.until };
                        true
                    }
                    Some(_) => false,
                    None => self.workers.ask(id, stop.until),
                };
                if asked {
                    stop.current.insert(id);
                    effects.push(Effect::Ask(id));
                }
            }
        }
        effects.push(Effect::Stopped(std::mem::take(&mut stop.report)));
        self.phase = Phase::Stopped;
    }
}

impl Stop {
    fn ended(&mut self, id: ChildId, name: &str, exit: &Exit) {
        self.current.remove(&id);
        if exit.is_fault() {
            self.report.faulted.push(name.to_owned());
        } else {
            self.report.drained.push(name.to_owned());
        }
    }
}
