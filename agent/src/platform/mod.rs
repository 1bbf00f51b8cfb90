//! Everything only an operating system can do, behind one trait (rule P): inventory and jobs. A virtual agent differs
//! from a real one only here (DESIGN 4).

pub mod job;
#[cfg(target_os = "linux")]
pub mod linux;
#[cfg(any(test, not(target_os = "linux")))]
pub mod other;
pub mod virtual_device;

pub use branchline_protocol::inventory::SECTIONS;
use branchline_protocol::inventory::Snapshot;
use futures_util::future::BoxFuture;
pub use job::{Ended, JobHandle, JobLeft, JobSpec, SpawnFault, StartFault, Status};
use std::{path::Path, sync::Arc};
pub use virtual_device::{VirtualPlatform, Wand};

/// What a device says of itself at enrolment and greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// The machine's own name, or `not_available`.
    pub host_name: String,
    /// [`Platform::name`].
    pub platform: String,
    /// The operating system as it names itself, or `not_available`.
    pub os_pretty: String,
}

/// An operating system, or a stand-in for one. Every call may block: none belongs on an arbiter.
pub trait Platform: Send + Sync {
    /// `linux`, `windows`, `macos`, or `virtual`: the word in `unsupported(capability, platform)`.
    fn name(&self) -> &'static str;

    /// The capabilities declared at enrolment, sorted (TOP-14). See [`crate::capabilities`].
    fn capabilities(&self) -> Vec<String>;

    /// Who the machine says it is.
    fn facts(&self) -> HostFacts;

    /// A text that stays the same until the machine is started again; `None` where nothing tells (INV-2).
    fn boot(&self) -> Option<String> {
        None
    }

    /// The command line that starts the machine again; `None` where there is none, or this agent may not use it (rule P).
    fn restart_command(&self) -> Option<Vec<String>> {
        None
    }

    /// Returns when a collection may begin: at once, save where a load test says when.
    fn may_collect(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Collects these sections, all of [`SECTIONS`] when none is named; names it does not know are left out. What the
    /// platform cannot tell is `not_available` (INV-12). An idle machine gives the same answer each time (INV-4).
    fn collect(&self, sections: &[String]) -> Snapshot;

    /// Starts a job in its own process group, at most once per folder: a folder that was used before is refused.
    fn start_job(&self, spec: JobSpec) -> Result<JobHandle, StartFault>;

    /// Whether jobs use their folders. Where they do not, nothing about a job touches a disk or waits.
    fn uses_folders(&self) -> bool {
        true
    }

    /// What a job's folder holds after the agent's restart. Asked once the agent no longer means to start it: a job
    /// that has not begun by then never will.
    fn inspect_job(&self, dir: &Path) -> JobLeft;

    /// A handle to a job that [`Platform::inspect_job`] found running.
    fn attach_job(&self, dir: &Path) -> JobHandle;
}

/// The platform this process runs on.
pub fn host() -> Arc<dyn Platform> {
    #[cfg(target_os = "linux")]
    return Arc::new(linux::LinuxPlatform::new());
    #[cfg(not(target_os = "linux"))]
    return Arc::new(other::OtherPlatform);
}

/// The known sections among those asked for; none asked for is all.
fn wanted(asked: &[String]) -> impl Iterator<Item = &'static str> {
    SECTIONS.into_iter().filter(|name| asked.is_empty() || asked.iter().any(|a| a == name))
}
