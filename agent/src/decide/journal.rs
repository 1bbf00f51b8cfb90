//! The journal of orders (pure): which were taken, which were meant to be started, which are at their end.
//!
//! ```text
//! Received ──slot free, time come──► Intent ──► Done      a crash in Received: start; in Intent: look what is left
//! ```
//!
//! A number that is here is never taken again, and the server's floor stands for all below it. So at most one start per
//! device, in any order of arrival (JOB-13, DESIGN 5).

use crate::capabilities::{RESTART, RUN_SCRIPT};
use branchline_node::store::{Batch, Table};
use branchline_protocol::{
    id::{JobId, OrderNumber, TraceId},
    job::{Class, RunScript},
    order::Payload,
    time::{Millis, Mono, Now},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Processes of jobs at once: a device has other work to do.
pub const JOBS_AT_ONCE: usize = 4;

/// Orders that may be open; one more stays with the parent.
pub const OPEN_MAX: usize = 256;

/// A job that runs this long is worth a progress record, in milliseconds.
pub const PROGRESS_AFTER_MS: u64 = 2_000;

/// An order that is not at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The job.
    pub job: JobId,
    /// From order to result.
    pub trace: TraceId,
    /// What to do.
    pub verb: String,
    /// How pressing.
    pub class: Class,
    /// Not before, node time.
    pub not_before: Millis,
    /// Milliseconds it may run.
    pub run_ms_max: u64,
    /// Its arguments. A script's are dropped with the intent: it is never started again.
    pub args: Bytes,
    /// When it was begun, node time.
    pub begun_at: Option<Millis>,
    /// Whether its progress was recorded.
    pub progressed: bool,
    /// Whether it was cancelled after it had begun: it is killed, and again by whoever takes it over.
    #[serde(default)]
    pub cancelled: bool,
    /// Bytes promised to its result.
    #[serde(default)]
    pub room: u64,
    /// Of a restart: the machine's life in which it was begun. In another one it succeeded, whoever carried it out.
    #[serde(default)]
    pub life: Option<String>,
}

/// What a cancel finds of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It was not begun, and is closed: it never will be.
    Closed,
    /// It has begun.
    Begun,
    /// It was at its end.
    Ended,
}

/// Bytes of a result without its output.
pub const RESULT_BYTES: u64 = 4_096;

impl Open {
    /// As it is taken.
    pub fn of(payload: &Payload, args: Bytes) -> Open {
        let output = match rmp_serde::from_slice::<RunScript>(&args) {
            Ok(script) if payload.verb == RUN_SCRIPT => 2 * script.output_cap.min(super::orders::OUTPUT_CAP_MAX),
            _ => 0,
        };
        Open {
            job: payload.job,
            trace: payload.trace,
            verb: payload.verb.clone(),
            class: payload.class,
            not_before: payload.not_before,
            run_ms_max: payload.run_ms_max,
            args,
            begun_at: None,
            progressed: false,
            cancelled: false,
            room: RESULT_BYTES + output,
            life: None,
        }
    }

    /// Whether it runs a process, and so needs one of [`JOBS_AT_ONCE`].
    pub fn needs_slot(&self) -> bool {
        self.verb == RUN_SCRIPT || self.restarts()
    }

    /// Whether it starts the machine again.
    pub fn restarts(&self) -> bool {
        self.verb == RESTART
    }

    /// Whether it is a restart and the machine was started again since.
    pub fn is_complete(&self, life: &str) -> bool {
        self.restarts() && self.life.as_ref().is_some_and(|begun| begun != life)
    }
}

#[derive(Serialize, Deserialize)]
enum Row {
    Received(Open),
    Intent(Open),
    Done,
}

/// Where an open order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Received,
    /// Its intent is in a batch, perhaps not durable yet.
    Intent {
        /// When this process began to wait for its end; `None` while the intent is not durable.
        since: Option<Mono>,
    },
}

#[derive(Clone, Debug)]
struct Entry {
    open: Open,
    phase: Phase,
}

impl Entry {
    fn is_ready(&self, now: Now) -> bool {
        self.phase == Phase::Received && self.open.not_before <= now.node
    }
}

/// What may begin now. A restart waits until what was ordered before it is over, and what was ordered after it waits for
/// the machine's next life: it would be cut.
#[derive(Clone, Copy, Debug)]
struct Free {
    slots: usize,
    /// The restart that is next, and whether its turn has come.
    restart: Option<(OrderNumber, bool)>,
}

