//! A whole run: storms of faults, each followed by a quiet point at which everything has to come right.

use super::{
    Options, Report,
    fault::Fault,
    place::Place,
    world::{AGENTS, RELAYS, What, World},
};
use branchline_node::store::{Scan, Table};

/// Faults of one storm.
const STORM_FAULTS: u64 = 400;
/// Virtual milliseconds within which everything comes right once the faults have stopped.
const QUIET_MS_MAX: u64 = 3 * 3_600_000;
/// After so many virtual milliseconds of quiet, what is late and unconfirmed is left to silence.
const SILENT_AFTER_MS: u64 = 15 * 60_000;
/// Virtual milliseconds in which silence becomes an end: a day and what a job may run.
const LEAP_MS: u64 = 25 * 3_600_000;
/// An order, and the one that steers it.
const LEAPS_MAX: u32 = 2;
/// A storm that hits nothing for so long is over.
const STORM_MS_MAX: u64 = 600_000;

/// Runs one seed.
pub fn simulate(options: &Options) -> Report {
    let mut world = World::new(options.clone());
    world.found();
    while world.faults < options.faults {
        let goal = (world.faults + STORM_FAULTS).min(options.faults);
        world.storm(goal);
        if world.is_found() || !world.calm() {
            break;
        }
    }
    world.report()
}

impl World {
    /// The tree is founded and switched on.
    fn found(&mut self) {
        let founding = self.desk.founding();
        self.server.rows.commit_sound(&founding).expect("a new store takes anything");
        let places: Vec<Place> = self.machines.keys().copied().collect();
        for place in places {
            self.start(place);
        }
    }

    /// Faults until there are `goal` of them.
    fn storm(&mut self, goal: u64) {
        self.storm = true;
        self.after(10, What::Issue);
        self.after(50, What::Inject);
        self.after(100, What::Keep);
        self.after(500, What::Ask);
        let until = self.now + STORM_MS_MAX;
        self.run_until(until, |world| world.faults >= goal || world.is_found());
        self.storm = false;
    }

    /// Whether a seeded defect has shown: then there is nothing more to learn.
    fn is_found(&self) -> bool {
        self.options.defect.is_some() && self.violations > 0
    }

    /// No fault any more, until everything accepted is at its end. `false`: it does not come to that.
    fn calm(&mut self) -> bool {
        self.note(format_args!("calm"));
        let blocked: Vec<Place> = std::mem::take(&mut self.blocked).into_keys().collect();
        for place in blocked {
            self.note(format_args!("{place} has its network again"));
        }
        for place in self.machines.keys().copied().collect::<Vec<_>>() {
            let machine = self.machine(place);
            machine.armed = None;
            machine.full = false;
            machine.disk.set_full(false);
        }
        self.links.values_mut().for_each(|link| link.armed = None);
        self.revive_all();
        for _ in 0..=LEAPS_MAX {
            let (deadline, silent_from) = (self.now + QUIET_MS_MAX, self.now + SILENT_AFTER_MS);
            while self.now < deadline && !self.is_settled() && !(self.now >= silent_from && self.is_silence_left()) {
                let step = (self.now + 5_000).min(deadline);
                self.run_until(step, |_| false);
            }
            if self.is_settled() || !self.is_silence_left() {
                break;
            }
            self.leap(LEAP_MS);
        }
        self.note(format_args!("quiet"));
        self.check()
    }

    /// What the run came to.
    fn report(mut self) -> Report {
        for place in (0..RELAYS).map(Place::Relay).chain((0..AGENTS).map(Place::Agent)) {
            let disk = self.machines[&place].disk.clone();
            for table in Table::ALL {
                let _ = disk.scan_all(table, |key, value| {
                    self.log.bytes(key);
                    self.log.bytes(&value);
                });
            }
        }
        let streams: Vec<_> = self.server.rows.streams.values().map(|row| (row.upto, row.hash)).collect();
        for (upto, hash) in streams {
            self.log.bytes(&upto.to_be_bytes());
            self.log.bytes(&hash.0);
        }
        let hash = self.log.digest().0.iter().map(|byte| format!("{byte:02x}")).collect();
        Report {
            seed: self.options.seed,
            faults: self.faults,
            restores: self.kinds.get(Fault::Restore.word()).copied().unwrap_or(0),
            kinds: self.kinds,
            accepted: self.accepted,
            ended: self.ended,
            ends: self.ends,
            lost: self.lost,
            doubled: self.doubled,
            violations: self.violations,
            excluded: self.excluded_count,
            pairs: self.pairs,
            crashes_unsynced: self.crashes_unsynced,
            path_moves: self.path_moves,
            asked: self.asked,
            answers: self.answers,
            virtual_s: self.now as f64 / 1_000.0,
            wall_s: 0.0,
            hash,
            told: self.told,
        }
    }
}
