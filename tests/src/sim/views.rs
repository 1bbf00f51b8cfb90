//! What `explain` and `tree` show, held against the truth: at random moments of a storm what must never be wrong, at a
//! quiet point all of it. Asked are the server's own functions, with what the server knows at that moment.

use super::{
    checks::TOLD_MS,
    link::{Link, Side},
    place::Place,
    server_rows::Job,
    world::{AGENTS, RELAYS, What, World},
};
use branchline_agent::decide::journal_key;
use branchline_node::store::Table;
use branchline_protocol::{
    id::{NodeId, OrderNumber},
    job::{CANCEL, State},
};
use branchline_server::{
    api::{
        control::{NodeView, Whereabouts},
        explain::{Known, explain},
        names::Names,
        views::{Present, tree_node},
    },
    dispatch::standing,
    store::{JobDeviceRow, JobRow},
};
use serde_json::Value;

/// News of a link goes over one hop within so many milliseconds, if nothing delays it.
const NEWS_MS: u64 = 3_000;
/// One ended order in so many is explained at a quiet point.
const EXPLAINED_EVERY: u64 = 4;

impl World {
    /// A node's link to its parent is up.
    pub(super) fn attached(&mut self, parent: Place, child: NodeId) {
        let Some(child) = Place::of(child) else { return };
        self.attached.insert((parent, child), self.now);
        if matches!(child, Place::Agent(_)) && self.parents.insert(child, parent).is_some_and(|old| old != parent) {
            self.path_moves += 1;
        }
    }

    /// Somebody asks, in the middle of it all.
    pub(super) fn ask(&mut self) {
        if !self.storm {
            return;
        }
        let wait = self.curious.between(1_000, 4_000);
        self.after(wait, What::Ask);
        self.check_tree();
        let open: Vec<_> = self.server.rows.jobs.keys().cloned().collect();
        let Some(job) = (!open.is_empty()).then(|| &open[self.curious.below(open.len() as u64) as usize]) else {
            return;
        };
        let Some(Job { row, devices }) = self.server.rows.jobs.get(job).cloned() else { return };
        for device in devices {
            self.check_explained(&row, &device);
        }
    }

    fn answered(&mut self, what: &str) {
        self.asked += 1;
        match self.answers.get_mut(what) {
            Some(count) => *count += 1,
            None => {
                self.answers.insert(what.to_owned(), 1);
            }
        }
    }

    /// At a quiet point.
    pub(super) fn check_views(&mut self) {
        self.check_tree();
        let jobs: Vec<Job> = self.server.rows.jobs.values().cloned().collect();
        for Job { row, devices } in jobs {
            for device in devices {
                if self.curious.one_in(EXPLAINED_EVERY) {
                    self.check_explained(&row, &device);
                }
            }
        }
    }

    /// How the server shows a node.
    fn view_of(&self, place: Place) -> Option<NodeView> {
        let now = self.now_of(Place::Server).node;
        let state = self.server.process.as_ref()?.core.tenant(&self.desk.tenant)?;
        let row = state.nodes.get(&place.id())?;
        Some(NodeView { node: row.as_ref().clone(), standing: standing(state, row, now) })
    }

    fn check_tree(&mut self) {
        for place in (0..RELAYS).map(Place::Relay).chain((0..AGENTS).map(Place::Agent)) {
            let Some(view) = self.view_of(place) else { continue };
            self.answered(&format!("{} {}", view.node.role, view.standing.state));
            let row = serde_json::to_value(tree_node(&Place::Server.id().to_string(), &view, Default::default()))
                .unwrap_or_default();
            if let Some(fault) = self.fault_of_row(place, &view, &row) {
                self.violation(format_args!("tree: {place} {fault}"));
            }
        }
    }

