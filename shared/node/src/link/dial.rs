//! The child's way to a parent: TCP or HTTPS through a gateway, then preface, then inner TLS (DESIGN 3).

use super::{
    BoxStream, ReadAhead, carrier,
    names::{Names, Resolve},
};
use branchline_protocol::{
    id::{NodeId, TenantId},
    wire::{HANDSHAKE_S, LINK_PATH, PREFACE_ACCEPTED, PREFACE_BUSY, Preface, TOKEN_HEADER},
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{Error as WsError, client::IntoClientRequest, http::HeaderValue},
};

/// One way to a parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// TCP to the parent's link port: `host:port`.
    Direct(String),
    /// HTTPS to a gateway: `https://host[:port]`.
    Gateway(String),
}

impl Route {
    /// The name under which it is resolved: `host:port`. `None`: it is no address.
    fn address(&self) -> Option<String> {
        match self {
            Route::Direct(address) => Some(address.clone()),
            Route::Gateway(url) => {
                let authority = url.strip_prefix("https://")?.trim_end_matches('/');
                let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                Some(if has_port { authority.to_string() } else { format!("{authority}:443") })
            }
        }
    }
}

/// What dialling needs beside the route.
#[derive(Clone)]
pub struct Dialler {
    /// Source address of outgoing connections.
    pub bind_source: Option<IpAddr>,
    /// Trust for a gateway's public certificate.
    pub outer: Option<Arc<ClientConfig>>,
    /// Shown to a gateway.
    pub link_token: String,
    /// Resolves names.
    pub names: Names,
}

/// One address has so long to take a connection, in seconds: two lost SYNs. Where nothing answers at all, the next way is
/// tried after that, so that a node that was carried out of its network is on its gateway within a minute (TOP-4).
pub const CONNECT_S: u64 = 4;

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
pub enum DialFault {
    /// The name did not resolve.
    #[error("resolve {0}: {1}")]
    Resolve(String, io::Error),
    /// No connection.
    #[error("connect to {0}: {1}")]
    Connect(String, io::Error),
    /// The gateway answered, but with this status: 404, 429, 503.
    #[error("the gateway at {url} answered {status}")]
    Gateway {
        /// Its address.
        url: String,
        /// HTTP status.
        status: u16,
        /// What it asked to wait.
        retry_after_s: Option<u64>,
    },
    /// The gateway's address is no `https://host[:port]`.
    #[error("{0} is no gateway address: https://host[:port] is")]
    BadAddress(String),
    /// The upgrade or the outer TLS failed.
    #[error("upgrade at {0}: {1}")]
    Upgrade(String, String),
    /// The peer did not accept the preface.
    #[error("preface: {0}")]
    Preface(io::Error),
    /// The peer takes links by a rate and has none to give at present.
    #[error("the parent is busy and asked to wait {wait_ms} ms")]
    Busy {
        /// How long it asked to wait.
        wait_ms: u32,
    },
    /// The inner TLS handshake failed.
    #[error("link tls: {0}")]
    Tls(io::Error),
    /// It took too long.
    #[error("no answer within {HANDSHAKE_S} s")]
    TimeOut,
}

impl DialFault {
    /// Somebody answered at the parent's address who is not the parent: another certificate, or one of no CA of ours. One
    /// that is wrong only by its time is the parent's.
    pub fn is_impostor(&self) -> bool {
        use rustls::{CertificateError as C, Error};
        let DialFault::Tls(e) = self else { return false };
        let told = e.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let late =
            |c: &C| matches!(c, C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. });
        matches!(told, Some(Error::InvalidCertificate(why)) if !late(why))
    }
}

impl Dialler {
    /// Dials from any address, with this resolver, and through no gateway yet.
    pub fn new(resolver: Arc<dyn Resolve>) -> Dialler {
        Dialler { bind_source: None, outer: None, link_token: String::new(), names: Names::new(resolver) }
    }

    /// A byte stream to the parent with its preface accepted.
    pub async fn open(&self, route: &Route, preface: Preface) -> Result<BoxStream, DialFault> {
        self.open_at(route, preface).await.map(|(stream, _)| stream)
    }

    /// The same with the address of the parent itself, which behind a gateway nobody knows.
    async fn open_at(&self, route: &Route, preface: Preface) -> Result<(BoxStream, Option<SocketAddr>), DialFault> {
        let opened = self.opened(route, preface).await;
        self.note(route, &opened);
        opened
    }

    /// Whatever failed, the name may lead elsewhere now (TOP-5).
    fn note<T>(&self, route: &Route, outcome: &Result<T, DialFault>) {
        if outcome.is_err()
            && let Some(address) = route.address()
        {
            self.names.forget(&address);
        }
    }

    async fn opened(&self, route: &Route, preface: Preface) -> Result<(BoxStream, Option<SocketAddr>), DialFault> {
        let attempt = async {
            let mut peer = None;
            let mut stream: BoxStream = match route {
                Route::Direct(address) => {
                    let stream = self.tcp(address).await?;
                    peer = stream.peer_addr().ok();
                    Box::new(ReadAhead::new(stream))
                }
                Route::Gateway(url) => self.upgrade(url).await?,
            };
            let accepted = async {
                stream.write_all(&[preface.byte()]).await?;
                stream.flush().await?;
                match stream.read_u8().await? {
                    PREFACE_BUSY => Ok(Err(stream.read_u32().await?)),
                    answer => Ok(Ok(answer)),
                }
            };
            match accepted.await {
                Ok(Ok(PREFACE_ACCEPTED)) => Ok((stream, peer)),
                Ok(Err(wait_ms)) => Err(DialFault::Busy { wait_ms }),
                Ok(Ok(_)) => Err(DialFault::Preface(io::Error::other("other software answers there"))),
                Err(e) => Err(DialFault::Preface(e)),
            }
        };
        timeout(Duration::from_secs(HANDSHAKE_S), attempt).await.map_err(|_| DialFault::TimeOut)?
    }

