//! A job's devices with their results, which may be a hundred thousand rows: read many at a time. A row of its own for each
//! device costs more in the driver than in the database.

use super::{
    JobDeviceRow, ResultRow, StoreError,
    codec::{column, database},
};
use branchline_protocol::{
    id::{JobId, NodeId, TenantId},
    job::State,
    time::Millis,
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use serde::Deserialize;
use sqlx::{AssertSqlSafe, SqlitePool, query};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Devices a statement reads.
const PIECE: u32 = 256;

/// So many devices in one row, in the order of the table; with the last of them, and whether it is words. Outputs that are too long to
/// stand between others are left out.
fn piece(bound: &str) -> String {
    format!(
        "SELECT '[' || group_concat(packed) || ']', typeof(max(device)) = 'text', CAST(max(device) AS BLOB), count(*) FROM \
            (SELECT d.device, json_array(hex(d.device), \
            typeof(d.device) = 'text', d.leaf, d.epoch, d.state, d.reason, d.changed_at, hex(d.holders), d.delivered_at, d.late, \
            r.ended_at, r.started_at, r.exit_code, r.truncated, \
            iif(length(r.stdout) <= 1024, hex(r.stdout), ''), iif(length(r.stderr) <= 1024, hex(r.stderr), '')) AS packed \
            FROM job_device d LEFT JOIN job_result r ON r.tenant = d.tenant AND r.job = d.job AND r.device = d.device \
            WHERE d.tenant = ?1 AND d.job = ?2 {bound} ORDER BY d.device LIMIT {PIECE})"
    )
}

/// The outputs that were left out, one device a row.
fn outputs(bound: &str) -> String {
    format!(
        "SELECT r.device, iif(length(r.stdout) > 1024, r.stdout, NULL), iif(length(r.stderr) > 1024, r.stderr, NULL) \
         FROM job_result r WHERE r.tenant = ?1 AND r.job = ?2 {bound} \
         AND (length(r.stdout) > 1024 OR length(r.stderr) > 1024)"
    )
}

/// From which device a piece goes on.
enum After {
    Words(String),
    Device(Vec<u8>),
}

/// A device as the statement packs it, in its order.
#[derive(Deserialize)]
struct Packed<'a>(
    &'a str,
    u8,
    Option<u32>,
    u32,
    &'a str,
    Option<String>,
    i64,
    &'a str,
    Option<i64>,
    u8,
    Option<i64>,
    Option<i64>,
    Option<i32>,
    Option<u8>,
    &'a str,
    &'a str,
);

