//! Virtual time, and each machine's own reading of it.

use branchline_node::time::Clock;
use branchline_protocol::time::{Millis, Mono};
use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

/// Wall time at virtual millisecond 0: some day in 2027.
pub const EPOCH_MS: i64 = 1_800_000_000_000;

/// Virtual milliseconds since the start of a run.
pub type Virtual = Arc<AtomicU64>;

/// One machine's clocks.
pub struct MachineClock {
    now: Virtual,
    /// Milliseconds the monotonic clock stood still: the machine slept.
    slept: AtomicU64,
    /// How far the wall clock is off.
    shift: AtomicI64,
}

impl MachineClock {
    /// A clock that is right.
    pub fn new(now: Virtual) -> Arc<MachineClock> {
        Arc::new(MachineClock { now, slept: AtomicU64::new(0), shift: AtomicI64::new(0) })
    }

    /// Somebody, or something, sets the wall clock.
    pub fn jump(&self, ms: i64) {
        self.shift.fetch_add(ms, Ordering::Relaxed);
    }

    /// The monotonic clock stands still for so long.
    pub fn sleep(&self, ms: u64) {
        self.slept.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for MachineClock {
    fn mono(&self) -> Mono {
        // It starts at a day, so that a sleep never takes it below zero.
        Mono(86_400_000 + self.now.load(Ordering::Relaxed) - self.slept.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Millis {
        Millis(EPOCH_MS + self.now.load(Ordering::Relaxed) as i64 + self.shift.load(Ordering::Relaxed))
    }
}
