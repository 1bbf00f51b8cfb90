//! The row of a job.

use super::{Done, class_word, envelope_blob, signed};
use crate::store::JobRow;
use sqlx::{SqliteConnection, query};

macro_rules! insert_job {
    ($conflict:literal) => {
        concat!(
            "INSERT INTO job (tenant, id, term, number, trace, verb, command, selector, class, ordered_by, issued_at, \
             fetch_by, report_by, envelope, args, origin) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            $conflict
        )
    };
}
/// A second job of this id or number fails the batch.
pub(super) const INSERT_JOB: &str = insert_job!("");
/// A job of this id, or another of its number, stays as it is.
pub(super) const INSERT_JOB_IF_NEW: &str = insert_job!(" ON CONFLICT DO NOTHING");

/// A job's row; `insert` is [`INSERT_JOB`] or [`INSERT_JOB_IF_NEW`].
pub(super) async fn job_row(connection: &mut SqliteConnection, insert: &'static str, row: &JobRow) -> Done {
    query(insert)
        .bind(row.tenant.as_str())
        .bind(&row.id.bytes()[..])
        .bind(row.number.term)
        .bind(signed(row.number.number))
        .bind(&row.trace.bytes()[..])
        .bind(&row.verb)
        .bind(&row.command)
        .bind(&row.selector)
        .bind(class_word(row.class))
        .bind(&row.ordered_by)
        .bind(row.issued_at.0)
        .bind(row.fetch_by.0)
        .bind(row.report_by.0)
        .bind(envelope_blob(&row.envelope))
        .bind(&row.args[..])
        .bind(row.origin.map(|job| job.bytes().to_vec()))
        .execute(connection)
        .await?;
    Ok(())
}
