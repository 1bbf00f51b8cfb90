//! Holders, expiry, cancel and late results: what the server may conclude, and when.

use super::*;
use branchline_protocol::job::{CANCEL, Cancel, cancel};

pub const CANCEL_ORDER: OrderNumber = OrderNumber { term: 1, number: 2 };
const CANCEL_JOB: JobId = JobId(Uuid::from_u128(43));
const RECEIPT: JobId = JobId(Uuid::from_u128(44));
/// fetch_by + longest run + 24 h of the order of these tests.
const REPORT_BY: u64 = 1_000 + 10 + 86_400_000;

/// The steering order for these devices, as the shell makes it.
pub fn steering(devices: &[u128]) -> Issue {
    let mut issue = issue(devices);
    let leaves: Vec<Leaf> = devices.iter().map(|d| Leaf { device: node(*d), epoch: 1 }).collect();
    let tree = Tree::build(&tenant(), CANCEL_ORDER, leaves);
    let args: Bytes = rmp_serde::to_vec_named(&Cancel { target: ORDER }).unwrap().into();
    issue.payload.number = CANCEL_ORDER;
    (issue.payload.job, issue.payload.verb) = (CANCEL_JOB, CANCEL.into());
    (issue.payload.args_hash, issue.payload.fetch_by) = (Hash::of(&args), Millis(REPORT_BY as i64));
    (issue.payload.root, issue.payload.leaf_count) = (tree.root(), tree.leaf_count());
    let bytes = rmp_serde::to_vec_named(&issue.payload).unwrap();
    let envelope = Envelope::sign(ORDER_PAYLOAD_TYPE, bytes, &Signer::from_seed(&[9; 32]));
    let all: Vec<u32> = (0..tree.leaf_count()).collect();
    (issue.job.id, issue.job.number, issue.job.verb) = (CANCEL_JOB, CANCEL_ORDER, CANCEL.into());
    (issue.job.args, issue.job.envelope, issue.job.origin) = (args.clone(), envelope.clone(), Some(JOB));
    issue.job.fetch_by = issue.payload.fetch_by;
    issue.devices.iter_mut().for_each(|row| row.job = CANCEL_JOB);
    issue.message = Some(OrderMessage { envelope, args, proof: tree.prove(&all) });
    issue
}

impl Bench {
    /// Cancels the job as the API does; answers the effects and whom the cancel had to reach.
    pub fn cancel(&mut self) -> (Vec<Effect>, Vec<u128>) {
        let plan = self.core.cancel_plan(&tenant(), JOB).unwrap();
        assert_eq!((plan.target, plan.report_by), (ORDER, Millis(REPORT_BY as i64)));
        let reach: Vec<u128> = plan.steer.iter().map(|(device, _)| device.0.as_u128()).collect();
        let steering = (!reach.is_empty()).then(|| steering(&reach));
        let cancel = CancelJob { tenant: tenant(), target: ORDER, receipt: RECEIPT, who: "me".into(), steering };
        (self.feed(Event::Cancel(Box::new(cancel))), reach)
    }

    fn facts(&mut self, by: &Arc<Child>, fact: Fact, device: u128) -> Vec<Effect> {
        let facts = Facts { facts: vec![(ORDER, fact, vec![node(device)])] };
        let run = spooled(by.node.0.as_u128(), vec![(class::FACTS, rmp_serde::to_vec(&facts).unwrap())]);
        self.clock += 1;
        // Each call is a fresh opening of that node's store, so that its stream starts anew.
        let stream = branchline_protocol::record::StreamId { incarnation: self.clock, ..run.stream };
        self.said(by, Message::Records(vec![Run { stream, ..run }]))
    }

    /// (state, reason) of the newest write of the job's row for a device.
    pub fn last(&self, device: u128) -> Option<(State, Option<String>)> {
        let of = |op: &Op| match op {
            Op::JobDevice { device: d, job: JOB, state, reason, .. } if *d == node(device) => {
                Some((*state, reason.clone()))
            }
            _ => None,
        };
        self.ops.iter().filter_map(of).next_back()
    }

