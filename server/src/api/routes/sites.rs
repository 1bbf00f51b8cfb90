//! A tenant's sites: defined before nodes are installed into them (TOP-16).

use super::{Answer, Shared};
use crate::api::{
    auth::Caller,
    error::{ApiError, Code},
    input::{Fields, Params},
};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

/// Characters of a site's name.
const NAME_CHARS_MAX: usize = 40;

/// The tenant's sites.
#[derive(Serialize, ToSchema)]
pub struct SitesView {
    sites: Vec<String>,
}

/// A site.
#[derive(Serialize, ToSchema)]
pub struct SiteBody {
    /// 1 to 40 letters, digits, `-`, `_` and `.`, so that selectors can name it.
    name: String,
}

/// The tenant's sites.
#[utoipa::path(
    get, path = "/api/v1/sites", tag = "sites", params(("tenant" = Option<String>, Query)),
    responses((status = 200, body = SitesView))
)]
pub async fn list(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    Params::known(&request, &[])?;
    Ok(HttpResponse::Ok().json(SitesView { sites: shared.store.sites(&caller.tenant).await? }))
}

/// Adds a site.
#[utoipa::path(
    post, path = "/api/v1/sites", tag = "sites", request_body = SiteBody,
    params(("tenant" = Option<String>, Query)),
    responses((status = 201, body = SiteBody), (status = 409, body = crate::api::error::ErrorView))
)]
pub async fn add(caller: Caller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    Params::known(&request, &[])?;
    let mut fields = Fields::read(payload).await?;
    let name: String = fields.required("name")?;
    fields.finish()?;
    check_name("name", &name)?;
    if shared.store.sites(&caller.tenant).await?.contains(&name) {
        return Err(Code::AlreadyExists.refuse(format!("there is a site {name:?}")).field("name"));
    }
    shared.control.site(&caller.tenant, &caller.name, name.clone()).await?;
    Ok(HttpResponse::Created().json(SiteBody { name }))
}

/// Whether a text may name a site.
pub fn check_name(field: &str, name: &str) -> Result<(), ApiError> {
    let fits = (1..=NAME_CHARS_MAX).contains(&name.chars().count())
        && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if fits {
        return Ok(());
    }
    let message = format!("a site's name is 1 to {NAME_CHARS_MAX} letters, digits, -, _ and .");
    Err(Code::BadValue.refuse(message).field(field))
}
