//! The audit and the refused records, as an administrator reads them.

use super::*;
use crate::store::{AuditRow, DeadLetterRow};
use branchline_protocol::record::{Lane, StreamId};
use serde_json::json;

#[actix_web::test]
async fn job_15_rly_9_acts_and_refused_records_are_shown_newest_first_and_to_their_tenant_only() {
    let world = World::new().await;
    let tenant: TenantId = "a".parse().unwrap();
    let stranger = NodeId(Uuid::from_u128(77));
    let ops = (1..=3u64).flat_map(|n| {
        let at = Millis(NOW.0 + n as i64);
        let act = AuditRow {
            tenant: tenant.clone(),
            at,
            who: "relay".into(),
            what: "record.refused".into(),
            detail: format!("foreign {n}"),
        };
        let letter = DeadLetterRow {
            tenant: tenant.clone(),
            at,
            via: stranger,
            stream: StreamId { node: stranger, epoch: 1, incarnation: 5, lane: Lane::Work },
            number: n,
            class: 1,
            code: "foreign".into(),
            bytes: 3,
            body: Bytes::from_static(b"abc"),
        };
        [Op::Audit(act), Op::DeadLetter(letter)]
    });
    world.store.commit(ops.collect()).await.unwrap();

    let (status, answer) = world.get("a", "/audit?limit=2").await;
    let details: Vec<_> = answer["audit"].as_array().unwrap().iter().map(|a| a["detail"].clone()).collect();
    assert_eq!((status, details), (200, vec![json!("foreign 3"), json!("foreign 2")]));
    let (status, answer) = world.get("a", "/dead-letters?limit=1").await;
    let shown = json!({
        "at": answer["dead_letters"][0]["at"], "node": stranger.to_string(), "name": null, "via": stranger.to_string(),
        "via_name": null, "epoch": 1, "lane": "work", "number": 3, "class": 1, "code": "foreign", "bytes": 3,
        "body_base64": "YWJj"
    });
    assert_eq!((status, &answer["dead_letters"]), (200, &json!([shown])));

    for path in ["/audit", "/dead-letters"] {
        let (_, answer) = world.get("b", path).await;
        assert!(!answer.to_string().contains("foreign"), "TOP-22: {answer}");
        for limit in ["0", "1001"] {
            let (status, answer) = world.get("a", &format!("{path}?limit={limit}")).await;
            assert_eq!((status, &answer["code"], &answer["field"]), (422, &json!("out_of_range"), &json!("limit")));
        }
    }
}
