//! When a child dials next (pure; DESIGN 3 "Reconnect"); whom it dials is in [`super::path`].
//!
//! Losing an established link: uniform over the parent's stated spread, over 5 s of it with results or urgent matter in
//! hand. A failed dial: min(300 s, 1 s · 2ⁿ) times 0.75 to 1.25, so that the spread exists at the cap too. A parent that
//! is busy: the instant it gave. A poll that ended: the lease's next instant, give or take a twentieth of the interval. The
//! instants themselves are evenly spread and stay where they are, so an hourly device polls 24 times a day, and two polls
//! are never more than a tenth over the interval apart (ADM-8). A network that comes after dials failed for want of it: at
//! once (ADM-12).

use branchline_protocol::{
    refusal::Refusal,
    time::{Mono, Now},
    wire::Lease,
};

/// Longest wait after failed dials, before its spread.
pub const BACKOFF_MS_MAX: u64 = 300_000;
/// Longest spread a parent may state.
pub const SPREAD_MS_MAX: u64 = 300_000;
/// A device with something to say polls within this many milliseconds (jitter of DESIGN 3).
pub const POKE_SPREAD_MS: u64 = 500;
/// A device whose network has come dials within this many milliseconds: with the second until that is noticed it polls
/// within 5 s (ADM-12).
pub const NETWORK_SPREAD_MS: u64 = 3_000;
/// With results or urgent matter in hand the first wait after a loss is at most so long, in milliseconds.
pub const URGENT_SPREAD_MS: u64 = 5_000;
/// The shortest wait that a parent may ask for, in milliseconds.
const TOLD_MS_MIN: u64 = 1_000;
/// The longest: a parent's word is not to keep a child away for ever.
const TOLD_MS_MAX: u64 = 3_600_000;

/// What a child has to say while it has no link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poke {
    /// Something: a poll is brought forward.
    Something,
    /// A parent's wake: it lives and has something, so the wait after a failed dial is brought forward, too.
    Wake,
    /// Results or urgent matter: the wait after a lost link is brought forward, too.
    Urgent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// For a poll's instant.
    Poll,
    /// After an established link was lost.
    Lost,
    /// After a failed dial.
    Failed,
    /// Because the parent asked to wait.
    Told,
}

/// When to dial next.
#[derive(Clone, Debug)]
pub struct Rhythm {
    failures: u32,
    spread_ms: u64,
    due: Mono,
    wait: Wait,
}

impl Rhythm {
    /// Dials at once.
    pub fn new(now: Now) -> Self {
        Rhythm { failures: 0, spread_ms: 0, due: now.mono, wait: Wait::Failed }
    }

    /// When to dial.
    pub fn due(&self) -> Mono {
        self.due
    }

    /// A parent welcomed us.
    pub fn welcomed(&mut self, reconnect_spread_ms: u64) {
        self.failures = 0;
        self.spread(reconnect_spread_ms);
    }

    /// The parent has another number of children now.
    pub fn spread(&mut self, reconnect_spread_ms: u64) {
        self.spread_ms = reconnect_spread_ms.min(SPREAD_MS_MAX);
    }

    /// An established link was lost. Whoever has results or urgent matter in hand pokes.
    pub fn lost(&mut self, now: Now, chance: u64) {
        self.wait = Wait::Lost;
        self.due = now.mono.plus(chance % (self.spread_ms + 1));
    }

    /// A dial failed, or the parent refused and may have asked to wait.
    pub fn failed(&mut self, now: Now, retry_after_ms: Option<u64>, chance: u64) {
        let base = BACKOFF_MS_MAX.min(1_000u64.saturating_mul(1 << self.failures.min(20)));
        self.failures += 1;
        let wait = base * (750 + chance % 501) / 1_000;
        self.wait = if retry_after_ms.is_some() { Wait::Told } else { Wait::Failed };
        self.due = now.mono.plus(wait.max(retry_after_ms.map_or(0, |ms| ms + chance % (ms / 4 + 1))));
    }

    /// The parent lives and gave the instant at which it has room. It gives each child its own, so neither our own
    /// back-off nor much of our own spread is laid over it.
    pub fn told(&mut self, now: Now, retry_after_ms: u64, chance: u64) {
        let ms = retry_after_ms.clamp(TOLD_MS_MIN, TOLD_MS_MAX);
        self.wait = Wait::Told;
        self.due = now.mono.plus(ms + chance % (ms / 4 + 1));
    }

    /// A parent, or the gateway before it, said no: who is busy has given an instant; any other "no" is a failure, though
    /// it may ask for a longer wait.
    pub fn refused(&mut self, now: Now, refusal: &Refusal, chance: u64) {
        match (refusal.status, refusal.retry_after_ms) {
            (429, Some(ms)) => self.told(now, ms, chance),
            (_, ms) => self.failed(now, ms, chance),
        }
    }

