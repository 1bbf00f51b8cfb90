//! What the dispatcher shows of its state.

use super::Dispatcher;
use crate::{
    api::control::{NodeView, ServerFigures, Standing, Whereabouts},
    dispatch::standing,
    store::NodeRow,
};
use actix::prelude::*;
use branchline_protocol::id::{NodeId, OrderNumber, Role, TenantId};
use std::sync::atomic::Ordering;

/// Every node of a tenant as it stands.
#[derive(Message)]
#[rtype(result = "Vec<NodeView>")]
pub struct ViewNodes(pub TenantId, pub Option<Role>);

impl Handler<ViewNodes> for Dispatcher {
    type Result = MessageResult<ViewNodes>;
    fn handle(&mut self, ViewNodes(tenant, role): ViewNodes, _: &mut Self::Context) -> Self::Result {
        let now = self.parts.time.now().node;
        let Some(state) = self.core.tenant(&tenant) else { return MessageResult(Vec::new()) };
        let rows = state.nodes.values().filter(|n| role.is_none_or(|r| r == n.role));
        let gateways = self.core.tenant(&TenantId::system());
        let name = |id: NodeId| gateways.and_then(|s| s.nodes.get(&id)).map(|n| n.name.clone());
        let view = |n: &NodeRow| {
            let gateway = state.gateway_of(n.id).map(|id| name(id).unwrap_or_else(|| id.to_string()));
            NodeView { node: n.clone(), standing: Standing { gateway, ..standing(state, n, now) } }
        };
        MessageResult(rows.map(view).collect())
    }
}

/// Where an order is on its way to a device.
#[derive(Message)]
#[rtype(result = "Whereabouts")]
pub struct FindOrder(pub TenantId, pub OrderNumber, pub NodeId);

impl Handler<FindOrder> for Dispatcher {
    type Result = MessageResult<FindOrder>;
    fn handle(&mut self, FindOrder(tenant, order, device): FindOrder, _: &mut Self::Context) -> Self::Result {
        let found = self.core.tenant(&tenant).map(|state| Whereabouts {
            row: state.ledger.row(order, device),
            cut_off: state.directory.cut_off(device),
            held: state.held(order, device),
        });
        MessageResult(found.unwrap_or_default())
    }
}

/// The server's own row of the tree.
#[derive(Message)]
#[rtype(result = "ServerFigures")]
pub struct ViewFigures;

impl Handler<ViewFigures> for Dispatcher {
    type Result = MessageResult<ViewFigures>;
    fn handle(&mut self, _: ViewFigures, _: &mut Self::Context) -> Self::Result {
        let slots =
            self.parts.gauge.lock().map(|g| *g).ok().and_then(|g| serde_json::to_value(g).ok()).unwrap_or_default();
        let ledger_open: u64 = self.core.tenants().map(|(_, t)| t.ledger.open_rows()).sum();
        let queues = serde_json::json!({
            "spool_records": 0, "spool_bytes": 0, "oldest_unsettled_at": null, "ledger_open": ledger_open,
        });
        MessageResult(ServerFigures {
            id: self.parts.office.server_id().to_string(),
            name: self.parts.office.server_name(),
            slots,
            queues,
            links: self.core.links(),
            restarts: self.parts.restarts.load(Ordering::Relaxed),
            gateways: Vec::new(),
        })
    }
}
