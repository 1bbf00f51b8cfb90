//! What a relay tells the server of orders that it has.

use super::*;
use branchline_node::store::Table;
use branchline_protocol::record::Record;

impl Bench {
    /// What of it is in the spool.
    fn facts(&self) -> Vec<Facts> {
        let mut records: Vec<Record> = Vec::new();
        self.store.scan_all(Table::Spool, |_, value| records.push(rmp_serde::from_slice(&value).unwrap())).unwrap();
        let facts = records.iter().filter(|record| record.class == class::FACTS);
        facts.map(|record| rmp_serde::from_slice(&record.body).unwrap()).collect()
    }
}

#[test]
fn a_fact_that_the_result_overtook_is_not_told() {
    let mut bench = Bench::new();
    bench.parent_up(1);
    let (fast, slow) = (child(1, Role::Agent, 1), child(2, Role::Agent, 2));
    bench.child_up(&fast);
    bench.child_up(&slow);
    bench.feed(parent_says(Message::Orders(vec![order(1, &[1, 2], &server_key())])));
    let number = OrderNumber { term: 1, number: 1 };
    for agent in [&fast, &slow] {
        bench.feed(child_says(agent, Message::Taken(vec![(number, vec![agent.node])])));
    }
    bench.feed(child_says(&fast, Message::Records(vec![results(1, 1, "out")])));
    bench.feed(Event::Tick);
    let facts = bench.facts();
    assert_eq!(facts, [Facts { facts: vec![(number, Fact::HandedOver, vec![node(2)])] }]);
}

#[test]
fn a_relay_below_a_relay_tells_that_it_holds_an_order_and_one_below_the_server_says_taken() {
    let number = OrderNumber { term: 1, number: 1 };
    let upper = (node(77), "osaka".to_owned());
    for (nested, told) in [(false, vec![]), (true, vec![(number, Fact::Held, vec![node(1), node(2)])])] {
        let mut bench = Bench::new();
        bench.parent_up(1);
        if nested {
            bench.feed(parent_says(Message::Ancestors(vec![(PARENT, "hq".into()), upper.clone()])));
        }
        bench.feed(parent_says(Message::Orders(vec![order(1, &[1, 2], &server_key())])));
        bench.feed(Event::Tick);
        // The same order again is no news.
        bench.feed(parent_says(Message::Orders(vec![order(1, &[1, 2], &server_key())])));
        bench.feed(Event::Tick);
        let facts: Vec<_> = bench.facts().into_iter().flat_map(|facts| facts.facts).collect();
        assert_eq!(facts, told, "nested: {nested}");
    }
}
