//! Where children knock: the shell of [`Rate`], one per node, shared by its link port and its trunks. It outlives them,
//! so that a rebuilt listener does not begin with a full bucket.

use super::rate::{Caller, Rate};
use crate::{config::LinkRate, metrics::Metrics, time::NodeTime};
use branchline_protocol::wire::Preface;
use metrics::Counter;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// Milliseconds after which a child of a node that stops comes again: a restart takes a few seconds.
const STOPPING_MS: u64 = 5_000;

/// See the module.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    /// Locked for a few moves, never across an await; consistent between any two calls, so poison is ignored.
    rate: Mutex<Rate>,
    time: NodeTime,
    stopping: AtomicBool,
    turned_away: Counter,
}

impl Door {
    /// An open door.
    pub fn new(rate: LinkRate, time: NodeTime, metrics: &Metrics) -> Door {
        let rate = Mutex::new(Rate::new(rate, time.now().mono));
        let turned_away = metrics.counter("branchline_links_turned_away_total", &[]);
        Door(Arc::new(Inner { rate, time, stopping: AtomicBool::new(false), turned_away }))
    }

    /// Asks for the handshake of a stream with this preface. Only links and uplinks are counted: the others have
    /// bounds of their own.
    ///
    /// # Errors
    /// Milliseconds after which to come again; they fit the answer's four bytes.
    pub fn knock(&self, preface: Preface) -> Result<(), u32> {
        let Some(caller) = caller(preface) else { return Ok(()) };
        let answer = if self.0.stopping.load(Ordering::SeqCst) {
            Err(STOPPING_MS)
        } else {
            let now = self.0.time.now().mono;
            self.rate().knock(now, caller)
        };
        answer.map_err(|ms| self.turned_away(ms))
    }

    /// The same when there is no room for a handshake, whatever the rate says. Streams that are not counted are turned
    /// away, too.
    ///
    /// # Errors
    /// Always: the milliseconds after which to come again.
    pub fn turn_away(&self, preface: Preface) -> Result<(), u32> {
        let now = self.0.time.now().mono;
        let ms = self.rate().turn_away(now, caller(preface).unwrap_or(Caller::Device));
        Err(self.turned_away(ms))
    }

    fn rate(&self) -> MutexGuard<'_, Rate> {
        self.0.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turned_away(&self, ms: u64) -> u32 {
        self.0.turned_away.increment(1);
        u32::try_from(ms).unwrap_or(u32::MAX)
    }

    /// The node stops: nobody is let in from here on.
    pub fn close(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
    }
}

/// Whose part of the rate a stream is taken from; none for those with bounds of their own.
fn caller(preface: Preface) -> Option<Caller> {
    match preface {
        Preface::Link => Some(Caller::Device),
        Preface::Uplink => Some(Caller::Relay),
        Preface::Bulk | Preface::Enrol | Preface::Trunk => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::TestClock;
    use branchline_protocol::time::Millis;

    #[test]
    fn rly_12_a_closed_door_turns_links_away_and_lets_enrolments_be() {
        let time = NodeTime::new(TestClock::at(Millis(0)));
        let door = Door::new(LinkRate { per_second: 3, burst: 3 }, time, &Metrics::new());
        assert_eq!([door.knock(Preface::Link), door.knock(Preface::Link)], [Ok(()), Ok(())]);
        assert_eq!(door.knock(Preface::Link), Err(1_000), "two thirds of three");
        assert_eq!(door.knock(Preface::Uplink), Ok(()));
        door.close();
        assert_eq!([door.knock(Preface::Link), door.knock(Preface::Uplink)], [Err(5_000), Err(5_000)]);
        assert_eq!(door.knock(Preface::Enrol), Ok(()));
    }
}
