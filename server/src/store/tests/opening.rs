//! Opening, reopening, and who may.

use super::*;

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let place = Place::new();
    let store = place.open().await;
    let main = tenant("main");
    let unknown = JobDeviceRow {
        leaf: None,
        device: Err("pc-99".into()),
        state: State::NoSuchDevice,
        reason: Some("no device of this name".into()),
        ..target(70, 0, 0)
    };
    let token = TokenRow {
        hash: Hash::of(b"secret"),
        tenant: main.clone(),
        role: Role::Relay,
        site: "osaka".into(),
        kind: "wan".into(),
        uses_left: 2,
        expires_at: Millis(99),
    };
    let api = ApiTokenRow { hash: Hash::of(b"api"), tenant: main.clone(), name: "admin".into() };
    let sealed = job("main", 1, 1).envelope;
    let audit = AuditRow {
        tenant: main.clone(),
        at: Millis(3),
        who: "admin".into(),
        what: "job.issue".into(),
        detail: "70".into(),
    };
    let sections =
        items(serde_json::json!({"os": {"pretty_name": "Debian 13"}, "software": {"a:x": {"version": "1"}}}));
    store
        .commit(vec![
            Op::Tenant(main.clone()),
            Op::Site(main.clone(), "osaka".into()),
            Op::Node(node("main", 1, "PC-1")),
            Op::Token(token.clone()),
            Op::UseToken(token.hash),
            Op::ApiToken(api.clone()),
            Op::Job(job("main", 70, 1), vec![unknown.clone(), target(70, 1, 0)]),
            ended("main", 70, 1, State::Succeeded, Some(result("out"))),
            Op::Stream(main.clone(), stream(1, 9)),
            inventory("main", 1, sections.clone(), &[], true),
            Op::InventoryHistory {
                tenant: main.clone(),
                device: node_id(1),
                collected_at: Millis(2),
                report: Bytes::from_static(b"old"),
            },
            Op::Document(main.clone(), Kind::Upstreams, "osaka".into(), (1, 4), sealed.clone()),
            Op::Meta("term".into(), Bytes::from_static(b"1")),
            Op::Audit(audit.clone()),
        ])
        .await
        .unwrap();
    store.close().await;

    let store = place.open().await;
    assert_eq!(store.tenants().await.unwrap(), std::slice::from_ref(&main));
    assert_eq!(store.sites(&main).await.unwrap(), ["osaka"]);
    assert_eq!(store.nodes().await.unwrap(), [node("main", 1, "PC-1")]);
    assert_eq!(store.token(token.hash).await.unwrap(), Some(TokenRow { uses_left: 1, ..token }));
    assert_eq!(store.api_token(api.hash).await.unwrap(), Some(api));
    assert_eq!(store.job(&main, job_id(70)).await.unwrap(), Some(*job("main", 70, 1)));
    let done = JobDeviceRow {
        state: State::Succeeded,
        reason: Some("why".into()),
        changed_at: Millis(40),
        result: Some(result("out")),
        ..target(70, 1, 0)
    };
    assert_eq!(store.job_devices(&main, job_id(70)).await.unwrap(), [done, unknown]);
    assert_eq!(store.streams().await.unwrap(), [(main.clone(), stream(1, 9))]);
    let held = store.inventory(&main, node_id(1)).await.unwrap().unwrap();
    assert_eq!((held.sections, held.need_full, held.settings_version), (sections, true, 3));
    assert_eq!(store.inventory_history(&main, node_id(1)).await.unwrap(), [(Millis(2), Bytes::from_static(b"old"))]);
    assert_eq!(store.need_full().await.unwrap(), [(main.clone(), node_id(1))]);
    assert_eq!(store.documents(&main).await.unwrap(), [(Kind::Upstreams, "osaka".into(), sealed)]);
    assert_eq!(store.meta("term").await.unwrap(), Some(Bytes::from_static(b"1")));
    assert_eq!(store.audit(&main, 10).await.unwrap(), [audit]);
}

#[tokio::test]
async fn a_second_opening_is_refused_until_the_first_closes() {
    let place = Place::new();
    let store = place.open().await;
    let second = SqliteStore::open(&place.file()).await;
    assert!(matches!(second, Err(StoreError::InUse(path)) if path.contains("server.db")));
    store.close().await;
    place.open().await.close().await;
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let place = Place::new();
    place.open().await.close().await;
    let alter = async |sql: &'static str| {
        use sqlx::Connection;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(place.file());
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    };
    alter(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99,'','1','',0)",
    )
    .await;
    let newer = SqliteStore::open(&place.file()).await;
    assert!(matches!(newer, Err(StoreError::NewerFormat { found: 99, .. })));
    alter("DELETE FROM _sqlx_migrations WHERE version = 99").await;
    place.open().await.close().await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_an_error() {
    let place = Place::new();
    std::fs::write(place.file(), "this is a text and no database, and long enough to be mistaken for one".repeat(20))
        .unwrap();
    assert!(matches!(SqliteStore::open(&place.file()).await, Err(StoreError::Database(_))));
    let nowhere = place.file().join("missing").join("server.db");
    assert!(matches!(SqliteStore::open(&nowhere).await, Err(StoreError::Database(_))));
}

#[tokio::test]
async fn what_was_queued_before_closing_is_kept_and_what_comes_after_is_refused() {
    let place = Place::new();
    let store = place.open().await;
    let writing = tokio::spawn({
        let store = store.clone();
        async move { store.commit(vec![Op::Meta("k".into(), Bytes::from_static(b"v"))]).await }
    });
    // Let the write reach the queue; whichever comes first, it must be all or nothing.
    tokio::task::yield_now().await;
    store.close().await;
    let kept = writing.await.unwrap().is_ok();
    assert!(matches!(store.commit(vec![Op::Tenant(tenant("a"))]).await, Err(StoreError::Stopped(_))));
    let store = place.open().await;
    assert_eq!(store.meta("k").await.unwrap().is_some(), kept);
}
