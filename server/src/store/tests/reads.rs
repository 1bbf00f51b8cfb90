//! What reads answer, and to whom.

use super::*;
use serde_json::json;

/// TOP-22: everything of tenant `a` is there, and every read as tenant `b` shows nothing of it.
#[tokio::test]
async fn top_22_no_read_shows_another_tenants_rows() {
    let place = Place::new();
    let store = place.open().await;
    let (a, b) = (tenant("a"), tenant("b"));
    let sealed = job("a", 1, 1).envelope;
    let audit = AuditRow { tenant: a.clone(), at: Millis(1), who: "w".into(), what: "x".into(), detail: String::new() };
    store
        .commit(vec![
            Op::Tenant(a.clone()),
            Op::Tenant(b.clone()),
            Op::Site(a.clone(), "osaka".into()),
            Op::Node(node("a", 1, "pc")),
            Op::Job(job("a", 70, 1), vec![target(70, 1, 0)]),
            inventory("a", 1, items(json!({"os": {"pretty_name": "x"}})), &[], false),
            Op::InventoryHistory {
                tenant: a.clone(),
                device: node_id(1),
                collected_at: Millis(1),
                report: Bytes::new(),
            },
            Op::Document(a.clone(), Kind::Settings, String::new(), (1, 1), sealed),
            Op::Audit(audit),
        ])
        .await
        .unwrap();
    // The same ids under another tenant are other rows: this write must not touch a's.
    store
        .commit(vec![ended("b", 70, 1, State::Failed, Some(result("of b"))), Op::NeedFull(b.clone(), node_id(1))])
        .await
        .unwrap();
    let of = async |t: &TenantId| {
        (
            store.sites(t).await.unwrap().len(),
            store.jobs(t, 10).await.unwrap().len(),
            store.job(t, job_id(70)).await.unwrap().is_some() as usize,
            store.job_devices(t, job_id(70)).await.unwrap().len(),
            store.job_counts(t, job_id(70)).await.unwrap().len(),
            store.inventory(t, node_id(1)).await.unwrap().is_some() as usize,
            store.inventory_summaries(t, &[node_id(1), node_id(2)]).await.unwrap().len(),
            store.inventory_history(t, node_id(1)).await.unwrap().len(),
            store.documents(t).await.unwrap().len(),
            store.audit(t, 10).await.unwrap().len(),
        )
    };
    assert_eq!(of(&a).await, (1, 1, 1, 1, 1, 1, 1, 1, 1, 1));
    assert_eq!(of(&b).await, (0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
    assert_eq!(store.job_devices(&a, job_id(70)).await.unwrap(), [target(70, 1, 0)]);
    assert!(!store.inventory(&a, node_id(1)).await.unwrap().unwrap().need_full);
}

#[tokio::test]
async fn job_1_counts_follow_every_change_and_add_up() {
    let place = Place::new();
    let store = place.open().await;
    let main = tenant("main");
    let unknown = JobDeviceRow { leaf: None, device: Err("x".into()), state: State::NoSuchDevice, ..target(70, 0, 0) };
    let targets = vec![target(70, 1, 0), target(70, 2, 1), unknown];
    store.commit(vec![Op::Job(job("main", 70, 1), targets)]).await.unwrap();
    store.commit(vec![Op::Job(job("main", 71, 2), vec![target(71, 1, 0)])]).await.unwrap();
    let counts = async || store.job_counts(&main, job_id(70)).await.unwrap();
    assert_eq!(counts().await, BTreeMap::from([(State::Queued, 2), (State::NoSuchDevice, 1)]));
    store
        .commit(vec![
            ended("main", 70, 1, State::Running, None),
            ended("main", 70, 2, State::Delivered, None),
            ended("main", 70, 1, State::Succeeded, Some(result("out"))),
            ended("main", 70, 1, State::Succeeded, None),
            ended("main", 70, 77, State::Succeeded, Some(result("of no target"))),
        ])
        .await
        .unwrap();
    let expected = BTreeMap::from([(State::Delivered, 1), (State::Succeeded, 1), (State::NoSuchDevice, 1)]);
    assert_eq!(counts().await, expected);
    let rows = store.job_devices(&main, job_id(70)).await.unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0].result, Some(result("out")), "a change without a report keeps the earlier one");
    assert_eq!(rows.iter().filter(|r| r.result.is_some()).count(), 1);

    let heads = store.jobs(&main, 10).await.unwrap();
    assert_eq!(heads.iter().map(|h| h.id).collect::<Vec<_>>(), [job_id(71), job_id(70)]);
    assert_eq!(heads[1].counts, expected);
    assert_eq!(store.jobs(&main, 1).await.unwrap().len(), 1);
}

