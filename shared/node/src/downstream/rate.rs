//! How many handshakes a parent does per second, and when those turned away come again (pure; DESIGN 3 "Reconnect").
//!
//! Two buckets of tokens. Devices draw from the larger one; relays draw from their own third, and from the devices'
//! bucket when that is empty: a branch is never shut out by single devices. Whoever finds no token is told the next
//! instant that nobody else was told, one rate's interval after the other, so that the crowd comes back as a queue
//! and not as a crowd. The instants are no reservations: before its certificate is seen a child has no name.

use crate::config::LinkRate;
use branchline_protocol::time::Mono;

/// The shortest wait told, in milliseconds: a turned-away child still costs a connection.
pub const WAIT_MS_MIN: u64 = 1_000;
/// Instants are given out up to so far ahead, in milliseconds; then again from the front, so that a stranger who
/// knocks without end cannot send the others away for longer.
pub const WAIT_MS_MAX: u64 = 60_000;

/// Who knocks, as far as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A device, with a slot or for a poll.
    Device,
    /// A relay's uplink.
    Relay,
}

/// The decision; see the module.
#[derive(Clone, Debug)]
pub struct Rate {
    devices: Bucket,
    relays: Bucket,
}

impl Rate {
    /// Full buckets. A third of rate and burst, rounded down, is the relays'.
    pub fn new(rate: LinkRate, now: Mono) -> Rate {
        let (relays_rate, relays_burst) = (rate.per_second / 3, rate.burst / 3);
        Rate {
            devices: Bucket::new(rate.per_second - relays_rate, rate.burst - relays_burst, now),
            relays: Bucket::new(relays_rate, relays_burst, now),
        }
    }

    /// Takes a token for a handshake.
    ///
    /// # Errors
    /// Milliseconds after which to come again.
    pub fn knock(&mut self, now: Mono, caller: Caller) -> Result<(), u64> {
        match caller {
            Caller::Device if self.devices.take(now) => Ok(()),
            Caller::Device => Err(self.turn_away(now, caller)),
            Caller::Relay if self.relays.take(now) || self.devices.take(now) => Ok(()),
            Caller::Relay => Err(self.turn_away(now, caller)),
        }
    }

    /// Gives an instant without looking for a token.
    pub fn turn_away(&mut self, now: Mono, caller: Caller) -> u64 {
        match caller {
            Caller::Device => self.devices.promise(now),
            Caller::Relay => self.relays.promise(now),
        }
    }
}

/// A token in the unit levels are kept in: one millisecond at one token a second.
const TOKEN: u64 = 1_000;

#[derive(Clone, Debug)]
struct Bucket {
    per_second: u64,
    full: u64,
    level: u64,
    filled_at: Mono,
    /// The instant promised last, in microseconds of the monotonic clock.
    promised_us: u64,
}

impl Bucket {
    fn new(per_second: u32, burst: u32, now: Mono) -> Bucket {
        let full = u64::from(burst.max(1)) * TOKEN;
        Bucket { per_second: u64::from(per_second.max(1)), full, level: full, filled_at: now, promised_us: 0 }
    }

    fn take(&mut self, now: Mono) -> bool {
        let gained = now.since(self.filled_at).saturating_mul(self.per_second);
        self.level = self.full.min(self.level.saturating_add(gained));
        self.filled_at = self.filled_at.max(now);
        let has = self.level >= TOKEN;
        if has {
            self.level -= TOKEN;
        }
        has
    }

