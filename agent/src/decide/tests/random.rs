//! Any order of events, with a crash at any point: nothing starts twice, everything taken ends, once.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Step {
    Deliver(Vec<u64>),
    Refresh(u64),
    Forged(u64),
    Commit,
    End(u64),
    Collected,
    Connect(bool),
    Down,
    Executor,
    Tick,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(1..8u64, 1..4).prop_map(Step::Deliver),
        1 => (10..12u64).prop_map(Step::Refresh),
        1 => (1..8u64).prop_map(Step::Forged),
        8 => Just(Step::Commit),
        4 => (1..8u64).prop_map(Step::End),
        2 => Just(Step::Collected),
        1 => any::<bool>().prop_map(Step::Connect),
        1 => Just(Step::Down),
        1 => Just(Step::Executor),
        1 => Just(Step::Tick),
        2 => Just(Step::Crash),
    ]
}

/// The world outside: what was started, what a parent was told.
#[derive(Default)]
struct World {
    started: BTreeMap<u64, usize>,
    taken: BTreeSet<u64>,
    awaited: BTreeSet<u64>,
    ended: BTreeSet<u64>,
}

impl World {
    fn see(&mut self, effects: &[Effect], disk: &Disk) -> Result<(), TestCaseError> {
        for effect in effects {
            match effect {
                Effect::Start(start) => {
                    let n = start.order.number;
                    let done = disk.results().iter().any(|r| r.order.number == n);
                    prop_assert!(!done, "{n} started after its end");
                    *self.started.entry(n).or_default() += 1;
                    prop_assert_eq!(self.started[&n], 1, "{} started again, crash or not", n);
                    self.awaited.insert(n);
                }
                Effect::Resume(order) => {
                    prop_assert!(!self.ended.contains(&order.number));
                    self.awaited.insert(order.number);
                }
                _ => {}
            }
        }
        for n in taken(effects) {
            let key = crate::decide::journal_key(number(n));
            prop_assert!(disk.keys(Table::Journal).contains(&key), "{n} was acknowledged and is not on disk");
            self.taken.insert(n);
        }
        let mut results: Vec<u64> = disk.results().iter().map(|r| r.order.number).collect();
        results.sort_unstable();
        let all = results.len();
        results.dedup();
        prop_assert_eq!(all, results.len(), "an order with two results");
        self.ended.extend(results);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn job_13_whatever_happens_nothing_runs_twice_and_everything_taken_ends_once(
        steps in prop::collection::vec(step(), 0..60)
    ) {
        let mut bench = Bench::new();
        let mut world = World::default();
        let effects = bench.wake();
        world.see(&effects, &bench.disk)?;
        bench.connect(None);
        for step in steps {
            let effects = match step {
                Step::Deliver(numbers) => bench.deliver(numbers.into_iter().map(script_order).collect()),
                Step::Refresh(n) => bench.deliver(vec![order(n, REFRESH_INVENTORY, refresh(n % 2 == 0))]),
                Step::Forged(n) => {
                    let stranger = Signer::from_seed(&[66; 32]);
                    bench.deliver(vec![sign(payload(n, RUN_SCRIPT, &script()), script(), mine(), &stranger)])
                }
                Step::Commit if !bench.pending.is_empty() => bench.commit(),
                Step::End(n) if world.awaited.remove(&n) => bench.event(ended(n, finished(0))),
                Step::Commit | Step::End(_) => continue,
                Step::Collected => bench.event(Event::Collected(inventory::snapshot(1))),
                Step::Connect(poll) => {
                    let lease = poll.then_some(Lease { interval_ms: 1_000, phase_ms: 0, waiter: 0 });
                    bench.event(Event::Up(Box::new(welcome(lease))))
                }
                Step::Down => bench.event(Event::Down),
                Step::Executor => {
                    world.awaited.clear();
                    bench.event(Event::ExecutorUp)
                }
                Step::Tick => {
                    bench.pass(1_500);
                    bench.event(Event::Tick)
                }
                Step::Crash => {
                    world.awaited.clear();
                    bench.crash();
                    let effects = bench.wake();
                    bench.connect(None);
                    effects
                }
            };
            world.see(&effects, &bench.disk)?;
        }
        // A crash, and then everything may come to its end.
        world.awaited.clear();
        bench.crash();
        let effects = bench.wake();
        world.see(&effects, &bench.disk)?;
        for _ in 0..40 {
            let mut effects = bench.settle(Event::Collected(inventory::snapshot(1)));
            while let Some(n) = world.awaited.pop_first() {
                effects.extend(bench.settle(ended(n, JobLeft::Cut)));
            }
            world.see(&effects, &bench.disk)?;
        }
        let results: BTreeSet<u64> = bench.disk.results().iter().map(|r| r.order.number).collect();
        prop_assert!(world.taken.is_subset(&results), "taken {:?}, ended {:?}", world.taken, results);
        prop_assert_eq!(bench.core.figures().open_orders, 0);
    }
}
