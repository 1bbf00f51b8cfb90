//! Reads. Each is one statement, so that it sees one state of the database. Every read of a tenant's rows names the
//! tenant; what is read for all tenants says whose each row is.

use super::{
    ApiTokenRow, AuditRow, DeadLetterRow, Delivery, InventoryRow, InventorySummary, JobHead, JobRow, NodeRow,
    StoreError, StreamRow, TokenRow,
    codec::{
        self, class, column, database, envelope, hash, ids, json, kind, parsed, state, unsigned, unsigned_32, uuid,
    },
};
use branchline_protocol::{
    document::Kind,
    hash::Hash,
    id::{JobId, NodeId, OrderNumber, TenantId, TraceId},
    inventory::Items,
    job::State,
    order::Envelope,
    record::StreamId,
    time::Millis,
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, SqlitePool, query, sqlite::SqliteRow};
use std::collections::BTreeMap;

type Read<T> = Result<T, StoreError>;
type Query = sqlx::query::Query<'static, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

/// Row by row: the driver's rows are several times as large as what is made of them, and at a start there is one for each node.
async fn all<T>(readers: &SqlitePool, query: Query, row: impl Fn(&SqliteRow) -> Read<T>) -> Read<Vec<T>> {
    let (mut rows, mut all) = (query.fetch(readers), Vec::new());
    while let Some(found) = rows.try_next().await.map_err(|e| database("reading", e))? {
        all.push(row(&found)?);
    }
    Ok(all)
}

async fn first<T>(readers: &SqlitePool, query: Query, row: impl Fn(&SqliteRow) -> Read<T>) -> Read<Option<T>> {
    let found = query.fetch_optional(readers).await.map_err(|e| database("reading", e))?;
    found.as_ref().map(row).transpose()
}

fn at(row: &SqliteRow, place: usize) -> Read<Millis> {
    column(row, place).map(Millis)
}

fn maybe_at(row: &SqliteRow, place: usize) -> Read<Option<Millis>> {
    Ok(column::<Option<i64>>(row, place)?.map(Millis))
}

fn bytes(row: &SqliteRow, place: usize) -> Read<Bytes> {
    column::<Vec<u8>>(row, place).map(Bytes::from)
}

pub async fn tenants(readers: &SqlitePool) -> Read<Vec<TenantId>> {
    all(readers, query("SELECT name FROM tenant ORDER BY name"), |row| codec::tenant(row, 0)).await
}

pub async fn sites(readers: &SqlitePool, tenant: &TenantId) -> Read<Vec<String>> {
    let sql = query("SELECT name FROM site WHERE tenant = ? ORDER BY name").bind(tenant.as_str().to_owned());
    all(readers, sql, |row| column(row, 0)).await
}

const NODE: &str = "SELECT tenant, id, role, site, name, host_name, platform, capabilities, kind, epoch, attachment, route, \
     last_contact, enrolled_at, revoked_at, key_hash, tags FROM node";

pub async fn nodes(readers: &SqlitePool) -> Read<Vec<NodeRow>> {
    all(readers, query(AssertSqlSafe(format!("{NODE} ORDER BY tenant, id"))), node_row).await
}

pub async fn node(readers: &SqlitePool, tenant: &TenantId, id: NodeId) -> Read<Option<NodeRow>> {
    let sql = query(AssertSqlSafe(format!("{NODE} WHERE tenant = ? AND id = ?")));
    first(readers, sql.bind(tenant.as_str().to_owned()).bind(id.bytes().to_vec()), node_row).await
}

fn node_row(row: &SqliteRow) -> Read<NodeRow> {
    Ok(NodeRow {
        tenant: codec::tenant(row, 0)?,
        id: NodeId(uuid(row, 1)?),
        role: parsed_role(row, 2)?,
        site: column(row, 3)?,
        name: column(row, 4)?,
        host_name: column(row, 5)?,
        platform: column(row, 6)?,
        capabilities: json(row, 7)?,
        kind: column(row, 8)?,
        epoch: unsigned_32(row, 9)?,
        attachment: unsigned(row, 10)?,
        route: ids(row, 11)?,
        last_contact: maybe_at(row, 12)?,
        enrolled_at: at(row, 13)?,
        revoked_at: maybe_at(row, 14)?,
        key_hash: hash(row, 15)?,
        tags: json(row, 16)?,
    })
}

fn parsed_role(row: &SqliteRow, place: usize) -> Read<branchline_protocol::id::Role> {
    parsed(row, place, "role")
}

