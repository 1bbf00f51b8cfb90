//! Disks of nodes below that were put back to an older state.

use super::*;
use branchline_protocol::{
    document::{Document, Kind, Revocations},
    record::RolledBack,
};

/// The same relay on another opening of its store.
fn reopened(session: u64, incarnation: u64) -> Arc<Child> {
    let mut again = Child::clone(&child(100, session));
    again.greeting = Arc::new(Greeting { incarnation, ..Greeting::clone(&again.greeting) });
    Arc::new(again)
}

#[test]
fn rly_8_rolled_back_a_relay_is_offered_again_what_it_held_and_another_link_of_one_opening_is_not() {
    let mut bench = Bench::new();
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    bench.said(&relay, presence(vec![below(2, 1)]));
    bench.issue(&[2]);
    bench.said(&relay, Message::Taken(vec![(ORDER, vec![node(2)])]));
    let again = bench.feed(Event::Up(child(100, 2)));
    assert!(orders_to(&again, 100).is_empty(), "the same opening dialled again: it has what it took");
    let opened = reopened(3, 9);
    assert_eq!(orders_to(&bench.feed(Event::Up(opened.clone())), 100), [1], "whatever its disk is now");
    bench.said(&opened, Message::Taken(vec![(ORDER, vec![node(2)])]));
    assert!(orders_to(&bench.feed(Event::Up(reopened(4, 9))), 100).is_empty(), "and it is met from here on");
}

#[test]
fn rly_9_the_same_attachment_twice_is_not_a_newer_one() {
    let mut bench = Bench::new();
    bench.feed(Event::Up(child(1, 5)));
    let mut again = Child::clone(&child(1, 6));
    again.key.attachment = 5;
    assert!(bench.core.is_stale(&again));
    let seen = bench.feed(Event::Up(Arc::new(again)));
    assert!(seen.iter().any(|e| matches!(e, Effect::Refuse(_, 6, refusal) if refusal.is_stale_attachment())));
}

#[test]
fn rolled_back_a_device_that_gives_a_number_twice_is_told_so_until_it_has_heard() {
    let with = |session, attachment| {
        let mut child = Child::clone(&child(1, session));
        child.key.attachment = attachment;
        Arc::new(child)
    };
    let refused = |bench: &mut Bench, link: Arc<Child>| {
        let seen = bench.feed(Event::Up(link));
        seen.iter().any(|e| matches!(e, Effect::Refuse(_, _, refusal) if refusal.is_stale_attachment()))
    };
    let mut bench = Bench::new();
    assert!(!refused(&mut bench, with(1, 5)));
    assert!(refused(&mut bench, with(2, 4)), "overtaken on its way");
    assert!(!refused(&mut bench, with(3, 6)));
    // Refused before it was up, and the word is lost with that link, with the next one too, and the server starts again.
    bench.feed(Event::Stale(tenant(), node(1), with(4, 6).key));
    for attachment in [7, 8] {
        assert!(bench.core.is_stale(&with(5, attachment)));
        assert!(refused(&mut bench, with(5, attachment)), "{attachment}");
        bench.restart();
    }
    assert!(refused(&mut bench, with(6, 9)), "known across the restart");
    assert!(!refused(&mut bench, with(7, 11)), "whoever heard it leaves out a number");
}

/// A device says that its disk was put back, in this epoch; each time from a fresh opening of its store.
fn says_so(bench: &mut Bench, by: &Arc<Child>, device: u128, epoch: u32) -> Vec<Effect> {
    let told = RolledBack { epoch, why: "a parent knows newer links".into() };
    let run = spooled(device, vec![(class::ROLLED_BACK, rmp_serde::to_vec_named(&told).unwrap())]);
    bench.clock += 1;
    let stream = branchline_protocol::record::StreamId { incarnation: bench.clock, ..run.stream };
    bench.said(by, Message::Records(vec![Run { stream, ..run }]))
}

fn asked(effects: &[Effect]) -> Vec<(u128, u32)> {
    let of = |e: &Effect| if let Effect::Raise(_, d, epoch) = e { Some((d.0.as_u128(), *epoch)) } else { None };
    effects.iter().filter_map(of).collect()
}

