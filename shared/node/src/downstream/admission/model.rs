//! Random sequences of events against a reference that keeps two plain lists and scans them.

use super::tests::{Rig, ask, cap, node, now};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const INTERVAL_MS: u64 = 60_000;
const POLLS: usize = 3;
const DEVICES: u64 = 9;

#[derive(Clone, Debug)]
enum Step {
    /// A device opens a new link; an `old` one bears an attachment number already used.
    Open {
        device: u64,
        want: Want,
        priority: u8,
        wakeable: bool,
        old: bool,
    },
    /// A device asks again on its newest link.
    Again {
        device: u64,
        want: Want,
        priority: u8,
        wakeable: bool,
    },
    /// A device's newest link ends, or the one before it.
    End {
        device: u64,
        former: bool,
    },
    SetCap(i64),
    Wait(u64),
    /// Time goes on to the instant that the core asked for.
    Deadline,
}

fn step() -> impl Strategy<Value = Step> {
    let want = || prop_oneof![4 => Just(Want::Persistent), 1 => Just(Want::Poll)];
    prop_oneof![
        6 => (1..=DEVICES, want(), 0..3u8, any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(device, want, priority, wakeable, old)| Step::Open { device, want, priority, wakeable, old }),
        4 => (1..=DEVICES, want(), 0..3u8, any::<bool>())
            .prop_map(|(device, want, priority, wakeable)| Step::Again { device, want, priority, wakeable }),
        4 => (1..=DEVICES, prop::bool::weighted(0.2)).prop_map(|(device, former)| Step::End { device, former }),
        1 => (1..=5i64).prop_map(Step::SetCap),
        2 => prop_oneof![0..4_000u64, 0..2 * INTERVAL_MS].prop_map(Step::Wait),
        2 => Just(Step::Deadline),
    ]
}

/// One who holds a slot or a poll place (`until` unused), or stands in line.
#[derive(Clone, Debug)]
struct Entry {
    ask: Ask,
    session: Option<u64>,
    heard: u64,
    until: Option<u64>,
    tried: bool,
}

/// `slots` in order of arrival, `line` in order of waiting; nothing is indexed or cached.
struct Reference {
    cap: usize,
    slots: Vec<Entry>,
    polls: Vec<Entry>,
    line: Vec<Entry>,
}

impl Reference {
    fn reserved(&self) -> usize {
        self.line.iter().filter(|w| w.until.is_some()).count()
    }

    fn used(&self) -> usize {
        self.slots.len() + self.reserved()
    }

    /// Position in `line` of the one who is first by priority, then wait, and has no reservation.
    fn first(&self) -> Option<usize> {
        let open = |i: &usize| self.line[*i].until.is_none();
        (0..self.line.len()).filter(open).max_by_key(|i| (self.line[*i].ask.priority, Reverse(*i)))
    }

    fn number(&self, node: NodeId) -> u32 {
        let Some(own) = self.line.iter().position(|w| w.ask.node == node) else { return 0 };
        let priority = self.line[own].ask.priority;
        let ahead = self.line.iter().enumerate().filter(|(i, w)| {
            w.until.is_none() && (w.ask.priority > priority || w.ask.priority == priority && *i < own)
        });
        ahead.count() as u32 + 1
    }

    fn pass_time(&mut self, at: u64, out: &mut Vec<Effect>) {
        self.line.retain(|w| w.heard + 3 * INTERVAL_MS > at);
        let (lapsed, rest) = std::mem::take(&mut self.line).into_iter().partition(|w| w.until.is_some_and(|u| u <= at));
        self.line = rest;
        let lapsed: Vec<Entry> = lapsed;
        self.line.extend(lapsed.into_iter().map(|w| Entry { until: None, tried: w.tried || w.ask.wakeable, ..w }));
        self.fill(at, out);
    }

    fn fill(&mut self, at: u64, out: &mut Vec<Effect>) {
        while self.used() < self.cap
            && let Some(first) = self.first()
        {
            let waiter = &mut self.line[first];
            let wakes = waiter.ask.wakeable && !waiter.tried;
            waiter.until = Some(at + if wakes { 3_000 } else { INTERVAL_MS + INTERVAL_MS / 10 });
            if wakes {
                out.push(Effect::Wake { node: waiter.ask.node });
            }
        }
    }

    fn join(&mut self, at: u64, ask: &Ask) {
        match self.line.iter_mut().find(|w| w.ask.node == ask.node) {
            Some(w) => (w.ask, w.session, w.heard) = (ask.clone(), Some(ask.session), at),
            None => self.line.push(entry(ask, at)),
        }
    }

