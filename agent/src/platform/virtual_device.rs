//! A device that is not there, for load tests: hundreds of agents live in one process. Its inventory is made from a
//! seed; its jobs are answered at once and marked `simulated` (rule P), unless a real platform runs them.

use super::{Ended, HostFacts, JobHandle, JobLeft, JobSpec, Platform, SpawnFault, StartFault, Status, wanted};
use crate::capabilities::{MANUAL_REFRESH, REFRESH_INVENTORY, RUN_SCRIPT};
use branchline_node::random::SeededRandom;
use branchline_protocol::inventory::{Items, NOT_AVAILABLE, Snapshot};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::watch;

/// See the module.
pub struct VirtualPlatform {
    seed: u64,
    packages: usize,
    output: Bytes,
    real: Option<Arc<dyn Platform>>,
    wand: Option<Arc<Wand>>,
}

/// What a load test does to its devices, all of them at once.
#[derive(Debug)]
pub struct Wand {
    open: watch::Sender<bool>,
    changes: AtomicU64,
}

impl Wand {
    /// One that lets nobody collect yet.
    pub fn closed() -> Arc<Wand> {
        Arc::new(Wand { open: watch::Sender::new(false), changes: AtomicU64::new(0) })
    }

    /// Lets everybody collect from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Each device's first package has another version from now on.
    pub fn change(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }
}

impl VirtualPlatform {
    /// The same seed is the same device; it has this many packages.
    pub fn new(seed: u64, packages: usize) -> VirtualPlatform {
        VirtualPlatform { seed, packages, output: Bytes::new(), real: None, wand: None }
    }

    /// What each simulated job prints.
    pub fn with_output(mut self, output: Bytes) -> VirtualPlatform {
        self.output = output;
        self
    }

    /// Jobs are run by `real`, on this machine, and not simulated.
    pub fn with_real_jobs(mut self, real: Arc<dyn Platform>) -> VirtualPlatform {
        self.real = Some(real);
        self
    }

    /// A load test says when it may collect, and when one of its packages changes.
    pub fn with_wand(mut self, wand: Arc<Wand>) -> VirtualPlatform {
        self.wand = Some(wand);
        self
    }

    fn host_name(&self) -> String {
        format!("virtual-{}", self.seed)
    }

    fn changes(&self) -> u64 {
        self.wand.as_ref().map_or(0, |wand| wand.changes.load(Ordering::SeqCst))
    }

    fn section(&self, name: &str) -> Items {
        let random = SeededRandom::shared(self.seed);
        let numbers: Vec<u64> = (0..4).map(|_| random.next_u64()).collect();
        let pairs: Vec<(String, Value)> = match name {
            "os" => vec![
                ("pretty_name".into(), "Branchline virtual device".into()),
                ("id".into(), "virtual".into()),
                ("host_name".into(), self.host_name().into()),
                ("architecture".into(), "virtual".into()),
            ],
            "hardware" => vec![
                ("cpu_model".into(), format!("virtual {:04x}", numbers[0] & 0xffff).into()),
                ("cores_logical".into(), (1 << (numbers[1] % 5)).into()),
                ("memory_bytes".into(), ((1 + numbers[2] % 64) << 30).into()),
                ("serial".into(), format!("{:016x}", numbers[3]).into()),
            ],
            "disks" => {
                let total = (1 + numbers[0] % 4_096) << 30;
                vec![("/".into(), json!({"device": "virtual", "file_system": "virtual", "total_bytes": total}))]
            }
            "network" => {
                let [.., a, b, c] = numbers[0].to_be_bytes();
                let mac = format!("02:00:00:{a:02x}:{b:02x}:{c:02x}");
                vec![("eth0".into(), json!({"mac": mac, "addresses": [format!("10.{a}.{b}.{c}/8")]}))]
            }
            "protection" => Vec::new(),
            "software" => (0..self.packages)
                .map(|n| {
                    let version = random.next_u64();
                    let (major, minor) = (version % 10, (version >> 8) % 20);
                    let patch = (version >> 16) % 50 + if n == 0 { self.changes() } else { 0 };
                    let version = format!("{major}.{minor}.{patch}");
                    (format!("package-{n:05}:virtual"), json!({"version": version, "source": "virtual"}))
                })
                .collect(),
            _ => vec![("root".into(), json!({"uid": 0, "shell": NOT_AVAILABLE, "home": NOT_AVAILABLE}))],
        };
        pairs.into_iter().collect()
    }
}

