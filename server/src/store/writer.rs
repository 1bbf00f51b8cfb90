//! The one writer: takes batches from its queue, puts those that wait into one transaction, syncs once, then answers.
//!
//! ```text
//!   commit ─► queue ─► BEGIN ─► ops ─► savepoint, ops of the next waiting batch … ─► COMMIT (one sync) ─► answers
//!                                  │ conflict: back to the savepoint, this batch alone answers Conflict
//!                                  └ anything else: ROLLBACK, nothing of the group is kept, the store stops
//! ```

use super::{
    Op, StoreError,
    codec::database,
    write::{self, WriteFault},
};
use futures_util::FutureExt;
use sqlx::{Connection, SqliteConnection, raw_sql};
use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};

/// Batches that may wait. A caller beyond them waits in `commit`, which is how a slow disk slows the links.
pub const QUEUE_BATCHES_MAX: usize = 256;
/// A group takes no further batch once it holds this many writes …
const GROUP_OPS_MAX: usize = 5_000;
/// … or is this old, so that the first of a group is not kept waiting by those after it.
const GROUP_AGE_MAX: Duration = Duration::from_millis(5);

/// A batch on its way to the writer.
pub struct Waiting {
    /// What to write.
    pub batch: Vec<Op>,
    /// Who waits for it to be durable.
    pub done: oneshot::Sender<Result<(), StoreError>>,
}

/// A batch of the group under way: who waits, and what to tell once the group is durable.
type Member = (oneshot::Sender<Result<(), StoreError>>, Result<(), StoreError>);

/// What the writer shows to others.
#[derive(Default)]
pub struct WriterState {
    /// Transactions synced.
    pub fsyncs: AtomicU64,
    /// Why it stopped by itself, once it has.
    pub stopped: watch::Sender<Option<String>>,
}

/// The writer with its own connection.
pub struct Writer {
    /// The only connection that writes.
    pub connection: SqliteConnection,
    /// Shared with the store's handle.
    pub state: Arc<WriterState>,
    /// Held locked until the connection is closed.
    pub lock: File,
}

impl Writer {
    /// Serves the queue until it is closed and empty, or a write fails.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Waiting>) {
        while let Some(first) = queue.recv().await {
            if let Err(reason) = self.group(first, &mut queue).await {
                tracing::error!(%reason, "the store has stopped");
                self.state.stopped.send_replace(Some(reason.clone()));
                queue.close();
                while let Some(waiting) = queue.recv().await {
                    waiting.done.send(Err(StoreError::Stopped(reason.clone()))).ok();
                }
            }
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "closing the database");
        }
        drop(self.lock);
    }

    /// One transaction. An error means that nothing of it was kept and the store must stop; every member knows.
    async fn group(&mut self, first: Waiting, queue: &mut mpsc::Receiver<Waiting>) -> Result<(), String> {
        let mut members = Vec::new();
        match self.fill(first, queue, &mut members).await {
            Ok(()) => {
                self.state.fsyncs.fetch_add(1, Ordering::SeqCst);
                for (done, result) in members {
                    done.send(result).ok();
                }
                Ok(())
            }
            Err(reason) => {
                raw_sql("ROLLBACK").execute(&mut self.connection).await.ok();
                for (done, _) in members {
                    done.send(Err(StoreError::Database(reason.clone()))).ok();
                }
                Err(reason)
            }
        }
    }

    async fn fill(
        &mut self,
        first: Waiting,
        queue: &mut mpsc::Receiver<Waiting>,
        members: &mut Vec<Member>,
    ) -> Result<(), String> {
        let mut age = Box::pin(tokio::time::sleep(GROUP_AGE_MAX));
        let mut ops = 0;
        let mut next = Some(first);
        let mut begun = false;
        while let Some(Waiting { batch, done }) = next {
            ops += batch.len();
            // A member before its writes: whatever fails from here on, its caller is told.
            members.push((done, Ok(())));
            let kept = if begun {
                self.member(batch).await?
            } else {
                let kept = self.first(batch).await?;
                begun = kept.is_ok();
                kept
            };
            if let Some((_, result)) = members.last_mut() {
                *result = kept;
            }
            let full = ops >= GROUP_OPS_MAX || (&mut age).now_or_never().is_some();
            next = if full { None } else { queue.try_recv().ok() };
        }
        if !begun {
            return Ok(());
        }
        tracing::debug!("commit begins");
        self.execute("COMMIT", "committing").await?;
        tracing::debug!("commit durable");
        Ok(())
    }

    /// A transaction with its first batch. It is the only one so far, so that it needs no savepoint, which would keep a
    /// copy of each page that it changes. The results are those of [`Writer::member`]; after a conflict there is no
    /// transaction.
    async fn first(&mut self, batch: Vec<Op>) -> Result<Result<(), StoreError>, String> {
        self.execute("BEGIN IMMEDIATE", "beginning a transaction").await?;
        match write::apply(&mut self.connection, batch).await {
            Ok(()) => Ok(Ok(())),
            Err(WriteFault::Conflict(what)) => {
                self.execute("ROLLBACK", "taking a batch back").await?;
                Ok(Err(StoreError::Conflict(what)))
            }
            Err(WriteFault::Broken(reason)) => Err(reason),
        }
    }

    /// One more batch inside the transaction: the inner result is its caller's, the outer error everyone's.
    async fn member(&mut self, batch: Vec<Op>) -> Result<Result<(), StoreError>, String> {
        self.execute("SAVEPOINT batch", "setting a savepoint").await?;
        match write::apply(&mut self.connection, batch).await {
            Ok(()) => {
                self.execute("RELEASE batch", "releasing a savepoint").await?;
                Ok(Ok(()))
            }
            Err(WriteFault::Conflict(what)) => {
                self.execute("ROLLBACK TO batch", "going back to a savepoint").await?;
                self.execute("RELEASE batch", "releasing a savepoint").await?;
                Ok(Err(StoreError::Conflict(what)))
            }
            Err(WriteFault::Broken(reason)) => Err(reason),
        }
    }

    async fn execute(&mut self, sql: &'static str, attempt: &str) -> Result<(), String> {
        match sqlx::query(sql).execute(&mut self.connection).await {
            Ok(_) => Ok(()),
            Err(error) => Err(database(attempt, error).to_string()),
        }
    }
}
