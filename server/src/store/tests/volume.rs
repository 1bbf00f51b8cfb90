//! Many rows: batches as a relay brings them, and how the database finds their rows.

use super::*;
use crate::store::write::{RESULTS, STATES, delivery::DELIVERIES};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};

#[tokio::test]
async fn three_hundred_results_with_their_streams_are_one_transaction() {
    let place = Place::new();
    let store = place.open().await;
    let main = tenant("main");
    let devices = 3_000;
    let targets = (0..devices).map(|n| target(70, u128::from(n) + 1, n)).collect();
    store.commit(vec![Op::Job(job("main", 70, 1), targets)]).await.unwrap();
    let before = store.fsyncs();
    let batch = (1..=300u128).flat_map(|n| {
        let done = ended("main", 70, n, State::Succeeded, Some(result(&n.to_string())));
        [done, Op::Stream(main.clone(), stream(n, 1))]
    });
    store.commit(batch.collect()).await.unwrap();
    assert_eq!(store.fsyncs() - before, 1);
    let counts = store.job_counts(&main, job_id(70)).await.unwrap();
    assert_eq!(counts, BTreeMap::from([(State::Queued, 2_700), (State::Succeeded, 300)]));
    let rows = store.job_devices(&main, job_id(70)).await.unwrap();
    assert_eq!(rows.len(), devices as usize);
    for (n, row) in rows.iter().enumerate() {
        let expected = (n < 300).then(|| result(&(n + 1).to_string()));
        assert_eq!((row.leaf, &row.result), (Some(n as u32), &expected));
    }
    assert_eq!(store.streams().await.unwrap().len(), 300);
}

#[tokio::test]
async fn rows_are_read_in_pieces_and_none_is_missing_at_their_bounds() {
    let place = Place::new();
    let store = place.open().await;
    let main = tenant("main");
    let long = "x".repeat(1_025);
    let word = |n: u32| JobDeviceRow { leaf: None, device: Err(format!("pc-{n:03}")), ..target(0, 0, 0) };
    for (n, (devices, words)) in
        [(0, 1), (255, 0), (256, 0), (257, 0), (0, 256), (100, 156), (200, 300), (512, 1)].into_iter().enumerate()
    {
        let id = 70 + n as u128;
        // The last of the order is the first by its id.
        let targets = (0..devices).map(|at| target(id, 1_000 - u128::from(at), at)).chain((0..words).map(word));
        store.commit(vec![Op::Job(job("main", id, n as u64), targets.collect())]).await.unwrap();
        let output = |at: u32| if at == 0 { long.clone() } else { at.to_string() };
        let done = |at| ended("main", id, 1_000 - u128::from(at), State::Succeeded, Some(result(&output(at))));
        store.commit((0..devices).map(done).collect()).await.unwrap();
        let rows = store.job_devices(&main, job_id(id)).await.unwrap();
        let told: Vec<String> = rows
            .iter()
            .map(|row| match &row.result {
                Some(result) => String::from_utf8(result.stdout.to_vec()).unwrap(),
                None => row.device.clone().unwrap_err(),
            })
            .collect();
        let expected = (0..devices).map(output).chain((0..words).map(|n| format!("pc-{n:03}")));
        assert_eq!(told, expected.collect::<Vec<_>>(), "{devices} devices, {words} words");
    }
}

/// A job may have 90,000 devices: a statement that walks them all for a batch of 256 would show here.
#[tokio::test]
async fn many_row_statements_find_their_rows_by_key() {
    let place = Place::new();
    place.open().await.close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(place.file());
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    for text in [STATES.text(256), RESULTS.text(256), DELIVERIES.text(256)] {
        let sql = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}"));
        let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get::<String, _>(3)).collect();
        let by_key = |line: &String| line.starts_with("SEARCH d ") && line.contains("tenant=? AND job=? AND device=?");
        assert!(plan.iter().any(by_key), "{plan:#?}");
        assert!(!plan.iter().any(|line| line.starts_with("SCAN d")), "{plan:#?}");
    }
}
