//! A connection that reads far ahead while much comes. TLS asks for 4 KiB at a time, so that a full record takes four calls of
//! the system; where a read was filled, the next ones take what is there, up to [`AHEAD_BYTES`]. An idle connection keeps no
//! buffer for that.

use actix_rt::net::{ActixStream, Ready};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that one read takes at most while much comes.
pub const AHEAD_BYTES: usize = 64 * 1024;
/// A read that asked for so many bytes and got them says that much comes.
const FILLED_BYTES: usize = 4 * 1024;

/// See the module.
pub struct ReadAhead<T> {
    io: T,
    /// Empty while little comes.
    ahead: Vec<u8>,
    /// Of `ahead`, what was read and not yet taken.
    from: usize,
    to: usize,
    much: bool,
}

impl<T> ReadAhead<T> {
    /// Over this connection.
    pub fn new(io: T) -> Self {
        ReadAhead { io, ahead: Vec::new(), from: 0, to: 0, much: false }
    }

    /// The connection below.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    fn take(&mut self, buf: &mut ReadBuf<'_>) {
        let n = buf.remaining().min(self.to - self.from);
        buf.put_slice(&self.ahead[self.from..self.from + n]);
        self.from += n;
        if self.from == self.to && !self.much {
            self.ahead = Vec::new();
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.from < this.to {
            this.take(buf);
            return Poll::Ready(Ok(()));
        }
        let room = buf.remaining();
        if !this.much || room >= AHEAD_BYTES {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            this.much = room >= FILLED_BYTES && buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        this.ahead.resize(AHEAD_BYTES, 0);
        let mut own = ReadBuf::new(&mut this.ahead);
        let polled = Pin::new(&mut this.io).poll_read(cx, &mut own);
        let came = own.filled().len();
        // A short read emptied the connection.
        this.much = polled.is_ready() && came >= FILLED_BYTES;
        (this.from, this.to) = (0, came);
        this.take(buf);
        polled
    }
}

impl<T: ActixStream> ActixStream for ReadAhead<T> {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        match self.from < self.to {
            true => Poll::Ready(Ok(Ready::READABLE)),
            false => self.io.poll_read_ready(cx),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.io.poll_write_ready(cx)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Hands out bytes and counts how often it was asked; pending when there are none.
    struct Source {
        bytes: Vec<u8>,
        at: usize,
        reads: usize,
        ended: bool,
    }

    impl AsyncRead for Source {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.reads += 1;
            if self.at == self.bytes.len() && !self.ended {
                return Poll::Pending;
            }
            let n = buf.remaining().min(self.bytes.len() - self.at);
            let at = self.at;
            buf.put_slice(&self.bytes[at..at + n]);
            self.at += n;
            Poll::Ready(Ok(()))
        }
    }

    fn source(length: usize, ended: bool) -> ReadAhead<Source> {
        let bytes = (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        ReadAhead::new(Source { bytes, at: 0, reads: 0, ended })
    }

    #[tokio::test]
    async fn much_is_read_in_few_calls_and_arrives_as_it_was() {
        let mut ahead = source(1 << 20, true);
        let (mut got, mut buffer) = (Vec::new(), [0; 4_096]);
        loop {
            match ahead.read(&mut buffer).await.unwrap() {
                0 => break,
                n => got.extend_from_slice(&buffer[..n]),
            }
        }
        assert!(got == ahead.io.bytes);
        assert!(ahead.io.reads <= 2 + (1 << 20) / AHEAD_BYTES + 1, "{} reads", ahead.io.reads);
    }

    #[tokio::test]
    async fn a_connection_that_is_idle_again_keeps_no_buffer() {
        for length in [100, 4_096, 10_000, 200_000] {
            let mut ahead = source(length, false);
            let (mut got, mut buffer) = (0, [0; 4_096]);
            while got < length {
                got += ahead.read(&mut buffer).await.unwrap();
            }
            let mut rest = ReadBuf::new(&mut buffer);
            let polled = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut ahead).poll_read(cx, &mut rest))).await;
            assert!(polled.is_pending(), "{length}");
            assert_eq!(ahead.ahead.capacity(), 0, "{length}");
        }
    }

    #[tokio::test]
    async fn what_is_written_passes() {
        let (left, mut right) = tokio::io::duplex(64);
        let mut ahead = ReadAhead::new(left);
        ahead.write_all(b"abc").await.unwrap();
        ahead.shutdown().await.unwrap();
        let mut got = Vec::new();
        right.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"abc");
    }
}
