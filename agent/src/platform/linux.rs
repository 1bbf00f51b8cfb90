//! Linux: real inventory from `/proc`, `/sys` and the package databases, real jobs under the shim.

mod devices;
pub(crate) mod jobs;
mod protection;
mod software;
mod system;

use super::{HostFacts, JobHandle, JobLeft, JobSpec, Platform, StartFault, wanted};
use crate::capabilities::{MANUAL_REFRESH, REFRESH_INVENTORY, RESTART, RUN_SCRIPT};
use branchline_protocol::inventory::{Items, NOT_AVAILABLE, Snapshot};
use serde_json::Value;
use std::{
    cell::OnceCell,
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// Package databases reach some tens of megabytes; a file beyond this is not one of those we know.
const FILE_BYTES_MAX: u64 = 256 * 1_048_576;

/// See the module.
pub struct LinuxPlatform {
    root: PathBuf,
    /// Read once: stepping the clock moves what the kernel says, and the machine was not started again for that.
    booted_at: OnceLock<Value>,
}

impl Default for LinuxPlatform {
    fn default() -> Self {
        LinuxPlatform::new()
    }
}

impl LinuxPlatform {
    /// This machine.
    pub fn new() -> LinuxPlatform {
        LinuxPlatform::at_root(PathBuf::from("/"))
    }

    /// Files are read below `root`: another system's, e.g. one mounted for inspection. CPU, memory, disks and
    /// interfaces are this machine's in any case.
    pub fn at_root(root: PathBuf) -> LinuxPlatform {
        LinuxPlatform { root, booted_at: OnceLock::new() }
    }

    /// A file's bytes; `None` when it is missing, closed to us or beyond any bound.
    fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.root.join(path)).ok()?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
        (bytes.len() as u64 <= FILE_BYTES_MAX).then_some(bytes)
    }

    /// A file's text; bytes that are no UTF-8 become replacement characters.
    fn text(&self, path: &str) -> Option<String> {
        self.bytes(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A one-line file's trimmed text; `None` when there is nothing in it.
    fn line(&self, path: &str) -> Option<String> {
        let text = self.text(path)?.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned();
        (!text.is_empty()).then_some(text)
    }

    fn section<'s>(&self, name: &str, software: impl Fn() -> &'s Items) -> Items {
        match name {
            "os" => self.os(),
            "hardware" => self.hardware(),
            "disks" => devices::disks(),
            "network" => devices::network(),
            "protection" => self.protection(software()),
            "software" => software().clone(),
            _ => self.users(),
        }
    }
}

/// A value, or the word for not knowing it.
fn known<T: Into<Value>>(value: Option<T>) -> Value {
    value.map_or_else(|| Value::from(NOT_AVAILABLE), Into::into)
}

