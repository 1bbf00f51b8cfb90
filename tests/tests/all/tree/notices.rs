//! Notices: a device that goes off in good order is gone at once, even where its link does not carry its goodbye.

use super::{MAIN, SHIM};
use branchline_node::time::SystemClock;
use branchline_tests::{
    proxy::{Flow, Proxy, Whom},
    tree::{RelayWish, Tree, eventually, holds, platform, scenario},
};
use serde_json::Value;
use std::net::{SocketAddr, UdpSocket};

const RELAY: &str = "osaka";

async fn device(tree: &Tree, name: &str) -> Value {
    tree.devices(MAIN).await.remove(name).unwrap_or_default()
}

async fn notices(tree: &Tree, node: &str, result: &str) -> f64 {
    tree.metric(node, "branchline_notices_total", &format!("\"{result}\"")).await
}

async fn counted(tree: &Tree, node: &str, result: &str, wanted: f64) {
    eventually("it is counted", async || {
        let seen = notices(tree, node, result).await;
        holds(seen == wanted, seen)
    })
    .await;
}

fn send(bytes: &[u8], to: SocketAddr) {
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(bytes, to).unwrap();
}

#[test]
fn s_13_adm_18_a_device_that_stops_is_off_at_once_and_its_slot_goes_to_a_waiter_who_is_woken() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        let wish = RelayWish { slots: 1, poll_interval_s: 3_000, reservation_s: None };
        tree.relay(MAIN, RELAY, "server", wish).await;
        for n in 1..=2 {
            let name = format!("pc-{n}");
            tree.agent_with(MAIN, &name, RELAY, platform::simulated(n, ""), |c| c.wake_port = Some(0)).await;
            tree.online(MAIN, [&name]).await;
        }
        eventually("one holds the slot and the other waits, and can be woken", async || {
            let links = [device(&tree, "pc-1").await["link"].clone(), device(&tree, "pc-2").await["link"].clone()];
            holds(links == ["persistent", "wakeable"], links)
        })
        .await;

        // Forged and altered ones change nothing.
        let (to, notice) = tree.running("pc-1").notice(1).expect("the relay hears notices");
        let mut altered = notice.clone();
        altered[70] ^= 1;
        send(&altered, to);
        counted(&tree, RELAY, "bad_seal", 1.0).await;
        let mut unsigned = notice.clone();
        unsigned[46..].fill(0);
        send(&unsigned, to);
        counted(&tree, RELAY, "bad_seal", 2.0).await;
        send(&[7; 513], to);
        counted(&tree, RELAY, "too_large", 1.0).await;
        assert_eq!(device(&tree, "pc-1").await["link"], "persistent");
        assert_eq!(notices(&tree, RELAY, "taken").await, 0.0);

        let clock = SystemClock::shared();
        let begun = clock.mono();
        tree.stop_agent("pc-1").await;
        eventually("it is shown as shut down", async || {
            let pc = device(&tree, "pc-1").await;
            holds((&pc["state"], &pc["state_reason"]) == (&"offline".into(), &"shutdown".into()), pc)
        })
        .await;
        let shown = clock.mono().since(begun);
        assert!(shown <= 2_000, "shown at the server after {shown} ms");
        eventually("the waiter has the slot, though its poll is far", async || {
            let pc = device(&tree, "pc-2").await;
            holds(pc["link"] == "persistent", pc)
        })
        .await;
        let promoted = clock.mono().since(begun);
        assert!(promoted <= 5_000, "ADM-3: after {promoted} ms");
        println!("shown as shut down after {shown} ms, the waiter has the slot after {promoted} ms");

        // It comes back, and what it said before means nothing any more.
        tree.start_agent("pc-1").await;
        tree.online(MAIN, ["pc-1"]).await;
        let before = notices(&tree, RELAY, "other_link").await;
        send(&notice, to);
        counted(&tree, RELAY, "other_link", before + 1.0).await;
        assert_eq!(device(&tree, "pc-1").await["state"], "online");
        tree.stop().await;
    });
}

#[test]
fn s_13_adm_18_a_notice_frees_the_slot_where_the_link_carries_nothing_any_more() {
    scenario(async {
        let mut tree = Tree::with_slots(SHIM, &[MAIN], 1).await;
        let server = {
            use branchline_node::process::RunningNode;
            tree.server().started().addresses["link"]
        };
        let proxy = Proxy::start("127.0.0.1:0".parse().unwrap(), server).unwrap();
        tree.advertise(proxy.address()).await;
        tree.agent(MAIN, "pc-1", "server", platform::simulated(1, "")).await;
        tree.online(MAIN, ["pc-1"]).await;
        let used = async || tree.tree_node("server", MAIN).await["slots"]["used"].clone();
        assert_eq!(used().await, 1);
        proxy.both(Whom::All, Flow::Hold);
        let clock = SystemClock::shared();
        let begun = clock.mono();
        let mut tree = tree;
        tree.stop_agent("pc-1").await;
        let stopped = clock.mono().since(begun);
        eventually("it is shown as shut down, and its slot is free", async || {
            let (pc, server) = (device(&tree, "pc-1").await, tree.tree_node("server", MAIN).await);
            let off = (&pc["state"], &pc["state_reason"]) == (&"offline".into(), &"shutdown".into());
            holds(off && server["slots"]["used"] == 0, (pc, server))
        })
        .await;
        let shown = clock.mono().since(begun);
        println!("stopped after {stopped} ms, shown as shut down after {shown} ms, by the notice alone");
        assert!(shown <= stopped.max(2_000) + 1_000, "after {shown} ms");
        assert!(notices(&tree, "server", "taken").await >= 1.0);
        tree.stop().await;
    });
}