    fn ask(&mut self, at: u64, ask: &Ask, out: &mut Vec<Effect>) {
        let (node, session) = (ask.node, ask.session);
        let known: Vec<Entry> =
            self.slots.iter().chain(&self.polls).chain(&self.line).filter(|e| e.ask.node == node).cloned().collect();
        let same = known.iter().any(|e| e.session == Some(session));
        if !same && known.iter().any(|e| e.ask.key >= ask.key) {
            return out.push(Effect::Stale { session });
        }
        let persistent = ask.want == Want::Persistent;
        if !same {
            let older: BTreeSet<u64> = known.iter().filter_map(|e| e.session).collect();
            out.extend(older.into_iter().map(|session| Effect::Replaced { session }));
            self.line.retain(|w| persistent || w.ask.node != node);
            if persistent {
                self.polls.retain(|e| e.ask.node != node);
            }
        }
        if !persistent {
            self.slots.retain(|e| e.ask.node != node);
        }
        let place = if persistent { &mut self.slots } else { &mut self.polls };
        if let Some(held) = place.iter_mut().find(|e| e.ask.node == node) {
            *held = entry(ask, at);
            out.push(if same { Effect::Already { session } } else { Effect::Admitted { session } });
        } else if !persistent {
            if self.polls.len() < POLLS {
                self.polls.push(entry(ask, at));
                out.push(Effect::Admitted { session });
            } else {
                out.push(Effect::Busy { session, retry_after_ms: 0 });
            }
        } else if self.line.iter().any(|w| w.ask.node == node && w.until.is_some())
            || self.used() < self.cap && self.first().is_none()
        {
            self.line.retain(|w| w.ask.node != node);
            self.polls.retain(|e| e.ask.node != node);
            self.slots.push(entry(ask, at));
            out.push(Effect::Admitted { session });
        } else {
            self.join(at, ask);
            out.push(Effect::Deferred { session, lease: Lease::new(node, INTERVAL_MS, self.number(node)) });
        }
        if let Some(w) = self.line.iter_mut().find(|w| w.ask.node == node) {
            w.heard = at;
        }
    }

    fn set_cap(&mut self, at: u64, cap: usize, out: &mut Vec<Effect>) {
        self.cap = cap;
        while self.used() > cap && self.reserved() > 0 {
            let reserved = (0..self.line.len()).filter(|i| self.line[*i].until.is_some());
            let last = reserved.min_by_key(|i| (self.line[*i].ask.priority, Reverse(*i))).expect("one is reserved");
            self.line[last].until = None;
        }
        let order: Vec<NodeId> = self.slots.iter().map(|e| e.ask.node).collect();
        let mut leaving = Vec::new();
        while self.slots.len() > cap {
            let lowest = self.slots.iter().map(|e| e.ask.priority).min().expect("slots are held");
            let latest = self.slots.iter().rposition(|e| e.ask.priority == lowest).expect("it was just seen");
            leaving.push(self.slots.remove(latest).ask);
        }
        leaving.sort_by_key(|ask| order.iter().position(|node| *node == ask.node));
        for ask in leaving {
            self.join(at, &ask);
            let lease = Lease::new(ask.node, INTERVAL_MS, self.number(ask.node));
            out.push(Effect::Displace { session: ask.session, lease });
        }
    }

    fn end(&mut self, node: NodeId, session: u64) {
        self.slots.retain(|e| e.session != Some(session));
        self.polls.retain(|e| e.session != Some(session));
        if let Some(w) = self.line.iter_mut().find(|w| w.ask.node == node && w.session == Some(session)) {
            w.session = None;
        }
    }
}

fn entry(ask: &Ask, at: u64) -> Entry {
    Entry { ask: ask.clone(), session: Some(ask.session), heard: at, until: None, tried: false }
}

fn config(slots: i64) -> AdmissionConfig {
    let config = AdmissionConfig::new(cap(slots)).pools(2, POLLS as u16, 2);
    config.poll_interval_ms(INTERVAL_MS).expect("an interval in range")
}

/// Runs steps on the core and on the reference together and compares them after each.
struct Run {
    rig: Rig,
    reference: Reference,
    peak: usize,
    sessions: u64,
    /// Per device: newest link (session, attachment), and the session before it.
    links: BTreeMap<u64, ((u64, u64), u64)>,
}

