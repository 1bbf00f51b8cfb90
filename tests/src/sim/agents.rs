//! The shell around an agent's core: what the keeper, the executor and the collector do.

use super::{
    defect::{Defect, Seeded},
    host::{AgentProcess, Answers, Stage, Uplink},
    link::Side,
    place::Place,
    wires::Came,
    world::{What, World},
};
use branchline_agent::{
    capabilities::{MANUAL_REFRESH, REFRESH_INVENTORY, RUN_SCRIPT},
    decide::{AgentCore, Counted, Effect, Event, Me, Rows, journal_key},
    platform::JobLeft,
};
use branchline_node::{
    driver::{DriveFault, Driver},
    link::engine::{LinkCommand, LinkEnd},
    store::Table,
    time::NodeTime,
};
use branchline_protocol::{
    id::OrderNumber,
    inventory::Snapshot,
    job::{End, RunScript, Runnable},
    wire::Message,
};
use serde_json::json;
use std::sync::Arc;

impl World {
    /// The agent's process starts: its disk is opened, its core recovered.
    pub(super) fn start_agent(&mut self, n: usize) -> bool {
        let place = Place::Agent(n);
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
            site: "hq".into(),
            root: self.desk.root,
            build: "sim".into(),
            contact: self.agents[n].contact,
            platform: "virtual",
            capabilities: [MANUAL_REFRESH, REFRESH_INVENTORY, RUN_SCRIPT].map(str::to_owned).to_vec(),
            pid: 1,
            signer: Arc::new(place.signer()),
            unverified: false,
        };
        let recovered = Rows::read(&machine.disk).map_err(|e| e.to_string()).and_then(|rows| {
            let (defects, trust) = (Seeded::of(self.options.defect), self.desk.trust.clone());
            AgentCore::recover_with(defects, me, trust, Vec::new(), incarnation, &rows).map_err(|e| e.to_string())
        });
        let core = match recovered {
            Ok(core) => core,
            Err(fault) => {
                self.violation(format_args!("{place} cannot read its disk: {fault}"));
                return false;
            }
        };
        let (disk, time) = (machine.disk.clone(), NodeTime::new(machine.clock.clone()));
        let answers = Answers::default();
        let driver = Driver::new(core, disk, answers.notify());
        let uplink = Uplink::new(time.now());
        self.agents[n].process =
            Some(AgentProcess { driver, answers, time, uplink, deadline: (None, 0), awaits: Default::default() });
        // Node time begins with the statement on disk, which may be some minutes old: what was late may be in time again.
        self.agents[n].late.clear();
        let boot = self.agents[n].boot.to_string();
        self.feed_agent(n, Event::Surroundings { zone: jiff::tz::TimeZone::UTC, boot });
        self.feed_agent(n, Event::Start);
        self.feed_agent(n, Event::ExecutorUp);
        self.feed_agent(n, Event::CollectorUp);
        self.arm_dial(place);
        true
    }

    /// An event for an agent's core.
    pub(super) fn feed_agent(&mut self, n: usize, event: Event) {
        let now = self.now_of(Place::Agent(n));
        self.drive_agent(n, |process, effects| process.driver.handle(now, event, |effect| effects.push(effect)));
    }

    /// The agent's store has answered.
    pub(super) fn agent_answered(&mut self, n: usize) {
        let now = self.now_of(Place::Agent(n));
        while let Some(done) = self.agents[n].process.as_ref().and_then(|p| p.answers.pop()) {
            self.drive_agent(n, |process, effects| process.driver.completed(now, done, |effect| effects.push(effect)));
        }
    }

    fn drive_agent(
        &mut self,
        n: usize,
        work: impl FnOnce(&mut AgentProcess, &mut Vec<Effect>) -> Result<(), DriveFault>,
    ) {
        let Some(process) = &mut self.agents[n].process else { return };
        let mut effects = Vec::new();
        let result = work(process, &mut effects);
        for effect in effects {
            self.agent_effect(n, effect);
        }
        let place = Place::Agent(n);
        if let Err(fault) = result {
            self.note(format_args!("{place} stops: {fault}"));
            return self.die(place, false);
        }
        self.arm_sync(place);
        let now = self.now_of(place);
        let life = self.life(place);
        let Some(process) = &mut self.agents[n].process else { return };
        let due = process.driver.core().next_deadline(now);
        if due != process.deadline.0 {
            process.deadline = (due, process.deadline.1 + 1);
            if let Some(at) = due {
                let timer = process.deadline.1;
                self.after(at.since(now.mono), What::Deadline(n, life, timer));
            }
        }
    }

    pub(super) fn deadline(&mut self, n: usize, timer: u64) {
        let Some(process) = &mut self.agents[n].process else { return };
        if process.deadline.1 != timer {
            return;
        }
        process.deadline.0 = None;
        self.feed_agent(n, Event::Tick);
    }

    fn agent_effect(&mut self, n: usize, effect: Effect) {
        let place = Place::Agent(n);
        let life = self.life(place);
        match effect {
            Effect::Commit(..) | Effect::Reconfigure | Effect::WakeKeys(_) => {}
            Effect::Greet(dial, greeting) => self.greet(place, dial, *greeting),
            Effect::Send(lane, message) => {
                self.agent_tells(n, &message);
                self.agent_asks(n, LinkCommand::Send(lane, message.encode()));
            }
            Effect::Release(lane, bytes) => self.agent_asks(n, LinkCommand::Release(lane, bytes)),
            Effect::Goodbye(goodbye) => self.agent_asks(n, LinkCommand::Goodbye(goodbye)),
            Effect::CloseLink(why) => {
                self.broken_protocol(place, &why);
                if let Some(Stage::Up(id)) = self.uplink(place).map(|up| up.stage) {
                    self.after(0, What::Over(id, Side::Child, LinkEnd::Orphaned));
                }
            }
            Effect::Redial => {
                if let Some(Stage::Up(id)) = self.uplink(place).map(|up| up.stage) {
                    self.after(0, What::Over(id, Side::Child, LinkEnd::Orphaned));
                }
            }
            Effect::Poke(poke) => self.poke(place, poke),
            Effect::LearnTime(time) => {
                if let Some(process) = &self.agents[n].process
                    && !self.has(Defect::NoNodeTime)
                {
                    process.time.learn(time);
                }
            }
            Effect::Start(job) => {
                let job = *job;
                let key = journal_key(job.order);
                if self.machines[&place].disk.get(Table::Journal, &key).is_none() {
                    self.violation(format_args!("{place} starts {} without an intent on disk", job.order));
                }
                self.agents[n].jobs.specs.insert(job.order, job.args);
                let wait = self.chance.below(4);
                self.after(wait, What::JobBegins(n, life, job.order));
            }
            Effect::Resume(order) => {
                if self.has(Defect::ForgetsFolders) {
                    self.agents[n].jobs.forget(order);
                }
                if let JobLeft::Running { .. } = self.agents[n].jobs.left(order) {
                    self.await_job(n, order);
                } else if self.has(Defect::StartsAgain) && self.agents[n].jobs.left(order) == JobLeft::Cut {
                    self.agents[n].jobs.remove(order);
                    self.after(1, What::JobBegins(n, life, order));
                } else {
                    self.after(1, What::JobHeard(n, life, order));
                }
            }
            Effect::Kill(order) => {
                if self.agents[n].jobs.kill(order) {
                    self.after(1, What::JobHeard(n, life, order));
                }
            }
            Effect::RemoveJob(order) => self.agents[n].jobs.remove(order),
            Effect::KeepJobs(orders) => self.agents[n].jobs.keep(&orders),
            Effect::Collect(_) => {
                let wait = 3 + self.chance.below(30);
                self.after(wait, What::Collected(n, life));
            }
            Effect::Note(note) => self.note(format_args!("{place} order {} {}", note.order, note.what)),
            Effect::Count(Counted::ProtocolError | Counted::OrderRefused) => {
                self.broken_protocol(place, "counted");
            }
            Effect::Count(what) => self.note(format_args!("{place} counts {what:?}")),
        }
    }

    /// Nothing here forges or alters: whoever finds the protocol broken has found a bug.
    pub(super) fn broken_protocol(&mut self, place: Place, why: &str) {
        self.violation(format_args!("{place} finds the protocol broken: {why}"));
    }

    fn agent_asks(&mut self, n: usize, command: LinkCommand) {
        if let Some(Stage::Up(id)) = self.uplink(Place::Agent(n)).map(|up| up.stage) {
            self.command(id, Side::Child, command);
        }
    }

    /// Durable before told: what the message promises is on disk.
    fn agent_tells(&mut self, n: usize, message: &Message) {
        let Message::Taken(orders) = message else { return };
        for (order, _) in orders {
            let row = self.machines[&Place::Agent(n)].disk.get(Table::Journal, &journal_key(*order));
            if row.is_none() {
                self.violation(format_args!("agent{n} says that it has {order}, and has not"));
            }
        }
    }

    /// Something came on the link that is up.
    pub(super) fn agent_came(&mut self, n: usize, came: Came) {
        let event = match came {
            Came::Message(received) => {
                self.note_late(n, &received.bytes);
                Event::Received(received)
            }
            Came::Lease(lease) => {
                if let Some(process) = &mut self.agents[n].process {
                    process.uplink.lease = Some(lease);
                }
                Event::Lease(lease)
            }
            Came::Alive(statement) => Event::Alive(statement),
            Came::Continue => {
                if let Some(process) = &mut self.agents[n].process {
                    process.uplink.more = true;
                }
                Event::Continue
            }
            Came::Spread(ms) => {
                if let Some(process) = &mut self.agents[n].process {
                    process.uplink.spread = Some(ms);
                }
                return;
            }
            Came::Done | Came::Heard => return,
        };
        self.feed_agent(n, event);
    }

    fn await_job(&mut self, n: usize, order: OrderNumber) {
        if let Some(process) = &mut self.agents[n].process {
            process.awaits.insert(order);
        }
    }

    /// The executor starts the processes of a job.
    pub(super) fn job_begins(&mut self, n: usize, order: OrderNumber) {
        self.next_run += 1;
        let run = self.next_run;
        if !self.agents[n].jobs.start(order, run) {
            self.violation(format_args!("agent{n} starts {order} where it was started before"));
            let (end, reason) = (End::OutcomeUnknown, "started_before".to_owned());
            return self.feed_agent(n, Event::JobNotStarted { order, end, reason });
        }
        let starts = self.agents[n].jobs.truth.get(&order).map_or(0, |truth| truth.starts);
        if starts > 1 && self.found_late.contains(&(order, n)) {
            // It comes to an end all the same; which run's that is, is open.
            self.excluded.insert((order, n));
        } else if starts > 1 && !self.excluded.contains(&(order, n)) {
            self.doubled += 1;
            self.violation(format_args!("agent{n} runs {order} for the {starts}. time"));
        }
        let ended = self.ended_before(n, order);
        let pair = (order, n);
        let told_wrong =
            self.found_late.contains(&pair) || self.risen.contains(&pair) || self.unwitnessed.contains(&pair);
        if ended.is_some() && told_wrong {
            // Its own answer ended it, which its disk does not know any more and its parent did not know yet (decision 25);
            // or it was over before anybody had begun it, and came back with a relay's old disk, or was given back by one
            // that nobody could tell to be old, and that had handed it on (decisions 24, 30).
            self.excluded.insert((order, n));
        } else if let Some(state) = ended.filter(|_| !self.is_excluded(order, n)) {
            self.violation(format_args!("agent{n} begins {order}, which is told to be {state}"));
        }
        if self.agents[n].late.get(&order) == Some(&true) {
            self.violation(format_args!("agent{n} begins {order}, which came too late"));
        }
        let (_, ms) = self.job_of(n, order);
        self.await_job(n, order);
        self.after(ms, What::JobEnds(n, order, run));
    }

    /// Exit code and milliseconds, as the order's arguments say.
    fn job_of(&self, n: usize, order: OrderNumber) -> (i32, u64) {
        let Some(RunScript { run: Runnable::Argv(argv), .. }) = self.agents[n].jobs.specs.get(&order) else {
            return (0, 0);
        };
        let number = |at: usize| argv.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        (number(1) as i32, number(2))
    }

    pub(super) fn job_ends(&mut self, n: usize, order: OrderNumber, run: u64) {
        let (exit, _) = self.job_of(n, order);
        if !self.agents[n].jobs.finish(order, run, exit) {
            return;
        }
        self.job_over(n, order);
    }

    /// Whoever waits for a job hears of its end.
    pub(super) fn job_over(&mut self, n: usize, order: OrderNumber) {
        let life = self.life(Place::Agent(n));
        if self.agents[n].process.as_ref().is_some_and(|p| p.awaits.contains(&order)) {
            self.after(1, What::JobHeard(n, life, order));
        }
    }

    pub(super) fn job_heard(&mut self, n: usize, order: OrderNumber) {
        let left = self.agents[n].jobs.left(order);
        if let Some(process) = &mut self.agents[n].process {
            process.awaits.remove(&order);
        }
        self.feed_agent(n, Event::JobEnded { order, left });
    }

    pub(super) fn collected(&mut self, n: usize) {
        let version = self.agents[n].version;
        let os = json!({"pretty_name": "simulated", "version": version}).as_object().cloned().unwrap_or_default();
        let sections = [("os".to_owned(), os.into_iter().collect())].into();
        self.feed_agent(n, Event::Collected(Snapshot { sections }));
    }
}
