//! One name that is the gateway outside and the server inside.

use super::{MAIN, SHIM, block};
use branchline_tests::tree::{
    Tree, platform, row, scenario,
    ways::{OneName, Roaming},
};
use std::net::IpAddr;

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
