//! When a process that ended is started again: as an init system would.

use branchline_node::node::exit_code;
use std::time::Duration;

/// A process that lived this long was well; its next end starts the count anew.
const WELL: Duration = Duration::from_secs(10);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Ends in a row before its first start that `up` puts up with.
const FIRST_STARTS: u32 = 5;

/// What follows an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Start it again after this pause.
    Again(Duration),
    /// It never listened, and another try would end the same way.
    GiveUp,
}

/// The rule's memory of one process.
#[derive(Debug, Default)]
pub struct Restart {
    in_a_row: u32,
}

impl Restart {
    /// The process ended with `code` (none by a signal) after `lived`; `listened` says whether it ever did under
    /// this `up`.
    pub fn ended(&mut self, code: Option<i32>, lived: Duration, listened: bool) -> Next {
        self.in_a_row = if lived >= WELL { 1 } else { self.in_a_row + 1 };
        let hopeless = [exit_code::CONFIGURATION, exit_code::STATE, exit_code::LISTEN];
        if !listened && (code.is_some_and(|c| hopeless.contains(&c)) || self.in_a_row >= FIRST_STARTS) {
            return Next::GiveUp;
        }
        // 100 ms, then 1, 2, 4 … 30 s.
        let pause = match self.in_a_row {
            1 => Duration::from_millis(100),
            n => Duration::from_secs(1 << (n - 2).min(5)).min(PAUSE_MAX),
        };
        Next::Again(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_ran_is_always_started_again_and_more_slowly_each_time() {
        let mut rule = Restart::default();
        let pauses: Vec<u128> = (0..9)
            .map(|_| match rule.ended(None, Duration::ZERO, true) {
                Next::Again(pause) => pause.as_millis(),
                Next::GiveUp => panic!("given up"),
            })
            .collect();
        assert_eq!(pauses, [100, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(rule.ended(Some(70), WELL, true), Next::Again(Duration::from_millis(100)));
    }

    #[test]
    fn a_wrong_configuration_is_not_tried_twice_and_a_late_parent_is() {
        for code in [2, 5, 6] {
            assert_eq!(Restart::default().ended(Some(code), Duration::ZERO, false), Next::GiveUp, "{code}");
        }
        let mut rule = Restart::default();
        for _ in 1..FIRST_STARTS {
            assert!(matches!(rule.ended(Some(4), Duration::ZERO, false), Next::Again(_)));
        }
        assert_eq!(rule.ended(Some(4), Duration::ZERO, false), Next::GiveUp);
    }
}
