//! Operating system, hardware and users.

use super::{LinuxPlatform, known};
use branchline_protocol::inventory::{Items, NOT_AVAILABLE};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, System};

/// The first number that people get; below it are services.
const UID_PEOPLE: u32 = 1_000;
/// `nobody`: the owner of what has none.
const UID_NOBODY: u32 = 65_534;

impl LinuxPlatform {
    pub(super) fn os_release(&self) -> BTreeMap<String, String> {
        let text = ["etc/os-release", "usr/lib/os-release"].iter().find_map(|path| self.text(path));
        os_release(&text.unwrap_or_default())
    }

    pub(super) fn host_name(&self) -> Option<String> {
        self.line("proc/sys/kernel/hostname")
    }

    pub(super) fn os(&self) -> Items {
        let release = self.os_release();
        let booted_at = self
            .booted_at
            .get_or_init(|| known(self.text("proc/stat").and_then(|text| boot_seconds(&text)).map(|s| s * 1_000)));
        let architecture = Some(System::cpu_arch()).filter(|word| !word.is_empty());
        items([
            ("pretty_name", known(release.get("PRETTY_NAME").cloned())),
            ("id", known(release.get("ID").cloned())),
            ("version", known(release.get("VERSION_ID").cloned())),
            ("kernel", known(self.line("proc/sys/kernel/osrelease"))),
            ("architecture", known(architecture)),
            ("host_name", known(self.host_name())),
            ("booted_at", booted_at.clone()),
        ])
    }

    pub(super) fn hardware(&self) -> Items {
        let (mut model, mut logical, mut memory) = (None, None, None);
        if let Ok(mut system) = System::new() {
            system.refresh_cpu_list(CpuRefreshKind::nothing());
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            let cpus = system.cpus();
            model = cpus.first().map(|cpu| cpu.brand().trim().to_owned()).filter(|brand| !brand.is_empty());
            logical = Some(cpus.len()).filter(|n| *n > 0);
            memory = Some(system.total_memory()).filter(|n| *n > 0);
        }
        let physical = System::physical_core_count().ok().filter(|n| *n > 0);
        let dmi = |name: &str| known(self.line(&format!("sys/class/dmi/id/{name}")));
        items([
            ("cpu_model", known(model)),
            ("cores_logical", known(logical)),
            ("cores_physical", known(physical)),
            ("memory_bytes", known(memory)),
            ("vendor", dmi("sys_vendor")),
            ("product", dmi("product_name")),
            ("serial", dmi("product_serial")),
        ])
    }

    pub(super) fn users(&self) -> Items {
        match self.text("etc/passwd") {
            Some(text) => users(&text),
            None => Items::from([(NOT_AVAILABLE.to_owned(), user(NOT_AVAILABLE.into(), "", ""))]),
        }
    }
}

fn items<const N: usize>(pairs: [(&str, Value); N]) -> Items {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// `KEY=value` lines of os-release(5); values may be quoted as in a shell. Empty values are left out.
fn os_release(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let (key, value) = line.trim().split_once('=')?;
        let value = unquote(value.trim());
        let named = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        (named && !value.is_empty()).then(|| (key.to_owned(), value))
    };
    text.lines().filter_map(pair).collect()
}

fn unquote(value: &str) -> String {
    let quoted = |mark: char| value.strip_prefix(mark).and_then(|v| v.strip_suffix(mark));
    if let Some(inner) = quoted('\'') {
        return inner.to_owned();
    }
    let inner = quoted('"').unwrap_or(value);
    let mut plain = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    plain
}

/// The `btime` line of `/proc/stat`: seconds since 1970.
fn boot_seconds(text: &str) -> Option<u64> {
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<u64>().ok()?;
    // A machine without a clock of its own says 1970; that is no time of starting.
    (seconds > 0).then_some(seconds)
}

/// root and people from passwd(5), by name.
fn users(text: &str) -> Items {
    let entry = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, _, _, home, shell] = fields[..] else { return None };
        let uid: u32 = uid.parse().ok()?;
        let listed = uid == 0 || (uid >= UID_PEOPLE && uid != UID_NOBODY && name != "nobody");
        (listed && !name.is_empty()).then(|| (name.to_owned(), user(uid.into(), home, shell)))
    };
    text.lines().filter_map(entry).collect()
}

fn user(uid: Value, home: &str, shell: &str) -> Value {
    let text = |text: &str| known(Some(text.to_owned()).filter(|t| !t.is_empty()));
    json!({"uid": uid, "home": text(home), "shell": text(shell)})
}

/// The home folder of a user, for the environment of jobs.
pub(super) fn home_of(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, number, _, _, home, _] = fields[..] else { return None };
        (number.parse() == Ok(uid) && !home.is_empty()).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values_may_be_quoted() {
        let text =
            "PRETTY_NAME=\"Debian \\\"12\\\"\"\nID=debian\nVERSION_ID='12'\n# note\nEMPTY=\"\"\n=x\nA B=1\nnothing\n";
        let release = os_release(text);
        assert_eq!(release["PRETTY_NAME"], "Debian \"12\"");
        assert_eq!(release["ID"], "debian");
        assert_eq!(release["VERSION_ID"], "12");
        assert_eq!(release.len(), 3);
        assert!(os_release("").is_empty());
        assert_eq!(os_release("ID=\"").remove("ID").as_deref(), Some("\""), "half a quote is text");
        assert_eq!(os_release("ID=\"a\\\"").remove("ID").as_deref(), Some("a\\"));
    }

    #[test]
    fn the_boot_time_is_a_line_of_its_own() {
        assert_eq!(boot_seconds("cpu 1 2\nbtime 1795313444\nprocesses 1\n"), Some(1_795_313_444));
        for text in ["", "btime", "btime x", "btime -1", "btime 0", "notbtime 5"] {
            assert_eq!(boot_seconds(text), None, "{text}");
        }
    }

    #[test]
    fn users_are_root_and_people() {
        let text = "root:x:0:0:root:/root:/bin/sh\nmail:x:8:8::/var/mail:/bin/false\nana:x:1000:1000:Ana,,,:/home/ana:\n\
                    eve:x:999:1:::\nnobody:x:65534:65534::/:/bin/false\nbroken:x:1001\nmany:x:1:2:3:4:5:6\nbad:x:-1:0:::\n:x:1002:0:::\n";
        let users = users(text);
        assert_eq!(users.keys().collect::<Vec<_>>(), ["ana", "root"]);
        assert_eq!(users["ana"], json!({"uid": 1000, "home": "/home/ana", "shell": NOT_AVAILABLE}));
        assert_eq!(home_of(text, 0).as_deref(), Some("/root"));
        assert_eq!(home_of(text, 4), None);
    }
}
