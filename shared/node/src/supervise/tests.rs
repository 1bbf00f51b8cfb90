//! The supervisor with real actors: what actix and tokio do with a panic, and what we make of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message, Running};

use super::*;
use crate::time::SystemClock;

#[actix_rt::test]
async fn top_21_a_panic_rebuilds_a_fresh_value_and_spares_neighbours() {
    let home = Home::new();
    let (victim, neighbour) = (home.child("victim").await, home.child("neighbour").await);
    for addr in [&victim, &neighbour] {
        addr.get().unwrap().send(Add(5)).await.unwrap();
    }
    let gone = victim.get().unwrap();
    assert!(gone.send(Panic("broken by a message")).await.is_err());
    let seen = home.until(|seen| running(seen, "victim", 2)).await;

    assert_eq!(victim.get().unwrap().send(Add(0)).await.unwrap(), 0, "a fresh value, not the broken one");
    assert_eq!(neighbour.get().unwrap().send(Add(0)).await.unwrap(), 5, "the neighbour kept its value");
    assert!(!gone.connected(), "the old address is closed");
    let state = seen.child("victim").unwrap();
    assert_eq!((state.restarts, state.panics, state.failures), (1, 1, 0));
    assert_eq!(state.first_fault.as_ref().unwrap().text, "panicked: broken by a message");
    assert_eq!(seen.child("neighbour").unwrap().generation, 1);
    assert_eq!(home.restarts.load(Ordering::SeqCst), 1, "the counter handed in counts it");
}

#[actix_rt::test]
async fn top_21_a_panic_in_a_future_of_the_context_is_a_panic_of_the_actor() {
    let home = Home::new();
    let victim = home.child("victim").await;
    victim.try_send(PanicLater).unwrap();
    let seen = home.until(|seen| running(seen, "victim", 2)).await;
    assert_eq!(seen.child("victim").unwrap().first_fault.as_ref().unwrap().text, "panicked: in a future");
}

#[actix_rt::test]
async fn top_21_a_second_panic_while_the_broken_value_goes_does_not_abort_the_process() {
    let home = Home::new();
    let victim = home.child("victim").await;
    victim.try_send(PanicTwice).unwrap();
    let seen = home.until(|seen| running(seen, "victim", 2)).await;
    assert_eq!(seen.child("victim").unwrap().first_fault.as_ref().unwrap().text, "panicked: first");
}

#[actix_rt::test]
async fn top_21_without_our_boundary_actix_lets_the_arbiter_live_and_the_guard_still_reports() {
    let home = Home::new();
    let at = ChildAddr::new();
    let renewed = at.clone();
    let spec = ChildSpec::new("plain", move |guard| {
        renewed.renew(Toy::new(guard, &Log::default()).start());
        Ok(())
    });
    home.supervision.start_child(spec).await.unwrap();
    let neighbour = home.child("neighbour").await;
    assert!(at.get().unwrap().send(Panic("bare")).await.is_err());
    let seen = home.until(|seen| running(seen, "plain", 2)).await;
    let text = &seen.child("plain").unwrap().first_fault.as_ref().unwrap().text;
    assert_eq!(text, "panicked: no message: caught outside the boundary");
    assert_eq!(neighbour.get().unwrap().send(Add(1)).await.unwrap(), 1);
}

#[actix_rt::test]
async fn top_21_a_child_on_another_arbiter_is_rebuilt_there() {
    let home = Home::new();
    let arbiter = actix_rt::Arbiter::new();
    let (handle, at, log) = (arbiter.handle(), ChildAddr::<Toy>::new(), home.log.clone());
    let renewed = at.clone();
    let spec = ChildSpec::new("far", move |guard| {
        let log = log.clone();
        run_in(&handle, guard, &renewed, move |_ctx, guard| Toy::new(guard, &log));
        Ok(())
    });
    home.supervision.start_child(spec).await.unwrap();
    let first = bounded(at.living()).await;
    assert!(first.send(Panic("far away")).await.is_err());
    home.until(|seen| running(seen, "far", 2)).await;
    // It is started there a moment after it counts as running here.
    let answered = async {
        loop {
            match at.living().await.send(Add(3)).await {
                Ok(sum) => return sum,
                Err(_) => actix_rt::task::yield_now().await,
            }
        }
    };
    assert_eq!(bounded(answered).await, 3);
    arbiter.stop();
}

