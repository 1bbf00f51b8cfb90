//! A copy of the database as it is at one instant, while others read and write it.

use super::{StoreError, codec::database, sqlite::check_format};
use branchline_protocol::id::{NodeId, TenantId};
use sqlx::{Connection, SqliteConnection, query, sqlite::SqliteConnectOptions};
use std::{fs::OpenOptions, path::Path, time::Duration};

/// How long a checkpoint of the running server may keep the copy waiting.
const BUSY: Duration = Duration::from_secs(30);

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The server.
    pub server: NodeId,
    /// Its name.
    pub name: String,
    /// Its term.
    pub term: u32,
    /// Its tenants, `system` among them.
    pub tenants: Vec<TenantId>,
}

/// See [`super::SqliteStore::snapshot`].
pub(super) async fn snapshot(from: &Path, into: &Path) -> Result<Snapshot, StoreError> {
    let attempt = format!("copying {} to {}", from.display(), into.display());
    // SQLite takes an empty file as none, and keeps the mode that this one is made with.
    create_private(into).map_err(|e| database(&attempt, e))?;
    let mut connection = open(from).await?;
    check_format(&mut connection).await?;
    let text = into.to_str().ok_or_else(|| database(&attempt, "the path is not UTF-8"))?;
    query("VACUUM INTO ?").bind(text).execute(&mut connection).await.map_err(|e| database(&attempt, e))?;
    connection.close().await.map_err(|e| database(&attempt, e))?;
    let mut copy = open(into).await?;
    let found = look(&mut copy).await;
    copy.close().await.map_err(|e| database(&attempt, e))?;
    found
}

async fn open(path: &Path) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(false).busy_timeout(BUSY);
    let attempt = format!("opening {}", path.display());
    SqliteConnection::connect_with(&options).await.map_err(|e| database(&attempt, e))
}

async fn look(copy: &mut SqliteConnection) -> Result<Snapshot, StoreError> {
    let attempt = "reading the copy";
    let rows: Vec<(String,)> = sqlx::query_as("SELECT name FROM tenant ORDER BY name")
        .fetch_all(&mut *copy)
        .await
        .map_err(|e| database(attempt, e))?;
    let tenants = rows.into_iter().map(|(name,)| name.parse::<TenantId>().map_err(|e| database(attempt, e)));
    let tenants = tenants.collect::<Result<_, _>>()?;
    let server = value(copy, "server_id").await?.and_then(|text| text.parse().ok());
    Ok(Snapshot {
        server: server.ok_or_else(|| database(attempt, "it names no server"))?,
        name: value(copy, "server_name").await?.unwrap_or_default(),
        term: value(copy, "term").await?.and_then(|text| text.parse().ok()).unwrap_or(1),
        tenants,
    })
}

async fn value(copy: &mut SqliteConnection, key: &str) -> Result<Option<String>, StoreError> {
    let row: Option<(Vec<u8>,)> = sqlx::query_as("SELECT value FROM meta WHERE key = ?")
        .bind(key)
        .fetch_optional(copy)
        .await
        .map_err(|e| database("reading the copy", e))?;
    Ok(row.and_then(|(bytes,)| String::from_utf8(bytes).ok()))
}

fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path).map(|_| ())
}
