//! What each [`Op`] does to the tables. Results, states, inventories and stream positions, of which a relay's batch brings
//! hundreds, are gathered and written many rows a statement; everything else is one prepared statement an op.

pub mod delivery;
mod inventory;
mod job_row;
mod recalled;

use super::{
    DEAD_LETTERS_MAX, DeadLetterRow, INVENTORY_HISTORY_MAX, JobDeviceRow, JobRow, NodeRow, Op, ResultRow, StreamRow,
    codec::{class_word, envelope_blob, ids_blob, json_text, kind_word, signed},
};
use branchline_protocol::{
    id::{JobId, NodeId, TenantId},
    job::State,
    time::Millis,
};
use delivery::Deliveries;
use inventory::{Inventories, inventory, wanted};
use job_row::{INSERT_JOB, job_row};
use sqlx::{Arguments, AssertSqlSafe, Row, SqliteConnection, query, query_with, sqlite::SqliteArguments};
use std::collections::BTreeMap;

/// Why a batch was not written.
#[derive(Debug)]
pub enum WriteFault {
    /// A condition did not hold: the batch's own fault.
    Conflict(String),
    /// The database failed: nobody's writes can be trusted.
    Broken(String),
}

impl From<sqlx::Error> for WriteFault {
    fn from(error: sqlx::Error) -> WriteFault {
        /// SQLITE_CONSTRAINT, the low byte of its extended codes.
        const CONSTRAINT: i32 = 19;
        let code = error.as_database_error().and_then(|e| e.code()).and_then(|code| code.parse::<i32>().ok());
        match code {
            Some(code) if code & 0xff == CONSTRAINT => WriteFault::Conflict(error.to_string()),
            _ => WriteFault::Broken(format!("writing: {error}")),
        }
    }
}

type Done = Result<(), WriteFault>;

/// Writes a batch inside the open transaction.
pub async fn apply(connection: &mut SqliteConnection, batch: Vec<Op>) -> Done {
    let mut many = Many::default();
    for op in batch {
        match op {
            Op::JobDevice { tenant, job, device, state, reason, at, result } => {
                let key = (tenant, job, device);
                if let Some(result) = result {
                    many.results.insert(key.clone(), result);
                }
                // The instant of a delivery is kept, and a later state of the same batch would hide it.
                if many.states.get(&key).is_some_and(|(before, ..)| *before == State::Delivered) {
                    many.write(connection).await?;
                }
                many.deliveries.add(&key.0, job, device, state, at);
                many.states.insert(key, (state, reason, at));
            }
            Op::Holders { tenant, job, device, holders } => {
                many.holders.insert((tenant, job, device), holders);
            }
            Op::Stream(tenant, row) => {
                many.streams.insert((tenant, row.stream.key()), row);
            }
            Op::Inventory {
                tenant,
                device,
                put,
                gone,
                digest,
                collected_at,
                settings_version,
                need_full,
                clock_skew,
            } => {
                let (of, facts) = ((tenant, device), (digest, collected_at, settings_version, clock_skew));
                inventory(connection, &mut many, of.clone(), put, gone, facts).await?;
                wanted(connection, &mut many, of, need_full).await?;
            }
            Op::NeedFull(tenant, device) => wanted(connection, &mut many, (tenant, device), true).await?,
            other => {
                // What was gathered comes before what follows it: the effect is that of one op after another.
                many.write(connection).await?;
                one(connection, other).await?;
            }
        }
    }
    many.write(connection).await
}

/// One device of a job.
type Target = (TenantId, JobId, NodeId);

/// Writes gathered by key; the last of a key counts, as if written one after another.
#[derive(Default)]
struct Many {
    states: BTreeMap<Target, (State, Option<String>, Millis)>,
    results: BTreeMap<Target, ResultRow>,
    holders: BTreeMap<Target, Vec<NodeId>>,
    streams: BTreeMap<(TenantId, [u8; 29]), StreamRow>,
    deliveries: Deliveries,
    inventories: Inventories,
}

