//! What the dispatcher shows of its state.

use super::Dispatcher;
use crate::{
    api::{
        control::{Contacts, Devices, NodeView, ServerFigures, Standing, Whereabouts},
        names::Names,
    },
    dispatch::{TenantState, chosen, contacts, counts, device, standing},
    store::NodeRow,
};
use actix::prelude::*;
use branchline_protocol::{
    id::{NodeId, OrderNumber, Role, TenantId},
    selector::Selector,
};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// Every node of a tenant as it stands.
#[derive(Message)]
#[rtype(result = "Vec<NodeView>")]
pub struct ViewNodes(pub TenantId, pub Option<Role>);

impl Handler<ViewNodes> for Dispatcher {
    type Result = MessageResult<ViewNodes>;
    fn handle(&mut self, ViewNodes(tenant, role): ViewNodes, _: &mut Self::Context) -> Self::Result {
        let Some(state) = self.core.tenant(&tenant) else { return MessageResult(Vec::new()) };
        let rows = state.nodes.values().filter(|n| role.is_none_or(|r| r == n.role));
        MessageResult(rows.map(|row| self.view(state, row)).collect())
    }
}

impl Dispatcher {
    fn view(&self, state: &TenantState, row: &NodeRow) -> NodeView {
        let gateways = self.core.tenant(&TenantId::system());
        let name = |id: NodeId| gateways.and_then(|s| s.nodes.get(&id)).map(|n| n.name.clone());
        let gateway = state.gateway_of(row.id).map(|id| name(id).unwrap_or_else(|| id.to_string()));
        let standing = standing(state, row, self.parts.time.now().node);
        NodeView { node: row.clone(), standing: Standing { gateway, ..standing } }
    }
}

/// A device of a tenant by its id or name.
#[derive(Message)]
#[rtype(result = "Option<NodeId>")]
pub struct FindDevice(pub TenantId, pub String);

impl Handler<FindDevice> for Dispatcher {
    type Result = MessageResult<FindDevice>;
    fn handle(&mut self, FindDevice(tenant, words): FindDevice, _: &mut Self::Context) -> Self::Result {
        let found = self.core.tenant(&tenant).and_then(|state| device(&state.nodes, &words));
        MessageResult(found.map(|row| row.id))
    }
}

/// The devices of a tenant that a selector means.
#[derive(Message)]
#[rtype(result = "Vec<NodeId>")]
pub struct ChooseDevices(pub TenantId, pub Selector);

impl Handler<ChooseDevices> for Dispatcher {
    type Result = MessageResult<ChooseDevices>;
    fn handle(&mut self, ChooseDevices(tenant, on): ChooseDevices, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.core.tenant(&tenant).map(|state| chosen(state, &on)).unwrap_or_default())
    }
}

/// How many devices of a tenant that a selector means stand how.
#[derive(Message)]
#[rtype(result = "BTreeMap<&'static str, u64>")]
pub struct CountDevices(pub TenantId, pub Selector);

impl Handler<CountDevices> for Dispatcher {
    type Result = MessageResult<CountDevices>;
    fn handle(&mut self, CountDevices(tenant, on): CountDevices, _: &mut Self::Context) -> Self::Result {
        let now = self.parts.time.now().node;
        MessageResult(self.core.tenant(&tenant).map(|state| counts(state, &on, now)).unwrap_or_default())
    }
}

/// Devices of a tenant as they stand.
#[derive(Message)]
#[rtype(result = "Devices")]
pub struct ViewDevices(pub TenantId, pub Vec<NodeId>);

impl Handler<ViewDevices> for Dispatcher {
    type Result = MessageResult<ViewDevices>;
    fn handle(&mut self, ViewDevices(tenant, devices): ViewDevices, _: &mut Self::Context) -> Self::Result {
        let Some(state) = self.core.tenant(&tenant) else { return MessageResult(Devices::default()) };
        let rows = devices.iter().filter_map(|device| state.nodes.get(device));
        let views: Vec<NodeView> = rows.map(|row| self.view(state, row)).collect();
        let mut names = Names::new();
        for relay in views.iter().flat_map(|view| &view.standing.route) {
            if !names.contains_key(relay) {
                names.extend(state.nodes.get(relay).map(|row| (*relay, row.name.clone())));
            }
        }
        MessageResult(Devices { views, names })
    }
}

/// What keeps devices from a job.
#[derive(Message)]
#[rtype(result = "Contacts")]
pub struct ViewContacts(pub TenantId, pub Vec<NodeId>);

impl Handler<ViewContacts> for Dispatcher {
    type Result = MessageResult<ViewContacts>;
    fn handle(&mut self, ViewContacts(tenant, devices): ViewContacts, _: &mut Self::Context) -> Self::Result {
        let found = self.core.tenant(&tenant).map(|state| contacts(state, &devices));
        MessageResult(found.unwrap_or_default())
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
        let system = self.core.tenant(&TenantId::system());
        let gateways = system.into_iter().flat_map(|state| state.nodes.values());
        let gateways = gateways.filter(|n| n.role == Role::Gateway && n.revoked_at.is_none());
        MessageResult(ServerFigures {
            id: self.parts.office.server_id().to_string(),
            name: self.parts.office.server_name(),
            slots,
            queues,
            links: self.core.links(),
            restarts: self.parts.restarts.load(Ordering::Relaxed),
            // Their trunks are the steering's to count.
            gateways: gateways.map(|n| (n.id, n.name.clone(), 0, 0)).collect(),
        })
    }
}
