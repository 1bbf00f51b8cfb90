//! Full disks: nodes whose state lies on a file system of its own, filled to the brim. Needs the right to mount.

use super::{MAIN, SHIM};
use branchline_tests::tree::{RelayWish, Tree, eventually, holds, platform, row, scenario};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Bytes left on the disk, one after the other until the node has no room for its reserve of 1 MiB: with the first the
/// store may grow once as it is opened; if it did not have to, it seldom has to with the second, and then there is a third.
const LEFT: [usize; 3] = [1_900_000, 1_000_000, 1_500_000];

/// A small file system at a node's folder.
struct Disk(PathBuf);

impl Disk {
    fn mount(folder: &Path, mib: u64) -> Disk {
        std::fs::create_dir_all(folder).expect("the folder is made");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(folder).status();
        assert!(mount.is_ok_and(|status| status.success()), "a tmpfs is mounted: this test needs the right to");
        Disk(folder.to_owned())
    }

    /// Takes all but so many bytes.
    fn fill(&self, left: usize) {
        let mut taken = vec![7u8; 64 << 20];
        while std::fs::write(self.filler(), &taken).is_err() {
            taken.truncate(taken.len() - 64 * 1_024);
        }
        taken.truncate(taken.len() - left);
        std::fs::write(self.filler(), &taken).expect("what fitted before fits");
    }

    fn empty(&self) {
        std::fs::remove_file(self.filler()).expect("the filler is removed");
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Orders a job, sees it stay queued for want of space, and run when there is some.
async fn stays_until_there_is_room(tree: &Tree, device: &str, disk: &Disk) {
    let id = tree.id(device);
    let job = tree.order(MAIN, &format!("device:{id}"), json!({ "argv": ["true"] }), 60).await;
    let path = format!("/api/v1/jobs/{}", job["id"].as_str().unwrap());
    eventually("the order stays with the parent and says why", async || {
        let shown = row(&tree.api(MAIN).get(&path).await.good(), id);
        holds(shown["state"] == "queued" && shown["reason"] == "no_space", shown)
    })
    .await;
    disk.empty();
    let job = tree.completed(MAIN, &job).await;
    assert_eq!(row(&job, id)["state"], "succeeded", "{job}");
}

#[test]
fn rly_10_an_order_for_a_device_with_a_full_disk_stays_with_its_parent_and_runs_when_there_is_room() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        let disk = Disk::mount(&tree.folder("pc-01"), 8);
        tree.agent(MAIN, "pc-01", "server", platform::simulated(1, "ran")).await;
        tree.online(MAIN, ["pc-01"]).await;
        tree.stop_agent("pc-01").await;
        let reserve = tree.folder("pc-01").join("reserve");
        for left in LEFT {
            let _ = std::fs::remove_file(&reserve);
            disk.fill(left);
            if let Err(fault) = tree.may_start_agent("pc-01").await {
                // Its store had to grow just now.
                assert_eq!(fault.code, "state_folder", "{fault:?}");
                disk.empty();
                continue;
            }
            tree.online(MAIN, ["pc-01"]).await;
            if !reserve.exists() {
                break;
            }
            tree.stop_agent("pc-01").await;
            disk.empty();
        }
        assert!(!reserve.exists(), "the disk has no room for a reserve");
        stays_until_there_is_room(&tree, "pc-01", &disk).await;
        tree.stop().await;
    });
}

#[test]
fn rly_10_an_order_below_a_relay_with_a_full_disk_stays_with_the_server_and_runs_when_there_is_room() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        let disk = Disk::mount(&tree.folder("osaka"), 8);
        // Behind a gateway, so that its device, which may dial directly only, has no other way to the server.
        tree.gateway("dmz").await;
        tree.relay(MAIN, "osaka", "gateway", RelayWish::default()).await;
        tree.agent(MAIN, "pc-01", "osaka", platform::simulated(1, "ran")).await;
        tree.online(MAIN, ["pc-01"]).await;
        tree.stop_relay("osaka").await;
        let reserve = tree.folder("osaka").join("reserve");
        for left in LEFT {
            std::fs::remove_file(&reserve).expect("a reserve was there");
            disk.fill(left);
            tree.start_relay("osaka").await;
            tree.online(MAIN, ["pc-01"]).await;
            if !reserve.exists() {
                break;
            }
            tree.stop_relay("osaka").await;
            disk.empty();
        }
        assert!(!reserve.exists(), "the disk has no room for a reserve");
        stays_until_there_is_room(&tree, "pc-01", &disk).await;
        tree.stop().await;
    });
}

#[test]
fn rly_7_a_store_of_a_newer_build_is_refused_by_relay_and_agent_and_left_as_it_is() {
    use branchline_node::store::{Store, StoreOptions};
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        tree.agent(MAIN, "pc-01", "osaka", platform::simulated(1, "ran")).await;
        tree.online(MAIN, ["pc-01"]).await;
        tree.stop_agent("pc-01").await;
        tree.stop_relay("osaka").await;
        for (name, file) in [("osaka", "relay.redb"), ("pc-01", "agent.redb")] {
            let path = tree.folder(name).join(file);
            let newer = {
                let (store, found) = Store::open(&path, StoreOptions::new(99, 7)).expect("the store opens");
                let mut batch = branchline_node::store::Batch::new();
                let format = 99u32.to_be_bytes().to_vec();
                batch.put(branchline_node::store::Table::Meta, branchline_node::store::meta::FORMAT, format);
                store.commit_wait(batch).await.expect("it is durable");
                store.stop().expect("it closes");
                found
            };
            let fault = match name {
                "osaka" => tree.try_start_relay(name).await,
                _ => tree.try_start_agent(name).await,
            };
            let fault = fault.expect_err("it does not start");
            assert_eq!((fault.code.as_str(), fault.exit_code), ("newer_format", 5), "{name}: {fault:?}");
            let (store, found) = Store::open(&path, StoreOptions::new(99, 8)).expect("the store opens");
            assert_eq!((found.openings, found.previous_incarnation), (newer.openings + 1, Some(7)), "{name}");
            store.stop().expect("it closes");
        }
        tree.stop().await;
    });
}
