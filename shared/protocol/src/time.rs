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
