//! Holders, steering orders and late results.

use super::*;
use std::borrow::Cow;

async fn open_with_a_job() -> (Place, Arc<SqliteStore>) {
    let place = Place::new();
    let store = place.open().await;
    let rows = vec![target(1, 71, 0), target(1, 72, 1), target(1, 73, 2)];
    store.commit(vec![Op::Job(job("main", 1, 5), rows)]).await.unwrap();
    (place, store)
}

async fn row(store: &SqliteStore, device: u128) -> JobDeviceRow {
    let rows = store.job_devices(&tenant("main"), job_id(1)).await.unwrap();
    rows.into_iter().find(|row| row.device == Ok(node_id(device))).unwrap()
}

fn late(order: u64, device: u128, state: State, text: &str) -> Op {
    let (tenant, order, device) = (tenant("main"), OrderNumber { term: 1, number: order }, node_id(device));
    Op::LateResult { tenant, order, device, state, reason: None, at: Millis(99), result: result(text) }
}

#[tokio::test]
async fn rly_9_a_late_result_replaces_a_concluded_end_once_and_no_other() {
    let (_place, store) = open_with_a_job().await;
    store.commit(vec![late(5, 71, State::Succeeded, "early")]).await.unwrap();
    assert_eq!(row(&store, 71).await.state, State::Queued, "an open one is not the late result's business");
    let ends = vec![
        ended("main", 1, 71, State::Expired, None),
        ended("main", 1, 72, State::OutcomeUnknown, None),
        ended("main", 1, 73, State::Cancelled, None),
    ];
    store.commit(ends).await.unwrap();
    let lates = |text| [71, 72, 73].map(|device| late(5, device, State::Succeeded, text)).to_vec();
    store.commit(lates("first")).await.unwrap();
    store.commit(lates("second")).await.unwrap();
    store.commit(vec![late(6, 71, State::Failed, "of an order that is not there")]).await.unwrap();
    for device in [71, 72] {
        let row = row(&store, device).await;
        let told = row.result.unwrap();
        assert_eq!((row.state, row.late, row.changed_at), (State::Succeeded, true, Millis(99)));
        assert_eq!(told.stdout, "first");
    }
    let cancelled = row(&store, 73).await;
    assert_eq!((cancelled.state, cancelled.late, cancelled.result), (State::Cancelled, false, None));
    let counts = store.job_counts(&tenant("main"), job_id(1)).await.unwrap();
    assert_eq!(counts, [(State::Succeeded, 2), (State::Cancelled, 1)].into(), "counts follow");
}

#[tokio::test]
async fn an_unknown_outcome_that_the_agent_reported_stays() {
    let (_place, store) = open_with_a_job().await;
    store.commit(vec![ended("main", 1, 71, State::OutcomeUnknown, Some(result("cut")))]).await.unwrap();
    store.commit(vec![late(5, 71, State::Succeeded, "other")]).await.unwrap();
    let row = row(&store, 71).await;
    assert_eq!((row.state, row.late, row.result.unwrap().stdout), (State::OutcomeUnknown, false, "cut".into()));
}

#[tokio::test]
async fn holders_are_kept_and_the_time_of_delivery_is_that_of_the_first() {
    let (place, store) = open_with_a_job().await;
    let holders = |device| {
        let (tenant, holders) = (tenant("main"), vec![node_id(500), node_id(501)]);
        Op::Holders { tenant, job: job_id(1), device: node_id(device), holders }
    };
    store.commit(vec![holders(71), holders(999)]).await.unwrap();
    store.commit(vec![ended("main", 1, 71, State::Delivered, None)]).await.unwrap();
    let (tenant, job, device) = (tenant("main"), job_id(1), node_id(71));
    let (state, reason, at, result) = (State::Running, None, Millis(60), None);
    store.commit(vec![Op::JobDevice { tenant, job, device, state, reason, at, result }]).await.unwrap();
    store.close().await;
    let store = place.open().await;
    let row = row(&store, 71).await;
    assert_eq!(row.holders, [node_id(500), node_id(501)]);
    assert_eq!((row.state, row.delivered_at, row.changed_at), (State::Running, Some(Millis(40)), Millis(60)));
    let all = store.job_devices(&tenant_main(), job_id(1)).await.unwrap();
    assert_eq!(all.len(), 3, "a device that is not of the job changes nothing");
}

fn tenant_main() -> TenantId {
    tenant("main")
}

#[tokio::test]
async fn a_steering_order_is_in_no_list_and_is_found_by_its_job() {
    let (_place, store) = open_with_a_job().await;
    let steering = JobRow { verb: "cancel".into(), origin: Some(job_id(1)), ..*job("main", 2, 6) };
    let again = JobRow { origin: Some(job_id(1)), ..*job("main", 3, 7) };
    store.commit(vec![Op::Job(Box::new(steering.clone()), vec![target(2, 71, 0)])]).await.unwrap();
    store.commit(vec![Op::Job(Box::new(again.clone()), vec![target(3, 71, 0)])]).await.unwrap();
    let listed: Vec<JobId> = store.jobs(&tenant_main(), 9).await.unwrap().into_iter().map(|head| head.id).collect();
    assert_eq!(listed, [job_id(3), job_id(1)]);
    assert_eq!(store.steering(&tenant_main(), job_id(1)).await.unwrap(), [steering]);
    assert!(store.steering(&tenant("other"), job_id(1)).await.unwrap().is_empty());
    assert_eq!(store.job(&tenant_main(), job_id(3)).await.unwrap(), Some(again));
    assert_eq!(store.open_jobs().await.unwrap().len(), 3, "it goes on after a restart like any order");
}

