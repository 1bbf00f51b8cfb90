//! The world: virtual time, the queue of what happens next, and the loop.

use super::{
    Options,
    chance::Chance,
    clock::{MachineClock, Virtual},
    defect::Defect,
    desk::Desk,
    disk::Disk,
    fault::{Counts, Fault},
    host::{AgentHost, Machine, RelayHost, ServerHost},
    jobs::Jobs,
    link::{Link, LinkId, Side},
    log::Log,
    place::Place,
};
use branchline_node::link::engine::LinkEnd;
use branchline_protocol::{
    id::{JobId, OrderNumber},
    job::State,
    wire::Contact,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::atomic::Ordering,
};

/// Devices of a tree.
pub const AGENTS: usize = 30;
/// Relays: two below the server, and one below the first.
pub const RELAYS: usize = 3;
/// Broken promises kept as text.
const TOLD_MAX: usize = 20;

/// What happens at an instant.
#[derive(Clone, Debug)]
pub enum What {
    /// The oldest frame that this side wrote arrives.
    Arrive(LinkId, Side),
    /// A node's next dial is due.
    Dial(Place, u64, u64),
    /// A connection is secured; the child may greet.
    Connected(LinkId, u64),
    /// No welcome came.
    Unwelcome(LinkId),
    /// One side learns of its end.
    Over(LinkId, Side, LinkEnd),
    /// The child's heartbeat is due.
    Beat(LinkId),
    /// One side looks whether anything came.
    Silence(LinkId, Side),
    /// A poll takes too long.
    PollEnd(LinkId),
    /// A sync is done.
    Synced(Place, u64),
    /// The periodic look of server and relay.
    Tick(Place, u64),
    /// The deadline of an agent's core.
    Deadline(usize, u64, u64),
    /// A slot's deadline.
    GateTick(Place, u64),
    /// A process of a job is begun.
    JobBegins(usize, u64, OrderNumber),
    /// It ends by itself.
    JobEnds(usize, OrderNumber, u64),
    /// The agent hears of a job that is at its end.
    JobHeard(usize, u64, OrderNumber),
    /// A collection is done.
    Collected(usize, u64),
    /// A relay has read of its spool what it asked for.
    Loaded(usize, u64, Vec<Vec<u8>>),
    /// A process is started.
    Start(Place),
    /// The network is whole there again.
    Heal(Place),
    /// There is space on the disk again.
    Space(Place),
    /// The server states the time.
    Statement(u64),
    /// An administrator does something.
    Issue,
    /// An administrator cancels this job.
    Cancel(JobId),
    /// The server learns of newer revocations.
    Publish,
    /// A device goes to another network.
    Roam(usize, (Place, bool)),
    /// Somebody asks how a job and the tree stand.
    Ask,
    /// Something goes wrong.
    Inject,
    /// A machine's state is kept.
    Keep,
}

/// See the module.
pub struct World {
    pub(super) options: Options,
    pub(super) now: u64,
    pub(super) clock: Virtual,
    queue: BTreeMap<(u64, u64), What>,
    sequence: u64,
    /// Dice of the network and of the machines.
    pub(super) chance: Chance,
    /// Dice of who asks what.
    pub(super) curious: Chance,
    /// Dice of the faults alone.
    pub(super) evil: Chance,
    pub(super) log: Log,
    pub(super) machines: BTreeMap<Place, Machine>,
    pub(super) agents: Vec<AgentHost>,
    pub(super) relays: Vec<RelayHost>,
    pub(super) server: ServerHost,
    pub(super) links: BTreeMap<LinkId, Link>,
    pub(super) next_link: LinkId,
    pub(super) next_session: u64,
    pub(super) next_run: u64,
    /// Nodes whose way up is blocked until then.
    pub(super) blocked: BTreeMap<Place, u64>,
    pub(super) desk: Desk,
    /// Whether faults are injected and orders issued.
    pub(super) storm: bool,
    pub(super) faults: u64,
    pub(super) kinds: Counts,
    pub(super) crashes_unsynced: u64,
    pub(super) violations: u64,
    /// When the parent's end of a link from (parent, child) was over last: what is told of it may still be on its way.
    pub(super) over: BTreeMap<(Place, Place), u64>,
    /// When a link from (parent, child) was up last.
    pub(super) attached: BTreeMap<(Place, Place), u64>,
    /// The parent by which each device was up last.
    pub(super) parents: BTreeMap<Place, Place>,
    /// Devices' links to another parent than before.
    pub(super) path_moves: u64,
    /// What was shown of orders that are over.
    pub(super) shown: BTreeMap<(OrderNumber, usize), (State, Option<String>)>,
    /// Answers of `explain` and rows of `tree` that were held against the truth.
    pub(super) asked: u64,
    /// The same by what they said.
    pub(super) answers: BTreeMap<String, u64>,
    pub(super) told: Vec<String>,
    /// Pairs of which a device's disk was set back to an older state: it may not know how they ended.
    pub(super) forgotten: BTreeSet<(OrderNumber, usize)>,
    /// Those of them that the device may have been given again before its disk was found to be set back.
    pub(super) found_late: BTreeSet<(OrderNumber, usize)>,
    /// Pairs that a relay had given back, or been told are over, when its disk was set back to where it holds them.
    pub(super) risen: BTreeSet<(OrderNumber, usize)>,
    /// Pairs that a relay had handed on when its disk was set back, so that nobody noticed: it may not know of that.
    pub(super) unwitnessed: BTreeSet<(OrderNumber, usize)>,
    /// Those of them in the stated exclusion.
    pub(super) excluded: BTreeSet<(OrderNumber, usize)>,
    pub(super) accepted: u64,
    pub(super) ended: u64,
    pub(super) ends: BTreeMap<&'static str, u64>,
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) excluded_count: u64,
    pub(super) pairs: u64,
    pub(super) last_statement: u64,
}