impl Platform for VirtualPlatform {
    fn name(&self) -> &'static str {
        "virtual"
    }

    fn capabilities(&self) -> Vec<String> {
        [MANUAL_REFRESH, REFRESH_INVENTORY, RUN_SCRIPT].map(str::to_owned).to_vec()
    }

    fn facts(&self) -> HostFacts {
        let os_pretty = "Branchline virtual device".to_owned();
        HostFacts { host_name: self.host_name(), platform: self.name().to_owned(), os_pretty }
    }

    fn may_collect(&self) -> BoxFuture<'static, ()> {
        let open = self.wand.as_ref().map(|wand| wand.open.subscribe());
        Box::pin(async move {
            if let Some(mut open) = open {
                // Without its wand nobody holds it back.
                let _ = open.wait_for(|open| *open).await;
            }
        })
    }

    fn collect(&self, sections: &[String]) -> Snapshot {
        let sections = wanted(sections).map(|name| (name.to_string(), self.section(name))).collect();
        Snapshot { sections }
    }

    fn start_job(&self, spec: JobSpec) -> Result<JobHandle, StartFault> {
        if let Some(real) = &self.real {
            return real.start_job(spec);
        }
        let kept = self.output.slice(..self.output.len().min(usize::try_from(spec.output_cap).unwrap_or(usize::MAX)));
        let status = Status {
            ended: Ended::Exited(0),
            stdout_bytes: kept.len() as u64,
            stdout_truncated: kept.len() < self.output.len(),
            simulated: true,
            ..Status::not_started(SpawnFault::NotFound, None)
        };
        Ok(JobHandle::done(&spec.dir, JobLeft::Finished(status, kept, Bytes::new())))
    }

    fn uses_folders(&self) -> bool {
        self.real.is_some()
    }

    fn inspect_job(&self, dir: &Path) -> JobLeft {
        self.real.as_ref().map_or(JobLeft::Cut, |real| real.inspect_job(dir))
    }

    fn attach_job(&self, dir: &Path) -> JobHandle {
        self.real.as_ref().map_or_else(|| JobHandle::done(dir, JobLeft::Cut), |real| real.attach_job(dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::SECTIONS;
    use futures_util::FutureExt;

    #[test]
    fn a_seed_is_a_device_and_its_inventory_stays() {
        let device = VirtualPlatform::new(7, 300);
        let first = device.collect(&[]);
        assert_eq!(first, device.collect(&[]));
        assert_eq!(first.sections["software"].len(), 300);
        assert_eq!(first.sections.len(), SECTIONS.len());
        assert_ne!(first, VirtualPlatform::new(8, 300).collect(&[]));
        assert_eq!(device.collect(&["os".to_owned()]).sections.len(), 1);
    }

    #[tokio::test]
    async fn a_wand_holds_collections_back_and_changes_one_package_of_each_device() {
        let wand = Wand::closed();
        let device = VirtualPlatform::new(7, 300).with_wand(wand.clone());
        assert!(device.may_collect().now_or_never().is_none());
        wand.open();
        assert!(device.may_collect().now_or_never().is_some());
        let before = device.collect(&[]);
        assert_eq!(before, VirtualPlatform::new(7, 300).collect(&[]), "nothing is changed yet");
        wand.change();
        let after = device.collect(&[]);
        let software = |of: &Snapshot| of.sections["software"].clone();
        let (old, new) = (software(&before), software(&after));
        assert_eq!(new.iter().filter(|(name, what)| old.get(*name) != Some(what)).count(), 1);
        assert_eq!(old.len(), new.len());
    }

    #[tokio::test]
    async fn a_simulated_job_says_so_and_keeps_to_its_cap() {
        let device = VirtualPlatform::new(7, 0).with_output(Bytes::from_static(b"12345"));
        for (cap, kept) in [(5, "12345"), (4, "1234")] {
            let spec = JobSpec { output_cap: cap, ..JobSpec::argv("job".into(), "shim".into(), &["true"]) };
            let JobLeft::Finished(status, stdout, _) = device.start_job(spec).unwrap().wait().await else {
                panic!("not finished")
            };
            assert!(status.simulated);
            assert_eq!(stdout, kept);
            assert_eq!(status.truncated(), cap == 4);
        }
    }
}