pub async fn token(readers: &SqlitePool, secret: Hash) -> Read<Option<TokenRow>> {
    let sql = query("SELECT tenant, role, site, kind, uses_left, expires_at FROM token WHERE hash = ?");
    first(readers, sql.bind(secret.0.to_vec()), |row| {
        Ok(TokenRow {
            hash: secret,
            tenant: codec::tenant(row, 0)?,
            role: parsed_role(row, 1)?,
            site: column(row, 2)?,
            kind: column(row, 3)?,
            uses_left: unsigned_32(row, 4)?,
            expires_at: at(row, 5)?,
        })
    })
    .await
}

pub async fn api_token(readers: &SqlitePool, secret: Hash) -> Read<Option<ApiTokenRow>> {
    let sql = query("SELECT tenant, name FROM api_token WHERE hash = ?").bind(secret.0.to_vec());
    first(readers, sql, |row| Ok(ApiTokenRow { hash: secret, tenant: codec::tenant(row, 0)?, name: column(row, 1)? }))
        .await
}

pub async fn jobs(readers: &SqlitePool, tenant: &TenantId, limit: u32) -> Read<Vec<JobHead>> {
    let sql = query(
        "SELECT j.id, j.verb, j.command, j.class, j.ordered_by, j.issued_at, j.fetch_by, c.state, c.n FROM \
         (SELECT tenant, id, term, number, verb, command, class, ordered_by, issued_at, fetch_by FROM job \
          WHERE tenant = ? AND verb <> 'cancel' ORDER BY term DESC, number DESC LIMIT ?) j \
         JOIN job_count c ON c.tenant = j.tenant AND c.job = j.id ORDER BY j.term DESC, j.number DESC",
    );
    let rows = all(readers, sql.bind(tenant.as_str().to_owned()).bind(limit), |row| {
        let head = JobHead {
            id: JobId(uuid(row, 0)?),
            verb: column(row, 1)?,
            command: column(row, 2)?,
            class: class(row, 3)?,
            ordered_by: column(row, 4)?,
            issued_at: at(row, 5)?,
            fetch_by: at(row, 6)?,
            counts: BTreeMap::new(),
        };
        Ok((head, state(row, 7)?, unsigned(row, 8)?))
    })
    .await?;
    let mut heads: Vec<JobHead> = Vec::new();
    for (head, state, count) in rows {
        if heads.last().is_none_or(|last| last.id != head.id) {
            heads.push(head);
        }
        if let Some(last) = heads.last_mut()
            && count > 0
        {
            last.counts.insert(state, count);
        }
    }
    Ok(heads)
}

const JOB: &str = "SELECT tenant, id, term, number, trace, verb, command, selector, class, ordered_by, issued_at, \
                   fetch_by, report_by, envelope, args, origin FROM job WHERE tenant = ? AND id = ?";

const STEERING: &str = "SELECT tenant, id, term, number, trace, verb, command, selector, class, ordered_by, issued_at, \
                        fetch_by, report_by, envelope, args, origin FROM job WHERE tenant = ? AND origin = ? \
                        AND verb = 'cancel' ORDER BY term, number";

const OPEN_JOBS: &str = "SELECT tenant, id, term, number, trace, verb, command, selector, class, ordered_by, issued_at, \
                         fetch_by, report_by, envelope, args, origin FROM job j WHERE EXISTS (SELECT 1 FROM job_count c \
                         WHERE c.tenant = j.tenant AND c.job = j.id AND c.n > 0 \
                         AND c.state IN ('queued', 'delivered', 'running', 'paused')) ORDER BY tenant, term, number";

fn job_row(row: &SqliteRow) -> Read<JobRow> {
    Ok(JobRow {
        tenant: codec::tenant(row, 0)?,
        id: JobId(uuid(row, 1)?),
        number: OrderNumber { term: unsigned_32(row, 2)?, number: unsigned(row, 3)? },
        trace: TraceId(uuid(row, 4)?),
        verb: column(row, 5)?,
        command: column(row, 6)?,
        selector: column(row, 7)?,
        class: class(row, 8)?,
        ordered_by: column(row, 9)?,
        issued_at: at(row, 10)?,
        fetch_by: at(row, 11)?,
        report_by: at(row, 12)?,
        envelope: envelope(row, 13)?,
        args: bytes(row, 14)?,
        origin: column::<Option<&[u8]>>(row, 15)?.map(job_id).transpose()?,
    })
}

pub async fn job(readers: &SqlitePool, tenant: &TenantId, job: JobId) -> Read<Option<JobRow>> {
    first(readers, query(JOB).bind(tenant.as_str().to_owned()).bind(job.bytes().to_vec()), job_row).await
}

fn job_id(bytes: &[u8]) -> Read<JobId> {
    uuid::Uuid::from_slice(bytes).map(JobId).map_err(|e| database("reading an id", e))
}

