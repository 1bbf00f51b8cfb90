//! The request limit per source (GW-3): a token bucket on upgrades. Those turned away are told instants one after the
//! other, so that an office behind one address comes back as a queue and not as a crowd.

use branchline_node::{random::Random, time::Clock};
use governor::{Quota, RateLimiter, clock, middleware::NoOpMiddleware, state::keyed::HashMapStateStore};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Requests between two sweeps for sources whose bucket is full again.
const SWEEP_EVERY: usize = 4_096;
/// Instants are given out up to so many seconds ahead, then again from the front.
const WAIT_S_MAX: u64 = 60;

/// Seconds after which a child turned away for want of room or of a server may come again, at the least, and over how
/// many more they are spread: they were all turned away for the same reason and must not come back at the same moment.
const AWAY_S: u64 = 5;
const AWAY_SPREAD_S: u64 = 10;

type Instant = Duration;

/// The node's clock as governor takes it.
#[derive(Clone)]
struct NodeClock(Arc<dyn Clock>);

impl clock::Clock for NodeClock {
    type Instant = Instant;
    fn now(&self) -> Instant {
        Duration::from_millis(self.0.mono().0)
    }
}

/// Buckets of all sources.
pub struct Flood {
    limiter: RateLimiter<IpAddr, HashMapStateStore<IpAddr>, NodeClock, NoOpMiddleware<Instant>>,
    clock: NodeClock,
    asked: AtomicUsize,
    /// Time of one token.
    interval: Duration,
    /// The instant that a source was promised last; only those still to come are kept. Locked for a few moves.
    promised: Mutex<BTreeMap<IpAddr, Instant>>,
}

impl Flood {
    /// So many upgrades per second from one source, after so many at once.
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32, clock: Arc<dyn Clock>) -> Flood {
        let clock = NodeClock(clock);
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let limiter = RateLimiter::hashmap_with_clock(quota, clock.clone());
        let interval = Duration::from_secs(1) / per_second.get();
        Flood { limiter, clock, asked: AtomicUsize::new(0), interval, promised: Mutex::default() }
    }

    /// Takes a token of the source; without one, the seconds after which it may ask again, at least 1.
    pub fn check(&self, source: IpAddr) -> Result<(), u64> {
        // A full bucket need not be remembered, so memory follows the sources of the last seconds.
        if self.asked.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.limiter.retain_recent();
            let now = clock::Clock::now(&self.clock);
            self.promised().retain(|_, at| *at > now);
        }
        let source = owner(source);
        self.limiter.check_key(&source).map_err(|until| {
            let now = clock::Clock::now(&self.clock);
            let soonest = now + until.wait_time_from(now);
            let mut promised = self.promised();
            let next = promised.get(&source).map_or(soonest, |last| (*last + self.interval).max(soonest));
            let beyond = next > now + Duration::from_secs(WAIT_S_MAX);
            let at = if beyond { soonest } else { next };
            promised.insert(source, at);
            (at - now).as_secs_f64().ceil().max(1.0) as u64
        })
    }

    fn promised(&self) -> std::sync::MutexGuard<'_, BTreeMap<IpAddr, Instant>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn sources(&self) -> usize {
        self.limiter.len()
    }
}

/// Seconds after which a child may come again that found no room, or no server behind the gateway.
pub fn away_s(random: &dyn Random) -> u64 {
    AWAY_S + random.up_to(AWAY_SPREAD_S)
}

/// Whoever has one IPv6 address has the 2⁶⁴ of its network, too.
fn owner(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        },
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_node::time::TestClock;
    use branchline_protocol::time::Millis;

    fn flood(per_second: u32, burst: u32) -> (Flood, Arc<TestClock>) {
        let clock = TestClock::at(Millis(0));
        clock.advance(1_000_000);
        let (per_second, burst) = (NonZeroU32::new(per_second).unwrap(), NonZeroU32::new(burst).unwrap());
        (Flood::new(per_second, burst, clock.clone()), clock)
    }

    #[test]
    fn gw_3_the_burst_passes_one_more_waits_and_a_second_source_does_not_notice() {
        let (flood, clock) = flood(50, 400);
        let (one, two) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for n in 0..400 {
            assert_eq!(flood.check(one), Ok(()), "{n}");
        }
        assert_eq!(flood.check(one), Err(1));
        assert_eq!(flood.check(two), Ok(()));
        clock.advance(1_000);
        for n in 0..50 {
            assert_eq!(flood.check(one), Ok(()), "{n}");
        }
        assert_eq!(flood.check(one), Err(1));
        clock.advance(5_000);
        assert_eq!(flood.check(one), Ok(()), "normal 5 s after the flood");
    }

    #[test]
    fn rly_11_an_office_that_was_turned_away_is_told_to_come_back_as_a_queue() {
        let (flood, clock) = flood(50, 400);
        let office = "192.0.2.1".parse().unwrap();
        (0..400).for_each(|_| flood.check(office).unwrap());
        let waits: Vec<u64> = (0..500).map(|_| flood.check(office).unwrap_err()).collect();
        for second in 1..=10 {
            assert_eq!(waits.iter().filter(|w| **w == second).count(), 50, "one second's rate in second {second}");
        }
        let more: Vec<u64> = (0..10_000).map(|_| flood.check(office).unwrap_err()).collect();
        assert_eq!(more.iter().max(), Some(&WAIT_S_MAX), "nobody is sent away for longer");
        assert_eq!(flood.check("192.0.2.2".parse().unwrap()), Ok(()), "another source has its own queue");
        clock.advance(60_000);
        assert_eq!(flood.check(office), Ok(()));
    }

    #[test]
    fn the_wait_is_stated_in_whole_seconds() {
        let clock = TestClock::at(Millis(0));
        clock.advance(1_000_000);
        let one = NonZeroU32::MIN;
        let flood = Flood::new(one, one, clock.clone());
        let source = "192.0.2.1".parse().unwrap();
        flood.check(source).unwrap();
        assert_eq!(flood.check(source), Err(1));
        clock.advance(999);
        assert_eq!(flood.check(source), Err(2), "the next second is the first one's");
        clock.advance(1);
        assert_eq!(flood.check(source), Ok(()));
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_a_mapped_address_is_its_ipv4() {
        let (flood, _clock) = flood(1, 1);
        flood.check("2001:db8:0:1::1".parse().unwrap()).unwrap();
        assert!(flood.check("2001:db8:0:1:ffff::2".parse().unwrap()).is_err());
        flood.check("2001:db8:0:2::1".parse().unwrap()).unwrap();
        flood.check("::ffff:192.0.2.1".parse().unwrap()).unwrap();
        assert!(flood.check("192.0.2.1".parse().unwrap()).is_err());
    }

    #[test]
    fn sources_that_went_quiet_are_forgotten() {
        let (flood, clock) = flood(50, 50);
        for n in 0..3_000u32 {
            flood.check(IpAddr::V4((0x0a00_0000 + n).into())).unwrap();
        }
        assert_eq!(flood.sources(), 3_000);
        clock.advance(10_000);
        for n in 0..SWEEP_EVERY as u32 {
            let _spent = flood.check(IpAddr::V4((0x0b00_0000 + n % 10).into()));
        }
        assert!(flood.sources() <= 20, "{}", flood.sources());
    }
}
