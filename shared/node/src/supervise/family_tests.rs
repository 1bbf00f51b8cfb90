//! The rules of `family`, without actors: ends and instants go in, effects come out.

use std::collections::BTreeMap;

use branchline_protocol::time::Mono;
use proptest::prelude::*;

use super::error::{AddError, AdoptError};
use super::exit::Exit;
use super::family::{Effect, Family, Plan, TAKEDOWN_MS};
use super::guard::{ChildId, Generation};
use super::intensity::{Limit, OnFault, PastIntensity};
use super::report::{ChildLife, StopReport};
use super::workers::{REMEMBERED_MAX, WorkerLimits};

#[test]
fn top_21_a_fault_starts_the_next_generation_and_nobody_else() {
    let mut home = Home::with(&["a", "b"]);
    assert_eq!(home.fault("a", 0), [Effect::Start(ChildId(1), 2)]);
    assert_eq!(home.state("a"), (ChildLife::Running, 2, 1));
    assert_eq!(home.state("b"), (ChildLife::Running, 1, 0));
}

#[test]
fn a_stale_report_of_an_old_generation_is_ignored() {
    let mut home = Home::with(&["a"]);
    home.fault("a", 0);
    let before = home.family.snapshot();
    assert_eq!(home.family.exited(ChildId(1), 1, Some(Exit::failed("late")), Mono(1)), []);
    assert_eq!(home.family.snapshot(), before);
}

#[test]
fn what_needs_the_failed_one_is_stopped_top_down_and_rebuilt_after_it() {
    let mut home = Home::tower();
    // Asked: the session worker first, then the children in reverse order; the neighbour not at all.
    let session = home.family.adopt("session", "device", Mono(0)).unwrap();
    assert_eq!(home.fault("store", 10), [Effect::Ask(session.id), Effect::Ask(ChildId(4)), Effect::Ask(ChildId(2))]);
    assert_eq!(home.end("dispatcher", None, 11), []);
    assert_eq!(home.end("api", None, 12), []);
    // The store waits for the last of them, and then they come back in order of addition.
    assert_eq!(
        home.family.exited(session.id, 1, Some(Exit::Stopped), Mono(13)),
        [Effect::Start(ChildId(1), 2), Effect::Start(ChildId(2), 2), Effect::Start(ChildId(4), 2)]
    );
    assert_eq!(home.state("neighbour"), (ChildLife::Running, 1, 0));
}

#[test]
fn casualties_neither_count_nor_overwrite_the_first_fault() {
    let mut home = Home::tower();
    for round in 0..4 {
        let now = round * 1_000;
        home.fault("store", now);
        home.end("api", Some(Exit::panicked("no store")), now + 1);
        home.end("dispatcher", Some(Exit::failed("no store")), now + 2);
        home.family.tick(Mono(now + 999));
    }
    let seen = home.family.snapshot();
    let (store, api) = (seen.child("store").unwrap(), seen.child("api").unwrap());
    assert_eq!(
        store.first_fault.as_ref().map(|fault| (fault.at, fault.text.as_str())),
        Some((Mono(0), "failed: at 0"))
    );
    assert_eq!((api.panics, api.casualties, api.first_fault.clone()), (4, 4, None));
    // Its own first fault after four as a casualty is met with an immediate restart: its record is clean.
    assert_eq!(home.fault("api", 4_000), [Effect::Start(ChildId(4), 6)]);
}

#[test]
fn a_dependant_that_does_not_stop_is_cut_at_the_takedown_time_and_not_before() {
    let mut home = Home::tower();
    home.fault("store", 0);
    home.end("api", None, 1);
    assert_eq!(home.family.next_due(), Some(Mono(TAKEDOWN_MS)));
    assert_eq!(home.family.tick(Mono(TAKEDOWN_MS - 1)), []);
    let effects = home.family.tick(Mono(TAKEDOWN_MS));
    assert_eq!(effects[0], Effect::Cut(ChildId(2), "dispatcher".into()));
    assert_eq!(effects[1], Effect::Start(ChildId(1), 2));
    assert_eq!(home.state("dispatcher"), (ChildLife::Running, 2, 1));
}

