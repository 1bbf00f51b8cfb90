//! Drives a pure core: events and `now` in, effects out, in order. The one place where a core's commits meet the store,
//! so that no shell can acknowledge before it is written (DESIGN 4).
//!
//! ```text
//! event ─► Core::handle ─► effects ─┬─ commit ─► store ─► (its thread) ─► shell ─► Driver::completed ─► Committed(token)
//!                                   └─ others ─► the shell, at once
//! ```
//!
//! A core emits what depends on a batch only when it is told `Committed` with that batch's token. What the other effects
//! mean does not belong here.

use crate::store::{Batch, Full, OnDone, StoreError, StoreHandle};
use branchline_protocol::time::Now;
use std::{collections::VecDeque, sync::Arc};

/// Names a batch of one core; given by the core, rising.
pub type Token = u64;

/// Batches that wait here while the store's queue is full: as many as the queue itself holds. A core's input is bounded
/// by the credit of its links, so more than this means that something is broken.
pub const HELD_MAX: usize = 1024;

/// Decides, and does nothing.
pub trait Core {
    /// What happens to it.
    type Event;
    /// What it asks for.
    type Effect;

    /// Decides about one event. Effects are appended in the order in which they are to be carried out.
    fn handle(&mut self, now: Now, event: Self::Event, out: &mut Vec<Self::Effect>);

    /// The event that says that this batch, and every one before it, is durable.
    fn committed(token: Token) -> Self::Event;

    /// The batch of an effect that is a commit; any other effect comes back.
    fn into_commit(effect: Self::Effect) -> Result<(Batch, Token), Self::Effect>;
}

/// Where batches become durable, in the order in which they are given.
pub trait Commits {
    /// As [`StoreHandle::commit`].
    fn commit(&self, batch: Batch, on_done: OnDone) -> Result<(), Full>;
}

impl Commits for StoreHandle {
    fn commit(&self, batch: Batch, on_done: OnDone) -> Result<(), Full> {
        StoreHandle::commit(self, batch, on_done)
    }
}

/// A batch's answer on its way from the store's thread to the shell, which gives it to [`Driver::completed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Whose.
    pub token: Token,
    /// Whether it is durable.
    pub result: Result<(), StoreError>,
}

/// Takes completions on the store's thread: must neither block nor fail.
pub type Notify = Arc<dyn Fn(Completion) + Send + Sync>;

/// Why a core cannot go on. The node's memory of what is durable is gone: only a new start from the disk helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveFault {
    /// A batch is not durable, or may not be.
    #[error("commit a batch: {0}")]
    Store(#[from] StoreError),
    /// More than [`HELD_MAX`] batches wait for the store.
    #[error("{HELD_MAX} batches wait for the store and more come")]
    Overrun,
}

/// A core with its store.
pub struct Driver<C: Core, S: Commits> {
    core: C,
    store: S,
    notify: Notify,
    held: VecDeque<(Batch, Token)>,
    effects: Vec<C::Effect>,
    fault: Option<DriveFault>,
}

impl<C: Core, S: Commits> Driver<C, S> {
    /// Nothing is handled yet.
    pub fn new(core: C, store: S, notify: Notify) -> Self {
        Driver { core, store, notify, held: VecDeque::new(), effects: Vec::new(), fault: None }
    }

    /// The core, to look at.
    pub fn core(&self) -> &C {
        &self.core
    }

    /// Handles an event; `perform` carries out what is no commit.
    ///
    /// # Errors
    /// The core cannot go on, now or since an earlier call; the event was not handled, or its batch not taken.
    pub fn handle(&mut self, now: Now, event: C::Event, mut perform: impl FnMut(C::Effect)) -> Result<(), DriveFault> {
        self.check()?;
        let mut effects = std::mem::take(&mut self.effects);
        self.core.handle(now, event, &mut effects);
        for effect in effects.drain(..) {
            match C::into_commit(effect) {
                Ok((batch, token)) => self.submit(batch, token),
                Err(effect) => perform(effect),
            }
        }
        self.effects = effects;
        self.check()
    }

    /// A batch was answered.
    ///
    /// # Errors
    /// As [`Driver::handle`]; what waited for a batch that failed is never carried out.
    pub fn completed(&mut self, now: Now, done: Completion, perform: impl FnMut(C::Effect)) -> Result<(), DriveFault> {
        if let Err(error) = done.result {
            self.fault.get_or_insert(DriveFault::Store(error));
        }
        self.check()?;
        // First those that wait: a batch of the event to come goes behind them.
        while let Some((batch, token)) = self.held.pop_front() {
            if let Some(again) = self.try_submit(batch, token) {
                self.held.push_front(again);
                break;
            }
        }
        self.handle(now, C::committed(done.token), perform)
    }

    fn submit(&mut self, batch: Batch, token: Token) {
        let waits = if self.held.is_empty() { self.try_submit(batch, token) } else { Some((batch, token)) };
        let Some(waits) = waits else { return };
        if self.held.len() >= HELD_MAX {
            self.fault.get_or_insert(DriveFault::Overrun);
            return;
        }
        self.held.push_back(waits);
    }

