//! The shell around a relay's core: what the exchange does.

use super::{
    defect::{Defect, Seeded},
    gate::Gate,
    host::{Answers, RelayProcess, Stage, Uplink},
    link::{LinkId, Side},
    place::Place,
    server_rows::Job,
    wires::Came,
    world::{What, World},
};
use branchline_agent::decide::journal_key;
use branchline_node::{
    downstream::{
        Child,
        admission::{AdmissionConfig, Cap},
    },
    driver::{DriveFault, Driver},
    link::engine::LinkCommand,
    store::Table,
    time::NodeTime,
    uplink::spool::STREAM_META,
};
use branchline_protocol::{
    document::Kind,
    hash::Hash,
    id::{NodeId, OrderNumber},
    refusal::Refusal,
    wire::Message,
};
use branchline_relay::core::{Effect, Event, Me, RelayCore};
use std::{collections::BTreeMap, sync::Arc};

/// Milliseconds between ticks, as the exchange has it.
pub(super) const TICK_MS: u64 = 250;
/// Milliseconds from one poll to the next.
const POLL_INTERVAL_MS: u64 = 20_000;

/// Slots of a node.
pub(super) fn gate(slots: i64) -> Gate {
    let cap = Cap::new(slots, false).expect("a number of slots");
    Gate::new(AdmissionConfig::new(cap).poll_interval_ms(POLL_INTERVAL_MS).expect("an interval"))
}

impl World {
    /// The relay's process starts: its disk is opened, its core recovered.
    pub(super) fn start_relay(&mut self, n: usize) -> bool {
        let place = Place::Relay(n);
        let incarnation = self.chance.next();
        let machine = &self.machines[&place];
        if let Err(fault) = machine.disk.open(*place.id().bytes(), incarnation) {
            self.note(format_args!("{place} does not start: {fault}"));
            return false;
        }
        let me = Me {
            tenant: self.desk.tenant.clone(),
            node: place.id(),
            epoch: machine.epoch,
            name: place.to_string(),
            signer: Arc::new(place.signer()),
        };
        let (defects, root, trust) = (Seeded::of(self.options.defect), self.desk.root, self.desk.trust.clone());
        let core = match RelayCore::recover_with(defects, me, root, trust, incarnation, &machine.disk) {
            Ok(core) => core,
            Err(fault) => {
                self.violation(format_args!("{place} cannot read its disk: {fault}"));
                return false;
            }
        };
        let (disk, time) = (machine.disk.clone(), NodeTime::new(machine.clock.clone()));
        let answers = Answers::default();
        let driver = Driver::new(core, disk, answers.notify());
        // Node time never goes back, as the exchange has it.
        if let Some(kept) = driver.core().kept_time() {
            time.learn(kept);
        }
        let statement = driver.core().shelf().get(Kind::Time).map(|(_, envelope)| Arc::new(envelope.clone()));
        let uplink = Uplink::new(time.now());
        let gate = gate(self.relays[n].slots);
        self.relays[n].process = Some(RelayProcess {
            driver,
            answers,
            time,
            uplink,
            gate,
            links: BTreeMap::new(),
            statement,
            store: incarnation,
        });
        self.arm_sync(place);
        self.arm_dial(place);
        let life = self.life(place);
        self.after(TICK_MS, What::Tick(place, life));
        true
    }

    /// An event for a relay's core.
    pub(super) fn feed_relay(&mut self, n: usize, event: Event) {
        let now = self.now_of(Place::Relay(n));
        self.drive_relay(n, |process, effects| process.driver.handle(now, event, |effect| effects.push(effect)));
    }

    /// The relay's store has answered.
    pub(super) fn relay_answered(&mut self, n: usize) {
        let now = self.now_of(Place::Relay(n));
        while let Some(done) = self.relays[n].process.as_ref().and_then(|p| p.answers.pop()) {
            self.drive_relay(n, |process, effects| process.driver.completed(now, done, |effect| effects.push(effect)));
        }
    }

