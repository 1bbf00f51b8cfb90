//! A child's WebSocket, after the upgrade. It holds bytes only while there are some: an idle link has no buffer here, which is
//! why the frames' codec is used by itself and not a whole WebSocket, whose buffers keep the size of the largest message.

use actix_http::ws::{CloseCode, CloseReason, Codec, Frame, Item, OpCode, Parser};
use branchline_node::link::AHEAD_BYTES;
use bytes::{Bytes, BytesMut};
use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf},
    time::timeout,
};
use tokio_util::codec::Decoder;

/// The largest WebSocket frame taken from a child: 1 MiB, what a child's carrier may send.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Bytes that are read at once at most: as a message with its head, what TLS takes at once.
pub const COPY_BYTES: usize = 60 * 1024;
/// A read of so many bytes says that much comes.
const MUCH_BYTES: usize = 16 * 1024;
/// How long a connection that we end is still read, and what comes thrown away: closed at once, the system might reset
/// it before our last words have arrived.
pub const LINGER: Duration = Duration::from_secs(1);

/// What a child said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Bytes of its stream. Where one message ends and the next begins means nothing.
    Bytes(Bytes),
    /// A ping, to be answered with these bytes.
    Ping(Bytes),
    /// What is no binary message.
    Text,
    /// Nothing more: a goodbye, the end of the connection, or a violation of the protocol.
    End,
}

/// What comes from the child.
pub struct FromChild<S> {
    half: ReadHalf<S>,
    codec: Codec,
    buffer: BytesMut,
}

/// What goes to the child.
pub struct ToChild<S> {
    half: WriteHalf<S>,
    /// Whether a message was begun and not ended: nothing may follow it.
    torn: bool,
}

/// Both directions of an upgraded connection; `read` came with the request.
pub fn split<S: AsyncRead + AsyncWrite>(io: S, read: BytesMut) -> (FromChild<S>, ToChild<S>) {
    let (read_half, write_half) = tokio::io::split(io);
    let from = FromChild { half: read_half, codec: Codec::new().max_size(FRAME_BYTES_MAX), buffer: read };
    (from, ToChild { half: write_half, torn: false })
}

/// The connection below both directions.
pub fn unsplit<S: AsyncRead + AsyncWrite + Unpin>(from: FromChild<S>, to: ToChild<S>) -> S {
    from.half.unsplit(to.half)
}

impl<S: AsyncRead + AsyncWrite + Unpin> FromChild<S> {
    /// Waits for what the child says next. Cancelled, it has lost nothing.
    pub async fn next(&mut self) -> Said {
        loop {
            match self.codec.decode(&mut self.buffer) {
                Ok(Some(
                    Frame::Binary(b) | Frame::Continuation(Item::FirstBinary(b) | Item::Continue(b) | Item::Last(b)),
                )) => {
                    return Said::Bytes(b);
                }
                Ok(Some(Frame::Ping(bytes))) => return Said::Ping(bytes),
                Ok(Some(Frame::Pong(_))) => continue,
                Ok(Some(Frame::Text(_) | Frame::Continuation(Item::FirstText(_)))) => return Said::Text,
                Ok(Some(Frame::Close(_))) | Err(_) => return Said::End,
                Ok(None) if claims_too_much(&self.buffer) => return Said::End,
                Ok(None) => {}
            }
            if self.buffer.is_empty() {
                self.buffer = BytesMut::new();
            }
            let (half, buffer) = (&mut self.half, &mut self.buffer);
            let mut take = |bytes: &[u8]| {
                // While much comes, room for a message of a child and what is read behind it, so that it need not grow.
                if bytes.len() >= MUCH_BYTES && buffer.is_empty() {
                    buffer.reserve(AHEAD_BYTES + COPY_BYTES);
                }
                buffer.extend_from_slice(bytes);
            };
            match poll_fn(|cx| poll_some(half, cx, &mut take)).await {
                Ok(n) if n > 0 => {}
                Ok(_) | Err(_) => return Said::End,
            }
        }
    }
}

/// Whether the frame that begins here says of itself that it is over the bound. The codec says so only at its end.
fn claims_too_much(frame: &[u8]) -> bool {
    match frame {
        [_, second, rest @ ..] if second & 0x7f == 127 => {
            rest.first_chunk().is_some_and(|length| u64::from_be_bytes(*length) > FRAME_BYTES_MAX as u64)
        }
        _ => false,
    }
}

