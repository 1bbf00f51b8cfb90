//! The store in one SQLite file in WAL mode: one writer with group commit, a few readers, one process.

use super::{
    ApiTokenRow, AuditRow, DeadLetterRow, Delivery, InventoryRow, InventorySummary, JobDeviceRow, JobHead, JobRow,
    NodeRow, Op, Store, StoreError, StreamRow, TokenRow,
    codec::database,
    read,
    snapshot::{self, Snapshot},
    targets,
    writer::{QUEUE_BATCHES_MAX, Waiting, Writer, WriterState},
};
use async_trait::async_trait;
use branchline_protocol::{
    document::Kind,
    hash::Hash,
    id::{JobId, NodeId, TenantId},
    job::State,
    order::Envelope,
    time::Millis,
};
use bytes::Bytes;
use sqlx::{
    ConnectOptions, Connection, Row, SqlSafeStr, SqlStr, SqliteConnection, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    path::Path,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

/// Every format there has been: (number, what it brought, its statements).
const FORMATS: [(u32, &str, &str); 6] = [
    (1, "initial", include_str!("../../migrations/0001_initial.sql")),
    (2, "way down", include_str!("../../migrations/0002_way_down.sql")),
    (3, "dead letters", include_str!("../../migrations/0003_dead_letters.sql")),
    (4, "clock skew", include_str!("../../migrations/0004_clock_skew.sql")),
    (6, "deliveries", include_str!("../../migrations/0006_deliveries.sql")),
    (7, "last delivery", include_str!("../../migrations/0007_last_delivery.sql")),
];

/// Readers at once; more wait. Reads are short, and each holds a thread.
const READERS: u32 = 4;

/// The server's store in a SQLite file.
pub struct SqliteStore {
    readers: SqlitePool,
    queue: Mutex<Option<mpsc::Sender<Waiting>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    state: Arc<WriterState>,
}

impl SqliteStore {
    /// Opens the file, or makes it, and brings it to this build's format. The file is this process's alone until
    /// [`Store::close`]. Must be called within a tokio runtime that outlives the store: the writer is a task of it.
    ///
    /// Fails with [`StoreError::InUse`], [`StoreError::NewerFormat`] (the file is untouched) or
    /// [`StoreError::Database`].
    pub async fn open(path: &Path) -> Result<Arc<SqliteStore>, StoreError> {
        Self::open_tuned(path, None).await
    }

    /// The same with a limit on the file's pages, beyond which writes fail as on a full disk.
    pub(super) async fn open_tuned(path: &Path, pages_max: Option<u32>) -> Result<Arc<SqliteStore>, StoreError> {
        let attempt = format!("opening {}", path.display());
        let lock = lock(path)?;
        let options =
            SqliteConnectOptions::new().filename(path).statement_cache_capacity(100).disable_statement_logging();
        let mut writing = options
            .clone()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // What a statement may have to undo needs no file.
            .pragma("temp_store", "memory")
            .pragma("cache_size", "-16384");
        if let Some(pages) = pages_max {
            writing = writing.pragma("max_page_count", pages.to_string());
        }
        let mut connection = SqliteConnection::connect_with(&writing).await.map_err(|e| database(&attempt, e))?;
        migrate(&mut connection).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.read_only(true))
            .await
            .map_err(|e| database(&attempt, e))?;
        let state = Arc::new(WriterState::default());
        let (queue, waiting) = mpsc::channel(QUEUE_BATCHES_MAX);
        let writer = Writer { connection, state: state.clone(), lock };
        let writer = Mutex::new(Some(tokio::spawn(writer.run(waiting))));
        Ok(Arc::new(SqliteStore { readers, queue: Mutex::new(Some(queue)), writer, state }))
    }

    /// Copies the database in `path`, as it is at one instant, into the new file `into` (mode 0600); others may have it
    /// open. What is committed when this is called is in the copy.
    ///
    /// Fails with [`StoreError::NewerFormat`] or [`StoreError::Database`].
    pub async fn snapshot(path: &Path, into: &Path) -> Result<Snapshot, StoreError> {
        snapshot::snapshot(path, into).await
    }

    fn refusal(&self) -> StoreError {
        StoreError::Stopped(self.state.stopped.borrow().clone().unwrap_or_else(|| "it is closed".into()))
    }
}

/// Takes the file's lock: gone with the process, however it ends.
fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let attempt = format!("locking {}", Path::new(&name).display());
    let file =
        File::options().create(true).truncate(false).write(true).open(&name).map_err(|e| database(&attempt, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(path.display().to_string())),
        Err(TryLockError::Error(error)) => Err(database(&attempt, error)),
    }
}

/// Refuses a store of a newer build.
pub(super) async fn check_format(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let known = FORMATS.iter().map(|(number, _, _)| *number).max().unwrap_or(0);
    let attempt = "reading the store's format";
    let table = "SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations'";
    if sqlx::query(table).fetch_optional(&mut *connection).await.map_err(|e| database(attempt, e))?.is_some() {
        let newest = sqlx::query("SELECT coalesce(max(version), 0) FROM _sqlx_migrations");
        let row = newest.fetch_one(&mut *connection).await.map_err(|e| database(attempt, e))?;
        let found: i64 = row.try_get(0).map_err(|e| database(attempt, e))?;
        let found = u32::try_from(found).unwrap_or(u32::MAX);
        if found > known {
            return Err(StoreError::NewerFormat { found, known });
        }
    }
    Ok(())
}

