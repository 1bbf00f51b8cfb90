//! The public listener: HTTPS, one path, one method, an upgrade (GW-2). It speaks HTTP/1.1 and TLS 1.3 only; every
//! answer but the upgrade ends the connection.
//!
//! It is put together from actix's parts instead of `HttpServer`, which would also offer HTTP/2: there, an answer
//! cannot end the connection, and a stranger has many more ways to be expensive.

use super::pipe::{self, Pipe};
use crate::{
    board::Admission,
    flood,
    gate::Gate,
    limits::{Request, TOKEN_BYTES_MAX, Verdict},
};
use actix_http::{HttpService, KeepAlive};
use actix_service::{IntoServiceFactory, ServiceFactoryExt, map_config};
use actix_tls::accept::{
    TlsError,
    rustls_0_23::{Acceptor, TlsStream},
};
use actix_web::{
    App, HttpRequest, HttpResponse,
    dev::{AppConfig, Server},
    http::{StatusCode, Version, header},
    rt::net::TcpStream,
    web,
};
use branchline_protocol::wire::{HANDSHAKE_S, StreamHeader, TOKEN_HEADER};
use rustls::ServerConfig;
use std::{io, net::TcpListener, sync::Arc, time::Duration};

/// Connections that the system may hold for us while all workers are busy: an office of 300 and its neighbours coming
/// back at once.
const BACKLOG: u32 = 4_096;
/// TLS handshakes at once per worker, 0.3 ms each; actix allows 256, which silent strangers could fill.
const HANDSHAKES_MAX: usize = 4_096;
/// Connections at once per worker: every pipe, and room for those that are just coming.
const CONNECTIONS_MAX: usize = 16_384;
/// How long a refused connection is still read, and what comes thrown away: closed at once, the system might reset it
/// before the answer has arrived.
const LINGER: Duration = Duration::from_secs(1);

/// The server on this socket.
pub fn serve(socket: TcpListener, mut tls: ServerConfig, workers: usize, gate: Arc<Gate>) -> io::Result<Server> {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    actix_tls::accept::max_concurrent_tls_connect(HANDSHAKES_MAX);
    let gate = web::Data::from(gate);
    let factory = move || {
        let app = App::new().app_data(gate.clone()).default_service(web::to(answer));
        let app = app.into_factory().map_err(|e: actix_web::Error| e.error_response());
        let http = HttpService::build()
            .keep_alive(KeepAlive::Disabled)
            .client_request_timeout(Duration::from_secs(HANDSHAKE_S))
            .client_disconnect_timeout(LINGER)
            .h1(map_config(app, |()| AppConfig::default()));
        let mut acceptor = Acceptor::new(tls.clone());
        acceptor.set_handshake_timeout(Duration::from_secs(HANDSHAKE_S));
        acceptor
            .map_init_err(|()| ())
            .map_err(TlsError::into_service_error)
            .map(|io: TlsStream<TcpStream>| {
                let tcp = io.get_ref().0;
                // actix does not set it by itself; small frames must not wait for one another. A connection that
                // cannot be set is closed already.
                let _closed = tcp.set_nodelay(true);
                let peer = tcp.peer_addr().ok();
                (io, peer)
            })
            .and_then(http.map_err(TlsError::Service))
    };
    let server = Server::build()
        .workers(workers)
        .backlog(BACKLOG)
        .max_concurrent_connections(CONNECTIONS_MAX)
        .disable_signals()
        .listen("public", socket, factory)?;
    Ok(server.run())
}

/// Judges a request in this order: the path, the source's limit, the server's presence, the token, the room. So a
/// stranger learns nothing that he could not learn from any web server, and costs as little as possible.
async fn answer(request: HttpRequest, payload: web::Payload, gate: web::Data<Gate>) -> HttpResponse {
    let Verdict::Link = judge(&request, &gate) else {
        gate.refused("path");
        return not_found();
    };
    let Some(source) = request.peer_addr() else { return not_found() };
    if let Err(seconds) = gate.flood.check(source.ip()) {
        gate.refused("flood");
        return later(StatusCode::TOO_MANY_REQUESTS, seconds);
    }
    let mut tokens = request.headers().get_all(TOKEN_HEADER).map(|v| v.to_str().ok());
    let token = match (tokens.next(), tokens.next()) {
        (Some(Some(token)), None) if token.len() <= TOKEN_BYTES_MAX => Some(token.to_owned()),
        _ => None,
    };
    match gate.admit(token.as_deref()) {
        Admission::Known => {}
        Admission::Stranger => {
            gate.refused("token");
            return not_found();
        }
        Admission::NoServer => {
            gate.refused("no_server");
            return away(&gate);
        }
    }
    let Some(place) = gate.place() else {
        gate.refused("room");
        return away(&gate);
    };
    let Ok((response, session, messages)) = actix_ws::handle(&request, payload) else {
        gate.refused("upgrade");
        return not_found();
    };
    let messages = messages.max_frame_size(pipe::FRAME_BYTES_MAX);
    let header = StreamHeader { source: Some(source), token };
    actix_web::rt::spawn(Pipe { gate: gate.into_inner(), place, header }.run(session, messages));
    response
}

fn judge(request: &HttpRequest, gate: &Gate) -> Verdict {
    let target = request.uri().to_string();
    let mut headers = Vec::with_capacity(request.headers().len());
    for (name, value) in request.headers() {
        match value.to_str() {
            Ok(value) => headers.push((name.as_str(), value)),
            // Nothing we look at may hold such bytes, and nothing we pass on is a header.
            Err(_) => headers.push((name.as_str(), "")),
        }
    }
    let hosts: Vec<&str> = headers.iter().filter(|(name, _)| *name == "host").map(|(_, value)| *value).collect();
    gate.rule.judge(Request {
        method: request.method().as_str(),
        target: &target,
        hosts: &hosts,
        http_1_1: request.version() == Version::HTTP_11,
        headers: &headers,
    })
}

fn not_found() -> HttpResponse {
    HttpResponse::NotFound().force_close().finish()
}

fn away(gate: &Gate) -> HttpResponse {
    later(StatusCode::SERVICE_UNAVAILABLE, flood::away_s(&*gate.random))
}

fn later(status: StatusCode, seconds: u64) -> HttpResponse {
    HttpResponse::build(status).insert_header((header::RETRY_AFTER, seconds.to_string())).force_close().finish()
}
