//! The private listener: `/getstatus` (GW-11, OPS-2) and `/metrics`, for the server's host and nobody outside.

use crate::gate::Gate;
use actix_web::{App, HttpResponse, HttpServer, dev::Server, http::KeepAlive, web};
use rustls::ServerConfig;
use std::{io, net::TcpListener, sync::Arc, time::Duration};

/// Callers at once: a monitor or two, never a crowd.
const CONNECTIONS_MAX: usize = 64;

/// The server on this socket.
pub fn serve(socket: TcpListener, tls: ServerConfig, gate: Arc<Gate>) -> io::Result<Server> {
    let gate = web::Data::from(gate);
    let app = move || {
        App::new()
            .app_data(gate.clone())
            .route("/getstatus", web::get().to(getstatus))
            .route("/metrics", web::get().to(metrics))
    };
    let server = HttpServer::new(app)
        .workers(1)
        .disable_signals()
        .max_connections(CONNECTIONS_MAX)
        .keep_alive(KeepAlive::Timeout(Duration::from_secs(5)))
        .client_request_timeout(Duration::from_secs(10))
        .tcp_nodelay(true)
        .listen_rustls_0_23(socket, tls)?;
    Ok(server.run())
}

async fn getstatus(gate: web::Data<Gate>) -> HttpResponse {
    HttpResponse::Ok().json(gate.status())
}

async fn metrics(gate: web::Data<Gate>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(gate.metrics.render())
}