fn audited(bench: &Bench, what: &str) -> usize {
    bench.ops.iter().filter(|op| matches!(op, Op::Audit(row) if row.what == what)).count()
}

/// The list that the office makes of it.
fn list(version: u64, raised: Vec<(NodeId, u32)>) -> Event {
    let (revoked, suspended) = (vec![], vec![]);
    let list = Revocations { tenant: tenant(), term: 1, version, revoked, suspended, raised, keep_connection: vec![] };
    let envelope = list.seal(&Signer::from_seed(&[9; 32]));
    Event::Document(tenant(), Kind::Revocations, String::new(), (1, version), envelope)
}

fn in_epoch(n: u128, session: u64, epoch: u32, attachment: u64) -> Arc<Child> {
    let mut child = Child::clone(&child(n, session));
    child.key = AttachmentKey { epoch, attachment };
    Arc::new(child)
}

#[test]
fn rolled_back_a_device_is_given_its_next_epoch_once_and_only_after_its_word_is_durable() {
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    bench.hold = true;
    assert!(asked(&says_so(&mut bench, &agent, 1, 1)).is_empty());
    assert_eq!(asked(&bench.flush()), [(1, 2)]);
    assert_eq!(audited(&bench, "device.rolled_back"), 1);
    assert!(asked(&says_so(&mut bench, &agent, 1, 1)).is_empty(), "it is on its way");
    bench.feed(list(2, vec![(node(1), 2)]));
    assert!(asked(&says_so(&mut bench, &agent, 1, 1)).is_empty(), "said in an epoch that it has left");
    assert!(asked(&says_so(&mut bench, &agent, 1, 3)).is_empty(), "or in one that it never had");
    assert_eq!(asked(&says_so(&mut bench, &agent, 1, 2)), [(1, 3)], "again, in the new one");
}

#[test]
fn rolled_back_what_the_store_did_not_take_is_tried_again() {
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    assert_eq!(asked(&says_so(&mut bench, &agent, 1, 1)), [(1, 2)]);
    assert!(asked(&bench.feed(Event::Tick)).is_empty());
    bench.feed(Event::NotRaised(tenant(), node(1)));
    assert_eq!(asked(&bench.feed(Event::Tick)), [(1, 2)]);
    bench.feed(list(2, vec![(node(1), 2)]));
    bench.feed(Event::NotRaised(tenant(), node(1)));
    assert!(asked(&bench.feed(Event::Tick)).is_empty(), "it has it");
}

#[test]
fn rolled_back_ten_epochs_an_hour_are_given_and_the_eleventh_waits_as_a_clones() {
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    for epoch in 1..=10 {
        assert_eq!(asked(&says_so(&mut bench, &agent, 1, epoch)), [(1, epoch + 1)]);
        bench.feed(list(u64::from(epoch) + 1, vec![(node(1), epoch + 1)]));
    }
    let first = bench.clock;
    for _ in 0..2 {
        assert!(asked(&says_so(&mut bench, &agent, 1, 11)).is_empty());
    }
    assert_eq!(audited(&bench, "device.clone_suspected"), 1);
    let state = bench.core.tenant(&tenant()).unwrap();
    let view = standing(state, &state.nodes[&node(1)], Millis(bench.clock as i64));
    assert_eq!((view.state, view.reason.as_deref()), ("unknown", Some("clone_suspected")));
    bench.clock = first - 40 + 3_600_000;
    assert!(asked(&bench.feed(Event::Tick)).is_empty(), "within the hour of the first");
    bench.clock = first + 3_600_000;
    assert_eq!(asked(&bench.feed(Event::Tick)), [(1, 12)]);
}