#[tokio::test]
async fn adm_9_the_last_delivery_of_a_device_is_of_its_newest_job_that_it_had() {
    let (_place, store) = open_with_a_job().await;
    let rows = vec![target(2, 71, 0), target(2, 72, 1)];
    store.commit(vec![Op::Job(job("main", 2, 6), rows)]).await.unwrap();
    let last = async |devices: &[u128]| {
        let devices: Vec<NodeId> = devices.iter().copied().map(node_id).collect();
        store.last_deliveries(&tenant("main"), &devices).await.unwrap()
    };
    assert!(last(&[71, 72, 73]).await.is_empty(), "nobody had any");
    for n in [71, 72, 73] {
        store.commit(vec![Op::Node(node("main", n, &format!("pc-{n}")))]).await.unwrap();
    }
    let step = |job, device, state, at| Op::JobDevice {
        tenant: tenant("main"),
        job: job_id(job),
        device: node_id(device),
        state,
        reason: None,
        at: Millis(at),
        result: None,
    };
    let steps = vec![
        step(1, 71, State::Delivered, 40),
        step(1, 71, State::Succeeded, 60),
        step(1, 72, State::Succeeded, 70),
        step(2, 71, State::Expired, 80),
        step(2, 72, State::Delivered, 90),
        step(1, 73, State::Cancelled, 50),
    ];
    store.commit(steps).await.unwrap();
    let all = last(&[71, 72, 73]).await;
    let brief = |device| all.get(&node_id(device)).map(|d| (d.job, d.delivered_at.0, d.class));
    assert_eq!(brief(71), Some((job_id(1), 40, Class::Urgent)), "the newer one expired without it");
    assert_eq!(brief(72), Some((job_id(2), 90, Class::Urgent)));
    assert_eq!((brief(73), all.len()), (None, 2), "cancelled, and no device had it");
    assert_eq!(last(&[72]).await, BTreeMap::from([(node_id(72), all[&node_id(72)].clone())]));
    // What is heard later of an older job, once more of the same, or of a job that it is not in, changes nothing.
    let steps = vec![
        step(1, 72, State::Succeeded, 95),
        step(2, 72, State::Running, 96),
        step(2, 72, State::Succeeded, 97),
        step(2, 73, State::Succeeded, 98),
    ];
    store.commit(steps).await.unwrap();
    assert_eq!(last(&[71, 72, 73]).await, all);
    let late = Op::LateResult {
        tenant: tenant_main(),
        order: OrderNumber { term: 1, number: 6 },
        device: node_id(71),
        state: State::Failed,
        reason: None,
        at: Millis(120),
        result: result("late"),
    };
    store.commit(vec![late]).await.unwrap();
    let late = &last(&[71]).await[&node_id(71)];
    assert_eq!((late.job, late.delivered_at), (job_id(2), Millis(120)), "it had the one that had expired");
    assert!(store.last_deliveries(&tenant("other"), &[node_id(71), node_id(72)]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_store_of_the_first_format_is_brought_to_this_one_with_all_it_held() {
    let place = Place::new();
    {
        use sqlx::{Connection, migrate::*};
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(place.file()).create_if_missing(true);
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        let first = include_str!("../../../migrations/0001_initial.sql");
        let sql = sqlx::SqlSafeStr::into_sql_str(first);
        let migration = Migration::new(1, Cow::Borrowed("initial"), MigrationType::Simple, sql, false);
        Migrator::with_migrations(vec![migration]).run_direct(None, &mut connection, false).await.unwrap();
        let insert = "INSERT INTO job_device (tenant, job, device, leaf, epoch, state, reason, changed_at) \
                      VALUES ('main', ?, ?, 0, 1, ?, NULL, ?)";
        for (job, device, state, at) in
            [(1, 71, "queued", 10), (1, 72, "succeeded", 20), (2, 72, "failed", 30), (3, 72, "expired", 40)]
        {
            let (job, device) = (job_id(job), node_id(device));
            let insert = sqlx::query(insert).bind(&job.bytes()[..]).bind(&device.bytes()[..]).bind(state).bind(at);
            insert.execute(&mut connection).await.unwrap();
        }
        connection.close().await.unwrap();
    }
    let store = place.open().await;
    assert_eq!(row(&store, 71).await, target(1, 71, 0));
    store.commit(vec![Op::Job(job("main", 2, 6), vec![])]).await.unwrap();
    let last = store.last_deliveries(&tenant_main(), &[node_id(71), node_id(72)]).await.unwrap();
    let brief: Vec<_> = last.iter().map(|(device, d)| (*device, d.job, d.delivered_at)).collect();
    assert_eq!(brief, [(node_id(72), job_id(2), Millis(30))]);
}