impl Free {
    fn admits(&self, order: OrderNumber, open: &Open) -> bool {
        match self.restart {
            Some((restart, its_turn)) if order >= restart => order == restart && its_turn,
            _ => self.slots > 0 || !open.needs_slot(),
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    open: BTreeMap<OrderNumber, Entry>,
    done: BTreeSet<OrderNumber>,
    /// For each term, the number below which everything is settled. A term's floor says nothing of other terms: a
    /// restored server may give numbers again.
    floors: BTreeMap<u32, u64>,
}

/// Where the floors are kept; no order's key is as short.
const FLOORS: &[u8] = b"floors";

/// A row that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row of the journal is unreadable")]
pub struct Unreadable;

impl Journal {
    /// A row of [`Table::Journal`].
    pub fn recover(&mut self, key: &[u8], value: &[u8]) -> Result<(), Unreadable> {
        if key == FLOORS {
            self.floors = rmp_serde::from_slice(value).map_err(|_| Unreadable)?;
            return Ok(());
        }
        let order = number_of(key).ok_or(Unreadable)?;
        let entry = match rmp_serde::from_slice(value).map_err(|_| Unreadable)? {
            Row::Received(open) => Entry { open, phase: Phase::Received },
            Row::Intent(open) => Entry { open, phase: Phase::Intent { since: None } },
            Row::Done => {
                self.done.insert(order);
                return Ok(());
            }
        };
        self.open.insert(order, entry);
        Ok(())
    }

    /// Whether this number was taken before, or is settled everywhere.
    pub fn knows(&self, order: OrderNumber) -> bool {
        self.open.contains_key(&order) || self.done.contains(&order) || self.is_below_floor(order)
    }

    /// Whether another order may be taken.
    pub fn has_room(&self) -> bool {
        self.open.len() < OPEN_MAX
    }

    /// Bytes promised to the results of open orders.
    pub fn promised(&self) -> u64 {
        self.open.values().map(|entry| entry.open.room).sum()
    }

    /// Takes an order.
    pub fn receive(&mut self, order: OrderNumber, open: Open, batch: &mut Batch) {
        put(order, &Row::Received(open.clone()), batch);
        self.open.insert(order, Entry { open, phase: Phase::Received });
    }

    /// An order at its end without ever having been open.
    pub fn close(&mut self, order: OrderNumber, batch: &mut Batch) {
        put(order, &Row::Done, batch);
        self.done.insert(order);
    }

    /// The next order whose time has come and that has what it needs.
    pub fn startable(&self, now: Now) -> Option<OrderNumber> {
        let free = self.free(now);
        let mut ready = self.open.iter().filter(|(order, e)| e.is_ready(now) && free.admits(**order, &e.open));
        // The pressing ones first, then in the order of issue.
        let pressing = |class: Class| class != Class::Normal;
        let first = ready.next()?;
        let best = ready.fold(first, |a, b| if pressing(b.1.open.class) && !pressing(a.1.open.class) { b } else { a });
        Some(*best.0)
    }

    /// Journals the intent to start it in this life of the machine; answers the order with its arguments, which the row no longer has if it runs a
    /// process.
    pub fn intend(&mut self, order: OrderNumber, now: Now, life: &str, batch: &mut Batch) -> Option<Open> {
        let entry = self.open.get_mut(&order).filter(|e| e.phase == Phase::Received)?;
        entry.phase = Phase::Intent { since: None };
        entry.open.begun_at = Some(now.shown());
        entry.open.life = entry.open.restarts().then(|| life.to_owned());
        let whole = entry.open.clone();
        if entry.open.needs_slot() {
            entry.open.args = Bytes::new();
        }
        put(order, &Row::Intent(entry.open.clone()), batch);
        Some(whole)
    }

    /// Its end is awaited from now on.
    pub fn awaited(&mut self, order: OrderNumber, now: Now) {
        if let Some(entry) = self.open.get_mut(&order)
            && let Phase::Intent { since } = &mut entry.phase
        {
            since.get_or_insert(now.mono);
        }
    }

    /// The open order whose intent is journalled.
    pub fn begun(&self, order: OrderNumber) -> Option<&Open> {
        self.open.get(&order).filter(|e| e.phase != Phase::Received).map(|e| &e.open)
    }

    /// Every order whose intent is journalled, with whether its end is awaited already.
    pub fn all_begun(&self) -> impl Iterator<Item = (OrderNumber, &Open, bool)> {
        self.open.iter().filter_map(|(order, e)| match e.phase {
            Phase::Received => None,
            Phase::Intent { since } => Some((*order, &e.open, since.is_some())),
        })
    }

    /// Whether this order was taken and is not at its end.
    pub fn is_open(&self, order: OrderNumber) -> bool {
        self.open.contains_key(&order)
    }

    /// Every order that is not at its end.
    pub fn all_open(&self) -> Vec<OrderNumber> {
        self.open.keys().copied().collect()
    }

    /// Every order that was taken and not begun.
    pub fn all_received(&self) -> Vec<OrderNumber> {
        self.open.iter().filter(|(_, e)| e.phase == Phase::Received).map(|(order, _)| *order).collect()
    }

    /// Journals the end of an open order; its result goes into the same batch. `None` if it is not open.
    pub fn end(&mut self, order: OrderNumber, batch: &mut Batch) -> Option<Open> {
        let entry = self.open.remove(&order)?;
        self.close(order, batch);
        Some(entry.open)
    }

    /// Cancels an order, whether it came already or not. Whichever is journalled first counts: what is not begun by then
    /// never is (JOB-14).
    pub fn cancel(&mut self, order: OrderNumber, batch: &mut Batch) -> Cancelled {
        if self.done.contains(&order) || self.is_below_floor(order) {
            return Cancelled::Ended;
        }
        if let Some(Entry { open, phase: Phase::Intent { .. } }) = self.open.get_mut(&order) {
            open.cancelled = true;
            put(order, &Row::Intent(open.clone()), batch);
            return Cancelled::Begun;
        }
        self.open.remove(&order);
        self.close(order, batch);
        Cancelled::Closed
    }

    /// Jobs that have run long enough for a progress record, marked as having one.
    pub fn progress(&mut self, now: Now, batch: &mut Batch) -> Vec<(OrderNumber, Open)> {
        let mut due = Vec::new();
        for (order, entry) in &mut self.open {
            let Phase::Intent { since: Some(since) } = entry.phase else { continue };
            if !entry.open.progressed && now.mono.since(since) >= PROGRESS_AFTER_MS {
                entry.open.progressed = true;
                put(*order, &Row::Intent(entry.open.clone()), batch);
                due.push((*order, entry.open.clone()));
            }
        }
        due
    }

    /// When [`Journal::startable`], if orders may begin at all, or [`Journal::progress`] will have something to say.
    pub fn next_deadline(&self, now: Now, may_begin: bool) -> Option<Mono> {
        let free = self.free(now);
        let due = self.open.iter().filter_map(|(order, e)| match e.phase {
            Phase::Received if may_begin && free.admits(*order, &e.open) => {
                let wait = e.open.not_before.0.saturating_sub(now.node.0).max(0);
                Some(now.mono.plus(wait as u64))
            }
            Phase::Intent { since: Some(since) } if !e.open.progressed => Some(since.plus(PROGRESS_AFTER_MS)),
            _ => None,
        });
        due.min()
    }

    /// Orders of this term below this number are settled everywhere: they are forgotten here, and never taken again.
    /// What is forgotten and the floor that stands for it go into one batch.
    pub fn set_floor(&mut self, term: u32, number: u64, batch: &mut Batch) {
        let floor = self.floors.entry(term).or_default();
        if number <= *floor {
            return;
        }
        *floor = number;
        batch.put(Table::Journal, FLOORS, rmp_serde::to_vec(&self.floors).expect("numbers are plain data"));
        let passed: Vec<OrderNumber> = self.done.iter().copied().filter(|o| self.is_below_floor(*o)).collect();
        for order in passed {
            batch.delete(Table::Journal, key_of(order));
            self.done.remove(&order);
        }
    }

    /// Open and remembered orders.
    pub fn counts(&self) -> (usize, usize) {
        (self.open.len(), self.done.len())
    }

    fn is_below_floor(&self, order: OrderNumber) -> bool {
        self.floors.get(&order.term).is_some_and(|floor| order.number < *floor)
    }

    fn free(&self, now: Now) -> Free {
        let begun = |e: &Entry| e.phase != Phase::Received && e.open.needs_slot();
        let used = self.open.values().filter(|e| begun(e)).count();
        let commanded = self.open.values().any(|e| begun(e) && e.open.restarts());
        let next = self.open.iter().find(|(_, e)| e.is_ready(now) && e.open.restarts()).map(|(order, _)| *order);
        let restart = match next {
            _ if commanded => Some((OrderNumber { term: 0, number: 0 }, false)),
            Some(order) => Some((order, used == 0 && !self.open.range(..order).any(|(_, e)| e.is_ready(now)))),
            None => None,
        };
        Free { slots: JOBS_AT_ONCE.saturating_sub(used), restart }
    }
}

/// (term, number), big-endian: sorts as orders do.
pub fn key_of(order: OrderNumber) -> Vec<u8> {
    [&order.term.to_be_bytes()[..], &order.number.to_be_bytes()].concat()
}

/// The inverse of [`key_of`].
pub fn number_of(key: &[u8]) -> Option<OrderNumber> {
    let (term, number) = key.split_first_chunk::<4>()?;
    Some(OrderNumber { term: u32::from_be_bytes(*term), number: u64::from_be_bytes(number.try_into().ok()?) })
}

fn put(order: OrderNumber, row: &Row, batch: &mut Batch) {
    batch.put(Table::Journal, key_of(order), rmp_serde::to_vec_named(row).expect("a row is plain data"));
}
