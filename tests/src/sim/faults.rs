//! How things go wrong.

use super::{
    disk::Crash,
    fault::Fault,
    host::{Armed, Stage},
    link::{LinkId, Side},
    place::Place,
    world::{AGENTS, RELAYS, What, World},
};
use branchline_agent::decide::journal_number;
use branchline_node::{
    link::engine::LinkEnd,
    store::{Scan, Table},
};
use branchline_protocol::{
    id::{AttachmentKey, NodeId, OrderNumber},
    wire::Greeting,
};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Virtual milliseconds without a way out from which on devices go elsewhere.
const ROAM_FROM_MS: u64 = 8_000;
/// Devices of a branch that do.
const ROAMING: usize = 3;
/// One restore in so many is a device's, the others are relays'.
const RESTORED_DEVICES: u64 = 3;
/// The end of a journal's row of an order that is over, and the beginning, after two bytes of MessagePack, of one that was
/// taken and not begun.
pub(super) const DONE: &[u8] = b"Done";
const RECEIVED: &[u8] = b"Received";

impl World {
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
        let ms = match self.evil.below(16) {
            0 => self.evil.between(100_000, 240_000),
            1..5 => self.evil.between(10_000, 40_000),
            _ => self.evil.between(500, 10_000),
        };
        if let [relay @ Place::Relay(_)] = cut_off[..]
            && ms >= ROAM_FROM_MS
        {
            self.roam_from(relay, ms);
        }
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

    /// A branch has no way out for a while: some of its devices go elsewhere, and come back before it has. What waits for
    /// them there is taken back.
    fn roam_from(&mut self, relay: Place, ms: u64) {
        let here: Vec<usize> = (0..AGENTS).filter(|n| self.agents[*n].network.0 == relay).collect();
        for _ in 0..ROAMING {
            let Some(n) = self.evil.pick(&here) else { return };
            let to = World::networks()[3 + self.evil.below(3) as usize];
            let (away, back) = (self.evil.between(ms / 8, ms / 3), self.evil.between(ms / 2, ms * 3 / 4));
            if let Some(job) = self.waits_at(relay, n) {
                self.after(ms / 10, What::Cancel(job));
            }
            self.after(away, What::Roam(n, to));
            self.after(back, What::Roam(n, (relay, false)));
        }
    }

    fn move_device(&mut self) {
        let n = self.evil.below(AGENTS as u64) as usize;
        // Every other time it goes back to where it came from.
        let to = match self.evil.one_in(2) {
            true => self.agents[n].before,
            false => World::networks()[self.evil.below(6) as usize],
        };
        self.roam(n, to);
    }

    /// A device goes to another network. It hits something only if its link is up.
    pub(super) fn roam(&mut self, n: usize, to: (Place, bool)) {
        let place = Place::Agent(n);
        if self.agents[n].network == to || !self.storm {
            return;
        }
        let id = match self.uplink(place).map(|up| up.stage) {
            Some(Stage::Up(id)) => id,
            Some(Stage::Greeting(_)) => return,
            Some(Stage::Waiting) | None => {
                self.note(format_args!("{place} goes to {}", to.0));
                self.agents[n].before = std::mem::replace(&mut self.agents[n].network, to);
                return;
            }
        };
        self.agents[n].before = std::mem::replace(&mut self.agents[n].network, to);
        // The old network is gone: the device knows, its parent does not.
        if let Some(link) = self.links.get_mut(&id) {
            link.silent = true;
        }
        let (parent, gateway) = to;
        self.hit(Fault::Move, format_args!("{place} to {parent}{}", if gateway { " by the gateway" } else { "" }));
        self.after(1, What::Over(id, Side::Child, LinkEnd::Lost("the network is gone".into())));
    }

    fn restore(&mut self) {
        let place = match self.evil.one_in(RESTORED_DEVICES) {
            true => Place::Agent(self.evil.below(AGENTS as u64) as usize),
            false => Place::Relay(self.evil.below(RELAYS as u64) as usize),
        };
        if !self.machines[&place].up {
            return;
        }
        let Some(kept) = self.machine(place).snapshot.take() else { return };
        self.hit(Fault::Restore, format_args!("{place} to {} ms", kept.at));
        if let Place::Agent(n) = place {
            // What the snapshot does not know to be over, the device may not know any more how it ended.
            let forgotten: Vec<_> = self.journalled(n, |_| true).difference(&kept.done).copied().collect();
            self.forgotten.extend(forgotten.iter().map(|order| (*order, n)));
            // What it knows as taken and not begun the device begins anew before anybody can tell it.
            self.found_late.extend(forgotten.iter().filter(|o| kept.received.contains(o)).map(|order| (*order, n)));
            let epoch = self.agents[n].process.as_ref().map_or(0, |process| process.driver.core().figures().epoch);
            let machine = self.machine(place);
            machine.unjudged.extend(forgotten);
            machine.put_back_in = machine.put_back_in.max(epoch);
        }
        let held = self.held(place);
        let below = (0..AGENTS).filter(|n| self.hangs_on(*n, place));
        let mut handed: Vec<_> =
            below.flat_map(|n| self.journalled(n, |_| true).into_iter().map(move |order| (order, n))).collect();
        if matches!(place, Place::Relay(_)) {
            // What a device had and forgot was handed on as well, and what the relay below the first holds.
            handed.extend(self.forgotten.iter().filter(|(_, n)| self.hangs_on(*n, place)));
            if place == Place::Relay(0) {
                handed.extend(self.held(Place::Relay(2)));
            }
            let machine = self.machine(place);
            machine.unnoticed.extend(handed);
            machine.disk_put_back = None;
        }
        self.crash(place, Crash::Lost, true);
        if let Place::Agent(n) = place {
            self.agents[n].jobs.restore(kept.folders);
        }
        let machine = self.machine(place);
        machine.disk.restore(kept.disk);
        machine.restored = true;
        // What a relay gave back since the snapshot it holds again: until it hears its parent, nobody can tell it from what
        // it never gave back (decision 24).
        let unbegun =
            |(order, n): &&(OrderNumber, usize)| self.agents[*n].jobs.truth.get(order).is_none_or(|t| t.starts == 0);
        let risen: Vec<_> = kept.held.difference(&held).filter(unbegun).copied().collect();
        self.risen.extend(risen);
    }

