//! What the relay's role adds to the reception of children: its own TLS, blind splicing of enrolments, statements.

use branchline_node::{
    downstream::reception::Host,
    enrol::splice,
    link::{
        BoxStream,
        dial::{Dialler, Route},
    },
};
use branchline_protocol::{
    id::{NodeId, TenantId},
    order::Envelope,
    wire::Preface,
};
use futures_util::future::LocalBoxFuture;
use std::{
    net::SocketAddr,
    sync::{Arc, RwLock},
};
use tokio::sync::watch;

/// What changes while a relay runs; written by the exchange alone.
pub struct Ways {
    /// TLS for children: the relay's identity, the tenant's CAs.
    pub tls: Arc<rustls::ServerConfig>,
    /// Routes to its own parents.
    pub routes: Vec<Route>,
    /// Dials them.
    pub dialler: Dialler,
}

/// The relay as a host of children.
pub struct RelayHost {
    /// Its id.
    pub node: NodeId,
    /// Its tenant; no other's child is served.
    pub tenant: TenantId,
    /// See [`Ways`].
    pub ways: Arc<RwLock<Ways>>,
    /// Newest statement.
    pub statement: watch::Receiver<Option<Arc<Envelope>>>,
}

impl Host for RelayHost {
    fn link_tls(&self, node: NodeId, tenant: &TenantId) -> Option<Arc<rustls::ServerConfig>> {
        let mine = node == self.node && *tenant == self.tenant;
        mine.then(|| self.ways.read().ok().map(|w| w.tls.clone())).flatten()
    }

    fn enrol(&self, stream: BoxStream, source: Option<SocketAddr>) -> LocalBoxFuture<'static, ()> {
        let ways = self.ways.read().map(|w| (w.routes.clone(), w.dialler.clone())).ok();
        Box::pin(async move {
            let Some((routes, dialler)) = ways else { return };
            for route in routes {
                match dialler.open(&route, Preface::Enrol).await {
                    Ok(parent) => {
                        match splice(stream, parent).await {
                            Ok((up, down)) => tracing::info!(?source, up, down, "enrolment passed on"),
                            Err(e) => tracing::info!(?source, error = %e, "enrolment cut"),
                        }
                        return;
                    }
                    Err(e) => tracing::debug!(?route, error = %e, "no way for an enrolment"),
                }
            }
            tracing::info!(?source, "an enrolment found no way up");
        })
    }

    fn statement(&self, _: &TenantId) -> watch::Receiver<Option<Arc<Envelope>>> {
        self.statement.clone()
    }
}
