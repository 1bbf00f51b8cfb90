//! nginx and HAProxy as what stands in a DMZ: they end the outer TLS, upgrade to a WebSocket, and carry bytes to an upstream
//! over TLS. One worker each.

use crate::{
    Outcome,
    certs::{Certs, localhost},
    daemon::{Daemon, free_port, local},
    machine,
    stats::Sample,
};
use std::{path::Path, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// nginx
    Nginx,
    /// HAProxy
    Haproxy,
}

/// What takes longer is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Links that are being opened at once.
const AT_ONCE: usize = 32;

/// A running proxy with its upstream.
pub struct Proxy {
    daemon: Daemon,
    port: u16,
    connector: TlsConnector,
}

/// What idle links cost it.
pub struct Links {
    /// KiB that it grew by for each, RSS and PSS.
    pub kib: (f64, f64),
    /// Seconds of CPU for a thousand new ones: outer TLS, upgrade, TLS to the upstream.
    pub cpu_s_per_1000: f64,
}

impl Proxy {
    /// Starts it before an upstream of our own; `asks`: it demands a client's certificate.
    pub fn start(kind: Kind, certs: &Certs, folder: &Path, asks: bool) -> Outcome<Proxy> {
        let upstream = upstream(certs.acceptor(false)?)?;
        let port = free_port()?;
        let daemon = match kind {
            Kind::Nginx => nginx(certs, folder, port, upstream, asks)?,
            Kind::Haproxy => haproxy(certs, folder, port, upstream, asks)?,
        };
        Ok(Proxy { daemon, port, connector: certs.connector(asks)? })
    }

    async fn open(connector: TlsConnector, port: u16) -> Outcome<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(local(port)).await?;
        tcp.set_nodelay(true)?;
        let mut stream = connector.connect(localhost(), tcp).await?;
        // The upstream does not look at the key, and nothing here speaks WebSocket frames: a proxy only carries them.
        stream
            .write_all(
                b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
            )
            .await?;
        let head = head(&mut stream).await?;
        if !head.starts_with("HTTP/1.1 101") {
            return Err(format!("no upgrade: {head}").into());
        }
        stream.write_all(&[7; 64]).await?;
        timeout(PATIENCE, stream.read_exact(&mut [0; 64])).await??;
        Ok(stream)
    }

    /// So many links that stay idle after one echo each.
    pub async fn links(&self, count: usize) -> Outcome<Links> {
        let pids = self.daemon.pids();
        let before = machine::read(&pids);
        let mut open = Vec::new();
        while open.len() < count {
            let batch = AT_ONCE.min(count - open.len());
            let opening: Vec<_> = (0..batch).map(|_| tokio::spawn(opened(self.connector.clone(), self.port))).collect();
            for link in opening {
                open.push(link.await??);
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = machine::read(&pids);
        drop(open);
        Ok(Links {
            kib: after.grown_kib(&before, count),
            cpu_s_per_1000: (after.cpu_s - before.cpu_s) * 1_000.0 / count as f64,
        })
    }

    /// MB in a second through it on one connection, so often so many MiB; and seconds of its CPU for a GB.
    pub async fn bulk(&self, times: usize, mib: usize) -> Outcome<(Sample, f64)> {
        let mut rates = Vec::new();
        let before = machine::read(&self.daemon.pids());
        for _ in 0..times {
            let tcp = TcpStream::connect(local(self.port)).await?;
            let mut stream = self.connector.connect(localhost(), tcp).await?;
            let ask = format!("GET /bulk/{mib} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(ask.as_bytes()).await?;
            let from = Instant::now();
            let head = head(&mut stream).await?;
            if !head.starts_with("HTTP/1.1 200") {
                return Err(format!("no bulk: {head}").into());
            }
            let (mut left, mut buffer) = (mib << 20, vec![0; 256 << 10]);
            while left > 0 {
                match timeout(PATIENCE, stream.read(&mut buffer)).await?? {
                    0 => return Err("it ended early".into()),
                    n => left = left.saturating_sub(n),
                }
            }
            rates.push((mib << 20) as f64 / 1e6 / from.elapsed().as_secs_f64());
        }
        let cpu_s = machine::read(&self.daemon.pids()).cpu_s - before.cpu_s;
        let gigabytes = (mib << 20) as f64 / 1e9 * times as f64;
        Ok((Sample::of(rates), cpu_s / gigabytes))
    }
}

/// A fault that may cross tasks.
async fn opened(connector: TlsConnector, port: u16) -> Result<TlsStream<TcpStream>, std::io::Error> {
    Proxy::open(connector, port).await.map_err(|e| std::io::Error::other(e.to_string()))
}

/// The lines up to an empty one, byte by byte: what comes behind them is not ours to take.
async fn head<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> Outcome<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, stream.read_u8()).await??);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Echoes after an upgrade, and answers `/bulk/MIB`; on a thread of its own, for the life of this program.
fn upstream(acceptor: TlsAcceptor) -> Outcome<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("upstream".into()).spawn(move || {
        runtime.block_on(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            loop {
                let Ok((tcp, _)) = listener.accept().await else { continue };
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // Whoever goes away is served no longer.
                    let _ = serve(tcp, acceptor).await.map_err(|e| e.to_string());
                });
            }
        });
    })?;
    Ok(port)
}

