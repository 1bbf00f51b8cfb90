//! Refused records: the newest are kept.

use super::*;

fn letter(of: &str, number: u64) -> DeadLetterRow {
    DeadLetterRow {
        tenant: tenant(of),
        at: Millis(number as i64),
        via: node_id(2),
        stream: stream(1, 9).stream,
        number,
        class: 1,
        code: "malformed".into(),
        bytes: 70_000,
        body: Bytes::from_static(b"what it was"),
    }
}

#[tokio::test]
async fn the_newest_dead_letters_of_each_tenant_are_kept() {
    let place = Place::new();
    let store = place.open().await;
    let max = u64::from(DEAD_LETTERS_MAX);
    store.commit((1..=max).map(|n| Op::DeadLetter(letter("a", n))).collect()).await.unwrap();
    store.commit(vec![Op::DeadLetter(letter("b", u64::MAX))]).await.unwrap();
    let numbers = async |of: &str| {
        let rows = store.dead_letters(&tenant(of), DEAD_LETTERS_MAX + 9).await.unwrap();
        rows.iter().map(|row| row.number).collect::<Vec<_>>()
    };
    assert_eq!(numbers("a").await.len(), DEAD_LETTERS_MAX as usize, "at the bound all are there");
    store.commit(vec![Op::DeadLetter(letter("a", max + 1))]).await.unwrap();
    let kept = numbers("a").await;
    assert_eq!((kept.len() as u64, kept[0], kept[kept.len() - 1]), (max, max + 1, 2), "one past it the oldest goes");
    assert_eq!(store.dead_letters(&tenant("b"), 9).await.unwrap(), [letter("b", u64::MAX)], "as it was written");
}

#[tokio::test]
async fn a_stream_that_is_forgotten_is_gone_and_no_other() {
    let place = Place::new();
    let store = place.open().await;
    let (first, second) = (stream(1, 9), stream(2, 9));
    store.commit(vec![Op::Stream(tenant("a"), first), Op::Stream(tenant("a"), second)]).await.unwrap();
    // In one batch with a newer position of the same stream: the last word counts.
    store.commit(vec![Op::Stream(tenant("a"), first), Op::StreamGone(tenant("a"), first.stream)]).await.unwrap();
    assert_eq!(store.streams().await.unwrap(), [(tenant("a"), second)]);
}
