//! Whom a selector and words mean.

use super::*;
use crate::dispatch::{chosen, counts, device};

fn named(n: u128, name: &str) -> Event {
    Event::Node(Box::new(NodeRow { name: name.into(), site: "osaka".into(), ..row(n) }))
}

#[test]
fn words_mean_an_id_or_the_name_of_whom_is_there_whatever_its_case() {
    let mut bench = Bench::new();
    let revoked = NodeRow { revoked_at: Some(Millis(1)), name: "pc".into(), ..row(11) };
    bench.feed(Event::Node(Box::new(revoked)));
    for (n, name) in [(12, "PC"), (13, "Bücher-PC"), (14, &node(12).to_string())] {
        bench.feed(named(n, name));
    }
    let nodes = &bench.core.tenant(&tenant()).unwrap().nodes;
    let found = |words: &str| device(nodes, words).map(|row| row.id);
    assert_eq!(found("pc"), Some(node(12)), "a revoked device's name means its successor");
    assert_eq!(found(&node(11).to_string()), Some(node(11)), "its id means itself");
    assert_eq!(found("BÜCHER-pc"), Some(node(13)));
    assert_eq!(found(&node(12).to_string()), Some(node(12)), "an id goes before a name");
    for words in ["", "p", "n100", &node(100).to_string(), &node(77).to_string()] {
        assert_eq!(found(words), None, "{words:?}");
    }
}

#[test]
fn a_selector_means_the_same_in_a_list_in_a_count_and_in_a_job() {
    let mut bench = Bench::new();
    for (n, name) in [(21, "b"), (22, "a"), (23, "C")] {
        bench.feed(named(n, name));
    }
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    bench.said(&relay, presence(vec![below(21, 1), below(23, 1)]));
    let state = bench.core.tenant(&tenant()).unwrap();
    let check = |on: &str, expected: &[u128], online: u64| {
        let on = on.parse().unwrap();
        assert_eq!(chosen(state, &on), expected.iter().copied().map(node).collect::<Vec<_>>());
        let counts = counts(state, &on, Millis(bench.clock as i64));
        assert_eq!((counts["online"], counts.values().sum::<u64>()), (online, expected.len() as u64));
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), ["offline", "online", "suspended", "unknown"]);
    };
    check("site:osaka", &[23, 22, 21], 2);
    check("relay:N100", &[23, 21], 2);
    check(&format!("relay:{}", node(100)), &[23, 21], 2);
    check("site:osaka and not relay:n100", &[22], 0);
    check("device:c or device:A", &[23, 22], 1);
    check("site:kyoto", &[], 0);
}
