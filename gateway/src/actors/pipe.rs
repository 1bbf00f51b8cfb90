//! One child's bytes, copied between its WebSocket and a stream of a trunk. Blind: after the first byte, which says
//! whether this is an enrolment, nothing is looked at.
//!
//! Back-pressure is the copying itself: a direction reads again only when what it read before was taken. Held at most
//! per pipe: the trunk's window of 256 KiB and a frame of [`socket::FRAME_BYTES_MAX`] upwards, one message of
//! [`socket::COPY_BYTES`] downwards.

use super::socket::{self, FromChild, Said, ToChild};
use crate::{
    gate::{Gate, Place},
    limits::{Allowance, Opening},
};
use actix_http::ws::CloseCode;
use branchline_node::{
    enrol::{SPLICE_BYTES_MAX, SPLICE_S},
    trunk::{TrunkStream, write_header},
};
use branchline_protocol::wire::{HANDSHAKE_S, StreamHeader};
use bytes::{Bytes, BytesMut};
use std::{future::pending, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{Mutex, Notify},
    time::{sleep, timeout},
};

/// Time for the last words of an ended pipe.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// One pipe before it runs.
pub struct Pipe {
    /// The node's shared state.
    pub gate: Arc<Gate>,
    /// Its place among the pipes.
    pub place: Place,
    /// What the server is told of the child.
    pub header: StreamHeader,
}

/// Why a pipe ended. The child sees the WebSocket's code; the words are for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The child closed or went.
    Child,
    /// The server closed its stream, or the trunk went.
    Server,
    /// The child said nothing, or the server did not answer, in time.
    Handshake,
    /// The first byte is none that a child may send.
    Preface,
    /// The child sent what is no binary message.
    NotBinary,
    /// No stream could be had.
    NoStream,
    /// Too many enrolments at once.
    EnrolmentsBusy,
    /// An enrolment passed its bounds.
    EnrolmentBounds,
    /// The node stops.
    Stopping,
}

impl End {
    /// A fault of the child is counted under this word.
    fn counted(self) -> Option<&'static str> {
        match self {
            End::Child | End::Server | End::Stopping => None,
            End::Handshake => Some("handshake"),
            End::Preface => Some("preface"),
            End::NotBinary => Some("not_binary"),
            End::NoStream => Some("no_stream"),
            End::EnrolmentsBusy => Some("enrolments_busy"),
            End::EnrolmentBounds => Some("enrolment_bounds"),
        }
    }

    fn code(self) -> CloseCode {
        match self {
            End::Child | End::Server => CloseCode::Normal,
            End::Stopping => CloseCode::Away,
            End::Handshake | End::Preface => CloseCode::Policy,
            End::NotBinary => CloseCode::Unsupported,
            End::EnrolmentBounds => CloseCode::Size,
            End::NoStream | End::EnrolmentsBusy => CloseCode::Again,
        }
    }
}

impl Pipe {
    /// Copies until either end ends. `read` came with the child's request.
    pub async fn run<S: AsyncRead + AsyncWrite + Unpin>(self, io: S, read: BytesMut) {
        let Pipe { gate, place, header } = self;
        let source = header.source;
        let (mut from_child, to_child) = socket::split(io, read);
        let to_child = Mutex::new(to_child);
        let copied = copy(&gate, header, &mut from_child, &to_child);
        let end = tokio::select! {
            biased;
            () = gate.stop.cancelled() => End::Stopping,
            end = copied => end,
        };
        if let Some(reason) = end.counted() {
            gate.refused(reason);
            tracing::debug!(?source, ?end, "pipe refused");
        }
        let mut to_child = to_child.into_inner();
        // A child that does not take the goodbye finds out from the closed connection.
        let _unsaid = timeout(LAST_WORDS, to_child.close(end.code())).await;
        drop(place);
        socket::linger(socket::unsplit(from_child, to_child)).await;
    }
}

