//! A restored server's recovery: it listens to its children before it issues anything (OPS-7).

use super::{Answer, Shared, no_body};
use crate::api::{
    auth::{Caller, SystemCaller},
    control::RecoveryFigures,
    input::Params,
};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

/// The server's term, and how far its recovery is.
#[derive(Serialize, ToSchema)]
pub struct RecoveryView {
    /// +1 at the least with each restore.
    pub(super) term: u32,
    /// Null unless it is recovering: everything that issues is answered 503 `recovering` meanwhile.
    pub(super) recovering: Option<ProgressView>,
}

/// How far a recovery is.
#[derive(Serialize, ToSchema)]
pub struct ProgressView {
    /// Children that the backup knew and that have told what they know.
    heard: u64,
    /// Children that the backup knew.
    awaited: u64,
    /// Seconds until it is over at the latest.
    ends_in_s: u64,
}

impl From<RecoveryFigures> for RecoveryView {
    fn from(figures: RecoveryFigures) -> Self {
        let view = |(heard, awaited, ends_in_s)| ProgressView { heard, awaited, ends_in_s };
        RecoveryView { term: figures.term, recovering: figures.recovering.map(view) }
    }
}

/// The server's term, and how far its recovery is.
#[utoipa::path(
    get, path = "/api/v1/recovery", tag = "recovery", params(("tenant" = Option<String>, Query)),
    responses((status = 200, body = RecoveryView))
)]
pub async fn show(_caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    Params::known(&request, &[])?;
    Ok(HttpResponse::Ok().json(RecoveryView::from(shared.control.recovery())))
}

/// Ends a recovery before every child was heard: what the others know is learned when they come.
#[utoipa::path(
    post, path = "/api/v1/recovery/end", tag = "recovery",
    responses((status = 200, body = RecoveryView), (status = 403, body = crate::api::error::ErrorView),
        (status = 409, body = crate::api::error::ErrorView))
)]
pub async fn end(caller: SystemCaller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    Params::known(&request, &[])?;
    no_body(payload).await?;
    shared.control.end_recovery(&caller.0.name).await?;
    Ok(HttpResponse::Ok().json(RecoveryView::from(shared.control.recovery())))
}