#[test]
fn top_21_past_its_intensity_a_child_is_parked_with_its_dependants_waiting_until_released() {
    let mut home = Home::tower();
    for at in 0..4 {
        home.fault("dispatcher", at * 10_000);
        home.end("api", None, at * 10_000 + 1);
        home.family.tick(Mono(at * 10_000 + 5_000));
    }
    let effects = home.fault("dispatcher", 40_000);
    assert_eq!(effects, [Effect::Parked("dispatcher".into()), Effect::Ask(ChildId(4))]);
    assert_eq!(home.end("api", None, 40_001), []);
    assert_eq!(home.family.next_due(), None, "nothing is due while the parked one stays parked");
    assert_eq!(home.state("dispatcher").0, ChildLife::Parked);
    assert_eq!(home.state("store"), (ChildLife::Running, 1, 0));
    let (found, effects) = home.family.release("dispatcher", Mono(50_000));
    assert!(found);
    assert_eq!(effects, [Effect::Start(ChildId(2), 6), Effect::Start(ChildId(4), 6)]);
    assert!(!home.family.release("dispatcher", Mono(50_001)).0);
}

#[test]
fn past_its_intensity_a_singleton_ends_the_node_once_and_nothing_is_rebuilt() {
    let mut home = Home::with(&["other"]);
    home.add("store", &[], PastIntensity::EndProcess(72));
    let mut last = Vec::new();
    for at in 0..5 {
        home.family.tick(Mono(at * 1_000));
        last = home.fault("store", at * 1_000);
    }
    let [Effect::End(end)] = &last[..] else { panic!("{last:?}") };
    assert_eq!((end.exit_code, end.child.as_str()), (72, "store"));
    assert_eq!(end.first_fault.as_ref().map(|fault| fault.at), Some(Mono(0)));
    assert_eq!(home.fault("other", 5_000), []);
    assert_eq!(home.try_add("more", &[]), Err(AddError::Ending));
}

#[test]
fn silence_unasked_is_a_fault_of_a_child_and_an_ordinary_end_of_a_worker() {
    let mut home = Home::with(&["a"]);
    home.kind("session", &[], 300);
    assert_eq!(home.end("a", None, 0), [Effect::Start(ChildId(1), 2)]);
    assert_eq!(home.family.snapshot().child("a").unwrap().failures, 1);
    let worker = home.family.adopt("session", "device", Mono(0)).unwrap();
    home.family.exited(worker.id, 1, None, Mono(1));
    let seen = home.family.snapshot();
    let sessions = seen.workers_of("session").unwrap();
    assert_eq!((sessions.live, sessions.failures), (0, 0));
}

#[test]
fn one_that_finished_its_work_stays_ended_and_still_carries_what_needs_it() {
    let mut home = Home::with(&["migration"]);
    home.end("migration", Some(Exit::Done), 0);
    assert_eq!(home.state("migration").0, ChildLife::Ended);
    home.add("api", &["migration"], PastIntensity::Park);
    assert_eq!(home.state("api"), (ChildLife::Running, 1, 0));
}

#[test]
fn a_need_must_be_known_and_a_name_free() {
    let mut home = Home::with(&["a"]);
    assert_eq!(home.try_add("b", &["c"]), Err(AddError::UnknownNeed("c".into())));
    assert_eq!(home.try_add("b", &["b"]), Err(AddError::UnknownNeed("b".into())));
    assert_eq!(home.try_add("a", &[]), Err(AddError::NameTaken("a".into())));
    home.kind("session", &["a"], 1);
    assert_eq!(home.try_add("session", &[]), Err(AddError::NameTaken("session".into())));
}

#[test]
fn top_21_a_worker_name_is_parked_at_its_fifth_fault_and_other_names_go_on() {
    let mut home = Home::with(&[]);
    home.kind("session", &[], 300);
    for at in 0..5 {
        let worker = home.family.adopt("session", "bad", Mono(at)).unwrap();
        assert_eq!(worker.generation, at + 1);
        let effects = home.family.exited(worker.id, worker.generation, Some(Exit::panicked("bug")), Mono(at));
        let parked = if at == 4 { vec![Effect::Parked("bad".into())] } else { vec![] };
        assert_eq!(effects, parked);
    }
    assert_eq!(home.family.adopt("session", "bad", Mono(5)), Err(AdoptError::Parked));
    assert!(home.family.adopt("session", "good", Mono(5)).is_ok());
    let seen = home.family.snapshot();
    let sessions = seen.workers_of("session").unwrap();
    assert_eq!((sessions.panics, sessions.restarts), (5, 4));
    assert_eq!(sessions.parked, ["bad"]);
    assert_eq!(sessions.first_fault.as_ref().map(|fault| fault.text.as_str()), Some("bad: panicked: bug"));
    assert!(home.family.release("bad", Mono(6)).0);
    assert!(home.family.adopt("session", "bad", Mono(6)).is_ok());
}

