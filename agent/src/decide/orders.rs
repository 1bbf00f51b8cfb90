//! What becomes of an order: verified, journalled, begun, ended, reported (JOB-9, JOB-13, JOB-15, RLY-13).

use super::{
    core::{ALERT_EVERY_MS, AgentCore, Then, Turn, count},
    event::{Counted, Effect, JobStart, Note},
    inventory::Request,
    journal::{Cancelled, Open},
    restart::{RESTART_WITHIN_MS, may_restart},
    rolled_back,
};
use crate::{
    capabilities::{REFRESH_INVENTORY, RESTART, RUN_SCRIPT, permits},
    platform::{Ended, JobLeft, SpawnFault, Status},
};
use branchline_node::{
    defects::{Defect, Defects},
    uplink::spool::Kind,
};
use branchline_protocol::{
    id::{Epoch, OrderNumber},
    inventory::Snapshot,
    job::{CANCEL, Cancel, Class, End, RefreshInventory, RunScript, Runnable, cancel},
    order::{ORDER_PAYLOAD_TYPE, OrderFault, OrderMessage, Payload, verify_order},
    record::{Fact, Facts, JobResult, Lane, Progress, class},
    time::{Millis, Now},
    wire::Message,
};
use bytes::Bytes;

/// Bytes kept of each of stdout and stderr, whatever an order allows: a result must fit a message.
pub const OUTPUT_CAP_MAX: u64 = 4 * 1_048_576;

/// How an order ended, before it is a result.
struct Verdict {
    end: End,
    reason: Option<String>,
}

impl Verdict {
    fn because(end: End, reason: impl Into<String>) -> Verdict {
        Verdict { end, reason: Some(reason.into()) }
    }
}

/// The lane of an order's result is that of the order.
fn lane_of(class: Class) -> Lane {
    match class {
        Class::Normal => Lane::Work,
        Class::Urgent | Class::Erase => Lane::Urgent,
    }
}

fn word(end: End) -> &'static str {
    branchline_protocol::job::State::from(end).as_str()
}

/// A result without output.
fn plain(order: OrderNumber, verdict: Verdict, started_at: Option<Millis>, ended_at: Millis) -> JobResult {
    JobResult {
        order,
        end: verdict.end,
        reason: verdict.reason,
        exit_code: None,
        stdout: Bytes::new(),
        stderr: Bytes::new(),
        truncated: false,
        started_at,
        // A clock that was put back meanwhile ends nothing before it began.
        ended_at: started_at.map_or(ended_at, |started| started.max(ended_at)),
        simulated: false,
    }
}

/// An end of now, without output.
pub(super) fn plain_end(
    order: OrderNumber,
    end: End,
    reason: Option<&str>,
    started_at: Option<Millis>,
    now: Now,
) -> JobResult {
    plain(order, Verdict { end, reason: reason.map(str::to_owned) }, started_at, now.shown())
}

/// An order that is on this disk.
enum Has {
    /// From this turn on.
    Now(OrderNumber),
    /// It was before.
    Had(OrderNumber),
}

impl<D: Defects> AgentCore<D> {
    /// Takes the orders of one message. What is not taken is not acknowledged.
    pub(super) fn orders(&mut self, now: Now, orders: Vec<OrderMessage>, turn: &mut Turn, out: &mut Vec<Effect>) {
        let (mut taken, mut known) = (Vec::new(), Vec::new());
        for message in orders {
            match self.order(now, message, turn, out) {
                // One that is at its end already has its result in this turn.
                Some(Has::Now(order)) if self.journal.is_open(order) => taken.push(order),
                Some(Has::Had(order)) => known.push(order),
                Some(Has::Now(_)) | None => {}
            }
        }
        if !known.is_empty() {
            turn.then.push(self.send(Lane::Control, self.taken(known)));
        }
        if !taken.is_empty() {
            if D::SEEDED && self.defects.has(Defect::JOURNALS_AFTER_TAKEN) {
                out.push(Effect::Send(Lane::Control, self.taken(taken.clone())));
            }
            turn.then.push(Then::Taken(taken));
        }
        if !turn.left.is_empty() {
            // It promises nothing, so it need not wait for the disk, which may be the very thing that is full.
            let left = turn.left.drain(..).map(|(order, why)| (order, vec![self.me.node], why.into()));
            out.push(Effect::Send(Lane::Control, Message::Left(left.collect())));
        }
        self.begin_ready(now, turn);
    }

