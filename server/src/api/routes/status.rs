//! What the node says of itself. `/getstatus` and `/metrics` need no token: they stand on the private port and tell
//! nothing of any tenant by name.

use super::{Answer, Shared, recovery::RecoveryView};
use crate::api::{BUILD, auth::Caller, input::Params, openapi};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use utoipa::ToSchema;

/// The node's status.
#[derive(Serialize, ToSchema)]
pub struct StatusView {
    /// The build number (OPS-2).
    build: &'static str,
    /// Seconds since the node started.
    uptime_s: u64,
    /// The server's id.
    server_id: String,
    /// Its term, and how far its recovery is if it was restored.
    #[serde(flatten)]
    recovery: RecoveryView,
}

/// That it runs, since when, and which build.
#[utoipa::path(get, path = "/getstatus", tag = "status", security(()), responses((status = 200, body = StatusView)))]
pub async fn getstatus(shared: Shared) -> HttpResponse {
    let uptime_s = shared.ambient.clock.mono().since(shared.started_at) / 1_000;
    let (server_id, recovery) = (shared.server_id.to_string(), RecoveryView::from(shared.control.recovery()));
    HttpResponse::Ok().json(StatusView { build: BUILD, uptime_s, server_id, recovery })
}

/// The text Prometheus scrapes.
#[utoipa::path(
    get, path = "/metrics", tag = "status", security(()),
    responses((status = 200, content_type = "text/plain", body = String))
)]
pub async fn metrics(shared: Shared) -> HttpResponse {
    shared.metrics.counter("branchline_fsyncs_total", &[]).absolute(shared.store.fsyncs());
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(shared.metrics.render())
}

/// This description.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "status", responses((status = 200, description = "OpenAPI")))]
pub async fn openapi(_caller: Caller, request: HttpRequest) -> Answer {
    Params::known(&request, &[])?;
    Ok(HttpResponse::Ok().json(openapi::document()))
}