async fn migrate(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    check_format(connection).await?;
    let migrations = FORMATS.iter().map(|(number, what, sql)| {
        let sql: SqlStr = (*sql).into_sql_str();
        Migration::new(i64::from(*number), (*what).into(), MigrationType::Simple, sql, false)
    });
    let migrator = Migrator::with_migrations(migrations.collect());
    migrator.run_direct(None, connection, false).await.map_err(|e| database("bringing the store to this format", e))
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, batch: Vec<Op>) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (done, answer) = oneshot::channel();
        let queue = queue.ok_or_else(|| self.refusal())?;
        queue.send(Waiting { batch, done }).await.map_err(|_| self.refusal())?;
        drop(queue);
        answer.await.unwrap_or_else(|_| Err(self.refusal()))
    }

    async fn stopped(&self) -> String {
        let mut stopped = self.state.stopped.subscribe();
        let why = stopped.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        // Its sender lives as long as this store.
        why.unwrap_or_default()
    }

    fn fsyncs(&self) -> u64 {
        self.state.fsyncs.load(Ordering::SeqCst)
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        read::tenants(&self.readers).await
    }

    async fn sites(&self, tenant: &TenantId) -> Result<Vec<String>, StoreError> {
        read::sites(&self.readers, tenant).await
    }

    async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        read::nodes(&self.readers).await
    }

    async fn node(&self, tenant: &TenantId, id: NodeId) -> Result<Option<NodeRow>, StoreError> {
        read::node(&self.readers, tenant, id).await
    }

    async fn token(&self, hash: Hash) -> Result<Option<TokenRow>, StoreError> {
        read::token(&self.readers, hash).await
    }

    async fn api_token(&self, hash: Hash) -> Result<Option<ApiTokenRow>, StoreError> {
        read::api_token(&self.readers, hash).await
    }

    async fn jobs(&self, tenant: &TenantId, limit: u32) -> Result<Vec<JobHead>, StoreError> {
        read::jobs(&self.readers, tenant, limit).await
    }

    async fn job(&self, tenant: &TenantId, job: JobId) -> Result<Option<JobRow>, StoreError> {
        read::job(&self.readers, tenant, job).await
    }

    async fn job_devices(&self, tenant: &TenantId, job: JobId) -> Result<Vec<JobDeviceRow>, StoreError> {
        targets::job_devices(&self.readers, tenant, job, None).await
    }

    async fn job_device(
        &self,
        tenant: &TenantId,
        job: JobId,
        device: NodeId,
    ) -> Result<Option<JobDeviceRow>, StoreError> {
        Ok(targets::job_devices(&self.readers, tenant, job, Some(device)).await?.pop())
    }

    async fn job_counts(&self, tenant: &TenantId, job: JobId) -> Result<BTreeMap<State, u64>, StoreError> {
        read::job_counts(&self.readers, tenant, job).await
    }

    async fn steering(&self, tenant: &TenantId, job: JobId) -> Result<Vec<JobRow>, StoreError> {
        read::steering(&self.readers, tenant, job).await
    }

    async fn open_jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        read::open_jobs(&self.readers).await
    }

    async fn streams(&self) -> Result<Vec<(TenantId, StreamRow)>, StoreError> {
        read::streams(&self.readers).await
    }

    async fn dead_letters(&self, tenant: &TenantId, limit: u32) -> Result<Vec<DeadLetterRow>, StoreError> {
        read::dead_letters(&self.readers, tenant, limit).await
    }

    async fn inventory(&self, tenant: &TenantId, device: NodeId) -> Result<Option<InventoryRow>, StoreError> {
        read::inventory(&self.readers, tenant, device).await
    }

    async fn last_deliveries(
        &self,
        tenant: &TenantId,
        devices: &[NodeId],
    ) -> Result<BTreeMap<NodeId, Delivery>, StoreError> {
        read::last_deliveries(&self.readers, tenant, devices).await
    }

    async fn inventory_summaries(
        &self,
        tenant: &TenantId,
        devices: &[NodeId],
    ) -> Result<BTreeMap<NodeId, InventorySummary>, StoreError> {
        read::inventory_summaries(&self.readers, tenant, devices).await
    }

    async fn inventory_history(&self, tenant: &TenantId, device: NodeId) -> Result<Vec<(Millis, Bytes)>, StoreError> {
        read::inventory_history(&self.readers, tenant, device).await
    }

    async fn need_full(&self) -> Result<Vec<(TenantId, NodeId)>, StoreError> {
        read::need_full(&self.readers).await
    }

    async fn documents(&self, tenant: &TenantId) -> Result<Vec<(Kind, String, Envelope)>, StoreError> {
        read::documents(&self.readers, tenant).await
    }

    async fn meta(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        read::meta(&self.readers, key).await
    }

    async fn metas(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StoreError> {
        read::metas(&self.readers, prefix).await
    }

    async fn audit(&self, tenant: &TenantId, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        read::audit(&self.readers, tenant, limit).await
    }

    async fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        // Readers first: the last connection to close is the one that may fold the log into the file.
        self.readers.close().await;
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && let Err(error) = writer.await
        {
            tracing::error!(%error, "the store's writer ended badly");
        }
    }
}
