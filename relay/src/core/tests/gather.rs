//! When inventory goes up (RLY-4).

use super::*;

/// A device's report of so many bytes.
fn report(device: u128, bytes: usize) -> Run {
    let mut spool = Spool::new(node(device), 1, 77);
    let mut batch = Batch::new();
    let mark = spool.append(Millis(5), Lane::Inventory, class::INVENTORY, None, vec![7; bytes].into(), &mut batch);
    spool.committed(&mark);
    spool.link_up(RELAY, 1);
    spool.take().unwrap().1.remove(0)
}

/// Devices with their reports, brought in this order; how many went up after each.
fn brought(bench: &mut Bench, devices: std::ops::Range<u128>, bytes: usize) -> Vec<usize> {
    let bring = |n: u128| {
        let agent = child(n, Role::Agent, n as u64);
        bench.child_up(&agent);
        records_up(&bench.feed(child_says(&agent, Message::Records(vec![report(n, bytes)])))).len()
    };
    devices.map(bring).collect()
}

fn acked(bench: &mut Bench, devices: std::ops::Range<u128>, bytes: usize) -> usize {
    let ack = |n| Ack { stream: report(n, bytes).stream, stored: 1, settled: 1, refused: vec![] };
    records_up(&bench.feed(parent_says(Message::Acks(devices.map(ack).collect())))).len()
}

#[test]
fn rly_4_a_few_reports_wait_for_a_second_and_go_up_together() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.clock = 5_000;
    bench.feed(Event::Tick);
    assert_eq!(brought(&mut bench, 1..11, 400), [0; 10]);
    bench.clock = 5_900;
    assert_eq!(records_up(&bench.feed(Event::Tick)).len(), 0);
    bench.clock = 6_001;
    assert_eq!(records_up(&bench.feed(Event::Tick)).len(), 10);
}

#[test]
fn rly_4_many_reports_go_up_as_soon_as_they_fill_a_message_and_the_rest_behind_them() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.clock = 5_000;
    bench.feed(Event::Tick);
    // The fifth fills a message, and while it is being written the four before it go; what comes while they are under way gathers.
    assert_eq!(brought(&mut bench, 1..8, 11_000), [0, 0, 0, 0, 4, 0, 0]);
    assert_eq!(acked(&mut bench, 1..5, 11_000), 3, "no full message, but the end of this burst");
    assert_eq!(acked(&mut bench, 5..8, 11_000), 0);
    // Nothing is left: the next ones gather again.
    assert_eq!(brought(&mut bench, 8..10, 11_000), [0, 0]);
}
