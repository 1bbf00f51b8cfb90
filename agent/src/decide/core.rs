//! The core itself: what it holds, how a turn becomes one batch, what is done once that batch is durable. What single
//! events mean is in `link` and `orders`.

use super::{
    documents::Documents,
    event::{Counted, Effect, Event, JobStart, Me, Note},
    inventory::{Inventory, Request},
    journal::Journal,
    kept::Kept,
    restart::Restarts,
    schedule::Scheduler,
    untold::Untold,
    wake::Wake,
};
use branchline_node::{
    defects::{Defects, NoDefects},
    driver::{Core, Token},
    store::{Batch, Table},
    uplink::spool::{Kind, Mark, Quotas, Spool},
};
use branchline_protocol::{
    id::{Attachment, Epoch, OrderNumber, TraceId},
    job::End,
    record::{Alert, JobResult, Lane, class},
    time::{Millis, Mono, Now},
    wire::{Goodbye, Lease, Message},
};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Where the attachment number is kept, u64 big-endian.
pub(super) const ATTACHMENT: &[u8] = b"attachment";

/// Milliseconds between two alerts about orders that were refused: whoever sends forged ones must not fill the disk.
pub(super) const ALERT_EVERY_MS: u64 = 60_000;

/// What is carried out once a batch is durable.
pub(super) enum Then {
    /// As it is; not at all if it is for a link that is gone.
    Effect(Effect),
    /// Start a job, now or when there is an executor.
    Start(Box<JobStart>),
    /// Tell the parent that these were taken, unless their results do.
    Taken(Vec<OrderNumber>),
    /// Collect for an order.
    Request(Request),
    /// End a job that was cancelled after it had begun.
    Kill(OrderNumber),
}

/// What one event brought together.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) batch: Batch,
    pub(super) marks: Vec<Mark>,
    pub(super) then: Vec<Then>,
    /// Orders that are not taken now, and why.
    pub(super) left: Vec<(OrderNumber, &'static str)>,
}

impl Turn {
    pub(super) fn then(&mut self, effect: Effect) {
        self.then.push(Then::Effect(effect));
    }
}

struct Waiting {
    token: Token,
    link: u64,
    marks: Vec<Mark>,
    then: Vec<Then>,
}

/// The link that is up.
pub(super) struct Link {
    /// Which one of this core's life.
    pub(super) number: u64,
    /// Whether it is a poll.
    pub(super) poll: bool,
    /// Whether we said that we are done.
    pub(super) done: bool,
    /// Whether the parent asked to finish what is under way and begin nothing new.
    pub(super) closing: bool,
    /// Since when it is up.
    pub(super) since: Mono,
}

/// See the module.
pub struct AgentCore<D: Defects = NoDefects> {
    /// What is wrong on purpose: nothing, save in a simulator.
    pub(super) defects: D,
    pub(super) me: Me,
    pub(super) spool: Spool,
    pub(super) journal: Journal,
    pub(super) untold: Untold,
    pub(super) kept: Kept,
    pub(super) inventory: Inventory,
    pub(super) schedule: Scheduler,
    /// The settings that a parent was told of in a way that reaches it.
    pub(super) told_settings: (u32, u64),
    pub(super) documents: Documents,
    pub(super) restarts: Restarts,
    /// The machine's life, as the platform tells it from others.
    pub(super) life: String,
    pub(super) attachment: Attachment,
    pub(super) link: Option<Link>,
    pub(super) lease: Option<Lease>,
    pub(super) low_space: bool,
    /// The epoch in which this disk was found to be put back to an older state.
    pub(super) rolled_back: Option<Epoch>,
    /// When that was told last, or was still on its way.
    pub(super) rolled_back_told: Mono,
    /// How often in a row a parent knew a newer attachment.
    pub(super) overtaken: u32,
    /// Whether the link that ends is to be followed by another at once.
    pub(super) redial: bool,
    /// What a parent may wake this device with.
    pub(super) wake: Wake,
    pub(super) refused_unreported: u64,
    pub(super) alerted: Option<Mono>,
    pub(super) links: u64,
    tokens: Token,
    waiting: VecDeque<Waiting>,
    executor: bool,
    collector: bool,
    /// Whose intent is durable and that no executor has yet.
    starts: BTreeMap<OrderNumber, Box<JobStart>>,
    revocation_done: bool,
}

