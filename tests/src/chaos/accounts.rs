//! Afterwards, one by one: what the server says of every (job, device) pair, what the devices' journals say, and what
//! the files show that the jobs left.

use super::{
    driver::Done,
    plan::What,
    plant::Plant,
    work::{Sort, Work},
};
use branchline_agent::decide::{Journal, Rows};
use branchline_node::store::{Store as NodeStore, StoreOptions, Table};
use branchline_protocol::{
    id::{NodeId, OrderNumber, TenantId},
    job::State,
    record::{JobResult, Record, class},
    time::Millis,
};
use branchline_server::store::{JobDeviceRow, JobRow, SqliteStore, Store};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// More jobs than any run orders.
const JOBS_MAX: u32 = 100_000;

/// One job on one device, as everybody has it.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The job's key.
    pub key: String,
    /// What the job was meant to come to.
    pub sort: Sort,
    /// The job's order.
    pub order: OrderNumber,
    /// The device.
    pub device: NodeId,
    /// What the server says.
    pub state: State,
    /// Its reason.
    pub reason: Option<String>,
    /// When the job was issued.
    pub issued_at: Millis,
    /// When the server last changed it: with an end, when that was settled.
    pub changed_at: Millis,
    /// Whether the device itself told the end.
    pub told: bool,
    /// The exit code, if there was one.
    pub exit_code: Option<i32>,
    /// Lines that the job left at the device.
    pub lines: usize,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// Every pair.
    pub pairs: Vec<Pair>,
    /// Pairs whose job names no device.
    pub no_such_device: usize,
    /// What is lost: answered for and not there, ended and not done, done and not told.
    pub lost: Vec<String>,
    /// What is there twice.
    pub doubled: Vec<String>,
    /// Anything else that contradicts.
    pub wrong: Vec<String>,
}

/// Reads everything; the plant's processes have ended. `effects` holds the lines.
pub fn read(plant: &Plant, done: &Done, effects: &Path) -> Accounts {
    let mut found = Accounts::default();
    let rows = server_rows(&plant.node_state(&plant.of("server").next().expect("a server").name));
    let ids: BTreeSet<String> = rows.iter().map(|(job, _)| job.id.to_string()).collect();
    for ordered in &done.ordered {
        if let Some(id) = ordered.id.as_ref().filter(|id| !ids.contains(*id)) {
            found.lost.push(format!("{} was accepted as {id}, and the server does not have it", ordered.key));
        }
    }
    let mut lines = lines(plant, effects);
    for (job, devices) in &rows {
        let Some((key, sort)) = Work::read(&job.args) else { continue };
        for row in devices {
            match row.device {
                Ok(device) => {
                    let lines = lines.remove(&(device, key.clone())).unwrap_or(0);
                    found.pairs.push(pair(&key, sort, job, row, device, lines));
                }
                Err(_) => found.no_such_device += 1,
            }
        }
    }
    for ((device, key), n) in lines {
        found.wrong.push(format!("{device} ran {key} {n} times, and the server has no such pair"));
    }
    let pairs = std::mem::take(&mut found.pairs);
    for pair in &pairs {
        judge(pair, &mut found);
    }
    for agent in plant.of("agent") {
        let device: NodeId = agent.id.parse().expect("an id");
        let own: Vec<&Pair> = pairs.iter().filter(|p| p.device == device).collect();
        journal(&plant.node_state(&agent.name), &agent.name, &own, &mut found);
    }
    found.pairs = pairs;
    unknown_needs_a_death(plant, done, &mut found);
    found
}

fn pair(key: &str, sort: Sort, job: &JobRow, row: &JobDeviceRow, device: NodeId, lines: usize) -> Pair {
    let result = row.result.as_ref();
    Pair {
        key: key.into(),
        sort,
        order: job.number,
        device,
        state: row.state,
        reason: row.reason.clone(),
        issued_at: job.issued_at,
        changed_at: row.changed_at,
        told: result.is_some(),
        exit_code: result.and_then(|r| r.exit_code),
        lines,
    }
}

/// One pair by itself.
fn judge(pair: &Pair, found: &mut Accounts) {
    let Pair { sort, state, lines, exit_code, .. } = pair;
    if *lines > 1 {
        found.doubled.push(format!("{lines} lines: {pair:?}"));
        return;
    }
    if !state.is_end() {
        found.lost.push(format!("no end: {pair:?}"));
        return;
    }
    let good = match (state, sort) {
        (State::Succeeded, Sort::Plain | Sort::Ghost) => *lines == 1 && *exit_code == Some(0),
        (State::Failed, Sort::Failing) => *lines == 1 && *exit_code == Some(3),
        // Slow machines may spend its second before its line.
        (State::Failed, Sort::TooLong) => *lines <= 1,
        (State::Unsupported, Sort::NoInterpreter) => *lines == 0,
        (State::Expired, _) => *lines == 0,
        (State::Cancelled, _) => *lines == 0 || pair.told,
        (State::OutcomeUnknown, _) => *sort != Sort::NoInterpreter || *lines == 0,
        _ => false,
    };
    match (good, state) {
        (true, _) => {}
        (false, State::Succeeded | State::Failed) if *lines == 0 => {
            found.lost.push(format!("said to be done and not done: {pair:?}"));
        }
        (false, _) => found.wrong.push(format!("{pair:?}")),
    }
}