    /// The order, if it is on this disk once the turn is durable.
    fn order(&mut self, now: Now, message: OrderMessage, turn: &mut Turn, out: &mut Vec<Effect>) -> Option<Has> {
        let read = match self.me.unverified {
            false => verify_order(&message, &self.me.tenant, self.documents.trust()).map(|verified| verified.payload),
            true => rmp_serde::from_slice(&message.envelope.payload).map_err(|e| OrderFault::Malformed(e.to_string())),
        };
        let payload: Payload = match read {
            Ok(payload) => payload,
            Err(fault) => return self.refuse_unverified(now, &message, &fault, turn, out),
        };
        let order = payload.number;
        if self.journal.knows(order) && !(D::SEEDED && self.defects.has(Defect::TAKES_TWICE)) {
            count(Counted::OrderRepeated, out);
            return Some(Has::Had(order));
        }
        let mine = message.proof.leaves.iter().map(|(_, leaf)| leaf).filter(|leaf| leaf.device == self.me.node);
        let Some(epoch) = mine.map(|leaf| leaf.epoch).max() else {
            self.refused(now, "an order is for other devices", turn, out);
            return None;
        };
        // Before the first statement node time is this machine's clock, which may be anything. Of an earlier epoch's order
        // this disk cannot say that it never had it, late or not.
        let judges = epoch >= self.me.epoch && !(D::SEEDED && self.defects.has(Defect::EXPIRES_AT_SERVER_ONLY));
        if judges && self.documents.time().is_some() && now.node > payload.fetch_by {
            count(Counted::OrderLate, out);
            self.give_back(now, order, turn);
            return None;
        }
        let mut open = Open::of(&payload, message.args.clone());
        if let Some(why) = self.leaves(&open, epoch) {
            count(Counted::OrderLeft, out);
            turn.left.push((order, why));
            return None;
        }
        // From here on it is taken, and has a result some time that may be asked for again.
        self.kept.take(order, &message, &mut turn.batch);
        if epoch < self.me.epoch {
            // Ordered to an earlier life of this device: it may have been run then, on a disk that is no more.
            let verdict = Verdict::because(End::OutcomeUnknown, rolled_back::REASON);
            self.end_at_once(now, order, &open, verdict, turn);
            return Some(Has::Now(order));
        }
        if open.verb == CANCEL {
            self.cancel(now, order, &open, turn);
            return Some(Has::Now(order));
        }
        if let Err(answer) = permits(&self.me.capabilities, self.me.platform, &open.verb) {
            self.end_at_once(now, order, &open, Verdict::because(End::Unsupported, answer.reason()), turn);
            return Some(Has::Now(order));
        }
        if let Err(verdict) = check_args(&mut open) {
            self.end_at_once(now, order, &open, verdict, turn);
            return Some(Has::Now(order));
        }
        let note = self.note(order, &open, "taken");
        self.journal.receive(order, open, &mut turn.batch);
        turn.then(note);
        Some(Has::Now(order))
    }

    /// An order that came too late is closed, so that it never runs whatever this device's clock does, and the parents
    /// learn that they need not wait for it.
    fn give_back(&mut self, now: Now, order: OrderNumber, turn: &mut Turn) {
        self.journal.close(order, &mut turn.batch);
        let facts = Facts { facts: vec![(order, Fact::GivenBack, vec![self.me.node])] };
        let body = rmp_serde::to_vec(&facts).expect("facts are plain data");
        self.append(now, Lane::Urgent, class::FACTS, None, body.into(), turn);
    }

