//! How long to wait before a trunk is dialled again. Pure.

use branchline_node::random::Random;

const FIRST_MS: u64 = 1_000;
const MAX_MS: u64 = 30_000;

/// 1 s · 2ⁿ, at most 30 s, times uniform(0.75, 1.25), so that the spread exists at the cap, too.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure, in milliseconds.
    pub fn failed(&mut self, random: &dyn Random) -> u64 {
        let base = FIRST_MS.checked_shl(self.failures).map_or(MAX_MS, |ms| ms.min(MAX_MS));
        self.failures = (self.failures + 1).min(16);
        base * 3 / 4 + random.up_to(base / 2)
    }

    /// It worked: the next failure is the first again.
    pub fn worked(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_node::random::SeededRandom;

    #[test]
    fn waits_double_to_the_cap_with_a_quarter_either_way_and_begin_again_after_success() {
        let random = SeededRandom::shared(3);
        let mut backoff = Backoff::default();
        let mut seen = Vec::new();
        for base in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000].into_iter().chain([30_000; 80]) {
            let wait = backoff.failed(&*random);
            assert!((base * 3 / 4..=base * 5 / 4).contains(&wait), "{wait} for {base}");
            seen.push(wait);
        }
        let at_cap = &seen[5..];
        assert!(at_cap.iter().any(|w| *w < 27_000) && at_cap.iter().any(|w| *w > 33_000), "spread at the cap");
        backoff.worked();
        assert!(backoff.failed(&*random) <= 1_250);
    }
}