    /// The holders in the store.
    pub fn holders(&self, device: u128) -> Vec<u128> {
        let of = |op: &Op| match op {
            Op::Job(job, rows) if job.id == JOB => {
                rows.iter().find(|row| row.device == Ok(node(device))).map(|row| row.holders.clone())
            }
            Op::Holders { device: d, job: JOB, holders, .. } if *d == node(device) => Some(holders.clone()),
            _ => None,
        };
        let last = self.ops.iter().filter_map(of).next_back().unwrap_or_default();
        last.iter().map(|id| id.0.as_u128()).collect()
    }

    /// The server starts again from what it made durable.
    pub fn restart(&mut self) {
        self.restart_in(Vec::new());
    }

    /// The same with devices in these epochs.
    pub fn restart_in(&mut self, epochs: Vec<(NodeId, u32)>) {
        let mut jobs: BTreeMap<OrderNumber, (JobRow, Vec<JobDeviceRow>)> = BTreeMap::new();
        let mut found = Recovered { tenants: vec![tenant()], ..Recovered::default() };
        found.nodes = (1..=9).chain([100, 101]).map(row).collect();
        for (node, epoch) in epochs {
            found.nodes.iter_mut().filter(|row| row.id == node).for_each(|row| row.epoch = epoch);
        }
        for op in &self.ops {
            match op {
                Op::Job(job, rows) => {
                    jobs.insert(job.number, ((**job).clone(), rows.clone()));
                }
                Op::JobDevice { job, device, state, reason, .. } => {
                    let rows = jobs.values_mut().filter(|(row, _)| row.id == *job).flat_map(|(_, rows)| rows);
                    rows.filter(|row| row.device == Ok(*device))
                        .for_each(|row| (row.state, row.reason) = (*state, reason.clone()));
                }
                Op::Holders { job, device, holders, .. } => {
                    let rows = jobs.values_mut().filter(|(row, _)| row.id == *job).flat_map(|(_, rows)| rows);
                    rows.filter(|row| row.device == Ok(*device)).for_each(|row| row.holders.clone_from(holders));
                }
                Op::Attached { node, epoch, attachment, last_contact, .. } => {
                    for row in found.nodes.iter_mut().filter(|row| row.id == *node && row.epoch <= *epoch) {
                        (row.epoch, row.attachment, row.last_contact) = (*epoch, *attachment, Some(*last_contact));
                    }
                }
                Op::Stream(tenant, row) => found.streams.push((tenant.clone(), *row)),
                Op::Meta(key, value) if key.starts_with("disk/") => {
                    let relay = key.rsplit('/').next().unwrap().parse().unwrap();
                    found.disks.push((tenant(), relay, u64::from_be_bytes(value[..].try_into().unwrap())));
                }
                _ => {}
            }
        }
        let open = |rows: &[JobDeviceRow]| rows.iter().any(|row| !row.state.is_end());
        found.jobs = jobs.into_values().filter(|(_, rows)| open(rows)).collect();
        (self.core, self.held) = (Core::recover(found).unwrap(), Vec::new());
    }

    /// Relay 100 is here with device 2 below it and has been given the order.
    fn held_by_a_relay() -> (Bench, Arc<Child>) {
        let mut bench = Bench::new();
        let relay = child(100, 1);
        bench.feed(Event::Up(relay.clone()));
        bench.said(&relay, presence(vec![below(2, 1)]));
        bench.issue(&[2]);
        bench.said(&relay, Message::Taken(vec![(ORDER, vec![node(2)])]));
        (bench, relay)
    }
}

pub fn cancel_result(word: &str) -> Vec<u8> {
    let mut result: JobResult = rmp_serde::from_slice(&result(End::Succeeded)).unwrap();
    (result.order, result.reason, result.exit_code) = (CANCEL_ORDER, Some(word.into()), None);
    rmp_serde::to_vec(&result).unwrap()
}

fn cancels_to(effects: &[Effect], child: u128) -> usize {
    let is_cancel = |list: &Vec<OrderMessage>| list[0].args.len() > 1;
    let to = |e: &&Effect| matches!(e, Effect::Send(n, _, Lane::Urgent | Lane::Work, Message::Orders(list)) if *n == node(child) && is_cancel(list));
    effects.iter().filter(to).count()
}