    /// What is wrong about a node's row of the tree.
    fn fault_of_row(&self, place: Place, view: &NodeView, row: &Value) -> Option<String> {
        let shown = &view.standing;
        let suspended = self.desk.suspended.contains(&place.id());
        if self.storm && (shown.state == "suspended") != suspended {
            return Some(format!("is {} and suspended: {suspended}", shown.state));
        }
        let above = shown.route.last().copied().unwrap_or(Place::Server.id());
        if row["parent"] != above.to_string() || row["state"] != shown.state {
            return Some(format!("is shown as {row}, and stands as {shown:?}"));
        }
        if shown.state == "suspended" || shown.reason.as_deref() == Some("never_seen") {
            return None;
        }
        let mut hops = vec![Place::Server];
        hops.extend(shown.route.iter().filter_map(|id| Place::of(*id)));
        hops.push(place);
        let first = hops[1];
        let is_relay = matches!(place, Place::Relay(_));
        if !self.counts_on(first, &[]) {
            if place != first {
                let behind = format!("behind {first}");
                let told = shown.state == "unknown" && shown.reason.as_deref() == Some(&behind);
                return (!told).then(|| format!("is {} {:?}, and {first} has no link", shown.state, shown.reason));
            }
            let up = shown.state == "online" && (is_relay || shown.link == "persistent");
            let since = is_relay && row["unreachable_since"].is_null();
            return (up || since).then(|| format!("is shown as {row}, and has no link"));
        }
        let says_up = shown.state == "online" && shown.link == "persistent";
        if says_up {
            // The last hop whose news must have come: everything above it is undisturbed.
            for pair in hops.windows(2).skip(1) {
                let (parent, child) = (pair[0], pair[1]);
                if !self.is_clear(parent) {
                    break;
                }
                let gone = !self.counts_within(parent, child, NEWS_MS);
                if gone {
                    return Some(format!(
                        "is shown up by way of {:?}, and {child} has no link at {parent}",
                        shown.route
                    ));
                }
            }
        }
        let reachable = self.is_clear(place) && self.is_itself(place);
        let route: Vec<NodeId> = self.way_up(place).iter().skip(1).map(|(parent, _)| parent.id()).collect();
        if reachable && (!says_up || shown.route != route) {
            return Some(format!("is {} {:?} by {:?}, and is up by {route:?}", shown.state, shown.reason, shown.route));
        }
        None
    }

    /// Whether a node is not one whose disk was set back and that has not gone on in another epoch yet.
    fn is_itself(&self, place: Place) -> bool {
        let Place::Agent(n) = place else { return true };
        let core = self.agents[n].process.as_ref().map(|process| process.driver.core());
        let epoch = self.desk.list.epoch_of(place.id(), 1);
        self.machines[&place].unjudged.is_empty()
            && core.is_none_or(|core| !core.figures().rolled_back && core.figures().epoch >= epoch)
    }

    /// The hops between the server and a node as it hangs now, nearest the server first.
    fn way_up(&self, place: Place) -> Vec<(Place, Place)> {
        let mut hops = Vec::new();
        let mut at = place;
        while at != Place::Server {
            let parent = match at {
                Place::Agent(n) => self.agents[n].network.0,
                Place::Relay(n) => self.relays[n].parent,
                Place::Server | Place::Gateway => break,
            };
            hops.insert(0, (parent, at));
            at = parent;
        }
        hops
    }

    /// Whether a node's persistent link, and every one above it, is up and undisturbed for long enough that all news of
    /// it has come to the server.
    fn is_clear(&self, place: Place) -> bool {
        self.way_up(place).into_iter().all(|(parent, child)| {
            let of = |link: &&Link| (link.parent, link.child) == (parent, child) && link.is_up();
            let Some(link) = self.links.values().rfind(of) else { return false };
            let awake = |place: Place| {
                let machine = &self.machines[&place];
                machine.up && machine.frozen_until + NEWS_MS <= self.now
            };
            let (pipe, end) = (&link.pipes[Side::Child as usize], &link.ends[Side::Child as usize]);
            let written = pipe.flying.is_empty() && end.control.is_empty() && end.lanes.queued() == 0;
            let persistent = link.session.as_ref().is_some_and(|child| child.lease.is_none());
            let long = self.attached.get(&(parent, child)).is_some_and(|at| at + NEWS_MS <= self.now);
            !link.cut
                && !link.silent
                && written
                && persistent
                && long
                && pipe.stalled_until + NEWS_MS <= self.now
                && awake(parent)
                && awake(child)
        })
    }

    /// Whether a parent's end has a link of a child, or had one a moment ago.
    fn counts_within(&self, parent: Place, child: Place, ms: u64) -> bool {
        let just_over = self.over.get(&(parent, child)).is_some_and(|at| self.now < at + ms);
        let counts = |l: &Link| (l.parent, l.child) == (parent, child) && l.ends[Side::Parent as usize].open;
        just_over || self.links.values().any(counts)
    }

    fn check_explained(&mut self, job: &JobRow, row: &JobDeviceRow) {
        let Some(Place::Agent(n)) = row.device.as_ref().ok().copied().and_then(Place::of) else { return };
        let Some(told) = self.explained(job, row, n) else { return };
        let last = told["timeline"].as_array().and_then(|steps| steps.last());
        self.answered(last.and_then(|step| step["event"].as_str()).unwrap_or_default());
        let excluded = self.is_excluded(job.number, n);
        if let Some(fault) = self.fault_of_answer(job, row, n, &told).filter(|_| !excluded) {
            self.violation(format_args!("explain {} on agent{n}: {fault}", job.number));
        }
    }

