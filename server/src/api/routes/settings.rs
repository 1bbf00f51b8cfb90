//! A tenant's settings: poll intervals, what is collected and when (ADM-8, ADM-14, INV-8 … INV-10).

use super::{Answer, Shared};
use crate::api::{
    auth::Caller,
    input::{Fields, Params},
};
use actix_web::{HttpRequest, HttpResponse, web};
use branchline_protocol::{document::Settings, schedule::ScheduleFault};
use serde::Serialize;
use utoipa::ToSchema;

/// The settings in force. In a change every field may be left out, and is then as before; `version`, if given, must be
/// the one in force.
#[derive(Serialize, ToSchema)]
pub struct SettingsView {
    /// +1 with each change.
    version: u64,
    /// Seconds between polls of class normal, 60 to 604,800.
    poll_normal_s: u64,
    /// Seconds between polls of class urgent, 60 to 604,800.
    poll_urgent_s: u64,
    /// Seconds between polls of class erase, 60 to 604,800.
    poll_erase_s: u64,
    /// Sections that are collected; empty: all.
    collect: Vec<String>,
    /// `daily`, `monthly DAY HH:MM` or `cron MINUTE HOUR DAY MONTH WEEKDAY`, in each device's own time.
    schedule: String,
    /// Device-local hour of `daily`, 0 to 23.
    inventory_hour: u8,
    /// Whether a device that was off makes up for a collection at its next start.
    catch_up_missed: bool,
    /// Whether a device collects once more when newer settings reach it.
    collect_on_return: bool,
}

impl From<Settings> for SettingsView {
    fn from(settings: Settings) -> Self {
        SettingsView {
            version: settings.version,
            poll_normal_s: settings.poll_normal_s,
            poll_urgent_s: settings.poll_urgent_s,
            poll_erase_s: settings.poll_erase_s,
            collect: settings.collect,
            schedule: settings.schedule.to_string(),
            inventory_hour: settings.inventory_hour,
            catch_up_missed: settings.catch_up_missed,
            collect_on_return: settings.collect_on_return,
        }
    }
}

/// The settings in force.
#[utoipa::path(
    get, path = "/api/v1/settings", tag = "settings", params(("tenant" = Option<String>, Query)),
    responses((status = 200, body = SettingsView))
)]
pub async fn show(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    Params::known(&request, &[])?;
    Ok(HttpResponse::Ok().json(SettingsView::from(shared.control.settings(&caller.tenant).await?)))
}

/// Changes the settings. A link that is up gets them at once, others at their next contact.
#[utoipa::path(
    put, path = "/api/v1/settings", tag = "settings", request_body = SettingsView,
    params(("tenant" = Option<String>, Query)),
    responses((status = 200, body = SettingsView), (status = 409, body = crate::api::error::ErrorView),
        (status = 422, body = crate::api::error::ErrorView))
)]
pub async fn change(caller: Caller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    Params::known(&request, &[])?;
    let mut fields = Fields::read(payload).await?;
    let mut settings = shared.control.settings(&caller.tenant).await?;
    take(&mut fields, "version", &mut settings.version)?;
    take(&mut fields, "poll_normal_s", &mut settings.poll_normal_s)?;
    take(&mut fields, "poll_urgent_s", &mut settings.poll_urgent_s)?;
    take(&mut fields, "poll_erase_s", &mut settings.poll_erase_s)?;
    take(&mut fields, "collect", &mut settings.collect)?;
    take(&mut fields, "inventory_hour", &mut settings.inventory_hour)?;
    take(&mut fields, "catch_up_missed", &mut settings.catch_up_missed)?;
    take(&mut fields, "collect_on_return", &mut settings.collect_on_return)?;
    if let Some(text) = fields.optional::<String>("schedule")? {
        settings.schedule = text.parse().map_err(|fault: ScheduleFault| fault.refusal("schedule"))?;
    }
    fields.finish()?;
    settings.check()?;
    let settings = shared.control.set_settings(&caller.tenant, &caller.name, settings).await?;
    Ok(HttpResponse::Ok().json(SettingsView::from(settings)))
}

fn take<T: serde::de::DeserializeOwned>(
    fields: &mut Fields,
    name: &str,
    into: &mut T,
) -> Result<(), crate::api::error::ApiError> {
    if let Some(value) = fields.optional(name)? {
        *into = value;
    }
    Ok(())
}