impl<D: Defects> AgentCore<D> {
    pub(super) fn of(defects: D, me: Me, spool: Spool, documents: Documents) -> Self {
        let schedule = Scheduler::new(spool.incarnation());
        AgentCore {
            defects,
            me,
            spool,
            journal: Journal::default(),
            untold: Untold::default(),
            kept: Kept::default(),
            inventory: Inventory::default(),
            schedule,
            told_settings: (0, 0),
            documents,
            restarts: Restarts::default(),
            life: String::new(),
            attachment: 0,
            link: None,
            lease: None,
            low_space: false,
            rolled_back: None,
            rolled_back_told: Mono::default(),
            overtaken: 0,
            redial: false,
            wake: Wake::default(),
            refused_unreported: 0,
            alerted: None,
            links: 0,
            tokens: 0,
            waiting: VecDeque::new(),
            executor: false,
            collector: false,
            starts: BTreeMap::new(),
            revocation_done: false,
        }
    }

    /// Other quotas than the usual ones.
    pub fn set_quotas(&mut self, quotas: Quotas) {
        self.spool.set_quotas(quotas);
    }

    /// The documents that count now.
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// When [`Event::Tick`] is due.
    pub fn next_deadline(&self, now: Now) -> Option<Mono> {
        let may_begin = !self.documents.suspends_me() && !self.is_rolled_back();
        let journal = self.journal.next_deadline(now, may_begin);
        let heads = self.spool.heads_due_in(now.shown()).map(|ms| now.mono.plus(ms));
        let (schedule, restarts) = (self.schedule.next_deadline(), self.restarts.next_deadline());
        let others = [schedule, restarts, heads, self.rolled_back_due(), self.untold.due()];
        journal.into_iter().chain(others.into_iter().flatten()).min()
    }

    /// A record of our own, durable with this turn.
    pub(super) fn append(
        &mut self,
        now: Now,
        lane: Lane,
        class: u16,
        trace: Option<TraceId>,
        body: Bytes,
        turn: &mut Turn,
    ) {
        let mark = self.spool.append(now.shown(), lane, class, trace, body, &mut turn.batch);
        turn.marks.push(mark);
    }

    pub(super) fn append_result(&mut self, now: Now, lane: Lane, trace: TraceId, result: &JobResult, turn: &mut Turn) {
        self.untold.answered(result.order);
        self.append_old_order(now, lane, result.order, Some(trace), turn);
        self.bound_kept(now, turn);
        let body = rmp_serde::to_vec_named(result).expect("a result is plain data");
        self.append(now, lane, class::RESULT, Some(trace), body.into(), turn);
    }

    pub(super) fn alert(&mut self, now: Now, code: &str, message: String, turn: &mut Turn) {
        let body = rmp_serde::to_vec_named(&Alert { code: code.into(), message }).expect("an alert is plain data");
        self.append(now, Lane::Work, class::ALERT, None, body.into(), turn);
    }

    /// One order's line in the log, once it is durable.
    pub(super) fn note(&self, order: OrderNumber, open: &super::journal::Open, what: &'static str) -> Effect {
        Effect::Note(Note { order, job: open.job, trace: open.trace, what, reason: None })
    }

    /// Begins every order whose time has come and that has what it needs, within this turn's batch.
    pub(super) fn begin_ready(&mut self, now: Now, turn: &mut Turn) {
        if self.documents.revokes_me() {
            return self.give_up_received(now, End::Refused, "revoked", turn);
        }
        if self.documents.suspends_me() || self.is_rolled_back() {
            return;
        }
        while let Some(order) = self.journal.startable(now) {
            let Some(open) = self.journal.intend(order, now, &self.life, &mut turn.batch) else { return };
            self.carry_out(now, order, open, turn);
        }
    }

    fn close(&mut self, turn: Turn, now: Now, out: &mut Vec<Effect>) {
        let Turn { batch, marks, then, .. } = turn;
        if batch.is_empty() && (then.is_empty() || self.waiting.is_empty()) {
            return self.perform(self.links, then, now, out);
        }
        self.tokens += 1;
        self.waiting.push_back(Waiting { token: self.tokens, link: self.links, marks, then });
        out.push(Effect::Commit(batch, self.tokens));
    }

    fn committed(&mut self, token: Token, now: Now, out: &mut Vec<Effect>) {
        while self.waiting.front().is_some_and(|w| w.token <= token) {
            let Some(Waiting { link, marks, then, .. }) = self.waiting.pop_front() else { return };
            marks.iter().for_each(|mark| self.spool.committed(mark));
            self.perform(link, then, now, out);
            if !marks.is_empty() && self.link.is_none() {
                out.push(Effect::Poke(self.poke()));
            }
        }
    }