#[test]
fn workers_are_adopted_up_to_the_bound_and_refused_one_past_it() {
    let mut home = Home::with(&["store"]);
    home.kind("session", &["store"], 2);
    let first = home.family.adopt("session", "1", Mono(0)).unwrap();
    home.family.adopt("session", "2", Mono(0)).unwrap();
    assert_eq!(home.family.adopt("session", "3", Mono(0)), Err(AdoptError::Full));
    home.family.exited(first.id, 1, Some(Exit::PeerGone), Mono(1));
    assert!(home.family.adopt("session", "3", Mono(1)).is_ok());
    assert_eq!(home.family.adopt("poll", "3", Mono(1)), Err(AdoptError::UnknownKind("poll".into())));
    home.fault("store", 2);
    assert_eq!(home.family.adopt("session", "4", Mono(2)), Err(AdoptError::NeedDown));
}

#[test]
fn faulty_names_are_remembered_up_to_the_bound_and_the_quietest_goes_first() {
    let mut home = Home::with(&[]);
    home.kind("session", &[], 1);
    let mut now = Mono(0);
    let mut fault = |home: &mut Home, name: usize| {
        now = now.plus(1);
        let worker = home.family.adopt("session", &name.to_string(), now).unwrap();
        home.family.exited(worker.id, worker.generation, Some(Exit::failed("x")), now);
        worker.generation
    };
    for name in 0..REMEMBERED_MAX {
        fault(&mut home, name);
    }
    assert_eq!(fault(&mut home, 0), 2, "at the bound the first name is still remembered");
    fault(&mut home, REMEMBERED_MAX);
    // All of this is one window: name 1 would be remembered by its age.
    assert_eq!(fault(&mut home, 1), 1, "one past the bound the quietest was forgotten");
}

#[test]
fn an_orderly_stop_asks_workers_then_children_in_reverse_order() {
    let mut home = Home::tower();
    let session = home.family.adopt("session", "device", Mono(0)).unwrap();
    assert_eq!(home.family.stop(10_000, Mono(0)), [Effect::Ask(session.id)]);
    assert_eq!(home.family.adopt("session", "late", Mono(0)), Err(AdoptError::Ending));
    assert_eq!(home.family.exited(session.id, 1, Some(Exit::Stopped), Mono(1)), [Effect::Ask(ChildId(4))]);
    assert_eq!(home.end("api", Some(Exit::Stopped), 2), [Effect::Ask(ChildId(3))]);
    assert_eq!(home.end("neighbour", Some(Exit::panicked("x")), 3), [Effect::Ask(ChildId(2))]);
    assert_eq!(home.end("dispatcher", Some(Exit::Done), 4), [Effect::Ask(ChildId(1))]);
    let report = StopReport {
        drained: ["device", "api", "dispatcher", "store"].map(String::from).into(),
        faulted: vec!["neighbour".into()],
        cut: vec![],
    };
    assert_eq!(home.end("store", Some(Exit::Stopped), 5), [Effect::Stopped(report)]);
    assert_eq!(home.family.next_due(), None);
}

#[test]
fn a_stuck_child_is_cut_after_its_share_and_leaves_the_rest_their_time() {
    let mut home = Home::with(&["store", "stuck"]);
    assert_eq!(home.family.stop(10_000, Mono(0)), [Effect::Ask(ChildId(2))]);
    assert_eq!(home.family.next_due(), Some(Mono(5_000)));
    assert_eq!(home.family.tick(Mono(4_999)), []);
    let effects = home.family.tick(Mono(5_000));
    assert_eq!(effects, [Effect::Cut(ChildId(2), "stuck".into()), Effect::Ask(ChildId(1))]);
    assert_eq!(home.family.next_due(), Some(Mono(10_000)));
    let effects = home.end("store", Some(Exit::Stopped), 9_999);
    let report = StopReport { drained: vec!["store".into()], faulted: vec![], cut: vec!["stuck".into()] };
    assert_eq!(effects, [Effect::Stopped(report)]);
}

#[test]
fn a_stop_without_time_cuts_everyone_and_an_empty_one_is_done_at_once() {
    let mut home = Home::with(&["a"]);
    let report = StopReport { cut: vec!["a".into()], ..StopReport::default() };
    assert_eq!(
        home.family.stop(0, Mono(0)),
        [Effect::Ask(ChildId(1)), Effect::Cut(ChildId(1), "a".into()), Effect::Stopped(report)]
    );
    assert_eq!(Home::with(&[]).family.stop(0, Mono(0)), [Effect::Stopped(StopReport::default())]);
}

