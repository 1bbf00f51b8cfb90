//! Devices without a slot: what passes in one poll, and when the next one comes.

use super::{MAIN, SHIM};
use branchline_agent::platform::Platform;
use branchline_protocol::wire::Contact;
use branchline_tests::tree::{RelayWish, Tree, eventually, holds, logs, platform::Changing, scenario};

const PC: &str = "pc-1";
/// Some 60 bytes each: over the 8 MiB of a poll, under the 16 MiB of an inventory.
const PACKAGES: usize = 190_000;

/// How long the device meant to wait after each of its links, in milliseconds.
fn waits(device: &str) -> Vec<u64> {
    let lines = logs::lines_with(&["link down", device]);
    let wait = |line: &logs::Line| line.text.split(" wait_ms=").nth(1)?.split(' ').next()?.parse().ok();
    lines.iter().filter_map(wait).collect()
}

#[test]
fn a_poll_over_8_mib_passes_whole_and_the_next_one_follows_at_once() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        // By the interval alone the next poll would be an hour away.
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        let device = Changing::new(1, PACKAGES);
        tree.agent_that(MAIN, PC, "osaka", device.clone(), Contact::Poll).await;
        let id = tree.id(PC).to_string();
        let found = device.collect(&[]);
        let size = rmp_serde::to_vec(&found).expect("plain data").len();
        assert!((8 << 20..16 << 20).contains(&size), "{size} bytes");
        let digest = found.digest().to_string();
        eventually("the server holds the inventory", async || {
            let device = tree.devices(MAIN).await.remove(PC).unwrap_or_default();
            holds(device["inventory"]["digest"] == digest.as_str(), &device["inventory"]["digest"])
        })
        .await;
        let waits = eventually("the device waits for its hour", async || {
            let waits = waits(&id);
            let settled = waits.last().is_some_and(|ms| *ms > 1_000) && waits.iter().any(|ms| *ms < 500);
            if settled { Ok(waits) } else { Err(format!("{waits:?}")) }
        })
        .await;
        assert_eq!(waits.iter().filter(|ms| **ms < 500).count(), 1, "asked to come again once: {waits:?}");
        tree.stop().await;
    });
}