#[actix_rt::test]
async fn top_21_five_panics_park_the_child_and_report_it_until_it_is_released() {
    let home = Home::new();
    let (victim, neighbour) = (home.child("victim").await, home.child("neighbour").await);
    for generation in 1..=5 {
        home.until(|seen| running(seen, "victim", generation)).await;
        assert!(victim.get().unwrap().send(Panic("again")).await.is_err());
    }
    let seen = home.until(|seen| seen.child("victim").unwrap().state == ChildLife::Parked).await;
    assert_eq!((seen.child("victim").unwrap().panics, seen.child("victim").unwrap().restarts), (5, 4));
    assert!(matches!(victim.try_send(Add(1)), Err(NotReached::Down(Add(1)))));
    assert_eq!(neighbour.get().unwrap().send(Add(1)).await.unwrap(), 1);
    assert!(home.supervision.release("victim").await.unwrap());
    home.until(|seen| running(seen, "victim", 6)).await;
}

#[actix_rt::test]
async fn past_its_intensity_a_singleton_reports_the_end_of_the_node_with_the_first_fault() {
    let home = Home::new();
    // The factory itself fails: the first time by an error, then by panics.
    let mut calls = 0;
    let spec = ChildSpec::new("store", move |_guard| {
        calls += 1;
        if calls > 1 {
            panic!("call {calls}");
        }
        Err("disk is gone".to_owned())
    });
    home.supervision.start_child(spec.past(PastIntensity::EndProcess(72))).await.unwrap();
    let end = bounded(home.supervision.must_end()).await;
    assert_eq!((end.exit_code, end.child.as_str()), (72, "store"));
    assert_eq!(end.first_fault.unwrap().text, "failed: disk is gone");
    // The owner can still stop the rest in order.
    assert!(home.supervision.stop(Duration::from_secs(5)).await.unwrap().is_clean());
    assert_eq!(bounded(home.supervision.must_end()).await.exit_code, 72);
}

#[actix_rt::test]
async fn the_first_fault_is_not_overwritten_by_those_it_pulls_down() {
    let home = Home::new();
    let store = home.child("store").await;
    let session = home.child_on("session", &["store"], Manner::PanicsWhenAsked).await;
    assert!(store.get().unwrap().send(Panic("the cause")).await.is_err());
    let seen = home.until(|seen| running(seen, "store", 2) && running(seen, "session", 2)).await;
    assert_eq!(seen.child("store").unwrap().first_fault.as_ref().unwrap().text, "panicked: the cause");
    let casualty = seen.child("session").unwrap();
    assert_eq!((casualty.panics, casualty.casualties, casualty.first_fault.clone()), (1, 1, None));
    assert_eq!(session.get().unwrap().send(Add(1)).await.unwrap(), 1);
}

#[actix_rt::test]
async fn when_a_child_faults_its_workers_are_asked_to_stop_and_new_ones_wait() {
    let home = Home::new();
    let store = home.child("store").await;
    home.workers("session", &["store"], 1).await;
    let guard = home.supervision.adopt("session", "device-1").await.unwrap();
    let session = run(guard, |_ctx, guard| Toy::new(guard, &home.log));
    assert!(matches!(
        home.supervision.adopt("session", "device-2").await.unwrap_err(),
        SuperviseError::Adopt(AdoptError::Full)
    ));
    assert!(store.get().unwrap().send(Panic("disk")).await.is_err());
    home.until(|seen| running(seen, "store", 2) && seen.workers_of("session").unwrap().live == 0).await;
    assert_eq!(home.log.take(), ["device-1 drained"]);
    assert!(!session.connected());
    assert!(home.supervision.adopt("session", "device-1").await.is_ok());
}