proptest! {
    /// Whatever faults in whatever order: a child starts only while all it needs lives, never twice at a time, with
    /// generations that go up by one; and once everything asked to stop has stopped, nobody is left waiting for nothing.
    #[test]
    fn a_child_never_lives_without_what_it_needs(steps in prop::collection::vec((0usize..4, 0u64..3_000, 0u8..3), 1..80)) {
        let mut home = Home::tower();
        let names = ["store", "dispatcher", "neighbour", "api"];
        let needs: [&[u64]; 4] = [&[], &[1], &[], &[2]];
        let mut running: BTreeMap<u64, Generation> = (1..=4).map(|id| (id, 1)).collect();
        let mut newest = running.clone();
        let mut now = 0;
        for (who, gap, how) in steps {
            now += gap;
            let exit = match how {
                0 => Some(Exit::panicked("p")),
                1 => Some(Exit::failed("f")),
                _ => None,
            };
            let effects = match running.remove(&(who as u64 + 1)) {
                Some(_) => home.end(names[who], exit, now),
                None => home.family.tick(Mono(now)),
            };
            for effect in effects {
                match effect {
                    Effect::Start(ChildId(id), generation) => {
                        prop_assert_eq!(generation, newest[&id] + 1);
                        newest.insert(id, generation);
                        prop_assert_eq!(running.insert(id, generation), None);
                        for need in needs[id as usize - 1] {
                            prop_assert!(running.contains_key(need), "{} started without {}", id, need);
                        }
                    }
                    Effect::Cut(ChildId(id), _) => {
                        running.remove(&id);
                    }
                    Effect::Ask(_) | Effect::Parked(_) => {}
                    Effect::End(_) | Effect::Stopped(_) => prop_assert!(false, "{:?}", effect),
                }
            }
        }
        home.family.tick(Mono(now + TAKEDOWN_MS));
        let seen = home.family.snapshot();
        let parked = |name: &str| seen.child(name).unwrap().state == ChildLife::Parked;
        for child in &seen.children {
            let held = parked(&child.name)
                || (child.name != "neighbour" && parked("store"))
                || (child.name == "api" && parked("dispatcher"));
            prop_assert_eq!(child.state == ChildLife::Running, !held, "{:?}", child);
        }
    }
}

struct Home {
    family: Family,
}

impl Home {
    fn with(names: &[&str]) -> Self {
        let mut home = Home { family: Family::new() };
        for name in names {
            home.add(name, &[], PastIntensity::Park);
        }
        home
    }

    /// 1 store ◄ 2 dispatcher ◄ 4 api, sessions need store and dispatcher; 3 neighbour needs nobody.
    fn tower() -> Self {
        let mut home = Home::with(&["store"]);
        home.add("dispatcher", &["store"], PastIntensity::Park);
        home.add("neighbour", &[], PastIntensity::Park);
        home.add("api", &["dispatcher"], PastIntensity::Park);
        home.kind("session", &["store", "dispatcher"], 300);
        home
    }

    fn add(&mut self, name: &str, needs: &[&str], past: PastIntensity) {
        self.family.add(plan(name, needs, past), Mono(0)).unwrap();
        assert!(matches!(self.family.tick(Mono(0))[..], [Effect::Start(_, 1)]), "{name} starts at once");
    }

    fn try_add(&mut self, name: &str, needs: &[&str]) -> Result<ChildId, AddError> {
        self.family.add(plan(name, needs, PastIntensity::Park), Mono(0))
    }

    fn kind(&mut self, kind: &str, needs: &[&str], live_max: usize) {
        let limits = WorkerLimits { live_max, intensity: Limit::default(), past: PastIntensity::Park };
        let needs: Vec<String> = needs.iter().map(|need| need.to_string()).collect();
        self.family.add_workers(kind, &needs, limits).unwrap();
    }

    fn fault(&mut self, name: &str, at: u64) -> Vec<Effect> {
        self.end(name, Some(Exit::failed(format!("at {at}"))), at)
    }

    /// Reports the end of the child's newest generation.
    fn end(&mut self, name: &str, exit: Option<Exit>, at: u64) -> Vec<Effect> {
        let id = (1..=9).map(ChildId).find(|id| self.family.name(*id) == Some(name)).unwrap();
        let generation = self.family.snapshot().child(name).unwrap().generation;
        self.family.exited(id, generation, exit, Mono(at))
    }

    fn state(&self, name: &str) -> (ChildLife, Generation, u64) {
        let seen = self.family.snapshot();
        let child = seen.child(name).unwrap();
        (child.state, child.generation, child.restarts)
    }
}

fn plan(name: &str, needs: &[&str], past: PastIntensity) -> Plan {
    Plan {
        name: name.to_owned(),
        needs: needs.iter().map(|need| need.to_string()).collect(),
        limit: Limit::default(),
        on_fault: OnFault::Restart,
        past,
    }
}
