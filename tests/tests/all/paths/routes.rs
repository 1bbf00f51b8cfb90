//! Direct first, the gateway as the way out, and back.

use super::{
    MAIN, block,
    laptop::{starts, waiting},
    shown, tried, world,
};
use branchline_node::{config::Reach, identity::Identity, time::SystemClock};
use branchline_protocol::wire::Contact;
use branchline_tests::tree::{
    eventually, holds, platform, row, scenario,
    ways::{Impostor, Roaming},
};

#[test]
fn top_4_a_link_goes_direct_falls_back_to_the_gateway_and_comes_back_by_itself() {
    scenario(async {
        let (mut tree, direct, outer) = world().await;
        tree.roaming(MAIN, "laptop", platform::simulated(1, "ran"), Roaming::default()).await;
        let standing = tree.stands("laptop", "connected", Some("direct")).await;
        assert_eq!(standing["uplink"]["link"], "persistent", "{standing}");
        assert_eq!(standing["uplink"]["address"], direct.address().to_string(), "{standing}");
        assert_eq!(tried(&outer), 0, "both ways are open: the gateway sees nothing of it");

        let clock = SystemClock::shared();
        let blocked = clock.mono();
        block(&direct);
        tree.stands("laptop", "connected", Some("gateway")).await;
        let took_ms = clock.mono().since(blocked);
        assert!(took_ms < 60_000, "{took_ms} ms");
        shown(&tree, "laptop", "gateway").await;

        direct.refuse(false);
        tree.stands("laptop", "connected", Some("direct")).await;
        shown(&tree, "laptop", "direct").await;
        assert_eq!(tree.metric("laptop", "branchline_uplink_moves_total", "").await, 1.0);
        eventually("the old link is closed", async || holds(outer.figures().open == 0, outer.figures())).await;
        tree.stop().await;
    });
}

#[test]
fn top_4_a_polling_device_is_back_on_the_direct_way_at_its_next_poll() {
    scenario(async {
        let (mut tree, direct, outer) = world().await;
        let wish = Roaming { contact: Contact::Poll, ..Roaming::default() };
        tree.roaming(MAIN, "laptop", platform::scripted(1), wish).await;
        tree.stands("laptop", "between_polls", Some("direct")).await;
        assert_eq!(tried(&outer), 0, "both ways are open: the gateway sees nothing of it");

        // It takes an order at the gateway: a start polls at once (ADM-12), by itself the next poll is an hour away.
        let folder = tempfile::tempdir().unwrap();
        let job = tree.order(MAIN, "device:laptop", waiting(folder.path()), 120).await;
        tree.stop_agent("laptop").await;
        block(&direct);
        tree.start_agent("laptop").await;
        eventually("the job runs", async || holds(starts(folder.path()) == 1, starts(folder.path()))).await;
        let standing = tree.stands("laptop", "between_polls", Some("gateway")).await;
        assert_eq!(standing["uplink"]["link"], "polling");
        let seen = tried(&outer);
        assert!(seen > 0);

        // Its next poll is the one that its result asks for.
        direct.refuse(false);
        std::fs::write(folder.path().join("go"), "").unwrap();
        let job = tree.completed(MAIN, &job).await;
        assert_eq!(row(&job, tree.id("laptop"))["state"], "succeeded", "{job}");
        tree.stands("laptop", "between_polls", Some("direct")).await;
        assert_eq!((tried(&outer), starts(folder.path())), (seen, 1), "the gateway saw nothing of that poll");
        tree.stop().await;
    });
}

#[test]
fn top_3_switched_off_and_blocked_the_gateway_is_never_tried_and_the_status_is_no_route() {
    scenario(async {
        let (mut tree, direct, outer) = world().await;
        let off = Roaming { reach: Reach::Direct, ..Roaming::default() };
        tree.roaming(MAIN, "pc", platform::simulated(1, "ran"), off).await;
        tree.stands("pc", "connected", Some("direct")).await;
        block(&direct);
        let standing = tree.stands("pc", "no_route", None).await;
        let why = standing["uplink"]["why"].as_str().unwrap_or_default();
        assert!(why.starts_with("no_route: ") && why.contains(&direct.address().to_string()), "{standing}");
        assert_eq!(standing["state"], "no_route");
        // As many tries as make sure that it goes on trying, and not there.
        eventually("it tries again", async || {
            let dials = tree.metric("pc", "branchline_uplink_dials_total", "direct").await;
            holds(dials >= 4.0, dials)
        })
        .await;
        assert_eq!(tree.metric("pc", "branchline_uplink_dials_total", "gateway").await, 0.0);
        assert_eq!(tried(&outer), 0, "0 connection attempts at the gateway");

        tree.stop_agent("pc").await;
        tree.start_agent_reaching("pc", Reach::Any).await;
        tree.stands("pc", "connected", Some("gateway")).await;
        assert!(tried(&outer) > 0);
        let job = tree.run(MAIN, "device:pc", &["true"]).await;
        assert_eq!(row(&job, tree.id("pc"))["state"], "succeeded", "{job}");
        tree.stop().await;
    });
}

#[test]
fn top_4_an_impostor_at_the_direct_address_is_counted_never_used_and_does_not_stop_the_fallback() {
    scenario(async {
        let (mut tree, direct, _outer) = world().await;
        // A good certificate of the same tenant, of another node: the strongest that an impostor may have.
        tree.roaming(MAIN, "other", platform::simulated(2, "ran"), Roaming::default()).await;
        let stolen = Identity::load(&tree.folder("other").join("identity")).expect("its identity");
        tree.roaming(MAIN, "laptop", platform::simulated(1, "ran"), Roaming::default()).await;
        tree.stands("laptop", "connected", Some("direct")).await;
        tree.stop_agent("other").await;
        block(&direct);
        let (impostor, _) = Impostor::start(direct.address(), &stolen).await;
        tree.stands("laptop", "connected", Some("gateway")).await;
        eventually("the impostor is counted", async || {
            let status = tree.status("laptop").await;
            holds(status["uplink"]["impostors"].as_u64() >= Some(2), status)
        })
        .await;
        let standing = tree.stands("laptop", "connected", Some("gateway")).await;
        let counted = tree.metric("laptop", "branchline_uplink_impostors_total", "").await;
        assert!(counted >= 2.0, "{counted}: {standing}");
        let job = tree.run(MAIN, "device:laptop", &["true"]).await;
        assert_eq!(row(&job, tree.id("laptop"))["state"], "succeeded", "{job}");
        let (knocks, links) = impostor.seen();
        assert!(knocks >= 2, "{knocks}");
        assert_eq!(links, 0, "nothing was said to it");
        impostor.stop().await;
        direct.refuse(false);
        tree.stands("laptop", "connected", Some("direct")).await;
        tree.stop().await;
    });
}

#[test]
fn an_agents_private_port_can_be_switched_off() {
    scenario(async {
        let mut tree = branchline_tests::tree::Tree::start(super::SHIM, &[MAIN]).await;
        tree.agent(MAIN, "pc", "server", platform::simulated(1, "ran")).await;
        use branchline_node::process::RunningNode;
        assert!(tree.running("pc").started().addresses.is_empty());
        tree.stop().await;
    });
}
