//! Random sequences of events against a reference that keeps two plain lists and scans them.

use super::tests::{Rig, ask, cap, node, now};
use super::*;
use proptest::prelude::*;
use std::{cmp::Reverse, collections::BTreeSet};

/// Three of these are longer than an hour, so that a waiter may rise.
const INTERVAL_MS: u64 = 1_500_000;
const POLLS: usize = 3;
const DEVICES: u64 = 9;

#[derive(Clone, Debug)]
enum Step {
    /// A device opens a new link; an `old` one bears an attachment number already used.
    Open {
        device: u64,
        want: Want,
        need: Need,
        wakeable: bool,
        old: bool,
    },
    /// A device asks again on its newest link.
    Again {
        device: u64,
        want: Want,
        need: Need,
        wakeable: bool,
    },
    /// A device's newest link ends, or the one before it.
    End {
        device: u64,
        former: bool,
    },
    SetCap(i64),
    /// The documents say otherwise.
    Need {
        device: u64,
        need: Need,
    },
    /// Of each named device: whether its order is urgent, and whether it is in progress.
    Demands(Vec<(u64, bool, bool)>),
    Wait(u64),
    /// Time goes on to the instant that the core asked for.
    Deadline,
}

fn step() -> impl Strategy<Value = Step> {
    let want = || prop_oneof![4 => Just(Want::Persistent), 1 => Just(Want::Poll)];
    let need = || prop::sample::select(&Need::SLOTTED[..]);
    let any_need = prop_oneof![3 => need(), 1 => Just(Need::None)];
    let demand = (1..=DEVICES, any::<bool>(), any::<bool>());
    let bounds = [HELD_MS_MIN - 1, HELD_MS_MIN, HELD_MS_MIN + 1, RISE_MS - 1, RISE_MS];
    prop_oneof![
        6 => (1..=DEVICES, want(), need(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(device, want, need, wakeable, old)| Step::Open { device, want, need, wakeable, old }),
        4 => (1..=DEVICES, want(), need(), any::<bool>())
            .prop_map(|(device, want, need, wakeable)| Step::Again { device, want, need, wakeable }),
        4 => (1..=DEVICES, prop::bool::weighted(0.2)).prop_map(|(device, former)| Step::End { device, former }),
        1 => (1..=5i64).prop_map(Step::SetCap),
        1 => (1..=DEVICES, any_need).prop_map(|(device, need)| Step::Need { device, need }),
        1 => prop::collection::vec(demand, 0..4).prop_map(Step::Demands),
        3 => prop_oneof![0..4_000u64, 0..2 * INTERVAL_MS, prop::sample::select(bounds.to_vec())].prop_map(Step::Wait),
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
    /// When it took its slot, or its place in line.
    since: u64,
    rises: u8,
}

/// `slots` in order of arrival, `line` in order of waiting; nothing is indexed or cached.
struct Reference {
    cap: usize,
    slots: Vec<Entry>,
    polls: Vec<Entry>,
    line: Vec<Entry>,
    demands: BTreeMap<NodeId, Demand>,
    barred: BTreeMap<NodeId, u64>,
    rose_at: u64,
}

impl Reference {
    /// What a holder or waiter needs, with its orders and what it rose.
    fn standing(&self, entry: &Entry) -> Need {
        let urgent = self.demands.get(&entry.ask.node).is_some_and(|d| d.urgent);
        let need = if urgent { Need::Urgent } else { entry.ask.need };
        need.raised(entry.rises)
    }

    /// A need's slots, held by it or reserved for it.
    fn kept(&self, need: Need) -> usize {
        let reserved = self.line.iter().filter(|w| w.until.is_some());
        self.slots.iter().chain(reserved).filter(|e| self.standing(e) == need).count()
    }

    fn holders(&self, need: Need) -> usize {
        self.slots.iter().filter(|e| self.standing(e) == need).count()
    }

    fn waiters(&self, need: Need) -> usize {
        self.line.iter().filter(|w| w.until.is_none() && self.standing(w) == need).count()
    }

    fn share(&self) -> usize {
        if self.cap < 3 { 0 } else { self.cap.div_ceil(20) }
    }

    /// The slot that a waiter may take: each of those before it in line could take another.
    fn displaceable(&self, at: u64, node: NodeId) -> Option<usize> {
        let waiter = self.line.iter().find(|w| w.ask.node == node && w.until.is_none())?;
        if self.barred.contains_key(&node) {
            return None;
        }
        let mut open = Vec::new();
        for need in Need::SLOTTED.into_iter().filter(|need| *need < self.standing(waiter)) {
            let free = |i: &usize| {
                let held = &self.slots[*i];
                let idle = self.demands.get(&held.ask.node).is_none_or(|d| !d.in_progress);
                self.standing(held) == need && at - held.since >= HELD_MS_MIN && idle
            };
            let spare = self.holders(need).saturating_sub(self.share());
            open.extend((0..self.slots.len()).filter(free).take(spare));
        }
        open.first().copied().filter(|_| open.len() as u32 >= self.number(node))
    }

    fn displace(&mut self, at: u64, slot: usize, out: &mut Vec<Effect>) {
        let ask = self.slots.remove(slot).ask;
        self.barred.insert(ask.node, at + HELD_MS_MIN);
        self.join(at, &ask);
        let lease = Lease::new(ask.node, INTERVAL_MS, self.number(ask.node));
        out.push(Effect::Displace { session: ask.session, lease });
    }

    fn raise(&mut self, at: u64) {
        while let Some(oldest) =
            (0..self.line.len()).find(|i| self.line[*i].until.is_none() && self.standing(&self.line[*i]) < Need::Urgent)
        {
            let due = self.line[oldest].since.max(self.rose_at) + RISE_MS;
            if due > at {
                break;
            }
            (self.line[oldest].rises, self.rose_at) = (self.line[oldest].rises + 1, due);
        }
    }

    fn set_need(&mut self, node: NodeId, need: Need, out: &mut Vec<Effect>) {
        if need == Need::None {
            self.line.retain(|w| w.ask.node != node);
            if let Some(slot) = self.slots.iter().position(|e| e.ask.node == node) {
                let session = self.slots.remove(slot).ask.session;
                out.push(Effect::Displace { session, lease: Lease::new(node, INTERVAL_MS, 0) });
            }
        }
        let both = self.slots.iter_mut().chain(&mut self.line);
        both.filter(|e| e.ask.node == node).for_each(|e| e.ask.need = need);
    }

    fn reserved(&self) -> usize {
        self.line.iter().filter(|w| w.until.is_some()).count()
    }

    fn used(&self) -> usize {
        self.slots.len() + self.reserved()
    }

    /// Position in `line` of the one without a reservation who is first by need, then wait; before all others one of a
    /// need that has less than its share.
    fn first(&self) -> Option<usize> {
        let open = |i: &usize| self.line[*i].until.is_none();
        let key = |i: &usize| {
            let need = self.standing(&self.line[*i]);
            (self.kept(need) < self.share(), need, Reverse(*i))
        };
        (0..self.line.len()).filter(open).max_by_key(key)
    }

    fn number(&self, node: NodeId) -> u32 {
        let Some(own) = self.line.iter().position(|w| w.ask.node == node) else { return 0 };
        let standing = self.standing(&self.line[own]);
        let ahead = self.line.iter().enumerate().filter(|(i, w)| {
            let its = self.standing(w);
            w.until.is_none() && (its > standing || its == standing && *i < own)
        });
        ahead.count() as u32 + 1
    }

    fn pass_time(&mut self, at: u64, out: &mut Vec<Effect>) {
        self.barred.retain(|_, until| *until > at);
        self.line.retain(|w| w.heard + 3 * INTERVAL_MS > at);
        let is_over = |w: &Entry| w.until.is_some_and(|until| until <= at);
        let (lapsed, rest): (Vec<Entry>, _) = std::mem::take(&mut self.line).into_iter().partition(is_over);
        self.line = rest;
        let again = |w: Entry| Entry { until: None, tried: w.tried || w.ask.wakeable, since: at, rises: 0, ..w };
        self.line.extend(lapsed.into_iter().map(again));
        self.raise(at);
        self.fill(at, out);
    }

    fn fill(&mut self, at: u64, out: &mut Vec<Effect>) {
        while self.used() < self.cap
            && let Some(first) = self.first()
        {
            let waiter = &mut self.line[first];
            let wakes = waiter.ask.wakeable && !waiter.tried;
            let woken = at.max(waiter.heard + 5_000) + 3_000;
            waiter.until = Some(if wakes { woken } else { at + INTERVAL_MS + INTERVAL_MS / 10 });
            if wakes {
                out.push(Effect::Wake { node: waiter.ask.node });
            }
        }
    }

    fn join(&mut self, at: u64, ask: &Ask) {
        match self.line.iter_mut().find(|w| w.ask.node == ask.node) {
            Some(w) => (w.ask, w.session, w.heard) = (ask.clone(), Some(ask.session), at), // and its age
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
            *held = Entry { since: held.since, ..entry(ask, at) };
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
            self.join_or_displace(at, ask, out);
        }
        if let Some(w) = self.line.iter_mut().find(|w| w.ask.node == node) {
            w.heard = at;
        }
    }

    fn join_or_displace(&mut self, at: u64, ask: &Ask, out: &mut Vec<Effect>) {
        let (node, session) = (ask.node, ask.session);
        self.join(at, ask);
        let lease = Lease::new(node, INTERVAL_MS, self.number(node));
        let Some(slot) = self.displaceable(at, node) else { return out.push(Effect::Deferred { session, lease }) };
        self.line.retain(|w| w.ask.node != node);
        self.polls.retain(|e| e.ask.node != node);
        self.displace(at, slot, out);
        self.slots.push(entry(ask, at));
        out.push(Effect::Admitted { session });
    }

    fn set_cap(&mut self, at: u64, cap: usize, out: &mut Vec<Effect>) {
        self.cap = cap;
        while self.used() > cap && self.reserved() > 0 {
            let reserved = (0..self.line.len()).filter(|i| self.line[*i].until.is_some());
            let last = reserved.min_by_key(|i| (self.standing(&self.line[*i]), Reverse(*i))).expect("one is reserved");
            self.line[last].until = None;
        }
        let mut staying = self.slots.clone();
        let count = |slots: &[Entry], need| slots.iter().filter(|e| self.standing(e) == need).count();
        while staying.len() > cap {
            let spare = |need: &Need| count(&staying, *need) > self.share();
            let lowest = Need::SLOTTED.into_iter().find(spare).expect("all shares fit");
            let latest = staying.iter().rposition(|e| self.standing(e) == lowest).expect("it was just seen");
            staying.remove(latest);
        }
        let staying: BTreeSet<NodeId> = staying.iter().map(|e| e.ask.node).collect();
        while let Some(slot) = self.slots.iter().position(|e| !staying.contains(&e.ask.node)) {
            self.displace(at, slot, out);
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
    Entry { ask: ask.clone(), session: Some(ask.session), heard: at, until: None, tried: false, since: at, rises: 0 }
}

fn by_need(count: impl Fn(Need) -> usize) -> ByNeed {
    let [ordinary, keep, urgent] = Need::SLOTTED.map(|need| count(need) as u32);
    ByNeed { ordinary, keep, urgent }
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
            reference: Reference {
                cap: slots as usize,
                slots: vec![],
                polls: vec![],
                line: vec![],
                demands: BTreeMap::new(),
                barred: BTreeMap::new(),
                rose_at: 0,
            },
            peak: 0,
            sessions: 100,
            links: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let event = match step.clone() {
            Step::Open { device, want, need, wakeable, old } => {
                self.sessions += 1;
                let ((newest, newest_attachment), _) = self.links.get(&device).copied().unwrap_or_default();
                let attachment = if old { newest_attachment } else { self.sessions };
                if !old {
                    self.links.insert(device, ((self.sessions, attachment), newest));
                }
                let key = AttachmentKey { epoch: 1, attachment };
                Event::Ask(Ask { key, need, wakeable, ..ask(device, self.sessions, want) })
            }
            Step::Again { device, want, need, wakeable } => {
                let Some(((session, attachment), _)) = self.links.get(&device).copied() else { return Ok(()) };
                let key = AttachmentKey { epoch: 1, attachment };
                Event::Ask(Ask { key, need, wakeable, ..ask(device, session, want) })
            }
            Step::End { device, former } => {
                let Some(((newest, _), before)) = self.links.get(&device).copied() else { return Ok(()) };
                Event::Gone { node: node(device), session: if former { before } else { newest } }
            }
            Step::Need { device, need } => Event::Need { node: node(device), need },
            Step::Demands(list) => {
                let of = |(device, urgent, in_progress)| (node(device), Demand { urgent, in_progress });
                Event::Demands(list.into_iter().map(of).collect())
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
            Event::Need { node, need } => self.reference.set_need(*node, *need, &mut expected),
            Event::Demands(demands) => self.reference.demands.clone_from(demands),
            Event::SetCap { cap } => self.reference.set_cap(at, usize::from(cap.get()), &mut expected),
            _ => {}
        }
        self.reference.raise(at);
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
            held_by: by_need(|need| reference.holders(need)),
            waiting_by: by_need(|need| reference.waiters(need)),
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
    fn adm_1_adm_2_adm_3_adm_5_adm_6_any_sequence_does_what_the_reference_does(
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
