//! Disks and network interfaces. Nothing that changes by itself is kept, no free space and no counters: it would make
//! every difference non-empty.

use super::known;
use branchline_protocol::inventory::{Items, NOT_AVAILABLE};
use serde_json::{Value, json};
use sysinfo::{DiskRefreshKind, Disks, Networks};

/// Mounted file systems with a device of their own, by mount point.
pub(super) fn disks() -> Items {
    let Ok(disks) = Disks::new_with_refreshed_list_specifics(DiskRefreshKind::nothing().with_storage()) else {
        return Items::from([(NOT_AVAILABLE.to_owned(), disk("", "", 0))]);
    };
    disks
        .iter()
        .map(|d| {
            let item = disk(&d.name().to_string_lossy(), &d.file_system().to_string_lossy(), d.total_space());
            (d.mount_point().to_string_lossy().into_owned(), item)
        })
        .collect()
}

fn disk(device: &str, file_system: &str, total_bytes: u64) -> Value {
    let text = |text: &str| known(Some(text.to_owned()).filter(|t| !t.is_empty()));
    json!({
        "device": text(device),
        "file_system": text(file_system),
        "total_bytes": known(Some(total_bytes).filter(|n| *n > 0)),
    })
}

/// Every interface, by name.
pub(super) fn network() -> Items {
    let Ok(networks) = Networks::new_with_refreshed_list() else {
        return Items::from([(NOT_AVAILABLE.to_owned(), interface(None, Vec::new()))]);
    };
    networks
        .iter()
        .map(|(name, data)| {
            let mac = data.mac_address();
            let mac = (!mac.is_unspecified()).then(|| mac.to_string());
            let addresses = data.ip_networks().iter().map(|n| format!("{}/{}", n.addr, n.prefix)).collect();
            (name.to_string_lossy().into_owned(), interface(mac, addresses))
        })
        .collect()
}

fn interface(mac: Option<String>, mut addresses: Vec<String>) -> Value {
    addresses.sort();
    addresses.dedup();
    json!({"mac": known(mac), "addresses": addresses})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sorted_and_single() {
        let item = interface(None, ["b/8", "a/8", "b/8"].map(str::to_owned).to_vec());
        assert_eq!(item, json!({"mac": NOT_AVAILABLE, "addresses": ["a/8", "b/8"]}));
    }

    #[test]
    fn inv_12_unknown_parts_of_a_disk_are_not_available() {
        assert_eq!(disk("/dev/x", "", 0)["file_system"], NOT_AVAILABLE);
        assert_eq!(disk("/dev/x", "ext4", 0)["total_bytes"], NOT_AVAILABLE);
        assert_eq!(disk("/dev/x", "ext4", 5)["total_bytes"], 5);
    }
}
