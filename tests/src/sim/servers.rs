//! The shell around the server's core: what the dispatcher does, with one commit under way at a time.

use super::{
    clock::EPOCH_MS,
    defect::{Defect, Seeded},
    host::ServerProcess,
    link::{LinkId, Side},
    place::Place,
    relays::gate,
    wires::Came,
    world::{RELAYS, What, World},
};
use branchline_node::{downstream::Child, link::engine::LinkCommand, time::NodeTime};
use branchline_protocol::{
    id::{Epoch, NodeId},
    inventory::Snapshot,
    record::{Lane, class},
    wire::Message,
};
use branchline_server::{
    dispatch::{Core, Effect, Event, Preloaded, Recovered, Token, disk_key},
    store::{NodeRow, Op},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Milliseconds between looks for what has expired.
pub(super) const TICK_MS: u64 = 1_000;

impl World {
    /// The server's process starts: its core is recovered from what is durable.
    pub(super) fn start_server(&mut self) -> bool {
        let rows = &self.server.rows;
        let tenant = self.desk.tenant.clone();
        let found = Recovered {
            nodes: rows.nodes.values().cloned().collect(),
            jobs: rows
                .open
                .iter()
                .filter_map(|key| rows.jobs.get(key))
                .map(|job| (job.row.clone(), job.devices.clone()))
                .collect(),
            streams: rows.streams.iter().map(|((tenant, _), row)| (tenant.clone(), *row)).collect(),
            need_full: rows.wanted.iter().cloned().collect(),
            tenants: rows.tenants.iter().cloned().collect(),
            disks: (0..RELAYS)
                .filter_map(|n| {
                    let relay = Place::Relay(n).id();
                    let kept = rows.meta.get(&disk_key(&tenant, relay))?;
                    Some((tenant.clone(), relay, u64::from_be_bytes(kept[..].try_into().ok()?)))
                })
                .collect(),
            reachable: Vec::new(),
        };
        let stored = rows.meta.get(&format!("order/{tenant}"));
        let number = stored.and_then(|b| Some(u64::from_be_bytes(b[..].try_into().ok()?))).unwrap_or(0);
        let core = match Core::recover_with(Seeded::of(self.options.defect), found) {
            Ok(core) => core,
            Err(fault) => {
                self.violation(format_args!("the server cannot read its store: {fault}"));
                return false;
            }
        };
        self.server.process = Some(ServerProcess {
            core,
            time: NodeTime::new(self.machines[&Place::Server].clock.clone()),
            gate: gate(300),
            links: BTreeMap::new(),
            queue: Vec::new(),
            committing: None,
            number,
            issuing: BTreeSet::new(),
            statement: None,
            stated_at: None,
        });
        self.feed_server(Event::Tenant(tenant.clone()));
        for (kind, version, envelope) in self.desk.documents() {
            self.feed_server(Event::Document(tenant.clone(), kind, String::new(), version, envelope));
        }
        self.state_time();
        let life = self.life(Place::Server);
        self.after(60_000, What::Statement(life));
        self.after(TICK_MS, What::Tick(Place::Server, life));
        true
    }

    /// A new time statement, for greetings and heartbeats.
    pub(super) fn state_time(&mut self) {
        let Some(process) = &mut self.server.process else { return };
        let now = process.time.now();
        process.stated_at = Some(now.mono);
        let version = (self.last_statement + 1).max((now.wall.0 - EPOCH_MS).max(0) as u64);
        self.last_statement = version;
        let envelope = self.desk.statement(now.wall, version);
        process.statement = Some(Arc::new(envelope.clone()));
        let tenant = self.desk.tenant.clone();
        self.feed_server(Event::Statement(tenant, (1, version), envelope));
    }

    /// An event for the server's core.
    pub(super) fn feed_server(&mut self, event: Event) {
        let now = self.now_of(Place::Server);
        let Some(process) = &mut self.server.process else { return };
        let mut effects = Vec::new();
        process.core.handle(now, event, &mut effects);
        for effect in effects {
            self.server_effect(effect);
        }
        self.commit_server();
    }

    fn server_effect(&mut self, effect: Effect) {
        match effect {
            // There are no datagrams here: every wait is for a poll.
            Effect::Drop(..) | Effect::Reachable(..) | Effect::Sleeps(_) | Effect::Wake(_) => {}
            Effect::Commit(ops, token) => {
                if let Some(process) = &mut self.server.process {
                    process.queue.push((ops, token));
                }
            }
            Effect::Send(node, session, lane, message) => {
                self.server_tells(&message);
                self.server_child(node, session, LinkCommand::Send(lane, message.encode()));
            }
            Effect::Withdraw(node, session, list) => {
                let sealed = list.iter().map(|withdrawal| withdrawal.seal(&self.desk.signer)).collect();
                let message = Message::Withdraw(sealed).encode();
                self.server_child(node, session, LinkCommand::Send(Lane::Urgent, message));
            }
            Effect::Release(node, session, lane, bytes) => {
                self.server_child(node, session, LinkCommand::Release(lane, bytes));
            }
            Effect::Goodbye(node, session, goodbye) => {
                self.server_child(node, session, LinkCommand::Goodbye(goodbye));
            }
            Effect::Refuse(node, session, refusal) => {
                self.server_child(node, session, LinkCommand::Refuse(refusal.into()))
            }
            Effect::Raise(_, device, epoch) => self.raise_epoch(device, epoch),
            Effect::JobChanged(..) | Effect::Learned(_) | Effect::Revoke(..) | Effect::Behind(..) => {}
            Effect::Issued(job) => {
                if let Some(process) = &mut self.server.process {
                    process.issuing.remove(&job);
                }
                if let Some(job) = self.desk.cancels.remove(&job) {
                    return self.cancelled(job);
                }
                if self.server.rows.job(&self.desk.tenant, job).is_none() {
                    self.violation(format_args!("the server accepts job {job}, and has not stored it"));
                }
                self.desk.accepted.insert(job);
                self.note(format_args!("accepted {job}"));
            }
        }
    }

    /// As the office does it: row, list and audit in one transaction, then the list is told.
    fn raise_epoch(&mut self, device: NodeId, epoch: Epoch) {
        let tenant = self.desk.tenant.clone();
        let Some(row) = self.server.rows.nodes.get(&(tenant.clone(), device)).cloned() else { return };
        if row.epoch < epoch {
            self.desk.raise(device, epoch);
            let row = NodeRow { epoch, attachment: 0, ..row };
            if self.server.rows.commit(&[Op::Node(row)]).is_err() {
                self.violation(format_args!("another epoch of {device} cannot be kept"));
            }
            self.note(format_args!("{device} goes on in epoch {epoch}"));
        }
        for (kind, version, envelope) in self.desk.documents() {
            self.feed_server(Event::Document(tenant.clone(), kind, String::new(), version, envelope));
        }
        self.feed_server(Event::NotRaised(tenant, device));
    }

    fn server_child(&mut self, node: NodeId, session: u64, command: LinkCommand) {
        let links = self.server.process.as_ref().map(|p| &p.links);
        if let Some((live, id)) = links.and_then(|links| links.get(&node)).copied()
            && live == session
        {
            self.command(id, Side::Parent, command);
        }
    }

    /// Durable before told: what the message promises is in the store.
    fn server_tells(&mut self, message: &Message) {
        let tenant = &self.desk.tenant;
        match message {
            Message::Acks(acks) => {
                for ack in acks.iter().filter(|ack| ack.refused.is_empty() && ack.settled > 0) {
                    let (rows, key) = (&self.server.rows, (tenant.clone(), ack.stream.key()));
                    // A stream may be forgotten by the transaction that made this durable.
                    if rows.forgotten.contains(&key) {
                        continue;
                    }
                    let held = rows.streams.get(&key).map_or(0, |r| r.upto);
                    if ack.settled > held || ack.stored > held {
                        let (settled, node) = (ack.settled, ack.stream.node);
                        return self
                            .violation(format_args!("the server settles {settled} of {node}, and holds {held}"));
                    }
                }
            }
            Message::Orders(orders) => {
                for order in orders {
                    let payload = rmp_serde::from_slice::<branchline_protocol::order::Payload>(&order.envelope.payload);
                    let known = payload.is_ok_and(|p| {
                        self.server.rows.job(tenant, p.job).is_some() || self.desk.forgotten.contains(&p.job)
                    });
                    if !known {
                        return self.violation(format_args!("the server sends an order it has not stored"));
                    }
                }
            }
            _ => {}
        }
    }

    /// Starts the next commit with everything that has gathered.
    fn commit_server(&mut self) {
        let life = self.life(Place::Server);
        let Some(process) = &mut self.server.process else { return };
        if process.committing.is_some() || process.queue.is_empty() {
            return;
        }
        let gathered = std::mem::take(&mut process.queue);
        let tokens: Vec<Token> = gathered.iter().map(|(_, token)| *token).collect();
        let ops: Vec<Op> = gathered.into_iter().flat_map(|(ops, _)| ops).collect();
        process.committing = Some((ops, tokens.clone()));
        let wait = 1 + self.chance.below(8);
        self.after(wait, What::Synced(Place::Server, life));
        if self.has(Defect::ServerTellsEarly) {
            tokens.into_iter().for_each(|token| self.feed_server(Event::Committed(token)));
        }
    }

    /// The commit under way is durable.
    pub(super) fn server_synced(&mut self) {
        let Some((mut ops, tokens)) = self.server.process.as_mut().and_then(|p| p.committing.take()) else { return };
        match self.options.defect {
            Some(Defect::ServerForgetsNumber) => ops.retain(|op| !matches!(op, Op::Meta(..))),
            Some(Defect::ServerForgetsStreams) => ops.retain(|op| !matches!(op, Op::Stream(..))),
            Some(Defect::ServerForgetsEnds) => {
                let evil = &mut self.evil;
                ops.retain(|op| !matches!(op, Op::JobDevice { state, .. } if state.is_end()) || !evil.one_in(3));
            }
            _ => {}
        }
        for op in &ops {
            self.nobody_lies(op);
        }
        if self.server.rows.commit_sound(&ops).is_err() {
            self.violation(format_args!("the server's batch is in conflict with its store"));
        }
        for token in tokens {
            self.feed_server(Event::Committed(token));
        }
        self.commit_server();
    }

    /// Nobody here forges or alters: whom the server finds to have done so is wronged. Only what comes of a device whose disk
    /// was put back is not believed until it has heard of its newer links; it keeps its records.
    fn nobody_lies(&mut self, op: &Op) {
        match op {
            Op::Audit(row) if ["alert.stream_head_mismatch", "receipt.refused"].contains(&&row.what[..]) => {
                self.violation(format_args!("the server suspects {}: {} {}", row.who, row.what, row.detail));
            }
            Op::DeadLetter(row) if row.code == "foreign" => {
                let by = Place::of(row.stream.node);
                if !by.is_some_and(|place| self.machines[&place].restored) {
                    let (node, via) = (row.stream.node, row.via);
                    self.violation(format_args!("the server does not take {} of {node} from {via}", row.number));
                }
            }
            _ => {}
        }
    }

    pub(super) fn server_child_up(&mut self, id: LinkId, child: Arc<Child>) {
        let now = self.now_of(Place::Server);
        let Some(process) = &mut self.server.process else { return };
        process.links.insert(child.node, (child.session, id));
        if process.stated_at.is_none_or(|at| now.mono.since(at) >= 1_000) {
            self.state_time();
        }
        self.attached(Place::Server, child.node);
        self.feed_server(Event::Up(child));
    }

    /// Something came from a child.
    pub(super) fn server_child_came(&mut self, child: Arc<Child>, came: Came) {
        match came {
            Came::Message(received) => match Message::decode(&received.bytes) {
                Ok(message) => {
                    let preloaded = self.preload(&message);
                    let (lane, credit) = (received.lane, received.credit);
                    self.feed_server(Event::Said { child, message, lane, credit, preloaded });
                }
                Err(fault) => self.violation(format_args!("the server cannot read {}: {fault}", child.node)),
            },
            Came::Done => self.feed_server(Event::Done(child)),
            Came::Heard => self.feed_server(Event::Heard(child)),
            Came::Alive(_) | Came::Lease(_) | Came::Continue | Came::Spread(_) => {}
        }
    }

    fn preload(&self, message: &Message) -> Preloaded {
        let Message::Records(runs) = message else { return Preloaded::new() };
        let reports = runs.iter().filter(|run| run.records.iter().any(|r| r.class == class::INVENTORY));
        reports
            .filter_map(|run| {
                let row = self.server.rows.inventory(&self.desk.tenant, run.stream.node)?;
                Some((run.stream.node, (Snapshot { sections: row.sections }, row.collected_at)))
            })
            .collect()
    }
}