impl World {
    /// A whole tree, switched off.
    pub fn new(options: Options) -> World {
        let clock = Virtual::default();
        let machine = |_: Place| Machine {
            clock: MachineClock::new(clock.clone()),
            disk: Disk::new(options.engine, options.defect),
            life: 0,
            up: false,
            frozen_until: 0,
            syncing: false,
            armed: None,
            full: false,
            epoch: 1,
            snapshot: None,
            restored: false,
            unnoticed: BTreeSet::new(),
            disk_put_back: None,
            unjudged: BTreeSet::new(),
            put_back_in: 0,
        };
        let places = [Place::Server, Place::Gateway]
            .into_iter()
            .chain((0..RELAYS).map(Place::Relay))
            .chain((0..AGENTS).map(Place::Agent));
        let machines = places.map(|place| (place, machine(place))).collect();
        let relay = |parent, slots| RelayHost { parent, slots, must_enrol: false, process: None };
        let relays = vec![relay(Place::Server, 300), relay(Place::Server, 6), relay(Place::Relay(0), 300)];
        let agents = (0..AGENTS)
            .map(|n| AgentHost {
                jobs: Jobs::default(),
                network: Self::networks()[n % Self::networks().len()],
                before: Self::networks()[n / 6 % Self::networks().len()],
                late: BTreeMap::new(),
                contact: if n % 8 == 7 { Contact::Poll } else { Contact::Persistent },
                version: 1,
                boot: 1,
                process: None,
            })
            .collect();
        World {
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            chance: Chance::new(options.seed, 1),
            curious: Chance::new(options.seed, 4),
            evil: Chance::new(options.seed, 2),
            log: Log::new(options.replay),
            machines,
            agents,
            relays,
            server: ServerHost::default(),
            links: BTreeMap::new(),
            next_link: 0,
            next_session: 0,
            next_run: 0,
            blocked: BTreeMap::new(),
            desk: Desk::new(options.seed),
            storm: false,
            faults: 0,
            kinds: Fault::MIX.iter().map(|(fault, _)| (fault.word(), 0)).collect(),
            crashes_unsynced: 0,
            violations: 0,
            over: BTreeMap::new(),
            attached: BTreeMap::new(),
            parents: BTreeMap::new(),
            path_moves: 0,
            shown: BTreeMap::new(),
            asked: 0,
            answers: BTreeMap::new(),
            told: Vec::new(),
            forgotten: BTreeSet::new(),
            found_late: BTreeSet::new(),
            risen: BTreeSet::new(),
            unwitnessed: BTreeSet::new(),
            excluded: BTreeSet::new(),
            accepted: 0,
            ended: 0,
            ends: BTreeMap::new(),
            lost: 0,
            doubled: 0,
            excluded_count: 0,
            pairs: 0,
            last_statement: 0,
            clock,
            options,
        }
    }

    /// Where a device may be: its parent, and whether the gateway lies between.
    pub(super) fn networks() -> [(Place, bool); 6] {
        [
            (Place::Relay(0), false),
            (Place::Relay(1), false),
            (Place::Relay(2), false),
            (Place::Relay(1), false),
            (Place::Server, true),
            (Place::Server, false),
        ]
    }

    /// Something happens so many milliseconds from now.
    pub(super) fn after(&mut self, ms: u64, what: What) {
        self.at(self.now + ms, what);
    }

