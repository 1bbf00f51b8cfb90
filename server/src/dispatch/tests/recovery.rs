//! A restored server: it listens before it speaks, takes nothing on anybody's word, and forgets no revocation (OPS-7).

use super::{steering::CANCEL_ORDER, *};
use crate::dispatch::recovery::{Held, Learned, Recovery, Why};
use branchline_protocol::{
    document::{Document, Kind, Revocations, Settings, TimeStatement},
    trust::{KeyStatus, TrustDocument, TrustedKey},
    wire::{Recall, Recalled},
};

fn signer() -> Signer {
    Signer::from_seed(&[9; 32])
}

fn root() -> Signer {
    Signer::from_seed(&[8; 32])
}

fn trust(version: u64, keys: &[&Signer]) -> TrustDocument {
    let key = |s: &&Signer| TrustedKey { key: s.public(), role: "server".into(), status: KeyStatus::Active };
    TrustDocument { tenant: tenant(), term: 1, version, cas: vec![], keys: keys.iter().map(key).collect() }
}

fn list(term: u32, version: u64, revoked: &[(u128, u32)], suspended: &[u128]) -> Revocations {
    let revoked = revoked.iter().map(|(n, epoch)| (node(*n), *epoch)).collect();
    Revocations {
        tenant: tenant(),
        term,
        version,
        revoked,
        suspended: suspended.iter().map(|n| node(*n)).collect(),
        raised: vec![],
        keep_connection: vec![],
    }
}

fn statement(term: u32) -> TimeStatement {
    TimeStatement {
        tenant: tenant(),
        time: Millis(1),
        term,
        version: 1,
        order_floor: 0,
        trust_version: 1,
        settings_version: 1,
        revocations_version: 1,
        restored_from: None,
    }
}

fn held() -> Held {
    Held {
        root: root().public(),
        trust: trust(1, &[&signer()]),
        revocations: (1, 3),
        settings: (1, 2),
        newest: OrderNumber { term: 1, number: 10 },
    }
}

/// One that waits for relay 100 and device 1, 600 s at most, from 1 s on.
fn recovery() -> Recovery {
    let awaited = [100, 1].map(|n| (tenant(), node(n)));
    Recovery::new(Mono(1_000), 600_000, awaited, BTreeMap::from([(tenant(), held())]))
}

fn sealed<D: Document>(document: &D) -> (Kind, Envelope) {
    (D::KIND, document.seal(&signer()))
}

fn of(learned: &Learned) -> &crate::dispatch::recovery::LearnedOf {
    &learned.tenants[&tenant()]
}

#[test]
fn ops_7_listening_ends_when_all_are_heard_or_the_time_is_over_or_an_operator_says_so() {
    let mut all = recovery();
    assert_eq!((all.progress().heard, all.progress().awaited), (0, 2));
    all.heard(&tenant(), node(1));
    all.heard(&tenant(), node(1));
    all.heard(&tenant(), node(2));
    all.heard(&"other".parse().unwrap(), node(100));
    assert_eq!((all.over(Mono(2_000)), all.progress().heard), (None, 1), "one of two, and strangers");
    all.heard(&tenant(), node(100));
    assert_eq!(all.over(Mono(2_000)), Some(Why::Heard));

    let late = recovery();
    assert_eq!(late.over(Mono(600_999)), None);
    assert_eq!(late.over(Mono(601_000)), Some(Why::Time));

    let mut asked = recovery();
    asked.end();
    assert_eq!(asked.over(Mono(1_001)), Some(Why::Asked));

    let mut fewer = recovery();
    fewer.heard(&tenant(), node(100));
    fewer.gone(&tenant(), node(1));
    assert_eq!(fewer.over(Mono(1_001)), Some(Why::Heard), "a revoked child is not waited for");

    let nobody = Recovery::new(Mono(0), 600_000, [], BTreeMap::new());
    assert_eq!(nobody.over(Mono(0)), Some(Why::Heard), "nobody to listen to");
}

