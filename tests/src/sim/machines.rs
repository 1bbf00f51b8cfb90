//! How machines start, write, die and come back.

use super::{
    disk::Crash,
    fault::Fault,
    faults::DONE,
    host::{Armed, Kept},
    link::{LinkId, Side},
    place::Place,
    relays, servers,
    world::{AGENTS, RELAYS, What, World},
};
use branchline_node::link::engine::LinkEnd;
use branchline_server::{dispatch::Event, store::Op};

impl World {
    /// A process starts, if its machine can.
    pub(super) fn start(&mut self, place: Place) {
        if self.machines[&place].up {
            return;
        }
        if let Place::Relay(n) = place
            && self.relays[n].must_enrol
            && !self.enrol(n)
        {
            return self.after(2_000, What::Start(place));
        }
        let machine = self.machine(place);
        machine.life += 1;
        machine.up = true;
        machine.syncing = false;
        let started = match place {
            Place::Server => self.start_server(),
            Place::Gateway => true,
            Place::Relay(n) => self.start_relay(n),
            Place::Agent(n) => self.start_agent(n),
        };
        if started {
            self.note(format_args!("{place} starts"));
        } else {
            self.machine(place).up = false;
            let wait = 500 + self.chance.below(2_000);
            self.after(wait, What::Start(place));
        }
    }

    /// A relay with a new disk gets a new identity from the server.
    fn enrol(&mut self, n: usize) -> bool {
        let place = Place::Relay(n);
        let server = &self.machines[&Place::Server];
        if !server.up || server.frozen_until > self.now {
            return false;
        }
        let epoch = self.machines[&place].epoch + 1;
        let row = self.desk.row(place, epoch);
        if self.server.rows.commit(&[Op::Node(row.clone())]).is_err() {
            self.violation(format_args!("{place} cannot enrol"));
        }
        self.feed_server(Event::Node(Box::new(row)));
        let machine = self.machine(place);
        (machine.epoch, machine.snapshot) = (epoch, None);
        self.relays[n].must_enrol = false;
        self.note(format_args!("{place} enrols anew, epoch {epoch}"));
        true
    }

    /// A process is gone. `power`: with its whole machine, so that nobody is told.
    pub(super) fn die(&mut self, place: Place, power: bool) {
        if !self.machines[&place].up {
            return;
        }
        self.machine(place).up = false;
        match place {
            Place::Server => self.server.process = None,
            Place::Gateway => {}
            Place::Relay(n) => self.relays[n].process = None,
            Place::Agent(n) => self.agents[n].process = None,
        }
        if place == Place::Gateway {
            let through: Vec<LinkId> = self.links.iter().filter(|(_, l)| l.gateway).map(|(id, _)| *id).collect();
            through.into_iter().for_each(|id| self.cut(id));
        }
        let mine: Vec<(LinkId, Side)> = self
            .links
            .iter()
            .flat_map(|(id, link)| [Side::Child, Side::Parent].map(|side| (*id, side, link.at(side))))
            .filter(|(_, _, at)| *at == place)
            .map(|(id, side, _)| (id, side))
            .collect();
        for (id, side) in mine {
            let now = self.now;
            let Some(link) = self.links.get_mut(&id) else { continue };
            link.ends[side as usize].open = false;
            let told = !power && !link.cut && !link.silent;
            let at = link.pipes[side as usize].last_at.max(now) + 1;
            let other_open = link.ends[side.other() as usize].open;
            link.armed = None;
            if power {
                link.silent = true;
            }
            if told {
                self.at(at, What::Over(id, side.other(), LinkEnd::Lost("the peer is gone".into())));
            }
            if !other_open {
                self.links.remove(&id);
            }
        }
        self.note(format_args!("{place} is gone{}", if power { ", with its machine" } else { "" }));
        let wait = 50 + self.chance.below(1_200);
        self.after(wait, What::Start(place));
    }

    /// A crash, with what it leaves of un-synced writes.
    pub(super) fn crash(&mut self, place: Place, how: Crash, power: bool) {
        let unsynced = self.unsynced(place);
        if unsynced > 0 {
            self.crashes_unsynced += 1;
        }
        match place {
            Place::Server => {
                if let Some((ops, _)) = self.server.process.as_mut().and_then(|p| p.committing.take()) {
                    let kept = match how {
                        Crash::Lost => false,
                        Crash::Torn => self.evil.one_in(2),
                        Crash::Untold => true,
                    };
                    if kept && self.server.rows.commit_sound(&ops).is_err() {
                        self.violation(format_args!("the server's batch is in conflict with its store"));
                    }
                }
            }
            Place::Gateway => {}
            _ => {
                let disk = self.machines[&place].disk.clone();
                disk.crash(how, &mut self.evil);
            }
        }
        if let (Place::Agent(n), true) = (place, power) {
            self.agents[n].boot += 1;
            for order in self.agents[n].jobs.running() {
                self.agents[n].jobs.cut(order);
            }
        }
        self.die(place, power);
    }

