//! One name that is the gateway outside and the server inside.

use super::{MAIN, SHIM, block};
use branchline_node::identity::Identity;
use branchline_tests::tree::{
    Tree, eventually, holds, platform, row, scenario,
    ways::{Impostor, OneName, Roaming},
};
use std::net::{IpAddr, SocketAddr};

const NAME: &str = "mgmt.test";
const INSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const OUTSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 9));

#[test]
fn top_5_one_configuration_works_inside_and_outside_under_split_dns() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        let direct = tree.server_behind_proxy(Some(NAME)).await;
        tree.named_gateway("dmz", OUTSIDE, NAME).await;
        let resolver = OneName::new(NAME, INSIDE);
        let wish = Roaming { resolver: Some(resolver.clone()), ..Roaming::default() };
        tree.roaming(MAIN, "laptop", platform::simulated(1, "ran"), wish).await;
        let inside = tree.stands("laptop", "connected", Some("direct")).await;
        assert_eq!(inside["uplink"]["address"], format!("{NAME}:{}", direct.address().port()), "{inside}");

        let asked = resolver.asked();
        resolver.set(OUTSIDE);
        block(&direct);
        let outside = tree.stands("laptop", "connected", Some("gateway")).await;
        assert!(outside["uplink"]["address"].as_str().unwrap().starts_with("https://mgmt.test:"), "{outside}");
        assert!(resolver.asked() > asked, "the failed connection had it ask anew");

        // Back inside, long before the answer of outside is too old: the probe that failed by it asks anew.
        direct.refuse(false);
        resolver.set(INSIDE);
        tree.stands("laptop", "connected", Some("direct")).await;
        let job = tree.run(MAIN, "all", &["true"]).await;
        assert_eq!(row(&job, tree.id("laptop"))["state"], "succeeded", "{job}");
        tree.stop().await;
    });
}

#[test]
fn top_5_a_resolver_that_lies_leads_to_nobody_whatever_it_says_and_the_truth_is_used_at_once() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        let direct = tree.server_behind_proxy(Some(NAME)).await;
        let resolver = OneName::new(NAME, INSIDE);
        let wish = || Roaming { resolver: Some(resolver.clone()), ..Roaming::default() };
        tree.roaming(MAIN, "other", platform::simulated(2, "ran"), wish()).await;
        let stolen = Identity::load(&tree.folder("other").join("identity")).expect("its identity");
        tree.roaming(MAIN, "laptop", platform::simulated(1, "ran"), wish()).await;
        tree.stands("laptop", "connected", Some("direct")).await;
        tree.stop_agent("other").await;

        // The name leads to one who has a good certificate, of another node of the same tenant.
        let lie = SocketAddr::from((OUTSIDE, direct.address().port()));
        let (impostor, _) = Impostor::start(lie, &stolen).await;
        resolver.set(OUTSIDE);
        let seen_through = async |times: u64| {
            eventually("the lie is seen through", async || {
                let status = tree.status("laptop").await;
                let impostors = status["uplink"]["impostors"].as_u64().unwrap_or(0);
                holds(impostors >= times, &status).map(|()| impostors)
            })
            .await
        };
        block(&direct);
        seen_through(1).await;
        // The right address is open from here on; nobody tells it.
        direct.refuse(false);
        let impostors = seen_through(3).await;
        let (knocks, links) = impostor.seen();
        assert!(knocks >= impostors, "{knocks} knocks, {impostors} seen through");
        assert_eq!(links, 0, "nothing was said to it");
        assert_ne!(tree.status("laptop").await["uplink"]["state"], "connected");

        // To one where nobody is: no other way either, and each dial asks anew.
        impostor.stop().await;
        let asked = resolver.asked();
        eventually("it asks again", async || holds(resolver.asked() > asked, resolver.asked())).await;

        resolver.set(INSIDE);
        tree.stands("laptop", "connected", Some("direct")).await;
        let job = tree.run(MAIN, "device:laptop", &["true"]).await;
        assert_eq!(row(&job, tree.id("laptop"))["state"], "succeeded", "{job}");
        tree.stop().await;
    });
}