async fn serve(tcp: TcpStream, acceptor: TlsAcceptor) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let mut stream = acceptor.accept(tcp).await?;
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        asked.push(stream.read_u8().await?);
    }
    let asked = String::from_utf8_lossy(&asked).into_owned();
    if let Some(mib) = asked.strip_prefix("GET /bulk/").and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok()) {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", mib << 20);
        stream.write_all(head.as_bytes()).await?;
        let block: Vec<u8> = (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for _ in 0..mib {
            stream.write_all(&block).await?;
        }
        return stream.shutdown().await;
    }
    stream
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n")
        .await?;
    let mut buffer = [0; 2_048];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..n]).await?;
    }
}

fn nginx(certs: &Certs, folder: &Path, port: u16, upstream: u16, asks: bool) -> Outcome<Daemon> {
    let (chain, key, ca, run) = (certs.chain.display(), certs.key.display(), certs.ca.display(), folder.display());
    let asks = if asks { format!("ssl_client_certificate {ca}; ssl_verify_client on;") } else { String::new() };
    let text = format!(
        "worker_processes 1; worker_rlimit_nofile 20000; pid {run}/nginx.pid; error_log {run}/nginx.err warn; daemon off; user root;
         events {{ worker_connections 18000; }}
         http {{
           access_log off; client_body_temp_path {run}/n1; proxy_temp_path {run}/n2; fastcgi_temp_path {run}/n3;
           uwsgi_temp_path {run}/n4; scgi_temp_path {run}/n5;
           server {{
             listen 127.0.0.1:{port} ssl backlog=4096; {asks}
             ssl_certificate {chain}; ssl_certificate_key {key}; ssl_protocols TLSv1.3; ssl_session_tickets off;
             proxy_http_version 1.1; proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; proxy_ssl_name localhost;
             proxy_ssl_trusted_certificate {ca}; proxy_set_header Host localhost; proxy_max_temp_file_size 0;
             location /ws {{ proxy_pass https://127.0.0.1:{upstream}; proxy_set_header Upgrade $http_upgrade;
               proxy_set_header Connection Upgrade; proxy_read_timeout 1h; proxy_send_timeout 1h; }}
             location / {{ proxy_pass https://127.0.0.1:{upstream}; proxy_buffers 8 64k; proxy_buffer_size 64k;
               proxy_busy_buffers_size 128k; }}
           }}
         }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text)?;
    Daemon::start("nginx", &["-c", &file.display().to_string(), "-e", "stderr"], folder, &[port])
}

fn haproxy(certs: &Certs, folder: &Path, port: u16, upstream: u16, asks: bool) -> Outcome<Daemon> {
    let (both, ca) = (certs.both.display(), certs.ca.display());
    let asks = if asks { format!("ca-file {ca} verify required") } else { String::new() };
    let text = format!(
        "global\n nbthread 1\n maxconn 9000\n tune.ssl.cachesize 0\n ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets\n\
         defaults\n mode http\n timeout connect 10s\n timeout client 1h\n timeout server 1h\n timeout tunnel 1h\n\
         frontend outer\n bind 127.0.0.1:{port} ssl crt {both} {asks}\n default_backend inner\n\
         backend inner\n server one 127.0.0.1:{upstream} ssl verify required ca-file {ca} sni str(localhost) verifyhost localhost\n"
    );
    let file = folder.join("haproxy.cfg");
    std::fs::write(&file, text)?;
    Daemon::start("haproxy", &["-db", "-f", &file.display().to_string()], folder, &[port])
}
