//! When the device collects by itself (pure; INV-2, INV-3, INV-8 … INV-10), and when what the clock brought is sent.
//!
//! ```text
//!   a start of the machine ─┐
//!   the local clock ────────┼─► pending ─► collection ─► report ──────────► spool
//!   newer settings ─────────┘   (on disk)                  └─► held, ≤ 5 min ─┘   what all devices do at one time
//! ```
//!
//! A *start* is the machine's: an agent started again in the same life of the machine has not started in this sense, and
//! goes on where it was. Facts are written in the batch of the event that made them; `pending` falls in the batch that
//! has the report. So a collection is made once, whenever the process ends.

use branchline_node::store::{Batch, Table};
use branchline_protocol::{
    document::{INVENTORY_HOUR, Settings},
    hash::Hash,
    schedule::{Schedule, hour_of_day, on},
    time::{Millis, Mono, Now},
};
use bytes::Bytes;
use jiff::{Timestamp, Zoned, civil::Date, tz::TimeZone};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Where the facts are kept.
const FACTS: &[u8] = b"schedule/facts";
/// Where a report waits for its time.
const HELD: &[u8] = b"schedule/held";

/// A start so long after the previous one sends at once (INV-2).
const QUIET_MS: i64 = 24 * 3_600_000;

/// What the clock brought is sent within so many milliseconds: 90,000 devices have their 09:00 together (DESIGN 7).
pub const SPREAD_MS: u64 = 300_000;

/// Newer settings on a link so young came with contact, not to everybody at once.
const RETURNED_MS: u64 = 60_000;

/// Days remembered as done: a clock set back, or a journey west, meets one again within this many collections.
const DONE_MAX: usize = 40;

/// A memory further ahead than this was made by a clock that was wrong, and does not hold the schedule up.
const AHEAD_MS_MAX: i64 = 26 * 3_600_000;

/// Why a collection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Why {
    /// The machine started (INV-2), or this agent is new (INV-1).
    Start,
    /// The schedule's time came.
    Clock,
    /// One was missed while the machine was off (INV-3).
    Missed,
    /// Newer settings came with contact (INV-10).
    Returned,
    /// Newer settings came over a link that was there, to everybody.
    Pushed,
}

/// What a restart must find.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Facts {
    /// The life of the machine in which it last started.
    boot: String,
    /// Wall time of that start.
    last_start: Option<Millis>,
    /// What the facts below are about.
    under: Option<(Schedule, u8)>,
    /// Monthly and cron: starts up to this wall time are dealt with.
    since: Millis,
    /// Local dates that had their collection, oldest first.
    done: VecDeque<Date>,
    /// The date whose 09:00 a start put its collection off to.
    deferred: Option<Date>,
    /// A collection asked for and not made yet, and the date it is for.
    pending: Option<(Why, Option<Date>)>,
}

/// What the settings in force say.
struct Rules {
    schedule: Schedule,
    hour: u8,
    catch_up: bool,
}

impl Rules {
    fn of(settings: Option<&Settings>) -> Rules {
        settings.map_or(Rules { schedule: Schedule::Daily, hour: INVENTORY_HOUR, catch_up: false }, |s| Rules {
            schedule: s.schedule.clone(),
            hour: s.inventory_hour,
            catch_up: s.catch_up_missed,
        })
    }
}

/// A row that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what the schedule remembers is unreadable")]
pub struct Unreadable;

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    facts: Facts,
    zone: TimeZone,
    boot: String,
    /// Chooses the wait of what is held.
    seed: u64,
    /// Before the core's start nothing is decided.
    started: bool,
    /// Whether it is in another zone than at the last look.
    moved: bool,
    /// Whether the pending collection was asked for in this process.
    asked: bool,
    /// The collection under way: whether it began after what is pending, and the settings it began under.
    under_way: (bool, u64),
    held: Option<(Bytes, Mono)>,
    next: Option<Mono>,
}

impl Scheduler {
    /// Nothing remembered; `seed` is random at each opening of the store.
    pub fn new(seed: u64) -> Scheduler {
        Scheduler {
            facts: Facts::default(),
            zone: TimeZone::UTC,
            boot: String::new(),
            seed,
            started: false,
            moved: false,
            asked: false,
            under_way: (false, 0),
            held: None,
            next: None,
        }
    }

    /// A row of [`Table::Meta`]; others are passed over.
    pub fn recover(&mut self, key: &[u8], value: &Bytes) -> Result<(), Unreadable> {
        match key {
            FACTS => self.facts = rmp_serde::from_slice(value).map_err(|_| Unreadable)?,
            HELD => self.held = Some((value.clone(), Mono(0))),
            _ => {}
        }
        Ok(())
    }

