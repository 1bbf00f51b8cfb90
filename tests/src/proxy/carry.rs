//! One connection: two directions, each with its own queue and its own rule.

use super::{
    Shared,
    rules::{Flow, Rules, Way},
};
use bytes::Bytes;
use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, oneshot, watch},
};

/// Bytes read at once; with [`QUEUE`] the most that a direction keeps in memory: 256 KiB.
const CHUNK: usize = 16 * 1_024;
const QUEUE: usize = 16;
/// A throttled direction writes pieces of about this much time.
const PIECE_MS: u64 = 50;

/// How an open connection is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Both ends are told that it is over in good order (FIN).
    Finish,
    /// Both ends are told that it is gone (RST).
    Reset,
    /// Nobody is told anything: the sockets stay and nothing passes any more, whatever the rules say. For
    /// [`STRANDED`]; a new connection of the same node is one like any other.
    Strand,
}

/// Longer than any link waits for a sign of life (90 s).
const STRANDED: Duration = Duration::from_secs(180);

/// Carries bytes both ways until both ends finished, one broke, or it is cut. A broken end breaks the other.
pub(super) async fn carry(
    mut child: TcpStream,
    mut parent: TcpStream,
    source: IpAddr,
    shared: &Arc<Shared>,
    cut: oneshot::Receiver<Cut>,
) {
    let end = {
        let ((child_reads, child_writes), (parent_reads, parent_writes)) = (child.split(), parent.split());
        let rules = |way| Watched { source, way, rules: shared.rules.subscribe() };
        let up = pump(child_reads, parent_writes, rules(Way::Up), &shared.up);
        let down = pump(parent_reads, child_writes, rules(Way::Down), &shared.down);
        tokio::select! {
            over = async { tokio::try_join!(up, down) } => if over.is_ok() { Cut::Finish } else { Cut::Reset },
            // Without its sender the proxy itself is gone.
            how = cut => how.unwrap_or(Cut::Reset),
        }
    };
    if end == Cut::Finish {
        let _ = tokio::join!(child.shutdown(), parent.shutdown());
        return;
    }
    if end == Cut::Strand {
        tokio::time::sleep(STRANDED).await;
    }
    for stream in [&child, &parent] {
        let _ = stream.set_zero_linger();
    }
}

/// The rule of one direction of one connection, as it changes.
#[derive(Clone)]
struct Watched {
    source: IpAddr,
    way: Way,
    rules: watch::Receiver<Rules>,
}

impl Watched {
    fn now(&mut self) -> Flow {
        self.rules.borrow_and_update().of(self.source, self.way)
    }

    async fn changed(&mut self) {
        if self.rules.changed().await.is_err() {
            // Nobody is left who could change it.
            std::future::pending().await
        }
    }

    /// The rule, once it lets anything happen at all.
    async fn moving(&mut self) -> Flow {
        loop {
            match self.now() {
                Flow::Hold => self.changed().await,
                flow => return flow,
            }
        }
    }
}

async fn pump(from: ReadHalf<'_>, to: WriteHalf<'_>, rule: Watched, passed: &AtomicU64) -> io::Result<()> {
    let (queue, queued) = mpsc::channel(QUEUE);
    tokio::try_join!(read(from, queue, rule.clone()), write(to, queued, rule, passed)).map(drop)
}

async fn read(mut from: ReadHalf<'_>, queue: mpsc::Sender<(Duration, Bytes)>, mut rule: Watched) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let flow = rule.moving().await;
        let read = tokio::select! {
            // A rule that has come goes first: what is held must not pass a moment later.
            biased;
            () = rule.changed() => continue,
            read = from.read(&mut buffer) => read?,
        };
        if read == 0 {
            return Ok(());
        }
        let late = if let Flow::Delay(late) = flow { late } else { Duration::ZERO };
        let chunk = (late, Bytes::copy_from_slice(&buffer[..read]));
        if queue.send(chunk).await.is_err() {
            return Ok(());
        }
    }
}

async fn write(
    mut to: WriteHalf<'_>,
    mut queued: mpsc::Receiver<(Duration, Bytes)>,
    mut rule: Watched,
    passed: &AtomicU64,
) -> io::Result<()> {
    let mut before_reset = 0;
    while let Some((late, mut chunk)) = queued.recv().await {
        tokio::time::sleep(late).await;
        while !chunk.is_empty() {
            let (most, then) = match rule.moving().await {
                Flow::Throttle(rate) => {
                    let piece = (u64::from(rate) * PIECE_MS / 1_000).clamp(1, CHUNK as u64);
                    (piece, Some(Duration::from_micros(piece * 1_000_000 / u64::from(rate.max(1)))))
                }
                Flow::ResetAfter(bytes) if before_reset >= bytes => return Err(io::ErrorKind::ConnectionReset.into()),
                Flow::ResetAfter(bytes) => (bytes - before_reset, None),
                _ => (CHUNK as u64, None),
            };
            let piece = chunk.split_to(usize::try_from(most).unwrap_or(CHUNK).min(chunk.len()));
            to.write_all(&piece).await?;
            passed.fetch_add(piece.len() as u64, Ordering::Relaxed);
            match rule.now() {
                Flow::ResetAfter(_) => before_reset += piece.len() as u64,
                _ => before_reset = 0,
            }
            if let Some(then) = then {
                tokio::time::sleep(then).await;
            }
        }
    }
    to.shutdown().await
}
