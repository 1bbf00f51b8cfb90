//! Protection against malware: which product is installed, and how old its patterns are (ADM-11). The product gets them by
//! itself and at its own pace; nothing of ours waits for it.
//!
//! Patterns are told with the instant at which they were made, not with their age: that would be another one at each
//! collection. What cannot be read is `not_available`; a machine without a product has an empty section.

use super::{LinuxPlatform, known};
use branchline_protocol::inventory::{Items, NOT_AVAILABLE};
use jiff::{Timestamp, fmt::strtime};
use serde_json::{Value, json};
use std::{fs::File, io::Read};

/// Products by the names of their packages.
const PRODUCTS: [(&str, &[&str]); 6] = [
    ("ClamAV", &["clamav", "clamav-daemon", "clamav-base", "clamav-freshclam", "clamd"]),
    ("CrowdStrike Falcon", &["falcon-sensor"]),
    ("Kaspersky Endpoint Security", &["kesl"]),
    ("Microsoft Defender", &["mdatp"]),
    ("SentinelOne", &["sentinelagent"]),
    ("Trend Micro Deep Security", &["ds-agent", "ds_agent"]),
];
/// Where ClamAV keeps its patterns: as they come, or as later differences were put into them.
const CLAMAV: &str = "var/lib/clamav";
const CLAMAV_FILES: [&str; 4] = ["daily.cld", "daily.cvd", "main.cld", "main.cvd"];
/// The head of such a file: `ClamAV-VDB:` build time `:` version `:` …, filled with spaces.
const CLAMAV_HEAD: usize = 512;
const CLAMAV_TIME: &str = "%d %b %Y %H-%M %z";

/// Patterns by their own words.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Patterns {
    at: Timestamp,
    version: String,
}

impl LinuxPlatform {
    /// `software`: the section of that name.
    pub(super) fn protection(&self, software: &Items) -> Items {
        products(software, self.clamav_patterns().as_ref())
    }

    /// The newest of them.
    fn clamav_patterns(&self) -> Option<Patterns> {
        let heads = CLAMAV_FILES.iter().filter_map(|name| self.head(&format!("{CLAMAV}/{name}")));
        heads.filter_map(|head| patterns_of(&head)).max_by_key(|patterns| patterns.at)
    }

    fn head(&self, path: &str) -> Option<String> {
        let mut head = vec![0; CLAMAV_HEAD];
        File::open(self.root.join(path)).ok()?.read_exact(&mut head).ok()?;
        Some(String::from_utf8_lossy(&head).into_owned())
    }
}

/// What is installed, by product. Without a package database nobody can say that there is none.
fn products(software: &Items, clamav: Option<&Patterns>) -> Items {
    let unknown = software.keys().any(|key| key == NOT_AVAILABLE || key.starts_with(&format!("{NOT_AVAILABLE}:")));
    let found = PRODUCTS.iter().filter_map(|(product, packages)| {
        let version = packages.iter().find_map(|package| version_of(software, package))?;
        let patterns = clamav.filter(|_| *product == "ClamAV");
        Some((product.to_string(), item(version, patterns)))
    });
    let mut items: Items = found.collect();
    if items.is_empty() && unknown {
        items.insert(NOT_AVAILABLE.into(), item(NOT_AVAILABLE.into(), None));
    }
    items
}

fn item(version: Value, patterns: Option<&Patterns>) -> Value {
    json!({
        "version": version,
        "patterns_at": known(patterns.map(|p| p.at.to_string())),
        "patterns_version": known(patterns.map(|p| p.version.clone())),
    })
}

/// Packages are named with their architecture.
fn version_of(software: &Items, package: &str) -> Option<Value> {
    let of = |key: &str| key.split_once(':').is_some_and(|(name, _)| name == package);
    software.iter().find(|(key, _)| of(key)).map(|(_, item)| item["version"].clone())
}

