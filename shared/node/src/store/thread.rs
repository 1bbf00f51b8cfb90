//! The one thread that writes: takes what is queued, commits it as one transaction, answers, and goes on.
//!
//! ```text
//! queued ──► grouped (all that waits, at most GROUP_BYTES) ──► one transaction, synced ──► each batch answered, in order
//!                                                            └─ failed ─► every batch answered the fault, thread ends
//! ```
//!
//! A lone batch is committed at once. Where several have come together more will, and the next group is given a moment
//! to gather, well within the 5 ms of DESIGN 5: a transaction costs as much for one batch as for twenty.

use super::{
    batch::Batch,
    engine::{Engine, View},
    error::StoreError,
    reserve::Reserve,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// Called once, on the store's thread, in the order of commits: it must neither block nor wait for the store.
pub type OnDone = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// How a store ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its owner stopped it, or dropped the last handle; everything queued before was committed.
    Asked,
    /// The fault that stopped it. Nothing is acknowledged after it; the way on is to open the store again.
    Failed(StoreError),
}

/// A transaction takes batches up to this weight; a heavier batch goes alone (DESIGN 5).
const GROUP_BYTES: usize = 1024 * 1024;
/// How long a group gathers behind one of several batches.
const GATHER: Duration = Duration::from_millis(3);
/// What a batch counts for beside its operations, so that empty batches are bounded too: 16,384 of them.
const BATCH_BYTES: usize = 64;
/// While space is low, a new reserve is tried after every this many commits: a failed try costs writing up to 2 MiB.
const COMMITS_PER_RESERVE_TRY: u64 = 64;

/// `None` only wakes the thread, so that it sees that it is to end.
pub(super) type Queued = Option<Job>;

/// What the thread and the handles share.
pub(super) struct Shared {
    /// Empty once the store has ended.
    engine: RwLock<Option<Engine>>,
    /// The first fault wins; it answers everything after it.
    fault: OnceLock<StoreError>,
    pub(super) closing: AtomicBool,
    pub(super) commits: Arc<AtomicU64>,
    pub(super) low_space: AtomicBool,
    /// The owner asks to see whether there is room for a reserve again.
    pub(super) look_for_space: AtomicBool,
    pub(super) ended: watch::Sender<Option<Ended>>,
}

impl Shared {
    pub(super) fn new(engine: Engine) -> Arc<Self> {
        Arc::new(Shared {
            engine: RwLock::new(Some(engine)),
            fault: OnceLock::new(),
            closing: AtomicBool::new(false),
            commits: Arc::default(),
            low_space: AtomicBool::new(false),
            look_for_space: AtomicBool::new(false),
            ended: watch::Sender::new(None),
        })
    }

    /// Why nothing more is taken, if so.
    pub(super) fn refusal(&self) -> Option<StoreError> {
        self.fault.get().cloned().or_else(|| self.closing.load(Ordering::Acquire).then_some(StoreError::Closed))
    }

    /// Reads go on while the queue drains, and end with the store.
    pub(super) fn view(&self) -> Result<View, StoreError> {
        if let Some(fault) = self.fault.get() {
            return Err(fault.clone());
        }
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        engine.as_ref().ok_or(StoreError::Closed)?.view()
    }

    fn commit(&self, group: &[Job]) -> Result<(), StoreError> {
        if group.iter().all(|job| job.batch.is_empty()) {
            return Ok(());
        }
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        tracing::debug!("commit begins");
        engine.as_ref().ok_or(StoreError::Closed)?.commit(group.iter().map(|job| &job.batch))?;
        tracing::debug!("commit durable");
        self.commits.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Closes the file, and says how it ended.
    pub(super) fn end(&self) {
        if let Err(error) = self.close() {
            // Everything acknowledged is durable; only the next opening has more to do.
            tracing::debug!(%error, "the store's file was not closed cleanly");
        }
        self.ended.send_replace(Some(self.fault.get().cloned().map_or(Ended::Asked, Ended::Failed)));
    }

    fn close(&self) -> Result<(), StoreError> {
        let engine = self.engine.write().unwrap_or_else(PoisonError::into_inner).take();
        engine.map_or(Ok(()), Engine::close)
    }
}

/// One batch and whom to answer.
pub(super) struct Job {
    batch: Batch,
    weight: usize,
    on_done: Option<OnDone>,
    shared: Arc<Shared>,
}

impl Job {
    pub(super) fn new(batch: Batch, on_done: OnDone, shared: Arc<Shared>) -> Self {
        let weight = BATCH_BYTES + batch.weight();
        Job { batch, weight, on_done: Some(on_done), shared }
    }

    pub(super) fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Answers, once.
    pub(super) fn answer(&mut self, result: Result<(), StoreError>) {
        let Some(on_done) = self.on_done.take() else { return };
        // A caller's bug must not pass for a fault of the disk.
        if catch_unwind(AssertUnwindSafe(|| on_done(result))).is_err() {
            tracing::error!("a callback of a commit panicked");
        }
    }

