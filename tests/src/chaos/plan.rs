//! What a chaos run does and when: all of it from one seed, before anything is started.

use super::{plant::Plant, work::Work};
use crate::proxy::{Cut, Flow, Way};
use branchline_node::random::{Random, SeededRandom};
use std::time::Duration;

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// SIGKILL; it starts again.
    Kill,
    /// A device's agent and every job process of it are gone at once.
    CutPower,
    /// SIGSTOP, and SIGCONT so many milliseconds later.
    Freeze(u64),
    /// Its open links are ended.
    Cut(Cut),
    /// It dies without a word to its parent, which goes on believing in the old link, and starts again.
    DieSilently,
    /// Its bytes in one direction (none: both) flow so for so many milliseconds.
    Flow(Option<Way>, Flow, u64),
    /// For so many milliseconds its parent's address refuses everybody, and its links are reset.
    Refuse(u64),
}

impl What {
    /// Its kind in one word.
    pub fn word(self) -> &'static str {
        match self {
            What::Kill => "kill",
            What::CutPower => "power-cut",
            What::Freeze(_) => "freeze",
            What::Cut(Cut::Reset) => "reset",
            What::Cut(Cut::Finish) => "finish",
            What::Cut(Cut::Strand) => "strand",
            What::DieSilently => "die-silently",
            What::Flow(_, Flow::Hold, _) => "half-open",
            What::Flow(_, Flow::Delay(_), _) => "delay",
            What::Flow(_, Flow::Throttle(_), _) => "throttle",
            What::Flow(_, Flow::ResetAfter(_), _) => "reset-mid-stream",
            What::Flow(_, Flow::Pass, _) => "pass",
            What::Refuse(_) => "refuse",
        }
    }

    /// Milliseconds until it is over.
    pub fn lasts_ms(self) -> u64 {
        match self {
            What::Freeze(ms) | What::Flow(_, _, ms) | What::Refuse(ms) => ms,
            _ => 0,
        }
    }
}

/// A fault in its place and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Milliseconds after the beginning.
    pub at_ms: u64,
    /// The node that is hit, or the child whose link to its parent is.
    pub node: String,
    /// What happens.
    pub what: What,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Gives the same plan again.
    pub seed: u64,
    /// Faults in order.
    pub steps: Vec<Step>,
    /// Jobs in order, each with its milliseconds after the beginning.
    pub works: Vec<(u64, Work)>,
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Faults.
    pub faults: usize,
    /// Jobs.
    pub jobs: usize,
    /// Milliseconds over which both are spread.
    pub spread_ms: u64,
}

/// A link whose two ends are to find out by themselves that it is dead (90 s): longer than that.
const BEYOND_DEAD_MS: u64 = 95_000;

impl Plan {
    /// The plan of a seed for the nodes of this plant.
    pub fn new(seed: u64, amount: Amount, plant: &Plant) -> Plan {
        let random = SeededRandom::shared(seed);
        let random = &*random;
        let names = |role: &str| plant.of(role).map(|n| n.name.clone()).collect::<Vec<_>>();
        let nodes =
            Nodes { server: names("server"), gateway: names("gateway"), relay: names("relay"), agent: names("agent") };
        let at = |n: usize, of: usize| {
            let each = amount.spread_ms / of as u64;
            n as u64 * each + random.up_to(each)
        };
        let mut steps: Vec<Step> = (0..amount.faults)
            .map(|n| {
                let (node, what) = nodes.fault(random);
                Step { at_ms: at(n, amount.faults), node, what }
            })
            .collect();
        let long = What::Flow(None, Flow::Hold, BEYOND_DEAD_MS);
        steps.insert(0, Step { at_ms: 0, node: nodes.agent[nodes.agent.len() - 1].clone(), what: long });
        let works = (0..amount.jobs).map(|n| (at(n, amount.jobs), Work::random(n, random))).collect();
        Plan { seed, steps, works }
    }
}

struct Nodes {
    server: Vec<String>,
    gateway: Vec<String>,
    relay: Vec<String>,
    agent: Vec<String>,
}

impl Nodes {
    fn fault(&self, random: &dyn Random) -> (String, What) {
        let one = |of: &Vec<String>| of[random.up_to(of.len() as u64 - 1) as usize].clone();
        let some_ms = || 300 + random.up_to(2_500);
        match random.up_to(99) {
            0..=17 => (one(&self.agent), What::Kill),
            18..=33 => (one(&self.agent), What::CutPower),
            34..=38 => (one(&self.agent), What::Freeze(some_ms())),
            39..=41 => (one(&self.agent), What::DieSilently),
            42..=60 => (one(&self.agent), Self::link(random, some_ms())),
            61..=70 => (one(&self.relay), What::Kill),
            71..=73 => (one(&self.relay), What::Freeze(some_ms())),
            74..=75 => (one(&self.relay), What::DieSilently),
            76..=83 => (one(&self.relay), Self::link(random, some_ms())),
            84..=85 => (one(&self.relay), What::Refuse(some_ms())),
            86..=88 => (one(&self.gateway), What::Kill),
            89 => (one(&self.gateway), What::Freeze(some_ms())),
            90..=93 => (one(&self.gateway), Self::link(random, some_ms())),
            94..=98 => (one(&self.server), What::Kill),
            _ => (one(&self.server), What::Freeze(some_ms())),
        }
    }

    fn link(random: &dyn Random, ms: u64) -> What {
        let way = [Some(Way::Up), Some(Way::Down), None][random.up_to(2) as usize];
        match random.up_to(9) {
            0..=1 => What::Cut(Cut::Reset),
            2 => What::Cut(Cut::Finish),
            3..=4 => What::Flow(way, Flow::Hold, ms),
            5..=6 => What::Flow(way, Flow::ResetAfter(random.up_to(2_000)), ms),
            7..=8 => What::Flow(way, Flow::Delay(Duration::from_millis(50 + random.up_to(700))), ms),
            _ => What::Flow(way, Flow::Throttle(500 + random.up_to(4_000) as u32), ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_mix_holds_every_kind_and_none_over_40_percent() {
        let one = |name: &str| vec![name.to_string()];
        let nodes = Nodes { server: one("s"), gateway: one("g"), relay: one("r"), agent: one("a") };
        let random = SeededRandom::shared(1);
        let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
        for _ in 0..3_000 {
            *kinds.entry(nodes.fault(&*random).1.word()).or_default() += 1;
        }
        let wanted = [
            "delay",
            "die-silently",
            "finish",
            "freeze",
            "half-open",
            "kill",
            "power-cut",
            "refuse",
            "reset",
            "reset-mid-stream",
            "throttle",
        ];
        assert_eq!(kinds.keys().copied().collect::<Vec<_>>(), wanted);
        assert!(kinds.values().all(|n| (30..=1_200).contains(n)), "{kinds:?}");
    }
}