    /// The same with the inner TLS on top: only the node `parent` of `tenant` can be its peer.
    pub async fn secure(
        &self,
        route: &Route,
        preface: Preface,
        tls: &Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<TlsStream<BoxStream>, DialFault> {
        self.secure_at(route, preface, tls, name).await.map(|(stream, _)| stream)
    }

    /// The same with the address of the parent itself, which behind a gateway nobody knows.
    ///
    /// # Errors
    /// As [`Dialler::secure`].
    pub async fn secure_at(
        &self,
        route: &Route,
        preface: Preface,
        tls: &Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<(TlsStream<BoxStream>, Option<SocketAddr>), DialFault> {
        let (stream, peer) = self.open_at(route, preface).await?;
        let handshake = TlsConnector::from(tls.clone()).connect(name, stream);
        let handshake = timeout(Duration::from_secs(HANDSHAKE_S), handshake).await;
        let secured = handshake.map_err(|_| DialFault::TimeOut).and_then(|done| done.map_err(DialFault::Tls));
        self.note(route, &secured);
        secured.map(|stream| (stream, peer))
    }

    async fn tcp(&self, address: &str) -> Result<TcpStream, DialFault> {
        let resolved = self.names.lookup(address).await.map_err(|e| DialFault::Resolve(address.into(), e))?;
        let mut last = io::Error::other("the name has no address");
        for target in resolved {
            let connect = async {
                let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                if let Some(source) = self.bind_source.filter(|s| s.is_ipv4() == target.is_ipv4()) {
                    socket.bind((source, 0).into())?;
                }
                let stream = socket.connect(target).await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            };
            match timeout(Duration::from_secs(CONNECT_S), connect).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(e)) => last = e,
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {CONNECT_S} s")),
            }
        }
        Err(DialFault::Connect(address.into(), last))
    }

    async fn upgrade(&self, url: &str) -> Result<BoxStream, DialFault> {
        let bad = || DialFault::BadAddress(url.into());
        let authority = url.strip_prefix("https://").ok_or_else(bad)?.trim_end_matches('/');
        let address = Route::Gateway(url.into()).address().ok_or_else(bad)?;
        let host = address.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']'])).ok_or_else(bad)?;
        let name = ServerName::try_from(host.to_string()).map_err(|_| bad())?;
        let outer =
            self.outer.clone().ok_or_else(|| DialFault::Upgrade(url.into(), "no trust for it is configured".into()))?;
        let tcp = self.tcp(&address).await?;
        let failed = |e: String| DialFault::Upgrade(url.into(), e);
        let tls = TlsConnector::from(outer).connect(name, ReadAhead::new(tcp)).await;
        let tls = tls.map_err(|e| failed(e.to_string()))?;
        let mut request = format!("wss://{authority}{LINK_PATH}").into_client_request().map_err(|_| bad())?;
        let token =
            HeaderValue::from_str(&self.link_token).map_err(|_| failed("the link token is no header value".into()))?;
        request.headers_mut().insert(TOKEN_HEADER, token);
        match client_async_with_config(request, tls, Some(carrier::web_socket_config())).await {
            Ok((socket, _)) => Ok(Box::new(carrier::WebSocketCarrier::new(socket))),
            Err(WsError::Http(answer)) => {
                let retry =
                    answer.headers().get("retry-after").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
                Err(DialFault::Gateway { url: url.into(), status: answer.status().as_u16(), retry_after_s: retry })
            }
            Err(e) => Err(failed(e.to_string())),
        }
    }
}

/// The name under which a parent's certificate is verified.
pub fn parent_name(parent: NodeId, tenant: &TenantId) -> ServerName<'static> {
    crate::identity::server_name(parent, tenant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{CertificateError, Error};

    #[test]
    fn top_4_another_certificate_is_an_impostors_and_one_that_is_late_is_the_parents() {
        let fault = |e| DialFault::Tls(io::Error::new(io::ErrorKind::InvalidData, e));
        for (why, impostor) in [
            (CertificateError::UnknownIssuer, true),
            (CertificateError::NotValidForName, true),
            (CertificateError::BadSignature, true),
            (CertificateError::Expired, false),
            (CertificateError::NotValidYet, false),
        ] {
            assert_eq!(fault(Error::InvalidCertificate(why.clone())).is_impostor(), impostor, "{why:?}");
        }
        assert!(!fault(Error::DecryptError).is_impostor());
        assert!(!DialFault::Tls(io::Error::other("the stream ended")).is_impostor());
        assert!(!DialFault::TimeOut.is_impostor());
    }

    #[test]
    fn a_gateway_is_resolved_by_its_host_and_443_unless_it_names_a_port() {
        let address = |url: &str| Route::Gateway(url.into()).address();
        assert_eq!(address("https://gw.example"), Some("gw.example:443".into()));
        assert_eq!(address("https://gw.example:8443/"), Some("gw.example:8443".into()));
        assert_eq!(address("https://[::1]:9"), Some("[::1]:9".into()));
        assert_eq!(address("http://gw.example"), None);
    }
}
