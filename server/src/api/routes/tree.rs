//! The tree of nodes.

use super::{Answer, Shared, sees_all};
use crate::api::{
    auth::Caller,
    delay,
    input::Params,
    views::{self, TreeView},
};
use actix_web::{HttpRequest, HttpResponse};
use branchline_protocol::id::Role;

/// The server, its gateways, and the tenant's relays and agents.
#[utoipa::path(
    get, path = "/api/v1/tree", tag = "nodes", params(("tenant" = Option<String>, Query)),
    responses((status = 200, body = TreeView))
)]
pub async fn show(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    Params::known(&request, &[])?;
    let all = sees_all(&shared, &caller).await?;
    let figures = shared.control.figures().await?;
    let mut views = shared.control.nodes(&caller.tenant, None).await?;
    views.retain(|view| matches!(view.node.role, Role::Relay | Role::Agent) && view.node.revoked_at.is_none());
    views.sort_by(|a, b| {
        let key = |v: &crate::api::control::NodeView| (v.node.role, v.node.name.clone(), v.node.id);
        key(a).cmp(&key(b))
    });
    let mut delays = delay::by_link(&views);
    let mut of = |node| delays.remove(&node).unwrap_or_default();
    let mut nodes = vec![views::tree_server(&figures, shared.control.recovery(), all, of(None))];
    nodes.extend(figures.gateways.iter().map(|gateway| views::tree_gateway(&figures.id, gateway, all)));
    nodes.extend(views.iter().map(|view| views::tree_node(&figures.id, view, of(Some(view.node.id)))));
    Ok(HttpResponse::Ok().json(TreeView { nodes }))
}
