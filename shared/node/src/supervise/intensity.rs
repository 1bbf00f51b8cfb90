//! How many faults one child may have before its parent stops restarting it. Pure: ends and `now` go in, a verdict
//! comes out. What the verdict does to the rest of the tree is `family`'s business.

use std::collections::VecDeque;

use branchline_protocol::time::Mono;
use serde::{Deserialize, Serialize};

use super::exit::Exit;

/// Wait before the second restart of an episode; it doubles with each further fault. The first restart is immediate,
/// because most faults are caused by one message and a fresh value goes on with the next one.
const RESTART_DELAY_MS: u64 = 100;
/// Longest wait before a restart: with a larger limit than the usual five the doubling must end somewhere.
const RESTART_DELAY_MS_MAX: u64 = 5_000;

/// How many faults within which time are too many. TOP-21 and DESIGN 4: the fifth in 60 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// This many faults within the window are past the intensity; 0 is read as 1.
    pub faults: u32,
    /// Length of the window in milliseconds; a fault exactly this old still counts.
    pub window_ms: u64,
}

impl Default for Limit {
    fn default() -> Self {
        Limit { faults: 5, window_ms: 60_000 }
    }
}

/// Whether the parent builds a fresh value after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFault {
    /// Build a fresh one from the factory.
    Restart,
    /// Never: its other end comes back by itself (a session's device reconnects). Faults are counted all the same.
    Never,
}

/// What follows when a child is past its intensity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PastIntensity {
    /// It stays down and is reported; the rest of the node goes on. For per-child actors.
    Park,
    /// The node cannot do without it: the process ends with this code and the operating system restarts it.
    EndProcess(i32),
}

/// What the parent has to do about an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Build a fresh value after this many milliseconds.
    Restart {
        /// 0 for the first fault of an episode.
        delay_ms: u64,
    },
    /// Nothing: it ended as it should, or it is never restarted.
    Leave,
    /// Past its intensity: leave it down and report it.
    Park,
    /// Past its intensity: the process has to end with this code.
    EndProcess(i32),
}

/// A fault that was recorded: when and what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// On the node's monotonic clock.
    pub at: Mono,
    /// The end in words, such as `panicked: index out of bounds`.
    pub text: String,
}

/// The record of one child's recent faults.
///
/// An *episode* is a row of faults with no gap longer than the window. The first fault of an episode is kept until the
/// next episode begins, because the later ones are usually its consequences.
#[derive(Clone, Debug)]
pub struct Intensity {
    limit: Limit,
    on_fault: OnFault,
    past: PastIntensity,
    /// Instants of the newest faults, oldest first; never more than `limit.faults`.
    recent: VecDeque<Mono>,
    first_fault: Option<Fault>,
}

impl Intensity {
    /// A child with a clean record.
    pub fn new(limit: Limit, on_fault: OnFault, past: PastIntensity) -> Self {
        let limit = Limit { faults: limit.faults.max(1), ..limit };
        Intensity { limit, on_fault, past, recent: VecDeque::new(), first_fault: None }
    }

    /// Records an end of the child's own doing and says what follows. Ends of a child that its parent was taking down
    /// do not belong here: a casualty must neither count nor overwrite the first fault.
    pub fn on_exit(&mut self, now: Mono, exit: &Exit) -> Verdict {
        if !exit.is_fault() {
            return Verdict::Leave;
        }
        self.forget_old(now);
        if self.recent.is_empty() {
            self.first_fault = Some(Fault { at: now, text: exit.to_string() });
        }
        self.recent.push_back(now);
        let count = self.recent.len() as u32;
        if count >= self.limit.faults {
            while self.recent.len() as u32 > self.limit.faults {
                self.recent.pop_front();
            }
            return match self.past {
                PastIntensity::Park => Verdict::Park,
                PastIntensity::EndProcess(code) => Verdict::EndProcess(code),
            };
        }
        match self.on_fault {
            OnFault::Restart => Verdict::Restart { delay_ms: delay_ms(count) },
            OnFault::Never => Verdict::Leave,
        }
    }

    /// The fault that began the newest episode.
    pub fn first_fault(&self) -> Option<&Fault> {
        self.first_fault.as_ref()
    }

    /// Whether no fault counts any more at `now`.
    pub fn is_quiet(&self, now: Mono) -> bool {
        self.recent.back().is_none_or(|at| now.since(*at) > self.limit.window_ms)
    }

    /// Wipes the record: an operator released the parked child.
    pub fn forgive(&mut self) {
        self.recent.clear();
        self.first_fault = None;
    }

    fn forget_old(&mut self, now: Mono) {
        while self.recent.front().is_some_and(|at| now.since(*at) > self.limit.window_ms) {
            self.recent.pop_front();
        }
    }
}

