//! Documents: verified, newer only, and what follows from them.

use super::*;
use crate::decide::Counted;
use branchline_protocol::{
    document::{Revocations, TimeStatement, UpstreamList},
    job::End,
};

pub(super) fn statement(version: u64, time: i64, order_floor: u64) -> TimeStatement {
    TimeStatement {
        tenant: tenant(),
        time: Millis(time),
        term: 1,
        version,
        order_floor,
        trust_version: 1,
        settings_version: 1,
        revocations_version: 1,
        restored_from: None,
    }
}

fn upstreams(version: u64, site: &str) -> UpstreamList {
    UpstreamList { tenant: tenant(), site: site.into(), term: 1, version, upstreams: vec![upstream("listed")] }
}

pub(super) fn revocations(version: u64, revoked: Vec<(NodeId, u32)>) -> Revocations {
    Revocations {
        tenant: tenant(),
        term: 1,
        version,
        revoked,
        suspended: vec![],
        raised: vec![],
        keep_connection: vec![],
    }
}

#[test]
fn adm_1_what_a_device_asks_for_is_what_the_list_says_and_else_what_it_is_configured_for() {
    let mut bench = Bench::running();
    let mut asked = |version, keep_connection| {
        let list = Revocations { keep_connection, ..revocations(version, vec![]) };
        bench.settle(document(&list, &server()));
        let effects = bench.settle(Event::Dialling { dial: version, parent: PARENT });
        let greeted = effects.iter().find_map(|e| if let Effect::Greet(_, g) = e { Some(g.contact) } else { None });
        greeted.expect("a greeting")
    };
    assert_eq!(asked(2, vec![(ME, false)]), Contact::Poll);
    assert_eq!(asked(3, vec![(ME, true)]), Contact::Persistent);
    assert_eq!(asked(4, vec![]), Contact::Persistent, "as it is configured");
    assert_eq!(asked(3, vec![(ME, false)]), Contact::Persistent, "an older list");
}

#[test]
fn only_newer_documents_of_the_right_signer_and_site_count() {
    let mut bench = Bench::running();
    assert_eq!(bench.core.documents().upstreams()[0].name, "bundle");
    let stranger = Signer::from_seed(&[66; 32]);
    assert!(
        bench.settle(document(&upstreams(5, "osaka"), &stranger)).contains(&Effect::Count(Counted::DocumentRefused))
    );
    bench.settle(document(&upstreams(5, "kyoto"), &server()));
    assert_eq!(bench.core.documents().upstreams()[0].name, "bundle");
    assert!(bench.event(document(&upstreams(5, "osaka"), &server())).is_empty(), "not before it is durable");
    assert!(bench.commit_all().contains(&Effect::Reconfigure));
    assert_eq!(bench.core.documents().upstreams()[0].name, "listed");
    for old in [4, 5] {
        assert!(!bench.settle(document(&upstreams(old, "osaka"), &server())).contains(&Effect::Reconfigure));
    }
    bench.crash();
    assert_eq!(bench.core.documents().upstreams()[0].name, "listed");
    assert_eq!(bench.core.documents().versions(), [(0, 0), (1, 1), (1, 5), (0, 0), (0, 0)]);
}

#[test]
fn a_new_trust_document_of_the_root_brings_new_keys_and_the_servers_own_does_not() {
    let mut bench = Bench::running();
    let next = Signer::from_seed(&[2; 32]);
    let newer = trust(2, std::slice::from_ref(&next));
    assert!(bench.settle(document(&newer, &server())).contains(&Effect::Count(Counted::DocumentRefused)));
    assert!(bench.settle(document(&newer, &root())).contains(&Effect::Reconfigure));
    bench.settle(document(&upstreams(5, "osaka"), &next));
    bench.crash();
    assert_eq!(bench.core.documents().trust().version, 2);
    assert_eq!(bench.core.documents().upstreams()[0].name, "listed");
    bench.wake();
    bench.connect(None);
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![script_order(1)])));
    assert!(starts(&effects).is_empty(), "the old key signs nothing any more");
}

