//! Jobs after they were issued: cancelled, issued anew, past their time.

use super::*;
use serde_json::json;

fn order(on: &str) -> Value {
    json!({"on": on, "verb": "run_script", "args": {"argv": ["true"]}})
}

async fn issue(world: &World, on: &str) -> String {
    let (status, job) = world.post("a", "/jobs", order(on)).await;
    assert_eq!(status, 201, "{job}");
    job["id"].as_str().unwrap().to_owned()
}

#[actix_web::test]
async fn job_14_an_open_job_is_cancelled_and_one_at_its_end_is_refused() {
    let world = World::new().await;
    let job = issue(&world, "device:pc-2").await;
    let path = format!("/jobs/{job}/cancel");
    let (status, cancelled) = world.post("a", &path, json!({})).await;
    assert_eq!((status, &cancelled["results"][0]["state"]), (200, &json!("cancelled")), "{cancelled}");
    world.refused("a", &path, json!({}), (409, "job_final", None)).await;
    let done = issue(&world, "device:pc-1").await;
    world.refused("a", &format!("/jobs/{done}/cancel"), json!({}), (409, "job_final", None)).await;
}

#[actix_web::test]
async fn job_14_a_job_that_is_not_the_tenants_is_not_there_to_be_cancelled_or_issued_anew() {
    let world = World::new().await;
    let job = issue(&world, "device:pc-2").await;
    for verb in ["cancel", "reissue"] {
        world.refused("b", &format!("/jobs/{job}/{verb}"), json!({}), (404, "unknown_job", None)).await;
        world.refused("a", &format!("/jobs/nonsense/{verb}"), json!({}), (404, "unknown_job", None)).await;
        let body = json!({"force": true});
        world.refused("a", &format!("/jobs/{job}/{verb}"), body, (422, "unknown_field", Some("force"))).await;
    }
}

#[actix_web::test]
async fn a_steering_order_is_no_job_of_anybody() {
    let world = World::new().await;
    let job = issue(&world, "device:pc-2").await;
    let target = world.store.job(&tenant("a"), job.parse().unwrap()).await.unwrap().unwrap();
    let steering = JobRow {
        id: JobId(Uuid::from_u128(77)),
        number: OrderNumber { term: 1, number: 77 },
        verb: "cancel".into(),
        origin: Some(target.id),
        ..target
    };
    let id = steering.id;
    let row = JobDeviceRow {
        job: id,
        leaf: Some(0),
        device: Ok(super::id(2)),
        epoch: 1,
        state: State::Queued,
        reason: None,
        changed_at: NOW,
        result: None,
        holders: vec![],
        delivered_at: None,
        late: false,
    };
    world.store.commit(vec![Op::Job(Box::new(steering), vec![row])]).await.unwrap();
    let (_, list) = world.get("a", "/jobs").await;
    assert_eq!(list["jobs"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(world.get("a", &format!("/jobs/{id}")).await.0, 404);
    world.refused("a", &format!("/jobs/{id}/cancel"), json!({}), (404, "unknown_job", None)).await;
    let body = json!({"on": "all", "verb": "cancel"});
    world.refused("a", "/jobs", body, (422, "unknown_verb", Some("verb"))).await;
}

#[actix_web::test]
async fn con_5_a_job_is_issued_anew_for_those_that_did_not_succeed_once_it_is_over() {
    let world = World::new().await;
    let job = issue(&world, "device:pc-1 or device:pc-2").await;
    let path = format!("/jobs/{job}/reissue");
    world.refused("a", &path, json!({}), (409, "job_open", None)).await;
    world.post("a", &format!("/jobs/{job}/cancel"), json!({})).await;
    let (status, new) = world.post("a", &path, json!({})).await;
    assert_eq!((status, &new["reissue_of"]), (201, &json!(job)), "{new}");
    let devices: Vec<_> = new["results"].as_array().unwrap().iter().map(|r| r["device"].clone()).collect();
    assert_eq!(devices, [json!(id(2).to_string())], "pc-1 had succeeded");
    let done = issue(&world, "device:pc-1").await;
    let path = format!("/jobs/{done}/reissue");
    world.refused("a", &path, json!({}), (409, "nothing_to_reissue", None)).await;
}

#[actix_web::test]
async fn job_4_past_its_time_a_job_shows_expired_and_is_complete_only_once_that_is_confirmed() {
    let world = World::new().await;
    let job = issue(&world, "device:pc-2").await;
    let path = format!("/jobs/{job}");
    let shown = |job: &Value| {
        let row = &job["results"][0];
        (row["state"].clone(), row["reason"].clone(), job["complete"].clone(), job["counts"]["expired"].clone())
    };
    world.clock.set_wall(NOW.plus(30 * DAY_MS));
    let (_, at) = world.get("a", &path).await;
    assert_eq!(shown(&at), (json!("queued"), Value::Null, json!(false), json!(0)), "exactly then it may be fetched");
    world.clock.set_wall(NOW.plus(30 * DAY_MS + 1));
    let (_, past) = world.get("a", &path).await;
    assert_eq!(shown(&past), (json!("expired"), json!("unconfirmed"), json!(false), json!(1)));
    let (_, counted) = world.get("a", &format!("{path}?results=none")).await;
    assert_eq!((&counted["counts"], &counted["complete"]), (&past["counts"], &json!(false)));
    assert_eq!(counted.get("results"), None);
    let (_, list) = world.get("a", "/jobs").await;
    assert_eq!((&list["jobs"][0]["counts"]["expired"], &list["jobs"][0]["complete"]), (&json!(1), &json!(false)));
    let (_, done) = world.get("a", &format!("{path}?wait_ms=10")).await;
    assert_eq!((&done["results"][0]["reason"], &done["complete"]), (&Value::Null, &json!(true)));
}