#[test]
fn ops_7_what_is_learned_is_the_union_of_revocations_and_the_newest_of_everything_else() {
    let mut recovery = recovery();
    let settings = |version| Settings { version, poll_normal_s: 60 + version, ..Settings::first(tenant(), 1) };
    let faults = recovery.told(
        &tenant(),
        vec![sealed(&list(1, 5, &[(1, 1), (2, 1)], &[7])), sealed(&settings(4)), sealed(&statement(1))],
    );
    assert_eq!(faults, []);
    // An older list of a longer memory, an older statement of a higher term.
    recovery.told(&tenant(), vec![sealed(&list(1, 4, &[(3, 2), (2, 2)], &[8])), sealed(&settings(3))]);
    recovery.told(&tenant(), vec![sealed(&statement(6))]);
    recovery.order(&tenant(), OrderNumber { term: 2, number: 77 });
    let learned = recovery.learned(Why::Heard);
    assert_eq!(learned.term, 6);
    assert_eq!(of(&learned).revoked, BTreeMap::from([(node(1), 1), (node(2), 2), (node(3), 2)]));
    assert_eq!(of(&learned).suspended, Some(((1, 5), vec![node(7)])));
    assert_eq!(of(&learned).settings.as_ref().unwrap().version, 4);
    assert_eq!((of(&learned).newest, &of(&learned).trust), (77, &None));
}

#[test]
fn ops_7_what_the_backup_knows_already_is_not_learned() {
    let mut recovery = recovery();
    let settings = Settings { version: 2, ..Settings::first(tenant(), 1) };
    recovery.told(&tenant(), vec![sealed(&list(1, 3, &[(1, 1)], &[7])), sealed(&settings)]);
    let learned = recovery.learned(Why::Time);
    assert_eq!((&of(&learned).suspended, &of(&learned).settings), (&None, &None));
    assert_eq!(of(&learned).revoked, BTreeMap::from([(node(1), 1)]), "a union does no harm");
}

#[test]
fn ops_7_nothing_counts_that_neither_the_server_nor_the_root_signed() {
    let mut recovery = recovery();
    let (stranger, next) = (Signer::from_seed(&[3; 32]), Signer::from_seed(&[4; 32]));
    let forged = list(9, 99, &[(1, 1)], &[]).seal(&stranger);
    let of_another_kind = (Kind::Settings, list(9, 99, &[(1, 1)], &[]).seal(&signer()));
    let anothers = Revocations { tenant: "other".parse().unwrap(), ..list(9, 99, &[(1, 1)], &[]) };
    let documents = vec![(Kind::Revocations, forged), of_another_kind, sealed(&anothers)];
    assert_eq!(recovery.told(&tenant(), documents).len(), 3);
    let unrooted = (Kind::Trust, trust(2, &[&stranger]).seal(&signer()));
    assert_eq!(recovery.told(&tenant(), vec![unrooted]).len(), 1);
    let learned = recovery.learned(Why::Heard);
    assert_eq!((learned.term, of(&learned)), (0, &Default::default()));
    // A key that the root put in force since then signs too, whichever comes first in the message.
    let rotated = trust(2, &[&signer(), &next]);
    let documents =
        vec![(Kind::Revocations, list(1, 6, &[(5, 1)], &[]).seal(&next)), (Kind::Trust, rotated.seal(&root()))];
    assert_eq!(recovery.told(&tenant(), documents), []);
    let learned = recovery.learned(Why::Heard);
    assert_eq!(of(&learned).trust.as_ref().unwrap().0, rotated);
    assert_eq!(of(&learned).revoked, BTreeMap::from([(node(5), 1)]));
}

