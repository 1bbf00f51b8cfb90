//! Half an hour without the gateway, and without the server: who comes back, when, and how many at once.

use super::{
    HOUR, MINUTE, SECOND, by,
    child::Link,
    fleet::{Fleet, SERVER},
    hundredth, most_in_a_second, peaks, per,
};
use branchline_node::{config::LinkRate, downstream::reception::reconnect_spread_ms};
use branchline_protocol::id::Role;

const AWAY: u64 = 30 * MINUTE;
/// Within it nearly everybody is back.
const BACK: u64 = 15 * MINUTE;

impl Fleet {
    /// Everybody's link that goes this way breaks at this moment.
    fn break_links(&mut self, which: impl Fn(usize, bool) -> bool, result: bool) -> usize {
        let children = self.parents[SERVER].children();
        let mut lost = 0;
        for n in 0..self.children.len() {
            let Some((parent, gateway, session)) = self.children[n].session() else { continue };
            if which(parent, gateway) {
                let (node, role) = (self.children[n].node, self.children[n].role);
                self.parents[parent].gone(self.now, node, session);
                self.cut(n, reconnect_spread_ms(role, children), result);
                lost += 1;
            }
        }
        lost
    }

    pub fn gateway_goes(&mut self, result: bool) -> usize {
        self.gateway.alive = false;
        self.break_links(|_, gateway| gateway, result)
    }

    pub fn gateway_returns(&mut self) {
        let clock = self.clock();
        self.gateway.start(clock);
        let at_once = self.gateway.trunks().map(|_| 0).collect();
        self.dial_trunks(at_once);
    }

    fn server_goes(&mut self, result: bool) -> usize {
        self.parents[SERVER].alive = false;
        let chance = self.chance.clone();
        let waits = self.gateway.lose_server(&*chance);
        self.dial_trunks(waits);
        self.break_links(|parent, _| parent == SERVER, result)
    }

    /// It was killed: nothing of its children, and all tokens.
    fn server_returns(&mut self) {
        self.parents[SERVER].start(self.now);
    }

    /// Those that nobody serves although they want to be served.
    fn away(&self) -> Vec<usize> {
        (0..self.children.len()).filter(|n| self.children[*n].away_since.is_some()).collect()
    }
}

/// After an outage: what came of those that were away at its end.
fn returned(fleet: &Fleet, what: &str, lost_at: u64, end: u64, away: &[usize]) {
    let rate = LinkRate::default().per_second as usize;
    // RLY-11: at most ten attempts in the first ten minutes, whoever it is.
    for n in away {
        let dials = &fleet.children[*n].dials;
        let first = dials.iter().find(|at| **at >= lost_at).expect("it tried");
        let early = dials.iter().filter(|at| (*first..first + 10 * MINUTE).contains(at)).count();
        assert!(early <= 10, "{what}: child {n} tried {early} times in ten minutes");
    }
    let back = |n: &usize| fleet.children[*n].back.iter().map(|(at, ..)| *at).find(|at| *at >= end);
    let returns: Vec<u64> = away.iter().filter_map(back).map(|at| at - end).collect();
    let in_time = returns.iter().filter(|ms| **ms <= BACK).count();
    assert!(in_time * 100 >= away.len() * 99, "{what}: {in_time} of {} are back within 15 min", away.len());
    let (half, most) = (hundredth(&returns, 50), hundredth(&returns, 99));

    // No parent does more handshakes in a second than it is set to, and no burst of it was needed.
    let since = |instants: &[u64]| instants.iter().copied().filter(|at| *at >= end).collect::<Vec<_>>();
    let gateway = most_in_a_second(&since(&fleet.gateway.handshakes));
    let server = most_in_a_second(&since(&fleet.parents[SERVER].handshakes));
    assert!(server <= rate, "{what}: {server} handshakes at the server within a second");
    assert!(gateway <= rate, "{what}: {gateway} handshakes at the gateway within a second");

    // The return is one: nothing after its beginning stands out of it.
    let stretch = 10 * SECOND;
    let counts = per(stretch, 0, most, returns.iter().copied());
    let knocks = per(stretch, end, end + most, since(&fleet.gateway.handshakes));
    for counts in [&counts, &knocks] {
        assert!(peaks(counts).is_empty(), "{what}: above twice the mean within 10 s: {counts:?}");
    }
    let highest = |counts: &[u64]| (*counts.iter().max().unwrap(), counts.iter().sum::<u64>() / counts.len() as u64);
    let ((peak, mean), (try_peak, tries)) = (highest(&counts), highest(&knocks));
    println!(
        "{what}: {} were away, half are back after {} s, 99 % after {} s; in a second at most {gateway} handshakes at the \
         gateway and {server} at the server; within 10 s at most {peak} returns (mean {mean}) and {try_peak} knocks (mean {tries})",
        away.len(),
        half / SECOND,
        most / SECOND
    );
}

