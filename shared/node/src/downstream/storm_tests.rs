//! RLY-11 in virtual time: the real cores of both ends (rhythm; rate and admission), thousands of children, no socket.

use super::{
    admission::{Admission, AdmissionConfig, Ask, Cap, Effect, Event, Want},
    rate::{Caller, Rate},
    reception::reconnect_spread_ms,
};
use crate::{
    config::LinkRate,
    random::{Random, SeededRandom},
    uplink::rhythm::{Poke, Rhythm},
};
use branchline_protocol::{
    id::{AttachmentKey, NodeId, Role},
    time::{Millis, Mono, Now},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use uuid::Uuid;

fn at(ms: u64) -> Now {
    Now { mono: Mono(ms), wall: Millis(ms as i64), node: Millis(ms as i64) }
}

struct Child {
    role: Role,
    rhythm: Rhythm,
    attachment: u64,
    up: bool,
}

/// A parent that has just gone, and its children. Instants are milliseconds since then.
struct Storm {
    chance: Arc<dyn Random>,
    children: Vec<Child>,
    back_at: u64,
    rate: Option<(Rate, Admission)>,
    cap: u16,
    sessions: u64,
    /// When each child knocked or dialled in vain, and when a handshake was done.
    attempts: Vec<(u64, usize)>,
    handshakes: Vec<(u64, usize)>,
    used_max: u16,
}

impl Storm {
    /// Its children had links and know its spread. The parent answers again at `back_at`.
    fn of(seed: u64, devices: usize, relays: usize, back_at: u64) -> Storm {
        let chance = SeededRandom::shared(seed);
        let mut children = Vec::new();
        for n in 0..devices + relays {
            let role = if n < devices { Role::Agent } else { Role::Relay };
            let mut rhythm = Rhythm::new(at(0));
            rhythm.welcomed(reconnect_spread_ms(role, (devices + relays) as u64));
            rhythm.lost(at(0), chance.next_u64());
            children.push(Child { role, rhythm, attachment: 1, up: false });
        }
        let cap = devices.max(1) as u16;
        let (rate, attempts, handshakes) = (None, Vec::new(), Vec::new());
        Storm { chance, children, back_at, rate, cap, sessions: 0, attempts, handshakes, used_max: 0 }
    }

    /// Everybody has a result in hand.
    fn hurry(mut self) -> Storm {
        let chance = self.chance.clone();
        for child in &mut self.children {
            child.rhythm.poke(at(0), Poke::Urgent, chance.next_u64());
        }
        self
    }

    /// Lets time pass until everybody is back; answers when that was.
    fn run(&mut self) -> u64 {
        let mut due: BTreeSet<(u64, usize)> =
            self.children.iter().enumerate().map(|(n, c)| (c.rhythm.due().0, n)).collect();
        let mut now = 0;
        while let Some((instant, n)) = due.pop_first() {
            now = instant;
            assert!(now < 3_600_000, "child {n} is away for an hour");
            self.attempt(now, n);
            if !self.children[n].up {
                due.insert((self.children[n].rhythm.due().0, n));
            }
        }
        now
    }

    fn attempt(&mut self, now: u64, n: usize) {
        self.attempts.push((now, n));
        let chance = self.chance.next_u64();
        let child = &mut self.children[n];
        if now < self.back_at {
            return child.rhythm.failed(at(now), None, chance);
        }
        let cap = Cap::new(i64::from(self.cap), true).unwrap();
        let fresh = || (Rate::new(LinkRate::default(), Mono(now)), Admission::new(AdmissionConfig::new(cap)));
        let (rate, admission) = self.rate.get_or_insert_with(fresh);
        let caller = if child.role == Role::Relay { Caller::Relay } else { Caller::Device };
        if let Err(ms) = rate.knock(Mono(now), caller) {
            return child.rhythm.told(at(now), ms, chance);
        }
        self.handshakes.push((now, n));
        self.sessions += 1;
        child.attachment += 1;
        let ask = Ask {
            node: NodeId(Uuid::from_u128(n as u128 + 1)),
            role: child.role,
            key: AttachmentKey { epoch: 1, attachment: child.attachment },
            session: self.sessions,
            want: Want::Persistent,
            need: crate::downstream::admission::Need::Ordinary,
            wakeable: false,
            poll_interval_ms: None,
            pressing_ms: None,
        };
        let mut effects = Vec::new();
        admission.handle(at(now), Event::Ask(ask), &mut effects);
        assert_eq!(effects, [Effect::Admitted { session: self.sessions }], "there is room for all");
        self.used_max = self.used_max.max(admission.gauge().used);
        child.rhythm.welcomed(0);
        child.up = true;
    }

    fn firsts(&self) -> Vec<u64> {
        let mut seen = BTreeSet::new();
        self.attempts.iter().filter(|(_, n)| seen.insert(*n)).map(|(at, _)| *at).collect()
    }
}

/// How many fall into each stretch of so many milliseconds.
fn per(stretch_ms: u64, instants: impl IntoIterator<Item = u64>) -> BTreeMap<u64, u64> {
    let mut counts = BTreeMap::new();
    instants.into_iter().for_each(|at| *counts.entry(at / stretch_ms).or_insert(0) += 1);
    counts
}

#[test]
fn rly_11_300_agents_come_back_to_a_restarted_relay_spread_over_30_s_and_all_within_120_s() {
    for seed in 1..=50 {
        for back_at in [0, 1_000, 5_000, 20_000] {
            let mut storm = Storm::of(seed, 300, 0, back_at);
            let all_back = storm.run();
            let firsts = storm.firsts();
            let (first, last) = (firsts.iter().min().unwrap(), firsts.iter().max().unwrap());
            assert!(last - first >= 30_000, "seed {seed}: first attempts from {first} to {last} ms");
            let crowd = per(5_000, firsts).into_values().max().unwrap();
            assert!(crowd <= 70, "seed {seed}: {crowd} of 300 within 5 s, where 33 are the mean");
            assert!(all_back <= 120_000, "seed {seed}, away {back_at} ms: the last one is back after {all_back} ms");
            assert_eq!(storm.used_max, 300);
        }
    }
}

#[test]
fn rly_11_with_results_in_hand_300_agents_are_back_within_10_s() {
    for seed in 1..=50 {
        let mut storm = Storm::of(seed, 300, 0, 0).hurry();
        let all_back = storm.run();
        assert!(all_back <= 10_000, "seed {seed}: {all_back} ms");
    }
}

#[test]
fn rly_11_ten_uplink_failures_are_at_most_ten_attempts_in_ten_minutes() {
    for seed in 1..=1_000 {
        let mut storm = Storm::of(seed, 0, 1, 700_000);
        storm.children[0].rhythm = Rhythm::new(at(0));
        storm.run();
        let early = storm.attempts.iter().filter(|(at, _)| *at < 600_000).count();
        assert!((8..=10).contains(&early), "seed {seed}: {early} attempts");
    }
}

#[test]
fn rly_11_at_the_cap_of_the_back_off_attempts_stay_spread() {
    const CHILDREN: usize = 3_000;
    const AWAY_MS: u64 = 4 * 3_600_000;
    let mut storm = Storm::of(7, CHILDREN, 0, AWAY_MS);
    // All of them lost it at the same instant, the worst start there is.
    storm.children.iter_mut().for_each(|c| c.rhythm = Rhythm::new(at(0)));
    let mut due: BTreeSet<(u64, usize)> = (0..CHILDREN).map(|n| (0, n)).collect();
    while let Some((now, n)) = due.pop_first().filter(|(now, _)| *now < AWAY_MS) {
        storm.attempt(now, n);
        due.insert((storm.children[n].rhythm.due().0, n));
    }
    let late = storm.attempts.iter().map(|(at, _)| *at).filter(|at| *at >= AWAY_MS / 2);
    let counts = per(10_000, late);
    let mean = counts.values().sum::<u64>() / counts.len() as u64;
    assert!((80..=120).contains(&mean), "3,000 children, one attempt in 300 s each: {mean} in 10 s");
    let most = *counts.values().max().unwrap();
    assert!(most <= 2 * mean, "{most} in 10 s where {mean} are the mean");
}

#[test]
fn rly_11_a_storm_of_3000_is_taken_at_the_rate_and_makes_no_second_peak() {
    let limit = LinkRate::default();
    let (rate, burst) = (u64::from(limit.per_second), u64::from(limit.burst));
    for seed in 1..=20 {
        let mut storm = Storm::of(seed, 3_000, 20, 2_000).hurry();
        let all_back = storm.run();
        assert_eq!((storm.handshakes.len(), storm.used_max), (3_020, 3_000));
        assert!(all_back <= 120_000, "seed {seed}: {all_back} ms");
        // In any stretch of time: the burst once, and the rate.
        let done: Vec<u64> = storm.handshakes.iter().map(|(at, _)| *at).collect();
        for (i, from) in done.iter().enumerate() {
            for second in [1_000, 5_000, 30_000] {
                let within = done[i..].partition_point(|to| to - from < second) as u64;
                assert!(within <= burst + rate * second / 1_000 + 1, "seed {seed}: {within} within {second} ms");
            }
        }
        // The crowd of the first seconds takes the burst. After it, never more than the rate in a second, and what
        // was told to come later comes as a queue.
        let after: Vec<u64> = done.iter().copied().filter(|at| *at >= 8_000).collect();
        let most = per(1_000, after.iter().copied()).into_values().max().unwrap();
        assert!(most <= rate, "seed {seed}: {most} handshakes in a second");
        let attempts = storm.attempts.iter().map(|(at, _)| *at).filter(|at| (8_000..all_back).contains(at));
        let attempts = per(1_000, attempts);
        let mean = attempts.values().sum::<u64>() / attempts.len() as u64;
        let most = *attempts.values().max().unwrap();
        assert!(most <= 2 * mean.max(1), "seed {seed}: {most} attempts in a second where {mean} are the mean");
        // Nobody knocks again and again: a handful of attempts each.
        let attempts_each = storm.attempts.len() as u64 / 3_020;
        assert!(attempts_each <= 4, "seed {seed}: {attempts_each} attempts each");
        // Relays have their own part: none of them waits for devices.
        let relays = storm.handshakes.iter().filter(|(_, n)| *n >= 3_000).map(|(at, _)| *at).max().unwrap();
        assert!(relays <= 10_000, "seed {seed}: the last relay is back after {relays} ms");
    }
}
