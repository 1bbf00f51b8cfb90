//! The public listener: HTTPS, one path, one method, an upgrade (GW-2). It speaks HTTP/1.1 and TLS 1.3 only; every
//! answer but the upgrade ends the connection.
//!
//! It is put together from actix's parts instead of `HttpServer`, which would also offer HTTP/2: there, an answer
//! cannot end the connection, and a stranger has many more ways to be expensive. At the upgrade the connection is taken
//! from the HTTP server, whose buffers and state would be the larger part of an idle link's memory.

use super::{
    pipe::Pipe,
    socket::{self, LINGER},
};
use crate::{
    board::Admission,
    flood,
    gate::{Gate, Place},
    limits::{Request, TOKEN_BYTES_MAX, Verdict},
};
use actix_codec::{Framed, FramedParts};
use actix_http::{
    Error, HttpMessage, HttpService, KeepAlive, Request as HttpRequest, Response, StatusCode, Version,
    body::BodySize,
    h1::{Codec, Message},
    header,
};
use actix_rt::net::TcpStream;
use actix_service::{ServiceFactoryExt, fn_service};
use actix_tls::accept::{
    TlsError,
    rustls_0_23::{Acceptor, TlsStream},
};
use actix_web::dev::Server;
use branchline_node::link::ReadAhead;
use branchline_protocol::wire::{HANDSHAKE_S, StreamHeader, TOKEN_HEADER};
use bytes::BytesMut;
use futures_util::SinkExt;
use rustls::ServerConfig;
use std::{cell::Cell, convert::Infallible, io, net::TcpListener, sync::Arc, time::Duration};
use tokio::time::timeout;

/// Connections that the system may hold for us while all workers are busy: an office of 300 and its neighbours coming
/// back at once.
const BACKLOG: u32 = 4_096;
/// TLS handshakes at once per worker, 0.3 ms each; actix allows 256, which silent strangers could fill.
const HANDSHAKES_MAX: usize = 4_096;
/// Connections at once per worker that are just coming or going; links have left the HTTP server and count among the
/// pipes.
const CONNECTIONS_MAX: usize = 16_384;

/// A child's connection. On the heap: its TLS state would otherwise stand in every future that it passes through.
type Connection = Box<TlsStream<ReadAhead<TcpStream>>>;

/// Whether a request of this connection was refused: what came behind it is not looked at.
#[derive(Default)]
struct Ended(Cell<bool>);

/// The server on this socket.
pub fn serve(socket: TcpListener, mut tls: ServerConfig, workers: usize, gate: Arc<Gate>) -> io::Result<Server> {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    actix_tls::accept::max_concurrent_tls_connect(HANDSHAKES_MAX);
    let factory = move || {
        let (refusing, asked) = (Arc::clone(&gate), Arc::clone(&gate));
        let refuse = fn_service(move |request: HttpRequest| {
            refusing.refused("path");
            if let Some(Ended(ended)) = request.conn_data() {
                ended.set(true);
            }
            async { Ok::<_, Infallible>(not_found()) }
        });
        let upgrade = fn_service(move |(request, framed)| answer(Arc::clone(&asked), request, framed));
        let http = HttpService::build()
            .keep_alive(KeepAlive::Disabled)
            .client_request_timeout(Duration::from_secs(HANDSHAKE_S))
            .client_disconnect_timeout(LINGER)
            .on_connect_ext(|_, extensions| {
                extensions.insert(Ended::default());
            })
            .upgrade(upgrade)
            .h1(refuse);
        let mut acceptor = Acceptor::new(tls.clone());
        acceptor.set_handshake_timeout(Duration::from_secs(HANDSHAKE_S));
        fn_service(|tcp: TcpStream| async { Ok::<_, TlsError<io::Error, Infallible>>(ReadAhead::new(tcp)) })
            .and_then(acceptor.map_init_err(|()| ()))
            .map_err(TlsError::into_service_error)
            .map(|io: TlsStream<ReadAhead<TcpStream>>| {
                let tcp = io.get_ref().0.get_ref();
                // actix does not set it by itself; small frames must not wait for one another. A connection that
                // cannot be set is closed already.
                let _closed = tcp.set_nodelay(true);
                let peer = tcp.peer_addr().ok();
                (Connection::new(io), peer)
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

/// Answers what asks for an upgrade: lets it in, or says why not.
async fn answer(gate: Arc<Gate>, request: HttpRequest, mut framed: Framed<Connection, Codec>) -> Result<(), Error> {
    let ended = request.conn_data().is_some_and(|Ended(ended)| ended.get());
    let judged = if ended { None } else { Some(judge(&request, &gate)) };
    drop(request);
    let (answer, link) = match judged {
        Some(Ok((place, header, response))) => (Some((response, BodySize::None)), Some((place, header))),
        Some(Err(refused)) => (Some((refused, BodySize::Sized(0))), None),
        None => (None, None),
    };
    let say = async {
        if let Some(answer) = answer {
            framed.feed(Message::Item(answer)).await?;
        }
        SinkExt::<Message<_>>::flush(&mut framed).await
    };
    let said = timeout(Duration::from_secs(HANDSHAKE_S), say).await;
    // The HTTP server's buffers go, but for what came behind the request.
    let FramedParts { io, read_buf, .. } = framed.into_parts();
    let read = BytesMut::from(&read_buf[..]);
    drop(read_buf);
    let Ok(Ok(())) = said else { return Ok(()) };
    match link {
        // A task of its own: the HTTP server's part of the connection ends here, and its memory with it.
        Some((place, header)) => drop(actix_rt::spawn(Pipe { gate, place, header }.run(io, read))),
        None => socket::linger(io).await,
    }
    Ok(())
}

/// Judges a request in this order: the path, the source's limit, the server's presence, the token, the room. So a
/// stranger learns nothing that he could not learn from any web server, and costs as little as possible.
fn judge(request: &HttpRequest, gate: &Gate) -> Result<(Place, StreamHeader, Response<()>), Response<()>> {
    let Verdict::Link = asks(request, gate) else {
        gate.refused("path");
        return Err(not_found());
    };
    let Some(source) = request.peer_addr() else { return Err(not_found()) };
    if let Err(seconds) = gate.flood.check(source.ip()) {
        gate.refused("flood");
        return Err(later(StatusCode::TOO_MANY_REQUESTS, seconds));
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
            return Err(not_found());
        }
        Admission::NoServer => {
            gate.refused("no_server");
            return Err(away(gate));
        }
    }
    let Some(place) = gate.place() else {
        gate.refused("room");
        return Err(away(gate));
    };
    let Ok(mut response) = actix_http::ws::handshake(request.head()) else {
        gate.refused("upgrade");
        return Err(not_found());
    };
    Ok((place, StreamHeader { source: Some(source), token }, response.finish().drop_body()))
}

fn asks(request: &HttpRequest, gate: &Gate) -> Verdict {
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

fn not_found() -> Response<()> {
    Response::build(StatusCode::NOT_FOUND).force_close().finish().drop_body()
}

fn away(gate: &Gate) -> Response<()> {
    later(StatusCode::SERVICE_UNAVAILABLE, flood::away_s(&*gate.random))
}

fn later(status: StatusCode, seconds: u64) -> Response<()> {
    let mut response = Response::build(status);
    response.insert_header((header::RETRY_AFTER, seconds.to_string()));
    response.force_close().finish().drop_body()
}