impl Platform for LinuxPlatform {
    fn name(&self) -> &'static str {
        "linux"
    }

    fn capabilities(&self) -> Vec<String> {
        let restart = self.restart_command().map(|_| RESTART);
        let always = [MANUAL_REFRESH, REFRESH_INVENTORY];
        always.into_iter().chain(restart).chain([RUN_SCRIPT]).map(str::to_owned).collect()
    }

    fn facts(&self) -> HostFacts {
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| NOT_AVAILABLE.to_owned());
        HostFacts {
            host_name: or_unknown(self.host_name()),
            platform: self.name().to_owned(),
            os_pretty: or_unknown(self.os_release().remove("PRETTY_NAME")),
        }
    }

    fn boot(&self) -> Option<String> {
        self.line("proc/sys/kernel/random/boot_id")
    }

    fn restart_command(&self) -> Option<Vec<String>> {
        let systemd = self.root.join("run/systemd/system").is_dir();
        let here = self.root == Path::new("/") && std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        (systemd && here).then(|| ["systemctl", "reboot"].map(str::to_owned).to_vec())
    }

    fn collect(&self, sections: &[String]) -> Snapshot {
        // Two sections read the package databases, which take the longest by far.
        let software = OnceCell::new();
        let section = |name: &str| self.section(name, || software.get_or_init(|| self.software()));
        Snapshot { sections: wanted(sections).map(|name| (name.to_string(), section(name))).collect() }
    }

    fn start_job(&self, spec: JobSpec) -> Result<JobHandle, StartFault> {
        jobs::start(spec)
    }

    fn inspect_job(&self, dir: &Path) -> JobLeft {
        jobs::inspect(dir)
    }

    fn attach_job(&self, dir: &Path) -> JobHandle {
        JobHandle::attached(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::SECTIONS;
    use std::process::Command;

    fn output_of(program: &str, args: &[&str]) -> Option<String> {
        let output = Command::new(program).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// INV-4 rests on it: what was not changed compares equal.
    #[test]
    fn inv_4_two_collections_in_a_row_are_equal() {
        let platform = LinuxPlatform::new();
        let first = platform.collect(&[]);
        assert_eq!(first, platform.collect(&[]));
        assert_eq!(first.sections.keys().map(String::as_str).collect::<Vec<_>>(), SECTIONS);
        assert!(first.difference(&platform.collect(&[])).is_empty());
    }

    #[test]
    fn inv_12_linux_reports_the_machine_as_other_tools_see_it() {
        let platform = LinuxPlatform::new();
        let snapshot = platform.collect(&[]);
        let os = &snapshot.sections["os"];
        assert_eq!(os["kernel"], output_of("uname", &["-r"]).unwrap());
        assert_eq!(os["architecture"], output_of("uname", &["-m"]).unwrap());
        assert_eq!(os["host_name"], output_of("uname", &["-n"]).unwrap());
        assert_eq!(platform.facts().host_name, os["host_name"]);
        let hardware = &snapshot.sections["hardware"];
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
        let kib: u64 = memory.lines().next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
        assert_eq!(hardware["memory_bytes"], kib * 1024);
        assert_eq!(hardware["cores_logical"].to_string(), output_of("getconf", &["_NPROCESSORS_ONLN"]).unwrap());
        if let Some(packages) =
            output_of("dpkg-query", &["-W", "-f", "${db:Status-Status} ${Package}:${Architecture}\n"])
        {
            let absent = ["not-installed", "config-files", "half-installed"];
            let words = packages.lines().filter_map(|line| line.split_once(' '));
            let installed: Vec<_> = words.filter(|(state, _)| !absent.contains(state)).map(|(_, key)| key).collect();
            assert!(!installed.is_empty());
            let software = &snapshot.sections["software"];
            assert!(installed.iter().all(|key| software[*key]["source"] == "dpkg"));
            assert_eq!(software.values().filter(|v| v["source"] == "dpkg").count(), installed.len());
        }
        assert_eq!(snapshot.sections["users"]["root"]["uid"], 0);
        assert!(snapshot.sections["network"].contains_key("lo"));
    }

    #[test]
    fn inv_12_an_empty_system_is_not_available_not_invented() {
        let root = tempfile::tempdir().unwrap();
        let snapshot = LinuxPlatform::at_root(root.path().to_owned()).collect(&[]);
        for key in ["pretty_name", "id", "version", "kernel", "host_name", "booted_at"] {
            assert_eq!(snapshot.sections["os"][key], NOT_AVAILABLE, "{key}");
        }
        for key in ["vendor", "product", "serial"] {
            assert_eq!(snapshot.sections["hardware"][key], NOT_AVAILABLE, "{key}");
        }
        assert_eq!(snapshot.sections["software"][NOT_AVAILABLE]["version"], NOT_AVAILABLE);
        assert_eq!(snapshot.sections["protection"][NOT_AVAILABLE]["version"], NOT_AVAILABLE);
        assert_eq!(snapshot.sections["users"][NOT_AVAILABLE]["uid"], NOT_AVAILABLE);
    }

    #[test]
    fn only_the_sections_asked_for_are_collected() {
        let snapshot = LinuxPlatform::new().collect(&["users".into(), "no_such_section".into()]);
        assert_eq!(snapshot.sections.keys().collect::<Vec<_>>(), ["users"]);
    }
}
