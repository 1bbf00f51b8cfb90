//! Processes that die exactly at each durable step: just before it is durable, and just after, before anybody is told.

use super::*;
use branchline_node::random::SeededRandom;
use branchline_protocol::time::Millis;
use branchline_tests::{
    chaos::{Fault, Ordered, Step, What, Work, rest, steps},
    office::until,
};
use std::collections::BTreeMap;

/// A crash point: its name, the role that dies there, and the events that lead to it, in order.
type Point = (&'static str, &'static str, &'static [&'static str]);

/// One at least on each side of every line of "what is durable when" (ARCHITECTURE).
const POINTS: [Point; 21] = [
    ("job issued, not durable", "server", &["issued", "commit begins"]),
    ("job durable, not answered", "server", &["issued", "commit durable"]),
    ("order to be sent", "server", &["sent"]),
    ("results to be settled", "server", &["ended", "commit begins"]),
    ("results settled, not told", "server", &["ended", "commit durable"]),
    ("order at the relay, not durable", "relay", &["order held", "commit begins"]),
    ("order durable at the relay, not taken", "relay", &["order held", "commit durable"]),
    ("order to be handed on", "relay", &["handed on"]),
    ("result at the relay, not durable", "relay", &["result carried", "commit begins"]),
    ("result durable at the relay, not stored", "relay", &["result carried", "commit durable"]),
    ("settled at the relay, not durable", "relay", &["acknowledged", "commit begins"]),
    ("settled at the relay, not told below", "relay", &["result carried", "acknowledged", "commit durable"]),
    ("attachment durable, not greeted", "agent", &["greets"]),
    ("order durable at the agent, not taken", "agent", &["order what=taken"]),
    ("intent durable, nothing started", "agent", &["job starts"]),
    ("started", "agent", &["job started"]),
    ("over, result not durable", "agent", &["job over", "commit begins"]),
    ("result durable, not sent", "agent", &["job over", "commit durable"]),
    ("result durable, noted", "agent", &["order what=succeeded"]),
    ("settled at the agent, not durable", "agent", &["job over", "acknowledged", "commit begins"]),
    ("settled and deleted at the agent", "agent", &["job over", "acknowledged", "commit durable"]),
];

/// Deaths at each point, at least.
const EACH: usize = 5;
/// A point that a round did not come by is tried again in the next, so often at most.
const ROUNDS_MAX: usize = 60;

#[test]
fn a_process_that_dies_at_any_durable_step_loses_nothing_and_doubles_nothing() {
    let _alone = alone();
    let agents = [("osaka", 5, "osaka"), ("namba", 3, "namba")];
    let mut plant = Plant::start(exe(), &topology(&[("osaka", "dmz"), ("namba", "osaka")], &agents));
    let effects = effects(&plant);
    let mut died: BTreeMap<&str, usize> = POINTS.iter().map(|(name, ..)| (*name, 0)).collect();
    let mut done = Done::default();
    let random = SeededRandom::shared(1);
    let least = EACH * times() as usize;
    for round in 0..ROUNDS_MAX * times() as usize {
        // One point for each node, those that are furthest behind first.
        let mut left: Vec<&Point> = POINTS.iter().filter(|(name, ..)| died[name] < least).collect();
        if left.is_empty() {
            break;
        }
        left.sort_by_key(|(name, ..)| died[name]);
        let mut armed: Vec<(String, &Point, u32)> = Vec::new();
        for role in ["server", "relay", "agent"] {
            let nodes = plant.of(role).map(|n| n.name.clone());
            for (node, point) in nodes.zip(left.iter().filter(|(_, of, _)| *of == role)) {
                let starts = plant.process(&node).history().0;
                std::fs::write(steps::order_of(&plant.config(&node)), point.2.join("\n")).expect("an order to crash");
                armed.push((node, point, starts));
            }
        }
        let key = format!("round-{round}");
        let work = Work::plain(&key, "all", random.up_to(300), random.up_to(300));
        // The server may die before it answers.
        let id =
            plant.tell("/jobs", &work.body(&effects)).ok().and_then(|(_, job)| job["id"].as_str().map(String::from));
        done.ordered.push(Ordered { key, id });
        let begun = Millis(0);
        await_round(&plant, &done, &armed);
        for (node, (name, ..), starts) in &armed {
            // One that the round did not come by is withdrawn.
            let withdrawn = std::fs::remove_file(steps::order_of(&plant.config(node))).is_ok();
            let (now, ends) = plant.process(node).history();
            let fell = !withdrawn && now > *starts;
            *died.get_mut(name).expect("a point of the list") += usize::from(fell);
            if let Some(end) = ends.last().filter(|_| fell) {
                assert_eq!(end.signal, Some(libc::SIGKILL), "{node} at {name}: {end:?}");
                let step = Step { at_ms: 0, node: node.clone(), what: What::Kill };
                done.faults.push(Fault { step, at: begun, until: end.at, hit: true });
            }
        }
    }
    let enrolled = (0..least).map(|n| enrolment(&mut plant, n)).count();
    died.insert("enrolled, not answered", enrolled);
    println!("crash points: {died:?}");
    plant.all_online(240);
    let pairs = accounts(&mut plant, &done, &effects, "named crash points").pairs.len();
    println!("crash points: {} deaths over {pairs} pairs: 0 lost, 0 doubled", died.values().sum::<usize>());
    assert!(died.values().all(|n| *n >= least), "{died:?}");
}

/// The server dies once a new device is enrolled and before it is told so: it is the same device that comes then.
fn enrolment(plant: &mut Plant, n: usize) {
    let before = plant.process("hq").history().1.len();
    let name = format!("new-{n}");
    let order = steps::order_of(&plant.config("hq"));
    std::fs::write(order, "enrolment outcome=Enrolled").expect("an order to crash");
    plant.add_agent(&name, "osaka-01");
    let end = plant.process("hq").end(before, 120).expect("the server dies at the enrolment");
    assert_eq!(end.signal, Some(libc::SIGKILL), "{end:?}");
    plant.enrolled(&name, 240);
}

/// Waits until every process that was to die has, and everything has come to its end.
fn await_round(plant: &Plant, done: &Done, armed: &[(String, &Point, u32)]) {
    rest(plant, done, 240);
    plant.all_online(240);
    // An agent hears last that its result is settled.
    let fired = |node: &String| !steps::order_of(&plant.config(node)).exists();
    let clock = branchline_node::time::SystemClock::shared();
    let begun = clock.mono();
    while !armed.iter().all(|(node, ..)| fired(node)) && clock.mono().since(begun) < 1_500 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    until("who died is there again", 120, || {
        let away: Vec<&String> =
            armed.iter().map(|(node, ..)| node).filter(|n| plant.process(n).pid().is_none()).collect();
        if away.is_empty() { Ok(()) } else { Err(format!("{away:?}")) }
    });
}
