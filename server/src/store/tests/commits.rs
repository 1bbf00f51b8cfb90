//! All or nothing, alone or in a group.

use super::*;
use futures_util::future::join_all;

fn meta(key: &str) -> Op {
    Op::Meta(key.into(), Bytes::from_static(b"v"))
}

fn token(uses_left: u32) -> TokenRow {
    TokenRow {
        hash: Hash::of(b"secret"),
        tenant: tenant("main"),
        role: Role::Agent,
        site: "osaka".into(),
        kind: "lan".into(),
        uses_left,
        expires_at: Millis(99),
    }
}

#[tokio::test]
async fn a_conflict_undoes_its_own_batch_and_no_other_of_the_group() {
    let place = Place::new();
    let store = place.open().await;
    store.commit(vec![Op::Token(token(1))]).await.unwrap();
    let before = store.fsyncs();
    // All are queued before the writer first runs, so that they share one transaction.
    let batches = ["a", "b", "c"].map(|key| store.commit(vec![meta(key), Op::UseToken(token(1).hash), meta("last")]));
    let results = join_all(batches).await;
    assert!(results[0].is_ok(), "{results:?}");
    assert!(results[1..].iter().all(|r| matches!(r, Err(StoreError::Conflict(_)))), "{results:?}");
    assert_eq!(store.fsyncs() - before, 1);
    assert!(store.meta("a").await.unwrap().is_some());
    assert!(store.meta("b").await.unwrap().is_none() && store.meta("c").await.unwrap().is_none());
    assert_eq!(store.token(token(1).hash).await.unwrap().unwrap().uses_left, 0);
}

/// The first batch of a transaction has no savepoint to go back to.
#[tokio::test]
async fn a_conflict_of_the_first_batch_undoes_it_and_keeps_those_behind_it() {
    let place = Place::new();
    let store = place.open().await;
    let batches =
        [vec![meta("a"), Op::UseToken(Hash::ZERO)], vec![meta("b")], vec![meta("c"), Op::UseToken(Hash::ZERO)]];
    let results = join_all(batches.map(|batch| store.commit(batch))).await;
    assert!(matches!(results[0], Err(StoreError::Conflict(_))), "{results:?}");
    assert!(results[1].is_ok() && matches!(results[2], Err(StoreError::Conflict(_))), "{results:?}");
    assert!(store.meta("a").await.unwrap().is_none() && store.meta("c").await.unwrap().is_none());
    assert!(store.meta("b").await.unwrap().is_some());
}

#[tokio::test]
async fn enr_1_a_token_is_used_as_often_as_it_says_and_no_more() {
    let place = Place::new();
    let store = place.open().await;
    store.commit(vec![Op::Token(token(3))]).await.unwrap();
    let uses = join_all((0..8).map(|_| store.commit(vec![Op::UseToken(token(3).hash)]))).await;
    assert_eq!(uses.iter().filter(|r| r.is_ok()).count(), 3);
    let unknown = store.commit(vec![Op::UseToken(Hash::ZERO)]).await;
    assert!(matches!(unknown, Err(StoreError::Conflict(_))));
}

#[tokio::test]
async fn under_load_there_are_fewer_syncs_than_batches() {
    let place = Place::new();
    let store = place.open().await;
    let writers = (0..16).map(|w| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..25 {
                store.commit(vec![meta(&format!("{w}-{n}"))]).await.unwrap();
            }
        })
    });
    for writer in join_all(writers).await {
        writer.unwrap();
    }
    let syncs = store.fsyncs();
    assert!((1..400).contains(&syncs), "{syncs} syncs for 400 batches");
    assert!(store.meta("15-24").await.unwrap().is_some());
}

