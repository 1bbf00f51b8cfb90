//! Installed packages from the databases of dpkg, rpm and apk, by `name:architecture`.

use super::LinuxPlatform;
use branchline_protocol::inventory::{Items, NOT_AVAILABLE};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    io::Read,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// rpm waits for the lock of its database while another rpm works; longer than this and it is not available now.
const RPM_WAIT: Duration = Duration::from_secs(60);
/// rpm's list is some hundred kilobytes; more than this is not its list.
const RPM_BYTES_MAX: u64 = 32 * 1_048_576;
/// Tab-separated, so that a line cut short is noticed.
const RPM_FORMAT: &str = "%{NAME}\\t%{ARCH}\\t%{EPOCH}\\t%{VERSION}-%{RELEASE}\\n";

const DPKG_STATUS: &str = "var/lib/dpkg/status";
/// Images without dpkg itself keep one file per package here.
const DPKG_STATUS_FOLDER: &str = "var/lib/dpkg/status.d";
const APK_INSTALLED: [&str; 2] = ["lib/apk/db/installed", "usr/lib/apk/db/installed"];
const RPM_FOLDERS: [&str; 2] = ["var/lib/rpm", "usr/lib/sysimage/rpm"];
const RPM_DATABASES: [&str; 3] = ["rpmdb.sqlite", "Packages", "Packages.db"];

/// One installed package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    architecture: Option<String>,
    version: Option<String>,
}

impl LinuxPlatform {
    pub(super) fn software(&self) -> Items {
        let mut sources = Vec::new();
        if let Some(packages) = self.dpkg() {
            sources.push(("dpkg", Some(packages)));
        }
        let in_folder = |folder: &str, name: &str| self.root.join(folder).join(name).exists();
        if RPM_FOLDERS.iter().any(|folder| RPM_DATABASES.iter().any(|name| in_folder(folder, name))) {
            sources.push(("rpm", rpm(&self.root)));
        }
        if let Some(text) = APK_INSTALLED.iter().find_map(|path| self.text(path)) {
            sources.push(("apk", Some(parse_apk(&text))));
        }
        items(sources)
    }

    fn dpkg(&self) -> Option<Vec<Package>> {
        let main = self.text(DPKG_STATUS).map(|text| parse_dpkg(&text));
        let folder = fs::read_dir(self.root.join(DPKG_STATUS_FOLDER)).ok();
        if main.is_none() && folder.is_none() {
            return None;
        }
        let mut packages = main.unwrap_or_default();
        for entry in folder.into_iter().flatten().flatten() {
            // Checksums lie beside the descriptions.
            if entry.path().extension() != Some(OsStr::new("md5sums"))
                && let Some(name) = entry.file_name().to_str()
                && let Some(text) = self.text(&format!("{DPKG_STATUS_FOLDER}/{name}"))
            {
                packages.extend(parse_dpkg(&text));
            }
        }
        Some(packages)
    }
}

/// The section's items. A source that is there and cannot be read says so in an item of its own; no source at all too.
fn items(sources: Vec<(&str, Option<Vec<Package>>)>) -> Items {
    // Several versions of one package may be installed, e.g. of a kernel; all are named, in order.
    let mut versions: BTreeMap<String, (&str, BTreeSet<String>)> = BTreeMap::new();
    let unknown = || NOT_AVAILABLE.to_owned();
    if sources.is_empty() {
        versions.insert(unknown(), (NOT_AVAILABLE, BTreeSet::from([unknown()])));
    }
    for (source, packages) in sources {
        let Some(packages) = packages else {
            versions.insert(format!("{NOT_AVAILABLE}:{source}"), (source, BTreeSet::from([unknown()])));
            continue;
        };
        for package in packages {
            let key = format!("{}:{}", package.name, package.architecture.unwrap_or_else(unknown));
            let entry = versions.entry(key).or_insert_with(|| (source, BTreeSet::new()));
            entry.1.insert(package.version.unwrap_or_else(unknown));
        }
    }
    let item = |(key, (source, versions)): (String, (&str, BTreeSet<String>))| {
        let version = versions.into_iter().collect::<Vec<_>>().join(", ");
        (key, json!({"version": version, "source": source}))
    };
    versions.into_iter().map(item).collect()
}