#[test]
fn job_13_rolled_back_a_device_is_asked_again_for_what_it_had_late_or_cancelled_and_its_word_is_the_end() {
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    bench.issue(&[1]);
    bench.said(&agent, Message::Taken(vec![(ORDER, vec![node(1)])]));
    bench.cancel();
    bench.clock = 2_000;
    bench.feed(Event::Tick);
    bench.feed(Event::Up(child(1, 2)));
    let told = bench.feed(list(2, vec![(node(1), 2)]));
    assert!(told.iter().any(|e| matches!(e, Effect::Send(n, 2, _, Message::Document(..)) if *n == node(1))));
    bench.restart_in(vec![(node(1), 2)]);
    bench.feed(list(2, vec![(node(1), 2)]));
    let reborn = in_epoch(1, 3, 2, 1);
    let seen = bench.feed(Event::Up(reborn.clone()));
    let offered = seen.iter().filter(|e| matches!(e, Effect::Send(_, 3, _, Message::Orders(_)))).count();
    assert_eq!(offered, 2, "the order and its cancel");
    let mut unknown: JobResult = rmp_serde::from_slice(&result(End::OutcomeUnknown)).unwrap();
    unknown.reason = Some("rolled_back".into());
    bench
        .said(&reborn, Message::Records(vec![spooled(1, vec![(class::RESULT, rmp_serde::to_vec(&unknown).unwrap())])]));
    assert_eq!(bench.last(1), Some((State::OutcomeUnknown, Some("rolled_back".into()))));
}

#[test]
fn job_14_a_cancel_that_comes_before_an_order_that_the_device_may_have_forgotten_leaves_its_end_unknown() {
    for (epoch, end) in [(1, (State::Cancelled, None)), (2, (State::OutcomeUnknown, Some("rolled_back".to_string())))] {
        let mut bench = Bench::new();
        let agent = child(1, 1);
        bench.feed(Event::Up(agent.clone()));
        bench.issue(&[1]);
        bench.said(&agent, Message::Taken(vec![(ORDER, vec![node(1)])]));
        bench.cancel();
        let raised = if epoch == 2 { vec![(node(1), 2)] } else { vec![] };
        bench.feed(list(2, raised));
        let link = in_epoch(1, 3, epoch, 2);
        bench.feed(Event::Up(link.clone()));
        let word = super::steering::cancel_result(branchline_protocol::job::cancel::CANCELLED);
        bench.said(&link, Message::Records(vec![spooled(1, vec![(class::RESULT, word)])]));
        assert_eq!(bench.last(1), Some(end), "in epoch {epoch}");
    }
}

#[test]
fn rolled_back_a_device_in_an_epoch_that_it_has_left_is_handed_the_list_and_nothing_else() {
    let mut bench = Bench::new();
    bench.feed(list(2, vec![(node(1), 2)]));
    bench.issue(&[1]);
    let past = in_epoch(1, 7, 1, 50);
    assert!(!bench.core.is_stale(&past), "it is let in");
    let seen = bench.feed(Event::Up(past.clone()));
    assert!(
        matches!(&seen[..], [Effect::Send(_, 7, Lane::Control, Message::Document(Kind::Revocations, _))]),
        "{seen:?}"
    );
    assert!(bench.said(&past, Message::Taken(vec![(ORDER, vec![node(1)])])).is_empty(), "nor is it heard");
    let present = in_epoch(1, 8, 2, 1);
    assert!(!orders_to(&bench.feed(Event::Up(present)), 1).is_empty());
}

#[test]
fn rolled_back_a_relay_is_told_of_newer_links_of_a_device_than_it_knows() {
    let newer = |seen: &[Effect]| -> Vec<(u128, u64)> {
        let of = |e: &Effect| match e {
            Effect::Send(to, _, Lane::Control, Message::Newer(n, key)) if *n == node(2) => {
                Some((to.0.as_u128(), key.attachment))
            }
            _ => None,
        };
        seen.iter().filter_map(of).collect()
    };
    let mut bench = Bench::new();
    let (one, two) = (child(100, 1), child(101, 1));
    bench.feed(Event::Up(one.clone()));
    bench.feed(Event::Up(two.clone()));
    assert!(newer(&bench.said(&one, presence(vec![below(2, 5)]))).is_empty());
    assert_eq!(newer(&bench.said(&two, presence(vec![below(2, 4)]))), [(101, 5)], "an older one than is known");
    assert_eq!(newer(&bench.said(&two, presence(vec![below(2, 5)]))), [(101, 6)], "the same number by two relays");
    let away = PresenceEntry { reach: Reach::GoneTimeout, ..below(2, 4) };
    assert!(newer(&bench.said(&one, presence(vec![away]))).is_empty(), "a link that is gone need not be ended");
    assert_eq!(newer(&bench.said(&one, presence(vec![below(2, 9)]))), [(101, 9)], "where it is no more");
    let here = child(2, 20);
    bench.feed(Event::Up(here));
    let seen = bench.said(&one, presence(vec![below(2, 30)]));
    let ended =
        |e: &&Effect| matches!(e, Effect::Refuse(n, 20, refusal) if *n == node(2) && refusal.is_stale_attachment());
    assert_eq!(seen.iter().filter(ended).count(), 1, "and a link here that a relay has overtaken");
}