impl Many {
    async fn write(&mut self, connection: &mut SqliteConnection) -> Done {
        let states = std::mem::take(&mut self.states).into_iter();
        rows(connection, STATES, states, |((tenant, job, device), (state, reason, at)), arguments| {
            arguments.text(tenant.as_str()).blob(job.bytes()).blob(device.bytes());
            arguments.text(state.as_str()).add(reason).add(at.0);
        })
        .await?;
        let results = std::mem::take(&mut self.results).into_iter();
        rows(connection, RESULTS, results, |((tenant, job, device), result), arguments| {
            arguments.text(tenant.as_str()).blob(job.bytes()).blob(device.bytes());
            arguments.add(result.exit_code).add(result.truncated).add(result.started_at.map(|at| at.0));
            arguments.add(result.ended_at.0).blob(&result.stdout).blob(&result.stderr);
        })
        .await?;
        let holders = std::mem::take(&mut self.holders).into_iter();
        rows(connection, HOLDERS, holders, |((tenant, job, device), holders), arguments| {
            arguments.text(tenant.as_str()).blob(job.bytes()).blob(device.bytes()).blob(&ids_blob(&holders));
        })
        .await?;
        let streams = std::mem::take(&mut self.streams).into_iter();
        rows(connection, STREAMS, streams, |((tenant, key), row), arguments| {
            arguments.text(tenant.as_str()).blob(&key).add(signed(row.upto)).blob(&row.hash.0);
        })
        .await?;
        self.deliveries.write(connection).await?;
        self.inventories.write(connection).await
    }
}

/// A statement over many rows: what stands before and after the list of values, and how many values a row has.
pub struct ManySql {
    before: &'static str,
    values: usize,
    after: &'static str,
}

impl ManySql {
    /// The text for so many rows: made of constants, every value is bound.
    pub fn text(&self, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.values].join(","));
        format!("{}{}{}", self.before, vec![row; rows].join(","), self.after)
    }
}

/// New states, of devices that are there. Not UPDATE … FROM: that walks all of the table's devices for each statement,
/// while CROSS JOIN keeps the given rows outermost, so that each finds its device by key.
pub const STATES: ManySql = ManySql {
    before: "WITH v (tenant, job, device, state, reason, at) AS (VALUES ",
    values: 6,
    after: ") INSERT INTO job_device (tenant, job, device, leaf, epoch, state, reason, changed_at) \
            SELECT d.tenant, d.job, d.device, d.leaf, d.epoch, v.state, v.reason, v.at FROM v CROSS JOIN job_device d \
            ON d.tenant = v.tenant AND d.job = v.job AND d.device = v.device WHERE true \
            ON CONFLICT DO UPDATE SET state = excluded.state, reason = excluded.reason, \
            changed_at = excluded.changed_at, \
            delivered_at = iif(excluded.state = 'delivered', coalesce(delivered_at, excluded.changed_at), delivered_at)",
};

/// New holders, of devices that are there.
pub const HOLDERS: ManySql = ManySql {
    before: "WITH v (tenant, job, device, holders) AS (VALUES ",
    values: 4,
    after: ") INSERT INTO job_device (tenant, job, device, leaf, epoch, state, reason, changed_at, holders) \
            SELECT d.tenant, d.job, d.device, d.leaf, d.epoch, d.state, d.reason, d.changed_at, v.holders \
            FROM v CROSS JOIN job_device d \
            ON d.tenant = v.tenant AND d.job = v.job AND d.device = v.device WHERE true \
            ON CONFLICT DO UPDATE SET holders = excluded.holders",
};

/// A late result replaces only an end that nobody reported.
const LATE: &str = "UPDATE job_device SET state = ?5, reason = ?6, changed_at = ?7, late = 1 \
                    WHERE tenant = ?1 AND device = ?2 \
                    AND job = (SELECT id FROM job WHERE tenant = ?1 AND term = ?3 AND number = ?4) \
                    AND state IN ('expired', 'outcome_unknown') AND NOT EXISTS (SELECT 1 FROM job_result r \
                    WHERE r.tenant = job_device.tenant AND r.job = job_device.job AND r.device = job_device.device) \
                    RETURNING job";