    fn promise(&mut self, now: Mono) -> u64 {
        let (now_us, first_us) = (now.0 * 1_000, (now.0 + WAIT_MS_MIN) * 1_000);
        let next_us = self.promised_us + 1_000_000 / self.per_second;
        let beyond = next_us > now_us + WAIT_MS_MAX * 1_000;
        self.promised_us = if beyond { first_us } else { next_us.max(first_us) };
        (self.promised_us - now_us) / 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const LIMIT: LinkRate = LinkRate { per_second: 30, burst: 90 };

    fn rate() -> Rate {
        Rate::new(LIMIT, Mono(0))
    }

    fn taken(rate: &mut Rate, now: u64, caller: Caller, knocks: u32) -> u32 {
        (0..knocks).filter(|_| rate.knock(Mono(now), caller).is_ok()).count() as u32
    }

    #[test]
    fn rly_11_devices_never_take_the_third_that_is_kept_for_relays() {
        let mut rate = rate();
        assert_eq!(taken(&mut rate, 0, Caller::Device, 1_000), 60, "two thirds of the burst");
        assert_eq!(taken(&mut rate, 0, Caller::Relay, 1_000), 30, "the third is there all the same");
        assert_eq!(taken(&mut rate, 1_000, Caller::Device, 1_000), 20, "two thirds of a second's rate");
        assert_eq!(taken(&mut rate, 1_000, Caller::Relay, 1_000), 10);
    }

    #[test]
    fn relays_may_use_what_devices_leave() {
        assert_eq!(taken(&mut rate(), 0, Caller::Relay, 1_000), 90);
    }

    #[test]
    fn a_token_is_there_at_its_millisecond_and_not_one_before() {
        let mut rate = rate();
        taken(&mut rate, 0, Caller::Device, 60);
        assert_eq!(taken(&mut rate, 49, Caller::Device, 1), 0);
        assert_eq!(taken(&mut rate, 50, Caller::Device, 2), 1, "20 a second are one in 50 ms");
        assert_eq!(taken(&mut rate, 3_600_000, Caller::Device, 1_000), 60, "and never more than the burst");
    }

    #[test]
    fn rly_11_those_turned_away_are_told_different_instants_one_after_the_other() {
        let mut rate = rate();
        taken(&mut rate, 0, Caller::Device, 60);
        let waits: Vec<u64> = (0..1_000).map(|_| rate.knock(Mono(0), Caller::Device).unwrap_err()).collect();
        assert_eq!(&waits[..4], [1_000, 1_050, 1_100, 1_150]);
        assert_eq!(waits.iter().collect::<BTreeSet<_>>().len(), 1_000);
        assert!(rate.knock(Mono(30_000), Caller::Device).is_ok(), "the bucket has filled meanwhile");
    }

    #[test]
    fn no_wait_is_longer_than_a_minute_however_many_knock() {
        let mut rate = rate();
        taken(&mut rate, 0, Caller::Device, 60);
        let waits: Vec<u64> = (0..10_000).map(|_| rate.knock(Mono(0), Caller::Device).unwrap_err()).collect();
        assert_eq!((waits.iter().min(), waits.iter().max()), (Some(&WAIT_MS_MIN), Some(&WAIT_MS_MAX)));
        let mut counts = std::collections::BTreeMap::new();
        waits.iter().for_each(|w| *counts.entry(w).or_insert(0u32) += 1);
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        assert!(most - least <= 1, "the queue begins again at its front: {least} to {most}");
    }

    proptest! {
        #[test]
        fn in_no_stretch_of_time_are_there_more_than_burst_and_rate_allow(
            knocks in prop::collection::vec((0u64..400, any::<bool>()), 1..600)
        ) {
            let mut rate = rate();
            let (mut now, mut taken) = (0, Vec::new());
            for (wait, relay) in knocks {
                now += wait / 20; // many at the same instant
                let caller = if relay { Caller::Relay } else { Caller::Device };
                match rate.knock(Mono(now), caller) {
                    Ok(()) => taken.push(now),
                    Err(ms) => prop_assert!((WAIT_MS_MIN..=WAIT_MS_MAX).contains(&ms)),
                }
            }
            for (i, from) in taken.iter().enumerate() {
                for (j, to) in taken.iter().enumerate().skip(i) {
                    let allowed = u64::from(LIMIT.burst) + (to - from) * u64::from(LIMIT.per_second) / 1_000 + 1;
                    prop_assert!((j - i) as u64 <= allowed);
                }
            }
        }
    }
}
