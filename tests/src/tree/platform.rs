//! Platforms a scenario controls: an inventory that changes when told, a device that cannot run scripts.

use branchline_agent::{
    capabilities::{RESTART, RUN_SCRIPT},
    platform::{HostFacts, JobHandle, JobLeft, JobSpec, Platform, StartFault, VirtualPlatform, host},
};
use branchline_protocol::inventory::Snapshot;
use bytes::Bytes;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A virtual device whose simulated jobs print `output`.
pub fn simulated(seed: u64, output: &str) -> Arc<dyn Platform> {
    Arc::new(VirtualPlatform::new(seed, 20).with_output(Bytes::copy_from_slice(output.as_bytes())))
}

/// A virtual device whose jobs really run, on this machine.
pub fn scripted(seed: u64) -> Arc<dyn Platform> {
    Arc::new(VirtualPlatform::new(seed, 20).with_real_jobs(host()))
}

/// A virtual device whose restart is a command of its own on this machine, and whose lives the scenario counts.
pub struct Restarting {
    device: VirtualPlatform,
    command: Vec<String>,
    life: AtomicUsize,
}

impl Restarting {
    /// A device in its first life.
    pub fn new(seed: u64, command: &[&str]) -> Arc<Restarting> {
        let device = VirtualPlatform::new(seed, 20).with_real_jobs(host());
        Arc::new(Restarting { device, command: command.iter().map(|w| w.to_string()).collect(), life: 1.into() })
    }

    /// The next life begins; its agent has to be started again, too.
    pub fn begin_life(&self) {
        self.life.fetch_add(1, Ordering::SeqCst);
    }
}

impl Platform for Restarting {
    fn name(&self) -> &'static str {
        self.device.name()
    }
    fn capabilities(&self) -> Vec<String> {
        let mut words = self.device.capabilities();
        words.push(RESTART.to_owned());
        words.sort();
        words
    }
    fn facts(&self) -> HostFacts {
        self.device.facts()
    }
    fn boot(&self) -> Option<String> {
        Some(format!("life {}", self.life.load(Ordering::SeqCst)))
    }
    fn restart_command(&self) -> Option<Vec<String>> {
        Some(self.command.clone())
    }
    fn collect(&self, sections: &[String]) -> Snapshot {
        self.device.collect(sections)
    }
    fn start_job(&self, spec: JobSpec) -> Result<JobHandle, StartFault> {
        self.device.start_job(spec)
    }
    fn inspect_job(&self, dir: &Path) -> JobLeft {
        self.device.inspect_job(dir)
    }
    fn attach_job(&self, dir: &Path) -> JobHandle {
        self.device.attach_job(dir)
    }
}

/// A virtual device that gains packages when told.
pub struct Changing {
    seed: u64,
    packages: AtomicUsize,
    scripted: bool,
}

impl Changing {
    /// A device with this many packages.
    pub fn new(seed: u64, packages: usize) -> Arc<Changing> {
        Arc::new(Changing { seed, packages: packages.into(), scripted: false })
    }

    /// The same whose jobs really run.
    pub fn scripted(seed: u64, packages: usize) -> Arc<Changing> {
        Arc::new(Changing { seed, packages: packages.into(), scripted: true })
    }

    /// One more package is installed from here on.
    pub fn install(&self) {
        self.packages.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> VirtualPlatform {
        let device = VirtualPlatform::new(self.seed, self.packages.load(Ordering::SeqCst));
        if self.scripted { device.with_real_jobs(host()) } else { device }
    }
}

impl Platform for Changing {
    fn name(&self) -> &'static str {
        self.now().name()
    }
    fn capabilities(&self) -> Vec<String> {
        self.now().capabilities()
    }
    fn facts(&self) -> HostFacts {
        self.now().facts()
    }
    fn collect(&self, sections: &[String]) -> Snapshot {
        self.now().collect(sections)
    }
    fn start_job(&self, spec: JobSpec) -> Result<JobHandle, StartFault> {
        self.now().start_job(spec)
    }
    fn inspect_job(&self, dir: &Path) -> JobLeft {
        self.now().inspect_job(dir)
    }
    fn attach_job(&self, dir: &Path) -> JobHandle {
        self.now().attach_job(dir)
    }
}

/// The same device, which declares more than it has backends for: only what is shown of it matters.
pub struct Declaring(pub Arc<dyn Platform>, pub Vec<&'static str>);

impl Platform for Declaring {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn capabilities(&self) -> Vec<String> {
        self.0.capabilities().into_iter().chain(self.1.iter().map(|w| w.to_string())).collect()
    }
    fn facts(&self) -> HostFacts {
        self.0.facts()
    }
    fn collect(&self, sections: &[String]) -> Snapshot {
        self.0.collect(sections)
    }
    fn start_job(&self, spec: JobSpec) -> Result<JobHandle, StartFault> {
        self.0.start_job(spec)
    }
    fn inspect_job(&self, dir: &Path) -> JobLeft {
        self.0.inspect_job(dir)
    }
    fn attach_job(&self, dir: &Path) -> JobHandle {
        self.0.attach_job(dir)
    }
}

/// The same device without the capability to run scripts.
pub struct Scriptless(pub Arc<dyn Platform>);

impl Platform for Scriptless {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn capabilities(&self) -> Vec<String> {
        self.0.capabilities().into_iter().filter(|c| c != RUN_SCRIPT).collect()
    }
    fn facts(&self) -> HostFacts {
        self.0.facts()
    }
    fn collect(&self, sections: &[String]) -> Snapshot {
        self.0.collect(sections)
    }
    fn start_job(&self, spec: JobSpec) -> Result<JobHandle, StartFault> {
        self.0.start_job(spec)
    }
    fn inspect_job(&self, dir: &Path) -> JobLeft {
        self.0.inspect_job(dir)
    }
    fn attach_job(&self, dir: &Path) -> JobHandle {
        self.0.attach_job(dir)
    }
}

/// The same device, whose collections panic as often as told.
pub struct Faulty {
    device: Arc<dyn Platform>,
    panics: AtomicUsize,
}

impl Faulty {
    /// A device whose next collections panic, so many of them.
    pub fn new(device: Arc<dyn Platform>, panics: usize) -> Arc<Faulty> {
        Arc::new(Faulty { device, panics: panics.into() })
    }

    /// From here on so many collections panic.
    pub fn panic_next(&self, panics: usize) {
        self.panics.store(panics, Ordering::SeqCst);
    }
}

impl Platform for Faulty {
    fn name(&self) -> &'static str {
        self.device.name()
    }
    fn capabilities(&self) -> Vec<String> {
        self.device.capabilities()
    }
    fn facts(&self) -> HostFacts {
        self.device.facts()
    }
    fn collect(&self, sections: &[String]) -> Snapshot {
        let left = self.panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(left.is_err(), "a collection that panics, as the scenario asked");
        self.device.collect(sections)
    }
    fn start_job(&self, spec: JobSpec) -> Result<JobHandle, StartFault> {
        self.device.start_job(spec)
    }
    fn inspect_job(&self, dir: &Path) -> JobLeft {
        self.device.inspect_job(dir)
    }
    fn attach_job(&self, dir: &Path) -> JobHandle {
        self.device.attach_job(dir)
    }
}
