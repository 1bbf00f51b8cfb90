//! Orders that the server takes back: in its own signed words only (DESIGN 5).

use super::*;
use branchline_protocol::order::Withdrawal;

const NUMBER: OrderNumber = OrderNumber { term: 1, number: 1 };

fn withdrawal(devices: &[u128], signer: &Signer) -> Envelope {
    let devices = devices.iter().map(|d| node(*d)).collect();
    Withdrawal { tenant: tenant(), target: NUMBER, devices, until: Millis(2_000_000) }.seal(signer)
}

fn withdrawn(effects: &[Effect]) -> Vec<(OrderNumber, Vec<NodeId>)> {
    let lists = effects.iter().filter_map(|e| match e {
        Effect::ToParent(_, Message::Withdrawn(list)) => Some(list.clone()),
        _ => None,
    });
    lists.flatten().collect()
}

fn handed_down(effects: &[Effect], child: u128) -> usize {
    let to = |e: &&Effect| matches!(e, Effect::ToChild(n, _, _, Message::Withdraw(list)) if *n == node(child) && list.len() == 1);
    effects.iter().filter(to).count()
}

#[test]
fn a_withdrawn_order_goes_once_it_is_on_disk_and_is_not_taken_when_it_comes_again() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.feed(parent_says(Message::Orders(vec![order(1, &[1, 2], &server_key())])));
    bench.hold = true;
    let seen = bench.feed(parent_says(Message::Withdraw(vec![withdrawal(&[1], &server_key())])));
    assert!(withdrawn(&seen).is_empty(), "nothing is said before it is on disk");
    assert_eq!(withdrawn(&bench.flush()), [(NUMBER, vec![node(1)])]);
    bench.crash();
    bench.parent_up(1);
    assert!(orders_to(&bench.child_up(&child(1, Role::Agent, 1)), 1).is_empty());
    assert_eq!(orders_to(&bench.child_up(&child(2, Role::Agent, 2)), 2), [1], "the other device's stays");
    let seen = bench.feed(parent_says(Message::Orders(vec![order(1, &[1, 2], &server_key())])));
    assert!(orders_to(&seen, 1).is_empty(), "its tombstone outlives the crash");
}

#[test]
fn a_withdrawal_that_comes_before_its_order_keeps_it_from_the_device() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.child_up(&child(1, Role::Agent, 1));
    bench.feed(parent_says(Message::Withdraw(vec![withdrawal(&[1], &server_key())])));
    let seen = bench.feed(parent_says(Message::Orders(vec![order(1, &[1], &server_key())])));
    assert!(orders_to(&seen, 1).is_empty());
    assert_eq!(bench.core.ledger().open_rows(), 0);
}

#[test]
fn a_relay_above_that_lies_lets_nobody_forget_an_order() {
    let thief = Signer::from_seed(&[66; 32]);
    let mut altered = withdrawal(&[1], &server_key());
    altered.payload = withdrawal(&[2], &server_key()).payload;
    let other =
        Withdrawal { tenant: "other".parse().unwrap(), target: NUMBER, devices: vec![node(1)], until: Millis(9) };
    for (what, bad) in [
        ("forged", withdrawal(&[1, 2], &thief)),
        ("altered", altered),
        ("of another tenant", other.seal(&server_key())),
    ] {
        let mut bench = Bench::new();
        bench.parent_up(1);
        bench.feed(parent_says(Message::Orders(vec![order(1, &[1, 2], &server_key())])));
        let seen = bench.feed(parent_says(Message::Withdraw(vec![bad])));
        assert!(withdrawn(&seen).is_empty(), "{what}");
        assert!(seen.iter().any(|e| matches!(e, Effect::Refused("bad_signature"))), "{what}");
        for n in [1, 2] {
            assert_eq!(orders_to(&bench.child_up(&child(n, Role::Agent, n as u64)), n), [1], "{what}: device {n}");
        }
    }
}

#[test]
fn a_withdrawal_is_handed_down_as_it_came_to_relays_that_may_have_the_order_and_to_no_device() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let (nested, stranger) = (child(7, Role::Relay, 1), child(8, Role::Relay, 2));
    bench.child_up(&nested);
    bench.child_up(&stranger);
    bench.child_up(&child(2, Role::Agent, 3));
    let entry = PresenceEntry {
        node: node(1),
        role: Role::Agent,
        key: AttachmentKey { epoch: 1, attachment: 1 },
        via: vec![],
        reach: Reach::Persistent,
        last_contact: Millis(1),
        next_contact: None,
        capabilities: [].into(),
        figures: None,
        settings: (0, 0),
        poll_interval_ms: None,
        slot: None,
    };
    bench.feed(child_says(&nested, Message::Presence { snapshot: false, entries: vec![entry] }));
    bench.feed(parent_says(Message::Orders(vec![order(1, &[1, 2], &server_key())])));
    let seen = bench.feed(parent_says(Message::Withdraw(vec![withdrawal(&[1, 2], &server_key())])));
    assert_eq!([7, 8, 2].map(|n| handed_down(&seen, n)), [1, 0, 0]);
    assert_eq!(bench.core.ledger().open_rows(), 0);
}