/// 0, 100, 200, 400, … for the 1st, 2nd, 3rd, 4th, … fault of the window.
fn delay_ms(count: u32) -> u64 {
    match count {
        0 | 1 => 0,
        n => (RESTART_DELAY_MS << (n - 2).min(16)).min(RESTART_DELAY_MS_MAX),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn restarting() -> Intensity {
        Intensity::new(Limit::default(), OnFault::Restart, PastIntensity::Park)
    }

    fn faults_at(core: &mut Intensity, instants: &[u64]) -> Vec<Verdict> {
        instants.iter().map(|ms| core.on_exit(Mono(*ms), &Exit::failed(format!("at {ms}")))).collect()
    }

    #[test]
    fn top_21_the_fourth_fault_in_60_s_restarts_and_the_fifth_parks() {
        let verdicts = faults_at(&mut restarting(), &[0, 10_000, 20_000, 30_000, 60_000]);
        assert_eq!(
            verdicts,
            [
                Verdict::Restart { delay_ms: 0 },
                Verdict::Restart { delay_ms: 100 },
                Verdict::Restart { delay_ms: 200 },
                Verdict::Restart { delay_ms: 400 },
                Verdict::Park,
            ]
        );
    }

    #[test]
    fn top_21_a_fault_60_s_ago_counts_and_one_a_millisecond_older_does_not() {
        assert_eq!(faults_at(&mut restarting(), &[0, 1, 2, 3, 60_000])[4], Verdict::Park);
        assert_eq!(faults_at(&mut restarting(), &[0, 1, 2, 3, 60_001])[4], Verdict::Restart { delay_ms: 400 });
    }

    #[test]
    fn past_its_intensity_a_singleton_ends_the_process_with_its_code() {
        let mut core = Intensity::new(Limit::default(), OnFault::Restart, PastIntensity::EndProcess(71));
        assert_eq!(faults_at(&mut core, &[0, 1, 2, 3, 4])[4], Verdict::EndProcess(71));
    }

    #[test]
    fn one_that_is_never_restarted_is_left_four_times_and_parked_the_fifth() {
        let mut core = Intensity::new(Limit::default(), OnFault::Never, PastIntensity::Park);
        let verdicts = faults_at(&mut core, &[0, 1, 2, 3, 4]);
        assert_eq!(verdicts[..4], [Verdict::Leave; 4]);
        assert_eq!(verdicts[4], Verdict::Park);
    }

    #[test]
    fn ends_without_fault_are_left_and_do_not_count() {
        let mut core = restarting();
        for exit in [Exit::Done, Exit::Stopped, Exit::PeerGone] {
            assert_eq!(core.on_exit(Mono(0), &exit), Verdict::Leave);
        }
        assert_eq!(core.first_fault(), None);
        assert_eq!(faults_at(&mut core, &[1])[0], Verdict::Restart { delay_ms: 0 });
    }

    #[test]
    fn the_first_fault_stands_for_its_episode_and_a_later_episode_has_its_own() {
        let mut core = restarting();
        faults_at(&mut core, &[7, 8, 9]);
        assert_eq!(core.first_fault(), Some(&Fault { at: Mono(7), text: "failed: at 7".into() }));
        faults_at(&mut core, &[9 + 60_001]);
        assert_eq!(core.first_fault().map(|fault| fault.at), Some(Mono(60_010)));
    }

    #[test]
    fn a_limit_of_zero_is_past_at_the_first_fault() {
        let mut core = Intensity::new(Limit { faults: 0, window_ms: 0 }, OnFault::Restart, PastIntensity::Park);
        assert_eq!(core.on_exit(Mono(0), &Exit::failed("x")), Verdict::Park);
    }

    #[test]
    fn forgiven_it_starts_with_a_clean_record() {
        let mut core = restarting();
        faults_at(&mut core, &[0, 1, 2, 3, 4]);
        core.forgive();
        assert!(core.is_quiet(Mono(4)));
        assert_eq!(faults_at(&mut core, &[5])[0], Verdict::Restart { delay_ms: 0 });
    }

    proptest! {
        /// The plain model: keep every fault for ever and count those within the window.
        #[test]
        fn the_verdict_equals_that_of_a_model_that_forgets_nothing(
            steps in prop::collection::vec((0u64..30_000, any::<bool>()), 1..60),
            faults in 1u32..8,
        ) {
            let mut core = Intensity::new(Limit { faults, window_ms: 60_000 }, OnFault::Restart, PastIntensity::Park);
            let (mut now, mut all) = (0u64, Vec::new());
            for (gap, fault) in steps {
                now += gap;
                let exit = if fault { Exit::panicked("p") } else { Exit::PeerGone };
                let verdict = core.on_exit(Mono(now), &exit);
                if !fault {
                    prop_assert_eq!(verdict, Verdict::Leave);
                    continue;
                }
                all.push(now);
                let counted = all.iter().filter(|at| now - **at <= 60_000).count() as u32;
                if counted >= faults {
                    prop_assert_eq!(verdict, Verdict::Park);
                } else {
                    prop_assert_eq!(verdict, Verdict::Restart { delay_ms: delay_ms(counted) });
                }
                prop_assert!(core.recent.len() as u32 <= faults);
                prop_assert!(core.first_fault().is_some());
            }
        }
    }
}
