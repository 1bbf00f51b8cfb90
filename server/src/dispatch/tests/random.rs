//! Any order of issue, cancel, links, moves, answers and restarts: what the server concluded, no device can start.

use super::{
    steering::{CANCEL_ORDER, cancel_result},
    *,
};
use branchline_protocol::job::cancel;
use proptest::prelude::*;
use std::collections::BTreeSet;

const DEVICES: [u128; 3] = [1, 2, 3];
const RELAYS: [u128; 2] = [100, 101];

#[derive(Clone, Debug)]
enum Step {
    Cancel,
    Here(u128),
    Gone(u128),
    Moved(u128, u128),
    /// A child acknowledges what it was sent.
    Take(u128),
    /// A relay hands on what it holds for a device; the device journals it, or closes it if it was cancelled first.
    Pass(u128, u128),
    /// A relay gives back what it never handed on.
    RelayBack(u128, u128),
    /// A device that did not journal the order closes it as late and says so.
    Close(u128),
    /// A device tells what the cancel, which it has, found.
    Answer(u128),
    Result(u128),
    Late,
    Tick,
    Hold,
    Flush,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let device = || prop::sample::select(DEVICES.to_vec());
    let relay = || prop::sample::select(RELAYS.to_vec());
    let child = || prop_oneof![device(), relay()];
    prop_oneof![
        2 => Just(Step::Cancel),
        6 => child().prop_map(Step::Here),
        3 => child().prop_map(Step::Gone),
        6 => (relay(), device()).prop_map(|(r, d)| Step::Moved(r, d)),
        5 => child().prop_map(Step::Take),
        3 => (relay(), device()).prop_map(|(r, d)| Step::Pass(r, d)),
        4 => (relay(), device()).prop_map(|(r, d)| Step::RelayBack(r, d)),
        3 => device().prop_map(Step::Close),
        3 => device().prop_map(Step::Answer),
        1 => device().prop_map(Step::Result),
        1 => Just(Step::Late),
        3 => Just(Step::Tick),
        2 => Just(Step::Hold),
        4 => Just(Step::Flush),
        2 => Just(Step::Restart),
    ]
}

/// Everybody below: who has a copy of the order and what became of it.
#[derive(Default)]
struct World {
    links: BTreeMap<u128, Arc<Child>>,
    sessions: u64,
    pending: BTreeSet<u128>,
    journalled: BTreeSet<u128>,
    closed: BTreeSet<u128>,
    told: BTreeSet<u128>,
    /// Devices that have the cancel.
    cancels: BTreeSet<u128>,
    answered: BTreeSet<u128>,
    held: BTreeSet<(u128, u128)>,
    passed: BTreeSet<(u128, u128)>,
    given_back: BTreeSet<(u128, u128)>,
    unacknowledged: BTreeMap<u128, BTreeSet<(OrderNumber, u128)>>,
}

impl World {
    fn see(&mut self, effects: &[Effect]) {
        for effect in effects {
            let Effect::Send(child, session, _, Message::Orders(list)) = effect else { continue };
            let child = child.0.as_u128();
            assert!(self.links.get(&child).is_none_or(|link| link.session == *session));
            for message in list {
                let payload: Payload = rmp_serde::from_slice(&message.envelope.payload).unwrap();
                for (_, leaf) in &message.proof.leaves {
                    let device = leaf.device.0.as_u128();
                    self.unacknowledged.entry(child).or_default().insert((payload.number, device));
                    match (payload.number == ORDER, RELAYS.contains(&child)) {
                        (true, true) if !self.given_back.contains(&(child, device)) => {
                            self.held.insert((child, device));
                        }
                        (true, false) => self.arrive(device),
                        (false, false) => _ = self.cancels.insert(device),
                        _ => {}
                    }
                }
            }
        }
    }

    fn arrive(&mut self, device: u128) {
        if !self.journalled.contains(&device) && !self.closed.contains(&device) {
            self.pending.insert(device);
        }
    }

    fn may_start(&self, device: u128) -> bool {
        let held = RELAYS.iter().any(|r| self.held.contains(&(*r, device)) && !self.given_back.contains(&(*r, device)));
        self.journalled.contains(&device) || !self.closed.contains(&device) && (self.pending.contains(&device) || held)
    }

    fn link_of(&self, device: u128) -> Option<Arc<Child>> {
        self.links.get(&device).or_else(|| RELAYS.iter().find_map(|r| self.links.get(r))).cloned()
    }

    fn fresh(&mut self, mut run: Run) -> Message {
        self.sessions += 1;
        run.stream.incarnation = self.sessions;
        Message::Records(vec![run])
    }
}

