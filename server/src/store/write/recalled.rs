//! A job that came back from below: what of it is there already stays as it is.

use super::{
    Done,
    job_row::{INSERT_JOB_IF_NEW, job_row},
};
use crate::store::{JobDeviceRow, JobRow};
use sqlx::{SqliteConnection, query};

/// See [`crate::store::Op::Recalled`].
pub(super) async fn recalled(connection: &mut SqliteConnection, row: JobRow, devices: Vec<JobDeviceRow>) -> Done {
    job_row(connection, INSERT_JOB_IF_NEW, &row).await?;
    for device in devices {
        let Ok(id) = device.device else { continue };
        // Its number may be another job's: then there is no job of this id, and no device of it.
        let inserted = query(
            "INSERT INTO job_device (tenant, job, device, leaf, epoch, state, reason, changed_at) \
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE EXISTS (SELECT 1 FROM job WHERE tenant = ?1 AND id = ?2) \
             ON CONFLICT DO NOTHING",
        )
        .bind(row.tenant.as_str())
        .bind(&row.id.bytes()[..])
        .bind(&id.bytes()[..])
        .bind(device.leaf)
        .bind(device.epoch)
        .bind(device.state.as_str())
        .bind(device.reason)
        .bind(device.changed_at.0)
        .execute(&mut *connection)
        .await?;
        if inserted.rows_affected() > 0 {
            query(
                "INSERT INTO job_count (tenant, job, state, n) VALUES (?, ?, ?, 1) \
                 ON CONFLICT DO UPDATE SET n = n + 1",
            )
            .bind(row.tenant.as_str())
            .bind(&row.id.bytes()[..])
            .bind(device.state.as_str())
            .execute(&mut *connection)
            .await?;
        }
    }
    Ok(())
}
