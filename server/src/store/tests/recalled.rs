//! Jobs that come back from below (OPS-7).

use super::*;

fn unknown(n: u128, device: u128, leaf: u32) -> JobDeviceRow {
    let (state, reason) = (State::OutcomeUnknown, Some("server_restored".to_owned()));
    JobDeviceRow { state, reason, ..target(n, device, leaf) }
}

#[tokio::test]
async fn ops_7_a_job_that_comes_back_in_parts_is_one_job_and_changes_nothing_that_is_there() {
    let place = Place::new();
    let store = place.open().await;
    let main = tenant("main");
    let back = |devices| Op::Recalled(job("main", 1, 5), devices);
    store.commit(vec![back(vec![unknown(1, 71, 0)])]).await.unwrap();
    store.commit(vec![back(vec![unknown(1, 72, 1), unknown(1, 71, 0)])]).await.unwrap();
    let counts = store.job_counts(&main, job_id(1)).await.unwrap();
    assert_eq!(counts, [(State::OutcomeUnknown, 2)].into(), "each device counts once");
    assert!(store.open_jobs().await.unwrap().is_empty(), "nothing of it is waited for");
    // The agent's result takes the place of what nobody knew, and stays.
    let late = |device, text| Op::LateResult {
        tenant: tenant("main"),
        order: OrderNumber { term: 1, number: 5 },
        device: node_id(device),
        state: State::Succeeded,
        reason: None,
        at: Millis(99),
        result: result(text),
    };
    store.commit(vec![late(71, "first"), back(vec![unknown(1, 71, 0)]), late(71, "second")]).await.unwrap();
    let rows = store.job_devices(&main, job_id(1)).await.unwrap();
    assert_eq!((rows[0].state, rows[0].result.as_ref().unwrap().stdout.clone()), (State::Succeeded, "first".into()));
    assert_eq!((rows[1].state, rows[1].reason.as_deref()), (State::OutcomeUnknown, Some("server_restored")));
    let counts = store.job_counts(&main, job_id(1)).await.unwrap();
    assert_eq!(counts, [(State::Succeeded, 1), (State::OutcomeUnknown, 1)].into());
}

#[tokio::test]
async fn ops_7_a_known_job_keeps_its_row_and_a_taken_number_keeps_its_job() {
    let place = Place::new();
    let store = place.open().await;
    let main = tenant("main");
    let known = job("main", 1, 5);
    store.commit(vec![Op::Job(known.clone(), vec![target(1, 71, 0)])]).await.unwrap();
    let told = Box::new(JobRow { ordered_by: "(recalled)".into(), ..*known.clone() });
    store.commit(vec![Op::Recalled(told, vec![unknown(1, 71, 0)])]).await.unwrap();
    assert_eq!(store.job(&main, job_id(1)).await.unwrap().unwrap(), *known);
    assert_eq!(store.job_devices(&main, job_id(1)).await.unwrap()[0].state, State::Queued);
    // Another job of the same number is nobody's, and so are its devices; the batch is kept all the same.
    let seen = Op::Meta("seen".into(), Bytes::from_static(b"1"));
    store.commit(vec![Op::Recalled(job("main", 2, 5), vec![unknown(2, 72, 1)]), seen]).await.unwrap();
    assert_eq!(store.job(&main, job_id(2)).await.unwrap(), None);
    assert!(store.job_devices(&main, job_id(2)).await.unwrap().is_empty());
    assert!(store.job_counts(&main, job_id(2)).await.unwrap().is_empty());
    assert!(store.meta("seen").await.unwrap().is_some());
    // A tenant's own.
    store.commit(vec![Op::Recalled(job("other", 2, 5), vec![unknown(2, 72, 1)])]).await.unwrap();
    assert_eq!(store.job_devices(&tenant("other"), job_id(2)).await.unwrap().len(), 1);
}
