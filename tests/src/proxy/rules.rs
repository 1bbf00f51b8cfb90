//! What a proxy does to the bytes of whom (pure).

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From the node that dialled to its parent.
    Up,
    /// From the parent to the node that dialled.
    Down,
}

/// Whose connections are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whom {
    /// Everybody's who has no rule of their own.
    All,
    /// Those dialled from this address.
    From(IpAddr),
}

impl Whom {
    /// Whether a connection from `source` is meant.
    pub fn is(self, source: IpAddr) -> bool {
        match self {
            Whom::All => true,
            Whom::From(ip) => ip == source,
        }
    }
}

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Flow {
    /// They are passed on.
    #[default]
    Pass,
    /// Half-open: nothing is read and nothing is passed on, while the sockets stay. Not even an end is noticed.
    Hold,
    /// Each byte arrives so much later.
    Delay(Duration),
    /// So many bytes a second, at least 1.
    Throttle(u32),
    /// After so many more bytes both ends are reset, in the middle of whatever was being said.
    ResetAfter(u64),
}

/// The flow of everybody in each direction.
#[derive(Clone, Debug, Default)]
pub struct Rules(BTreeMap<(Whom, Way), Flow>);

impl Rules {
    /// From now on.
    pub fn set(&mut self, whom: Whom, way: Way, flow: Flow) {
        self.0.insert((whom, way), flow);
    }

    /// Nobody has a rule any more: all passes.
    pub fn clear(&mut self, whom: Whom) {
        self.0.retain(|(of, _), _| *of != whom);
    }

    /// What holds for a connection from `source`: its own rule, else everybody's, else it passes.
    pub fn of(&self, source: IpAddr, way: Way) -> Flow {
        let own = self.0.get(&(Whom::From(source), way));
        own.or_else(|| self.0.get(&(Whom::All, way))).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_rule_goes_before_everybodys() {
        let (a, b) = (IpAddr::from([127, 0, 0, 2]), IpAddr::from([127, 0, 0, 3]));
        let mut rules = Rules::default();
        assert_eq!(rules.of(a, Way::Up), Flow::Pass);
        rules.set(Whom::All, Way::Up, Flow::Hold);
        rules.set(Whom::From(a), Way::Up, Flow::Throttle(1));
        let seen = [(a, Way::Up), (b, Way::Up), (a, Way::Down)].map(|(ip, way)| rules.of(ip, way));
        assert_eq!(seen, [Flow::Throttle(1), Flow::Hold, Flow::Pass]);
        rules.clear(Whom::From(a));
        assert_eq!(rules.of(a, Way::Up), Flow::Hold);
        rules.clear(Whom::All);
        assert_eq!(rules.of(b, Way::Up), Flow::Pass);
    }
}