/// A job's devices, those that are in its order by their place in it, then the words that named none; or that device of it. Read in
/// pieces, so that nowhere all of them are packed at once, and in one transaction, so that they are of one state of the database.
pub async fn job_devices(
    readers: &SqlitePool,
    tenant: &TenantId,
    job: JobId,
    device: Option<NodeId>,
) -> Result<Vec<JobDeviceRow>, StoreError> {
    let reading = |e| database("reading devices", e);
    let mut one_state = readers.begin().await.map_err(reading)?;
    let of_job = |sql: String| query(AssertSqlSafe(sql)).bind(tenant.as_str().to_owned()).bind(job.bytes().to_vec());
    let (mut devices, mut after) = (Vec::new(), None);
    loop {
        let sql = match (device, after) {
            (Some(device), _) => of_job(piece("AND d.device = ?3")).bind(device.bytes().to_vec()),
            (None, None) => of_job(piece("")),
            (None, Some(After::Words(words))) => of_job(piece("AND d.device > ?3")).bind(words),
            (None, Some(After::Device(id))) => of_job(piece("AND d.device > ?3")).bind(id),
        };
        let row = sql.fetch_one(&mut *one_state).await.map_err(reading)?;
        let Some(packed) = column::<Option<&str>>(&row, 0)? else { break };
        let packed: Vec<Packed<'_>> = serde_json::from_str(packed).map_err(|e| database("reading devices", e))?;
        for one in packed {
            devices.push(unpacked(job, one).ok_or_else(|| database("reading devices", "no such value"))?);
        }
        if column::<i64>(&row, 3)? < i64::from(PIECE) {
            break;
        }
        let last: Vec<u8> = column(&row, 2)?;
        after = Some(match column::<bool>(&row, 1)? {
            true => After::Words(String::from_utf8(last).map_err(|e| database("reading devices", e))?),
            false => After::Device(last),
        });
    }
    {
        let sql = match device {
            Some(device) => of_job(outputs("AND r.device = ?3")).bind(device.bytes().to_vec()),
            None => of_job(outputs("")),
        };
        let (mut rows, mut places) = (sql.fetch(&mut *one_state), None);
        while let Some(row) = rows.try_next().await.map_err(|e| database("reading outputs", e))? {
            let id = Uuid::from_slice(column(&row, 0)?).map_err(|e| database("reading outputs", e))?;
            let at = places.get_or_insert_with(|| places_of(&devices)).get(&NodeId(id)).copied();
            let result = at.and_then(|at| devices[at].result.as_mut());
            if let Some(result) = result {
                let [stdout, stderr] = [column::<Option<&[u8]>>(&row, 1)?, column::<Option<&[u8]>>(&row, 2)?];
                stdout.into_iter().for_each(|bytes| result.stdout = Bytes::copy_from_slice(bytes));
                stderr.into_iter().for_each(|bytes| result.stderr = Bytes::copy_from_slice(bytes));
            }
        }
    }
    one_state.commit().await.map_err(reading)?;
    devices.sort_by(|a, b| {
        let place = |row: &JobDeviceRow| (row.leaf.is_none(), row.leaf);
        place(a).cmp(&place(b)).then_with(|| a.device.cmp(&b.device))
    });
    Ok(devices)
}

/// Where each device stands.
fn places_of(devices: &[JobDeviceRow]) -> BTreeMap<NodeId, usize> {
    let place = |(at, row): (usize, &JobDeviceRow)| Some((*row.device.as_ref().ok()?, at));
    devices.iter().enumerate().filter_map(place).collect()
}

/// `None`: what the database holds was not written by this store.
fn unpacked(job: JobId, packed: Packed<'_>) -> Option<JobDeviceRow> {
    let Packed(device, words, leaf, epoch, state, reason, changed_at, holders, delivered_at, late, ..) = packed;
    let Packed(.., ended_at, started_at, exit_code, truncated, stdout, stderr) = packed;
    let result = match ended_at {
        None => None,
        Some(ended_at) => Some(ResultRow {
            ended_at: Millis(ended_at),
            started_at: started_at.map(Millis),
            exit_code,
            truncated: truncated != Some(0),
            stdout: bytes(stdout)?.into(),
            stderr: bytes(stderr)?.into(),
        }),
    };
    let device = match words {
        0 => Ok(node(device)?),
        _ => Err(String::from_utf8(bytes(device)?).ok()?),
    };
    let mut held = Vec::with_capacity(holders.len() / 32);
    for at in (0..holders.len()).step_by(32) {
        held.push(node(holders.get(at..at + 32)?)?);
    }
    Some(JobDeviceRow {
        job,
        device,
        leaf,
        epoch,
        state: State::from_word(state)?,
        reason,
        changed_at: Millis(changed_at),
        result,
        holders: held,
        delivered_at: delivered_at.map(Millis),
        late: late != 0,
    })
}

fn node(hex: &str) -> Option<NodeId> {
    let bytes: [u8; 16] = bytes(hex)?.try_into().ok()?;
    Some(NodeId(Uuid::from_bytes(bytes)))
}

/// The bytes that the database's `hex` wrote.
fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    };
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn hex_is_read_as_the_database_writes_it_and_nothing_else() {
        assert_eq!(bytes("00FF7A"), Some(vec![0, 255, 0x7a]));
        assert_eq!(bytes(""), Some(vec![]));
        for wrong in ["0", "0g", "ff", "00F", "é0"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
