//! One child's bytes, copied between its WebSocket and a stream of a trunk. Blind: after the first byte, which says
//! whether this is an enrolment, nothing is looked at.
//!
//! Back-pressure is the copying itself: a direction reads again only when what it read before was taken. Held at most
//! per pipe: the trunk's window of 256 KiB upwards, 32 messages of [`COPY_BYTES`] downwards.

use crate::{
    gate::{Gate, Place},
    limits::{Allowance, Opening},
};
use actix_ws::{CloseCode, CloseReason, Item, Message, MessageStream, Session};
use branchline_node::{
    enrol::{SPLICE_BYTES_MAX, SPLICE_S},
    trunk::{TrunkStream, write_header},
};
use branchline_protocol::wire::{HANDSHAKE_S, StreamHeader};
use bytes::Bytes;
use std::{
    cell::RefCell,
    future::{pending, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf},
    sync::Notify,
    time::{sleep, timeout},
};

/// The largest WebSocket frame taken from a child: 1 MiB, what a child's carrier may gather.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of one message to a child at most.
const COPY_BYTES: usize = 32 * 1024;
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
    /// Copies until either end ends.
    pub async fn run(self, mut session: Session, mut messages: MessageStream) {
        let Pipe { gate, place, header } = self;
        let source = header.source;
        let copied = copy(&gate, header, &mut session, &mut messages);
        let end = tokio::select! {
            biased;
            () = gate.stop.cancelled() => End::Stopping,
            end = copied => end,
        };
        if let Some(reason) = end.counted() {
            gate.refused(reason);
            tracing::debug!(?source, ?end, "pipe refused");
        }
        let reason = CloseReason { code: end.code(), description: None };
        // A child that does not take the goodbye finds out from the closed connection.
        let _unsaid = timeout(LAST_WORDS, session.close(Some(reason))).await;
        drop(messages);
        drop(place);
    }
}

async fn copy(gate: &Gate, header: StreamHeader, session: &mut Session, messages: &mut MessageStream) -> End {
    let handshake = sleep(Duration::from_secs(HANDSHAKE_S));
    tokio::pin!(handshake);
    // The stream is opened only once the child has said something: yamux allows 256 streams without an answer, so
    // silent children must not have one.
    let opened = async {
        let first = first_bytes(session, messages).await?;
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
    let mut answers = session.clone();
    let end = tokio::select! {
        end = up(gate, messages, &mut answers, &mut write, up_left) => end,
        end = down(gate, read, session, down_left, &answered) => end,
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

async fn first_bytes(session: &mut Session, messages: &mut MessageStream) -> Result<Bytes, End> {
    loop {
        let bytes = next(session, messages).await?;
        if !bytes.is_empty() {
            return Ok(bytes);
        }
    }
}

/// The next bytes from the child. Pings are answered on the way.
async fn next(session: &mut Session, messages: &mut MessageStream) -> Result<Bytes, End> {
    loop {
        match messages.recv().await {
            Some(Ok(Message::Binary(bytes))) => return Ok(bytes),
            // Where one message ends and the next begins means nothing to a byte stream.
            Some(Ok(Message::Continuation(Item::FirstBinary(b) | Item::Continue(b) | Item::Last(b)))) => return Ok(b),
            Some(Ok(Message::Ping(bytes))) => session.pong(&bytes).await.map_err(|_| End::Child)?,
            Some(Ok(Message::Pong(_) | Message::Nop)) => {}
            Some(Ok(Message::Text(_) | Message::Continuation(Item::FirstText(_)))) => return Err(End::NotBinary),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(End::Child),
        }
    }
}

async fn up(
    gate: &Gate,
    messages: &mut MessageStream,
    answers: &mut Session,
    write: &mut WriteHalf<TrunkStream>,
    mut left: Allowance,
) -> End {
    loop {
        let bytes = match next(answers, messages).await {
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

async fn down(
    gate: &Gate,
    mut read: ReadHalf<TrunkStream>,
    session: &mut Session,
    mut left: Allowance,
    answered: &Notify,
) -> End {
    loop {
        let bytes = match some(&mut read).await {
            Ok(bytes) if !bytes.is_empty() => bytes,
            Ok(_) | Err(_) => return End::Server,
        };
        let n = bytes.len();
        answered.notify_one();
        if !left.take(n) {
            return End::EnrolmentBounds;
        }
        if session.binary(bytes).await.is_err() {
            return End::Child;
        }
        gate.counters.down.increment(n as u64);
    }
}

thread_local! {
    /// What a pipe of this thread reads into before it knows how much there is: an idle one needs no buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; COPY_BYTES]);
}

/// What the trunk has for this child, at most [`COPY_BYTES`]; nothing at its end.
async fn some(read: &mut ReadHalf<TrunkStream>) -> io::Result<Bytes> {
    poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *read).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(Bytes::copy_from_slice(buffer.filled())))
        })
    })
    .await
}