    fn drive_relay(
        &mut self,
        n: usize,
        work: impl FnOnce(&mut RelayProcess, &mut Vec<Effect>) -> Result<(), DriveFault>,
    ) {
        let Some(process) = &mut self.relays[n].process else { return };
        let mut effects = Vec::new();
        let result = work(process, &mut effects);
        for effect in effects {
            self.relay_effect(n, effect);
        }
        let place = Place::Relay(n);
        if let Err(fault) = result {
            self.note(format_args!("{place} stops: {fault}"));
            return self.die(place, false);
        }
        self.arm_sync(place);
    }

    fn relay_effect(&mut self, n: usize, effect: Effect) {
        let place = Place::Relay(n);
        match effect {
            Effect::Commit(..) | Effect::FactsChanged | Effect::Reconfigure => {}
            // There are no datagrams here: every wait is for a poll.
            Effect::DropChild(..) | Effect::Reachable(..) | Effect::Sleeps(_) | Effect::Wake(_) => {}
            Effect::Greet(dial, greeting) => self.greet(place, dial, *greeting),
            Effect::ToParent(lane, message) => {
                self.relay_tells(n, &message);
                self.relay_asks(n, LinkCommand::Send(lane, message.encode()));
            }
            Effect::ReleaseParent(lane, bytes) => self.relay_asks(n, LinkCommand::Release(lane, bytes)),
            Effect::CloseParent(why) => {
                self.broken_protocol(place, why);
                self.relay_asks(n, LinkCommand::Refuse(Refusal::new(409, "protocol", why).into()));
            }
            Effect::ToChild(node, session, lane, message) => {
                self.relay_tells(n, &message);
                if self.has(Defect::LosesOrders) && matches!(message, Message::Orders(_)) && self.evil.one_in(3) {
                    return;
                }
                self.relay_child(n, node, session, LinkCommand::Send(lane, message.encode()));
            }
            Effect::ReleaseChild(node, session, lane, bytes) => {
                self.relay_child(n, node, session, LinkCommand::Release(lane, bytes));
            }
            Effect::GoodbyeChild(node, session, goodbye) => {
                self.relay_child(n, node, session, LinkCommand::Goodbye(goodbye));
            }
            Effect::RefuseChild(node, session, refusal) => {
                self.relay_child(n, node, session, LinkCommand::Refuse(refusal.into()));
            }
            Effect::LearnTime(time, envelope) => {
                if let Some(process) = &mut self.relays[n].process {
                    process.time.learn(time);
                    process.statement = Some(Arc::new(envelope));
                }
            }
            Effect::Load(keys) => {
                let life = self.life(place);
                self.after(1, What::Loaded(n, life, keys));
            }
            Effect::Damaged(why) => self.violation(format_args!("{place} reads what it did not write: {why}")),
            Effect::Refused(code) => self.note(format_args!("{place} refuses: {code}")),
        }
    }

    /// What was asked for of the spool was read.
    pub(super) fn loaded(&mut self, n: usize, keys: Vec<Vec<u8>>) {
        let disk = &self.machines[&Place::Relay(n)].disk;
        let rows = keys.into_iter().map(|key| (key.clone(), disk.get(Table::Spool, &key))).collect();
        self.feed_relay(n, Event::Loaded(rows));
    }

    fn relay_asks(&mut self, n: usize, command: LinkCommand) {
        if let Some(Stage::Up(id)) = self.uplink(Place::Relay(n)).map(|up| up.stage) {
            self.command(id, Side::Child, command);
        }
    }

    fn relay_child(&mut self, n: usize, node: NodeId, session: u64, command: LinkCommand) {
        let links = self.relays[n].process.as_ref().map(|p| &p.links);
        if let Some((live, id)) = links.and_then(|links| links.get(&node)).copied()
            && live == session
        {
            self.command(id, Side::Parent, command);
        }
    }

