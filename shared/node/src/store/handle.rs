//! The store as the rest of a node sees it.

use super::{
    batch::{Batch, Table},
    error::StoreError,
    thread::{Ended, Job, OnDone, Queued, Shared},
};
use bytes::Bytes;
use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

/// The queue holds as many batches as it may. Batch and callback come back: leave the matter where it is, and try again
/// when something has been answered.
pub struct Full {
    /// As given to [`StoreHandle::commit`].
    pub batch: Batch,
    /// As given to [`StoreHandle::commit`], not called.
    pub on_done: OnDone,
}

impl fmt::Debug for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Full").field("ops", &self.batch.ops.len()).finish_non_exhaustive()
    }
}

/// A store that is open, or was. Clones speak to the same one; when the last is dropped, the thread commits what is
/// queued and closes the file by itself.
#[derive(Clone)]
pub struct StoreHandle {
    shared: Arc<Shared>,
    /// None for a store without a thread, whose commits are done when they are asked for.
    thread: Option<Thread>,
}

/// The thread that commits.
#[derive(Clone)]
struct Thread {
    queue: mpsc::Sender<Queued>,
    handle: Arc<Mutex<Option<JoinHandle<()>>>>,
    id: std::thread::ThreadId,
}

impl StoreHandle {
    pub(super) fn new(shared: Arc<Shared>, queue: mpsc::Sender<Queued>, thread: JoinHandle<()>) -> Self {
        let id = thread.thread().id();
        let thread = Thread { queue, handle: Arc::new(Mutex::new(Some(thread))), id };
        StoreHandle { shared, thread: Some(thread) }
    }

    /// A store that commits on the calling thread, and so answers before [`StoreHandle::commit`] returns: for one that waits
    /// for no disk.
    pub(super) fn at_once(shared: Arc<Shared>) -> Self {
        StoreHandle { shared, thread: None }
    }

    /// Queues a batch. `on_done` is called exactly once unless [`Full`] gives it back: with `Ok` when the batch is
    /// durable, never before; with an error when it is not or may not be. Batches become durable and are answered in
    /// the order in which they were queued. A store that has ended, or a batch that is too large, is answered on the
    /// calling thread before this returns.
    pub fn commit(&self, batch: Batch, on_done: OnDone) -> Result<(), Full> {
        let mut job = Job::new(batch, on_done, self.shared.clone());
        if let Some(refusal) = self.refusal(&job) {
            job.answer(Err(refusal));
            return Ok(());
        }
        let Some(thread) = &self.thread else {
            job.commit();
            return Ok(());
        };
        match thread.queue.try_send(Some(job)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(Some(job))) => match job.take_back() {
                Some((batch, on_done)) => Err(Full { batch, on_done }),
                None => Ok(()),
            },
            // Dropped, the job answers the reason itself.
            Err(_) => Ok(()),
        }
    }

    /// Commits a batch and waits for it, and for room in the queue before that. Dropping the future after the batch
    /// was queued does not take it back.
    pub async fn commit_wait(&self, batch: Batch) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        let on_done = Box::new(move |result| {
            // The waiter may be gone; the batch is committed all the same.
            let _ = done.send(result);
        });
        let mut job = Job::new(batch, on_done, self.shared.clone());
        match (self.refusal(&job), &self.thread) {
            (Some(refusal), _) => job.answer(Err(refusal)),
            // A job that cannot be queued any more is dropped with the error, and answers by that.
            (None, Some(thread)) => drop(thread.queue.send(Some(job)).await),
            (None, None) => job.commit(),
        }
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// The committed value under a key. Reads block on the disk: for start-up, not for an arbiter.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.shared.view()?.get(table, key)
    }

    /// The first `limit` committed records from `from` on, in the order of their keys.
    pub fn scan(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        let mut rows = Vec::new();
        self.shared.view()?.each(table, from, limit, |key, value| rows.push((key.to_vec(), value)))?;
        Ok(rows)
    }

    /// Shows every committed record of a table, as of one instant, in the order of their keys. Ends with an error at
    /// the first record that is damaged.
    pub fn scan_all(&self, table: Table, seen: impl FnMut(&[u8], Bytes)) -> Result<(), StoreError> {
        self.shared.view()?.each(table, &[], usize::MAX, seen)
    }

    /// Durable commits since the opening, its own not counted. One commit holds many batches, and syncs the file once, from
    /// [`super::QUICK_REPAIR_BYTES`] on twice.
    pub fn fsyncs(&self) -> u64 {
        self.shared.commits.load(Ordering::Acquire)
    }

    /// The counter behind [`StoreHandle::fsyncs`], for `branchline_fsyncs_total`.
    pub fn fsync_counter(&self) -> Arc<AtomicU64> {
        self.shared.commits.clone()
    }

    /// Whether the disk had no room for a commit, or has none for the reserve: take nothing new, delete what may go.
    pub fn low_space(&self) -> bool {
        self.shared.low_space.load(Ordering::Acquire)
    }

    /// Sees soon whether there is room again, if space is low: without it only every 64th commit does, and a node that takes
    /// nothing new makes few. A try that fails writes up to twice the reserve: a few times a minute is enough.
    pub fn look_for_space(&self) {
        if self.low_space() {
            self.shared.look_for_space.store(true, Ordering::Release);
            // A full queue needs no waking.
            drop(self.thread.as_ref().map(|thread| thread.queue.try_send(None)));
        }
    }

    /// How the store ended, if it has. Once this is `Some`, the file is closed and may be opened again.
    pub fn ended(&self) -> Option<Ended> {
        self.shared.ended.borrow().clone()
    }

    /// Waits until the store has ended, by [`StoreHandle::stop`] or by a fault.
    pub async fn stopped(&self) -> Ended {
        let mut ended = self.shared.ended.subscribe();
        let ended = ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        ended.unwrap_or(Ended::Asked)
    }

    /// Refuses new batches, commits what is queued, closes the file and joins the thread. Blocks for that long, so not
    /// on an arbiter; called from a commit's own callback it only asks. The error is the fault that stopped it before.
    pub fn stop(&self) -> Result<(), StoreError> {
        self.shared.closing.store(true, Ordering::Release);
        match &self.thread {
            None => self.shared.end(),
            Some(thread) => {
                // A full queue needs no waking.
                drop(thread.queue.try_send(None));
                if std::thread::current().id() != thread.id {
                    // Held while joining, so that a second caller waits too.
                    let mut handle = thread.handle.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(Err(_)) = handle.take().map(JoinHandle::join) {
                        tracing::error!("the store's thread panicked after its end");
                    }
                }
            }
        }
        match self.ended() {
            Some(Ended::Failed(fault)) => Err(fault),
            _ => Ok(()),
        }
    }

    fn refusal(&self, job: &Job) -> Option<StoreError> {
        let too_large = |(table, bytes, bytes_max)| StoreError::TooLarge { table, bytes, bytes_max };
        self.shared.refusal().or_else(|| job.batch().too_large().map(too_large))
    }
}

impl fmt::Debug for StoreHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreHandle").field("ended", &self.ended()).finish_non_exhaustive()
    }
}
