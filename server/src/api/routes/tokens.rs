//! What lets nodes enrol: tokens and bundles.

use super::{Answer, Shared};
use crate::api::{
    ApiState,
    auth::Caller,
    control::TokenWish,
    error::{ApiError, Code},
    input::{Fields, LIFE_S, Params, within},
    views,
};
use actix_web::{HttpRequest, HttpResponse, web};
use branchline_protocol::id::{Role, TenantId};
use serde::Serialize;
use std::ops::RangeInclusive;
use utoipa::ToSchema;

/// A day.
const LIFE_S_DEFAULT: u64 = 86_400;
/// Nodes that one token may let in.
const USES: RangeInclusive<u64> = 1..=10_000;

/// What a token or bundle is to be for.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the API's description of the body; it is read field by field")]
pub struct WishBody {
    /// `agent`, `relay`, or with a system token `gateway`.
    role: String,
    /// An existing site; not for gateways.
    site: Option<String>,
    /// Bundles only: `server`, `gateway`, or a relay by name or id; `server` unless told.
    parent: Option<String>,
    /// How many nodes, 1 to 10,000; 1 unless told.
    uses: Option<u32>,
    /// Seconds it is good for, 1 s to 365 d; a day unless told.
    life_s: Option<u64>,
}

/// A token.
#[derive(Serialize, ToSchema)]
pub struct TokenView {
    /// The secret; it is shown this once.
    token: String,
    role: String,
    site: String,
    expires_at: String,
    uses: u32,
}

/// A bundle.
#[derive(Serialize, ToSchema)]
pub struct BundleView {
    /// Everything a node needs to enrol, with a token inside.
    bundle: String,
    expires_at: String,
}

/// Makes an enrolment token.
#[utoipa::path(
    post, path = "/api/v1/enrol-tokens", tag = "enrolment", request_body = WishBody,
    params(("tenant" = Option<String>, Query)),
    responses((status = 201, body = TokenView), (status = 404, body = crate::api::error::ErrorView))
)]
pub async fn enrol_token(caller: Caller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    Params::known(&request, &[])?;
    let (tenant, wish) = wish(&caller, &shared, Fields::read(payload).await?, false).await?;
    let (role, site, uses) = (wish.role.to_string(), wish.site.clone(), wish.uses);
    let (token, expires_at) = shared.control.enrol_token(&tenant, &caller.name, wish).await?;
    let view = TokenView { token, role, site, expires_at: views::time(expires_at), uses };
    Ok(HttpResponse::Created().json(view))
}

/// Makes a bundle with a fresh token.
#[utoipa::path(
    post, path = "/api/v1/bundles", tag = "enrolment", request_body = WishBody,
    params(("tenant" = Option<String>, Query)),
    responses((status = 201, body = BundleView), (status = 404, body = crate::api::error::ErrorView))
)]
pub async fn bundle(caller: Caller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    Params::known(&request, &[])?;
    let (tenant, wish) = wish(&caller, &shared, Fields::read(payload).await?, true).await?;
    let (bundle, expires_at) = shared.control.bundle(&tenant, &caller.name, wish).await?;
    Ok(HttpResponse::Created().json(BundleView { bundle, expires_at: views::time(expires_at) }))
}

async fn wish(
    caller: &Caller,
    shared: &ApiState,
    mut fields: Fields,
    with_parent: bool,
) -> Result<(TenantId, TokenWish), ApiError> {
    let word: String = fields.required("role")?;
    let role = word.parse().ok().filter(|role| *role != Role::Server);
    let role: Role = role
        .ok_or_else(|| Code::BadValue.refuse(format!("role is agent, relay or gateway, not {word:?}")).field("role"))?;
    let site: Option<String> = fields.optional("site")?;
    let parent: Option<String> = if with_parent { fields.optional("parent")? } else { None };
    let uses = within("uses", fields.optional("uses")?.unwrap_or(1), &USES)?;
    let life_s = within("life_s", fields.optional("life_s")?.unwrap_or(LIFE_S_DEFAULT), &LIFE_S)?;
    fields.finish()?;
    let site = site.unwrap_or_default();
    let tenant = if role == Role::Gateway {
        if !caller.system {
            return Err(Code::NotAllowed
                .refuse("gateways belong to the installation: use a system token")
                .field("role"));
        }
        if !site.is_empty() {
            return Err(Code::BadValue.refuse("a gateway stands in no site").field("site"));
        }
        TenantId::system()
    } else {
        if site.is_empty() {
            return Err(Code::MissingField.refuse(format!("site is missing: a {role} stands in one")).field("site"));
        }
        if !shared.store.sites(&caller.tenant).await?.contains(&site) {
            return Err(Code::UnknownSite.refuse(format!("there is no site {site:?}")).field("site"));
        }
        caller.tenant.clone()
    };
    let parent = parent.unwrap_or_else(|| "server".into());
    if parent.is_empty() {
        let message = "parent is server, gateway, or a relay's name or id";
        return Err(Code::BadValue.refuse(message).field("parent"));
    }
    let uses = u32::try_from(uses).unwrap_or(u32::MAX);
    Ok((tenant, TokenWish { role, site, parent, uses, life_ms: life_s * 1_000 }))
}