    fn perform(&mut self, link: u64, then: Vec<Then>, now: Now, out: &mut Vec<Effect>) {
        let same_link = self.link.as_ref().is_some_and(|l| l.number == link);
        for then in then {
            match then {
                Then::Effect(Effect::Send(..) | Effect::Release(..) | Effect::Goodbye(_)) if !same_link => {}
                Then::Taken(orders) if same_link => self.untold.taken(orders, now.mono),
                Then::Taken(_) => {}
                Then::Effect(Effect::Redial) => self.leave(same_link, out),
                Then::Effect(effect) => out.push(effect),
                Then::Start(start) => {
                    self.starts.insert(start.order, start);
                }
                // One that no executor has yet is killed when it is given to one.
                Then::Kill(order) => {
                    let runs = self.journal.begun(order).is_some_and(|open| open.needs_slot());
                    if runs && !self.starts.contains_key(&order) {
                        out.push(Effect::Kill(order));
                    }
                }
                Then::Request(request) => {
                    if let Some(order) = request.order {
                        self.journal.awaited(order, now);
                    }
                    self.inventory.request(request);
                }
            }
        }
    }

    /// What follows from the state as it is, whatever event led to it.
    fn go_on(&mut self, now: Now, out: &mut Vec<Effect>) {
        let revoked = self.documents.revokes_me();
        if revoked && !self.revocation_done {
            let running = self.journal.all_begun().filter(|(_, open, _)| open.needs_slot());
            out.extend(running.map(|(order, ..)| Effect::Kill(order)));
        }
        self.revocation_done = revoked;
        if self.executor {
            while let Some((order, start)) = self.starts.pop_first() {
                self.journal.awaited(order, now);
                let (job, trace) = (start.job, start.trace);
                let cancelled = self.journal.begun(order).is_some_and(|open| open.cancelled);
                out.push(Effect::Note(Note { order, job, trace, what: "started", reason: None }));
                out.push(Effect::Start(start));
                if self.revocation_done || cancelled {
                    out.push(Effect::Kill(order));
                }
            }
        }
        let room = self.spool.has_room(Kind::Inventory, 1);
        if self.collector && room && !self.documents.suspends_me() && self.inventory.begin().is_some() {
            let settings = self.documents.settings();
            self.schedule.begins(settings.map_or(0, |s| s.version));
            let sections = settings.map(|s| s.collect.clone()).unwrap_or_default();
            out.push(Effect::Collect(sections));
        }
        let closing = self.link.as_ref().is_some_and(|link| link.closing);
        if self.link.is_some() && !closing {
            while let Some((lane, runs)) = self.spool.take() {
                out.push(Effect::Send(lane, Message::Records(runs)));
            }
        }
        self.tell_taken(now, out);
        // Waiting batches hold what this link is still owed.
        let sent = if closing { !self.spool.is_under_way() } else { self.spool.is_drained() };
        let drained = self.waiting.is_empty() && sent;
        if let Some(link) = &mut self.link
            && link.poll
            && !link.done
            && drained
        {
            link.done = true;
            out.push(Effect::Goodbye(Goodbye::Done));
        }
    }

    fn start(&mut self, now: Now, turn: &mut Turn, out: &mut Vec<Effect>) {
        if let Some(statement) = self.documents.time() {
            out.push(Effect::LearnTime(statement.time));
        }
        self.end_restarts(now, turn);
        out.extend(self.wake.known().map(Effect::WakeKeys));
        let begun: Vec<_> = self.journal.all_begun().map(|(order, open, _)| (order, open.clone())).collect();
        for (order, open) in begun.into_iter().filter(|(_, open)| !open.needs_slot()) {
            self.carry_out(now, order, open, turn);
        }
        self.prune_kept(&mut turn.batch);
        self.schedule.start(now, self.documents.settings(), self.inventory.is_new(), &mut turn.batch);
        self.release_held(now, true, turn);
        self.look_at_schedule(now, turn);
        self.begin_ready(now, turn);
    }

    /// The schedule, by the clock as it is now. A revoked device begins nothing, a suspended one until it is revived.
    pub(super) fn look_at_schedule(&mut self, now: Now, turn: &mut Turn) {
        self.release_held(now, false, turn);
        if self.documents.revokes_me() || self.documents.suspends_me() {
            return self.schedule.rest();
        }
        self.schedule.look(now, self.documents.settings(), &mut turn.batch);
        if self.schedule.asks() {
            turn.then.push(Then::Request(Request { order: None, full: self.inventory.is_new() }));
        }
    }

    /// Heads of this device's streams: every five minutes of traffic, and at the end of a poll, before it says that it is
    /// done.
    fn sign_heads(&mut self, now: Now, turn: &mut Turn) {
        let leaves = self.link.as_ref().is_some_and(|link| link.poll && !link.done && !link.closing)
            && self.waiting.is_empty()
            && self.spool.is_drained();
        if let Some(mark) = self.spool.sign_heads(now.shown(), leaves, &mut turn.batch) {
            turn.marks.push(mark);
        }
    }

    /// A report that was held goes into the spool, before any later one.
    pub(super) fn release_held(&mut self, now: Now, at_once: bool, turn: &mut Turn) {
        if let Some(report) = self.schedule.release(now, at_once, &mut turn.batch) {
            self.append(now, Lane::Inventory, class::INVENTORY, None, report, turn);
        }
    }

