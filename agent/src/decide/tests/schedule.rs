//! The schedule on a clock that the test moves: a device in Tokyo, from start to start.

mod clocks;
mod offline;
mod rule;

use super::{inventory::snapshot, *};
use crate::decide::INVENTORY_SPREAD_MS;
use branchline_protocol::{
    document::Settings,
    inventory::{Report, ReportKind},
    wire::Ack,
};
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

fn tokyo() -> TimeZone {
    TimeZone::fixed(jiff::tz::offset(9))
}

/// A report as it went out.
#[derive(Debug)]
struct Sent {
    /// Local wall time, to the second.
    at: String,
    report: Report,
}

/// A computer: its clock, its starts, and what it sent.
struct Pc {
    bench: Bench,
    zone: TimeZone,
    starts: u32,
    /// What a collection finds.
    packages: u32,
    /// Wall times of collections begun.
    collected: Vec<String>,
    sent: Vec<Sent>,
    settings: Settings,
}

impl Pc {
    /// Started for the first time at this local time, in contact, its first inventory sent.
    fn new(at: &str) -> Pc {
        let mut pc = Pc::off();
        pc.start(at);
        pc
    }

    fn off() -> Pc {
        let settings = Settings::first(tenant(), 1);
        let (collected, sent) = (Vec::new(), Vec::new());
        Pc { bench: Bench::new(), zone: tokyo(), starts: 0, packages: 1, collected, sent, settings }
    }

    fn wall(&self, at: &str) -> i64 {
        let local: DateTime = at.parse().unwrap();
        local.to_zoned(self.zone.clone()).unwrap().timestamp().as_millisecond()
    }

    fn local(&self, at: Millis) -> String {
        let at = Timestamp::from_millisecond(at.0).unwrap().to_zoned(self.zone.clone());
        at.strftime("%m-%d %H:%M:%S").to_string()
    }

    /// Time passes while nothing runs.
    fn sleep_until(&mut self, at: &str) {
        let ms = self.wall(at) - self.bench.now.wall.0;
        self.bench.pass(u64::try_from(ms).expect("time passes forward"));
    }

    /// The machine starts.
    fn start(&mut self, at: &str) {
        self.starts += 1;
        self.go(at, true);
    }

    /// The agent's process starts again; the machine runs on.
    fn restart(&mut self, at: &str) {
        self.go(at, true);
    }

    fn start_offline(&mut self, at: &str) {
        self.starts += 1;
        self.go(at, false);
    }

    fn go(&mut self, at: &str, contact: bool) {
        self.sleep_until(at);
        self.bench.crash();
        self.surroundings();
        let effects = self.bench.wake();
        self.absorb(effects);
        if contact {
            self.connect();
        }
    }

    fn connect(&mut self) {
        let effects = self.bench.connect(None);
        self.absorb(effects);
    }

    fn surroundings(&mut self) {
        let event = Event::Surroundings { zone: self.zone.clone(), boot: format!("life {}", self.starts) };
        self.happens(event);
    }

    fn happens(&mut self, event: Event) {
        let effects = self.bench.settle(event);
        self.absorb(effects);
    }

    /// What was sent is settled at once; what is to be collected is there at once.
    fn absorb(&mut self, effects: Vec<Effect>) {
        let runs = effects.iter().filter_map(|effect| match effect {
            Effect::Send(_, Message::Records(runs)) => Some(runs),
            _ => None,
        });
        let mut acks = Vec::new();
        for run in runs.flatten() {
            for record in run.records.iter().filter(|record| record.class == class::INVENTORY) {
                let at = self.local(self.bench.now.wall);
                self.sent.push(Sent { at, report: rmp_serde::from_slice(&record.body).unwrap() });
            }
            let upto = run.records.last().unwrap().number;
            acks.push(Ack { stream: run.stream, stored: upto, settled: upto, refused: vec![] });
        }
        if !acks.is_empty() {
            self.happens(message(Lane::Control, Message::Acks(acks)));
        }
        for _ in effects.iter().filter(|effect| matches!(effect, Effect::Collect(_))) {
            let at = self.local(self.bench.now.wall);
            self.collected.push(at);
            self.happens(Event::Collected(snapshot(self.packages)));
        }
    }

    /// The machine runs until then; timers fire when they are due.
    fn run_until(&mut self, at: &str) {
        let until = self.wall(at);
        while let Some(due) = self.bench.core.next_deadline(self.bench.now) {
            let wait = due.since(self.bench.now.mono);
            if self.bench.now.wall.0 + wait as i64 > until {
                break;
            }
            self.bench.pass(wait);
            self.happens(Event::Tick);
        }
        self.sleep_until(at);
    }

    /// The wall clock alone is set; the shell notices.
    fn set_clock(&mut self, at: &str) {
        self.bench.now.wall = Millis(self.wall(at));
        self.surroundings();
    }

    fn set(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.settings.version += 1;
        let settings = self.settings.clone();
        self.happens(document(&settings, &server()));
    }

    /// An administrator asks for what changed.
    fn refresh_order(&self) -> Event {
        let args = refresh(false);
        let payload = payload(1, REFRESH_INVENTORY, &args);
        let payload = Payload { fetch_by: self.bench.now.node.plus(60_000), ..payload };
        message(Lane::Work, Message::Orders(vec![sign(payload, args, mine(), &server())]))
    }

    /// What was sent since the last question: kind and when it was collected.
    fn news(&mut self) -> Vec<(ReportKind, String)> {
        let sent = std::mem::take(&mut self.sent);
        sent.iter().map(|s| (s.report.kind, self.local(s.report.collected_at))).collect()
    }

    /// The same with the time of sending.
    fn times(&mut self) -> Vec<(String, String)> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter().map(|s| (self.local(s.report.collected_at), s.at)).collect()
    }
}

fn diffs(times: &[&str]) -> Vec<(ReportKind, String)> {
    times.iter().map(|at| (ReportKind::Diff, at.to_string())).collect()
}
