//! The HTTP API under `/api/v1`, with `/metrics` and `/getstatus` (DESIGN 9). Plain reads go to the store, everything
//! else to the running server behind [`Control`]. Nothing here decides; handlers check shapes and show results.

pub mod auth;
pub mod control;
mod delay;
pub mod error;
pub mod explain;
mod input;
pub mod names;
mod openapi;
mod routes;
pub mod views;

#[cfg(test)]
mod tests;

pub use control::Control;

use crate::store::Store;
use actix_web::{App, HttpServer, web};
use branchline_node::{metrics::Metrics, node::Ambient};
use branchline_protocol::{id::NodeId, time::Mono};
use std::{net::TcpListener, sync::Arc, time::Duration};

/// The build number, the same on every node and in `--version` (OPS-2).
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// The API is for a few consoles and scripts; devices never come here.
const WORKERS: usize = 2;
/// Connections each worker holds; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 512;
/// A request's head and the TLS handshake before it must arrive within this.
const REQUEST_TIME_OUT: Duration = Duration::from_secs(10);
/// How long an idle connection stays open: longer than the longest poll of a job.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Seconds that requests in hand get when the server stops.
const SHUTDOWN_S: u64 = 5;

/// What handlers need.
#[derive(Clone)]
pub struct ApiState {
    /// For reads.
    pub store: Arc<dyn Store>,
    /// For everything else.
    pub control: Arc<dyn Control>,
    /// What `/metrics` renders.
    pub metrics: Metrics,
    /// The node's clock.
    pub ambient: Ambient,
    /// When the node started, on that clock.
    pub started_at: Mono,
    /// The server's id.
    pub server_id: NodeId,
}

/// Serves the API on an open listener until the handle is stopped or dropped. Must be called within an actix system.
/// No signal is handled here: the node's owner decides when it ends.
pub fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    shared: ApiState,
) -> std::io::Result<actix_web::dev::Server> {
    let shared = web::Data::new(shared);
    let server = HttpServer::new(move || {
        let shared = shared.clone();
        App::new().configure(move |config| configure(config, shared))
    });
    let server = server
        .workers(WORKERS)
        .max_connections(CONNECTIONS_MAX)
        .client_request_timeout(REQUEST_TIME_OUT)
        .tls_handshake_timeout(REQUEST_TIME_OUT)
        .keep_alive(KEEP_ALIVE)
        .tcp_nodelay(true)
        .shutdown_timeout(SHUTDOWN_S)
        .disable_signals()
        .listen_rustls_0_23(listener, tls.as_ref().clone())?;
    Ok(server.run())
}

/// Every route, and one answer for what is none.
fn configure(config: &mut web::ServiceConfig, shared: web::Data<ApiState>) {
    config.app_data(shared);
    routes::register(config);
    config.default_service(web::to(routes::unlisted));
}
