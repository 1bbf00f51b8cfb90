//! Who holds one of a node's persistent slots (ADM-1 to ADM-7, RLY-6).
//!
//! ```text
//!                     a slot is free
//!   asks ─────────────────────────────────────────► holds a slot ──► gone
//!    │                                                ▲      │
//!    │ none is free                                   │      │ cap lowered
//!    ▼                  a slot falls free       comes │      │
//!   in line ─────────────────────────────► reserved ──┘      │
//!    ▲  ▲ silent for 3 poll intervals: out    │ does not come│
//!    │  └─────────────────────────────────────┘              │
//!    └───────────────────────────────────────────────────────┘
//! ```
//!
//! The gauge is held plus reserved slots and is never above the cap. A freed slot is at once reserved for the first in
//! line, so a stranger never overtakes; a slot is free for a stranger only when nobody waits. A reservation that
//! lapses passes to the next, and its waiter goes to the end of its priority. Lowering the cap takes back first the
//! reservations, then the slots of the lowest priority and the latest arrival, all at once: the removed ones get a
//! lease and wait in line.
//!
//! Who needs a slot more goes before who needs it less (decision 32): a device that asks and finds none free displaces one
//! of a strictly lower need that has held its slot for ten minutes and has no order in progress, if there are as many such
//! slots as there are waiters up to it. Each need keeps a share of the slots, and who waits longest rises with each hour.
//!
//! Relay uplinks, polls and bulk links have pools of their own and never touch the slots. Every child has at most one
//! link beside its bulk links: the newest (epoch, attachment) wins, whatever it asks for.

mod config;
mod displace;
mod event;
mod line;
#[cfg(test)]
mod model;
mod need;
#[cfg(test)]
mod tests;

pub use config::{AdmissionConfig, Cap, POLL_INTERVAL_MS_MAX, SLOTS_MAX_PLAIN};
pub use displace::HELD_MS_MIN;
pub use event::{Ask, Effect, Event, Gauge, Lease, Pools, Want};
pub use line::{RISE_MS, WAITERS_MAX};
pub use need::{ByNeed, Demand, Need};

use branchline_protocol::id::{AttachmentKey, NodeId, Role};
use branchline_protocol::time::{Mono, Now};
use line::Line;
use std::collections::BTreeMap;

/// How long a rebuilt Admission waits for the live sessions before it lets anybody else in (DESIGN 4).
pub const RECOVERY_MS: u64 = 5_000;
/// Bulk links of one child at once: enough to fill a line, too few to shut the others out.
pub const BULK_PER_CHILD: usize = 4;
/// Those turned away come back after 1 to 10 s, each at its own moment.
const RETRY_MS_MIN: u64 = 1_000;
const RETRY_SPREAD_MS: u64 = 9_000;
/// A waiter that missed this many polls is not coming.
const SILENT_INTERVALS: u64 = 3;

/// What a child's one link occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Slot,
    Relay,
    Poll,
}

/// A child's present link.
struct Held {
    key: AttachmentKey,
    session: u64,
    place: Place,
    /// What it needs by itself, without its orders.
    own: Need,
    /// What it needs, with them.
    need: Need,
    wakeable: bool,
    poll_interval_ms: Option<u64>,
    /// Order of arrival in the place; a newer link of the same child inherits it.
    arrival: u64,
    /// Since when it has been there.
    since: Mono,
}

/// Whether a session comes for the first time or was there before Admission was rebuilt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    New,
    Returning,
}

/// The decision; see the module. Pure: the caller brings the time and carries out the effects.
pub struct Admission {
    config: AdmissionConfig,
    held: BTreeMap<NodeId, Held>,
    bulk: BTreeMap<u64, NodeId>,
    line: Line,
    slots: u16,
    held_by: ByNeed,
    demands: BTreeMap<NodeId, Demand>,
    /// Until when those who lost a slot displace nobody.
    barred: BTreeMap<NodeId, Mono>,
    relays: u16,
    polls: u16,
    peak: u16,
    arrivals: u64,
    /// Set while only returning sessions are let in.
    closed_until: Option<Mono>,
}