/// A core with the tenant's documents, as its shell gives them.
fn bench() -> Bench {
    let mut bench = Bench::new();
    let trust = trust(1, &[&signer()]);
    bench.feed(Event::Document(tenant(), Kind::Trust, String::new(), trust.version(), trust.seal(&root())));
    let list = list(1, 3, &[], &[]);
    bench.feed(Event::Document(tenant(), Kind::Revocations, String::new(), (1, 3), list.seal(&signer())));
    bench
}

fn recalls(effects: &[Effect], child: u128) -> Vec<Recall> {
    let to = |e: &Effect| match e {
        Effect::Send(n, _, Lane::Control, Message::Recall(recall)) if *n == node(child) => Some(recall.clone()),
        _ => None,
    };
    effects.iter().filter_map(to).collect()
}

fn documents_to(effects: &[Effect], child: u128) -> usize {
    let to = |e: &&Effect| matches!(e, Effect::Send(n, _, _, Message::Document(..)) if *n == node(child));
    effects.iter().filter(to).count()
}

fn learned_in(effects: &[Effect]) -> Option<&Learned> {
    effects.iter().find_map(|e| if let Effect::Learned(learned) = e { Some(&**learned) } else { None })
}

fn last() -> Message {
    Message::Recalled(Recalled { last: true, ..Recalled::default() })
}

#[test]
fn ops_7_a_restored_server_sends_nothing_but_its_question_until_it_has_listened() {
    let mut bench = bench();
    bench.issue(&[1, 2]);
    bench.feed(Event::Term(2));
    bench.feed(Event::Recover(Box::new(recovery())));
    let (relay, device) = (child(100, 1), child(1, 1));
    for (up, n) in [(&relay, 100), (&device, 1)] {
        let seen = bench.feed(Event::Up(up.clone()));
        let [recall] = &recalls(&seen, n)[..] else { panic!("{n} is asked once: {seen:?}") };
        assert_eq!(recall.newest, OrderNumber { term: 1, number: 10 });
        let asked: BTreeMap<Kind, (u32, u64)> = recall.documents.iter().copied().collect();
        assert_eq!(asked[&Kind::Revocations], (1, 3), "what the backup has need not be told");
        assert_eq!(asked[&Kind::Time], (1, u64::MAX), "only a statement of a higher term is worth telling");
        assert_eq!((documents_to(&seen, n), orders_to(&seen, n)), (0, vec![]), "{seen:?}");
    }
    assert!(orders_to(&bench.said(&relay, presence(vec![below(2, 1)])), 100).is_empty());
    bench.clock = 2_000;
    bench.feed(Event::Tick);
    assert_eq!(bench.last(1), None, "its time is over, but what became of it may be told yet");
    bench.said(&device, last());
    let revoked = Recalled { documents: vec![sealed(&list(1, 5, &[(4, 1)], &[]))], ..Recalled::default() };
    assert!(learned_in(&bench.said(&relay, Message::Recalled(revoked))).is_none(), "it has more to tell");
    let seen = bench.said(&relay, last());
    let learned = learned_in(&seen).expect("all are heard");
    assert_eq!((learned.why, learned.term, &of(learned).revoked), (Why::Heard, 1, &BTreeMap::from([(node(4), 1)])));
    assert!(learned_in(&bench.feed(Event::Tick)).is_none(), "once");
    // The shell has made it durable.
    let seen = bench.feed(Event::Recovered(2));
    assert!(bench.core.recovery().is_none());
    let again = |e: &Effect| matches!(e, Effect::Revoke(_, nodes) if *nodes == [(node(4), 1)]);
    assert!(seen.iter().any(again), "what came late counts: {seen:?}");
    let fresh = Arc::new(Child::clone(&child(1, 2)));
    assert!(documents_to(&bench.feed(Event::Up(fresh)), 1) > 0);
}

