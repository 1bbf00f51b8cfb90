//! What all parts of one gateway share. Every part may read; each field has one kind of writer, named beside it.

use crate::{
    board::{Admission, Board, ServerStatus},
    flood::Flood,
    limits::PathRule,
};
use branchline_node::{metrics::Metrics, random::Random, time::NodeTime, trunk::MuxHandle};
use branchline_protocol::hash::Hash;
use metrics::Counter;
use serde::Serialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The build, as `--version`, `/getstatus` and the tree show it (OPS-2).
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// Shared by listener, pipes, trunks and status of one gateway.
pub struct Gate {
    /// The one request.
    pub rule: PathRule,
    /// The limit per source.
    pub flood: Flood,
    /// Room for enrolments.
    pub enrolments: Arc<Semaphore>,
    /// Cancelled when the node stops: pipes say goodbye and end.
    pub stop: CancellationToken,
    /// The node's time.
    pub time: NodeTime,
    /// The node's randomness.
    pub random: Arc<dyn Random>,
    /// The node's counters.
    pub metrics: Metrics,
    /// Counters of the busiest path.
    pub counters: Counters,
    /// Written by the trunks; locked for a few moves, never across an await.
    board: Mutex<Board<MuxHandle>>,
    /// Room for pipes.
    pipes: Arc<Semaphore>,
    pipes_max: usize,
    started_ms: u64,
}

/// Handles of counters that every pipe moves.
pub struct Counters {
    /// Bytes from children to the server.
    pub up: Counter,
    /// Bytes from the server to children.
    pub down: Counter,
}

/// What `/getstatus` answers (GW-11).
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The gateway's build.
    pub build: &'static str,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// What it knows of the server.
    #[serde(flatten)]
    pub server: ServerStatus,
    /// Children piped now.
    pub links: usize,
}

/// A pipe's place; given back when dropped.
pub struct Place {
    _permit: OwnedSemaphorePermit,
    gauge: metrics::Gauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}

impl Gate {
    /// The gate of a node that starts now.
    pub fn new(
        rule: PathRule,
        flood: Flood,
        (pipes_max, enrolments_max): (usize, usize),
        time: NodeTime,
        random: Arc<dyn Random>,
        metrics: Metrics,
    ) -> Gate {
        let bytes = |direction| metrics.counter("branchline_gateway_bytes_total", &[("direction", direction)]);
        Gate {
            rule,
            flood,
            enrolments: Arc::new(Semaphore::new(enrolments_max)),
            stop: CancellationToken::new(),
            started_ms: time.now().mono.0,
            counters: Counters { up: bytes("up"), down: bytes("down") },
            time,
            random,
            metrics,
            board: Mutex::new(Board::default()),
            pipes: Arc::new(Semaphore::new(pipes_max)),
            pipes_max,
        }
    }

    /// The trunks' board. The lock ignores poison: the board is consistent between any two of its calls.
    pub fn board(&self) -> MutexGuard<'_, Board<MuxHandle>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a child with this token may come in.
    pub fn admit(&self, token: Option<&str>) -> Admission {
        self.board().admit(token)
    }

    /// The server said who may knock.
    pub fn allow(&self, tokens: Vec<Hash>) {
        self.board().allow(tokens);
    }

    /// A place for one more pipe, if there is room.
    pub fn place(&self) -> Option<Place> {
        let permit = Arc::clone(&self.pipes).try_acquire_owned().ok()?;
        let gauge = self.metrics.gauge("branchline_gateway_links", &[]);
        gauge.increment(1.0);
        Some(Place { _permit: permit, gauge })
    }

    /// Pipes now.
    pub fn links(&self) -> usize {
        self.pipes_max - self.pipes.available_permits()
    }

    /// Waits until the last pipe has ended.
    pub async fn drained(&self) {
        let all = u32::try_from(self.pipes_max).unwrap_or(u32::MAX);
        // The semaphore is never closed; a node that stops needs no places any more.
        if let Ok(permits) = self.pipes.acquire_many(all).await {
            permits.forget();
        }
    }

    /// Counts a request or child that was turned away.
    pub fn refused(&self, reason: &'static str) {
        self.metrics.counter("branchline_gateway_refused_total", &[("reason", reason)]).increment(1);
    }

    /// For `/getstatus`.
    pub fn status(&self) -> Status {
        let now = self.time.now().mono;
        Status {
            build: BUILD,
            uptime_s: now.0.saturating_sub(self.started_ms) / 1000,
            server: self.board().status(now),
            links: self.links(),
        }
    }
}
