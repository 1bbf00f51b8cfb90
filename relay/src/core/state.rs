//! The state between events and effects.

use super::{
    Effect, Event, Shelf, again::Again, age::Age, bounds::Bounds, gather::Gather, owed::Owed, persist,
    recall::Recalling, receipts::Receipts, sleepers::Sleepers,
};
use branchline_node::{
    defects::{Defect, Defects, NoDefects},
    downstream::{
        Child,
        directory::Directory,
        ledger::{Ask, Change, Ledger, Row},
    },
    driver::Token,
    store::{Batch, Table},
    uplink::spool::{Mark, Spool},
};
use branchline_protocol::{
    id::{AttachmentKey, Epoch, NodeId, OrderNumber, Role, TenantId},
    job::Class,
    order::Signer,
    record::{Alert, Fact, Facts, Lane, class},
    time::{Millis, Now},
    wire::{Contact, Greeting, Message, PROTOCOL, PresenceEntry, Reach},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Milliseconds between two tellings of the relay's own figures.
const FIGURES_EVERY_MS: u64 = 2_000;

/// Who this relay is.
#[derive(Clone, Debug)]
pub struct Me {
    /// Whose.
    pub tenant: TenantId,
    /// Its id.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its name, shown in chains.
    pub name: String,
    /// The key of its certificate: signs receipts and heads of its own streams.
    pub signer: Arc<Signer>,
}

/// What one child is to be told of one stream: child, session, stream, refused numbers with their codes.
pub(super) type ChildAck = (NodeId, u64, branchline_protocol::record::StreamId, Vec<(u64, String)>);

/// What waits for a commit.
#[derive(Default)]
pub(super) struct After {
    pub effects: Vec<Effect>,
    pub mark: Vec<Mark>,
    /// Devices whose orders may go out once this is durable.
    pub look: BTreeSet<NodeId>,
    /// Holders that are durable with it.
    pub asks: Vec<Ask>,
    /// How much is on the disk with it.
    pub age: u64,
    /// Streams to acknowledge to a child, with what was refused.
    pub acks: Vec<ChildAck>,
}

pub(super) struct Link {
    pub session: u64,
    pub role: Role,
    pub poll: bool,
    pub done: bool,
    /// Whether it can be woken once it has no slot.
    pub wakeable: bool,
}

/// The relay.
pub struct RelayCore<D: Defects = NoDefects> {
    /// What is wrong on purpose: nothing, save in a simulator.
    pub(super) defects: D,
    pub(super) me: Me,
    pub(super) spool: Spool,
    pub(super) ledger: Ledger,
    pub(super) directory: Directory,
    pub(super) shelf: Shelf,
    pub(super) links: BTreeMap<NodeId, Link>,
    /// Numbers of child relays' disks: another one means that what the child held is gone.
    pub(super) disks: BTreeMap<NodeId, u64>,
    /// Openings of child relays' stores that were met since the start: of another one it is not known what it still holds.
    pub(super) openings: BTreeMap<NodeId, u64>,
    /// Cancelled orders of devices, and until when that must be known (JOB-14).
    pub(super) tombs: BTreeMap<(OrderNumber, NodeId), Millis>,
    /// What children that are away are to be told that they have said they have: in which epoch, which orders.
    pub(super) reminders: BTreeMap<NodeId, (Epoch, Vec<OrderNumber>)>,
    /// This disk's own number, and whether it is written down.
    pub(super) disk: (u64, bool),
    /// Node time as it was written down last.
    pub(super) time_kept: Option<Millis>,
    pub(super) ancestors: Vec<(NodeId, String)>,
    pub(super) parent_up: bool,
    pub(super) attachment: u64,
    /// How often in a row a parent knew a newer attachment.
    pub(super) overtaken: u32,
    pub(super) bounds: Bounds,
    /// What a restored server wants to know, while this link to it lasts.
    pub(super) recalling: Option<Recalling>,
    /// What lets this relay speak for nodes below it.
    pub(super) receipts: Receipts,
    /// What children have to send once more.
    pub(super) again: Again,
    /// How much is on this disk.
    pub(super) age: Age,
    /// Devices that hang here directly, as the disk knows them.
    pub(super) sleepers: Sleepers,
    /// Facts to tell, until the next tick or until the result itself makes them idle.
    pub(super) facts: BTreeSet<(OrderNumber, u8, NodeId)>,
    figures: Option<String>,
    figures_told_at: Option<u64>,
    /// When records go up.
    pub(super) gather: Gather,
    /// What children are to be told of their records.
    pub(super) owed: Owed,
    pub(super) next_token: Token,
    pub(super) waiting: BTreeMap<Token, After>,
}

impl<D: Defects> RelayCore<D> {
    pub(super) fn from_parts(defects: D, me: Me, spool: Spool, ledger: Ledger, shelf: Shelf, attachment: u64) -> Self {
        RelayCore {
            defects,
            me,
            spool,
            ledger,
            directory: Directory::default(),
            shelf,
            links: BTreeMap::new(),
            disks: BTreeMap::new(),
            openings: BTreeMap::new(),
            reminders: BTreeMap::new(),
            tombs: BTreeMap::new(),
            disk: (0, false),
            time_kept: None,
            ancestors: Vec::new(),
            parent_up: false,
            attachment,
            overtaken: 0,
            bounds: Bounds::default(),
            recalling: None,
            receipts: Receipts::default(),
            again: Again::default(),
            age: Age::default(),
            sleepers: Sleepers::default(),
            facts: BTreeSet::new(),
            figures: None,
            figures_told_at: None,
            gather: Gather::default(),
            owed: Owed::default(),
            next_token: 0,
            waiting: BTreeMap::new(),
        }
    }

    /// The relay's ancestors and itself, nearest the server first: what its own children are welcomed with.
    pub fn chain(&self) -> Vec<(NodeId, String)> {
        let mut chain = self.ancestors.clone();
        chain.push((self.me.node, self.me.name.clone()));
        chain
    }

    /// Whether its parent is a relay, not the server.
    pub(super) fn is_nested(&self) -> bool {
        self.ancestors.len() > 1
    }

    /// Documents.
    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// Node time as far as the disk knows it: the clock goes on from here until a parent says more (JOB-4).
    pub fn kept_time(&self) -> Option<Millis> {
        self.time_kept.max(self.shelf.time().map(|statement| statement.time))
    }

    /// What waits to go up.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Orders that are not over below.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Batches that were asked for, durable or not.
    pub fn commits(&self) -> u64 {
        self.next_token
    }

    /// Children with a live link.
    pub fn links(&self) -> u64 {
        self.links.len() as u64
    }

    /// Whether a link of a child is not newer than what is known of it: it must not take the newer one's place. One of an
    /// epoch that the child has left is let in, to hear so.
    pub fn is_stale(&self, child: &Child) -> bool {
        !self.is_past(child) && self.knows(child.node, child.key)
    }

    /// Whether an attachment of a node below that is as new is known.
    pub fn knows(&self, node: NodeId, key: AttachmentKey) -> bool {
        self.directory.is_stale(node, key)
    }

    /// Who is below.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Whether the uplink is up.
    pub fn parent_up(&self) -> bool {
        self.parent_up
    }

    fn greeting(&self, parent: NodeId) -> Greeting {
        Greeting {
            protocol: *PROTOCOL.end(),
            build: env!("CARGO_PKG_VERSION").into(),
            tenant: self.me.tenant.clone(),
            node: self.me.node,
            role: Role::Relay,
            epoch: self.me.epoch,
            attachment: self.attachment,
            incarnation: self.spool.incarnation(),
            disk: self.disk.0,
            age: self.age.next(),
            contact: Contact::Persistent,
            depth_below: self.directory.depth_below(),
            stored_at: self.spool.stored_at(),
            documents: self.shelf.versions(),
            term: self.shelf.time().map_or(0, |t| t.term),
            wake_port: 0,
            receipt: Some(self.receipt(parent).seal(&self.me.signer)),
            capabilities: [].into(),
            next_poll_s: None,
        }
    }

    pub(super) fn event(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Dialling(number, parent) => {
                self.attachment += 1;
                let mut batch = Batch::new();
                batch.put(Table::Meta, persist::ATTACHMENT.to_vec(), self.attachment.to_be_bytes().to_vec());
                if !std::mem::replace(&mut self.disk.1, true) {
                    batch.put(Table::Meta, persist::DISK.to_vec(), self.disk.0.to_be_bytes().to_vec());
                }
                self.receipts.sweep(&mut batch);
                let greet = Effect::Greet(number, Box::new(self.greeting(parent)));
                self.commit(now, batch, After { effects: vec![greet], ..After::default() }, out);
            }
            Event::ParentUp(welcome) => self.welcomed(now, *welcome, out),
            Event::ParentSaid(message, lane, credit) => self.parent_said(now, message, (lane, credit), out),
            Event::Alive(envelope) => {
                self.take_document(now, branchline_protocol::document::Kind::Time, envelope, Vec::new(), out)
            }
            Event::Document(kind, envelope) => self.take_document(now, kind, envelope, Vec::new(), out),
            Event::ParentDown => {
                self.parent_up = false;
                self.recalling = None;
                self.spool.link_down();
            }
            Event::Overtaken => self.overtaken(now, out),
            Event::ChildUp(child) => self.child_up(now, child, out),
            Event::ChildSaid(child, message, lane, credit) => {
                self.child_said(now, &child, message, (lane, credit), out)
            }
            Event::ChildDone(child) => {
                if let Some(link) = self.links.get_mut(&child.node).filter(|l| l.session == child.session) {
                    link.done = true;
                }
                self.end_polls(out);
            }
            Event::Heard(child) => self.directory.heard(child, now.node),
            Event::ChildGone(child, end) => self.child_gone(now, &child, &end, out),
            Event::Displaced(node, lease) => self.displaced(now, node, lease, out),
            Event::Stale(node, key) => self.refused_as_stale(now, node, key, out),
            Event::GoesOff(node, key) => self.goes_off(now, node, key, out),
            Event::Figures(figures) => self.figures = Some(figures),
            Event::LowSpace(low) => self.low_space(now, low, out),
            Event::Loaded(rows) => {
                if let Err(fault) = self.spool.loaded(rows) {
                    out.push(Effect::Damaged(fault.to_string()));
                }
            }
            Event::Committed(token) => self.committed(now, token, out),
            Event::Tick => self.tick(now, out),
            // On disk with the stop, sent at the next start.
            Event::Stopping => self.sign_heads(now, true, out),
        }
        self.let_go(out);
        self.pump(false, out);
    }

    /// Presence, facts and gathered records go up; what is late goes back.
    fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.expire(now, out);
        self.wake_after_start(now, out);
        self.retry_left(now, out);
        self.look_at_recall(now, out);
        if !self.facts.is_empty() {
            let mut grouped: BTreeMap<(OrderNumber, u8), Vec<NodeId>> = BTreeMap::new();
            for (order, fact, device) in std::mem::take(&mut self.facts) {
                grouped.entry((order, fact)).or_default().push(device);
            }
            let facts = grouped.into_iter().map(|((order, fact), devices)| (order, fact_of(fact), devices)).collect();
            self.tell(now, class::FACTS, &Facts { facts }, out);
        }
        self.tell_owed(out);
        self.sign_heads(now, false, out);
        self.tell_age(out);
        self.directory.expire(now.node);
        if self.parent_up {
            let mut entries = self.directory.changes();
            if D::SEEDED && self.defects.has(Defect::TELLS_NO_PRESENCE) {
                entries.clear();
            }
            let due = self.figures_told_at.is_none_or(|at| now.mono.0 >= at + FIGURES_EVERY_MS);
            if due && let Some(figures) = self.figures.take() {
                self.figures_told_at = Some(now.mono.0);
                entries.push(self.own_entry(now, figures));
            }
            if !entries.is_empty() {
                out.push(Effect::ToParent(Lane::Control, Message::Presence { snapshot: false, entries }));
            }
        }
        if self.gather.is_due(now.mono) {
            self.pump(true, out);
        }
    }

    /// Heads of the relay's own streams, those that are due or all.
    fn sign_heads(&mut self, now: Now, goodbye: bool, out: &mut Vec<Effect>) {
        let mut batch = Batch::new();
        if let Some(mark) = self.spool.sign_heads(now.shown(), goodbye, &mut batch) {
            self.commit(now, batch, After { mark: vec![mark], ..After::default() }, out);
        }
    }

    /// The relay's own row, for its figures only.
    fn own_entry(&self, now: Now, figures: String) -> PresenceEntry {
        PresenceEntry {
            node: self.me.node,
            role: Role::Relay,
            key: AttachmentKey { epoch: self.me.epoch, attachment: self.attachment },
            via: Vec::new(),
            reach: Reach::Persistent,
            last_contact: now.node,
            next_contact: None,
            capabilities: [].into(),
            figures: Some(figures),
            settings: (0, 0),
            poll_interval_ms: None,
            slot: None,
        }
    }

    /// A record of the relay's own.
    pub(super) fn tell<T: serde::Serialize>(&mut self, now: Now, class: u16, body: &T, out: &mut Vec<Effect>) {
        let Ok(body) = rmp_serde::to_vec(body) else { return };
        let mut batch = Batch::new();
        let mark = self.spool.append(now.shown(), Lane::Work, class, None, body.into(), &mut batch);
        self.commit(now, batch, After { mark: vec![mark], ..After::default() }, out);
    }

    pub(super) fn alert(&mut self, now: Now, code: &str, message: String, out: &mut Vec<Effect>) {
        self.tell(now, class::ALERT, &Alert { code: code.into(), message }, out);
    }

    pub(super) fn commit(&mut self, now: Now, mut batch: Batch, mut after: After, out: &mut Vec<Effect>) {
        if batch.is_empty() {
            self.release(now, after, out);
            return;
        }
        after.age = self.age.count(&mut batch);
        self.next_token += 1;
        self.waiting.insert(self.next_token, after);
        out.push(Effect::Commit(batch, self.next_token));
    }

    fn committed(&mut self, now: Now, token: Token, out: &mut Vec<Effect>) {
        if let Some(after) = self.waiting.remove(&token) {
            self.release(now, after, out);
        }
        self.end_polls(out);
    }

    fn release(&mut self, now: Now, after: After, out: &mut Vec<Effect>) {
        self.age.reached(after.age);
        for mark in &after.mark {
            self.spool.committed(mark);
        }
        self.acknowledge(after.acks, out);
        after.asks.iter().for_each(|ask| self.ledger.granted(ask));
        out.extend(after.effects);
        if !after.look.is_empty() {
            let devices: Vec<NodeId> = after.look.into_iter().collect();
            self.offer(now, Some(&devices), out);
        }
    }

    /// The child by which a device is to be given its orders now; none while it is suspended (JOB-16).
    pub(super) fn way(&self, device: NodeId) -> Option<NodeId> {
        let hop = self.directory.live_hop(device).filter(|child| self.links.contains_key(child));
        hop.filter(|_| !self.shelf.revocations().suspends(device))
    }

    /// Hands waiting orders to the children that are there; to a child that is no holder yet once it durably is.
    pub(super) fn offer(&mut self, now: Now, devices: Option<&[NodeId]>, out: &mut Vec<Effect>) {
        let stated = self.stated(now);
        let RelayCore { directory, ledger, links, shelf, bounds, .. } = self;
        let revocations = shelf.revocations();
        let takes = |child: &NodeId| links.contains_key(child) && bounds.may_offer(*child);
        let hop = |device| directory.live_hop(device).filter(takes);
        let round = ledger.offers(stated, devices, |device| hop(device).filter(|_| !revocations.suspends(device)));
        let also = ledger.also_offers(|child| links.contains_key(&child));
        let sleeps = |device: &NodeId| directory.may_sleep(*device) && !revocations.suspends(*device);
        out.extend(round.unreached.iter().copied().filter(sleeps).map(Effect::Wake));
        for offer in round.offers.into_iter().chain(also) {
            let Some(link) = links.get(&offer.child) else { continue };
            tracing::debug!(trace = %offer.payload.trace, order = %offer.payload.number, child = %offer.child, devices = offer.devices.len(), "handed on");
            let lane = if offer.payload.class == Class::Normal { Lane::Work } else { Lane::Urgent };
            out.push(Effect::ToChild(offer.child, link.session, lane, Message::Orders(vec![offer.message])));
        }
        if !round.asks.is_empty() {
            let mut batch = Batch::new();
            round.asks.iter().for_each(|ask| persist::row(&ask.change, &mut batch));
            let look = round.asks.iter().map(|ask| ask.change.device).collect();
            self.commit(now, batch, After { look, asks: round.asks, ..After::default() }, out);
        }
    }

    /// Ledger changes onto disk, and those the parent should hear of.
    pub(super) fn note(&mut self, changes: Vec<Change>, batch: &mut Batch) {
        for change in changes {
            persist::row(&change, batch);
            match change.row {
                Some(Row::HandedOver) => {
                    self.facts.insert((change.order, Fact::HandedOver as u8, change.device));
                }
                None => {
                    self.facts.retain(|(order, _, device)| (*order, *device) != (change.order, change.device));
                    if !self.ledger.contains(change.order) {
                        persist::order_gone(change.order, batch);
                    }
                }
                _ => {}
            }
        }
    }
}

fn fact_of(number: u8) -> Fact {
    [Fact::Held, Fact::HandedOver, Fact::GivenBack, Fact::RefusedBadSignature]
        .into_iter()
        .find(|f| *f as u8 == number)
        .unwrap_or(Fact::Held)
}