    /// Where the machine is, and in which of its lives.
    pub fn surroundings(&mut self, zone: TimeZone, boot: String) {
        self.moved |= self.started && zone != self.zone;
        (self.zone, self.boot) = (zone, boot);
    }

    /// The agent starts, and perhaps the machine did; `new`: it has never sent anything. A look follows.
    pub fn start(&mut self, now: Now, settings: Option<&Settings>, new: bool, batch: &mut Batch) {
        let before = self.facts.clone();
        let (rules, first) = (Rules::of(settings), self.facts.last_start);
        let Some(local) = self.local(now) else { return };
        self.started = true;
        self.take_over(now, &rules, &local);
        if first.is_none() || self.facts.boot != self.boot {
            let daily = matches!(rules.schedule, Schedule::Daily);
            let today = local.date();
            let elapsed = first.is_none_or(|last| now.wall.0.saturating_sub(last.0) >= QUIET_MS);
            let deferred = self.facts.deferred.take().filter(|date| !self.facts.done.contains(date));
            let missed = match daily {
                true => deferred.filter(|date| self.reached(*date, rules.hour, &local)),
                false => self.fallen_due(now, &rules),
            };
            if new {
                self.facts.pending = Some((Why::Start, daily.then_some(today)));
            } else if daily && (elapsed || self.reached(today, rules.hour, &local)) {
                self.facts.pending = Some((Why::Start, Some(today)));
            } else {
                // For today's start; what an earlier one put off and did not make is missed.
                self.facts.deferred = daily.then_some(today);
                if rules.catch_up && missed.is_some() {
                    self.facts.pending = Some((Why::Missed, missed.filter(|_| daily)));
                }
            }
            self.facts.last_start = Some(now.wall);
            self.facts.boot.clone_from(&self.boot);
        } else if new && self.facts.pending.is_none() {
            self.facts.pending = Some((Why::Start, None));
        }
        self.save(&before, batch);
    }

    /// Whether the schedule's time has come.
    pub fn look(&mut self, now: Now, settings: Option<&Settings>, batch: &mut Batch) {
        let (before, rules) = (self.facts.clone(), Rules::of(settings));
        if std::mem::take(&mut self.moved) {
            // What was past by the old zone's clocks was seen there.
            self.facts.since = now.wall;
        }
        if let Some(local) = self.local(now).filter(|_| self.started && self.facts.pending.is_none()) {
            let due = match rules.schedule {
                Schedule::Daily => {
                    let today = local.date();
                    let due = self.reached(today, rules.hour, &local) && !self.facts.done.contains(&today);
                    due.then_some(today)
                }
                _ => self.fallen_due(now, &rules),
            };
            if due.is_some() {
                self.facts.pending = Some((Why::Clock, due));
            }
        }
        self.save(&before, batch);
        self.next = self.plan(now, &rules);
    }

    /// Nothing more is to be collected by itself.
    pub fn rest(&mut self) {
        self.next = None;
    }

    /// Newer settings count from now on. `link_ms`: how long the link that brought them has been up.
    pub fn adopt(&mut self, now: Now, settings: &Settings, link_ms: u64, batch: &mut Batch) {
        let (before, rules) = (self.facts.clone(), Rules::of(Some(settings)));
        let Some(local) = self.local(now).filter(|_| self.started) else { return };
        self.take_over(now, &rules, &local);
        if settings.collect_on_return {
            let why = if link_ms <= RETURNED_MS { Why::Returned } else { Why::Pushed };
            let date = self.facts.pending.and_then(|(_, date)| date);
            self.facts.pending = Some((why, date));
            // One that began under the older settings is not what is wanted.
            (self.asked, self.under_way.0) = (false, false);
        }
        self.save(&before, batch);
        self.look(now, Some(settings), batch);
    }

    /// Whether a collection is to be asked for; once per process and collection.
    pub fn asks(&mut self) -> bool {
        self.facts.pending.is_some() && !std::mem::replace(&mut self.asked, true)
    }

    /// A collection begins, whoever asked for it.
    pub fn begins(&mut self, settings_version: u64) {
        self.under_way = (self.facts.pending.is_some(), settings_version);
    }