#[test]
fn ops_7_orders_of_the_backup_go_out_again_after_the_recovery_and_may_have_gone_out_before() {
    let mut bench = bench();
    bench.issue(&[1]);
    bench.feed(Event::Term(2));
    bench.feed(Event::Recover(Box::new(recovery())));
    assert_eq!(bench.holders(1), [1], "the device may have got it after the backup");
    bench.feed(Event::Up(child(1, 1)));
    bench.feed(Event::EndRecovery);
    let seen = bench.feed(Event::Recovered(2));
    assert_eq!(orders_to(&seen, 1), [1]);

    // One that stays away is not said to have expired: only at report_by is it given up.
    let mut away = super::recovery::bench();
    away.issue(&[1]);
    away.feed(Event::Term(2));
    away.feed(Event::Recover(Box::new(recovery())));
    away.feed(Event::EndRecovery);
    away.feed(Event::Recovered(2));
    away.clock = 5_000;
    away.feed(Event::Tick);
    assert_eq!(away.last(1), None);
    away.clock = 86_401_011;
    away.feed(Event::Tick);
    assert_eq!(away.last(1), Some((State::Expired, Some("silent".into()))));
}

/// One device of a job that came back.
type Row = (NodeId, State, Option<String>);

/// Jobs that came back, as they are written.
fn recalled_rows(bench: &Bench) -> Vec<(JobId, Vec<Row>)> {
    let of = |op: &Op| match op {
        Op::Recalled(job, devices) => {
            let row = |d: &JobDeviceRow| (d.device.clone().unwrap(), d.state, d.reason.clone());
            Some((job.id, devices.iter().map(row).collect()))
        }
        _ => None,
    };
    bench.ops.iter().filter_map(of).collect()
}

#[test]
fn ops_7_an_order_the_backup_does_not_know_comes_back_as_a_job_whose_outcome_is_unknown() {
    let mut bench = bench();
    bench.feed(Event::Term(2));
    bench.feed(Event::Recover(Box::new(recovery())));
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    let message = issue(&[2, 3]).message.unwrap();
    let forged = OrderMessage { args: Bytes::from_static(b"other"), ..message.clone() };
    let recalled = Recalled { orders: vec![message, forged], last: true, ..Recalled::default() };
    bench.said(&relay, Message::Recalled(recalled));
    let unknown = |n| (node(n), State::OutcomeUnknown, Some("server_restored".to_string()));
    assert_eq!(recalled_rows(&bench), [(JOB, vec![unknown(2), unknown(3)])], "the forged one is not taken");
    // Its result comes up later, and takes the place of what nobody knew.
    bench.said(&relay, presence(vec![below(2, 1)]));
    bench.said(&relay, Message::Records(vec![spooled(2, vec![(class::RESULT, result(End::Succeeded))])]));
    let late = |op: &&Op| matches!(op, Op::LateResult { order: ORDER, device, .. } if *device == node(2));
    assert_eq!(bench.ops.iter().filter(late).count(), 1);
}

#[test]
fn ops_7_a_device_tells_of_its_own_orders_only_and_an_open_one_is_left_alone() {
    let mut bench = bench();
    let device = child(2, 1);
    bench.feed(Event::Up(device.clone()));
    let body = |devices: &[u128]| rmp_serde::to_vec(&issue(devices).message.unwrap()).unwrap();
    let told = bench.said(&device, Message::Records(vec![spooled(2, vec![(class::ORDER, body(&[2]))])]));
    assert_eq!(acked(&told), [(1, 1, 0)]);
    assert_eq!(recalled_rows(&bench).len(), 1);
    let mut other = super::recovery::bench();
    other.feed(Event::Up(device.clone()));
    let told = other.said(&device, Message::Records(vec![spooled(2, vec![(class::ORDER, body(&[2, 3]))])]));
    assert_eq!((acked(&told), recalled_rows(&other).len()), (vec![(1, 1, 1)], 0), "another's leaf");
    let told = other.said(&device, Message::Records(vec![spooled(2, vec![(class::ORDER, b"no order".to_vec())])]));
    assert!(acked(&told).len() == 1 && recalled_rows(&other).is_empty());
    let mut open = super::recovery::bench();
    open.issue(&[2]);
    open.feed(Event::Up(device.clone()));
    open.said(&device, Message::Records(vec![spooled(2, vec![(class::ORDER, body(&[2]))])]));
    assert_eq!(recalled_rows(&open).len(), 0, "it is here, and not over");
}