    /// Durable before told: what the message promises is on disk.
    fn relay_tells(&mut self, n: usize, message: &Message) {
        let place = Place::Relay(n);
        match message {
            Message::Taken(orders) => {
                for (order, devices) in orders {
                    for device in devices {
                        let number = [&order.term.to_be_bytes()[..], &order.number.to_be_bytes()].concat();
                        let key = [&b"r"[..], &number, device.bytes()].concat();
                        // Over meanwhile, or its result is on its way through here: then the device has it in its journal.
                        // The disk of one that is off cannot always be looked into.
                        let journalled = || match Place::of(*device).map(|agent| &self.machines[&agent]) {
                            Some(agent) => !agent.up || agent.disk.get(Table::Journal, &journal_key(*order)).is_some(),
                            None => false,
                        };
                        let back = || self.is_given_back(n, *order, *device);
                        if self.machines[&place].disk.get(Table::Ledger, &key).is_none() && !journalled() && !back() {
                            let forgotten = Place::of(*device)
                                .is_some_and(|d| matches!(d, Place::Agent(a) if self.forgotten.contains(&(*order, a))));
                            if !forgotten {
                                self.violation(format_args!(
                                    "{place} says that it has {order} for {device}, and has not"
                                ));
                            }
                        }
                    }
                }
            }
            Message::Acks(acks) => {
                for ack in acks.iter().filter(|ack| ack.stored > ack.settled && ack.refused.is_empty()) {
                    let key = [&[STREAM_META][..], &ack.stream.key()].concat();
                    let kept = self.machines[&place].disk.get(Table::Meta, &key);
                    let upto = kept.and_then(|value| rmp_serde::from_slice::<(u64, Hash, u64)>(&value).ok());
                    // A stream that is settled and old is forgotten.
                    if let Some((upto, _, _)) = upto
                        && ack.stored > upto
                    {
                        let (stored, node) = (ack.stored, ack.stream.node);
                        self.violation(format_args!(
                            "{place} says that it stored {stored} of {node}, and holds {upto}"
                        ));
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether a relay took an order only to give it back: its disk says that it is cancelled, or it is late; or it is
    /// over at the server, which may have said so meanwhile.
    fn is_given_back(&self, n: usize, order: OrderNumber, device: NodeId) -> bool {
        let tomb = [&b"t"[..], &journal_key(order), device.bytes()].concat();
        let cancelled = self.machines[&Place::Relay(n)].disk.get(Table::Ledger, &tomb).is_some();
        let job = self.server.rows.jobs.values().find(|job| job.row.number == order);
        let over = |job: &Job| job.devices.iter().any(|row| row.device == Ok(device) && row.state.is_end());
        cancelled || job.is_none_or(|job| self.now_of(Place::Relay(n)).node > job.row.fetch_by || over(job))
    }

    /// Something came from the parent.
    pub(super) fn relay_came(&mut self, n: usize, came: Came) {
        match came {
            Came::Message(received) => match Message::decode(&received.bytes) {
                Ok(message) => self.feed_relay(n, Event::ParentSaid(message, received.lane, received.credit)),
                Err(fault) => self.violation(format_args!("relay{n} cannot read its parent: {fault}")),
            },
            Came::Alive(Some(statement)) => self.feed_relay(n, Event::Alive(*statement)),
            Came::Lease(lease) => {
                if let Some(process) = &mut self.relays[n].process {
                    process.uplink.lease = Some(lease);
                }
            }
            Came::Spread(ms) => {
                if let Some(process) = &mut self.relays[n].process {
                    process.uplink.spread = Some(ms);
                }
            }
            Came::Alive(None) | Came::Continue | Came::Done | Came::Heard => {}
        }
    }

    pub(super) fn relay_child_up(&mut self, n: usize, id: LinkId, child: Arc<Child>) {
        if let Some(process) = &mut self.relays[n].process {
            process.links.insert(child.node, (child.session, id));
        }
        self.attached(Place::Relay(n), child.node);
        self.feed_relay(n, Event::ChildUp(child));
    }

    /// Something came from a child.
    pub(super) fn relay_child_came(&mut self, n: usize, child: Arc<Child>, came: Came) {
        match came {
            Came::Message(received) => match Message::decode(&received.bytes) {
                Ok(message) => self.feed_relay(n, Event::ChildSaid(child, message, received.lane, received.credit)),
                Err(fault) => self.violation(format_args!("relay{n} cannot read {}: {fault}", child.node)),
            },
            Came::Done => self.feed_relay(n, Event::ChildDone(child)),
            Came::Heard => self.feed_relay(n, Event::Heard(child.node)),
            Came::Alive(_) | Came::Lease(_) | Came::Continue | Came::Spread(_) => {}
        }
    }
}
