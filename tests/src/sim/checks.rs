//! What must be true at a quiet point: every accepted order is over on every device, as the world saw it; nothing ran
//! twice; the server calls nobody online who is not.

use super::{
    host::Stage,
    link::{Link, Side},
    place::Place,
    server_rows::Job,
    truth::agrees,
    world::{AGENTS, World},
};
use branchline_protocol::{id::OrderNumber, job::State};
use branchline_server::{dispatch::standing, store::JobDeviceRow};

/// A link's end is told upward within so many milliseconds, over every hop.
pub(super) const TOLD_MS: u64 = 1_000;

impl World {
    /// Whether everything the server holds is at its end, and everybody is back.
    pub(super) fn is_settled(&self) -> bool {
        let open = self.server.rows.open.iter().any(|key| {
            let job = &self.server.rows.jobs[key];
            let excluded = |d: &JobDeviceRow| agent_of(d).is_some_and(|n| self.is_excluded(job.row.number, n));
            job.devices.iter().any(|d| !d.state.is_end() && !excluded(d))
        });
        !open && self.machines.values().all(|machine| machine.up && machine.frozen_until <= self.now)
    }

    /// Whether all that is left is late and held by somebody who will never tell: the end that comes of silence.
    pub(super) fn is_silence_left(&self) -> bool {
        let now = self.now_of(Place::Server).node;
        let left = self.server.rows.open.iter().all(|key| {
            let job = &self.server.rows.jobs[key];
            let excluded = |d: &JobDeviceRow| agent_of(d).is_some_and(|n| self.is_excluded(job.row.number, n));
            let silent = |d: &JobDeviceRow| now > job.row.fetch_by && !d.holders.is_empty();
            job.devices.iter().all(|d| d.state.is_end() || excluded(d) || silent(d))
        });
        left && !self.is_settled()
    }

    /// Whether a pair is in the stated exclusion: its device's disk was set back to before it, and nobody witnessed that; or
    /// it was begun anew before anybody could tell, from the old state or by a parent that did not know yet.
    pub(super) fn is_excluded(&self, order: OrderNumber, n: usize) -> bool {
        self.excluded.contains(&(order, n))
    }

    /// Compares what the server says with what the world saw, and checks the jobs off. `false`: there is no going on.
    pub(super) fn check(&mut self) -> bool {
        let before = self.violations;
        let jobs: Vec<Job> = self.server.rows.jobs.values().cloned().collect();
        for Job { row: job, devices } in jobs {
            let (order, accepted) = (job.number, self.desk.accepted.contains(&job.id));
            for device in devices {
                let Some(n) = agent_of(&device) else { continue };
                self.pairs += 1;
                self.accepted += u64::from(accepted);
                if accepted && device.state.is_end() {
                    *self.ends.entry(device.state.as_str()).or_default() += 1;
                }
                if self.is_excluded(order, n) {
                    self.excluded_count += 1;
                    self.ended += u64::from(accepted && device.state.is_end());
                    continue;
                }
                let truth = self.agents[n].jobs.truth.get(&order).copied().unwrap_or_default();
                if !device.state.is_end() {
                    self.lost += 1;
                    let (state, epoch) = (device.state, device.epoch);
                    let holders: Vec<_> = device.holders.iter().filter_map(|id| Place::of(*id)).collect();
                    let late = self.now_of(Place::Server).node > job.fetch_by;
                    self.violation(format_args!(
                        "{order} on agent{n} (epoch {epoch}) is {state} for ever, held by {holders:?}, late {late}, {truth:?}"
                    ));
                    continue;
                }
                self.ended += u64::from(accepted);
                // A relay whose old disk nobody could tell from a restart gave it back, and the device had it.
                let given_back = matches!(device.state, State::Cancelled | State::Expired) && truth.starts == 1;
                if given_back && self.unwitnessed.contains(&(order, n)) {
                    self.excluded_count += 1;
                    continue;
                }
                if let Some(why) = self.contradicts(&job, &device, n) {
                    self.violation(format_args!("{order} on agent{n}: {why}"));
                }
                // It may not know how it ended; and of what nobody could tell it yet a cancel is answered by the disk it has.
                let forgot = match device.state {
                    State::OutcomeUnknown => self.forgotten.contains(&(order, n)),
                    State::Cancelled => self.found_late.contains(&(order, n)),
                    _ => false,
                };
                if !forgot && !agrees(&job, &device, truth) {
                    self.lost += 1;
                    let (state, reason) = (device.state, device.reason);
                    self.violation(format_args!("{order} on agent{n} is {state} {reason:?}, the world saw {truth:?}"));
                }
            }
        }
        self.check_standing();
        self.check_views();
        self.forget();
        self.violations == before
    }

    /// What is checked off need not be kept.
    fn forget(&mut self) {
        // Excluded pairs may stay open for ever; they were counted.
        self.desk.forgotten.extend(self.server.rows.jobs.keys().map(|(_, job)| *job));
        self.server.rows.jobs.clear();
        self.server.rows.open.clear();
        self.server.rows.audit.clear();
        self.desk.accepted.clear();
        self.desk.cancels.clear();
        self.shown.clear();
        for agent in &mut self.agents {
            agent.jobs.specs.clear();
            agent.late.clear();
        }
    }

    /// Whom the server calls online has a way to it that both ends count on, or polls.
    fn check_standing(&mut self) {
        let now = self.now_of(Place::Server).node;
        let Some(process) = &self.server.process else { return };
        let Some(state) = process.core.tenant(&self.desk.tenant) else { return };
        let mut wrong = Vec::new();
        for n in 0..AGENTS {
            let Some(row) = state.nodes.get(&Place::Agent(n).id()) else { continue };
            let view = standing(state, row, now);
            if view.state != "online" || view.link != "persistent" {
                continue;
            }
            // An end that has not heard of it for less than a death's time may still count on it.
            if !self.counts_on(Place::Agent(n), &view.route.iter().filter_map(|id| Place::of(*id)).collect::<Vec<_>>())
            {
                wrong.push((n, view.route));
            }
        }
        for (n, route) in wrong {
            self.violation(format_args!("agent{n} is shown online by way of {route:?}, and is not there"));
        }
    }

    /// Whether every hop of a route has a link that its parent's end counts on.
    pub(super) fn counts_on(&self, device: Place, route: &[Place]) -> bool {
        let mut hops = vec![Place::Server];
        hops.extend(route);
        hops.push(device);
        hops.windows(2).all(|pair| {
            let pair = (pair[0], pair[1]);
            let just_over = self.over.get(&pair).is_some_and(|at| self.now < at + TOLD_MS);
            let counts = |link: &Link| (link.parent, link.child) == pair && link.ends[Side::Parent as usize].open;
            just_over || self.links.values().any(counts)
        })
    }

    /// Whether a node's link is up, for people.
    pub fn is_up(&mut self, place: Place) -> bool {
        matches!(self.uplink(place).map(|up| up.stage), Some(Stage::Up(_)))
    }
}

fn agent_of(device: &JobDeviceRow) -> Option<usize> {
    match device.device.as_ref().ok().copied().and_then(Place::of) {
        Some(Place::Agent(n)) => Some(n),
        _ => None,
    }
}