    /// Commits it alone, on the calling thread, and answers.
    pub(super) fn commit(mut self) {
        let result = self.shared.commit(std::slice::from_ref(&self));
        self.answer(result);
    }

    /// Gives batch and callback back unanswered.
    pub(super) fn take_back(mut self) -> Option<(Batch, OnDone)> {
        let on_done = self.on_done.take()?;
        Some((std::mem::take(&mut self.batch), on_done))
    }
}

impl Drop for Job {
    /// A batch that is dropped on any path was not committed, and its owner hears so.
    fn drop(&mut self) {
        if self.on_done.is_some() {
            let refusal = self.shared.refusal().unwrap_or(StoreError::Closed);
            self.answer(Err(refusal));
        }
    }
}

/// The thread's whole life.
pub(super) fn run(mut queue: mpsc::Receiver<Queued>, shared: Arc<Shared>, reserve: Option<Reserve>) {
    let reserve = reserve.as_ref();
    let fault = catch_unwind(AssertUnwindSafe(|| serve(&mut queue, &shared, reserve))).unwrap_or_else(|_| {
        Err(StoreError::Damaged { doing: "running the store", what: "the store's thread panicked".into() })
    });
    if let Err(fault) = fault {
        tracing::error!(error = %fault, "the store stopped");
        fail(&shared, reserve, fault);
    }
    // Handles that are still there are refused from here on; what they queued up to here is answered by its drop.
    shared.closing.store(true, Ordering::Release);
    queue.close();
    while queue.blocking_recv().is_some() {}
    shared.end();
}

/// Commits until the store is to end; an error is the fault that ends it.
fn serve(
    queue: &mut mpsc::Receiver<Queued>,
    shared: &Arc<Shared>,
    reserve: Option<&Reserve>,
) -> Result<(), StoreError> {
    let mut held_over = None;
    let mut crowded = false;
    loop {
        let Some(first) = held_over.take().or_else(|| next(queue, shared, reserve)) else { return Ok(()) };
        if crowded && !shared.closing.load(Ordering::Acquire) {
            std::thread::sleep(GATHER);
        }
        let mut group = gather(first, queue, &mut held_over);
        if let Err(fault) = shared.commit(&group) {
            // Before the first answer, so that whoever hears of it finds the store refusing and the space released.
            fail(shared, reserve, fault.clone());
            group.iter_mut().for_each(|job| job.answer(Err(fault.clone())));
            return Err(fault);
        }
        group.iter_mut().for_each(|job| job.answer(Ok(())));
        crowded = group.len() > 1;
        let due = shared.commits.load(Ordering::Acquire).is_multiple_of(COMMITS_PER_RESERVE_TRY);
        renew(shared, reserve, due);
    }
}

/// Builds the reserve again while there is none, if a try is due or was asked for.
fn renew(shared: &Shared, reserve: Option<&Reserve>, due: bool) {
    let asked = shared.look_for_space.swap(false, Ordering::AcqRel);
    if let Some(reserve) = reserve
        && (due || asked)
        && shared.low_space.load(Ordering::Acquire)
        && reserve.build().is_ok()
    {
        shared.low_space.store(false, Ordering::Release);
    }
}

/// The next batch, or `None` when the store is to end and nothing is queued.
fn next(queue: &mut mpsc::Receiver<Queued>, shared: &Shared, reserve: Option<&Reserve>) -> Option<Job> {
    loop {
        if shared.closing.load(Ordering::Acquire) {
            queue.close();
        }
        if let Some(job) = queue.blocking_recv()? {
            return Some(job);
        }
        renew(shared, reserve, false);
    }
}

/// Adds what is queued, as far as it fits; the first that does not is held over to the next transaction.
fn gather(first: Job, queue: &mut mpsc::Receiver<Queued>, held_over: &mut Option<Job>) -> Vec<Job> {
    let mut weight = first.weight;
    let mut group = vec![first];
    while weight < GROUP_BYTES
        && let Ok(queued) = queue.try_recv()
    {
        let Some(job) = queued else { continue };
        weight += job.weight;
        if weight > GROUP_BYTES {
            *held_over = Some(job);
            break;
        }
        group.push(job);
    }
    group
}

/// Keeps the fault, if it is the first, and releases the reserve if it is one of space.
fn fail(shared: &Shared, reserve: Option<&Reserve>, fault: StoreError) {
    let no_space = matches!(fault, StoreError::NoSpace { .. });
    if shared.fault.set(fault).is_err() || !no_space {
        return;
    }
    shared.low_space.store(true, Ordering::Release);
    if let Some(Err(error)) = reserve.map(Reserve::release) {
        tracing::error!(%error, "the store's reserve could not be released");
    }
}
