//! What administrators do during a storm: order scripts with long and short lives, cancel some of them early or late,
//! issue anew what did not succeed, suspend devices and revive them.

use super::{
    desk::Draft,
    place::Place,
    world::{AGENTS, What, World},
};
use branchline_protocol::{
    id::{JobId, NodeId},
    job::{CANCEL, Cancel, Class, RunScript, Runnable, State},
    time::Millis,
};
use branchline_server::{
    dispatch::{CANCELLING, CancelJob, Event},
    store::JobDeviceRow,
};
use bytes::Bytes;
use std::collections::BTreeSet;

/// Milliseconds within which orders may be fetched, unless they are short-lived.
const LIFE_MS: i64 = 30 * 86_400_000;
/// Milliseconds a script may run.
const RUN_MS_MAX: u64 = 600_000;
/// Devices suspended at once.
const SUSPENDED_MAX: usize = 3;

impl World {
    /// An administrator does something.
    pub(super) fn issue(&mut self) {
        if !self.storm {
            return;
        }
        let wait = self.desk.chance.between(500, 3_500);
        self.after(wait, What::Issue);
        if !self.is_served() {
            return;
        }
        match self.desk.chance.below(100) {
            0..10 => self.cancel_some(),
            10..18 => self.suspend_some(),
            18..24 => self.reissue_some(),
            _ => self.order_some(),
        }
    }

    /// Whether the server answers.
    fn is_served(&self) -> bool {
        self.server.process.is_some() && self.machines[&Place::Server].frozen_until <= self.now
    }

    fn server_time(&self) -> Millis {
        self.now_of(Place::Server).node
    }

    fn order_some(&mut self) {
        let chance = &mut self.desk.chance;
        let count = chance.between(1, 12);
        let devices = (0..count).map(|_| Place::Agent(chance.below(AGENTS as u64) as usize).id()).collect();
        let class = if chance.one_in(4) { Class::Urgent } else { Class::Normal };
        let exit = if chance.one_in(5) { "1" } else { "0" };
        let run_ms = [0, 5, 300, 2_500, 6_000][chance.below(5) as usize];
        let life_ms = if chance.one_in(5) { chance.between(50, 40_000) as i64 } else { LIFE_MS };
        // As soon as it is issued, or while it is under way.
        let cancelled_after = [None, None, None, None, None, None, None, Some(40), Some(400)];
        let cancelled_after = cancelled_after[chance.below(9) as usize].map(|ms| chance.between(ms / 8, ms));
        let run = RunScript {
            run: Runnable::Argv(vec!["run".into(), exit.into(), run_ms.to_string()]),
            time_out_ms: RUN_MS_MAX,
            output_cap: 65_536,
        };
        let args: Bytes = rmp_serde::to_vec_named(&run).expect("arguments are plain data").into();
        let (verb, fetch_by) = ("run_script", self.server_time().plus(life_ms));
        let draft = Draft { verb, args, class, fetch_by, run_ms_max: RUN_MS_MAX, devices, origin: None };
        if let Some(job) = self.order(draft)
            && let Some(ms) = cancelled_after
        {
            self.after(ms, What::Cancel(job));
        }
    }

    fn order(&mut self, draft: Draft) -> Option<JobId> {
        let issue = self.draft(draft)?;
        let job = issue.job.id;
        if let Some(process) = &mut self.server.process {
            process.issuing.insert(job);
        }
        self.note(format_args!("issue {} to {} devices", issue.job.number, issue.devices.len()));
        self.feed_server(Event::Issue(Box::new(issue)));
        Some(job)
    }

    /// A job is cancelled, if it is open.
    pub(super) fn cancel(&mut self, job: JobId) {
        let tenant = self.desk.tenant.clone();
        let plan = self.server.process.as_ref().and_then(|process| process.core.cancel_plan(&tenant, job));
        let Some(plan) = plan else { return };
        let receipt = JobId(self.desk.id());
        let mut steering = None;
        if !plan.steer.is_empty() {
            let args = rmp_serde::to_vec_named(&Cancel { target: plan.target }).expect("arguments are plain data");
            steering = self.draft(Draft {
                verb: CANCEL,
                args: args.into(),
                class: Class::Urgent,
                fetch_by: plan.report_by,
                run_ms_max: 0,
                devices: plan.steer.iter().map(|(device, _)| *device).collect(),
                origin: Some(job),
            });
        }
        self.note(format_args!("cancel {} where {} devices may have it", plan.target, plan.steer.len()));
        self.desk.cancels.insert(receipt, job);
        let (target, who) = (plan.target, "admin".to_owned());
        self.feed_server(Event::Cancel(Box::new(CancelJob { tenant, target, receipt, who, steering })));
    }