#[test]
fn ops_7_a_cancel_the_backup_does_not_know_cancels_again() {
    let mut cancelled = bench();
    cancelled.feed(Event::Up(child(1, 1)));
    cancelled.issue(&[1]);
    cancelled.cancel();
    let message = super::steering::steering(&[1]).message.unwrap();

    // The backup is from before the cancel.
    let mut bench = bench();
    bench.issue(&[1]);
    bench.feed(Event::Term(2));
    bench.feed(Event::Recover(Box::new(recovery())));
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    bench.said(&relay, Message::Recalled(Recalled { orders: vec![message], last: true, ..Recalled::default() }));
    assert_eq!(bench.last(1), Some((State::Queued, Some("cancelling".into()))));
    bench.feed(Event::EndRecovery);
    bench.feed(Event::Recovered(2));
    let device = child(1, 2);
    assert!(orders_to(&bench.feed(Event::Up(device.clone())), 1).is_empty(), "nobody gets it any more");
    // The device journalled the cancel, and says so.
    let told = JobResult {
        order: CANCEL_ORDER,
        reason: Some(branchline_protocol::job::cancel::CANCELLED.into()),
        ..rmp_serde::from_slice(&result(End::Succeeded)).unwrap()
    };
    let body = rmp_serde::to_vec(&told).unwrap();
    bench.said(&device, Message::Records(vec![spooled(1, vec![(class::RESULT, body)])]));
    assert_eq!(bench.last(1), Some((State::Cancelled, None)));
}

#[test]
fn ops_7_whoever_has_not_heard_of_the_term_is_asked_and_an_old_list_revokes_again() {
    let mut bench = bench();
    bench.feed(Event::Term(2));
    let own = list(2, 6, &[(4, 1)], &[]);
    bench.feed(Event::Document(tenant(), Kind::Revocations, String::new(), (2, 6), own.seal(&signer())));
    let relay = child(100, 1);
    let seen = bench.feed(Event::Up(relay.clone()));
    let [recall] = &recalls(&seen, 100)[..] else { panic!("it has seen term 1 only: {seen:?}") };
    assert!(recall.wants(OrderNumber { term: 1, number: 1 }) && !recall.wants(OrderNumber { term: 2, number: 900 }));
    let recall_at = seen.iter().position(|e| matches!(e, Effect::Send(_, _, _, Message::Recall(_))));
    let document_at = seen.iter().position(|e| matches!(e, Effect::Send(_, _, _, Message::Document(..))));
    assert!(recall_at < document_at, "asked before it learns otherwise");
    let revokes = |effects: &[Effect]| -> Vec<(NodeId, u32)> {
        let of = |e: &Effect| if let Effect::Revoke(_, nodes) = e { nodes.clone() } else { vec![] };
        effects.iter().flat_map(of).collect()
    };
    let mut tell = |list: &Revocations, key: &Signer| {
        let documents = vec![(Kind::Revocations, list.seal(key))];
        revokes(&bench.said(&relay, Message::Recalled(Recalled { documents, ..Recalled::default() })))
    };
    assert_eq!(tell(&list(1, 5, &[(4, 1), (5, 1)], &[]), &signer()), [(node(5), 1)]);
    assert_eq!(tell(&list(1, 4, &[(4, 1)], &[]), &signer()), [], "nothing new");
    assert_eq!(tell(&list(1, 5, &[(5, 1)], &[]), &Signer::from_seed(&[3; 32])), [], "not ours");
    // One that knows this term, and a server that was never restored, are not asked.
    let mut knows = Child::clone(&child(1, 1));
    knows.greeting = Arc::new(Greeting { term: 2, ..Greeting::clone(&knows.greeting) });
    assert!(recalls(&bench.feed(Event::Up(Arc::new(knows))), 1).is_empty());
    let mut first = super::recovery::bench();
    first.feed(Event::Term(1));
    assert!(recalls(&first.feed(Event::Up(child(1, 1))), 1).is_empty());
}

