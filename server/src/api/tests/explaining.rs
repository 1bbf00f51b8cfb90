//! Where a job is on a device, at each moment of its life.

use super::*;
use branchline_node::downstream::ledger::Row;
use serde_json::json;

struct Told {
    world: World,
    job: JobRow,
    device: NodeId,
}

impl Told {
    /// A job that the device has not got.
    async fn issued(name: &str, device: u128) -> Told {
        let world = World::new().await;
        let body = json!({"on": format!("device:{name}"), "verb": "run_script", "args": {"argv": ["true"]}});
        let (_, job) = world.post("a", "/jobs", body).await;
        let job = world.store.job(&tenant("a"), job["id"].as_str().unwrap().parse().unwrap()).await.unwrap().unwrap();
        Told { world, job, device: id(device) }
    }

    async fn set(&self, state: State, reason: Option<&str>, at: i64, result: Option<ResultRow>) {
        let (tenant, job, device, at) = (tenant("a"), self.job.id, self.device, NOW.plus(at));
        let reason = reason.map(String::from);
        let op = Op::JobDevice { tenant, job, device, state, reason, at, result };
        self.world.store.commit(vec![op]).await.unwrap();
    }

    async fn holders(&self, holders: Vec<NodeId>) {
        let op = Op::Holders { tenant: tenant("a"), job: self.job.id, device: self.device, holders };
        self.world.store.commit(vec![op]).await.unwrap();
    }

    async fn explain(&self) -> Value {
        let path = format!("/jobs/{}/devices/{}/explain", self.job.id, self.device);
        let (status, explained) = self.world.get("a", &path).await;
        assert_eq!(status, 200, "{explained}");
        explained
    }

    /// (node, event) of each step.
    async fn steps(&self) -> Vec<(String, String)> {
        let explained = self.explain().await;
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        explained["timeline"].as_array().unwrap().iter().map(|s| (text(&s["node"]), text(&s["event"]))).collect()
    }
}

fn steps(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(node, event)| ((*node).to_owned(), (*event).to_owned())).collect()
}

fn ran() -> ResultRow {
    ResultRow {
        exit_code: Some(0),
        stdout: Bytes::new(),
        stderr: Bytes::new(),
        truncated: false,
        started_at: Some(NOW.plus(20)),
        ended_at: NOW.plus(30),
    }
}

#[actix_web::test]
async fn a_queued_job_names_who_is_out_of_reach_since_when_and_when_it_is_due() {
    let told = Told::issued("pc-2", 2).await;
    let explained = told.explain().await;
    assert_eq!((&explained["state"], &explained["reason"]), (&json!("queued"), &json!("unreachable")));
    assert_eq!(explained["next_contact"], json!("2026-11-01T10:30:00.250Z"));
    let last = explained["timeline"].as_array().unwrap().last().unwrap().clone();
    let expected =
        json!({"at": "2026-11-01T09:30:00.250Z", "node": "PC-2", "event": "unreachable", "detail": "timeout"});
    assert_eq!(last, expected, "its last contact and what became of it");
    assert_eq!(told.steps().await[0], ("hq".into(), "issued".into()));
}

#[actix_web::test]
async fn a_job_held_by_a_relay_that_is_cut_off_says_so() {
    let told = Told::issued("pc-2", 2).await;
    told.holders(vec![id(50)]).await;
    *told.world.control.whereabouts.lock().unwrap() =
        Whereabouts { row: Some(Row::Held(id(50))), cut_off: Some((id(50), NOW.plus(-9_000))), held: vec![] };
    assert_eq!(told.steps().await, steps(&[("hq", "issued"), ("osaka", "held"), ("osaka", "unreachable")]));
    let explained = told.explain().await;
    assert_eq!(explained["timeline"][2]["at"], json!("2026-11-01T09:29:51.250Z"));
    // What relays below it told stands behind it, with their time.
    let below = vec![(id(2), NOW.plus(40))];
    *told.world.control.whereabouts.lock().unwrap() =
        Whereabouts { row: Some(Row::Held(id(50))), cut_off: None, held: below };
    assert_eq!(told.steps().await[1..3], steps(&[("osaka", "held"), ("PC-2", "held")]));
    assert!(told.explain().await["timeline"][2]["at"].is_string());
    // After a restart of the server it is known only that the relay may have it.
    *told.world.control.whereabouts.lock().unwrap() = Whereabouts::default();
    assert_eq!(told.steps().await[1], ("osaka".into(), "sent".into()));
}