    /// A poll ended in good order: next about the lease's own instant of the interval, the one after that which this poll
    /// may have been for.
    pub fn polled(&mut self, now: Now, lease: Lease, more: bool, chance: u64) {
        self.wait = Wait::Poll;
        if more {
            self.due = now.mono.plus(chance % POKE_SPREAD_MS);
            return;
        }
        let (next, jitter) = (lease.next_ms(now.node), lease.jitter_ms());
        self.due = now.mono.plus(next - jitter + chance % (2 * jitter + 1));
    }

    /// No dial until [`Rhythm::dial`]: a load test says when.
    pub fn hold(&mut self) {
        self.wait = Wait::Told;
        self.due = Mono(u64::MAX);
    }

    /// The dial that was held back is due.
    pub fn dial(&mut self, now: Now) {
        self.due = now.mono;
    }

    /// Whether the next dial waits for nothing but a network that may be missing.
    pub fn waits_for_network(&self) -> bool {
        self.wait == Wait::Failed
    }

    /// There was no network, and now there is: dial soon, and count failures anew. Not before the instant that a parent
    /// asked for.
    pub fn network_came(&mut self, now: Now, chance: u64) {
        if self.wait == Wait::Failed {
            self.failures = 0;
            self.due = self.due.min(now.mono.plus(chance % NETWORK_SPREAD_MS));
        }
    }