#[actix_rt::test]
async fn top_21_a_workers_panic_is_counted_and_its_next_generation_is_a_restart() {
    let home = Home::new();
    home.workers("session", &[], 300).await;
    for generation in 1..=5 {
        let guard = home.supervision.adopt("session", "device-1").await.unwrap();
        assert_eq!(guard.generation(), generation);
        let session = run(guard, |_ctx, guard| Toy::new(guard, &home.log));
        assert!(session.send(Panic("bad record")).await.is_err());
        home.until(|seen| seen.workers_of("session").unwrap().panics == generation).await;
    }
    assert!(matches!(
        home.supervision.adopt("session", "device-1").await.unwrap_err(),
        SuperviseError::Adopt(AdoptError::Parked)
    ));
    assert_eq!(home.restarts.load(Ordering::SeqCst), 4);
}

#[actix_rt::test]
async fn an_orderly_stop_drains_in_reverse_order() {
    let home = Home::new();
    home.child("store").await;
    home.child_on("dispatcher", &["store"], Manner::Obeys).await;
    home.child("listener").await;
    home.workers("session", &["store"], 300).await;
    let guard = home.supervision.adopt("session", "device-1").await.unwrap();
    let _session = run(guard, |_ctx, guard| Toy::new(guard, &home.log));
    let report = home.supervision.stop(Duration::from_secs(60)).await.unwrap();
    assert_eq!(report.drained, ["device-1", "listener", "dispatcher", "store"]);
    assert!(report.is_clean());
    assert_eq!(home.log.take(), ["device-1", "listener", "dispatcher", "store"].map(|name| format!("{name} drained")));
}

#[actix_rt::test]
async fn one_that_does_not_drain_in_time_is_cut_and_the_others_drain() {
    let home = Home::new();
    home.child("store").await;
    let stuck = home.child_on("stuck", &[], Manner::Ignores).await;
    let stuck = stuck.get().unwrap();
    let report = bounded(home.supervision.stop(Duration::from_millis(400))).await.unwrap();
    assert_eq!((report.drained, report.cut), (vec!["store".to_owned()], vec!["stuck".to_owned()]));
    bounded(async {
        while stuck.connected() {
            actix_rt::task::yield_now().await;
        }
    })
    .await;
}

#[actix_rt::test]
async fn an_end_that_is_no_fault_is_left_alone() {
    let home = Home::new();
    let child = home.child("once").await;
    child.try_send(Finish(Exit::Done)).unwrap();
    let seen = home.until(|seen| seen.child("once").unwrap().state == ChildLife::Ended).await;
    assert_eq!((seen.child("once").unwrap().generation, seen.child("once").unwrap().first_fault.clone()), (1, None));
    let failing = home.child("failing").await;
    failing.try_send(Finish(Exit::failed("upstream said no"))).unwrap();
    let seen = home.until(|seen| running(seen, "failing", 2)).await;
    assert_eq!((seen.child("failing").unwrap().failures, seen.child("failing").unwrap().panics), (1, 0));
}

fn running(seen: &Snapshot, name: &str, generation: Generation) -> bool {
    seen.child(name).is_some_and(|child| child.state == ChildLife::Running && child.generation == generation)
}

/// A liveness bound only: nothing here takes that long.
async fn bounded<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("did not happen within 20 s")
}

struct Home {
    supervision: Supervision,
    restarts: Arc<AtomicU64>,
    log: Log,
}

impl Home {
    fn new() -> Self {
        let restarts = Arc::new(AtomicU64::new(0));
        let counter = metrics::Counter::from_arc(Arc::clone(&restarts));
        Home { supervision: Supervisor::start(SystemClock::shared(), Some(counter)), restarts, log: Log::default() }
    }

