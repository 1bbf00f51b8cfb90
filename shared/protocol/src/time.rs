//! Time as values. Nothing here reads a clock: callers pass `now` in.

use serde::{Deserialize, Serialize};

/// Milliseconds on a node's monotonic clock, from an arbitrary start. Never goes back, means nothing elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mono(pub u64);

impl Mono {
    /// This instant plus `ms` milliseconds, saturating.
    pub fn plus(self, ms: u64) -> Self {
        Mono(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this instant; 0 when `earlier` is later.
    pub fn since(self, earlier: Mono) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z. Wall time, or node time once a time statement was seen (DESIGN 6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub i64);

impl Millis {
    /// This instant plus `ms` milliseconds, saturating.
    pub fn plus(self, ms: i64) -> Self {
        Millis(self.0.saturating_add(ms))
    }
}

/// The three readings a decision may need, taken together once per event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For intervals, time-outs and leases of this process's life.
    pub mono: Mono,
    /// The machine's clock: display and schedules only.
    pub wall: Millis,
    /// Node time: newest signed time statement plus monotonic time since; the wall clock before the first one.
    pub node: Millis,
}

impl Now {
    /// The reading to show people. Node time is a proven lower bound: it lags by the age of the newest statement, which is
    /// the whole time a device was off if it starts out of contact. What the machine's clock has beyond it is believed.
    /// Nothing is decided by it, and the server cuts what lies ahead of its own time.
    pub fn shown(&self) -> Millis {
        self.wall.max(self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_shown_the_clock_unless_it_is_behind_what_is_proven() {
        let shown = |wall, node| Now { mono: Mono(0), wall: Millis(wall), node: Millis(node) }.shown();
        assert_eq!(shown(7, 5), Millis(7));
        assert_eq!(shown(5, 5), Millis(5));
        assert_eq!(shown(3, 5), Millis(5));
    }
}