impl Run {
    fn new(slots: i64) -> Self {
        Run {
            rig: Rig { core: Admission::new(config(slots)), at: 0 },
            reference: Reference { cap: slots as usize, slots: vec![], polls: vec![], line: vec![] },
            peak: 0,
            sessions: 100,
            links: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let event = match *step {
            Step::Open { device, want, priority, wakeable, old } => {
                self.sessions += 1;
                let ((newest, newest_attachment), _) = self.links.get(&device).copied().unwrap_or_default();
                let attachment = if old { newest_attachment } else { self.sessions };
                if !old {
                    self.links.insert(device, ((self.sessions, attachment), newest));
                }
                let key = AttachmentKey { epoch: 1, attachment };
                Event::Ask(Ask { key, priority, wakeable, ..ask(device, self.sessions, want) })
            }
            Step::Again { device, want, priority, wakeable } => {
                let Some(((session, attachment), _)) = self.links.get(&device).copied() else { return Ok(()) };
                let key = AttachmentKey { epoch: 1, attachment };
                Event::Ask(Ask { key, priority, wakeable, ..ask(device, session, want) })
            }
            Step::End { device, former } => {
                let Some(((newest, _), before)) = self.links.get(&device).copied() else { return Ok(()) };
                Event::Gone { node: node(device), session: if former { before } else { newest } }
            }
            Step::SetCap(slots) => Event::SetCap { cap: cap(slots) },
            Step::Wait(ms) => {
                self.rig.at += ms;
                Event::Tick
            }
            Step::Deadline => {
                let Some(due) = self.rig.core.next_deadline() else { return Ok(()) };
                prop_assert!(due.0 > self.rig.at, "a deadline that was reached is cleared");
                self.rig.at = due.0;
                Event::Tick
            }
        };
        let at = self.rig.at;
        let mut expected = Vec::new();
        self.reference.pass_time(at, &mut expected);
        match &event {
            Event::Ask(ask) => self.reference.ask(at, ask, &mut expected),
            Event::Gone { node, session } => self.reference.end(*node, *session),
            Event::SetCap { cap } => self.reference.set_cap(at, usize::from(cap.get()), &mut expected),
            _ => {}
        }
        self.reference.fill(at, &mut expected);
        let mut effects = self.rig.event(event.clone());
        for effect in &mut effects {
            if let Effect::Busy { retry_after_ms, .. } = effect {
                prop_assert!((1_000..10_000).contains(retry_after_ms));
                *retry_after_ms = 0;
            }
        }
        prop_assert_eq!(effects, expected, "after {:?}", event);
        self.check()
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let (core, reference) = (&self.rig.core, &self.reference);
        self.peak = self.peak.max(reference.used());
        let expected = Gauge {
            used: reference.used() as u16,
            cap: reference.cap as u16,
            peak: self.peak as u16,
            waiting: (reference.line.len() - reference.reserved()) as u32,
            reserved: reference.reserved() as u16,
        };
        prop_assert_eq!(core.gauge(), expected);
        prop_assert_eq!(usize::from(core.pools().polls), reference.polls.len());
        let holders: BTreeMap<NodeId, u64> = reference.slots.iter().map(|e| (e.ask.node, e.ask.session)).collect();
        prop_assert_eq!(holders.len(), reference.slots.len(), "a node holds at most one slot");
        for device in 1..=DEVICES {
            let held = core.persistent_session(node(device));
            prop_assert_eq!(held, holders.get(&node(device)).copied());
            prop_assert!(held.is_none() || core.line.get(node(device)).is_none(), "both holder and waiter");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn adm_2_adm_3_adm_5_adm_6_any_sequence_does_what_the_reference_does(
        slots in 1..=5i64,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut run = Run::new(slots);
        for step in &steps {
            run.step(step)?;
        }
    }

    #[test]
    fn rly_6_a_rebuilt_admission_keeps_the_holders_and_never_passes_the_cap(
        (before, after) in (1..=5i64, 1..=5i64),
        steps in prop::collection::vec(step(), 1..60),
        order in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..20),
    ) {
        let mut run = Run::new(before);
        for step in &steps {
            run.step(step)?;
        }
        let held_before = usize::from(run.rig.core.gauge().used - run.rig.core.gauge().reserved);
        let mut live: Vec<Ask> = run.reference.slots.iter().map(|e| e.ask.clone()).collect();
        let mut rig = Rig { core: Admission::recovering(config(after), now(0)), at: 0 };
        let mut kept = 0;
        for (i, (pick, stranger)) in order.iter().enumerate() {
            if *stranger {
                let effects = rig.event(Event::Ask(ask(1_000 + i as u64, 10_000 + i as u64, Want::Persistent)));
                prop_assert!(matches!(effects[..], [Effect::Busy { .. }]), "closed to others: {effects:?}");
            } else if !live.is_empty() {
                let back = live.remove(pick.index(live.len()));
                match rig.event(Event::Reregister(back))[..] {
                    [Effect::Already { .. }] => kept += 1,
                    [Effect::Displace { .. }] => {}
                    ref other => prop_assert!(false, "{other:?}"),
                }
            }
        }
        for back in live {
            kept += rig.event(Event::Reregister(back)).iter().filter(|e| matches!(e, Effect::Already { .. })).count();
        }
        prop_assert_eq!(kept, held_before.min(after as usize), "no holder lost its slot without need");
        rig.at = RECOVERY_MS;
        rig.event(Event::Tick);
        prop_assert_eq!(usize::from(rig.core.gauge().used), kept);
    }
}