#[test]
fn rolled_back_a_device_is_told_on_each_link_what_it_said_it_has() {
    let handed = |seen: &[Effect], by: u128, device: u128| {
        let is = |e: &&Effect| matches!(e, Effect::Send(to, _, Lane::Control, Message::Handed(n, 1, orders)) if (*to, *n) == (node(by), node(device)) && orders == &[ORDER]);
        seen.iter().filter(is).count()
    };
    let mut bench = Bench::new();
    let (agent, relay) = (child(1, 1), child(100, 1));
    bench.feed(Event::Up(agent.clone()));
    bench.feed(Event::Up(relay.clone()));
    bench.said(&relay, presence(vec![below(2, 1)]));
    bench.issue(&[1, 2]);
    assert_eq!(handed(&bench.feed(Event::Up(child(1, 2))), 1, 1), 0, "it has said nothing yet");
    bench.said(&child(1, 2), Message::Taken(vec![(ORDER, vec![node(1)])]));
    let facts = Facts { facts: vec![(ORDER, Fact::HandedOver, vec![node(2)])] };
    bench.said(&relay, Message::Records(vec![spooled(100, vec![(class::FACTS, rmp_serde::to_vec(&facts).unwrap())])]));
    assert_eq!(handed(&bench.feed(Event::Up(child(1, 3))), 1, 1), 1);
    assert_eq!(handed(&bench.said(&relay, presence(vec![below(2, 1)])), 100, 2), 0, "the same link");
    assert_eq!(handed(&bench.said(&relay, presence(vec![below(2, 2)])), 100, 2), 1);
    bench.feed(Event::Tick);
    bench.clock += 600_000;
    let seen = bench.feed(Event::Tick);
    assert_eq!((handed(&seen, 1, 1), handed(&seen, 100, 2)), (1, 1), "and every ten minutes");
    assert_eq!(handed(&bench.feed(Event::Tick), 1, 1), 0);
}

