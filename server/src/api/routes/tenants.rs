//! Tenants: the installation's own business.

use super::{Answer, Shared, sites::check_name};
use crate::api::{
    auth::SystemCaller,
    error::Code,
    input::{Fields, Params},
};
use actix_web::{HttpRequest, HttpResponse, web};
use branchline_protocol::id::TenantId;
use serde::Serialize;
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// Sites a tenant may be made with; more are added one by one.
const SITES_MAX: usize = 1_000;

/// Every tenant.
#[derive(Serialize, ToSchema)]
pub struct TenantsView {
    tenants: Vec<String>,
}

/// A tenant to be made.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the API's description of the body; it is read field by field")]
pub struct TenantBody {
    /// 1 to 40 of `a-z`, `0-9` and `-`, no `-` at either end.
    name: String,
    /// Its first sites.
    sites: Option<Vec<String>>,
}

/// A tenant with its first API token.
#[derive(Serialize, ToSchema)]
pub struct NewTenantView {
    name: String,
    /// The secret; it is shown this once.
    token: String,
}

/// Every tenant.
#[utoipa::path(
    get, path = "/api/v1/tenants", tag = "tenants",
    responses((status = 200, body = TenantsView), (status = 403, body = crate::api::error::ErrorView))
)]
pub async fn list(_caller: SystemCaller, shared: Shared, request: HttpRequest) -> Answer {
    Params::known(&request, &[])?;
    let tenants = shared.store.tenants().await?.into_iter().filter(|t| *t != TenantId::system());
    Ok(HttpResponse::Ok().json(TenantsView { tenants: tenants.map(String::from).collect() }))
}

/// Makes a tenant with its keys and sites.
#[utoipa::path(
    post, path = "/api/v1/tenants", tag = "tenants", request_body = TenantBody,
    responses((status = 201, body = NewTenantView), (status = 409, body = crate::api::error::ErrorView))
)]
pub async fn add(caller: SystemCaller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    Params::known(&request, &[])?;
    let mut fields = Fields::read(payload).await?;
    let name: String = fields.required("name")?;
    let sites: Vec<String> = fields.optional("sites")?.unwrap_or_default();
    fields.finish()?;
    let tenant: TenantId = name.parse().map_err(|e| Code::BadValue.refuse(format!("{e}")).field("name"))?;
    if tenant == TenantId::system() {
        return Err(Code::BadValue.refuse("the name system is the installation's own").field("name"));
    }
    if sites.len() > SITES_MAX {
        return Err(Code::OutOfRange.refuse(format!("sites are at most {SITES_MAX}")).field("sites"));
    }
    for site in &sites {
        check_name("sites", site)?;
    }
    if sites.iter().collect::<BTreeSet<_>>().len() < sites.len() {
        return Err(Code::BadValue.refuse("sites names one twice").field("sites"));
    }
    if shared.store.tenants().await?.contains(&tenant) {
        return Err(Code::AlreadyExists.refuse(format!("there is a tenant {name:?}")).field("name"));
    }
    let token = shared.control.tenant(&caller.0.name, tenant, sites).await?;
    Ok(HttpResponse::Created().json(NewTenantView { name, token }))
}
