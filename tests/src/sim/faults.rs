//! How things go wrong, and how machines come back.

use super::{
    disk::Crash,
    fault::Fault,
    host::{Armed, Kept, Stage},
    link::{LinkId, Side},
    place::Place,
    relays, servers,
    world::{AGENTS, RELAYS, What, World},
};
use branchline_agent::decide::journal_number;
use branchline_node::{
    link::engine::LinkEnd,
    store::{Scan, Table},
};
use branchline_protocol::id::OrderNumber;
use branchline_server::{dispatch::Event, store::Op};
use std::collections::BTreeSet;

/// One restore in so many is a device's, the others are relays'.
const RESTORED_DEVICES: u64 = 5;

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
        (machine.epoch, machine.snapshot, machine.rolled_back) = (epoch, None, None);
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
    fn crash(&mut self, place: Place, how: Crash, power: bool) {
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
    fn unsynced(&self, place: Place) -> usize {
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
        let (folders, done) = match place {
            Place::Agent(n) => (self.agents[n].jobs.folders(), self.journalled(n, true)),
            _ => Default::default(),
        };
        let (now, machine) = (self.now, self.machine(place));
        if !machine.up || machine.full {
            return;
        }
        machine.snapshot =
            Some(Kept { disk: machine.disk.snapshot(), folders, done, attachment: machine.attachment, at: now });
    }

    /// Something goes wrong, if there is something that it can hit.
    pub(super) fn inject(&mut self) {
        if !self.storm {
            return;
        }
        let wait = self.evil.between(5, 300);
        self.after(wait, What::Inject);
        let fault = self.evil.weighted(&Fault::MIX);
        match fault {
            Fault::Cut | Fault::Resend => self.arm_link(fault == Fault::Resend),
            Fault::HalfOpen => self.half_open(),
            Fault::Delay => self.delay(),
            Fault::Partition => self.partition(),
            Fault::CrashAgent => self.crash_some(fault, |evil| Place::Agent(evil.below(AGENTS as u64) as usize)),
            Fault::CrashRelay => self.crash_some(fault, |evil| Place::Relay(evil.below(RELAYS as u64) as usize)),
            Fault::CrashServer => self.crash_some(fault, |_| Place::Server),
            Fault::CrashGateway => self.crash_some(fault, |_| Place::Gateway),
            Fault::LostWrite => self.arm_crash(Crash::Lost),
            Fault::TornWrite => self.arm_crash(Crash::Torn),
            Fault::UntoldWrite => self.arm_crash(Crash::Untold),
            Fault::FullDisk => {
                let place = self.some_place();
                if !matches!(place, Place::Server | Place::Gateway) {
                    self.machine(place).armed = Some(Armed::Full);
                }
            }
            Fault::ClockJump => self.clock_jump(),
            Fault::Freeze | Fault::Sleep => self.freeze(fault),
            Fault::Move => self.move_device(),
            Fault::Restore => self.restore(),
            Fault::DiskLoss => self.lose_disk(),
            Fault::JobCut => self.cut_job(),
        }
    }

    /// Any node with a process: relays and the server more often than their number.
    fn some_place(&mut self) -> Place {
        match self.evil.below(10) {
            0..2 => Place::Relay(self.evil.below(RELAYS as u64) as usize),
            2 => Place::Server,
            _ => Place::Agent(self.evil.below(AGENTS as u64) as usize),
        }
    }

    fn some_link(&mut self, of: impl Fn(&super::link::Link) -> bool) -> Option<LinkId> {
        let ids: Vec<LinkId> =
            self.links.iter().filter(|(_, l)| !l.cut && !l.silent && of(l)).map(|(id, _)| *id).collect();
        self.evil.pick(&ids)
    }

    fn arm_link(&mut self, after: bool) {
        if let Some(id) = self.some_link(|link| link.armed.is_none())
            && let Some(link) = self.links.get_mut(&id)
        {
            link.armed = Some(after);
        }
    }

    fn half_open(&mut self) {
        let Some(id) = self.some_link(|link| link.flying() > 0) else { return };
        let Some(link) = self.links.get_mut(&id) else { return };
        link.silent = true;
        let (child, parent, flying) = (link.child, link.parent, link.flying());
        self.hit(Fault::HalfOpen, format_args!("{child}-{parent} with {flying} frames"));
    }

    fn delay(&mut self) {
        let Some(id) = self.some_link(|link| link.flying() > 0) else { return };
        let until = self.now + self.evil.between(20, 4_000);
        self.stall(id, until);
        let Some(link) = self.links.get(&id) else { return };
        let (child, parent, flying) = (link.child, link.parent, link.flying());
        self.hit(Fault::Delay, format_args!("{child}-{parent} with {flying} frames until {until}"));
    }

    /// Nothing arrives before; then everything does, in order.
    fn stall(&mut self, id: LinkId, until: u64) {
        if let Some(link) = self.links.get_mut(&id) {
            for pipe in &mut link.pipes {
                pipe.stalled_until = pipe.stalled_until.max(until);
                if !pipe.flying.is_empty() {
                    pipe.last_at = pipe.last_at.max(until);
                }
            }
        }
    }

    fn partition(&mut self) {
        let cut_off: Vec<Place> = match self.evil.one_in(2) {
            true => vec![Place::Relay(self.evil.below(RELAYS as u64) as usize)],
            false => (0..4).map(|_| Place::Agent(self.evil.below(AGENTS as u64) as usize)).collect(),
        };
        // Some are longer than a silence that counts as death.
        let long = self.evil.one_in(16);
        let ms = if long { self.evil.between(100_000, 240_000) } else { self.evil.between(500, 10_000) };
        let until = self.now + ms;
        let mut hit = 0;
        for place in &cut_off {
            let ids: Vec<LinkId> =
                self.links.iter().filter(|(_, l)| l.child == *place && l.is_up()).map(|(id, _)| *id).collect();
            hit += ids.len();
            ids.into_iter().for_each(|id| self.stall(id, until));
            self.blocked.insert(*place, until);
            self.at(until, What::Heal(*place));
        }
        if hit > 0 {
            self.hit(Fault::Partition, format_args!("{} and {} more for {ms} ms", cut_off[0], cut_off.len() - 1));
        }
    }

    fn crash_some(&mut self, fault: Fault, of: impl Fn(&mut super::chance::Chance) -> Place) {
        let place = of(&mut self.evil);
        if !self.machines[&place].up {
            return;
        }
        let power = self.evil.one_in(4);
        let how = [Crash::Lost, Crash::Torn, Crash::Untold][self.evil.below(3) as usize];
        self.hit(fault, format_args!("{place} with {} un-synced batches", self.unsynced(place)));
        self.crash(place, how, power);
    }

    fn arm_crash(&mut self, how: Crash) {
        let place = self.some_place();
        if self.machines[&place].armed.is_none() {
            self.machine(place).armed = Some(Armed::Crash(how));
        }
    }

    fn clock_jump(&mut self) {
        let place = self.some_place();
        if !self.machines[&place].up {
            return;
        }
        // A server's clock is kept by somebody; a device's may be anything.
        let reach = if place == Place::Server { 20_000 } else { 90 * 86_400_000 };
        let by = self.evil.between(0, 2 * reach) as i64 - reach as i64;
        self.machines[&place].clock.jump(by);
        self.hit(Fault::ClockJump, format_args!("{place} by {by} ms"));
    }

    fn freeze(&mut self, fault: Fault) {
        let place = self.some_place();
        let long = self.evil.one_in(20);
        let ms = if long { self.evil.between(100_000, 200_000) } else { self.evil.between(100, 6_000) };
        let now = self.now;
        let machine = self.machine(place);
        if !machine.up || machine.frozen_until > now {
            return;
        }
        machine.frozen_until = now + ms;
        if fault == Fault::Sleep {
            machine.clock.sleep(ms);
        }
        self.hit(fault, format_args!("{place} for {ms} ms"));
    }

    fn move_device(&mut self) {
        let n = self.evil.below(AGENTS as u64) as usize;
        let to = World::networks()[self.evil.below(6) as usize];
        let place = Place::Agent(n);
        let Some(Stage::Up(id)) = self.uplink(place).map(|up| up.stage) else { return };
        if self.agents[n].network == to {
            return;
        }
        self.agents[n].network = to;
        // The old network is gone: the device knows, its parent does not.
        if let Some(link) = self.links.get_mut(&id) {
            link.silent = true;
        }
        let (parent, gateway) = to;
        self.hit(Fault::Move, format_args!("{place} to {parent}{}", if gateway { " by the gateway" } else { "" }));
        self.after(1, What::Over(id, Side::Child, LinkEnd::Lost("the network is gone".into())));
    }

    fn restore(&mut self) {
        // What a device forgets is beyond any protocol, and excluded; a relay is but a cache.
        let place = match !self.options.relay_restores || self.evil.one_in(RESTORED_DEVICES) {
            true => Place::Agent(self.evil.below(AGENTS as u64) as usize),
            false => Place::Relay(self.evil.below(RELAYS as u64) as usize),
        };
        if !self.machines[&place].up {
            return;
        }
        let Some(kept) = self.machine(place).snapshot.take() else { return };
        self.hit(Fault::Restore, format_args!("{place} to {} ms", kept.at));
        if let Place::Agent(n) = place {
            // What the snapshot does not know to be over, the device may do again, or never tell.
            let forgotten: Vec<_> = self.journalled(n, false).difference(&kept.done).copied().collect();
            self.excluded.extend(forgotten.into_iter().map(|order| (order, n)));
        }
        self.crash(place, Crash::Lost, true);
        if let Place::Agent(n) = place {
            self.agents[n].jobs.restore(kept.folders);
        }
        let machine = self.machine(place);
        machine.disk.restore(kept.disk);
        let before = machine.rolled_back.unwrap_or(0).max(machine.attachment);
        if before > kept.attachment {
            machine.rolled_back = Some(before);
        }
    }

    /// Orders in a device's journal, or only those that are over.
    fn journalled(&self, n: usize, over: bool) -> BTreeSet<OrderNumber> {
        let mut orders = BTreeSet::new();
        let disk = &self.machines[&Place::Agent(n)].disk;
        // Without its process it has not changed since anybody looked.
        let _ = disk.scan_all(Table::Journal, |key, row| {
            if let Some(order) = journal_number(key)
                && (!over || row.ends_with(b"Done"))
            {
                orders.insert(order);
            }
        });
        orders
    }

    fn lose_disk(&mut self) {
        let n = self.evil.below(RELAYS as u64) as usize;
        let place = Place::Relay(n);
        if !self.machines[&place].up {
            return;
        }
        self.hit(Fault::DiskLoss, format_args!("{place} with {} un-synced batches", self.unsynced(place)));
        self.crash(place, Crash::Lost, true);
        self.machines[&place].disk.replace();
        self.relays[n].must_enrol = true;
    }

    fn cut_job(&mut self) {
        let running: Vec<_> =
            (0..AGENTS).flat_map(|n| self.agents[n].jobs.running().into_iter().map(move |order| (n, order))).collect();
        let Some((n, order)) = self.evil.pick(&running) else { return };
        self.agents[n].jobs.cut(order);
        self.hit(Fault::JobCut, format_args!("agent{n} order {order}"));
        self.job_over(n, order);
    }
}