    /// Batches that are not durable.
    pub(super) fn unsynced(&self, place: Place) -> usize {
        match place {
            Place::Server => {
                self.server.process.as_ref().map_or(0, |p| p.queue.len() + usize::from(p.committing.is_some()))
            }
            Place::Gateway => 0,
            _ => self.machines[&place].disk.queued(),
        }
    }

    /// A sync begins, if there is something to sync.
    pub(super) fn arm_sync(&mut self, place: Place) {
        let machine = &self.machines[&place];
        if machine.syncing || machine.disk.queued() == 0 {
            return;
        }
        let life = machine.life;
        self.machine(place).syncing = true;
        let wait = 1 + self.chance.below(5);
        self.after(wait, What::Synced(place, life));
    }

    /// A sync ends, or what was armed for it happens.
    pub(super) fn synced(&mut self, place: Place) {
        self.machine(place).syncing = false;
        match self.machine(place).armed.take() {
            Some(Armed::Crash(how)) => {
                let fault = match how {
                    Crash::Lost => Fault::LostWrite,
                    Crash::Torn => Fault::TornWrite,
                    Crash::Untold => Fault::UntoldWrite,
                };
                let batches = self.unsynced(place);
                self.hit(fault, format_args!("{place} with {batches} batches"));
                let power = how != Crash::Untold && self.evil.one_in(2);
                return self.crash(place, how, power);
            }
            Some(Armed::Full) if !matches!(place, Place::Server | Place::Gateway) => {
                self.hit(Fault::FullDisk, format_args!("{place}"));
                let machine = self.machine(place);
                machine.full = true;
                machine.disk.set_full(true);
                let wait = self.evil.between(200, 5_000);
                self.after(wait, What::Space(place));
            }
            _ => {}
        }
        match place {
            Place::Server => return self.server_synced(),
            Place::Gateway => return,
            _ => {}
        }
        let disk = self.machines[&place].disk.clone();
        if let Err(fault) = disk.sync() {
            self.note(format_args!("{place} cannot write: {fault}"));
        }
        match place {
            Place::Relay(n) => self.relay_answered(n),
            Place::Agent(n) => self.agent_answered(n),
            _ => {}
        }
        if self.machines[&place].up {
            self.arm_sync(place);
        } else {
            disk.crash(Crash::Lost, &mut self.evil);
        }
    }

    pub(super) fn tick(&mut self, place: Place) {
        let life = self.life(place);
        match place {
            Place::Relay(n) => {
                self.feed_relay(n, branchline_relay::core::Event::Tick);
                self.after(relays::TICK_MS, What::Tick(place, life));
            }
            Place::Server => {
                self.feed_server(Event::Tick);
                self.after(servers::TICK_MS, What::Tick(place, life));
            }
            _ => {}
        }
    }

    pub(super) fn heal(&mut self, place: Place) {
        if self.blocked.get(&place).is_some_and(|until| *until <= self.now) {
            self.blocked.remove(&place);
        }
    }

    pub(super) fn space(&mut self, place: Place) {
        let machine = self.machine(place);
        machine.full = false;
        machine.disk.set_full(false);
    }

    /// A snapshot of some machine is taken.
    pub(super) fn keep(&mut self) {
        if !self.storm {
            return;
        }
        let wait = self.evil.between(300, 1_500);
        self.after(wait, What::Keep);
        let place = match self.evil.one_in(3) {
            true => Place::Relay(self.evil.below(RELAYS as u64) as usize),
            false => Place::Agent(self.evil.below(AGENTS as u64) as usize),
        };
        let held = self.held(place);
        let (folders, done, received) = match place {
            Place::Agent(n) => {
                (self.agents[n].jobs.folders(), self.journalled(n, |row| row.ends_with(DONE)), self.received(n))
            }
            _ => Default::default(),
        };
        let (now, machine) = (self.now, self.machine(place));
        if !machine.up || machine.full {
            return;
        }
        machine.snapshot = Some(Kept { disk: machine.disk.snapshot(), folders, done, received, held, at: now });
    }
}