#[tokio::test]
async fn open_jobs_are_those_with_a_device_short_of_its_end() {
    let place = Place::new();
    let store = place.open().await;
    store.commit(vec![Op::Job(job("a", 70, 1), vec![target(70, 1, 0), target(70, 2, 1)])]).await.unwrap();
    store.commit(vec![Op::Job(job("b", 71, 1), vec![target(71, 1, 0)])]).await.unwrap();
    let open = async || store.open_jobs().await.unwrap().iter().map(|j| j.id).collect::<Vec<_>>();
    assert_eq!(open().await, [job_id(70), job_id(71)]);
    store.commit(vec![ended("a", 70, 1, State::Failed, None), ended("b", 71, 1, State::Expired, None)]).await.unwrap();
    assert_eq!(open().await, [job_id(70)]);
    store.commit(vec![ended("a", 70, 2, State::OutcomeUnknown, None)]).await.unwrap();
    assert_eq!(open().await, []);
}

#[tokio::test]
async fn inv_4_a_summary_column_changes_with_its_section_alone() {
    let place = Place::new();
    let store = place.open().await;
    let main = tenant("main");
    let first = json!({
        "os": {"pretty_name": "Debian 13"}, "hardware": {"cpu_model": "EPYC", "memory_bytes": 8_589_934_592u64},
        "software": {"a:x": 1, "b:x": 1}
    });
    store.commit(vec![inventory("main", 1, items(first), &[], false)]).await.unwrap();
    let shown = async || {
        let s = store.inventory_summaries(&main, &[node_id(1)]).await.unwrap().remove(&node_id(1)).unwrap();
        (s.os, s.cpu, s.memory_bytes, s.packages)
    };
    let whole = ("Debian 13".to_string(), "EPYC".to_string(), Some(8_589_934_592), 2);
    assert_eq!(shown().await, whole);
    let software = items(json!({"software": {"a:x": 1, "b:x": 2, "c:x": 1}}));
    store.commit(vec![inventory("main", 1, software, &[], false)]).await.unwrap();
    assert_eq!(shown().await, (whole.0.clone(), whole.1.clone(), whole.2, 3));
    store.commit(vec![inventory("main", 1, BTreeMap::new(), &["hardware"], false)]).await.unwrap();
    assert_eq!(shown().await, (whole.0, "not_available".into(), None, 3));
    let held = store.inventory(&main, node_id(1)).await.unwrap().unwrap();
    assert_eq!(held.sections.keys().collect::<Vec<_>>(), ["os", "software"]);
}

#[tokio::test]
async fn inv_4_inventories_of_one_batch_are_as_if_each_came_alone() {
    let software =
        |n: u32| json!({"software": (0..n).map(|i| (format!("p{i}"), 1.into())).collect::<serde_json::Map<_, _>>()});
    let first = json!({"os": {"pretty_name": "Debian 13"}, "disks": {}});
    // Of the same device again, of others, with a section that goes and one that comes back, and with a wish in between.
    let ops = || {
        let mut ops = vec![
            inventory("main", 1, items(first.clone()), &[], true),
            inventory("main", 1, items(software(3)), &["disks"], false),
            inventory("main", 2, items(first.clone()), &[], false),
            Op::NeedFull(tenant("main"), node_id(2)),
            inventory("main", 1, items(json!({"disks": {"sda": 1}})), &["os"], false),
            inventory("other", 1, items(software(1)), &[], false),
            // With nothing in between that would have what was gathered written.
            inventory("main", 3, items(first.clone()), &[], false),
            inventory("main", 3, items(software(2)), &["disks"], false),
            inventory("main", 4, items(first.clone()), &[], false),
            inventory("main", 4, items(software(2)), &[], false),
        ];
        ops.extend((10..40).map(|n| inventory("main", n, items(software(n as u32)), &[], false)));
        ops
    };
    let mut seen = Vec::new();
    for alone in [false, true] {
        let place = Place::new();
        let store = place.open().await;
        if alone {
            for op in ops() {
                store.commit(vec![op]).await.unwrap();
            }
        } else {
            store.commit(ops()).await.unwrap();
        }
        let mut all = Vec::new();
        for (of, device) in [("main", 1), ("main", 2), ("other", 1), ("main", 25), ("main", 3), ("main", 4)] {
            all.push(store.inventory(&tenant(of), node_id(device)).await.unwrap().unwrap());
        }
        let devices: Vec<NodeId> = (1..=100).map(node_id).collect();
        let (wanted, shown) =
            (store.need_full().await.unwrap(), store.inventory_summaries(&tenant("main"), &devices).await.unwrap());
        seen.push((all, wanted, shown));
    }
    assert_eq!(seen[0], seen[1]);
    let (all, wanted, shown) = &seen[0];
    assert_eq!(all[0].sections.keys().collect::<Vec<_>>(), ["disks", "software"]);
    assert_eq!(all[4].sections.keys().collect::<Vec<_>>(), ["os", "software"]);
    assert_eq!(shown[&node_id(4)].os, "Debian 13");
    assert_eq!((&wanted[..], shown.len()), (&[(tenant("main"), node_id(2))][..], 34));
    assert_eq!((shown[&node_id(1)].packages, shown[&node_id(25)].packages), (3, 25));
}