pub async fn steering(readers: &SqlitePool, tenant: &TenantId, job: JobId) -> Read<Vec<JobRow>> {
    all(readers, query(STEERING).bind(tenant.as_str().to_owned()).bind(job.bytes().to_vec()), job_row).await
}

pub async fn open_jobs(readers: &SqlitePool) -> Read<Vec<JobRow>> {
    all(readers, query(OPEN_JOBS), job_row).await
}

pub async fn job_counts(readers: &SqlitePool, tenant: &TenantId, job: JobId) -> Read<BTreeMap<State, u64>> {
    let sql = query("SELECT state, n FROM job_count WHERE tenant = ? AND job = ? AND n > 0");
    let sql = sql.bind(tenant.as_str().to_owned()).bind(job.bytes().to_vec());
    Ok(all(readers, sql, |row| Ok((state(row, 0)?, unsigned(row, 1)?))).await?.into_iter().collect())
}

pub async fn streams(readers: &SqlitePool) -> Read<Vec<(TenantId, StreamRow)>> {
    let sql = query("SELECT tenant, key, upto, hash FROM stream ORDER BY tenant, key");
    all(readers, sql, |row| {
        let key: &[u8] = column(row, 1)?;
        let stream = StreamId::from_key(key).ok_or_else(|| database("reading", "column 1 holds no stream key"))?;
        Ok((codec::tenant(row, 0)?, StreamRow { stream, upto: unsigned(row, 2)?, hash: hash(row, 3)? }))
    })
    .await
}

pub async fn inventory(readers: &SqlitePool, tenant: &TenantId, device: NodeId) -> Read<Option<InventoryRow>> {
    let sql = query(
        "SELECT i.digest, i.collected_at, i.settings_version, w.device IS NOT NULL, s.section, s.items, i.clock_skew \
         FROM inventory i \
         LEFT JOIN inventory_wanted w ON w.tenant = i.tenant AND w.device = i.device \
         LEFT JOIN inventory_section s ON s.tenant = i.tenant AND s.device = i.device \
         WHERE i.tenant = ? AND i.device = ?",
    );
    let rows = all(readers, sql.bind(tenant.as_str().to_owned()).bind(device.bytes().to_vec()), |row| {
        let head = InventoryRow {
            sections: BTreeMap::new(),
            digest: hash(row, 0)?,
            collected_at: at(row, 1)?,
            settings_version: unsigned(row, 2)?,
            need_full: column::<i64>(row, 3)? != 0,
            clock_skew: column::<i64>(row, 6)? != 0,
        };
        let section: Option<String> = column(row, 4)?;
        let section: Option<(String, Items)> = section.map(|name| Ok((name, json(row, 5)?))).transpose()?;
        Ok((head, section))
    })
    .await?;
    Ok(rows.into_iter().fold(None, |whole: Option<InventoryRow>, (head, section)| {
        let mut whole = whole.unwrap_or(head);
        whole.sections.extend(section);
        Some(whole)
    }))
}

type Sql<'q> = sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

/// A condition that the column is one of these devices, whose values are the parameters from the second on.
fn among(column: &str, devices: &[NodeId]) -> String {
    let values: Vec<String> = (2..).zip(devices).map(|(n, _)| format!("?{n}")).collect();
    format!("AND {column} IN ({})", values.join(", "))
}

/// Binds what [`among`] asks for.
fn of_these<'q>(sql: Sql<'q>, devices: &[NodeId]) -> Sql<'q> {
    devices.iter().fold(sql, |sql, device| sql.bind(device.bytes().to_vec()))
}

pub async fn last_deliveries(
    readers: &SqlitePool,
    tenant: &TenantId,
    devices: &[NodeId],
) -> Read<BTreeMap<NodeId, Delivery>> {
    let sql = query(AssertSqlSafe(format!(
        "SELECT l.device, j.id, j.class, j.issued_at, l.delivered_at FROM last_delivery l \
         JOIN job j ON j.tenant = l.tenant AND j.id = l.job WHERE l.tenant = ?1 {}",
        among("l.device", devices)
    )));
    let sql = of_these(sql.bind(tenant.as_str().to_owned()), devices);
    let rows = all(readers, sql, |row| {
        let delivery = Delivery {
            job: JobId(uuid(row, 1)?),
            class: class(row, 2)?,
            issued_at: at(row, 3)?,
            delivered_at: at(row, 4)?,
        };
        Ok((NodeId(uuid(row, 0)?), delivery))
    });
    Ok(rows.await?.into_iter().collect())
}