impl Admission {
    /// For a node that starts with no session.
    pub fn new(config: AdmissionConfig) -> Self {
        let patience_ms = config.poll_interval_ms.saturating_mul(SILENT_INTERVALS);
        Admission {
            config,
            held: BTreeMap::new(),
            bulk: BTreeMap::new(),
            line: Line::new(patience_ms, SILENT_INTERVALS),
            slots: 0,
            held_by: ByNeed::default(),
            demands: BTreeMap::new(),
            barred: BTreeMap::new(),
            relays: 0,
            polls: 0,
            peak: 0,
            arrivals: 0,
            closed_until: None,
        }
    }

    /// For a node whose sessions outlived the former Admission: for 5 s only they are let in, so that nobody takes
    /// the slot of a device that still uses it. The line is lost; waiters join again at their next contact.
    pub fn recovering(config: AdmissionConfig, now: Now) -> Self {
        Admission { closed_until: Some(now.mono.plus(RECOVERY_MS)), ..Admission::new(config) }
    }

    /// Takes one event in; appends what is to be done.
    pub fn handle(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        let now = now.mono;
        self.advance(now, out);
        match event {
            Event::Ask(ask) => self.ask(now, Entry::New, &ask, out),
            Event::Reregister(ask) => self.ask(now, Entry::Returning, &ask, out),
            Event::Gone { node, session } => self.gone(node, session),
            Event::Need { node, need } => self.set_need(node, need, out),
            Event::Demands(demands) => self.set_demands(demands),
            Event::SetCap { cap } => self.set_cap(now, cap, out),
            Event::Tick => {}
        }
        self.line.raise(now); // one whose urgent order is over may have waited for an hour
        self.fill(now, out);
        self.peak = self.peak.max(self.used());
    }

