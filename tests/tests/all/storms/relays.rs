//! All relays restarted within one second.

use super::{
    MINUTE, SECOND,
    child::Link,
    fleet::{BELOW, Fleet, RELAYS, SERVER},
    hundredth, most_in_a_second, peaks, per,
};
use branchline_node::{config::LinkRate, downstream::reception::reconnect_spread_ms};

impl Fleet {
    fn relay_goes(&mut self, relay: usize, result: impl Fn(usize) -> bool) {
        let children = self.parents[relay].children();
        self.parents[relay].alive = false;
        let uplink = relay - 1;
        if let Some((parent, _, session)) = self.children[uplink].session() {
            self.parents[parent].gone(self.now, self.children[uplink].node, session);
        }
        self.switch(uplink, false);
        for n in Fleet::below(relay) {
            if self.children[n].session().is_some_and(|(parent, ..)| parent == relay) {
                let role = self.children[n].role;
                self.cut(n, reconnect_spread_ms(role, children), result(n));
            }
        }
    }

    fn relay_returns(&mut self, relay: usize) {
        self.parents[relay].start(self.now);
        self.switch(relay - 1, true);
    }

    /// Each goes at a moment of one second, and is there again after as long as all of them take.
    fn restart_relays(&mut self, takes_ms: u64, result: impl Fn(usize) -> bool) {
        let begins = self.now;
        let mut steps = Vec::new();
        for relay in 1..=RELAYS {
            let goes = begins + self.chance.up_to(SECOND - 1);
            steps.extend([(goes, relay, false), (goes + takes_ms, relay, true)]);
        }
        steps.sort_unstable();
        for (at, relay, returns) in steps {
            self.run(at);
            if returns { self.relay_returns(relay) } else { self.relay_goes(relay, &result) }
        }
    }
}

/// The bounds of a door: the burst once, and the rate, in any stretch of time.
fn within_the_rate(what: &str, instants: &[u64]) {
    let LinkRate { per_second, burst } = LinkRate::default();
    for (n, from) in instants.iter().enumerate() {
        for stretch in [SECOND, 5 * SECOND, 30 * SECOND] {
            let within = instants[n..].partition_point(|to| to - from < stretch) as u64;
            let bound = u64::from(burst) + u64::from(per_second) * stretch / SECOND + 1;
            assert!(within <= bound, "{what}: {within} handshakes within {stretch} ms");
        }
    }
}

fn storm(seed: u64, takes_ms: u64, results: bool) {
    let what =
        format!("relays away {} s, {} results, seed {seed}", takes_ms / SECOND, if results { "with" } else { "no" });
    let mut fleet = Fleet::settled(seed);
    let begun = fleet.now;
    fleet.restart_relays(takes_ms, |n| results && n % 3 == 0);
    let end = fleet.now;
    fleet.run(begun + 15 * MINUTE);
    let below = || RELAYS..RELAYS + RELAYS * BELOW;

    // RLY-11: everybody is back within two minutes, wherever.
    let back = |n: usize| fleet.children[n].back.iter().find(|(at, ..)| *at >= begun).map(|(at, ..)| at - begun);
    let returns: Vec<u64> = (0..RELAYS).chain(below()).filter_map(back).collect();
    assert_eq!(returns.len(), RELAYS + RELAYS * BELOW, "{what}: all of them lost a link and have one again");
    let (half, most, all) = (hundredth(&returns, 50), hundredth(&returns, 99), hundredth(&returns, 100));
    assert!(all <= takes_ms + 2 * MINUTE, "{what}: the last one is back after {all} ms");
    let uplinks = (0..RELAYS).filter_map(back).max().expect("relays came back");
    assert!(uplinks <= takes_ms + 10 * SECOND, "{what}: the last relay has the server after {uplinks} ms");

    // Each relay alone, and the server that those came to who found their relay gone.
    let since = |instants: &[u64]| instants.iter().copied().filter(|at| *at >= begun).collect::<Vec<_>>();
    let rate = LinkRate::default().per_second as usize;
    let mut busiest = 0;
    for relay in 1..=RELAYS {
        let here = since(&fleet.parents[relay].handshakes);
        let most = most_in_a_second(&here);
        assert!(most <= rate, "{what}: {most} handshakes in a second at relay {relay}");
        busiest = busiest.max(most);
        // At most one peak at each of them, and that when those with a result in hand come: 26 s in parts of 5 s. Fewer are
        // no crowd of which this could be said.
        let parts = per(5 * SECOND, begun + takes_ms, begun + takes_ms + 25 * SECOND, here);
        let crowd = parts.iter().sum::<u64>() >= 100;
        assert!(
            !crowd || peaks(&parts).iter().all(|peak| *peak == (0..1)),
            "{what}: a second peak at relay {relay}: {parts:?}"
        );
    }
    let server = since(&fleet.parents[SERVER].handshakes);
    within_the_rate(&what, &server);
    let at_server = most_in_a_second(&server);
    // Relays that are there again after seconds are waited for: then the server has them alone to do with.
    assert!(takes_ms > 2 * SECOND || at_server <= rate, "{what}: {at_server} handshakes in a second at the server");
    let strangers = below().filter(|n| fleet.children[*n].back.iter().any(|(at, to, _)| *at >= begun && *to == SERVER));
    let strangers = strangers.count();
    assert!(takes_ms > 2 * SECOND || strangers == 0, "{what}: {strangers} went to the server");

    // At most one peak in all of it, when the relays are there again: of those with a result in hand, whose first wait is
    // 5 s, and of those that waited for a relay that took long.
    let counts = per(2 * SECOND, 0, most, returns.iter().copied());
    let (peak, mean) = (counts.iter().max().unwrap(), counts.iter().sum::<u64>() / counts.len() as u64);
    println!(
        "{what}: half are back after {} s, 99 % after {} s, all after {} s, relays after {uplinks} ms; in a second at most \
         {busiest} handshakes at a relay and {at_server} at the server, which served {strangers} of their devices; \
         within 2 s at most {peak} returns (mean {mean})",
        half / SECOND,
        most / SECOND,
        all / SECOND
    );
    let (peaks, first) = (peaks(&counts), (takes_ms / (2 * SECOND)) as usize);
    let one = results || takes_ms > 2 * SECOND;
    let expected =
        peaks.len() <= usize::from(one) && peaks.iter().all(|peak| peak.start >= first && peak.end <= first + 4);
    assert!(expected, "{what}: above twice the mean within 2 s: {counts:?}");

    // And all are at their relay again: those that hold a slot elsewhere at a probe, the others at their next poll.
    fleet.run(end + 75 * MINUTE);
    for relay in 1..=RELAYS {
        let here = |n: &usize| matches!(fleet.children[*n].link, Link::Up { parent, .. } if parent == relay);
        assert_eq!(Fleet::below(relay).filter(here).count(), BELOW, "{what}: at relay {relay} {end}");
    }
}

#[test]
fn rly_11_all_relays_restarted_within_a_second_have_their_devices_again_without_a_second_peak() {
    for seed in 1..=3 {
        storm(seed, 2 * SECOND, seed % 2 == 0);
    }
}

#[test]
fn rly_11_relays_that_take_half_a_minute_to_restart_do_not_flood_the_server() {
    for seed in 1..=3 {
        storm(seed, 30 * SECOND, seed % 2 == 0);
    }
}
