//! Devices: listed, shown, their inventory read and asked for anew.

use super::{
    Answer, Shared, find_device,
    jobs::{self, Detail},
    listing, no_body, segment,
};
use crate::api::{
    ApiState,
    auth::Caller,
    control::{NewJob, NodeView},
    error::{ApiError, Code},
    input::{Fields, Params},
    views::{self, DeviceCountsView, DevicesView, InventoryView},
};
use actix_web::{HttpRequest, HttpResponse, web};
use branchline_protocol::{job::RefreshInventory, selector::Selector};
use serde::Serialize;
use utoipa::ToSchema;

/// Milliseconds that a refresh may run: reading a package database takes seconds, a slow disk some more.
const REFRESH_RUN_MS: u64 = 600_000;

/// The tenant's devices that a selector means; all without one. Revoked ones are not listed.
#[utoipa::path(
    get, path = "/api/v1/devices", tag = "devices",
    params(
        ("on" = Option<String>, Query, description = "a selector"),
        ("results" = Option<String>, Query, description = "`all`, or `none` for how many are in which state only"),
        ("tenant" = Option<String>, Query)
    ),
    responses((status = 200, body = DevicesView), (status = 422, body = crate::api::error::ErrorView))
)]
pub async fn list(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    let params = Params::known(&request, &["on", "results"])?;
    let (on, detail) = (params.text("on")?, Detail::of(&params)?);
    let on = on.map_or(Ok(Selector::All), |text| selector("on", &text))?;
    if detail == Detail::Counts {
        let counts = shared.control.device_counts(&caller.tenant, &on).await?;
        return Ok(HttpResponse::Ok().json(DeviceCountsView { counts }));
    }
    let chosen = shared.control.chosen(&caller.tenant, &on).await?;
    listing::devices(ApiState::clone(&shared), caller.tenant, chosen).await
}

/// One device by id or name.
#[utoipa::path(
    get, path = "/api/v1/devices/{device}", tag = "devices",
    params(("device" = String, Path, description = "id or name"), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = views::DeviceView), (status = 404, body = crate::api::error::ErrorView))
)]
pub async fn show(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    Params::known(&request, &[])?;
    shown(&caller, &shared, &segment(&request, "device")).await
}

/// A device as it stands.
async fn shown(caller: &Caller, shared: &Shared, words: &str) -> Answer {
    let NodeView { node, .. } = &find_device(shared, &caller.tenant, words).await?;
    Ok(HttpResponse::Ok().json(listing::device(shared, &caller.tenant, node.id).await?))
}

/// What may be changed of a device.
#[derive(Serialize, ToSchema)]
pub struct DeviceChanges {
    /// `true`: it keeps its connection and goes before others for a slot; `false`: it polls and holds none; null: it asks
    /// for a slot as its own configuration says. Takes effect at its next contact (ADM-1).
    keep_connection: Option<bool>,
}

/// Changes a device: whether it keeps its connection.
#[utoipa::path(
    patch, path = "/api/v1/devices/{device}", tag = "devices", request_body = DeviceChanges,
    params(("device" = String, Path, description = "id or name"), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = views::DeviceView), (status = 404, body = crate::api::error::ErrorView),
        (status = 422, body = crate::api::error::ErrorView))
)]
pub async fn change(caller: Caller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    Params::known(&request, &[])?;
    let mut fields = Fields::read(payload).await?;
    if !fields.has("keep_connection") {
        let missing = Code::MissingField.refuse("keep_connection is missing: true, false or null");
        return Err(missing.field("keep_connection"));
    }
    let keep: Option<bool> = fields.optional("keep_connection")?;
    fields.finish()?;
    let words = segment(&request, "device");
    let id = find_device(&shared, &caller.tenant, &words).await?.node.id;
    shared.control.keep_connection(&caller.tenant, &caller.name, id, keep).await?;
    shown(&caller, &shared, &id.to_string()).await
}

/// A device's whole inventory.
#[utoipa::path(
    get, path = "/api/v1/devices/{device}/inventory", tag = "devices",
    params(("device" = String, Path, description = "id or name"), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = InventoryView), (status = 404, body = crate::api::error::ErrorView))
)]
pub async fn inventory(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    Params::known(&request, &[])?;
    let view = find_device(&shared, &caller.tenant, &segment(&request, "device")).await?;
    let held = shared.store.inventory(&caller.tenant, view.node.id).await?;
    let held = held.ok_or_else(|| Code::NoInventory.refuse(format!("{} has sent no inventory yet", view.node.name)))?;
    Ok(HttpResponse::Ok().json(InventoryView {
        device: view.node.id.to_string(),
        collected_at: views::time(held.collected_at),
        last_contact: view.standing.last_contact.map(views::time),
        digest: held.digest.to_string(),
        settings_version: held.settings_version,
        differs: held.settings_version < shared.control.settings(&caller.tenant).await?.version,
        clock_skew: held.clock_skew,
        sections: held.sections,
    }))
}

/// Orders a device to send its inventory, whole or what changed.
#[utoipa::path(
    post, path = "/api/v1/devices/{device}/refresh", tag = "devices",
    params(
        ("device" = String, Path, description = "id or name"), ("full" = Option<bool>, Query),
        ("tenant" = Option<String>, Query)
    ),
    responses((status = 201, body = views::JobView), (status = 404, body = crate::api::error::ErrorView))
)]
pub async fn refresh(caller: Caller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    let full = Params::known(&request, &["full"])?.flag("full")?;
    no_body(payload).await?;
    let view = find_device(&shared, &caller.tenant, &segment(&request, "device")).await?;
    let (args, command) = jobs::refresh_inventory(RefreshInventory { full });
    let job = NewJob {
        on: Selector::Device(view.node.id.to_string()),
        verb: "refresh_inventory".into(),
        args,
        command,
        class: None,
        life_ms: jobs::LIFE_S_DEFAULT * 1_000,
        run_ms_max: REFRESH_RUN_MS,
    };
    let id = shared.control.issue(&caller.tenant, &caller.name, job).await?;
    jobs::answer(HttpResponse::Created(), &shared, &caller.tenant, id, Detail::Rows).await
}

/// Suspends a device: it is given no orders, begins nothing and collects nothing until it is revived. Lives of jobs that
/// wait for it run on.
#[utoipa::path(
    post, path = "/api/v1/devices/{device}/suspend", tag = "devices",
    params(("device" = String, Path, description = "id or name"), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = views::DeviceView), (status = 404, body = crate::api::error::ErrorView))
)]
pub async fn suspend(caller: Caller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    suspended(caller, shared, request, payload, true).await
}

/// Revives a suspended device.
#[utoipa::path(
    post, path = "/api/v1/devices/{device}/revive", tag = "devices",
    params(("device" = String, Path, description = "id or name"), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = views::DeviceView), (status = 404, body = crate::api::error::ErrorView))
)]
pub async fn revive(caller: Caller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    suspended(caller, shared, request, payload, false).await
}

async fn suspended(
    caller: Caller,
    shared: Shared,
    request: HttpRequest,
    payload: web::Payload,
    suspended: bool,
) -> Answer {
    Params::known(&request, &[])?;
    no_body(payload).await?;
    let words = segment(&request, "device");
    let id = find_device(&shared, &caller.tenant, &words).await?.node.id;
    shared.control.suspend(&caller.tenant, &caller.name, id, suspended).await?;
    shown(&caller, &shared, &id.to_string()).await
}

/// Reads a selector.
pub fn selector(field: &str, text: &str) -> Result<Selector, ApiError> {
    text.parse().map_err(|e| Code::BadSelector.refuse(format!("{e}")).field(field))
}