    /// When to send a `Tick`, if no other event comes first.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.closed_until.into_iter().chain(self.line.next_deadline()).min()
    }

    /// The slots.
    pub fn gauge(&self) -> Gauge {
        Gauge {
            used: self.used(),
            cap: self.config.cap.get(),
            peak: self.peak,
            waiting: self.line.waiting(),
            reserved: self.line.reserved(),
            held_by: self.held_by,
            waiting_by: ByNeed {
                ordinary: self.line.waiting_by(Need::Ordinary),
                keep: self.line.waiting_by(Need::Keep),
                urgent: self.line.waiting_by(Need::Urgent),
            },
        }
    }

    /// The pools beside the slots.
    pub fn pools(&self) -> Pools {
        Pools { relays: self.relays, polls: self.polls, bulk: self.bulk.len() as u16 }
    }

    /// When `node` polls while it holds no slot, with its number in line.
    pub fn lease(&self, node: NodeId) -> Lease {
        let held = self.held.get(&node).and_then(|held| held.poll_interval_ms);
        let interval_ms = held.or_else(|| self.line.get(node)?.poll_interval_ms);
        Lease::new(node, interval_ms.unwrap_or(self.config.poll_interval_ms), self.line.number(node))
    }

    /// The link that holds this node's slot or, for a relay, its place in the reserved pool.
    pub fn persistent_session(&self, node: NodeId) -> Option<u64> {
        self.held.get(&node).filter(|h| h.place != Place::Poll).map(|h| h.session)
    }

    fn ask(&mut self, now: Mono, entry: Entry, ask: &Ask, out: &mut Vec<Effect>) {
        let ask = &self.settled(ask);
        let session = ask.session;
        let place = match (ask.role, ask.want) {
            (Role::Server | Role::Gateway, _) => return out.push(Effect::WrongRole { session }),
            (_, Want::Bulk) => return self.ask_bulk(now, entry, ask, out),
            (_, Want::Poll) => Place::Poll,
            (Role::Relay, Want::Persistent) => Place::Relay,
            (Role::Agent, Want::Persistent) => Place::Slot,
        };
        let held = self.held.get(&ask.node);
        let waiter = self.line.get(ask.node);
        let same_link =
            held.is_some_and(|h| h.session == session) || waiter.is_some_and(|w| w.session == Some(session));
        let in_place = held.is_some_and(|h| h.place == place);
        if entry == Entry::New && self.closed_until.is_some() && !(same_link && in_place) {
            return out.push(self.busy(now, ask));
        }
        let newest = held.map(|h| h.key).max(waiter.map(|w| w.key));
        if !same_link && newest.is_some_and(|key| ask.key <= key) {
            return out.push(Effect::Stale { session });
        }
        if !same_link {
            self.supersede(ask, place, out);
        }
        if let Some(held) = self.held.get_mut(&ask.node).filter(|h| h.place == place) {
            (held.key, held.session, held.wakeable) = (ask.key, session, ask.wakeable);
            held.poll_interval_ms = ask.poll_interval_ms;
            if place == Place::Slot {
                self.renew_need(ask.node, ask.need);
            }
            out.push(if same_link { Effect::Already { session } } else { granted(entry, session) });
        } else if place == Place::Slot {
            self.ask_slot(now, entry, ask, out);
        } else {
            self.ask_pool(now, entry, ask, place, out);
        }
        if place == Place::Poll {
            self.line.touch(now, ask.node);
        }
    }

    /// A newer link of a child takes the place of its older ones; what it does not go on using falls free.
    fn supersede(&mut self, ask: &Ask, place: Place, out: &mut Vec<Effect>) {
        let held = self.held.get(&ask.node).map(|h| (h.session, h.place));
        let waiting = self.line.get(ask.node).and_then(|w| w.session);
        if let Some((session, old_place)) = held {
            out.push(Effect::Replaced { session });
            if old_place != place {
                self.release(ask.node);
            }
        }
        if let Some(session) = waiting.filter(|s| held.is_none_or(|(h, _)| h != *s)) {
            out.push(Effect::Replaced { session });
        }
        if place != Place::Slot {
            self.line.remove(ask.node); // it calls and wants no slot
        } else if let Some(session) = waiting {
            self.line.link_ended(ask.node, session);
        }
    }

    fn ask_slot(&mut self, now: Mono, entry: Entry, ask: &Ask, out: &mut Vec<Effect>) {
        let session = ask.session;
        // Time was let pass first, so a slot is free only if nobody waits, or while closed: then only returning
        // sessions come so far, and they had their slots before anybody in this line.
        let free = self.free() > 0;
        if self.line.take_reservation(ask.node) || free {
            self.line.remove(ask.node);
            self.hold(now, ask, Place::Slot);
            return out.push(granted(entry, session));
        }
        self.line.hear_or_join(now, ask, self.needed(ask.node, ask.need));
        if entry == Entry::New
            && let Some(holder) = self.displaceable(now, ask.node)
        {
            self.line.remove(ask.node);
            self.displace(now, holder, out);
            self.hold(now, ask, Place::Slot);
            return out.push(granted(entry, session));
        }
        let lease = self.lease(ask.node);
        out.push(match entry {
            Entry::New => Effect::Deferred { session, lease },
            Entry::Returning => Effect::Displace { session, lease },
        });
    }

    fn ask_pool(&mut self, now: Mono, entry: Entry, ask: &Ask, place: Place, out: &mut Vec<Effect>) {
        self.release(ask.node); // a slot's holder that asks for a poll on the same link gives the slot up (ADM-1)
        let (used, pool) = match place {
            Place::Relay => (self.relays, self.config.relay_pool),
            _ => (self.polls, self.config.poll_pool),
        };
        if used >= pool {
            return out.push(self.busy(now, ask));
        }
        self.hold(now, ask, place);
        out.push(granted(entry, ask.session));
    }

    fn ask_bulk(&mut self, now: Mono, entry: Entry, ask: &Ask, out: &mut Vec<Effect>) {
        let session = ask.session;
        let of_child = self.bulk.values().filter(|node| **node == ask.node).count();
        let full = self.bulk.len() >= usize::from(self.config.bulk_pool) || of_child >= BULK_PER_CHILD;
        if self.bulk.contains_key(&session) {
            out.push(Effect::Already { session });
        } else if full || entry == Entry::New && self.closed_until.is_some() {
            out.push(self.busy(now, ask));
        } else {
            self.bulk.insert(session, ask.node);
            out.push(granted(entry, session));
        }
    }

    fn gone(&mut self, node: NodeId, session: u64) {
        if self.held.get(&node).is_some_and(|h| h.session == session) {
            self.release(node);
        }
        if self.bulk.get(&session) == Some(&node) {
            self.bulk.remove(&session);
        }
        self.line.link_ended(node, session);
    }

    /// Lets time pass: recovery ends, silent waiters leave, reservations lapse to the next in line.
    fn advance(&mut self, now: Mono, out: &mut Vec<Effect>) {
        if self.closed_until.is_some_and(|until| until <= now) {
            self.closed_until = None;
        }
        self.barred.retain(|_, until| *until > now);
        self.line.expire(now);
        self.line.raise(now);
        self.fill(now, out);
    }

    /// Reserves every free slot for the first in line. Not while closed: those slots may belong to live sessions.
    fn fill(&mut self, now: Mono, out: &mut Vec<Effect>) {
        let share = need::share(self.config.cap.get());
        while self.closed_until.is_none() && self.free() > 0 {
            let kept = |need| self.held_by[need] + self.line.reserved_by(need);
            let short = Need::SLOTTED.map(|need| (need, kept(need) < share));
            let is_short = |need| short.contains(&(need, true));
            let polling_ms = |interval_ms| self.config.polling_reservation_ms(interval_ms);
            match self.line.reserve_first(now, is_short, self.config.reservation_wakeable_ms, polling_ms) {
                Some((node, true)) => out.push(Effect::Wake { node }),
                Some((_, false)) => {}
                None => break,
            }
        }
    }

    fn used(&self) -> u16 {
        self.slots + self.line.reserved()
    }

    fn free(&self) -> u16 {
        self.config.cap.get().saturating_sub(self.used())
    }

    fn hold(&mut self, now: Mono, ask: &Ask, place: Place) {
        self.release(ask.node);
        self.arrivals += 1;
        let need = self.needed(ask.node, ask.need);
        let held = Held {
            key: ask.key,
            session: ask.session,
            place,
            own: ask.need,
            need,
            wakeable: ask.wakeable,
            poll_interval_ms: ask.poll_interval_ms,
            arrival: self.arrivals,
            since: now,
        };
        self.held.insert(ask.node, held);
        *self.count(place) += 1;
        if place == Place::Slot {
            self.held_by[need] += 1;
        }
    }

    fn release(&mut self, node: NodeId) -> Option<Held> {
        let held = self.held.remove(&node)?;
        *self.count(held.place) -= 1;
        if held.place == Place::Slot {
            self.held_by[held.need] -= 1;
        }
        Some(held)
    }

    fn count(&mut self, place: Place) -> &mut u16 {
        match place {
            Place::Slot => &mut self.slots,
            Place::Relay => &mut self.relays,
            Place::Poll => &mut self.polls,
        }
    }

    fn busy(&self, now: Mono, ask: &Ask) -> Effect {
        let closed_ms = self.closed_until.map_or(0, |until| until.since(now));
        let own_ms = event::spread(&[ask.node.bytes(), &ask.session.to_be_bytes()], RETRY_SPREAD_MS);
        Effect::Busy { session: ask.session, retry_after_ms: closed_ms + RETRY_MS_MIN + own_ms }
    }
}

fn granted(entry: Entry, session: u64) -> Effect {
    match entry {
        Entry::New => Effect::Admitted { session },
        Entry::Returning => Effect::Already { session },
    }
}