/// What a relay is told of device 2.
fn newer(effects: &[Effect], relay: u128) -> Vec<u64> {
    let of = |e: &Effect| match e {
        Effect::Send(to, _, Lane::Control, Message::Newer(n, key)) if (*to, *n) == (node(relay), node(2)) => {
            Some(key.attachment)
        }
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

/// Relays 100 and 101; device 2 has signed attachment 5 at 101, which brought a record of it and told no presence.
fn signed_elsewhere() -> (Bench, Arc<Child>) {
    let mut bench = Bench::new();
    let (one, two) = (child(100, 1), child(101, 1));
    bench.feed(Event::Up(one.clone()));
    bench.feed(Event::Up(two.clone()));
    let signed = receipt(node(2), node(101), 5).seal(&key(node(2)));
    let run = Run { receipts: vec![signed], ..spooled(2, vec![(class::LOG, vec![1])]) };
    assert_eq!(acked(&bench.said_bare(&two, Message::Records(vec![run]))), [(1, 1, 0)]);
    (bench, one)
}

#[test]
fn rolled_back_a_device_that_signed_newer_links_than_the_one_it_has_is_told_so() {
    let (mut bench, one) = signed_elsewhere();
    assert!(!bench.core.is_stale(&child(2, 6)));
    assert_eq!(newer(&bench.said(&one, presence(vec![below(2, 6)])), 100), [0; 0], "this one is newer");
    // One that has given that number twice is told the next: whoever has a link of the very number has the one that is meant.
    for (attachment, told) in [(5, 6), (4, 5)] {
        let (mut bench, one) = signed_elsewhere();
        assert_eq!(
            newer(&bench.said(&one, presence(vec![below(2, attachment)])), 100),
            [told],
            "nobody told of that link"
        );
        let away = PresenceEntry { reach: Reach::GoneTimeout, ..below(2, attachment) };
        assert!(
            newer(&bench.said(&one, presence(vec![away])), 100).is_empty(),
            "a link that is gone need not be ended"
        );
        let mut here = Child::clone(&child(2, 9));
        here.key.attachment = attachment;
        assert!(bench.core.is_stale(&here), "here neither");
        let seen = bench.feed(Event::Up(Arc::new(here)));
        assert!(seen.iter().any(|e| matches!(e, Effect::Refuse(_, 9, refusal) if refusal.is_stale_attachment())));
    }
}

#[test]
fn rolled_back_a_device_whose_records_are_not_taken_for_a_newer_link_is_told_of_that() {
    let (mut bench, one) = signed_elsewhere();
    let old = receipt(node(2), node(100), 4).seal(&key(node(2)));
    let mut run = Run { receipts: vec![old], ..spooled(2, vec![(class::RESULT, result(End::Succeeded))]) };
    run.stream.incarnation = 78;
    let seen = bench.said_bare(&one, Message::Records(vec![run]));
    assert_eq!((acked(&seen), newer(&seen, 100)), (vec![(1, 1, 1)], vec![5]));
}

#[test]
fn rly_7_a_stream_whose_beginning_nobody_settled_is_not_begun_in_its_middle() {
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    bench.issue(&[1]);
    let whole = spooled(1, vec![(class::LOG, vec![1]), (class::RESULT, result(End::Succeeded))]);
    let tail = Run { records: whole.records[1..].to_vec(), ..whole.clone() };
    let seen = bench.said(&agent, Message::Records(vec![tail.clone()]));
    assert_eq!((acked(&seen), bench.states(1).len()), (vec![(0, 0, 1)], 0), "the first would be lost");
    let settled = Run { settled: 1, ..tail };
    assert_eq!(acked(&bench.said(&agent, Message::Records(vec![settled]))), [(2, 2, 0)]);
    assert_eq!(bench.states(1), [State::Succeeded]);
}

#[test]
fn rolled_back_what_a_relay_held_on_a_disk_that_was_put_back_it_does_not_give_back_for_its_devices() {
    let mut bench = Bench::new();
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    bench.said(&relay, presence(vec![below(2, 1)]));
    bench.issue(&[2]);
    bench.said(&relay, Message::Taken(vec![(ORDER, vec![node(2)])]));
    let offered = bench.said(&relay, Message::Disk(2, 3));
    assert_eq!(orders_to(&offered, 100), [1], "it is offered it again");
    bench.cancel();
    let facts = Facts { facts: vec![(ORDER, Fact::GivenBack, vec![node(2)])] };
    bench.said(&relay, Message::Records(vec![spooled(100, vec![(class::FACTS, rmp_serde::to_vec(&facts).unwrap())])]));
    assert!(!bench.states(2).contains(&State::Cancelled), "the device may have it from the disk that is gone");
    let kept = |op: &Op| matches!(op, Op::Meta(name, _) if *name == disk_key(&tenant(), node(100)));
    assert!(bench.ops.iter().any(kept));
    bench.said(&child(2, 1), Message::Disk(7, 3));
}

#[test]
fn rolled_back_a_relay_that_told_of_more_than_it_greets_with_hears_that_its_disk_is_old() {
    let of_age = |session, age| {
        let mut relay = Child::clone(&child(100, session));
        relay.greeting = Arc::new(Greeting { age, ..Greeting::clone(&relay.greeting) });
        Arc::new(relay)
    };
    let refused = |effects: &[Effect]| {
        effects.iter().any(|e| matches!(e, Effect::Refuse(_, _, refusal) if refusal.is_stale_attachment()))
    };
    let mut bench = Bench::new();
    assert!(!refused(&bench.feed(Event::Up(of_age(1, 4)))));
    bench.said(&of_age(1, 4), Message::Disk(1, 9));
    assert!(refused(&bench.feed(Event::Up(of_age(2, 9)))));
    assert!(refused(&bench.feed(Event::Up(of_age(3, 10)))), "it has not heard");
    assert!(!refused(&bench.feed(Event::Up(of_age(5, 10)))), "whoever heard it leaves out a number");
}
