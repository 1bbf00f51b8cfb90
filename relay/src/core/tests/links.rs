//! What the links below and above are told.

use super::*;

#[test]
fn enr_9_a_revocation_list_closes_the_childs_link_once_it_is_on_disk() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.child_up(&child(1, Role::Agent, 1));
    bench.child_up(&child(2, Role::Agent, 2));
    let list = Revocations {
        tenant: tenant(),
        term: 1,
        version: 2,
        revoked: vec![(node(1), 1)],
        suspended: vec![],
        raised: vec![],
        keep_connection: vec![],
    };
    let seen = bench.feed(parent_says(Message::Document(Kind::Revocations, list.seal(&server_key()))));
    let refused: Vec<NodeId> = seen
        .iter()
        .filter_map(|e| match e {
            Effect::RefuseChild(n, _, r) if r.code == "revoked" => Some(*n),
            _ => None,
        })
        .collect();
    assert_eq!(refused, [node(1)]);
    bench.crash();
    assert!(bench.core.shelf().revocations().covers(node(1), 1), "remembered without any parent");
    let older = Revocations { version: 1, revoked: vec![], ..list };
    bench.feed(parent_says(Message::Document(Kind::Revocations, older.seal(&server_key()))));
    assert!(bench.core.shelf().revocations().covers(node(1), 1), "an older list changes nothing");
}

#[test]
fn top_20_a_relay_that_finds_itself_above_itself_lets_go() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let chain = vec![(PARENT, "hq".into()), (RELAY, "osaka".into()), (node(7), "kobe".into())];
    let seen = bench.feed(parent_says(Message::Ancestors(chain)));
    assert!(seen.iter().any(|e| matches!(e, Effect::CloseParent("loop"))));
}

#[test]
fn a_new_chain_above_is_told_to_child_relays() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    bench.child_up(&child(7, Role::Relay, 1));
    bench.child_up(&child(8, Role::Agent, 2));
    let chain = vec![(node(900), "hq".to_string()), (PARENT, "tokyo".to_string())];
    let seen = bench.feed(parent_says(Message::Ancestors(chain)));
    let told: Vec<NodeId> = seen
        .iter()
        .filter_map(|e| match e {
            Effect::ToChild(n, _, _, Message::Ancestors(c)) if c.len() == 3 => Some(*n),
            _ => None,
        })
        .collect();
    assert_eq!(told, [node(7)]);
}

#[test]
fn a_child_that_left_without_acknowledging_is_offered_the_order_again() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let first = child(1, Role::Agent, 1);
    bench.child_up(&first);
    bench.feed(parent_says(Message::Orders(vec![order(1, &[1], &server_key())])));
    bench.feed(Event::ChildGone(first, LinkEnd::Silent));
    let seen = bench.child_up(&child(1, Role::Agent, 2));
    assert_eq!(orders_to(&seen, 1), [1]);
}