    /// Whether a device's orders come by way of a relay.
    fn hangs_on(&self, n: usize, relay: Place) -> bool {
        let [parent, before] = [self.agents[n].network.0, self.agents[n].before.0];
        // The third relay is below the first.
        let above = |parent| parent == relay || (parent == Place::Relay(2) && relay == Place::Relay(0));
        above(parent) || above(before)
    }

    /// Pairs that a relay's disk has as open, while it is on.
    pub(super) fn held(&self, place: Place) -> BTreeSet<(OrderNumber, usize)> {
        let mut held = BTreeSet::new();
        if matches!(place, Place::Relay(_)) {
            let _ = self.machines[&place].disk.scan_all(Table::Ledger, |key, _| {
                if let Some((order, device)) = key.strip_prefix(b"r").and_then(|key| key.split_at_checked(12))
                    && let Some(order) = journal_number(order)
                    && let Ok(device) = <[u8; 16]>::try_from(device)
                    && let Some(Place::Agent(n)) = Place::of(NodeId(Uuid::from_bytes(device)))
                {
                    held.insert((order, n));
                }
            });
        }
        held
    }

    /// A device greets whose disk was set back and who has not been told so. If its parent knows a link of it that is as new,
    /// that is found at once. If only the server's store knows a newer one, it is found as soon as the server has heard of
    /// this one; until then the parent may give the device again what it had. Else nobody can tell: that is the stated
    /// exclusion (DESIGN 5). What is found is of no use where it does not reach the device: who found it may lose its disk
    /// first, and each greeting takes another number, up to those that the others remember. So each is judged (decision 47).
    pub(super) fn judge(&mut self, n: usize, parent: Place, key: AttachmentKey) {
        let place = Place::Agent(n);
        let forgotten = std::mem::take(&mut self.machine(place).unjudged);
        if forgotten.is_empty() {
            return;
        }
        // In an earlier epoch than it had come to it may have been told of another time: it goes on in that later one.
        let is_told = self.agents[n].process.as_ref().is_some_and(|p| p.driver.core().figures().rolled_back);
        let had = self.machines[&place].put_back_in;
        if key.epoch > had || is_told && key.epoch == had {
            return;
        }
        let row = self.server.rows.nodes.get(&(self.desk.tenant.clone(), place.id()));
        let stored = row.map(|row| AttachmentKey { epoch: row.epoch, attachment: row.attachment });
        // What the server knows of receipts alone is gone with its process, perhaps before it can say so.
        let (at_once, later) = (self.knows(parent, place, key), stored.is_some_and(|stored| stored > key));
        self.note(format_args!(
            "{place} forgot {}, known by its parent {at_once}, by the server {later}",
            forgotten.len()
        ));
        let pairs = forgotten.iter().map(|order| (*order, n));
        match (at_once, later) {
            (true, _) => {}
            (false, true) => self.found_late.extend(pairs),
            (false, false) => return self.excluded.extend(pairs),
        }
        self.machine(place).unjudged = forgotten;
    }

    /// A relay greets whose disk was set back and who has not been told so: then it is another disk to everybody. A parent
    /// that knows newer links of it, or was told of a newer state of that disk, notices; else it may say that nobody below it
    /// has what it had handed on (decision 30).
    pub(super) fn judge_relay(&mut self, relay: Place, parent: Place, key: AttachmentKey, greeting: &Greeting) {
        let machine = self.machine(relay);
        let unnoticed = std::mem::take(&mut machine.unnoticed);
        if unnoticed.is_empty() || *machine.disk_put_back.get_or_insert(greeting.disk) != greeting.disk {
            return;
        }
        let (newer_link, newer_disk) =
            (self.knows(parent, relay, key), self.has_met_newer(parent, relay, key, greeting.age));
        self.note(format_args!(
            "{relay} was set back, {} handed on, known by its parent: links {newer_link}, disk {newer_disk}",
            unnoticed.len()
        ));
        if newer_link || newer_disk {
            self.machine(relay).unnoticed = unnoticed;
        } else {
            self.unwitnessed.extend(unnoticed);
        }
    }

    /// Orders that a device has taken and not begun.
    pub(super) fn received(&self, n: usize) -> BTreeSet<OrderNumber> {
        self.journalled(n, |row| row.get(2..).is_some_and(|row| row.starts_with(RECEIVED)))
    }

    /// Orders in a device's journal whose rows are of this kind.
    pub(super) fn journalled(&self, n: usize, of: impl Fn(&[u8]) -> bool) -> BTreeSet<OrderNumber> {
        let mut orders = BTreeSet::new();
        let disk = &self.machines[&Place::Agent(n)].disk;
        // Without its process it has not changed since anybody looked.
        let _ = disk.scan_all(Table::Journal, |key, row| {
            if let Some(order) = journal_number(key)
                && of(&row)
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
        // Another number of its disk is noticed whatever the parent knows.
        self.machine(place).unnoticed.clear();
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