    fn try_submit(&mut self, batch: Batch, token: Token) -> Option<(Batch, Token)> {
        let notify = self.notify.clone();
        let on_done = Box::new(move |result| notify(Completion { token, result }));
        match self.store.commit(batch, on_done) {
            Ok(()) => None,
            Err(full) => Some((full.batch, token)),
        }
    }

    fn check(&self) -> Result<(), DriveFault> {
        self.fault.clone().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Table;
    use std::{cell::RefCell, rc::Rc, sync::Mutex};

    /// Commits each number and says it once it is durable.
    #[derive(Default)]
    struct Echo {
        told: Vec<Token>,
    }

    enum Event {
        Say(Token),
        Committed(Token),
    }

    #[derive(Debug, PartialEq)]
    enum Effect {
        Commit(Batch, Token),
        Said(Token),
    }

    impl Core for Echo {
        type Event = Event;
        type Effect = Effect;
        fn handle(&mut self, _: Now, event: Event, out: &mut Vec<Effect>) {
            match event {
                Event::Say(token) => {
                    let mut batch = Batch::new();
                    batch.put(Table::Meta, token.to_be_bytes(), "x");
                    out.push(Effect::Commit(batch, token));
                }
                Event::Committed(token) => {
                    self.told.push(token);
                    out.push(Effect::Said(token));
                }
            }
        }
        fn committed(token: Token) -> Event {
            Event::Committed(token)
        }
        fn into_commit(effect: Effect) -> Result<(Batch, Token), Effect> {
            match effect {
                Effect::Commit(batch, token) => Ok((batch, token)),
                other => Err(other),
            }
        }
    }

    /// A store that holds `room` batches and answers when it is told to.
    #[derive(Clone)]
    struct Slow {
        room: usize,
        queue: Rc<RefCell<VecDeque<OnDone>>>,
    }

    impl Commits for Slow {
        fn commit(&self, batch: Batch, on_done: OnDone) -> Result<(), Full> {
            if self.queue.borrow().len() >= self.room {
                return Err(Full { batch, on_done });
            }
            self.queue.borrow_mut().push_back(on_done);
            Ok(())
        }
    }

    struct Bench {
        driver: Driver<Echo, Slow>,
        store: Slow,
        done: Arc<Mutex<VecDeque<Completion>>>,
        said: Vec<Token>,
    }

    impl Bench {
        fn new(room: usize) -> Bench {
            let store = Slow { room, queue: Rc::default() };
            let done: Arc<Mutex<VecDeque<Completion>>> = Arc::default();
            let to = done.clone();
            let notify: Notify = Arc::new(move |completion| to.lock().unwrap().push_back(completion));
            Bench { driver: Driver::new(Echo::default(), store.clone(), notify), store, done, said: Vec::new() }
        }

        fn say(&mut self, token: Token) -> Result<(), DriveFault> {
            let said = &mut self.said;
            self.driver.handle(Now::default(), Event::Say(token), |effect| {
                if let Effect::Said(token) = effect {
                    said.push(token);
                }
            })
        }

        /// The store answers its oldest batch.
        fn answer(&mut self, result: Result<(), StoreError>) -> Result<(), DriveFault> {
            let on_done = self.store.queue.borrow_mut().pop_front().expect("something is queued");
            on_done(result);
            let done = self.done.lock().unwrap().pop_front().expect("it was answered");
            let said = &mut self.said;
            self.driver.completed(Now::default(), done, |effect| {
                if let Effect::Said(token) = effect {
                    said.push(token);
                }
            })
        }
    }

    #[test]
    fn nothing_is_said_before_the_store_answers_and_a_full_queue_loses_nothing() {
        let mut bench = Bench::new(2);
        for token in 1..=5 {
            bench.say(token).unwrap();
        }
        assert_eq!(bench.said, [] as [Token; 0]);
        assert_eq!(bench.store.queue.borrow().len(), 2);
        for token in 1..=5 {
            bench.answer(Ok(())).unwrap();
            assert_eq!(bench.said.last(), Some(&token));
        }
        assert_eq!(bench.driver.core().told, [1, 2, 3, 4, 5], "in order");
    }

    #[test]
    fn a_failed_commit_ends_the_core_and_nothing_after_it_is_said() {
        let mut bench = Bench::new(8);
        bench.say(1).unwrap();
        bench.say(2).unwrap();
        let fault = StoreError::NoSpace { doing: "test" };
        assert_eq!(bench.answer(Err(fault.clone())), Err(DriveFault::Store(fault.clone())));
        assert_eq!(bench.answer(Ok(())), Err(DriveFault::Store(fault.clone())), "the first fault stays");
        assert_eq!(bench.say(3), Err(DriveFault::Store(fault)));
        assert_eq!(bench.said, [] as [Token; 0]);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut bench = Bench::new(1);
        for token in 0..=HELD_MAX as Token {
            bench.say(token).unwrap();
        }
        assert_eq!(bench.say(9_999), Err(DriveFault::Overrun));
    }
}