/// The head of a file of ClamAV's.
fn patterns_of(head: &str) -> Option<Patterns> {
    let mut fields = head.strip_prefix("ClamAV-VDB:")?.split(':');
    let (at, version) = (fields.next()?, fields.next()?);
    let at = strtime::parse(CLAMAV_TIME, at.trim()).ok()?.to_timestamp().ok()?;
    version.parse::<u32>().is_ok().then(|| Patterns { at, version: version.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protection(platform: &LinuxPlatform) -> Items {
        platform.protection(&platform.software())
    }
    use std::fs;

    fn head(text: &str) -> String {
        format!("{text:<width$}", width = CLAMAV_HEAD)
    }

    const DAILY: &str =
        "ClamAV-VDB:24 Nov 2026 09-41 +0100:27830:2076112:90:0123456789abcdef:signature:builder:1795509660";
    const MAIN: &str = "ClamAV-VDB:16 Sep 2021 08-32 -0400:62:6647427:90:0123456789abcdef:signature:builder:1631795562";

    #[test]
    fn adm_11_a_product_is_shown_with_its_version_and_the_instant_of_its_patterns() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let platform = LinuxPlatform::at_root(root.path().to_owned());
        let status = "Status: install ok installed\nArchitecture: amd64\nVersion";
        write("var/lib/dpkg/status", &format!("Package: bash\n{status}: 5\n"));
        assert!(protection(&platform).is_empty(), "the packages are known, and none of them protects");

        write(
            "var/lib/dpkg/status",
            &format!("Package: clamav\n{status}: 1.4.3+dfsg-1\n\nPackage: mdatp\n{status}: 101.25\n"),
        );
        let unknown = json!({"version": "101.25", "patterns_at": NOT_AVAILABLE, "patterns_version": NOT_AVAILABLE});
        let items = protection(&platform);
        assert_eq!(items.keys().collect::<Vec<_>>(), ["ClamAV", "Microsoft Defender"]);
        assert_eq!(items["Microsoft Defender"], unknown);
        assert_eq!(items["ClamAV"]["patterns_at"], NOT_AVAILABLE, "it has fetched none");

        write("var/lib/clamav/main.cvd", &head(MAIN));
        assert_eq!(protection(&platform)["ClamAV"]["patterns_version"], "62");
        write("var/lib/clamav/daily.cld", &head(DAILY));
        let clamav =
            json!({"version": "1.4.3+dfsg-1", "patterns_at": "2026-11-24T08:41:00Z", "patterns_version": "27830"});
        assert_eq!(protection(&platform)["ClamAV"], clamav, "the newest of both");
        assert_eq!(protection(&platform), protection(&platform), "an idle machine gives the same answer each time");

        write("var/lib/clamav/daily.cld", "cut short");
        assert_eq!(protection(&platform)["ClamAV"]["patterns_version"], "62", "what is whole counts");
    }

    #[test]
    fn adm_11_what_cannot_be_read_is_not_available_and_not_said_to_be_absent() {
        let empty = tempfile::tempdir().unwrap();
        let items = protection(&LinuxPlatform::at_root(empty.path().to_owned()));
        assert_eq!(items.keys().collect::<Vec<_>>(), [NOT_AVAILABLE]);
        let unread = Items::from([("not_available:rpm".to_owned(), json!({"version": NOT_AVAILABLE}))]);
        assert_eq!(products(&unread, None)[NOT_AVAILABLE]["version"], NOT_AVAILABLE);
    }

    #[test]
    fn malformed_heads_tell_nothing() {
        for bad in [
            "",
            "ClamAV-VDB:",
            "ClamAV-VDB:24 Nov 2026 09-41 +0100",
            "ClamAV-VDB:yesterday:5:",
            "ClamAV-VDB:24 Nov 2026 09-41 +0100:x:",
        ] {
            assert_eq!(patterns_of(&head(bad)), None, "{bad:?}");
        }
        assert!(patterns_of(&head(DAILY)).is_some());
    }
}
