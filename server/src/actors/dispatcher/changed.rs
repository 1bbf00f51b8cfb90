//! What others tell the dispatcher of changes that they made durable.

use super::Dispatcher;
use crate::{dispatch::Event, store::NodeRow};
use actix::prelude::*;
use branchline_protocol::id::{NodeId, TenantId};

/// A node enrolled, or changed in the store.
#[derive(Message)]
#[rtype(result = "()")]
pub struct NodeChanged(pub NodeRow);

impl Handler<NodeChanged> for Dispatcher {
    type Result = ();
    fn handle(&mut self, NodeChanged(row): NodeChanged, ctx: &mut Self::Context) {
        self.feed(Event::Node(Box::new(row)), ctx);
    }
}

/// A tenant was made.
#[derive(Message)]
#[rtype(result = "()")]
pub struct TenantMade(pub TenantId);

impl Handler<TenantMade> for Dispatcher {
    type Result = ();
    fn handle(&mut self, TenantMade(tenant): TenantMade, ctx: &mut Self::Context) {
        self.feed(Event::Tenant(tenant.clone()), ctx);
        self.take_documents(&tenant, ctx);
        self.state_time(ctx);
        self.publish_facts();
    }
}

/// The office has a newer document: it is in force once this is answered.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DocumentsChanged(pub TenantId);

impl Handler<DocumentsChanged> for Dispatcher {
    type Result = ();
    fn handle(&mut self, DocumentsChanged(tenant): DocumentsChanged, ctx: &mut Self::Context) {
        self.take_documents(&tenant, ctx);
        self.publish_facts();
    }
}

/// A node was revoked by the office.
#[derive(Message)]
#[rtype(result = "()")]
pub struct NodeRevoked(pub TenantId, pub NodeId);

impl Handler<NodeRevoked> for Dispatcher {
    type Result = ();
    fn handle(&mut self, NodeRevoked(tenant, node): NodeRevoked, ctx: &mut Self::Context) {
        self.take_documents(&tenant, ctx);
        self.publish_facts();
        self.feed(Event::Revoked(tenant, node), ctx);
    }
}
