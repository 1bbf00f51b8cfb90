//! Many streams over one connection (yamux 0.14).
//!
//! A driver task owns the connection; handles ask it for new streams, and streams from the peer come out of a bounded
//! queue. yamux ends the whole connection when a bound of its own is passed, so the bounds here are tighter: past
//! them, one stream is refused and the others go on.

use super::gather::Gathered;
use futures_util::{
    io::{AsyncRead as _, AsyncWrite as _},
    task::AtomicWaker,
};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
};
use tokio_util::{
    compat::{Compat, TokioAsyncReadCompatExt},
    sync::CancellationToken,
};
use yamux::{Config, Connection, DEFAULT_CREDIT, Mode};

/// Time for the goodbye of an orderly end.
const GOODBYE: Duration = Duration::from_secs(1);
/// Requests for a stream that may wait for the driver; more wait with their callers.
const OPENS_QUEUED: usize = 64;

/// Bytes of one frame of a stream. Others wait for it: 32 KiB are a quarter of a millisecond at 1 Gbit/s.
const FRAME_BYTES: usize = 32 * 1024;

/// The bounds of one trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MuxLimits {
    /// Streams that this end may have open; one more is [`MuxFault::Full`].
    pub opened_max: usize,
    /// Streams from the peer that may wait to be taken; one more is reset.
    pub incoming_max: usize,
    /// Bytes by which all receive windows together may grow beyond the 256 KiB that each stream starts with.
    pub window_growth_bytes: usize,
}

impl Default for MuxLimits {
    /// 8,192 streams, more than the children of a gateway's trunk; 1,024 of them new at once; 64 MiB of growth, which
    /// is what the fast transfers of a trunk share.
    fn default() -> Self {
        MuxLimits { opened_max: 8_192, incoming_max: 1_024, window_growth_bytes: 64 * 1024 * 1024 }
    }
}

impl MuxLimits {
    fn config(self) -> Config {
        // yamux counts streams of both ends and forgets a dropped one only when its turn comes; at its own bound it
        // ends the connection. Four times ours is out of reach.
        let streams = self.opened_max * 4;
        let mut config = Config::default();
        config
            .set_max_connection_receive_window(None)
            .set_max_num_streams(streams)
            .set_split_send_size(FRAME_BYTES)
            .set_max_connection_receive_window(Some(streams * DEFAULT_CREDIT as usize + self.window_growth_bytes));
        config
    }
}

/// Why there is no stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MuxFault {
    /// The connection has ended.
    #[error("open a stream: the trunk has ended")]
    Ended,
    /// [`MuxLimits::opened_max`] streams are open.
    #[error("open a stream: the trunk is full")]
    Full,
}

/// Starts multiplexing.
pub struct Mux;

impl Mux {
    /// The end that dialled. Streams of the peer come out of the receiver; dropping it refuses them all.
    pub fn client<T>(io: T, limits: MuxLimits) -> (MuxHandle, mpsc::Receiver<TrunkStream>)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        start(io, limits, Mode::Client)
    }

    /// The end that was dialled.
    pub fn server<T>(io: T, limits: MuxLimits) -> (MuxHandle, mpsc::Receiver<TrunkStream>)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        start(io, limits, Mode::Server)
    }
}

fn start<T>(io: T, limits: MuxLimits, mode: Mode) -> (MuxHandle, mpsc::Receiver<TrunkStream>)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (opens, asked) = mpsc::channel(OPENS_QUEUED);
    let (arrivals, incoming) = mpsc::channel(limits.incoming_max);
    let (ended, end) = watch::channel(None);
    let stop = CancellationToken::new();
    let io = Gathered::new(io);
    let connection = Connection::new(io.clone().compat(), limits.config(), mode);
    tokio::spawn(drive(connection, io, asked, arrivals, stop.clone(), ended));
    (MuxHandle { opens, permits: Arc::new(Semaphore::new(limits.opened_max)), stop, end }, incoming)
}

/// Opens streams of one trunk. When the last handle is dropped the trunk ends as if closed.
#[derive(Clone)]
pub struct MuxHandle {
    opens: mpsc::Sender<oneshot::Sender<TrunkStream>>,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
    end: watch::Receiver<Option<String>>,
}

impl MuxHandle {
    /// Opens a stream. The peer hears of it with the first byte. At most 256 streams may wait for the peer's first
    /// answer; the next one waits here, so callers bound the time.
    pub async fn open(&self) -> Result<TrunkStream, MuxFault> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| MuxFault::Full)?;
        let (asker, answer) = oneshot::channel();
        self.opens.send(asker).await.map_err(|_| MuxFault::Ended)?;
        let mut stream = answer.await.map_err(|_| MuxFault::Ended)?;
        stream.permit = Some(permit);
        Ok(stream)
    }

    /// Ends the trunk: says goodbye and closes the connection with all its streams.
    pub fn close(&self) {
        self.stop.cancel();
    }

    /// Waits until the trunk has ended and says why.
    pub async fn ended(&self) -> String {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "its driver was cut".into(),
        }
    }

    /// Whether streams may still be opened.
    pub fn is_live(&self) -> bool {
        self.end.borrow().is_none() && !self.stop.is_cancelled() && !self.opens.is_closed()
    }
}