    fn explained(&self, job: &JobRow, row: &JobDeviceRow, n: usize) -> Option<Value> {
        let device = Place::Agent(n);
        let state = self.server.process.as_ref()?.core.tenant(&self.desk.tenant)?;
        let view = self.view_of(device)?;
        let mut names: Names = state.nodes.iter().map(|(id, node)| (*id, node.name.clone())).collect();
        names.insert(Place::Server.id(), Place::Server.to_string());
        let of_device = |job: &Job| job.devices.iter().find(|d| d.device == Ok(device.id())).cloned();
        let steers = |steering: &&Job| steering.row.verb == CANCEL && steering.row.origin == Some(job.id);
        let steering: Vec<(JobRow, JobDeviceRow)> = self
            .server
            .rows
            .jobs
            .values()
            .filter(steers)
            .filter_map(|s| Some((s.row.clone(), of_device(s)?)))
            .collect();
        let whereabouts = Whereabouts {
            row: state.ledger.row(job.number, device.id()),
            cut_off: state.directory.cut_off(device.id()),
            held: state.held(job.number, device.id()),
        };
        let mut present = Present { now: self.now_of(Place::Server).node, ..Present::default() };
        present.contacts.suspended.extend((view.standing.state == "suspended").then_some(device.id()));
        let known = Known {
            job,
            row,
            device: device.id(),
            steering: &steering,
            whereabouts: &whereabouts,
            standing: &view.standing,
            names: &names,
            server: Place::Server.id(),
            present: &present,
        };
        serde_json::to_value(explain(&known)).ok()
    }

    /// What is wrong about an answer of `explain`.
    fn fault_of_answer(&mut self, job: &JobRow, row: &JobDeviceRow, n: usize, told: &Value) -> Option<String> {
        let (state, order, device) = (row.state.as_str(), job.number, Place::Agent(n));
        let steps = told["timeline"].as_array().cloned().unwrap_or_default();
        let step = |event: &str| steps.iter().find(|step| step["event"] == event);
        let last = steps.last().cloned().unwrap_or_default();
        if step("issued").is_none() {
            return Some(format!("it was never issued: {told}"));
        }
        if let Some(fault) = self.fault_of_end(row, (order, n), told) {
            return Some(fault);
        }
        let key = journal_key(order);
        // The disk of a device that is off cannot always be looked into.
        let machine = &self.machines[&device];
        let forgot = self.forgotten.contains(&(order, n));
        let journalled = forgot || !machine.up || machine.disk.get(Table::Journal, &key).is_some();
        if step("delivered").is_some() && !journalled {
            return Some("it is shown as delivered, and the device does not have it".into());
        }
        let truth = self.agents[n].jobs.truth.get(&order).copied().unwrap_or_default();
        // An intent of which nothing came counts as begun.
        if step("started").is_some() && truth.starts == 0 && row.state != State::OutcomeUnknown && job.verb != CANCEL {
            return Some(format!("it is shown as started, and is {state}"));
        }
        // One with a date says what was, not what is.
        if let Some(held) = step("held").filter(|held| !journalled && held["at"].is_null()) {
            let relay = (0..RELAYS).map(Place::Relay).find(|relay| held["node"] == relay.to_string());
            let key = relay.map(|relay| (relay, [&b"r"[..], &key, device.id().bytes()].concat()));
            if let Some((relay, key)) = key
                && self.is_clear(relay)
                && self.machines[&relay].disk.get(Table::Ledger, &key).is_none()
            {
                return Some(format!("it is shown as held by {relay}, whose disk does not have it"));
            }
        }
        if row.state.is_end() {
            return None;
        }
        if told["reason"].is_null() {
            return Some("it has no reason for not being over".into());
        }
        let route = self.view_of(device)?.standing.route;
        let first = route.first().copied().and_then(Place::of);
        let unreachable = last["event"] == "unreachable";
        match first {
            Some(relay) if !self.counts_within(Place::Server, relay, TOLD_MS) => {
                let named = unreachable && last["node"] == relay.to_string();
                (!named).then(|| format!("{relay} has no link, and it waits for {last}"))
            }
            _ if unreachable && self.is_clear(device) && self.is_itself(device) => {
                Some(format!("the device is up, and it waits for {last}"))
            }
            _ => None,
        }
    }

    /// An end is shown as it is, with nothing to come, and stays; save that silence gives way to a late result.
    fn fault_of_end(&mut self, row: &JobDeviceRow, pair: (OrderNumber, usize), told: &Value) -> Option<String> {
        if !row.state.is_end() {
            return self.shown.get(&pair).map(|(was, _)| format!("it was {was}, and is {}", row.state));
        }
        let fits = told["state"] == row.state.as_str() && told["reason"] == Value::from(row.reason.clone());
        if !fits || !told["next_contact"].is_null() {
            return Some(format!("it is {} {:?}: {told}", row.state, row.reason));
        }
        let now = (row.state, row.reason.clone());
        let before = self.shown.insert(pair, now.clone())?;
        // So does what a relay with an old disk gave back.
        let risen = before.0 == State::Expired && self.unwitnessed.contains(&pair);
        let silence = row.late && (before.1.as_deref() == Some("silent") || risen);
        (before != now && !silence).then(|| format!("it was {before:?}, and is {now:?}"))
    }
}