async fn copy<S: AsyncRead + AsyncWrite + Unpin>(
    gate: &Gate,
    header: StreamHeader,
    from_child: &mut FromChild<S>,
    to_child: &Mutex<ToChild<S>>,
) -> End {
    let handshake = sleep(Duration::from_secs(HANDSHAKE_S));
    tokio::pin!(handshake);
    // The stream is opened only once the child has said something: yamux allows 256 streams without an answer, so
    // silent children must not have one.
    let opened = async {
        let first = first_bytes(from_child, to_child).await?;
        let (enrolment, bytes) = match Opening::of(first[0]) {
            Opening::Refused => return Err(End::Preface),
            Opening::Open => (None, Allowance::unbounded()),
            Opening::Enrol => {
                let permit = Arc::clone(&gate.enrolments).try_acquire_owned().map_err(|_| End::EnrolmentsBusy)?;
                (Some(permit), Allowance::of(SPLICE_BYTES_MAX as u64))
            }
        };
        let stream = open(gate, header, &first).await?;
        Ok((enrolment, bytes, first.len(), stream))
    };
    let (enrolment, bytes, sent, stream) = tokio::select! {
        () = &mut handshake => return End::Handshake,
        opened = opened => match opened {
            Ok(opened) => opened,
            Err(end) => return end,
        },
    };
    gate.counters.up.increment(sent as u64);
    let deadline = enrolment.as_ref().map(|_| Duration::from_secs(SPLICE_S));
    let (mut up_left, down_left) = (bytes, bytes);
    if !up_left.take(sent) {
        return End::EnrolmentBounds;
    }
    let (read, mut write) = tokio::io::split(stream);
    let answered = Notify::new();
    let too_late = async {
        tokio::select! {
            () = answered.notified() => match deadline {
                Some(deadline) => sleep(deadline).await,
                None => return pending().await,
            },
            () = &mut handshake => return End::Handshake,
        }
        End::EnrolmentBounds
    };
    let end = tokio::select! {
        end = up(gate, from_child, to_child, &mut write, up_left) => end,
        end = down(gate, read, to_child, down_left, &answered) => end,
        end = too_late => end,
    };
    // A stream that is finished in order keeps what was written before; a dropped one would lose it.
    let _trunk_gone = timeout(LAST_WORDS, write.shutdown()).await;
    end
}

/// Opens a stream on the next trunk and sends the header with the first bytes behind it.
async fn open(gate: &Gate, header: StreamHeader, first: &[u8]) -> Result<TrunkStream, End> {
    // A trunk that is just ending is passed over; there are at most four.
    for _ in 0..*crate::config::TRUNKS.end() {
        let Some(trunk) = gate.board().take_turn() else { return Err(End::NoStream) };
        if let Ok(mut stream) = trunk.open().await
            && write_header(&mut stream, &header, first).await.is_ok()
        {
            return Ok(stream);
        }
    }
    Err(End::NoStream)
}

async fn first_bytes<S: AsyncRead + AsyncWrite + Unpin>(
    from_child: &mut FromChild<S>,
    to_child: &Mutex<ToChild<S>>,
) -> Result<Bytes, End> {
    loop {
        let bytes = next(from_child, to_child).await?;
        if !bytes.is_empty() {
            return Ok(bytes);
        }
    }
}

/// The next bytes from the child. Pings are answered on the way.
async fn next<S: AsyncRead + AsyncWrite + Unpin>(
    from_child: &mut FromChild<S>,
    to_child: &Mutex<ToChild<S>>,
) -> Result<Bytes, End> {
    loop {
        match from_child.next().await {
            Said::Bytes(bytes) => return Ok(bytes),
            Said::Ping(bytes) => to_child.lock().await.pong(bytes).await.map_err(|_| End::Child)?,
            Said::Text => return Err(End::NotBinary),
            Said::End => return Err(End::Child),
        }
    }
}

async fn up<S: AsyncRead + AsyncWrite + Unpin>(
    gate: &Gate,
    from_child: &mut FromChild<S>,
    to_child: &Mutex<ToChild<S>>,
    write: &mut WriteHalf<TrunkStream>,
    mut left: Allowance,
) -> End {
    loop {
        let bytes = match next(from_child, to_child).await {
            Ok(bytes) => bytes,
            Err(end) => return end,
        };
        if !left.take(bytes.len()) {
            return End::EnrolmentBounds;
        }
        if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
            return End::Server;
        }
        gate.counters.up.increment(bytes.len() as u64);
    }
}

async fn down<S: AsyncRead + AsyncWrite + Unpin>(
    gate: &Gate,
    mut read: ReadHalf<TrunkStream>,
    to_child: &Mutex<ToChild<S>>,
    mut left: Allowance,
    answered: &Notify,
) -> End {
    loop {
        let (n, message) = match socket::message(&mut read).await {
            Ok((n, message)) if n > 0 => (n, message),
            Ok(_) | Err(_) => return End::Server,
        };
        answered.notify_one();
        if !left.take(n) {
            return End::EnrolmentBounds;
        }
        if to_child.lock().await.send(&message).await.is_err() {
            return End::Child;
        }
        gate.counters.down.increment(n as u64);
    }
}