#[test]
fn job_14_a_device_that_leaves_a_cancelled_order_for_want_of_room_stays_cancelling_across_a_restart() {
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    bench.issue(&[1]);
    assert_eq!(bench.cancel().1, [1]);
    let cancelling = Some((State::Queued, Some("cancelling".into())));
    assert_eq!(bench.last(1), cancelling);
    bench.said(&agent, Message::Left(vec![(ORDER, vec![node(1)], "no_space".into())]));
    assert_eq!(bench.last(1), cancelling, "what is answered as cancelled is not queued again");
    bench.restart();
    let seen = bench.feed(Event::Up(child(1, 2)));
    let number = |order: &OrderMessage| rmp_serde::from_slice::<Payload>(&order.envelope.payload).unwrap().number;
    let offered = |e: &Effect| match e {
        Effect::Send(_, _, _, Message::Orders(list)) => Some(list.iter().map(number).collect::<Vec<_>>()),
        _ => None,
    };
    assert_eq!(seen.iter().find_map(offered), Some(vec![CANCEL_ORDER]), "the cancel alone");
}

#[test]
fn the_first_holder_is_durable_with_the_job_and_a_later_one_before_it_is_sent_anything() {
    let mut bench = Bench::new();
    bench.feed(Event::Up(child(1, 1)));
    let commits = bench.ops.len();
    assert_eq!(orders_to(&bench.issue(&[1, 2]), 1), [1]);
    assert_eq!((bench.holders(1), bench.holders(2)), (vec![1], vec![]));
    let of_job = |op: &&Op| matches!(op, Op::Holders { .. });
    assert_eq!(bench.ops[commits..].iter().filter(of_job).count(), 0, "no write of its own");
    bench.hold = true;
    let seen = bench.feed(Event::Up(child(2, 2)));
    assert!(orders_to(&seen, 2).is_empty(), "not before it is a holder on disk");
    assert_eq!(orders_to(&bench.flush(), 2), [1]);
    assert_eq!(bench.holders(2), [2]);
}

#[test]
fn job_4_what_may_be_below_is_not_expired_before_it_is_given_back_or_report_by_has_passed() {
    let (mut bench, relay) = Bench::held_by_a_relay();
    bench.clock = 1_001;
    bench.feed(Event::Tick);
    assert_eq!(bench.last(2), None, "unconfirmed");
    bench.facts(&relay, Fact::GivenBack, 2);
    bench.feed(Event::Tick);
    assert_eq!(bench.last(2), Some((State::Expired, Some("not_fetched".into()))));

    let (mut silent, _) = Bench::held_by_a_relay();
    silent.clock = REPORT_BY - 1;
    silent.feed(Event::Tick);
    assert_eq!(silent.last(2), None, "exactly at report_by it may still be told");
    silent.feed(Event::Tick);
    assert_eq!(silent.last(2), Some((State::Expired, Some("silent".into()))));
}

#[test]
fn job_4_a_device_that_had_it_and_is_silent_at_report_by_ends_unknown() {
    let mut bench = Bench::new();
    let agent = child(1, 1);
    bench.feed(Event::Up(agent.clone()));
    bench.issue(&[1]);
    bench.said(&agent, Message::Taken(vec![(ORDER, vec![node(1)])]));
    bench.clock = REPORT_BY - 1;
    bench.feed(Event::Tick);
    assert_eq!(bench.last(1), Some((State::Delivered, None)));
    bench.feed(Event::Tick);
    assert_eq!(bench.last(1), Some((State::OutcomeUnknown, Some("silent".into()))));
    let late = |bench: &Bench| bench.ops.iter().filter(|op| matches!(op, Op::LateResult { .. })).count();
    bench.said(&agent, Message::Records(vec![spooled(1, vec![(class::RESULT, result(End::Succeeded))])]));
    assert_eq!(late(&bench), 1, "the store decides whether it still counts");
    assert_eq!(bench.last(1), Some((State::OutcomeUnknown, Some("silent".into()))), "nothing else is written");
}

#[test]
fn job_14_what_nobody_can_have_is_cancelled_at_once_and_durably() {
    let mut bench = Bench::new();
    bench.issue(&[1]);
    bench.hold = true;
    let (seen, reach) = bench.cancel();
    assert!(reach.is_empty() && seen.is_empty(), "nothing is told before it is on disk");
    assert!(bench.flush().iter().any(|e| matches!(e, Effect::Issued(RECEIPT))));
    assert_eq!(bench.last(1), Some((State::Cancelled, None)));
    assert!(bench.ops.iter().any(|op| matches!(op, Op::Audit(a) if a.what == "job.cancel")));
    assert!(orders_to(&bench.feed(Event::Up(child(1, 1))), 1).is_empty(), "never sent");
    assert!(bench.core.cancel_plan(&tenant(), JOB).is_none(), "it is final");
}