    /// Something happens then.
    pub(super) fn at(&mut self, at: u64, what: What) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), what);
    }

    /// A line of the log.
    pub(super) fn note(&mut self, what: fmt::Arguments<'_>) {
        self.log.note(self.now, what);
    }

    /// Something that must not be.
    pub(super) fn violation(&mut self, what: fmt::Arguments<'_>) {
        self.violations += 1;
        self.log.note(self.now, format_args!("VIOLATION {what}"));
        let told = format!("seed {}: {what}", self.options.seed);
        if self.told.len() < TOLD_MAX && !self.told.contains(&told) {
            self.told.push(told);
        }
    }

    /// A fault hit something.
    pub(super) fn hit(&mut self, fault: Fault, what: fmt::Arguments<'_>) {
        self.faults += 1;
        *self.kinds.entry(fault.word()).or_default() += 1;
        self.log.note(self.now, format_args!("FAULT {} {what}", fault.word()));
    }

    /// Whether this is wrong on purpose.
    pub(super) fn has(&self, defect: Defect) -> bool {
        self.options.defect == Some(defect)
    }

    /// Lets time pass until nothing is left to happen or it is `until`.
    pub(super) fn run_until(&mut self, until: u64, mut enough: impl FnMut(&World) -> bool) {
        while let Some(entry) = self.queue.first_entry() {
            let (at, _) = *entry.key();
            if at > until {
                break;
            }
            let what = entry.remove();
            self.now = at;
            self.clock.store(at, Ordering::Relaxed);
            self.happen(what);
            if enough(self) {
                return;
            }
        }
        self.now = self.now.max(until);
        self.clock.store(self.now, Ordering::Relaxed);
    }

    /// Whose doing it is: nothing happens to whom stands still.
    fn whose(&self, what: &What) -> Option<Place> {
        let at = |link: &LinkId, side: Side| self.links.get(link).map(|l| l.at(side));
        match what {
            What::Arrive(link, side) => at(link, side.other()),
            What::Over(link, side, _) | What::Silence(link, side) => at(link, *side),
            What::Connected(link, _) | What::Unwelcome(link) | What::Beat(link) => at(link, Side::Child),
            What::PollEnd(link) => at(link, Side::Parent),
            What::Dial(place, ..)
            | What::Synced(place, _)
            | What::Tick(place, _)
            | What::GateTick(place, _)
            | What::Start(place) => Some(*place),
            What::Deadline(agent, ..)
            | What::JobBegins(agent, ..)
            | What::JobHeard(agent, ..)
            | What::Collected(agent, _) => Some(Place::Agent(*agent)),
            What::Loaded(relay, ..) => Some(Place::Relay(*relay)),
            What::Statement(_) | What::Cancel(_) | What::Publish | What::Ask => Some(Place::Server),
            What::JobEnds(..)
            | What::Heal(_)
            | What::Space(_)
            | What::Issue
            | What::Inject
            | What::Keep
            | What::Roam(..) => None,
        }
    }

    /// Nothing happens anywhere for so long; then everything goes on as it was about to.
    pub(super) fn leap(&mut self, ms: u64) {
        self.note(format_args!("nothing happens for {ms} ms"));
        let queue = std::mem::take(&mut self.queue);
        self.queue = queue.into_iter().map(|((at, sequence), what)| ((at + ms, sequence), what)).collect();
        self.now += ms;
        self.clock.store(self.now, Ordering::Relaxed);
    }

    fn happen(&mut self, what: What) {
        if let Some(place) = self.whose(&what) {
            let until = self.machines[&place].frozen_until;
            if until > self.now {
                return self.at(until, what);
            }
        }
        match what {
            What::Arrive(link, side) => self.arrive(link, side),
            What::Dial(place, life, timer) if self.lives(place, life) => self.dial(place, timer),
            What::Connected(link, life) => self.connected(link, life),
            What::Unwelcome(link) => self.unwelcome(link),
            What::Over(link, side, end) => self.over(link, side, end),
            What::Beat(link) => self.beat(link),
            What::Silence(link, side) => self.silence(link, side),
            What::PollEnd(link) => self.poll_end(link),
            What::Synced(place, life) if self.lives(place, life) => self.synced(place),
            What::Tick(place, life) if self.lives(place, life) => self.tick(place),
            What::Deadline(agent, life, timer) if self.lives(Place::Agent(agent), life) => self.deadline(agent, timer),
            What::GateTick(place, life) if self.lives(place, life) => self.gate_tick(place),
            What::JobBegins(agent, life, order) if self.lives(Place::Agent(agent), life) => {
                self.job_begins(agent, order);
            }
            What::JobEnds(agent, order, run) => self.job_ends(agent, order, run),
            What::JobHeard(agent, life, order) if self.lives(Place::Agent(agent), life) => self.job_heard(agent, order),
            What::Collected(agent, life) if self.lives(Place::Agent(agent), life) => self.collected(agent),
            What::Loaded(relay, life, keys) if self.lives(Place::Relay(relay), life) => self.loaded(relay, keys),
            What::Start(place) => self.start(place),
            What::Heal(place) => self.heal(place),
            What::Space(place) => self.space(place),
            What::Statement(life) if self.lives(Place::Server, life) => {
                self.state_time();
                self.after(60_000, What::Statement(life));
            }
            What::Issue => self.issue(),
            What::Roam(agent, to) => self.roam(agent, to),
            What::Cancel(job) => self.cancel(job),
            What::Publish => self.publish(),
            What::Ask => self.ask(),
            What::Inject => self.inject(),
            What::Keep => self.keep(),
            _ => {}
        }
    }

    /// Whether this process is the one that was meant.
    pub(super) fn lives(&self, place: Place, life: u64) -> bool {
        let machine = &self.machines[&place];
        machine.up && machine.life == life
    }

    /// The process of a place, to be named in what it will do.
    pub(super) fn life(&self, place: Place) -> u64 {
        self.machines[&place].life
    }

    /// A machine.
    pub(super) fn machine(&mut self, place: Place) -> &mut Machine {
        self.machines.get_mut(&place).expect("every place has a machine")
    }
}