pub async fn inventory_summaries(
    readers: &SqlitePool,
    tenant: &TenantId,
    devices: &[NodeId],
) -> Read<BTreeMap<NodeId, InventorySummary>> {
    let sql = query(AssertSqlSafe(format!(
        "SELECT device, collected_at, digest, os, cpu, memory_bytes, packages, settings_version, clock_skew \
         FROM inventory WHERE tenant = ?1 {}",
        among("device", devices)
    )));
    let sql = of_these(sql.bind(tenant.as_str().to_owned()), devices);
    let rows = all(readers, sql, |row| {
        let summary = InventorySummary {
            collected_at: at(row, 1)?,
            digest: hash(row, 2)?,
            os: column(row, 3)?,
            cpu: column(row, 4)?,
            memory_bytes: column::<Option<i64>>(row, 5)?.and_then(|n| u64::try_from(n).ok()),
            packages: unsigned(row, 6)?,
            settings_version: unsigned(row, 7)?,
            clock_skew: column::<i64>(row, 8)? != 0,
        };
        Ok((NodeId(uuid(row, 0)?), summary))
    });
    Ok(rows.await?.into_iter().collect())
}

pub async fn inventory_history(readers: &SqlitePool, tenant: &TenantId, device: NodeId) -> Read<Vec<(Millis, Bytes)>> {
    let sql =
        query("SELECT collected_at, report FROM inventory_history WHERE tenant = ? AND device = ? ORDER BY sequence");
    let sql = sql.bind(tenant.as_str().to_owned()).bind(device.bytes().to_vec());
    all(readers, sql, |row| Ok((at(row, 0)?, bytes(row, 1)?))).await
}

pub async fn need_full(readers: &SqlitePool) -> Read<Vec<(TenantId, NodeId)>> {
    let sql = query("SELECT tenant, device FROM inventory_wanted ORDER BY tenant, device");
    all(readers, sql, |row| Ok((codec::tenant(row, 0)?, NodeId(uuid(row, 1)?)))).await
}

pub async fn documents(readers: &SqlitePool, tenant: &TenantId) -> Read<Vec<(Kind, String, Envelope)>> {
    let sql = query("SELECT kind, site, envelope FROM document WHERE tenant = ?").bind(tenant.as_str().to_owned());
    let mut documents = all(readers, sql, |row| Ok((kind(row, 0)?, column(row, 1)?, envelope(row, 2)?))).await?;
    documents.sort_by(|a: &(Kind, String, Envelope), b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    Ok(documents)
}

pub async fn metas(readers: &SqlitePool, prefix: &str) -> Read<Vec<(String, Bytes)>> {
    // A character that no key has ends the range.
    let sql = query("SELECT key, value FROM meta WHERE key >= ?1 AND key < ?1 || char(0x10ffff) ORDER BY key");
    all(readers, sql.bind(prefix.to_owned()), |row| Ok((column(row, 0)?, bytes(row, 1)?))).await
}

pub async fn meta(readers: &SqlitePool, key: &str) -> Read<Option<Bytes>> {
    first(readers, query("SELECT value FROM meta WHERE key = ?").bind(key.to_owned()), |row| bytes(row, 0)).await
}

pub async fn dead_letters(readers: &SqlitePool, tenant: &TenantId, limit: u32) -> Read<Vec<DeadLetterRow>> {
    let sql = "SELECT at, via, stream, number, class, code, bytes, body FROM dead_letter WHERE tenant = ? \
               ORDER BY sequence DESC LIMIT ?";
    all(readers, query(sql).bind(tenant.as_str().to_owned()).bind(limit), |row| {
        let key: &[u8] = column(row, 2)?;
        let stream = StreamId::from_key(key).ok_or_else(|| database("reading", "column 2 holds no stream key"))?;
        let number: &[u8] = column(row, 3)?;
        let number = number.try_into().map_err(|_| database("reading", "column 3 holds no number"))?;
        Ok(DeadLetterRow {
            tenant: tenant.clone(),
            at: at(row, 0)?,
            via: NodeId(uuid(row, 1)?),
            stream,
            number: u64::from_be_bytes(number),
            class: column(row, 4)?,
            code: column(row, 5)?,
            bytes: unsigned(row, 6)?,
            body: bytes(row, 7)?,
        })
    })
    .await
}

pub async fn audit(readers: &SqlitePool, tenant: &TenantId, limit: u32) -> Read<Vec<AuditRow>> {
    let sql = query("SELECT at, who, what, detail FROM audit WHERE tenant = ? ORDER BY sequence DESC LIMIT ?");
    all(readers, sql.bind(tenant.as_str().to_owned()).bind(limit), |row| {
        let (who, what, detail) = (column(row, 1)?, column(row, 2)?, column(row, 3)?);
        Ok(AuditRow { tenant: tenant.clone(), at: at(row, 0)?, who, what, detail })
    })
    .await
}
