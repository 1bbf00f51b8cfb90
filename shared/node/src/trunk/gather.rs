//! What the streams of a trunk say together is one write. yamux writes a frame's head and its body apart and flushes after each
//! frame; over TLS each of these would be a record and a call of the system of its own.
//!
//! A flush is only noted here. Whoever drives the connection calls [`Gathered::poll_send`] when nothing more is to be said for now.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes gathered before they are written without waiting for the end of a turn: four full TLS records.
pub const GATHER_BYTES: usize = 64 * 1024;

struct Inner<T> {
    io: T,
    waiting: Vec<u8>,
    /// How many of them are written.
    written: usize,
    /// Something was written since the last flush.
    flush: bool,
}

/// See the module. Clones share the connection.
pub struct Gathered<T>(Arc<Mutex<Inner<T>>>);

impl<T> Clone for Gathered<T> {
    fn clone(&self) -> Self {
        Gathered(Arc::clone(&self.0))
    }
}

impl<T> Gathered<T> {
    /// Over this connection.
    pub fn new(io: T) -> Self {
        Gathered(Arc::new(Mutex::new(Inner { io, waiting: Vec::new(), written: 0, flush: false })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Gathered<T> {
    /// Writes all that waits, and flushes.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_send(cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Inner<T> {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.waiting.len() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.waiting[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
            self.flush = true;
        }
        self.waiting.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        if self.flush {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.flush = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner().io).poll_read(cx, buf)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.inner();
        if inner.waiting.len() >= GATHER_BYTES {
            ready!(inner.poll_write_out(cx))?;
        }
        let n = bytes.len().min(GATHER_BYTES - inner.waiting.len());
        inner.waiting.extend_from_slice(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    /// Done by [`Gathered::poll_send`], at the end of the driver's turn.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        ready!(inner.poll_send(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Counts writes, takes at most so many bytes of each, and flushes.
    #[derive(Default)]
    struct Sink {
        took: Vec<Vec<u8>>,
        flushes: usize,
        at_most: usize,
    }

    impl AsyncRead for Sink {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Sink {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let n = bytes.len().min(self.at_most);
            self.took.push(bytes[..n].to_vec());
            Poll::Ready(Ok(n))
        }
        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_said_before_the_turn_ends_is_one_write_and_one_flush() {
        let gathered = Gathered::new(Sink { at_most: usize::MAX, ..Sink::default() });
        let mut end = gathered.clone();
        for part in [&b"head"[..], b"body", b"head", b"more"] {
            end.write_all(part).await.unwrap();
            end.flush().await.unwrap();
        }
        assert_eq!(gathered.inner().io.took.len(), 0, "nothing leaves before the turn is over");
        poll_fn(|cx| gathered.poll_send(cx)).await.unwrap();
        poll_fn(|cx| gathered.poll_send(cx)).await.unwrap();
        let inner = gathered.inner();
        assert_eq!((&inner.io.took[..], inner.io.flushes), (&[b"headbodyheadmore".to_vec()][..], 1));
    }

    #[tokio::test]
    async fn what_is_gathered_is_bounded_and_comes_in_order_whatever_each_write_takes() {
        let gathered = Gathered::new(Sink { at_most: 7_000, ..Sink::default() });
        let sent: Vec<u8> = (0..3 * GATHER_BYTES as u32 + 5).map(|n| (n >> 3) as u8).collect();
        let mut end = gathered.clone();
        for chunk in sent.chunks(10_007) {
            end.write_all(chunk).await.unwrap();
            assert!(gathered.inner().waiting.len() <= GATHER_BYTES);
        }
        end.shutdown().await.unwrap();
        assert!(gathered.inner().io.took.concat() == sent);
    }

    #[tokio::test]
    async fn it_reads_what_comes() {
        let (left, mut right) = tokio::io::duplex(64);
        right.write_all(b"abc").await.unwrap();
        let mut read = [0; 3];
        Gathered::new(left).read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"abc");
    }
}
