//! The private port of a node: `/getstatus` and `/metrics` over HTTPS, nothing else.

use crate::metrics::Metrics;
pub use actix_web::dev::ServerHandle as Handle;
use actix_web::{App, HttpResponse, HttpServer, web};
use std::{net::TcpListener, sync::Arc};

/// Answers what `/getstatus` shows now.
pub type Status = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Serves until the handle is stopped. Must be called within an actix system.
pub fn serve(
    listener: TcpListener,
    tls: rustls::ServerConfig,
    status: Status,
    metrics: Metrics,
) -> std::io::Result<Handle> {
    let make = move || {
        let (status, metrics) = (status.clone(), metrics.clone());
        let show = move || {
            let status = status.clone();
            async move { HttpResponse::Ok().json(status()) }
        };
        let render = move || {
            let metrics = metrics.clone();
            async move { HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(metrics.render()) }
        };
        App::new().route("/getstatus", web::get().to(show)).route("/metrics", web::get().to(render))
    };
    let server =
        HttpServer::new(make).workers(1).disable_signals().shutdown_timeout(1).listen_rustls_0_23(listener, tls)?.run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Ok(handle)
}