/// Stanzas of dpkg's status file whose package has its files on the disk.
fn parse_dpkg(text: &str) -> Vec<Package> {
    let mut packages = Vec::new();
    let (mut name, mut architecture, mut version, mut status) = (None, None, None, None);
    // One empty line more, so that the last stanza ends like every other.
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            // A file of its own per package has no status: the file is the fact.
            let state: Option<String> = status.take();
            let on_disk = state.is_none_or(|s| {
                !matches!(
                    s.split_ascii_whitespace().nth(2),
                    None | Some("not-installed" | "config-files" | "half-installed")
                )
            });
            let (architecture, version) = (architecture.take(), version.take());
            if let Some(name) = name.take().filter(|_| on_disk) {
                packages.push(Package { name, architecture, version });
            }
            continue;
        }
        // Continuation lines begin with a space and belong to fields that are not kept.
        let Some((field, value)) = line.split_once(':').filter(|_| !line.starts_with([' ', '\t'])) else { continue };
        let value = Some(value.trim().to_owned()).filter(|v| !v.is_empty());
        match field.to_ascii_lowercase().as_str() {
            "package" => name = value,
            "architecture" => architecture = value,
            "version" => version = value,
            "status" => status = value,
            _ => {}
        }
    }
    packages
}

/// Entries of apk's installed database: `P:` name, `V:` version, `A:` architecture, ended by an empty line.
fn parse_apk(text: &str) -> Vec<Package> {
    let mut packages = Vec::new();
    let (mut name, mut architecture, mut version) = (None, None, None);
    for line in text.lines().chain([""]) {
        let value = |text: &str| Some(text.trim().to_owned()).filter(|v| !v.is_empty());
        match line.split_once(':') {
            Some(("P", text)) => name = value(text),
            Some(("V", text)) => version = value(text),
            Some(("A", text)) => architecture = value(text),
            Some(_) => {}
            None if line.trim().is_empty() => {
                let (architecture, version) = (architecture.take(), version.take());
                if let Some(name) = name.take() {
                    packages.push(Package { name, architecture, version });
                }
            }
            None => {}
        }
    }
    packages
}

/// Lines of [`RPM_FORMAT`].
fn parse_rpm(text: &str) -> Vec<Package> {
    let told = |field: &str| Some(field.to_owned()).filter(|f| !f.is_empty() && f != "(none)");
    let package = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, architecture, epoch, version] = fields[..] else { return None };
        let version = told(version).map(|v| told(epoch).map_or(v.clone(), |e| format!("{e}:{v}")));
        Some(Package { name: told(name)?, architecture: told(architecture), version })
    };
    text.lines().filter_map(package).collect()
}