/// New results, of devices that are there.
pub const RESULTS: ManySql = ManySql {
    before: "WITH v (tenant, job, device, exit_code, truncated, started_at, ended_at, stdout, stderr) AS (VALUES ",
    values: 9,
    after: ") INSERT INTO job_result (tenant, job, device, exit_code, truncated, started_at, ended_at, stdout, stderr) \
            SELECT v.* FROM v CROSS JOIN job_device d \
            ON d.tenant = v.tenant AND d.job = v.job AND d.device = v.device WHERE true \
            ON CONFLICT DO UPDATE SET exit_code = excluded.exit_code, truncated = excluded.truncated, \
            started_at = excluded.started_at, ended_at = excluded.ended_at, stdout = excluded.stdout, \
            stderr = excluded.stderr",
};

const STREAMS: ManySql = ManySql {
    before: "INSERT INTO stream (tenant, key, upto, hash) VALUES ",
    values: 4,
    after: " ON CONFLICT DO UPDATE SET upto = excluded.upto, hash = excluded.hash",
};

const DEVICES: ManySql = ManySql {
    before: "INSERT INTO job_device (tenant, job, device, leaf, epoch, state, reason, changed_at, holders) VALUES ",
    values: 9,
    after: "",
};

/// Rows a statement takes, largest first: few texts, so that each stays prepared. 256 rows of 9 values are well below
/// the 32,766 values a statement may have.
const ROWS: [usize; 5] = [256, 64, 16, 4, 1];

