//! What the server's role adds to the reception of children: its tenants' TLS, enrolment at the source, statements.

use crate::{
    actors::dispatcher::{Dispatcher, NodeChanged, Statements},
    domain::{Office, reception::Outcome},
};
use branchline_node::{downstream::reception::Host, identity::server_name_text, link::BoxStream, supervise::ChildAddr};
use branchline_protocol::{
    id::{NodeId, TenantId},
    order::Envelope,
};
use futures_util::future::LocalBoxFuture;
use std::{net::SocketAddr, sync::Arc};
use tokio::sync::watch;

/// The server as a host of children.
pub struct ServerHost {
    /// Keys and enrolment.
    pub office: Office,
    /// Hears of new nodes.
    pub dispatcher: ChildAddr<Dispatcher>,
    /// Newest statements.
    pub statements: Statements,
}

impl ServerHost {
    /// Serves one enrolment, TLS included; the dispatcher knows the node before its first link.
    pub async fn enrolment(
        office: Office,
        dispatcher: ChildAddr<Dispatcher>,
        stream: BoxStream,
        source: Option<SocketAddr>,
    ) {
        let stream = match office.accept_enrol(stream).await {
            Ok(stream) => stream,
            Err(e) => {
                tracing::debug!(?source, error = %e, "an enrolment handshake failed");
                return;
            }
        };
        match office.enrol(stream, source).await {
            Outcome::Enrolled(node) => {
                tracing::info!(node = %node.node, role = %node.role, name = node.name, again = node.again, "enrolled");
                let _ = dispatcher.living().await.send(NodeChanged(node.row)).await;
            }
            Outcome::Refused(refusal) => tracing::info!(?source, %refusal, "enrolment refused"),
            Outcome::Unanswered(why) => tracing::warn!(?source, why, "enrolment without an answer"),
        }
    }
}

impl Host for ServerHost {
    fn link_tls(&self, node: NodeId, tenant: &TenantId) -> Option<Arc<rustls::ServerConfig>> {
        self.office.link_config_for(&server_name_text(node, tenant))
    }

    fn enrol(&self, stream: BoxStream, source: Option<SocketAddr>) -> LocalBoxFuture<'static, ()> {
        let (office, dispatcher) = (self.office.clone(), self.dispatcher.clone());
        Box::pin(Self::enrolment(office, dispatcher, stream, source))
    }

    fn statement(&self, tenant: &TenantId) -> watch::Receiver<Option<Arc<Envelope>>> {
        match self.statements.write() {
            Ok(mut all) => all.entry(tenant.clone()).or_insert_with(|| watch::channel(None).0).subscribe(),
            Err(_) => watch::channel(None).1,
        }
    }
}