/// Asks rpm, whose databases only its own library reads; `None` when it is missing, fails or takes too long.
fn rpm(root: &Path) -> Option<Vec<Package>> {
    let mut child = Command::new("rpm")
        .arg("--root")
        .arg(root)
        .args(["-qa", "--queryformat", RPM_FORMAT])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let pipe = child.stdout.take()?;
    let (sender, list) = mpsc::channel();
    let reader = move || {
        let mut bytes = Vec::new();
        let whole = pipe.take(RPM_BYTES_MAX).read_to_end(&mut bytes).is_ok_and(|n| (n as u64) < RPM_BYTES_MAX);
        // Nobody listens any more after the time-out.
        let _ = sender.send(whole.then_some(bytes));
    };
    let read = thread::Builder::new().name("rpm".to_owned()).spawn(reader).is_ok();
    let bytes = if read { list.recv_timeout(RPM_WAIT).ok().flatten() } else { None };
    if bytes.is_none() {
        // It may have ended by itself in this instant; reaping it is what counts.
        let _ = child.kill();
    }
    let ended_well = child.wait().is_ok_and(|status| status.success());
    bytes.filter(|_| ended_well).map(|bytes| parse_rpm(&String::from_utf8_lossy(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, architecture: &str, version: &str) -> Package {
        let known = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
        Package { name: name.to_owned(), architecture: known(architecture), version: known(version) }
    }

    #[test]
    fn dpkg_lists_what_is_on_the_disk() {
        let text = "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\nDescription: shell\n Package: no\n .\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n\
                    Package: half\nStatus: install ok half-configured\nArchitecture: all\nVersion: 2\n\n\n\
                    package: small\nVersion: 3";
        let expected = [package("bash", "amd64", "5.2-1"), package("half", "all", "2"), package("small", "", "3")];
        assert_eq!(parse_dpkg(text), expected);
    }

    #[test]
    fn malformed_databases_give_what_is_whole_in_them() {
        assert_eq!(parse_dpkg(""), []);
        assert_eq!(parse_dpkg("Version: 1\n\nPackage:\nVersion: 2\n\nno colon\n\u{fffd}\u{0}:\n"), []);
        assert_eq!(parse_dpkg("Package: a\nStatus: broken\n"), []);
        assert_eq!(parse_apk("P\nV:1\n\n\nP:\nA:x\n\n"), []);
        assert_eq!(parse_rpm("a\tb\tc\n\t\t\t\n(none)\tx\t1\t2\na\tb\tc\td\te\n\u{fffd}"), []);
    }

    #[test]
    fn apk_and_rpm_lists_are_read() {
        let apk = "C:Q1abc=\nP:musl\nV:1.2.5-r0\nA:x86_64\nS:1\n\nP:last\nV:2";
        assert_eq!(parse_apk(apk), [package("musl", "x86_64", "1.2.5-r0"), package("last", "", "2")]);
        let rpm = "bash\tx86_64\t(none)\t5.2-1\nvim\tx86_64\t2\t9.0-1\ngpg-pubkey\t(none)\t(none)\tabc-def\n";
        let expected = [
            package("bash", "x86_64", "5.2-1"),
            package("vim", "x86_64", "2:9.0-1"),
            package("gpg-pubkey", "", "abc-def"),
        ];
        assert_eq!(parse_rpm(rpm), expected);
    }

    #[test]
    fn several_versions_of_one_package_are_all_named() {
        let kernels = vec![package("kernel", "x86_64", "6.2"), package("kernel", "x86_64", "6.1")];
        let items = items(vec![("rpm", Some(kernels)), ("apk", Some(vec![package("musl", "", "")]))]);
        assert_eq!(items["kernel:x86_64"], json!({"version": "6.1, 6.2", "source": "rpm"}));
        assert_eq!(items["musl:not_available"], json!({"version": NOT_AVAILABLE, "source": "apk"}));
    }

    #[test]
    fn inv_12_a_database_that_cannot_be_read_is_not_available() {
        assert_eq!(items(vec![("rpm", None)])["not_available:rpm"]["version"], NOT_AVAILABLE);
        assert_eq!(items(vec![])[NOT_AVAILABLE]["source"], NOT_AVAILABLE);
        assert!(items(vec![("dpkg", Some(vec![]))]).is_empty(), "an empty database is known to be empty");
    }

    #[test]
    fn databases_are_found_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("var/lib/dpkg/status.d/base", "Package: base\nVersion: 1\nArchitecture: all\n");
        write("var/lib/dpkg/status.d/base.md5sums", "Package: no\n");
        write("lib/apk/db/installed", "P:musl\nV:1\nA:x\n\n");
        let items = LinuxPlatform::at_root(root.path().to_owned()).software();
        assert_eq!(items.keys().collect::<Vec<_>>(), ["base:all", "musl:x"]);
    }
}
