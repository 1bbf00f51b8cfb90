//! Devices: listed, shown, their inventory read and asked for anew.

use super::{Answer, Shared, find_device, jobs, no_body, segment};
use crate::api::{
    auth::Caller,
    control::NewJob,
    error::{ApiError, Code},
    input::{Fields, Params},
    select::{Target, names},
    views::{self, DevicesView, InventoryView},
};
use actix_web::{HttpRequest, HttpResponse, web};
use branchline_protocol::{id::Role, job::RefreshInventory, selector::Selector};
use serde::Serialize;
use utoipa::ToSchema;

/// Milliseconds that a refresh may run: reading a package database takes seconds, a slow disk some more.
const REFRESH_RUN_MS: u64 = 600_000;

/// The tenant's devices that a selector means; all without one. Revoked ones are not listed.
#[utoipa::path(
    get, path = "/api/v1/devices", tag = "devices",
    params(("on" = Option<String>, Query, description = "a selector"), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = DevicesView), (status = 422, body = crate::api::error::ErrorView))
)]
pub async fn list(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    let on = Params::known(&request, &["on"])?.text("on")?;
    let on = on.map_or(Ok(Selector::All), |text| selector("on", &text))?;
    let nodes = shared.control.nodes(&caller.tenant, None).await?;
    let inventories = shared.store.inventory_summaries(&caller.tenant).await?;
    let names = names(&nodes);
    let mut chosen: Vec<_> = nodes
        .iter()
        .filter(|view| view.node.role == Role::Agent && view.node.revoked_at.is_none())
        .filter(|view| on.matches(&Target { view, names: &names }))
        .collect();
    chosen.sort_by(|a, b| (&a.node.name, a.node.id).cmp(&(&b.node.name, b.node.id)));
    let wanted = shared.control.settings(&caller.tenant).await?.version;
    let last = shared.store.last_deliveries(&caller.tenant, None).await?;
    let devices = chosen
        .into_iter()
        .map(|view| views::device(view, &names, inventories.get(&view.node.id), wanted, last.get(&view.node.id)));
    Ok(HttpResponse::Ok().json(DevicesView { devices: devices.collect() }))
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
    let nodes = shared.control.nodes(&caller.tenant, None).await?;
    let view = find_device(&nodes, words)?;
    let id = view.node.id;
    let inventories = shared.store.inventory_summaries(&caller.tenant).await?;
    let wanted = shared.control.settings(&caller.tenant).await?.version;
    let last = shared.store.last_deliveries(&caller.tenant, Some(id)).await?;
    Ok(HttpResponse::Ok().json(views::device(view, &names(&nodes), inventories.get(&id), wanted, last.get(&id))))
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
    let id = find_device(&shared.control.nodes(&caller.tenant, Some(Role::Agent)).await?, &words)?.node.id;
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
    let nodes = shared.control.nodes(&caller.tenant, Some(Role::Agent)).await?;
    let view = find_device(&nodes, &segment(&request, "device"))?;
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
    let nodes = shared.control.nodes(&caller.tenant, Some(Role::Agent)).await?;
    let view = find_device(&nodes, &segment(&request, "device"))?;
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
    Ok(HttpResponse::Created().json(jobs::view(&shared, &caller.tenant, id).await?))
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
    let id = find_device(&shared.control.nodes(&caller.tenant, Some(Role::Agent)).await?, &words)?.node.id;
    shared.control.suspend(&caller.tenant, &caller.name, id, suspended).await?;
    shown(&caller, &shared, &id.to_string()).await
}

/// Reads a selector.
pub fn selector(field: &str, text: &str) -> Result<Selector, ApiError> {
    text.parse().map_err(|e| Code::BadSelector.refuse(format!("{e}")).field(field))
}