#[tokio::test]
async fn inv_6_a_wish_for_the_whole_stands_until_it_has_come() {
    let place = Place::new();
    let store = place.open().await;
    let main = tenant("main");
    store.commit(vec![Op::NeedFull(main.clone(), node_id(1)), Op::NeedFull(main.clone(), node_id(1))]).await.unwrap();
    assert_eq!(store.need_full().await.unwrap(), [(main.clone(), node_id(1))]);
    assert_eq!(store.inventory(&main, node_id(1)).await.unwrap(), None);
    store.commit(vec![inventory("main", 1, items(json!({"os": {}})), &[], false)]).await.unwrap();
    assert_eq!(store.need_full().await.unwrap(), []);
    store.commit(vec![Op::NeedFull(main.clone(), node_id(1))]).await.unwrap();
    assert!(store.inventory(&main, node_id(1)).await.unwrap().unwrap().need_full);
}

#[tokio::test]
async fn inv_13_history_keeps_the_newest_of_each_device() {
    let place = Place::new();
    let store = place.open().await;
    let main = tenant("main");
    let old = |device, n: u32| Op::InventoryHistory {
        tenant: main.clone(),
        device: node_id(device),
        collected_at: Millis(i64::from(n)),
        report: Bytes::copy_from_slice(&n.to_be_bytes()),
    };
    store.commit(vec![old(2, 0)]).await.unwrap();
    store.commit((0..INVENTORY_HISTORY_MAX).map(|n| old(1, n)).collect()).await.unwrap();
    let kept = async |device| store.inventory_history(&main, node_id(device)).await.unwrap();
    assert_eq!((kept(1).await.len() as u32, kept(1).await[0].0), (INVENTORY_HISTORY_MAX, Millis(0)));
    store.commit(vec![old(1, INVENTORY_HISTORY_MAX)]).await.unwrap();
    assert_eq!((kept(1).await.len() as u32, kept(1).await[0].0), (INVENTORY_HISTORY_MAX, Millis(1)));
    assert_eq!(kept(2).await.len(), 1);
}

#[tokio::test]
async fn the_newest_audited_act_comes_first() {
    let place = Place::new();
    let store = place.open().await;
    let act = |n: i64| AuditRow {
        tenant: tenant("a"),
        at: Millis(n),
        who: "admin".into(),
        what: "node.revoke".into(),
        detail: n.to_string(),
    };
    store.commit((1..=3).map(|n| Op::Audit(act(n))).collect()).await.unwrap();
    assert_eq!(store.audit(&tenant("a"), 2).await.unwrap(), [act(3), act(2)]);
}

/// Short outputs come with many devices a row, long ones on their own: nobody sees which.
#[tokio::test]
async fn outputs_at_the_bound_of_a_shared_row_and_one_byte_past_it_come_back_as_they_were() {
    let place = Place::new();
    let store = place.open().await;
    let mut targets: Vec<JobDeviceRow> = (0..300).map(|n| target(70, 1_000 - u128::from(n), n)).collect();
    let unknown = JobDeviceRow { leaf: None, device: Err("pc \"ü\" 9".into()), ..target(70, 0, 0) };
    targets.push(JobDeviceRow { state: State::Refused, reason: Some("a \"b\"\n\\".into()), ..unknown });
    let of_length = |length: usize| Bytes::from((0..length).map(|n| (n * 7) as u8).collect::<Vec<_>>());
    let mut ops = vec![Op::Job(job("main", 70, 1), targets.clone())];
    for (at, (stdout, stderr)) in
        [(0, 0), (1_024, 1_025), (1_025, 1_024), (1_025, 70_000), (3, 0)].into_iter().enumerate()
    {
        let result = ResultRow { stdout: of_length(stdout), stderr: of_length(stderr), ..result("") };
        let result = ResultRow { truncated: at == 2, exit_code: None, started_at: None, ..result };
        let place = at * 70;
        let row = &mut targets[place];
        ops.push(ended("main", 70, 1_000 - place as u128, State::Failed, Some(result.clone())));
        (row.state, row.reason, row.result) = (State::Failed, Some("why".into()), Some(result));
    }
    store.commit(ops).await.unwrap();
    let rows = store.job_devices(&tenant("main"), job_id(70)).await.unwrap();
    assert_eq!(rows.len(), targets.len());
    for (row, wanted) in rows.iter().zip(&targets) {
        let changed_at = row.changed_at;
        assert_eq!(row, &JobDeviceRow { changed_at, ..wanted.clone() });
        if let Ok(device) = row.device {
            let alone = store.job_device(&tenant("main"), job_id(70), device).await.unwrap();
            assert_eq!(alone.as_ref(), Some(row), "one alone is read as it is among all");
        }
    }
    assert_eq!(store.job_device(&tenant("main"), job_id(70), node_id(5_000)).await.unwrap(), None);
    assert_eq!(store.job_device(&tenant("other"), job_id(70), node_id(1_000)).await.unwrap(), None);
}
