use super::*;
use branchline_protocol::time::Millis;
use std::collections::BTreeMap;

fn at(ms: u64) -> Now {
    Now { mono: Mono(ms), wall: Millis(ms as i64), node: Millis(ms as i64) }
}

fn node(n: u128) -> NodeId {
    NodeId(uuid::Uuid::from_u128(n))
}

fn relay(n: u128, near: bool) -> Upstream {
    let direct = vec![format!("10.0.0.{n}:13000")];
    Upstream { id: node(n), role: Role::Relay, name: format!("r{n}"), direct, gateways: vec![], near }
}

fn server() -> Upstream {
    Upstream {
        id: node(9),
        role: Role::Server,
        name: "hq".into(),
        direct: vec!["10.0.0.9:13000".into(), "10.0.1.9:13000".into()],
        gateways: vec!["https://gw1".into(), "https://gw2".into()],
        near: false,
    }
}

fn addresses(ways: &[Way]) -> Vec<&str> {
    ways.iter()
        .map(|way| match &way.route {
            Route::Direct(a) | Route::Gateway(a) => a.as_str(),
        })
        .collect()
}

fn path(upstreams: &[Upstream], reach: Reach) -> Path {
    let mut path = Path::new(node(100));
    path.configure(at(0), upstreams, reach, 1_000, 500, 0);
    path
}

#[test]
fn top_4_direct_to_every_listed_parent_comes_before_any_gateway() {
    let list = [server(), relay(1, false)];
    let all = path(&list, Reach::Any);
    let wanted = ["10.0.0.9:13000", "10.0.1.9:13000", "10.0.0.1:13000", "https://gw1", "https://gw2"];
    assert_eq!(addresses(all.ways()), wanted);
    assert!(all.ways().iter().all(|way| [node(9), node(1)].contains(&way.parent)), "listed parents alone");
}

#[test]
fn top_3_switched_off_there_is_no_way_through_a_gateway() {
    let list = [relay(1, true), server()];
    assert_eq!(addresses(path(&list, Reach::Direct).ways()), ["10.0.0.1:13000", "10.0.0.9:13000", "10.0.1.9:13000"]);
    assert_eq!(addresses(path(&list, Reach::Gateway).ways()), ["https://gw1", "https://gw2"]);
    assert!(path(&[relay(1, true)], Reach::Gateway).ways().is_empty(), "a relay is behind no gateway");
}

#[test]
fn top_4_a_held_link_by_the_gateway_probes_direct_between_half_and_the_whole_of_the_interval() {
    for (chance, due) in [(0, 500), (500, 1_000), (501, 500)] {
        let mut path = path(&[server()], Reach::Any);
        let gateway = path.ways()[2].clone();
        path.up(at(0), &gateway, true, chance);
        assert_eq!(path.next_probe(), Some(Mono(due)));
        assert_eq!(addresses(&path.better(at(due))), ["10.0.0.9:13000", "10.0.1.9:13000"]);
        path.probed_in_vain(at(due), 0);
        assert_eq!(path.next_probe(), Some(Mono(due + 500)), "an impostor or silence there: again later");
        path.down();
        assert_eq!((path.next_probe(), path.better(at(due)).len()), (None, 0));
    }
}

#[test]
fn top_4_the_best_way_and_a_poll_need_no_probe() {
    let mut path = path(&[server()], Reach::Any);
    let (direct, other, gateway) = (path.ways()[0].clone(), path.ways()[1].clone(), path.ways()[3].clone());
    for (way, held) in [(&direct, true), (&other, true), (&gateway, false)] {
        path.up(at(0), way, held, 7);
        assert_eq!(
            (path.next_probe(), path.better(at(0)).len()),
            (None, 0),
            "{way:?}: addresses of one place are equals"
        );
    }
}