    fn cancel_some(&mut self) {
        let open: Vec<JobId> = self.server.rows.open.iter().map(|(_, job)| *job).collect();
        let ordered = |job: &JobId| self.server.rows.jobs.values().any(|j| j.row.id == *job && j.row.verb != CANCEL);
        let open: Vec<JobId> = open.into_iter().filter(ordered).collect();
        if let Some(job) = self.desk.chance.pick(&open) {
            self.cancel(job);
        }
    }

    /// A job that a device has not got, and that a relay holds for it.
    pub(super) fn waits_at(&self, relay: Place, n: usize) -> Option<JobId> {
        let waits = |device: &JobDeviceRow| {
            let mine = device.device == Ok(Place::Agent(n).id()) && device.state == State::Queued;
            mine && device.holders.contains(&relay.id())
        };
        let jobs = self.server.rows.open.iter().filter_map(|key| self.server.rows.jobs.get(key));
        let waiting = jobs.filter(|job| job.row.verb != CANCEL).find(|job| job.devices.iter().any(waits))?;
        Some(waiting.row.id)
    }

    /// A cancel was answered: each device is at its end, or known as being cancelled.
    pub(super) fn cancelled(&mut self, job: JobId) {
        let held = |device: &&JobDeviceRow| !device.state.is_end() && device.reason.as_deref() != Some(CANCELLING);
        let held = self.server.rows.job(&self.desk.tenant, job).and_then(|job| job.devices.iter().find(held));
        if let Some(device) = held {
            let what = format!("job {job} is answered as cancelled, and {:?} is {}", device.device, device.state);
            self.violation(format_args!("{what}"));
        }
    }

    /// What did not succeed is issued anew, as another order.
    fn reissue_some(&mut self) {
        let missed = |device: &JobDeviceRow| device.state.is_end() && device.state != State::Succeeded;
        let jobs = self.server.rows.jobs.values().filter(|job| job.row.verb != CANCEL);
        let jobs: Vec<JobId> = jobs.filter(|job| job.devices.iter().any(missed)).map(|job| job.row.id).collect();
        let Some(job) = self.desk.chance.pick(&jobs) else { return };
        let Some(job) = self.server.rows.job(&self.desk.tenant, job) else { return };
        let devices: BTreeSet<NodeId> =
            job.devices.iter().filter(|d| missed(d)).filter_map(|d| d.device.as_ref().ok().copied()).collect();
        let (args, class, origin) = (job.row.args.clone(), job.row.class, Some(job.row.id));
        let (verb, fetch_by) = ("run_script", self.server_time().plus(LIFE_MS));
        self.order(Draft { verb, args, class, fetch_by, run_ms_max: RUN_MS_MAX, devices, origin });
    }

    /// A device is suspended, or when enough are, one of them is revived.
    fn suspend_some(&mut self) {
        let device = Place::Agent(self.desk.chance.below(AGENTS as u64) as usize);
        let suspended = &mut self.desk.suspended;
        match suspended.len() {
            SUSPENDED_MAX.. => {
                suspended.pop_first();
            }
            _ => {
                suspended.insert(device.id());
            }
        }
        let count = suspended.len();
        self.note(format_args!("{count} devices are suspended"));
        self.desk.revise();
        self.publish();
    }

    /// Nobody is suspended any more.
    pub(super) fn revive_all(&mut self) {
        if !self.desk.suspended.is_empty() {
            self.note(format_args!("everybody is revived"));
            self.desk.suspended.clear();
            self.desk.revise();
            self.after(1, What::Publish);
        }
    }

    /// The server learns of the newest revocations.
    pub(super) fn publish(&mut self) {
        let tenant = self.desk.tenant.clone();
        for (kind, version, envelope) in self.desk.documents() {
            self.feed_server(Event::Document(tenant.clone(), kind, String::new(), version, envelope));
        }
    }
}