async fn rows<T>(
    connection: &mut SqliteConnection,
    sql: ManySql,
    mut items: impl ExactSizeIterator<Item = T>,
    bind: impl Fn(T, &mut Values),
) -> Done {
    while items.len() > 0 {
        let count = ROWS.into_iter().find(|n| *n <= items.len()).unwrap_or(1);
        let mut values = Values::default();
        items.by_ref().take(count).for_each(|item| bind(item, &mut values));
        query_with(AssertSqlSafe(sql.text(count)), values.0).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Bound values.
#[derive(Default)]
struct Values(SqliteArguments);

impl Values {
    fn add<'t, T: sqlx::Encode<'t, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>>(&mut self, value: T) -> &mut Self {
        self.0.add(value).expect("integers, texts and blobs always bind");
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.add(text)
    }

    fn blob(&mut self, bytes: &[u8]) -> &mut Self {
        self.add(bytes)
    }
}

async fn one(connection: &mut SqliteConnection, op: Op) -> Done {
    match op {
        Op::Tenant(tenant) => {
            query("INSERT INTO tenant (name) VALUES (?)").bind(tenant.as_str()).execute(connection).await?;
        }
        Op::Site(tenant, name) => {
            let sql = "INSERT INTO site (tenant, name) VALUES (?, ?)";
            query(sql).bind(tenant.as_str()).bind(name).execute(connection).await?;
        }
        Op::Node(row) => node(connection, row).await?,
        Op::Attached { tenant, node, epoch, attachment, route, last_contact, capabilities } => {
            query(
                "UPDATE node SET epoch = ?3, attachment = ?4, route = ?5, last_contact = ?6, capabilities = ?7 \
                 WHERE tenant = ?1 AND id = ?2 AND (epoch, attachment) <= (?3, ?4)",
            )
            .bind(tenant.as_str())
            .bind(&node.bytes()[..])
            .bind(epoch)
            .bind(signed(attachment))
            .bind(ids_blob(&route))
            .bind(last_contact.0)
            .bind(json_text(&capabilities))
            .execute(connection)
            .await?;
        }
        Op::Token(row) => {
            query(
                "INSERT INTO token (hash, tenant, role, site, kind, uses_left, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(&row.hash.0[..])
            .bind(row.tenant.as_str())
            .bind(row.role.as_str())
            .bind(row.site)
            .bind(row.kind)
            .bind(row.uses_left)
            .bind(row.expires_at.0)
            .execute(connection)
            .await?;
        }
        Op::UseToken(hash) => {
            let sql = "UPDATE token SET uses_left = uses_left - 1 WHERE hash = ? AND uses_left > 0";
            let used = query(sql).bind(&hash.0[..]).execute(connection).await?;
            if used.rows_affected() == 0 {
                return Err(WriteFault::Conflict("the enrolment token has no use left".into()));
            }
        }
        Op::ApiToken(row) => {
            query(
                "INSERT INTO api_token (hash, tenant, name) VALUES (?, ?, ?) \
                 ON CONFLICT DO UPDATE SET tenant = excluded.tenant, name = excluded.name",
            )
            .bind(&row.hash.0[..])
            .bind(row.tenant.as_str())
            .bind(row.name)
            .execute(connection)
            .await?;
        }
        Op::Job(row, devices) => job(connection, *row, devices).await?,
        Op::InventoryHistory { tenant, device, collected_at, report } => {
            query("INSERT INTO inventory_history (tenant, device, collected_at, report) VALUES (?, ?, ?, ?)")
                .bind(tenant.as_str())
                .bind(&device.bytes()[..])
                .bind(collected_at.0)
                .bind(&report[..])
                .execute(&mut *connection)
                .await?;
            query(
                "DELETE FROM inventory_history WHERE tenant = ?1 AND device = ?2 AND sequence <= \
                 (SELECT sequence FROM inventory_history WHERE tenant = ?1 AND device = ?2 \
                  ORDER BY sequence DESC LIMIT 1 OFFSET ?3)",
            )
            .bind(tenant.as_str())
            .bind(&device.bytes()[..])
            .bind(INVENTORY_HISTORY_MAX)
            .execute(connection)
            .await?;
        }
        Op::Document(tenant, kind, site, (term, version), envelope) => {
            query(
                "INSERT INTO document (tenant, kind, site, term, version, envelope) VALUES (?, ?, ?, ?, ?, ?) \
                 ON CONFLICT DO UPDATE SET term = excluded.term, version = excluded.version, \
                 envelope = excluded.envelope WHERE (excluded.term, excluded.version) >= (term, version)",
            )
            .bind(tenant.as_str())
            .bind(kind_word(kind))
            .bind(site)
            .bind(term)
            .bind(signed(version))
            .bind(envelope_blob(&envelope))
            .execute(connection)
            .await?;
        }
        Op::Meta(key, value) => {
            query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value")
                .bind(key)
                .bind(&value[..])
                .execute(connection)
                .await?;
        }
        Op::Audit(row) => {
            query("INSERT INTO audit (tenant, at, who, what, detail) VALUES (?, ?, ?, ?, ?)")
                .bind(row.tenant.as_str())
                .bind(row.at.0)
                .bind(row.who)
                .bind(row.what)
                .bind(row.detail)
                .execute(connection)
                .await?;
        }
        Op::LateResult { tenant, order, device, state, reason, at, result } => {
            let replaced = query(LATE)
                .bind(tenant.as_str())
                .bind(&device.bytes()[..])
                .bind(order.term)
                .bind(signed(order.number))
                .bind(state.as_str())
                .bind(reason)
                .bind(at.0)
                .fetch_optional(&mut *connection)
                .await?;
            if let Some(row) = replaced {
                let job: Vec<u8> = row.try_get(0)?;
                let job = uuid::Uuid::from_slice(&job).map_err(|e| WriteFault::Broken(format!("a job's id: {e}")))?;
                let mut many = Many::default();
                many.deliveries.add(&tenant, JobId(job), device, state, at);
                many.results.insert((tenant, JobId(job), device), result);
                many.write(connection).await?;
            }
        }
        Op::StreamGone(tenant, stream) => {
            query("DELETE FROM stream WHERE tenant = ? AND key = ?")
                .bind(tenant.as_str())
                .bind(&stream.key()[..])
                .execute(connection)
                .await?;
        }
        Op::DeadLetter(row) => dead_letter(connection, row).await?,
        Op::Recalled(row, devices) => recalled::recalled(connection, *row, devices).await?,
        Op::JobDevice { .. } | Op::Holders { .. } | Op::Stream(..) | Op::Inventory { .. } | Op::NeedFull(..) => {
            unreachable!("gathered by `apply`")
        }
    }
    Ok(())
}

async fn node(connection: &mut SqliteConnection, row: NodeRow) -> Done {
    query(
        "INSERT INTO node (tenant, id, role, site, name, name_folded, host_name, platform, capabilities, kind, epoch, \
         attachment, route, last_contact, enrolled_at, revoked_at, key_hash, tags) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (tenant, id) DO UPDATE SET role = excluded.role, site = excluded.site, name = excluded.name, \
         name_folded = excluded.name_folded, host_name = excluded.host_name, platform = excluded.platform, \
         capabilities = excluded.capabilities, kind = excluded.kind, epoch = excluded.epoch, \
         attachment = excluded.attachment, route = excluded.route, last_contact = excluded.last_contact, \
         enrolled_at = excluded.enrolled_at, revoked_at = excluded.revoked_at, key_hash = excluded.key_hash, \
         tags = excluded.tags",
    )
    .bind(row.tenant.as_str())
    .bind(&row.id.bytes()[..])
    .bind(row.role.as_str())
    .bind(row.site)
    .bind(&row.name)
    .bind(row.name.to_lowercase())
    .bind(row.host_name)
    .bind(row.platform)
    .bind(json_text(&row.capabilities))
    .bind(row.kind)
    .bind(row.epoch)
    .bind(signed(row.attachment))
    .bind(ids_blob(&row.route))
    .bind(row.last_contact.map(|at| at.0))
    .bind(row.enrolled_at.0)
    .bind(row.revoked_at.map(|at| at.0))
    .bind(&row.key_hash.0[..])
    .bind(json_text(&row.tags))
    .execute(connection)
    .await?;
    Ok(())
}

async fn job(connection: &mut SqliteConnection, row: JobRow, devices: Vec<JobDeviceRow>) -> Done {
    job_row(connection, INSERT_JOB, &row).await?;
    let mut counts: BTreeMap<State, i64> = BTreeMap::new();
    for device in &devices {
        *counts.entry(device.state).or_default() += 1;
    }
    for (state, count) in counts {
        query("INSERT INTO job_count (tenant, job, state, n) VALUES (?, ?, ?, ?)")
            .bind(row.tenant.as_str())
            .bind(&row.id.bytes()[..])
            .bind(state.as_str())
            .bind(count)
            .execute(&mut *connection)
            .await?;
    }
    let mut many = Many::default();
    for device in &devices {
        let Ok(id) = device.device else { continue };
        many.deliveries.add(&row.tenant, row.id, id, device.state, device.changed_at);
        if let Some(result) = &device.result {
            many.results.insert((row.tenant.clone(), row.id, id), result.clone());
        }
    }
    rows(connection, DEVICES, devices.into_iter(), |device, arguments| {
        arguments.text(row.tenant.as_str()).blob(row.id.bytes());
        match device.device {
            Ok(id) => arguments.blob(id.bytes()),
            Err(words) => arguments.text(&words),
        };
        arguments.add(device.leaf).add(device.epoch).text(device.state.as_str());
        arguments.add(device.reason).add(device.changed_at.0).blob(&ids_blob(&device.holders));
    })
    .await?;
    many.write(connection).await
}
async fn dead_letter(connection: &mut SqliteConnection, row: DeadLetterRow) -> Done {
    query(
        "INSERT INTO dead_letter (tenant, at, via, stream, number, class, code, bytes, body) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(row.tenant.as_str())
    .bind(row.at.0)
    .bind(&row.via.bytes()[..])
    .bind(&row.stream.key()[..])
    .bind(&row.number.to_be_bytes()[..])
    .bind(row.class)
    .bind(row.code)
    .bind(signed(row.bytes))
    .bind(&row.body[..])
    .execute(&mut *connection)
    .await?;
    query(
        "DELETE FROM dead_letter WHERE tenant = ?1 AND sequence <= \
         (SELECT sequence FROM dead_letter WHERE tenant = ?1 ORDER BY sequence DESC LIMIT 1 OFFSET ?2)",
    )
    .bind(row.tenant.as_str())
    .bind(DEAD_LETTERS_MAX)
    .execute(connection)
    .await?;
    Ok(())
}