#[test]
fn rly_11_whose_link_broke_waits_for_three_dials_where_its_parents_machine_refuses() {
    let mut path = path(&[relay(1, true), relay(2, false), server()], Reach::Any);
    let ways = path.ways().to_vec();
    let (home, other, server, last) = (&ways[0], &ways[1], &ways[2], &ways[3]);
    assert!(!path.waits_for(home), "it had no link anywhere");
    path.up(at(0), home, true, 0);
    path.down();
    assert!(!path.waits_for(home), "it gave its link up");
    path.up(at(0), home, false, 0);
    path.broke();
    assert!(!path.waits_for(home), "it was a poll");
    path.up(at(0), home, true, 0);
    path.broke();
    assert!(!path.waits_for(other), "it has no business there");
    let waits = [0; 4].map(|_| path.waits_for(home));
    assert_eq!(waits, [true, true, true, false]);
    // Two addresses of one parent are one place, and the dial goes on to the second.
    path.up(at(0), server, true, 0);
    path.broke();
    assert_eq!([path.waits_for(server), path.waits_for(last)], [false, true]);
    path.up(at(0), home, false, 0);
    assert!(!path.waits_for(last), "it was served elsewhere meanwhile");
}

#[test]
fn a_parent_that_said_no_is_not_probed_for_an_hour() {
    let mut path = path(&[relay(1, true), server()], Reach::Any);
    let (home, fallback) = (path.ways()[0].clone(), path.ways()[1].clone());
    path.refused(at(0), &home);
    path.up(at(0), &fallback, true, 0);
    assert!(path.next_probe().is_some(), "by then it may be open again");
    assert!(path.better(at(REFUSED_MS - 1)).is_empty());
    assert_eq!(path.better(at(REFUSED_MS)), std::slice::from_ref(&home));
    path.up(at(0), &home, true, 0);
    path.up(at(1), &fallback, true, 0);
    assert_eq!(path.better(at(2)), [home], "once it has said yes, the no is forgotten");
}

#[test]
fn only_listed_parents_are_parents_so_a_link_that_is_listed_no_more_is_moved() {
    let mut path = path(&[relay(1, true), server()], Reach::Direct);
    let home = path.ways()[0].clone();
    path.up(at(0), &home, true, 0);
    assert_eq!(path.next_probe(), None);
    path.configure(at(100), &[relay(1, true), server()], Reach::Direct, 1_000, 500, 499);
    assert_eq!(path.next_probe(), None, "the same list again");
    path.configure(at(100), &[server()], Reach::Direct, 1_000, 500, 499);
    assert_eq!(path.next_probe(), Some(Mono(599)), "within the spread");
    assert_eq!(addresses(&path.better(at(599))), ["10.0.0.9:13000", "10.0.1.9:13000"]);
    // Its address changed: what is held is not the listed way, though the parent is the same.
    path.configure(
        at(600),
        &[Upstream { direct: vec!["10.7.7.7:1".into()], ..relay(1, true) }],
        Reach::Direct,
        1_000,
        500,
        0,
    );
    assert_eq!(addresses(&path.better(at(600))), ["10.7.7.7:1"]);
}

#[test]
fn equals_are_shared_evenly_and_the_share_of_a_dead_one_goes_to_all_others() {
    let list: Vec<Upstream> = [relay(1, true), relay(2, true), relay(3, true), server()].into();
    let mut shares: BTreeMap<(NodeId, NodeId), usize> = BTreeMap::new();
    for n in 0..3_000 {
        let all = ways(node(1_000 + n), &list, Reach::Direct);
        assert_eq!(all[3].parent, node(9), "the server is the last resort");
        *shares.entry((all[0].parent, all[1].parent)).or_default() += 1;
        let again: Vec<Upstream> = [server(), relay(3, true), relay(1, true), relay(2, true)].into();
        assert_eq!(ways(node(1_000 + n), &again, Reach::Direct)[..3], all[..3], "whatever the list's order");
    }
    assert_eq!(shares.len(), 6);
    for ((first, second), count) in shares {
        assert!((400..=600).contains(&count), "{count} of 3,000 prefer {first}, then {second}; 500 are the mean");
    }
}