#[test]
fn job_14_a_held_order_is_cancelling_until_its_last_holder_gave_it_back() {
    let (mut bench, relay) = Bench::held_by_a_relay();
    let (seen, reach) = bench.cancel();
    assert_eq!(reach, [2]);
    assert_eq!(bench.last(2), Some((State::Queued, Some("cancelling".into()))));
    assert_eq!(cancels_to(&seen, 100), 1);
    bench.facts(&child(101, 9), Fact::GivenBack, 2);
    assert_eq!(bench.last(2).unwrap().0, State::Queued, "a link that is not here says nothing");
    bench.facts(&relay, Fact::GivenBack, 2);
    assert_eq!(bench.last(2), Some((State::Cancelled, None)));
    assert!(bench.core.tenant(&tenant()).unwrap().orders.is_empty(), "and the steering order is withdrawn");
}

#[test]
fn job_14_the_agents_word_is_an_end_too_and_what_runs_ends_by_its_own_result() {
    let agent = child(1, 1);
    let delivered = || {
        let mut bench = Bench::new();
        bench.feed(Event::Up(agent.clone()));
        bench.issue(&[1]);
        bench.said(&agent, Message::Taken(vec![(ORDER, vec![node(1)])]));
        let (seen, _) = bench.cancel();
        assert_eq!(cancels_to(&seen, 1), 1);
        assert_eq!(bench.last(1), Some((State::Delivered, Some("cancelling".into()))));
        bench
    };
    let mut closed = delivered();
    let run = spooled(1, vec![(class::RESULT, cancel_result(cancel::CANCELLED))]);
    closed.said(&agent, Message::Records(vec![run]));
    assert_eq!(closed.last(1), Some((State::Cancelled, None)));

    let mut running = delivered();
    let run = spooled(1, vec![(class::RESULT, cancel_result(cancel::RUNNING)), (class::RESULT, result(End::Failed))]);
    running.said(&agent, Message::Records(vec![run]));
    assert_eq!(running.last(1).unwrap().0, State::Failed);
}

#[test]
fn job_14_a_cancel_goes_on_after_the_server_started_again() {
    let (mut bench, _) = Bench::held_by_a_relay();
    bench.feed(Event::Gone(child(100, 1), LinkEnd::Silent));
    let (seen, _) = bench.cancel();
    assert_eq!(cancels_to(&seen, 100), 0, "the relay is cut off");
    bench.restart();
    assert_eq!(bench.last(2), Some((State::Queued, Some("cancelling".into()))));
    let relay = child(100, 2);
    let seen = bench.feed(Event::Up(relay.clone()));
    assert_eq!((orders_to(&seen, 100), cancels_to(&seen, 100)), (vec![1], 1), "the cancel, and not what it cancels");
    bench.facts(&relay, Fact::GivenBack, 2);
    assert_eq!(bench.last(2), Some((State::Cancelled, None)));
}

#[test]
fn job_14_every_holder_is_told_wherever_the_device_is_now() {
    let (mut bench, old) = Bench::held_by_a_relay();
    let new = child(101, 1);
    bench.feed(Event::Up(new.clone()));
    bench.said(&new, presence(vec![below(2, 2)]));
    assert_eq!(bench.holders(2), [100, 101]);
    let (seen, _) = bench.cancel();
    assert_eq!((cancels_to(&seen, 100), cancels_to(&seen, 101)), (1, 1));
    bench.facts(&new, Fact::GivenBack, 2);
    assert_eq!(bench.last(2).unwrap().0, State::Queued, "the old relay may still hand it over");
    bench.facts(&old, Fact::GivenBack, 2);
    assert_eq!(bench.last(2).unwrap().0, State::Cancelled);
}

#[test]
fn rly_9_a_device_gives_back_only_for_itself() {
    let mut bench = Bench::new();
    let (one, two) = (child(1, 1), child(2, 2));
    bench.feed(Event::Up(one.clone()));
    bench.feed(Event::Up(two.clone()));
    bench.issue(&[1, 2]);
    bench.facts(&one, Fact::GivenBack, 2);
    bench.facts(&one, Fact::HandedOver, 2);
    assert_eq!((bench.holders(2), bench.last(2)), (vec![2], None));
    bench.facts(&two, Fact::GivenBack, 2);
    assert!(bench.holders(2).is_empty());
}