#[test]
fn ops_7_a_device_that_was_enrolled_anew_after_the_backup_is_known_by_its_certificate() {
    let mut bench = bench();
    let mut anew = Child::clone(&child(1, 1));
    anew.key.epoch = 2;
    let seen = bench.feed(Event::Up(Arc::new(anew)));
    assert!(!seen.iter().any(|e| matches!(e, Effect::Refuse(..))), "{seen:?}");
    let epoch = |op: &Op| if let Op::Node(row) = op { Some((row.id, row.epoch)) } else { None };
    assert_eq!(bench.ops.iter().filter_map(epoch).collect::<Vec<_>>(), [(node(1), 2)]);
    let seen = bench.feed(Event::Up(child(1, 9)));
    let list = |e: &Effect| matches!(e, Effect::Send(_, 9, _, Message::Document(Kind::Revocations, _)));
    assert!(seen.iter().all(list), "its former identity is told who is revoked, and nothing else: {seen:?}");
    assert!(bench.said(&child(1, 9), Message::Versions(vec![])).is_empty(), "nor is it heard");
}

/// A greeting that says which revocations it holds, and the newest term it has seen.
fn holding(n: u128, session: u64, revocations: (u32, u64), term: u32) -> Arc<Child> {
    let mut child = Child::clone(&child(n, session));
    let mut documents = vec![(0, 0); Kind::ALL.len()];
    documents[Kind::ALL.iter().position(|kind| *kind == Kind::Revocations).unwrap()] = revocations;
    child.greeting = Arc::new(Greeting { documents, term, ..Greeting::clone(&child.greeting) });
    Arc::new(child)
}

#[test]
fn ops_7_a_store_that_was_put_back_by_hand_shows_at_the_first_child_that_proves_it() {
    let mut bench = bench();
    bench.feed(Event::Term(1));
    assert!(recalls(&bench.feed(Event::Up(holding(1, 1, (1, 3), 1))), 1).is_empty(), "as much as here");
    let relay = holding(100, 1, (1, 5), 1);
    let seen = bench.feed(Event::Up(relay.clone()));
    let [recall] = &recalls(&seen, 100)[..] else { panic!("it is to prove it: {seen:?}") };
    assert_eq!(recall.documents, [(Kind::Revocations, (1, 3))]);
    let mut tell = |documents| {
        let seen = bench.said(&relay, Message::Recalled(Recalled { documents, ..Recalled::default() }));
        let of = |e: &Effect| if let Effect::Behind(_, kind, version) = e { Some((*kind, *version)) } else { None };
        seen.iter().filter_map(of).collect::<Vec<_>>()
    };
    let forged = list(1, 5, &[], &[]).seal(&Signer::from_seed(&[3; 32]));
    assert_eq!(tell(vec![(Kind::Revocations, forged)]), []);
    assert_eq!(tell(vec![sealed(&list(1, 3, &[], &[])), sealed(&statement(1))]), []);
    assert_eq!(tell(vec![sealed(&list(1, 5, &[], &[]))]), [(Kind::Revocations, (1, 5))]);
    assert_eq!(tell(vec![sealed(&statement(2))]), [(Kind::Time, (2, 0))], "a term that is not here");
    let seen = bench.feed(Event::Up(holding(2, 1, (1, 3), 4)));
    assert_eq!(recalls(&seen, 2)[0].documents, [(Kind::Time, (1, u64::MAX))]);
}