    /// A fresh executor knows of nothing: whatever it does not get from `starts` was started before.
    fn executor_up(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.executor = true;
        out.push(Effect::KeepJobs(self.journal.all_begun().map(|(order, ..)| order).collect()));
        let waits = |order: &OrderNumber| self.starts.contains_key(order) || self.is_waiting_start(*order);
        let begun: Vec<_> = self
            .journal
            .all_begun()
            .filter(|(order, open, _)| open.needs_slot() && !waits(order))
            .map(|(order, open, _)| (order, open.cancelled, self.note(order, open, "resumed")))
            .collect();
        for (order, cancelled, note) in begun {
            self.journal.awaited(order, now);
            out.push(note);
            out.push(Effect::Resume(order));
            if self.revocation_done || cancelled {
                out.push(Effect::Kill(order));
            }
        }
    }

    /// With a defect: without waiting for its intent.
    pub(super) fn start_at_once(&mut self, start: JobStart) {
        self.starts.insert(start.order, Box::new(start));
    }

    fn is_waiting_start(&self, order: OrderNumber) -> bool {
        let mut then = self.waiting.iter().flat_map(|w| &w.then);
        then.any(|then| matches!(then, Then::Start(start) if start.order == order))
    }

    /// The next link: what waited for an older one is not sent on it.
    pub(super) fn put_attachment(&mut self, turn: &mut Turn) {
        self.attachment += 1;
        turn.batch.put(Table::Meta, ATTACHMENT, self.attachment.to_be_bytes().to_vec());
    }

    /// An earlier reading of this machine's clock as it is shown, never after now.
    pub(super) fn shown(now: Now, wall: Millis) -> Millis {
        let shown = now.shown();
        Millis(shown.0.saturating_add(wall.0.saturating_sub(now.wall.0))).min(shown)
    }
}

impl<D: Defects> Core for AgentCore<D> {
    type Event = Event;
    type Effect = Effect;

    fn handle(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        let mut turn = Turn::default();
        match event {
            Event::Committed(token) => self.committed(token, now, out),
            Event::Surroundings { zone, boot } => {
                self.life.clone_from(&boot);
                self.schedule.surroundings(zone, boot);
                self.look_at_schedule(now, &mut turn);
            }
            Event::Start => self.start(now, &mut turn, out),
            Event::ExecutorUp => self.executor_up(now, out),
            Event::CollectorUp => {
                self.collector = true;
                self.inventory.interrupted();
            }
            Event::Keys(keys) => self.wake.offered(keys),
            Event::Woken(heard) => self.woken(heard, &mut turn, out),
            Event::Dialling { dial, parent } => self.dialling(dial, parent, &mut turn),
            Event::Up(welcome) => {
                self.up(now, &welcome);
                self.tell_rolled_back(now, &mut turn);
            }
            Event::Overtaken => self.overtaken(now, &mut turn),
            Event::Received(received) => self.received(now, received, &mut turn, out),
            Event::Lease(lease) => self.leased(lease),
            Event::Continue => self.bounded(),
            Event::Alive(statement) => {
                if let Some(statement) = statement {
                    self.document(now, branchline_protocol::document::Kind::Time, &statement, &mut turn, out);
                }
            }
            Event::Refused(_) => {}
            Event::Down => self.down(out),
            Event::JobEnded { order, left } => self.job_ended(now, order, left, &mut turn, out),
            Event::JobNotStarted { order, end, reason } => {
                self.job_not_started(now, order, end, reason, &mut turn);
            }
            Event::Collect => self.inventory.request(Request { order: None, full: self.inventory.is_new() }),
            Event::Collected(snapshot) => self.collected(now, snapshot, &mut turn),
            Event::LowSpace(low) => {
                self.low_space = low;
                if low {
                    self.kept.bound(now.node, 0, &mut turn.batch);
                    self.spool.relieve(&mut turn.batch);
                }
            }
            Event::Tick => self.tick(now, &mut turn),
            // On disk with the stop, sent at the next start.
            Event::Stopping => turn.marks.extend(self.spool.sign_heads(now.shown(), true, &mut turn.batch)),
        }
        self.sign_heads(now, &mut turn);
        self.close(turn, now, out);
        self.go_on(now, out);
    }

    fn committed(token: Token) -> Event {
        Event::Committed(token)
    }

    fn into_commit(effect: Effect) -> Result<(Batch, Token), Effect> {
        match effect {
            Effect::Commit(batch, token) => Ok((batch, token)),
            other => Err(other),
        }
    }
}

/// Counting is said at once: it promises nothing.
pub(super) fn count(what: Counted, out: &mut Vec<Effect>) {
    out.push(Effect::Count(what));
}