    /// It is made. Answers the settings it was begun under, and whether its report waits ([`Scheduler::hold`]) because
    /// all devices make one at this time.
    pub fn made(&mut self, batch: &mut Batch) -> (u64, bool) {
        let (answers, version) = std::mem::take(&mut self.under_way);
        let Some((why, date)) = self.facts.pending.take_if(|_| answers) else { return (version, false) };
        let before = Facts { pending: Some((why, date)), ..self.facts.clone() };
        self.asked = false;
        if let Some(date) = date {
            self.mark(date);
        }
        self.save(&before, batch);
        (version, matches!(why, Why::Clock | Why::Pushed))
    }

    /// Keeps a report until its own moment of the next five minutes.
    pub fn hold(&mut self, now: Now, report: Bytes, batch: &mut Batch) {
        let Hash(dice) = Hash::of_parts(&[&self.seed.to_be_bytes(), &now.wall.0.to_be_bytes()]);
        let dice = dice[..8].iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        batch.put(Table::Meta, HELD, report.clone());
        self.held = Some((report, now.mono.plus(dice % (SPREAD_MS + 1))));
    }

    /// The report that was held, if its moment has come, or `at_once`.
    pub fn release(&mut self, now: Now, at_once: bool, batch: &mut Batch) -> Option<Bytes> {
        let (report, _) = self.held.take_if(|(_, due)| at_once || *due <= now.mono)?;
        batch.delete(Table::Meta, HELD);
        Some(report)
    }

    /// When to look again.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.held.iter().map(|(_, due)| *due).chain(self.next).min()
    }

    fn local(&self, now: Now) -> Option<Zoned> {
        self.zoned(now.wall)
    }

    fn zoned(&self, at: Millis) -> Option<Zoned> {
        Some(Timestamp::from_millisecond(at.0).ok()?.to_zoned(self.zone.clone()))
    }

    /// Whether it is this date's inventory hour, or later.
    fn reached(&self, date: Date, hour: u8, local: &Zoned) -> bool {
        on(date, hour_of_day(hour), &self.zone).is_some_and(|at| *local >= at)
    }

    /// Another schedule counts from now on, not for what is past (INV-10).
    fn take_over(&mut self, now: Now, rules: &Rules, local: &Zoned) {
        let under = (rules.schedule.clone(), rules.hour);
        if self.facts.under.as_ref() == Some(&under) {
            return;
        }
        let former = self.facts.under.replace(under);
        if former.as_ref().is_some_and(|(schedule, _)| !schedule.same_form(&rules.schedule)) {
            self.facts.done.clear();
        }
        self.facts.since = now.wall;
        if former.is_some() && rules.schedule == Schedule::Daily && self.reached(local.date(), rules.hour, local) {
            self.mark(local.date());
        }
    }

    /// Monthly and cron: today, if a start came since the last look; a month has none a second time on one date.
    fn fallen_due(&mut self, now: Now, rules: &Rules) -> Option<Date> {
        if self.facts.since.0 > now.wall.0.saturating_add(AHEAD_MS_MAX) {
            self.facts.since = now.wall;
        }
        let (since, today) = (self.zoned(self.facts.since)?, self.local(now)?.date());
        rules.schedule.next(rules.hour, &since).filter(|due| due.timestamp().as_millisecond() <= now.wall.0)?;
        self.facts.since = now.wall;
        let monthly = matches!(rules.schedule, Schedule::Monthly { .. });
        Some(today).filter(|date| !monthly || !self.facts.done.contains(date))
    }

    fn mark(&mut self, date: Date) {
        self.facts.deferred.take_if(|deferred| *deferred == date);
        if !self.facts.done.contains(&date) {
            self.facts.done.push_back(date);
        }
        while self.facts.done.len() > DONE_MAX {
            self.facts.done.pop_front();
        }
    }

    /// The schedule's next time on the monotonic clock. Whoever moves the wall clock or the zone has to look again.
    fn plan(&self, now: Now, rules: &Rules) -> Option<Mono> {
        if !self.started || self.facts.pending.is_some() {
            return None;
        }
        let due = match rules.schedule {
            Schedule::Daily => {
                let mut after = self.local(now)?;
                loop {
                    after = rules.schedule.next(rules.hour, &after)?;
                    if !self.facts.done.contains(&after.date()) {
                        break after;
                    }
                }
            }
            _ => rules.schedule.next(rules.hour, &self.zoned(self.facts.since.max(now.wall))?)?,
        };
        let wait = due.timestamp().as_millisecond().saturating_sub(now.wall.0).max(0);
        Some(now.mono.plus(wait as u64))
    }

    fn save(&self, before: &Facts, batch: &mut Batch) {
        if self.facts != *before {
            let facts = rmp_serde::to_vec_named(&self.facts).expect("facts are plain data");
            batch.put(Table::Meta, FACTS, facts);
        }
    }
}
