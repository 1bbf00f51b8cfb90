//! An operating system without a backend of ours yet: it answers, and never pretends (rule P).

use super::{HostFacts, JobHandle, JobLeft, JobSpec, Platform, StartFault, wanted};
use crate::capabilities::{RUN_SCRIPT, Unsupported};
use branchline_protocol::inventory::{Items, NOT_AVAILABLE, Snapshot};
use serde_json::Value;
use std::path::Path;

/// Declares nothing, does nothing, says so.
pub struct OtherPlatform;

impl Platform for OtherPlatform {
    fn name(&self) -> &'static str {
        std::env::consts::OS
    }

    fn capabilities(&self) -> Vec<String> {
        Vec::new()
    }

    fn facts(&self) -> HostFacts {
        HostFacts {
            host_name: NOT_AVAILABLE.to_owned(),
            platform: self.name().to_owned(),
            os_pretty: NOT_AVAILABLE.to_owned(),
        }
    }

    fn collect(&self, sections: &[String]) -> Snapshot {
        let unknown = || Items::from([(NOT_AVAILABLE.to_owned(), Value::from(NOT_AVAILABLE))]);
        Snapshot { sections: wanted(sections).map(|name| (name.to_string(), unknown())).collect() }
    }

    fn start_job(&self, _spec: JobSpec) -> Result<JobHandle, StartFault> {
        Err(Unsupported { capability: RUN_SCRIPT.to_owned(), platform: self.name() }.into())
    }

    fn inspect_job(&self, _dir: &Path) -> JobLeft {
        JobLeft::Cut
    }

    fn attach_job(&self, dir: &Path) -> JobHandle {
        JobHandle::done(dir, JobLeft::Cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::SECTIONS;

    #[test]
    fn top_14_without_a_backend_nothing_is_declared_and_nothing_succeeds() {
        let platform = OtherPlatform;
        assert!(platform.capabilities().is_empty());
        let spec = JobSpec::argv("job".into(), "shim".into(), &["true"]);
        let fault = platform.start_job(spec).err().unwrap();
        assert_eq!(fault.to_string(), format!("unsupported(run_script, {})", std::env::consts::OS));
        assert_eq!(platform.inspect_job(Path::new("job")), JobLeft::Cut);
    }

    #[test]
    fn inv_12_what_it_cannot_tell_is_not_available() {
        let snapshot = OtherPlatform.collect(&["os".to_owned()]);
        assert_eq!(snapshot.sections.len(), 1);
        assert_eq!(snapshot.sections["os"][NOT_AVAILABLE], NOT_AVAILABLE);
        assert_eq!(OtherPlatform.collect(&[]).sections.len(), SECTIONS.len());
    }
}