#[actix_web::test]
async fn every_step_of_a_job_that_ran_is_told_in_its_order() {
    let told = Told::issued("pc-2", 2).await;
    told.set(State::Delivered, None, 10, None).await;
    assert_eq!(told.steps().await, steps(&[("hq", "issued"), ("PC-2", "delivered"), ("PC-2", "unreachable")]));
    told.set(State::Running, None, 20, None).await;
    assert_eq!(told.steps().await[2], ("PC-2".into(), "started".into()));
    told.set(State::Succeeded, None, 40, Some(ran())).await;
    let all = [("hq", "issued"), ("PC-2", "delivered"), ("PC-2", "started"), ("PC-2", "ended"), ("hq", "recorded")];
    assert_eq!(told.steps().await, steps(&all));
    let explained = told.explain().await;
    assert_eq!((&explained["reason"], &explained["next_contact"]), (&Value::Null, &Value::Null));
}

/// A relay's and a device's clock need not agree with the server's.
#[actix_web::test]
async fn what_other_clocks_dated_stands_behind_its_cause() {
    let told = Told::issued("pc-2", 2).await;
    told.set(State::Delivered, None, -9_000, None).await;
    told.set(State::Succeeded, None, -4_000, Some(ran())).await;
    let early = |at: i64| NOW.plus(at - 10_000);
    let result = ResultRow { started_at: Some(early(20)), ended_at: early(30), ..ran() };
    let told_early = Told::issued("pc-2", 2).await;
    told_early.set(State::Delivered, None, -9_000, None).await;
    told_early.set(State::Succeeded, None, -9_500, Some(result)).await;
    let all = [("hq", "issued"), ("PC-2", "delivered"), ("PC-2", "started"), ("PC-2", "ended"), ("hq", "recorded")];
    for told in [told, told_early] {
        assert_eq!(told.steps().await, steps(&all), "{}", told.explain().await);
    }
}

#[actix_web::test]
async fn an_end_that_the_server_concluded_and_the_late_result_that_replaced_it_are_told_apart() {
    let told = Told::issued("pc-2", 2).await;
    told.set(State::Expired, Some("silent"), 40, None).await;
    assert_eq!(told.steps().await, steps(&[("hq", "issued"), ("hq", "expired")]));
    let late = Op::LateResult {
        tenant: tenant("a"),
        order: told.job.number,
        device: told.device,
        state: State::Succeeded,
        reason: None,
        at: NOW.plus(50),
        result: ran(),
    };
    told.world.store.commit(vec![late]).await.unwrap();
    let explained = told.explain().await;
    assert_eq!(explained["state"], json!("succeeded"));
    let recorded = explained["timeline"].as_array().unwrap().last().unwrap().clone();
    assert!(recorded["detail"].as_str().unwrap().starts_with("late"), "{recorded}");
    let (_, job) = told.world.get("a", &format!("/jobs/{}", told.job.id)).await;
    assert_eq!(job["results"][0]["late"], json!(true));
}

#[actix_web::test]
async fn job_14_a_cancel_under_way_names_those_whose_word_is_waited_for() {
    let told = Told::issued("pc-1", 1).await;
    told.holders(vec![id(50)]).await;
    told.set(State::Queued, Some("cancelling"), 10, None).await;
    let steering = JobRow {
        id: JobId(Uuid::from_u128(77)),
        number: OrderNumber { term: 1, number: 77 },
        verb: "cancel".into(),
        origin: Some(told.job.id),
        issued_at: NOW.plus(10),
        ..told.job.clone()
    };
    let row = told.world.store.job_devices(&tenant("a"), told.job.id).await.unwrap().remove(0);
    let row = JobDeviceRow { job: steering.id, result: None, state: State::Queued, reason: None, ..row };
    told.world.store.commit(vec![Op::Job(Box::new(steering), vec![row])]).await.unwrap();
    let explained = told.explain().await;
    assert_eq!((&explained["state"], &explained["reason"]), (&json!("queued"), &json!("cancelling")));
    let all = told.steps().await;
    assert!(all.contains(&("hq".into(), "cancelling".into())), "{all:?}");
    assert_eq!(all.last().unwrap(), &("hq".into(), "waiting".into()));
    let last = explained["timeline"].as_array().unwrap().last().unwrap()["detail"].clone();
    assert_eq!(last, json!("for the word of osaka"));
}

#[actix_web::test]
async fn a_job_or_device_that_is_not_there_is_404() {
    let told = Told::issued("pc-2", 2).await;
    let not = async |path: String| told.world.get("a", &path).await;
    let (job, nonsense) = (told.job.id, "nonsense");
    assert_eq!(not(format!("/jobs/{nonsense}/devices/pc-2/explain")).await.1["code"], "unknown_job");
    assert_eq!(not(format!("/jobs/{job}/devices/nobody/explain")).await.1["code"], "unknown_device");
    assert_eq!(not(format!("/jobs/{job}/devices/pc-1/explain")).await.1["code"], "unknown_device", "not of this job");
    let (status, other) = told.world.get("b", &format!("/jobs/{job}/devices/pc-9/explain")).await;
    assert_eq!((status, &other["code"]), (404, &json!("unknown_job")));
}