/// What `from` has next, at most [`COPY_BYTES`] of it, as one message to a child, and how many bytes that are; 0 at its end.
pub async fn message(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(usize, BytesMut)> {
    let mut message = BytesMut::new();
    let n = poll_fn(|cx| {
        poll_some(from, cx, |bytes| Parser::write_message(&mut message, bytes, OpCode::Binary, true, false))
    })
    .await?;
    Ok((n, message))
}

impl<S: AsyncRead + AsyncWrite + Unpin> ToChild<S> {
    /// Sends a whole message.
    pub async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.torn = true;
        self.half.write_all(message).await?;
        self.half.flush().await?;
        self.torn = false;
        Ok(())
    }

    /// Answers a ping.
    pub async fn pong(&mut self, bytes: Bytes) -> io::Result<()> {
        let mut message = BytesMut::new();
        Parser::write_message(&mut message, bytes, OpCode::Pong, true, false);
        self.send(&message).await
    }

    /// Says goodbye, unless a message was cut off.
    pub async fn close(&mut self, code: CloseCode) -> io::Result<()> {
        if self.torn {
            return Ok(());
        }
        let mut message = BytesMut::new();
        Parser::write_close(&mut message, Some(CloseReason { code, description: None }), false);
        self.send(&message).await
    }
}

/// Says that nothing more is said, and waits until the child has gone, [`LINGER`] at most.
pub async fn linger(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let gone = async {
        let _closed = io.shutdown().await;
        let mut thrown_away = [0; 1_024];
        while io.read(&mut thrown_away).await.is_ok_and(|n| n > 0) {}
    };
    // A child that stays is cut off by the drop.
    let _stays = timeout(LINGER, gone).await;
}

thread_local! {
    /// What everybody on this thread reads into before it is known how much there is.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; COPY_BYTES]);
}

/// Reads what there is, at most [`COPY_BYTES`], and answers how much that was; 0 at the end.
fn poll_some(
    from: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]),
) -> Poll<io::Result<usize>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        // TLS and trunk hand out a record at a time.
        while buffer.remaining() > 0 {
            let before = buffer.filled().len();
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
                // An end or a fault comes again, after what came before it.
                _ if before > 0 => break,
                Poll::Ready(Ok(())) => break,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
        }
        take(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use tokio::io::{DuplexStream, duplex};

    /// A masked binary message with the mask 0, or the beginning of one.
    fn masked(length: u64, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x82, 0xff];
        frame.extend(length.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(payload);
        frame
    }

    fn pair(room: usize) -> (DuplexStream, FromChild<DuplexStream>, ToChild<DuplexStream>) {
        let (child, io) = duplex(room);
        let (from, to) = split(io, BytesMut::new());
        (child, from, to)
    }

    #[tokio::test]
    async fn a_child_that_says_nothing_costs_no_buffer_whatever_it_said_before() {
        for length in [1, 100, 20_000, 64 * 1024, FRAME_BYTES_MAX] {
            let (mut child, mut from, _to) = pair(2 * FRAME_BYTES_MAX);
            let payload: Vec<u8> = (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            child.write_all(&masked(length as u64, &payload)).await.unwrap();
            assert_eq!(from.next().await, Said::Bytes(payload.into()), "{length}");
            assert!(from.next().now_or_never().is_none(), "nothing more was said");
            assert_eq!(from.buffer.capacity(), 0, "{length}");
        }
    }

    #[tokio::test]
    async fn a_message_over_the_bound_ends_it_before_its_payload_has_come() {
        let (mut child, mut from, _to) = pair(1_024);
        child.write_all(&masked(FRAME_BYTES_MAX as u64, b"")).await.unwrap();
        assert!(from.next().now_or_never().is_none(), "at the bound it is waited for");
        let (mut child, mut from, _to) = pair(1_024);
        child.write_all(&masked(FRAME_BYTES_MAX as u64 + 1, b"")).await.unwrap();
        assert_eq!(from.next().now_or_never(), Some(Said::End));
    }

    #[tokio::test]
    async fn nothing_follows_a_message_that_was_cut_off() {
        for (room, goodbye) in [(64, false), (1_024, true)] {
            let (mut child, from, mut to) = pair(room);
            assert_eq!(to.send(&[7; 100]).now_or_never().is_some(), goodbye, "{room}");
            let closing = async {
                to.close(CloseCode::Normal).await.unwrap();
                linger(unsplit(from, to)).await;
            };
            let reading = async {
                let mut got = Vec::new();
                child.read_to_end(&mut got).await.unwrap();
                drop(child);
                got
            };
            let ((), got) = tokio::join!(closing, reading);
            assert_eq!(got.ends_with(&[0x88, 2, 0x03, 0xe8]), goodbye, "{got:?}");
        }
    }

    #[tokio::test]
    async fn what_is_ready_goes_in_one_message_and_the_end_comes_behind_it() {
        // Five pieces, as records come from TLS: each is handed out by a read of its own.
        let piece = || &[3; 14_000][..];
        let mut near = piece().chain(piece()).chain(piece()).chain(piece()).chain(piece());
        for (n, head) in [(COPY_BYTES, 4), (70_000 - COPY_BYTES, 4)] {
            let (passed, message) = message(&mut near).await.unwrap();
            assert_eq!((passed, message.len()), (n, n + head));
        }
        assert_eq!(message(&mut near).await.unwrap().0, 0);
    }
}