#[test]
fn time_is_learnt_from_verified_statements_and_written_down_now_and_then() {
    let mut bench = Bench::running();
    let effects = bench.settle(document(&statement(1, START + 1, 0), &server()));
    assert!(effects.contains(&Effect::LearnTime(Millis(START + 1))));
    let alive = |s: &TimeStatement, signer: &Signer| Event::Alive(Some(Box::new(s.seal(signer))));
    let effects = bench.event(alive(&statement(2, START + 60_000, 0), &server()));
    assert_eq!(effects, [Effect::LearnTime(Millis(START + 60_000))], "and no batch for it");
    let forged = bench.event(alive(&statement(9, i64::MAX, 0), &Signer::from_seed(&[66; 32])));
    assert_eq!(forged, [Effect::Count(Counted::DocumentRefused)]);
    let effects = bench.event(alive(&statement(3, START + 600_001, 0), &server()));
    assert_eq!(
        effects,
        [Effect::LearnTime(Millis(START + 600_001))],
        "before its batch: the next order is judged by it"
    );
    bench.commit_all();
    bench.crash();
    assert!(bench.event(Event::Start).contains(&Effect::LearnTime(Millis(START + 600_001))));
}

#[test]
fn job_13_the_floor_forgets_orders_and_stands_for_them() {
    let mut bench = Bench::running();
    for n in [5, 6] {
        bench.settle(message(Lane::Work, Message::Orders(vec![script_order(n)])));
        bench.settle(ended(n, finished(0)));
    }
    bench.settle(document(&statement(1, START, 6), &server()));
    assert_eq!(bench.core.figures().remembered_orders, 1);
    // A restored server counts anew: its floor must not bring the old term's orders back.
    let restored = TimeStatement { term: 2, ..statement(1, START, 1) };
    bench.settle(document(&restored, &server()));
    bench.crash();
    bench.wake();
    bench.connect(None);
    for n in [4, 5, 6] {
        let effects = bench.settle(message(Lane::Work, Message::Orders(vec![script_order(n)])));
        assert_eq!((starts(&effects).len(), taken(&effects)), (0, vec![n]));
    }
    let mut again = payload(5, RUN_SCRIPT, &script());
    again.number.term = 2;
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![sign(again, script(), mine(), &server())])));
    assert_eq!(starts(&effects).len(), 1, "the same number of a new term is another order");
}

#[test]
fn a_revoked_device_stops_its_jobs_and_begins_nothing() {
    let mut bench = Bench::running();
    bench.settle(message(Lane::Work, Message::Orders((1..=5).map(script_order).collect())));
    let older = revocations(1, vec![(ME, 1)]);
    assert!(!bench.settle(document(&older, &server())).iter().any(|e| matches!(e, Effect::Kill(_))), "another life");
    let effects = bench.settle(document(&revocations(2, vec![(ME, 2)]), &server()));
    let killed = effects.iter().filter(|e| matches!(e, Effect::Kill(_))).count();
    assert_eq!((killed, starts(&effects).len()), (4, 0));
    assert!(bench.core.figures().revoked);
    let cancelled =
        Status { ended: Ended::Signalled(15), cancelled: true, ..Status::not_started(SpawnFault::NotFound, None) };
    bench.settle(ended(1, JobLeft::Finished(cancelled, Bytes::new(), Bytes::new())));
    let told: Vec<_> = bench.disk.results().into_iter().map(|r| (r.order.number, r.end, r.reason)).collect();
    let revoked = Some("revoked".to_owned());
    assert_eq!(told, [(5, End::Refused, revoked.clone()), (1, End::Failed, revoked)]);
    let effects = bench.settle(message(Lane::Work, Message::Orders(vec![script_order(6)])));
    assert!(taken(&effects).is_empty() && effects.contains(&Effect::Count(Counted::OrderLeft)));
}