/// All that hold a slot do so at one place, and everybody else polls in time.
fn settles(fleet: &mut Fleet, what: &str) {
    let until = fleet.now + HOUR;
    fleet.run(until);
    assert_eq!(fleet.away(), [0; 0], "{what}: an hour later nobody is away");
    let held = by(fleet.children.iter().filter_map(|c| match c.link {
        Link::Up { parent, .. } if c.role == Role::Agent => Some(parent),
        _ => None,
    }));
    assert_eq!(held[&SERVER], 300, "{what}: the slots are taken");
    let sleeps = fleet.children[Fleet::roaming()].iter().filter(|c| !matches!(c.link, Link::Up { .. }));
    let longest = sleeps.filter_map(|c| c.next).max().expect("most of them poll");
    assert!(longest <= until + 66 * MINUTE, "{what}: polls are hourly at the least");
}

#[test]
fn rly_11_without_the_gateway_for_half_an_hour_its_children_come_back_evenly() {
    for seed in 1..=4 {
        let (mut fleet, what) = (Fleet::settled(seed), format!("gateway away, seed {seed}"));
        let lost_at = fleet.now;
        let lost = fleet.gateway_goes(seed % 2 == 0);
        assert!(lost >= 340, "{what}: the relays and 300 devices had a link: {lost}");
        fleet.run(lost_at + AWAY);
        fleet.gateway_returns();
        let (end, away) = (fleet.now, fleet.away());
        assert!(away.len() >= 2_500, "{what}: {} felt it", away.len());
        assert!(away.iter().all(|n| *n < super::fleet::RELAYS || Fleet::roaming().contains(n)), "{what}");
        fleet.run(end + BACK + MINUTE);
        returned(&fleet, &what, lost_at, end, &away);
        settles(&mut fleet, &what);
    }
}

#[test]
fn rly_11_devices_that_all_began_at_the_same_second_do_not_stay_in_step() {
    for seed in 1..=3 {
        let (mut fleet, what) = (Fleet::settled(seed), format!("all in step, seed {seed}"));
        // Power fails, and is back at once: all machines start together, and only the gateway does not.
        let lost_at = fleet.now;
        fleet.gateway_goes(false);
        for n in Fleet::roaming() {
            fleet.switch(n, true);
        }
        fleet.run(lost_at + AWAY);
        fleet.gateway_returns();
        let (end, away) = (fleet.now, fleet.away());
        assert!(away.len() >= Fleet::roaming().len(), "{what}: everybody felt it");
        fleet.run(end + BACK + MINUTE);
        returned(&fleet, &what, lost_at, end, &away);
    }
}

#[test]
fn rly_11_without_the_server_for_half_an_hour_its_children_come_back_evenly() {
    for seed in 1..=4 {
        let (mut fleet, what) = (Fleet::settled(seed), format!("server away, seed {seed}"));
        let lost_at = fleet.now;
        let lost = fleet.server_goes(seed % 2 == 0);
        assert!(lost >= 340, "{what}: the relays and 300 devices had a link: {lost}");
        fleet.run(lost_at + AWAY);
        fleet.server_returns();
        let (end, away) = (fleet.now, fleet.away());
        assert!(away.len() >= 2_500, "{what}: {} felt it", away.len());
        assert!(fleet.gateway.without_server.len() > away.len(), "the gateway said that it has no server");
        fleet.run(end + BACK + MINUTE);
        returned(&fleet, &what, lost_at, end, &away);
        settles(&mut fleet, &what);
    }
}