    /// There is something to say: dial soon, unless a dial failed or the parent asked to wait. Answers whether the wait
    /// changed.
    pub fn poke(&mut self, now: Now, poke: Poke, chance: u64) -> bool {
        let within = match (self.wait, poke) {
            // The parent spreads its wakes over the devices.
            (Wait::Poll | Wait::Failed | Wait::Lost, Poke::Wake) => 1,
            (Wait::Poll, _) => POKE_SPREAD_MS,
            (Wait::Lost, Poke::Urgent) => URGENT_SPREAD_MS,
            (Wait::Lost, Poke::Something) | (Wait::Failed, _) | (Wait::Told, _) => return false,
        };
        let soon = now.mono.plus(chance % within);
        if soon < self.due {
            self.due = soon;
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_protocol::time::Millis;

    fn at(ms: u64) -> Now {
        Now { mono: Mono(ms), wall: Millis(ms as i64), node: Millis(ms as i64) }
    }

    #[test]
    fn rly_11_failures_double_to_the_cap_and_keep_their_spread_there() {
        let mut rhythm = Rhythm::new(at(0));
        let mut waits = Vec::new();
        for n in 0..12 {
            rhythm.failed(at(0), None, 250);
            waits.push(rhythm.due().0);
            assert_eq!(waits[n], 300_000.min(1_000 << n), "chance 250 is the middle");
        }
        rhythm.failed(at(0), None, 0);
        let low = rhythm.due().0;
        rhythm.failed(at(0), None, 500);
        assert_eq!((low, rhythm.due().0), (225_000, 375_000), "the spread exists at the cap");
    }

    #[test]
    fn a_lost_link_waits_within_the_parents_spread_and_urgent_matter_at_most_5_s() {
        let mut rhythm = Rhythm::new(at(0));
        rhythm.welcomed(45_000);
        rhythm.lost(at(10), 45_000);
        assert_eq!(rhythm.due(), Mono(45_010));
        assert!(!rhythm.poke(at(10), Poke::Something, 0), "an inventory does not hurry");
        assert_eq!(rhythm.due(), Mono(45_010));
        assert!(rhythm.poke(at(10), Poke::Urgent, 4_999));
        assert_eq!(rhythm.due(), Mono(5_009), "a result does, and it has its own spread");
        assert!(!rhythm.poke(at(11), Poke::Urgent, 4_999), "and never later than before");
        rhythm.welcomed(u64::MAX);
        rhythm.lost(at(0), u64::MAX - 1);
        assert!(rhythm.due().0 <= SPREAD_MS_MAX);
        rhythm.spread(3_000);
        rhythm.lost(at(0), u64::MAX - 1);
        assert!(rhythm.due().0 <= 3_000, "the parent's newest word");
    }

    #[test]
    fn rly_11_a_busy_parents_instant_is_kept_and_nothing_cuts_it_short() {
        let mut rhythm = Rhythm::new(at(0));
        (0..9).for_each(|_| rhythm.failed(at(0), None, 0));
        rhythm.told(at(0), 2_000, 0);
        assert_eq!(rhythm.due(), Mono(2_000), "no back-off over it: the parent lives");
        rhythm.told(at(0), 2_000, 500);
        assert_eq!(rhythm.due(), Mono(2_500));
        assert!(!rhythm.poke(at(0), Poke::Urgent, 0));
        assert_eq!(rhythm.due(), Mono(2_500));
        rhythm.told(at(0), 0, 0);
        assert_eq!(rhythm.due(), Mono(1_000), "never at once");
        rhythm.told(at(0), u64::MAX, 0);
        assert_eq!(rhythm.due(), Mono(3_600_000), "never for ever");
    }

    #[test]
    fn what_is_held_back_waits_for_the_word_alone() {
        let mut rhythm = Rhythm::new(at(0));
        rhythm.hold();
        for poke in [Poke::Something, Poke::Wake, Poke::Urgent] {
            assert!(!rhythm.poke(at(1), poke, 0), "{poke:?}");
        }
        assert_eq!((rhythm.due(), rhythm.waits_for_network()), (Mono(u64::MAX), false));
        rhythm.dial(at(7));
        assert_eq!(rhythm.due(), Mono(7), "without back-off");
    }

    #[test]
    fn a_poll_comes_at_its_own_phase_and_a_result_brings_it_forward() {
        let mut rhythm = Rhythm::new(at(0));
        rhythm.polled(at(500), Lease { interval_ms: 1_000, phase_ms: 300, waiter: 0 }, false, 50);
        assert_eq!(rhythm.due(), Mono(1_300));
        assert!(rhythm.poke(at(600), Poke::Something, 7));
        assert_eq!(rhythm.due(), Mono(607));
        rhythm.failed(at(0), Some(60_000), 0);
        assert!(!rhythm.poke(at(1), Poke::Urgent, 0), "a parent's wish to wait is not cut short");
        assert!(rhythm.due().0 >= 60_000);
    }

    #[test]
    fn adm_15_a_wake_brings_a_poll_forward_and_keeps_the_schedule() {
        let lease = Lease { interval_ms: 3_600_000, phase_ms: 300_000, waiter: 0 };
        let mut rhythm = Rhythm::new(at(0));
        rhythm.polled(at(500_000), lease, false, 0);
        assert_eq!(rhythm.due(), Mono(3_720_000), "a twentieth before its instant");
        assert!(rhythm.poke(at(600_000), Poke::Wake, 499));
        assert_eq!(rhythm.due(), Mono(600_000), "the parent spreads its wakes, the device adds nothing");
        rhythm.polled(at(601_000), lease, false, 0);
        assert_eq!(rhythm.due(), Mono(3_720_000), "the next poll is where it was");
        rhythm.failed(at(602_000), None, 500);
        assert!(rhythm.poke(at(602_000), Poke::Wake, 0), "the parent lives, whatever a dial met");
        rhythm.failed(at(602_000), Some(9_000), 0);
        assert!(!rhythm.poke(at(602_000), Poke::Wake, 0), "but what it asked for counts");
        rhythm.told(at(602_000), 9_000, 0);
        assert!(!rhythm.poke(at(602_000), Poke::Wake, 0));
    }

    #[test]
    fn adm_8_a_poll_is_a_twentieth_around_its_instant_and_an_early_one_is_not_repeated() {
        let lease = Lease { interval_ms: 1_000, phase_ms: 300, waiter: 0 };
        let due = |now: u64, chance: u64| {
            let mut rhythm = Rhythm::new(at(0));
            rhythm.polled(at(now), lease, false, chance);
            rhythm.due().0
        };
        assert_eq!([0, 50, 100].map(|chance| due(300, chance)), [1_250, 1_300, 1_350]);
        assert_eq!(due(300, u64::MAX), due(300, u64::MAX % 101));
        assert_eq!(due(1_249, 0), 1_250, "brought forward by a result, it is due at its instant still");
        assert_eq!(due(1_250, 0), 2_250, "the earliest poll of an instant was that one");
        assert_eq!(due(1_250, 100), 2_350, "a tenth over the interval, and no more");
        let mut rhythm = Rhythm::new(at(0));
        rhythm.polled(at(0), Lease { interval_ms: u64::MAX, phase_ms: u64::MAX, waiter: 0 }, false, u64::MAX);
        assert!(rhythm.due().0 <= Lease::INTERVAL_MS_MAX / 10 * 11, "a parent keeps nobody away for ever");
        rhythm.polled(at(7), Lease { interval_ms: 0, phase_ms: 0, waiter: 0 }, false, 3);
        assert_eq!(rhythm.due(), Mono(8));
    }

    #[test]
    fn adm_12_a_network_that_comes_is_used_at_once_but_not_before_the_parents_instant() {
        let mut rhythm = Rhythm::new(at(0));
        (0..9).for_each(|_| rhythm.failed(at(0), None, 250));
        assert_eq!((rhythm.due(), rhythm.waits_for_network()), (Mono(256_000), true));
        rhythm.network_came(at(100_000), NETWORK_SPREAD_MS - 1);
        assert_eq!(rhythm.due(), Mono(102_999));
        rhythm.failed(at(103_000), None, 250);
        assert_eq!(rhythm.due(), Mono(104_000), "what failed before says nothing of the network that came");
        rhythm.network_came(at(103_999), 2_000);
        assert_eq!(rhythm.due(), Mono(104_000), "never later than before");
        for told in [|r: &mut Rhythm| r.told(at(0), 60_000, 0), |r: &mut Rhythm| r.failed(at(0), Some(60_000), 0)] {
            told(&mut rhythm);
            rhythm.network_came(at(1), 0);
            assert_eq!((rhythm.due(), rhythm.waits_for_network()), (Mono(60_000), false));
        }
    }
}