#[test]
fn a_relay_with_another_disk_leaves_the_device_itself_as_holder_even_across_a_restart() {
    let (mut bench, _) = Bench::held_by_a_relay();
    bench.restart();
    let mut replaced = Child::clone(&child(100, 2));
    let greeting = Greeting { incarnation: 77, disk: 77, ..Greeting::clone(&replaced.greeting) };
    replaced.greeting = Arc::new(greeting);
    let replaced = Arc::new(replaced);
    bench.feed(Event::Up(replaced.clone()));
    assert_eq!(bench.holders(2), [2]);
    bench.said(&replaced, presence(vec![below(2, 1)]));
    assert_eq!(bench.holders(2), [2, 100], "and it is offered it anew");
    bench.cancel();
    bench.facts(&replaced, Fact::GivenBack, 2);
    assert_eq!(bench.last(2).unwrap().0, State::Queued, "the device may have it from the lost disk");
}

#[test]
fn job_16_a_suspended_device_is_sent_nothing_and_gets_what_waited_once_it_is_revived() {
    use branchline_protocol::document::{Document, Kind, Revocations};
    let mut bench = Bench::new();
    let list = |version: u64, suspended: Vec<NodeId>| {
        let list = Revocations {
            tenant: tenant(),
            term: 1,
            version,
            revoked: vec![],
            suspended,
            raised: vec![],
            keep_connection: vec![],
        };
        let sealed = list.seal(&Signer::from_seed(&[9; 32]));
        Event::Document(tenant(), Kind::Revocations, String::new(), list.version(), sealed)
    };
    bench.feed(Event::Up(child(1, 1)));
    let told = bench.feed(list(2, vec![node(1)]));
    assert!(told.iter().any(|e| matches!(e, Effect::Send(_, _, _, Message::Document(Kind::Revocations, _)))));
    assert_eq!(bench.stands(1), "suspended");
    assert!(orders_to(&bench.issue(&[1]), 1).is_empty());
    assert!(orders_to(&bench.feed(Event::Up(child(1, 2))), 1).is_empty());
    assert!(bench.holders(1).is_empty());
    assert_eq!(orders_to(&bench.feed(list(3, vec![])), 1), [1]);
    assert_eq!(bench.stands(1), "online");

    let mut late = Bench::new();
    late.feed(Event::Up(child(1, 1)));
    late.feed(list(2, vec![node(1)]));
    late.issue(&[1]);
    late.clock = 1_000;
    late.feed(Event::Tick);
    assert_eq!(late.last(1), Some((State::Expired, Some("not_fetched".into()))), "its life ran on");
    assert!(orders_to(&late.feed(list(3, vec![])), 1).is_empty());
}

#[test]
fn relays_below_relays_on_the_devices_way_are_known_to_hold_its_order_until_it_is_over() {
    let mut bench = Bench::new();
    let relay = child(100, 1);
    bench.feed(Event::Up(relay.clone()));
    let nested = |n| PresenceEntry { via: vec![node(101)], ..below(n, 1) };
    bench.said(&relay, presence(vec![nested(2), below(3, 1)]));
    bench.issue(&[2, 3]);
    bench.facts(&relay, Fact::Held, 3);
    let held = |bench: &Bench, device| -> Vec<NodeId> {
        let held = bench.core.tenant(&tenant()).unwrap().held(ORDER, node(device));
        held.into_iter().map(|(relay, _)| relay).collect()
    };
    assert_eq!(held(&bench, 3), [node(100)]);
    let word = |by, device| {
        let facts = Facts { facts: vec![(ORDER, Fact::Held, vec![node(device)])] };
        Message::Records(vec![spooled(by, vec![(class::FACTS, rmp_serde::to_vec(&facts).unwrap())])])
    };
    bench.said(&relay, word(101, 2));
    assert_eq!(held(&bench, 2), [node(101)]);
    assert_eq!(held(&bench, 3), [node(100)]);
    assert!(bench.states(2).is_empty(), "nobody knows that the device has it");
    bench.said(&relay, Message::Records(vec![spooled(2, vec![(class::RESULT, result(End::Succeeded))])]));
    assert!(held(&bench, 2).is_empty());
}