/// A device's own disk: every order that it ended is in its journal or below its floor, none is open, and no result
/// waits for the server that the server has otherwise.
fn journal(state: &Path, name: &str, own: &[&Pair], found: &mut Accounts) {
    let options = StoreOptions { reserve_bytes: 0, ..StoreOptions::new(u32::MAX, 1) };
    let (store, _) = NodeStore::open(&state.join("agent.redb"), options).unwrap_or_else(|e| panic!("{name}: {e}"));
    let rows = Rows::read(&store).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut journal = Journal::default();
    for (key, value) in &rows.tables[&Table::Journal] {
        journal.recover(key, value).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    if journal.counts().0 != 0 {
        found.lost.push(format!("{name} has {} open orders, and the server has their ends", journal.counts().0));
    }
    for pair in own.iter().filter(|p| p.told) {
        if !journal.knows(pair.order) {
            found.wrong.push(format!("{name} ended it and does not know it: {pair:?}"));
        }
    }
    let ends: BTreeMap<OrderNumber, State> = own.iter().map(|p| (p.order, p.state)).collect();
    for (_, value) in &rows.tables[&Table::Spool] {
        let record: Record = rmp_serde::from_slice(value).unwrap_or_else(|e| panic!("{name}: {e}"));
        if record.class == class::RESULT {
            let result: JobResult = rmp_serde::from_slice(&record.body).unwrap_or_else(|e| panic!("{name}: {e}"));
            let told = State::from(result.end);
            if ends.get(&result.order).is_some_and(|state| *state != told) {
                found.lost.push(format!("{name} still holds {told} for {}, the server says else", result.order));
            }
        }
    }
    let _ = store.stop();
}

/// Whether a run began is unknown only where the device's own process died on it.
fn unknown_needs_a_death(plant: &Plant, done: &Done, found: &mut Accounts) {
    for pair in found.pairs.iter().filter(|p| p.state == State::OutcomeUnknown) {
        let died = done.faults.iter().any(|f| {
            let kills = matches!(f.step.what, What::Kill | What::CutPower | What::DieSilently);
            kills
                && f.hit
                && plant.node(&f.step.node).id == pair.device.to_string()
                && pair.issued_at <= f.until
                && f.at <= pair.changed_at
        });
        if !died {
            found.wrong.push(format!("unknown although its agent lived: {pair:?}"));
        }
    }
}

/// How often each job's line is in each device's file.
fn lines(plant: &Plant, effects: &Path) -> BTreeMap<(NodeId, String), usize> {
    let mut lines = BTreeMap::new();
    for agent in plant.of("agent") {
        let device: NodeId = agent.id.parse().expect("an id");
        let text = std::fs::read_to_string(effects.join(&agent.id)).unwrap_or_default();
        for key in text.lines() {
            *lines.entry((device, key.to_string())).or_default() += 1;
        }
    }
    lines
}

/// Every job of the tenant with its devices, from the server's own disk.
fn server_rows(state: &Path) -> Vec<(JobRow, Vec<JobDeviceRow>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = SqliteStore::open(&state.join("server.db")).await.expect("the server's store opens");
        let tenant: TenantId = "main".parse().expect("a literal tenant");
        let mut rows = Vec::new();
        for head in store.jobs(&tenant, JOBS_MAX).await.expect("jobs") {
            let job = store.job(&tenant, head.id).await.expect("a job").expect("it was listed");
            rows.push((job, store.job_devices(&tenant, head.id).await.expect("its devices")));
        }
        store.close().await;
        rows
    })
}

impl Accounts {
    /// Pairs in each state.
    pub fn states(&self) -> BTreeMap<State, usize> {
        let mut states = BTreeMap::new();
        self.pairs.iter().for_each(|p| *states.entry(p.state).or_default() += 1);
        if self.no_such_device > 0 {
            states.insert(State::NoSuchDevice, self.no_such_device);
        }
        states
    }

    /// Pairs of unknown outcome that left their line, and those that did not.
    pub fn unknown(&self) -> (usize, usize) {
        let (with, without): (Vec<_>, Vec<_>) =
            self.pairs.iter().filter(|p| p.state == State::OutcomeUnknown).partition(|p| p.lines > 0);
        (with.len(), without.len())
    }

    /// Whether a fault hit something in flight: a live process or open link, and an order, a run or a result of a device
    /// at or below it that was on its way, issued and not settled. The times are the server's.
    pub fn counts(&self, plant: &Plant, fault: &super::driver::Fault) -> bool {
        let below: BTreeSet<&str> = plant.below(&fault.step.node).into_iter().map(|n| n.id.as_str()).collect();
        let in_flight = |p: &&Pair| p.told && p.issued_at <= fault.until && fault.at <= p.changed_at;
        let mut hit = self.pairs.iter().filter(in_flight);
        fault.hit && hit.any(|p| below.contains(p.device.to_string().as_str()))
    }
}