    /// Journals the cancel with what it does to its target; its own result tells which (JOB-14).
    fn cancel(&mut self, now: Now, order: OrderNumber, open: &Open, turn: &mut Turn) {
        let Ok(Cancel { target }) = rmp_serde::from_slice(&open.args) else {
            return self.end_at_once(now, order, open, Verdict::because(End::Refused, "malformed"), turn);
        };
        if D::SEEDED && !self.journal.knows(target) && self.defects.has(Defect::FORGETS_EARLY_CANCEL) {
            return self.end_at_once(now, order, open, Verdict::because(End::Succeeded, cancel::CANCELLED), turn);
        }
        let word = match self.journal.cancel(target, &mut turn.batch) {
            Cancelled::Closed => {
                self.kept.forget(target, &mut turn.batch);
                cancel::CANCELLED
            }
            Cancelled::Ended => cancel::ENDED,
            Cancelled::Begun => {
                turn.then.push(Then::Kill(target));
                cancel::RUNNING
            }
        };
        self.end_at_once(now, order, open, Verdict::because(End::Succeeded, word), turn);
    }

    /// Why an order stays with the parent for now: an order is taken only with room for its result.
    fn leaves(&self, open: &Open, epoch: Epoch) -> Option<&'static str> {
        if self.documents.revokes_me() {
            return Some("revoked");
        }
        // It may have been run and forgotten, or it is for a life of which this device has not heard yet.
        if self.is_rolled_back() {
            return Some(rolled_back::REASON);
        }
        if epoch > self.me.epoch {
            return Some("epoch");
        }
        // A cancel opens nothing, and may close something: it is taken even when no other order is.
        if open.verb == CANCEL {
            return None;
        }
        let promised = self.journal.promised().saturating_add(open.room);
        if self.low_space || !self.spool.has_room(Kind::Results, promised) {
            return Some("no_space");
        }
        (!self.journal.has_room()).then_some("too_many_open")
    }

    /// Nothing of it is ever run. If the server did sign it, and for this device, it is told what came of it.
    fn refuse_unverified(
        &mut self,
        now: Now,
        message: &OrderMessage,
        fault: &OrderFault,
        turn: &mut Turn,
        out: &mut Vec<Effect>,
    ) -> Option<Has> {
        self.refused(now, &fault.to_string(), turn, out);
        let payload = self.attributed(message)?;
        let order = payload.number;
        if self.journal.knows(order) {
            return Some(Has::Had(order));
        }
        let open = Open::of(&payload, Bytes::new());
        self.end_at_once(now, order, &open, Verdict::because(End::Refused, fault.code()), turn);
        Some(Has::Now(order))
    }

    /// The payload that a server key signed for this device, although something else about the order is wrong.
    fn attributed(&self, message: &OrderMessage) -> Option<Payload> {
        let envelope = &message.envelope;
        if envelope.payload_type != ORDER_PAYLOAD_TYPE || !message.proof.names(self.me.node, self.me.epoch) {
            return None;
        }
        let trust = self.documents.trust();
        let servers: Vec<_> = trust.keys.iter().filter(|k| k.role == "server").map(|k| k.key).collect();
        envelope.signed_by(&servers)?;
        let payload: Payload = rmp_serde::from_slice(&envelope.payload).ok()?;
        // A key that no longer counts speaks for nobody.
        let counts = envelope.signed_by(&trust.server_keys_for(payload.number.number)).is_some();
        (counts && payload.tenant == self.me.tenant).then_some(payload)
    }

    /// Counts, and tells an administrator once a minute at most.
    fn refused(&mut self, now: Now, why: &str, turn: &mut Turn, out: &mut Vec<Effect>) {
        count(Counted::OrderRefused, out);
        self.refused_unreported += 1;
        if self.alerted.is_some_and(|at| now.mono.since(at) < ALERT_EVERY_MS) {
            return;
        }
        self.alerted = Some(now.mono);
        let times = std::mem::take(&mut self.refused_unreported);
        self.alert(now, "order_refused", format!("{why} ({times} refused since the last alert)"), turn);
    }

    /// Taken and ended in one batch.
    fn end_at_once(&mut self, now: Now, order: OrderNumber, open: &Open, verdict: Verdict, turn: &mut Turn) {
        self.journal.close(order, &mut turn.batch);
        let result = plain(order, verdict, None, now.shown());
        self.report(now, open, &result, turn);
    }

    /// The result of an order that was begun: one batch with its row in the journal.
    pub(super) fn end(&mut self, now: Now, result: JobResult, turn: &mut Turn) {
        let Some(open) = self.journal.end(result.order, &mut turn.batch) else { return };
        self.report(now, &open, &result, turn);
        if open.needs_slot() {
            turn.then(Effect::RemoveJob(result.order));
        }
        self.begin_ready(now, turn);
    }

    fn report(&mut self, now: Now, open: &Open, result: &JobResult, turn: &mut Turn) {
        self.append_result(now, lane_of(open.class), open.trace, result, turn);
        let (order, what, reason) = (result.order, word(result.end), result.reason.clone());
        turn.then(Effect::Note(Note { order, job: open.job, trace: open.trace, what, reason }));
    }

    /// An order whose intent is in this turn's batch, or was durable before a restart if it starts no process.
    pub(super) fn carry_out(&mut self, now: Now, order: OrderNumber, open: Open, turn: &mut Turn) {
        match open.verb.as_str() {
            RUN_SCRIPT => match rmp_serde::from_slice::<RunScript>(&open.args) {
                Ok(args) => {
                    let start = self.job_start(order, &open, args);
                    if D::SEEDED && self.defects.has(Defect::JOURNALS_AFTER_START) {
                        return self.start_at_once(start);
                    }
                    turn.then.push(Then::Start(Box::new(start)));
                }
                Err(_) => self.end(now, malformed(order, now), turn),
            },
            RESTART => {
                let run = Runnable::Argv(Vec::new());
                let args = RunScript { run, time_out_ms: RESTART_WITHIN_MS, output_cap: OUTPUT_CAP_MAX };
                let start = JobStart { restarts: true, ..self.job_start(order, &open, args) };
                turn.then.push(Then::Start(Box::new(start)));
            }
            REFRESH_INVENTORY => match rmp_serde::from_slice::<RefreshInventory>(&open.args) {
                Ok(args) => turn.then.push(Then::Request(Request { order: Some(order), full: args.full })),
                Err(_) => self.end(now, malformed(order, now), turn),
            },
            // Journalled by a newer build that knew the verb.
            verb => {
                let reason = format!("{verb}, {}", self.me.platform);
                self.end(now, plain(order, Verdict::because(End::Unsupported, reason), None, now.shown()), turn);
            }
        }
    }

    fn job_start(&self, order: OrderNumber, open: &Open, args: RunScript) -> JobStart {
        let args = RunScript {
            run: args.run,
            time_out_ms: args.time_out_ms.min(open.run_ms_max),
            output_cap: args.output_cap.min(OUTPUT_CAP_MAX),
        };
        let device = ("BRANCHLINE_DEVICE".to_owned(), self.me.node.to_string());
        let agent = ("BRANCHLINE_AGENT_PID".to_owned(), self.me.pid.to_string());
        let env = [device, agent].into();
        JobStart { order, job: open.job, trace: open.trace, args, restarts: false, env }
    }

    pub(super) fn job_ended(
        &mut self,
        now: Now,
        order: OrderNumber,
        left: JobLeft,
        turn: &mut Turn,
        out: &mut Vec<Effect>,
    ) {
        let Some(open) = self.journal.begun(order) else { return };
        let begun_at = open.begun_at;
        if open.restarts() && !open.cancelled && may_restart(&left) {
            return self.restarts.commanded(order, now);
        }
        let result = match left {
            JobLeft::Running { .. } => return out.push(Effect::Resume(order)),
            JobLeft::Cut => plain(order, Verdict::because(End::OutcomeUnknown, "cut"), begun_at, now.shown()),
            JobLeft::Finished(status, stdout, stderr) => {
                let verdict = self.verdict(&status);
                let ran = !matches!(status.ended, Ended::NotStarted(_));
                let at = |wall: Millis| Self::shown(now, wall);
                JobResult {
                    exit_code: status.exit_code(),
                    stdout,
                    stderr,
                    truncated: status.truncated(),
                    simulated: status.simulated,
                    ..plain(
                        order,
                        verdict,
                        status.started_at.map(at).or(begun_at.filter(|_| ran)),
                        status.ended_at.map_or(now.shown(), at),
                    )
                }
            }
        };
        self.end(now, result, turn);
    }

    fn verdict(&self, status: &Status) -> Verdict {
        let (end, reason) = status.verdict();
        match &status.ended {
            _ if status.cancelled && self.documents.revokes_me() => Verdict::because(End::Failed, "revoked"),
            Ended::NotStarted(SpawnFault::Interpreter) => {
                Verdict::because(end, format!("{}, {}", crate::capabilities::INTERPRETER, self.me.platform))
            }
            Ended::Signalled(number) if !status.cancelled => Verdict::because(end, format!("signal {number}")),
            _ => Verdict { end, reason },
        }
    }

    pub(super) fn job_not_started(&mut self, now: Now, order: OrderNumber, end: End, reason: String, turn: &mut Turn) {
        if self.journal.begun(order).is_some() {
            self.end(now, plain(order, Verdict::because(end, reason), None, now.shown()), turn);
        }
    }

    /// Report, new base and result in one batch.
    pub(super) fn collected(&mut self, now: Now, found: Snapshot, turn: &mut Turn) {
        let Some(request) = self.inventory.finished() else { return };
        let (settings_version, wait) = self.schedule.made(&mut turn.batch);
        let wait = wait && request.order.is_none() && !request.full;
        let open = request.order.and_then(|order| self.journal.begun(order).cloned());
        let (trace, begun_at) = (open.as_ref().map(|o| o.trace), open.as_ref().and_then(|o| o.begun_at));
        let verdict = match self.inventory.report(request, found, now.shown(), settings_version, &mut turn.batch) {
            Ok(body) if wait => {
                self.release_held(now, true, turn);
                self.schedule.hold(now, body, &mut turn.batch);
                Verdict { end: End::Succeeded, reason: None }
            }
            Ok(body) => {
                self.release_held(now, true, turn);
                self.append(now, Lane::Inventory, class::INVENTORY, trace, body, turn);
                Verdict { end: End::Succeeded, reason: None }
            }
            Err(_) => Verdict::because(End::Failed, "too_large"),
        };
        match request.order {
            Some(order) => self.end(now, plain(order, verdict, begun_at, now.shown()), turn),
            None if verdict.end != End::Succeeded => {
                self.alert(now, "inventory_too_large", "the inventory is too large to be sent".into(), turn);
            }
            None => {}
        }
        self.look_at_schedule(now, turn);
    }

    /// Progress of what runs long, and orders whose time has come.
    pub(super) fn tick(&mut self, now: Now, turn: &mut Turn) {
        for (order, open) in self.journal.progress(now, &mut turn.batch) {
            let progress = Progress { order, started_at: open.begun_at.unwrap_or(now.shown()) };
            let body = rmp_serde::to_vec_named(&progress).expect("progress is plain data");
            self.append(now, lane_of(open.class), class::PROGRESS, Some(open.trace), body.into(), turn);
        }
        self.look_at_rolled_back(now, turn);
        self.give_up_restarts(now, turn);
        self.look_at_schedule(now, turn);
        self.begin_ready(now, turn);
    }

    /// Of a revoked device, or one in another epoch than before, nothing is begun that was not.
    pub(super) fn give_up_received(&mut self, now: Now, end: End, reason: &str, turn: &mut Turn) {
        for order in self.journal.all_received() {
            if let Some(open) = self.journal.end(order, &mut turn.batch) {
                let result = plain(order, Verdict::because(end, reason), None, now.shown());
                self.report(now, &open, &result, turn);
            }
        }
    }
}

/// Arguments that cannot be read end the order before it is open; those of a refresh may be absent.
fn check_args(open: &mut Open) -> Result<(), Verdict> {
    let readable = match open.verb.as_str() {
        REFRESH_INVENTORY if open.args.is_empty() => {
            let usual = rmp_serde::to_vec_named(&RefreshInventory::default()).expect("arguments are plain data");
            open.args = usual.into();
            true
        }
        REFRESH_INVENTORY => rmp_serde::from_slice::<RefreshInventory>(&open.args).is_ok(),
        RUN_SCRIPT => rmp_serde::from_slice::<RunScript>(&open.args).is_ok(),
        _ => true,
    };
    if readable { Ok(()) } else { Err(Verdict::because(End::Refused, "malformed")) }
}

fn malformed(order: OrderNumber, now: Now) -> JobResult {
    plain(order, Verdict::because(End::Refused, "malformed"), None, now.shown())
}