#[tokio::test]
async fn names_are_unique_per_tenant_and_role_ignoring_case() {
    let place = Place::new();
    let store = place.open().await;
    store.commit(vec![Op::Node(node("a", 1, "Pc-1"))]).await.unwrap();
    let same = store.commit(vec![Op::Node(node("a", 2, "pC-1"))]).await;
    assert!(matches!(same, Err(StoreError::Conflict(_))));
    store.commit(vec![Op::Node(node("b", 2, "pc-1"))]).await.unwrap();
    store.commit(vec![Op::Node(NodeRow { role: Role::Relay, ..node("a", 3, "pc-1") })]).await.unwrap();
    let revoked = NodeRow { revoked_at: Some(Millis(9)), ..node("a", 1, "Pc-1") };
    store.commit(vec![Op::Node(revoked), Op::Node(node("a", 4, "pc-1"))]).await.unwrap();
    assert_eq!(store.nodes().await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_tenant_or_site_is_made_once() {
    let place = Place::new();
    let store = place.open().await;
    let orphan = store.commit(vec![Op::Site(tenant("a"), "osaka".into())]).await;
    assert!(matches!(orphan, Err(StoreError::Conflict(_))));
    store.commit(vec![Op::Tenant(tenant("a")), Op::Site(tenant("a"), "osaka".into())]).await.unwrap();
    for again in [Op::Tenant(tenant("a")), Op::Site(tenant("a"), "osaka".into())] {
        assert!(matches!(store.commit(vec![again]).await, Err(StoreError::Conflict(_))));
    }
}

#[tokio::test]
async fn an_older_attachment_or_document_changes_nothing() {
    let place = Place::new();
    let store = place.open().await;
    store.commit(vec![Op::Node(node("a", 1, "pc"))]).await.unwrap();
    let attached = |epoch, attachment| Op::Attached {
        tenant: tenant("a"),
        node: node_id(1),
        epoch,
        attachment,
        route: vec![],
        last_contact: Millis(100 + attachment as i64),
        capabilities: [].into(),
    };
    let now = async || {
        let node = store.nodes().await.unwrap().remove(0);
        (node.epoch, node.attachment, node.last_contact)
    };
    store.commit(vec![attached(1, 3)]).await.unwrap();
    assert_eq!(now().await, (1, 4, Some(Millis(7))));
    store.commit(vec![attached(1, 4)]).await.unwrap();
    assert_eq!(now().await, (1, 4, Some(Millis(104))));
    store.commit(vec![attached(2, 1), attached(1, 9)]).await.unwrap();
    assert_eq!(now().await, (2, 1, Some(Millis(101))));

    let sealed = |text: &str| {
        Envelope::sign("t", text.as_bytes().to_vec(), &branchline_protocol::order::Signer::from_seed(&[1; 32]))
    };
    let document = |version, text| Op::Document(tenant("a"), Kind::Settings, String::new(), version, sealed(text));
    store.commit(vec![document((1, 7), "seven"), document((2, 1), "new term"), document((1, 8), "old")]).await.unwrap();
    assert_eq!(store.documents(&tenant("a")).await.unwrap(), [(Kind::Settings, String::new(), sealed("new term"))]);
}

#[tokio::test]
async fn a_full_disk_stops_the_store_and_what_was_kept_stays_readable() {
    let place = Place::new();
    place.open().await.close().await;
    let store = SqliteStore::open_tuned(&place.file(), Some(90)).await.unwrap();
    store.commit(vec![meta("small")]).await.unwrap();
    let large = Op::Meta("large".into(), vec![1u8; 1_048_576].into());
    let results = join_all([store.commit(vec![meta("beside")]), store.commit(vec![large])]).await;
    assert!(results.iter().all(|r| matches!(r, Err(StoreError::Database(_)))), "{results:?}");
    assert!(matches!(store.commit(vec![meta("later")]).await, Err(StoreError::Stopped(_))));
    assert!(store.stopped().await.contains("full"), "whoever runs it is told to end");
    assert!(store.meta("small").await.unwrap().is_some());
    assert!(store.meta("beside").await.unwrap().is_none());
    store.close().await;
    let store = place.open().await;
    assert!(store.meta("beside").await.unwrap().is_none());
    store.commit(vec![meta("beside")]).await.unwrap();
}
