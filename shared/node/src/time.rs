//! The node's clock: the one home of ambient time. Everything else is handed [`Now`].

use branchline_protocol::time::{Millis, Mono, Now};
use jiff::tz::TimeZone;
use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicI64, Ordering},
};

/// Where a node's readings come from.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic milliseconds.
    fn mono(&self) -> Mono;
    /// The machine's clock.
    fn wall(&self) -> Millis;
    /// The zone the machine's user lives in: what a schedule's hours mean (INV-2).
    fn zone(&self) -> TimeZone {
        TimeZone::UTC
    }
}

/// The machine's clocks. The monotonic one is tokio's, so that it stands still while a test has paused time.
pub struct SystemClock {
    start: tokio::time::Instant,
}

impl SystemClock {
    /// Starts at 0 ms.
    #[allow(clippy::disallowed_methods, reason = "this is the one home of ambient time")]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(SystemClock { start: tokio::time::Instant::now() })
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the one home of ambient time")]
    fn mono(&self) -> Mono {
        Mono(tokio::time::Instant::now().duration_since(self.start).as_millis() as u64)
    }

    #[allow(clippy::disallowed_methods, reason = "this is the one home of ambient time")]
    fn wall(&self) -> Millis {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Millis(since.map(|d| d.as_millis() as i64).unwrap_or(0))
    }

    #[allow(clippy::disallowed_methods, reason = "this is the one home of ambient time")]
    fn zone(&self) -> TimeZone {
        TimeZone::system()
    }
}

/// The instant by the clock of tokio's timers, for a deadline that moves: reading it is cheaper than setting a timer anew.
#[allow(clippy::disallowed_methods, reason = "this is the one home of ambient time")]
pub(crate) fn timer_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// A clock that a test sets. Monotonic time and wall time move together unless the wall is set apart.
pub struct TestClock {
    mono: AtomicI64,
    wall: AtomicI64,
    zone: RwLock<TimeZone>,
}

impl TestClock {
    /// Starts at this wall time.
    pub fn at(wall: Millis) -> Arc<TestClock> {
        let zone = RwLock::new(TimeZone::UTC);
        Arc::new(TestClock { mono: AtomicI64::new(0), wall: AtomicI64::new(wall.0), zone })
    }

    /// Moves both clocks.
    pub fn advance(&self, ms: i64) {
        self.mono.fetch_add(ms, Ordering::SeqCst);
        self.wall.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as a user might.
    pub fn set_wall(&self, wall: Millis) {
        self.wall.store(wall.0, Ordering::SeqCst);
    }

    /// Moves the machine to another zone.
    pub fn set_zone(&self, zone: TimeZone) {
        *self.zone.write().unwrap_or_else(PoisonError::into_inner) = zone;
    }
}

impl Clock for TestClock {
    fn mono(&self) -> Mono {
        Mono(self.mono.load(Ordering::SeqCst) as u64)
    }
    fn wall(&self) -> Millis {
        Millis(self.wall.load(Ordering::SeqCst))
    }
    fn zone(&self) -> TimeZone {
        self.zone.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Node time (DESIGN 6): the newest time statement plus monotonic time since, never going back; the wall clock
/// before the first statement. Shared by a node's actors and by its TLS configurations.
#[derive(Clone)]
pub struct NodeTime {
    clock: Arc<dyn Clock>,
    /// Node time minus monotonic time; `i64::MIN` before the first statement.
    offset: Arc<AtomicI64>,
}

impl NodeTime {
    /// Node time of one node.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        NodeTime { clock, offset: Arc::new(AtomicI64::new(i64::MIN)) }
    }

    /// All three readings at once.
    pub fn now(&self) -> Now {
        let (mono, wall) = (self.clock.mono(), self.clock.wall());
        let offset = self.offset.load(Ordering::SeqCst);
        let node = if offset == i64::MIN { wall } else { Millis(offset.saturating_add(mono.0 as i64)) };
        Now { mono, wall, node }
    }

    /// The zone the machine's user lives in.
    pub fn zone(&self) -> TimeZone {
        self.clock.zone()
    }

    /// Takes the time of a verified statement. An older one than node time already is changes nothing.
    pub fn learn(&self, stated: Millis) {
        let offset = stated.0.saturating_sub(self.clock.mono().0 as i64);
        self.offset.fetch_max(offset, Ordering::SeqCst);
    }
}

impl std::fmt::Debug for NodeTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.now())
    }
}

impl rustls::time_provider::TimeProvider for NodeTime {
    fn current_time(&self) -> Option<rustls_pki_types::UnixTime> {
        let ms = u64::try_from(self.now().node.0).ok()?;
        Some(rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_millis(ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_time_follows_statements_and_never_goes_back() {
        let clock = TestClock::at(Millis(1_000));
        let time = NodeTime::new(clock.clone());
        assert_eq!(time.now().node, Millis(1_000));
        time.learn(Millis(5_000));
        clock.advance(10);
        assert_eq!(time.now().node, Millis(5_010));
        time.learn(Millis(4_000));
        clock.set_wall(Millis(0));
        assert_eq!(time.now().node, Millis(5_010));
        assert_eq!(time.now().wall, Millis(0));
    }
}
