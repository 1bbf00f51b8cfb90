//! What was done, by whom, and what was refused (JOB-15, RLY-9).

use super::{Answer, Shared};
use crate::{
    api::{
        auth::Caller,
        input::Params,
        names::{Names, names},
        views::time,
    },
    store::DeadLetterRow,
};
use actix_web::{HttpRequest, HttpResponse};
use base64::{Engine, engine::general_purpose::STANDARD};
use branchline_protocol::id::NodeId;
use serde::Serialize;
use std::{collections::BTreeSet, ops::RangeInclusive};
use utoipa::ToSchema;

/// Entries a list shows unless told.
const LIST_DEFAULT: u64 = 100;
const LIST: RangeInclusive<u64> = 1..=1_000;

/// Newest first.
#[derive(Serialize, ToSchema)]
pub struct AuditView {
    audit: Vec<ActView>,
}

/// One act.
#[derive(Serialize, ToSchema)]
pub struct ActView {
    at: String,
    /// An API token's name or a node.
    who: String,
    /// `job.issue`, `node.revoke`, `record.refused` …
    what: String,
    /// On what, with which outcome.
    detail: String,
}

/// Newest first.
#[derive(Serialize, ToSchema)]
pub struct DeadLettersView {
    dead_letters: Vec<DeadLetterView>,
}

/// A record that was refused, and blocks nothing.
#[derive(Serialize, ToSchema)]
pub struct DeadLetterView {
    at: String,
    /// The node whose record it says it is.
    node: String,
    name: Option<String>,
    /// Who brought it.
    via: String,
    via_name: Option<String>,
    epoch: u64,
    lane: String,
    number: u64,
    /// The record's class on the wire.
    class: u16,
    /// `revoked`, `foreign`, `malformed`, `too_large`, `hole`, `rollback` or `gap_not_allowed`.
    code: String,
    /// How long it was.
    bytes: u64,
    /// Its first 64 KiB.
    body_base64: String,
}

fn limit(request: &HttpRequest) -> Result<u32, crate::api::error::ApiError> {
    let limit = Params::known(request, &["limit"])?.number("limit", LIST)?.unwrap_or(LIST_DEFAULT);
    Ok(u32::try_from(limit).unwrap_or(u32::MAX))
}

/// What was done in the tenant, newest first.
#[utoipa::path(
    get, path = "/api/v1/audit", tag = "audit",
    params(("limit" = Option<u32>, Query, description = "1 to 1000"), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = AuditView))
)]
pub async fn list(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    let rows = shared.store.audit(&caller.tenant, limit(&request)?).await?;
    let act =
        |row: crate::store::AuditRow| ActView { at: time(row.at), who: row.who, what: row.what, detail: row.detail };
    Ok(HttpResponse::Ok().json(AuditView { audit: rows.into_iter().map(act).collect() }))
}

/// The tenant's refused records, newest first.
#[utoipa::path(
    get, path = "/api/v1/dead-letters", tag = "audit",
    params(("limit" = Option<u32>, Query, description = "1 to 1000"), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = DeadLettersView))
)]
pub async fn dead_letters(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    let rows = shared.store.dead_letters(&caller.tenant, limit(&request)?).await?;
    let known: BTreeSet<NodeId> = rows.iter().flat_map(|row| [row.stream.node, row.via]).collect();
    let names = names(&shared.control.devices(&caller.tenant, known.into_iter().collect()).await?.views);
    Ok(HttpResponse::Ok().json(DeadLettersView { dead_letters: rows.iter().map(|row| letter(row, &names)).collect() }))
}

fn letter(row: &DeadLetterRow, names: &Names) -> DeadLetterView {
    let stream = row.stream;
    DeadLetterView {
        at: time(row.at),
        node: stream.node.to_string(),
        name: names.get(&stream.node).cloned(),
        via: row.via.to_string(),
        via_name: names.get(&row.via).cloned(),
        epoch: stream.epoch.into(),
        lane: format!("{:?}", stream.lane).to_lowercase(),
        number: row.number,
        class: row.class,
        code: row.code.clone(),
        bytes: row.bytes,
        body_base64: STANDARD.encode(&row.body),
    }
}