async fn drive<T>(
    mut connection: Connection<Compat<Gathered<T>>>,
    io: Gathered<T>,
    mut asked: mpsc::Receiver<oneshot::Sender<TrunkStream>>,
    arrivals: mpsc::Sender<TrunkStream>,
    stop: CancellationToken,
    ended: watch::Sender<Option<String>>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut asker: Option<oneshot::Sender<TrunkStream>> = None;
    let reason = {
        let pump = std::future::poll_fn(|cx| {
            let moved = pump(&mut connection, &mut asked, &mut asker, &arrivals, cx);
            if moved.is_pending()
                // Nothing more is to be said for now: what was said goes out together.
                && let Poll::Ready(Err(fault)) = io.poll_send(cx)
            {
                return Poll::Ready(Some(fault.to_string()));
            }
            moved
        });
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            reason = pump => reason,
        }
    };
    // Nobody may be told of a stream, or wait for one, once the connection is closing.
    asked.close();
    drop(asker);
    let reason = match reason {
        Some(reason) => reason,
        None => {
            let goodbye = std::future::poll_fn(|cx| connection.poll_close(cx));
            // The peer that does not take the goodbye finds out from the closed connection.
            let _unsaid = tokio::time::timeout(GOODBYE, goodbye).await;
            "closed at this end".into()
        }
    };
    // Wakes whoever reads or writes a stream before they are told that the trunk is gone.
    drop(connection);
    ended.send_replace(Some(reason));
}

/// Moves everything on. `Ready(Some(reason))` when the connection has ended, `Ready(None)` when it is to be closed.
fn pump<T>(
    connection: &mut Connection<Compat<Gathered<T>>>,
    asked: &mut mpsc::Receiver<oneshot::Sender<TrunkStream>>,
    asker: &mut Option<oneshot::Sender<TrunkStream>>,
    arrivals: &mpsc::Sender<TrunkStream>,
    cx: &mut Context<'_>,
) -> Poll<Option<String>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        // First, because it is here that yamux forgets dropped streams, and it wakes nobody who waits for their place.
        match connection.poll_next_inbound(cx) {
            Poll::Ready(Some(Ok(stream))) => {
                // A full queue resets the stream: waiting would stop all the others, too.
                drop(arrivals.try_send(TrunkStream::new(stream)));
                continue;
            }
            Poll::Ready(Some(Err(fault))) => return Poll::Ready(Some(fault.to_string())),
            Poll::Ready(None) => return Poll::Ready(Some("closed by the peer".into())),
            Poll::Pending => {}
        }
        if asker.is_none() {
            match asked.poll_recv(cx) {
                Poll::Ready(Some(next)) => *asker = Some(next),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {}
            }
        }
        let Some(waiting) = asker.as_mut() else { return Poll::Pending };
        // One that gave up must not take the place of the next.
        if waiting.poll_closed(cx).is_ready() {
            *asker = None;
            continue;
        }
        match connection.poll_new_outbound(cx) {
            Poll::Ready(Ok(stream)) => {
                if let Some(waiting) = asker.take() {
                    let _gave_up = waiting.send(TrunkStream::new(stream));
                }
            }
            Poll::Ready(Err(fault)) => return Poll::Ready(Some(fault.to_string())),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// One stream of a trunk. Dropping it unfinished resets it at the peer.
pub struct TrunkStream {
    inner: yamux::Stream,
    halves: Arc<Halves>,
    /// Wakes both halves.
    waker: Waker,
    permit: Option<OwnedSemaphorePermit>,
}

/// Who reads and who writes. yamux remembers one waker for both where its queue to the connection is full, so a stream
/// split over two tasks would lose one of them; it is given a waker that wakes both.
#[derive(Default)]
struct Halves {
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Wake for Halves {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.reader.wake();
        self.writer.wake();
    }
}

impl TrunkStream {
    fn new(inner: yamux::Stream) -> TrunkStream {
        let halves = Arc::new(Halves::default());
        TrunkStream { inner, waker: Waker::from(Arc::clone(&halves)), halves, permit: None }
    }
}

impl std::fmt::Debug for TrunkStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TrunkStream({})", self.inner.id())
    }
}

impl AsyncRead for TrunkStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.halves.reader.register(cx.waker());
        let mut both = Context::from_waker(&this.waker);
        let read = ready!(Pin::new(&mut this.inner).poll_read(&mut both, buf.initialize_unfilled()))?;
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TrunkStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.halves.writer.register(cx.waker());
        Pin::new(&mut this.inner).poll_write(&mut Context::from_waker(&this.waker), bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.halves.writer.register(cx.waker());
        Pin::new(&mut this.inner).poll_flush(&mut Context::from_waker(&this.waker))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.halves.writer.register(cx.waker());
        Pin::new(&mut this.inner).poll_close(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
#[path = "mux_tests.rs"]
mod tests;
