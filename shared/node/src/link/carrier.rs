//! A WebSocket as a byte stream: what the child's side of the gateway route runs the inner TLS over.
//!
//! Each flush becomes one binary message; a Close frame or the end of the connection is end of stream. Vectored writes
//! are gathered and flushes passed on, or every TLS record would become a message of its own.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Sink, Stream};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message, protocol::WebSocketConfig},
};

/// Bytes gathered before a message is sent without waiting for a flush: four full TLS records.
const GATHER: usize = 64 * 1024;

/// Buffers of a few KiB instead of the library's 128 KiB, and no message larger than any TLS record flight.
pub fn web_socket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(256 * 1024)
        .max_message_size(Some(1024 * 1024))
        .max_frame_size(Some(1024 * 1024))
}

/// The byte stream over a WebSocket.
pub struct WebSocketCarrier<S> {
    socket: WebSocketStream<S>,
    incoming: Bytes,
    gathered: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketCarrier<S> {
    /// Over an upgraded WebSocket.
    pub fn new(socket: WebSocketStream<S>) -> Self {
        WebSocketCarrier { socket, incoming: Bytes::new(), gathered: BytesMut::new() }
    }

    /// Hands what was gathered to the WebSocket.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gathered.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(to_io)?;
        let message = Message::Binary(self.gathered.split().freeze());
        Poll::Ready(Pin::new(&mut self.socket).start_send(message).map_err(to_io))
    }
}

fn to_io(e: Error) -> io::Error {
    match e {
        Error::Io(e) => e,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::ConnectionReset.into(),
        other => io::Error::other(other),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketCarrier<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.incoming.is_empty() {
                let n = self.incoming.len().min(buf.remaining());
                buf.put_slice(&self.incoming[..n]);
                self.incoming.advance(n);
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.incoming = bytes,
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(())),
                Some(Err(Error::ConnectionClosed | Error::AlreadyClosed)) => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_))) => return Poll::Ready(Err(io::Error::other("a text message on a link"))),
                Some(Ok(_)) => {}
                Some(Err(e)) => return Poll::Ready(Err(to_io(e))),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketCarrier<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    /// Takes at most what makes one message full: the WebSocket's own buffer is bounded.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= GATHER {
            ready!(self.poll_send(cx))?;
        }
        let mut taken = 0;
        for part in parts {
            let room = GATHER - self.gathered.len();
            let n = part.len().min(room);
            self.gathered.extend_from_slice(&part[..n]);
            taken += n;
            if n < part.len() {
                break;
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx).map_err(to_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        match ready!(Pin::new(&mut self.socket).poll_close(cx)) {
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Poll::Ready(Ok(())),
            Err(e) => Poll::Ready(Err(to_io(e))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_tungstenite::tungstenite::protocol::Role;

    #[actix_rt::test]
    async fn bytes_pass_unchanged_in_both_directions_and_close_is_the_end() {
        let (a, b) = tokio::io::duplex(4096);
        let a = WebSocketStream::from_raw_socket(a, Role::Client, Some(web_socket_config())).await;
        let b = WebSocketStream::from_raw_socket(b, Role::Server, Some(web_socket_config())).await;
        let (mut a, mut b) = (WebSocketCarrier::new(a), WebSocketCarrier::new(b));
        let sent: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        let echo = async {
            let mut got = vec![0; sent.len()];
            b.read_exact(&mut got).await.unwrap();
            b.write_all(&got).await.unwrap();
            b.flush().await.unwrap();
            b.shutdown().await.unwrap();
        };
        let ask = async {
            a.write_all(&sent).await.unwrap();
            a.flush().await.unwrap();
            let mut back = Vec::new();
            a.read_to_end(&mut back).await.unwrap();
            back
        };
        let (back, ()) = tokio::join!(ask, echo);
        assert_eq!(back, sent);
    }
}
