//! Nodes of any role: revoked; and gateways, which belong to the installation.

use super::{Answer, Shared, no_body, sees_all, segment};
use crate::api::{
    auth::{Caller, SystemCaller},
    error::{ApiError, Code},
    input::{Fields, Params},
};
use actix_web::{HttpRequest, HttpResponse, http::Uri, web};
use branchline_protocol::id::{Epoch, NodeId};
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

/// The longest host name there is.
const HOST_BYTES_MAX: usize = 253;

/// A node that is refused everywhere from here on.
#[derive(Serialize, ToSchema)]
pub struct RevokedView {
    /// Its id.
    revoked: String,
    /// Its epoch.
    epoch: Epoch,
}

/// The live gateways.
#[derive(Serialize, ToSchema)]
pub struct GatewaysView {
    gateways: Vec<GatewayView>,
}

/// One gateway.
#[derive(Serialize, ToSchema)]
pub struct GatewayView {
    id: String,
    name: String,
    /// Trunks to this server.
    trunks: u32,
    /// Links through it; null when they are not the caller's business.
    links: Option<u32>,
}

/// Where children find a gateway.
#[derive(Serialize, ToSchema)]
pub struct GatewayAddressBody {
    /// `https://host` or `https://host:port`.
    public: String,
    /// The root of its outer certificate, if that is not a public one.
    #[serde(skip_serializing_if = "Option::is_none")]
    outer_root_pem: Option<String>,
}

/// Revokes a node of the tenant: its link is closed and its return refused.
#[utoipa::path(
    post, path = "/api/v1/nodes/{node}/revoke", tag = "nodes",
    params(("node" = String, Path, description = "id"), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = RevokedView), (status = 404, body = crate::api::error::ErrorView))
)]
pub async fn revoke(caller: Caller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    Params::known(&request, &[])?;
    no_body(payload).await?;
    let words = segment(&request, "node");
    let unknown = || Code::UnknownNode.refuse(format!("there is no node {words:?}; name it by its id"));
    let id: NodeId = words.parse().map_err(|_| unknown())?;
    shared.store.node(&caller.tenant, id).await?.ok_or_else(unknown)?;
    let epoch = shared.control.revoke(&caller.tenant, &caller.name, id).await?;
    Ok(HttpResponse::Ok().json(RevokedView { revoked: id.to_string(), epoch }))
}

/// The live gateways.
#[utoipa::path(
    get, path = "/api/v1/gateways", tag = "nodes", params(("tenant" = Option<String>, Query)),
    responses((status = 200, body = GatewaysView))
)]
pub async fn gateways(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    Params::known(&request, &[])?;
    let all = sees_all(&shared, &caller).await?;
    let figures = shared.control.figures().await?;
    let gateways = figures.gateways.into_iter().map(|(id, name, trunks, links)| GatewayView {
        id: id.to_string(),
        name,
        trunks,
        links: all.then_some(links),
    });
    Ok(HttpResponse::Ok().json(GatewaysView { gateways: gateways.collect() }))
}

/// Registers a gateway's public address, handed to children in bundles and upstream lists (TOP-6).
#[utoipa::path(
    post, path = "/api/v1/gateways", tag = "nodes", request_body = GatewayAddressBody,
    responses((status = 201, body = GatewayAddressBody), (status = 403, body = crate::api::error::ErrorView))
)]
pub async fn gateway_address(
    caller: SystemCaller,
    shared: Shared,
    request: HttpRequest,
    payload: web::Payload,
) -> Answer {
    Params::known(&request, &[])?;
    let mut fields = Fields::read(payload).await?;
    let public: String = fields.required("public")?;
    let outer_root_pem: Option<String> = fields.optional("outer_root_pem")?;
    fields.finish()?;
    check_public(&public)?;
    if outer_root_pem.as_ref().is_some_and(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
        return Err(Code::BadValue.refuse("outer_root_pem is a certificate in PEM").field("outer_root_pem"));
    }
    let root = outer_root_pem.clone().map(Bytes::from);
    shared.control.gateway_address(&caller.0.name, public.clone(), root).await?;
    Ok(HttpResponse::Created().json(GatewayAddressBody { public, outer_root_pem }))
}

/// `https://host[:port]` and nothing more.
fn check_public(public: &str) -> Result<(), ApiError> {
    let bad = || Code::BadValue.refuse("public is https://HOST or https://HOST:PORT").field("public");
    let authority = public.strip_prefix("https://").ok_or_else(bad)?;
    let uri: Uri = public.parse().map_err(|_| bad())?;
    // The URL's own authority equals the rest of the text only when there is no path, query, user or blank.
    let whole = uri.authority().is_some_and(|a| a.as_str() == authority) && !authority.contains('@');
    let host = uri.host().unwrap_or_default();
    let port_fits = match authority.strip_prefix(host).unwrap_or_default() {
        "" => true,
        rest => rest.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()).is_some_and(|port| port > 0),
    };
    if whole && port_fits && (1..=HOST_BYTES_MAX).contains(&host.len()) { Ok(()) } else { Err(bad()) }
}