    async fn child(&self, name: &str) -> ChildAddr<Toy> {
        self.child_on(name, &[], Manner::Obeys).await
    }

    async fn child_on(&self, name: &str, needs: &[&str], manner: Manner) -> ChildAddr<Toy> {
        let (at, log) = (ChildAddr::new(), self.log.clone());
        let renewed = at.clone();
        let spec = ChildSpec::new(name, move |guard| {
            renewed.renew(run(guard, |_ctx, guard| Toy { manner, ..Toy::new(guard, &log) }));
            Ok(())
        });
        let spec = needs.iter().fold(spec, |spec, need| spec.needs(*need));
        self.supervision.start_child(spec).await.unwrap();
        at
    }

    async fn workers(&self, kind: &str, needs: &[&str], live_max: usize) {
        let needs = needs.iter().map(|need| need.to_string()).collect();
        let limits = WorkerLimits { live_max, intensity: Limit::default(), past: PastIntensity::Park };
        self.supervision.add_workers(WorkerSpec { kind: kind.to_owned(), needs, limits }).await.unwrap();
    }

    /// Waits for a state, boundedly.
    async fn until(&self, reached: impl Fn(&Snapshot) -> bool) -> Snapshot {
        bounded(async {
            loop {
                let seen = self.supervision.snapshot().await.unwrap();
                if reached(&seen) {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[derive(Clone, Copy)]
enum Manner {
    Obeys,
    Ignores,
    PanicsWhenAsked,
}

/// A child with a value to lose and every way to end.
struct Toy {
    guard: ExitGuard,
    sum: u64,
    manner: Manner,
    panics_in_stopping: bool,
    log: Log,
}

impl Toy {
    fn new(guard: ExitGuard, log: &Log) -> Self {
        Toy { guard, sum: 0, manner: Manner::Obeys, panics_in_stopping: false, log: log.clone() }
    }
}

impl Actor for Toy {
    type Context = Context<Self>;

    fn stopping(&mut self, _ctx: &mut Self::Context) -> Running {
        assert!(!self.panics_in_stopping, "second");
        Running::Stop
    }
}

impl Handler<Drain> for Toy {
    type Result = ();

    fn handle(&mut self, Drain: Drain, ctx: &mut Self::Context) {
        match self.manner {
            Manner::Obeys => {
                self.log.0.lock().unwrap().push(format!("{} drained", self.guard.name()));
                ctx.stop();
            }
            Manner::Ignores => {}
            Manner::PanicsWhenAsked => panic!("a consequence"),
        }
    }
}

#[derive(Debug, PartialEq, Message)]
#[rtype(result = "u64")]
struct Add(u64);

impl Handler<Add> for Toy {
    type Result = u64;

    fn handle(&mut self, Add(n): Add, _ctx: &mut Self::Context) -> u64 {
        self.sum += n;
        self.sum
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Panic(&'static str);

impl Handler<Panic> for Toy {
    type Result = ();

    fn handle(&mut self, Panic(text): Panic, _ctx: &mut Self::Context) {
        self.sum += 1_000;
        panic!("{text}");
    }
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct PanicLater;

impl Handler<PanicLater> for Toy {
    type Result = ();

    fn handle(&mut self, PanicLater: PanicLater, ctx: &mut Self::Context) {
        ctx.spawn(actix::fut::wrap_future(async {
            actix_rt::task::yield_now().await;
            panic!("in a future");
        }));
    }
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct PanicTwice;

impl Handler<PanicTwice> for Toy {
    type Result = ();

    fn handle(&mut self, PanicTwice: PanicTwice, _ctx: &mut Self::Context) {
        self.panics_in_stopping = true;
        panic!("first");
    }
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Finish(Exit);

impl Handler<Finish> for Toy {
    type Result = ();

    fn handle(&mut self, Finish(exit): Finish, ctx: &mut Self::Context) {
        self.guard.set(exit);
        ctx.stop();
    }
}