fn carry_out(bench: &mut Bench, world: &mut World, step: Step) -> Vec<Effect> {
    let facts = |by: u128, device: u128| {
        let facts = Facts { facts: vec![(ORDER, Fact::GivenBack, vec![node(device)])] };
        spooled(by, vec![(class::FACTS, rmp_serde::to_vec(&facts).unwrap())])
    };
    match step {
        Step::Cancel if bench.core.cancel_plan(&tenant(), JOB).is_some() => {
            let steered = bench.core.tenant(&tenant()).unwrap().orders.contains_key(&CANCEL_ORDER);
            let plan = bench.core.cancel_plan(&tenant(), JOB).unwrap();
            // One steering order is enough for these tests: its number is fixed.
            if steered && !plan.steer.is_empty() { Vec::new() } else { bench.cancel().0 }
        }
        Step::Here(n) => {
            world.sessions += 1;
            let link = child(n, world.sessions);
            world.unacknowledged.remove(&n);
            world.links.insert(n, link.clone());
            bench.feed(Event::Up(link))
        }
        Step::Gone(n) => {
            let gone = world.links.remove(&n);
            gone.map(|link| bench.feed(Event::Gone(link, LinkEnd::Silent))).unwrap_or_default()
        }
        Step::Moved(relay, device) => {
            let Some(link) = world.links.get(&relay).cloned() else { return Vec::new() };
            world.sessions += 1;
            world.links.remove(&device);
            let entry = below(device, world.sessions);
            bench.said(&link, Message::Presence { snapshot: false, entries: vec![entry] })
        }
        Step::Take(n) => {
            let Some(link) = world.links.get(&n).cloned() else { return Vec::new() };
            let mut taken: BTreeMap<OrderNumber, Vec<NodeId>> = BTreeMap::new();
            for (order, device) in world.unacknowledged.remove(&n).unwrap_or_default() {
                taken.entry(order).or_default().push(node(device));
                if order == ORDER && n == device && world.pending.remove(&device) {
                    world.journalled.insert(device);
                }
            }
            bench.said(&link, Message::Taken(taken.into_iter().collect()))
        }
        Step::Pass(relay, device)
            if world.held.contains(&(relay, device)) && !world.given_back.contains(&(relay, device)) =>
        {
            world.passed.insert((relay, device));
            if !world.closed.contains(&device) {
                world.journalled.insert(device);
            }
            Vec::new()
        }
        Step::RelayBack(relay, device) if !world.passed.contains(&(relay, device)) => {
            let Some(link) = world.links.get(&relay).cloned() else { return Vec::new() };
            world.given_back.insert((relay, device));
            let message = world.fresh(facts(relay, device));
            bench.said(&link, message)
        }
        Step::Close(device) if !world.journalled.contains(&device) => {
            let Some(link) = world.link_of(device) else { return Vec::new() };
            world.pending.remove(&device);
            world.closed.insert(device);
            let message = world.fresh(facts(device, device));
            bench.said(&link, message)
        }
        Step::Answer(device) if world.cancels.contains(&device) && !world.answered.contains(&device) => {
            let Some(link) = world.link_of(device) else { return Vec::new() };
            world.answered.insert(device);
            let word = match world.journalled.contains(&device) {
                true => cancel::RUNNING,
                false => cancel::CANCELLED,
            };
            if word == cancel::CANCELLED {
                world.pending.remove(&device);
                world.closed.insert(device);
            }
            let message = world.fresh(spooled(device, vec![(class::RESULT, cancel_result(word))]));
            bench.said(&link, message)
        }
        Step::Result(device) if world.journalled.contains(&device) && !world.told.contains(&device) => {
            let Some(link) = world.link_of(device) else { return Vec::new() };
            world.told.insert(device);
            let message = world.fresh(spooled(device, vec![(class::RESULT, result(End::Succeeded))]));
            bench.said(&link, message)
        }
        Step::Cancel | Step::Pass(..) | Step::RelayBack(..) | Step::Close(_) | Step::Answer(_) | Step::Result(_) => {
            Vec::new()
        }
        Step::Late => {
            bench.clock = bench.clock.max(1_000);
            Vec::new()
        }
        Step::Tick => bench.feed(Event::Tick),
        Step::Hold => {
            bench.hold = true;
            Vec::new()
        }
        Step::Flush => bench.flush(),
        Step::Restart => {
            bench.restart();
            bench.hold = false;
            world.links.clear();
            Vec::new()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn job_14_job_4_no_device_can_start_what_is_expired_or_cancelled(steps in prop::collection::vec(step(), 1..70)) {
        let mut bench = Bench::new();
        let mut world = World::default();
        let effects = bench.issue(&DEVICES);
        world.see(&effects);
        for step in steps {
            let told = format!("{step:?}");
            let effects = carry_out(&mut bench, &mut world, step);
            world.see(&effects);
            for device in DEVICES {
                let Some((state, reason)) = bench.last(device) else { continue };
                let concluded = matches!(state, State::Expired | State::Cancelled);
                prop_assert!(!concluded || !world.may_start(device), "{device} is {state} {reason:?} ({told})");
            }
        }
    }
}
