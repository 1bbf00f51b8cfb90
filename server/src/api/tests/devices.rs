//! Devices, their inventory and the tree.

use super::*;
use branchline_protocol::inventory::Items;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

async fn with_inventory() -> World {
    let world = World::new().await;
    let sections: BTreeMap<String, Items> = serde_json::from_value(json!({
        "os": {"pretty_name": "Debian 13"}, "hardware": {"cpu_model": "EPYC", "memory_bytes": 1024},
        "software": {"bash:amd64": {"version": "5"}}
    }))
    .unwrap();
    let inventory = Op::Inventory {
        tenant: tenant("a"),
        device: id(1),
        put: sections,
        gone: vec![],
        digest: Hash::of(b"d"),
        collected_at: NOW,
        settings_version: 4,
        need_full: false,
        clock_skew: false,
    };
    world.store.commit(vec![inventory]).await.unwrap();
    world
}

fn chosen(answer: &Value) -> Vec<&str> {
    answer["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["id"].as_str().unwrap().rsplit('0').next().unwrap())
        .collect()
}

#[actix_web::test]
async fn a_device_is_shown_whole_and_the_same_in_lists() {
    let world = with_inventory().await;
    let expected = json!({
        "id": id(1).to_string(), "name": "PC-1", "node": "PC-1", "tenant": "a", "site": "osaka", "path": ["osaka"],
        "reached": "relay", "capabilities": ["run_script"], "link": "persistent", "state": "online", "state_reason": null, "last_contact": "2026-11-01T09:30:00.250Z",
        "inventory": {
            "collected_at": "2026-11-01T09:30:00.250Z", "digest": Hash::of(b"d").to_string(), "os": "Debian 13",
            "cpu": "EPYC", "memory_bytes": 1024, "packages": 1, "settings_version": 4, "differs": false,
            "clock_skew": false
        },
        "kind": "lan", "next_contact": null,
        "settings": {"wanted": 1, "acknowledged": 4, "pending": false},
        "keep_connection": null, "slot": null, "delay": {"urgent_ms": null, "normal_ms": null}
    });
    for words in [id(1).to_string(), "PC-1".into(), "pc-1".into()] {
        assert_eq!(world.get("a", &format!("/devices/{words}")).await, (200, expected.clone()));
    }
    let (status, list) = world.get("a", "/devices?on=device:pc-1").await;
    assert_eq!((status, list), (200, json!({ "devices": [expected] })));
    let (_, other) = world.get("a", "/devices/pc-2").await;
    assert_eq!(other["reached"], json!(null), "not heard of since the start");
    assert_eq!(
        (&other["inventory"], &other["path"], &other["state_reason"], &other["next_contact"], &other["kind"]),
        (&json!(null), &json!([]), &json!("timeout"), &json!("2026-11-01T10:30:00.250Z"), &json!("wan"))
    );
}

#[actix_web::test]
async fn a_selector_chooses_and_revoked_devices_are_not_listed() {
    let world = World::new().await;
    let cases = [
        ("/devices", vec!["1", "2", "4"]),
        ("/devices?on=all", vec!["1", "2", "4"]),
        ("/devices?on=site:osaka", vec!["1"]),
        ("/devices?on=relay:OSAKA", vec!["1"]),
        ("/devices?on=tag:desk", vec!["2"]),
        ("/devices?on=not%20relay:osaka%20and%20not%20tag:desk", vec!["4"]),
        ("/devices?on=site:tokyo", vec![]),
    ];
    for (path, expected) in cases {
        let (status, list) = world.get("a", path).await;
        assert_eq!((status, chosen(&list)), (200, expected), "{path}");
    }
    let (_, successor) = world.get("a", "/devices/pc-3").await;
    assert_eq!(successor["id"], id(4).to_string());
    let (status, revoked) = world.get("a", &format!("/devices/{}", id(3))).await;
    assert_eq!((status, &revoked["name"]), (200, &json!("PC-3")));
}

#[actix_web::test]
async fn bad_selectors_and_unknown_devices_have_one_answer_each() {
    let world = World::new().await;
    for path in ["/devices?on=", "/devices?on=colour:red", "/devices?on=all%20all"] {
        let (status, answer) = world.get("a", path).await;
        assert_eq!((status, &answer["code"], &answer["field"]), (422, &json!("bad_selector"), &json!("on")), "{path}");
    }
    let (status, answer) = world.get("a", "/devices?colour=red").await;
    assert_eq!((status, &answer["code"], &answer["field"]), (422, &json!("unknown_field"), &json!("colour")));
    // A relay is no device.
    for words in ["nobody", "osaka", &id(50).to_string(), &id(77).to_string()] {
        for what in ["", "/inventory"] {
            let (status, answer) = world.get("a", &format!("/devices/{words}{what}")).await;
            assert_eq!((status, &answer["code"]), (404, &json!("unknown_device")), "{words}{what}");
        }
        world.refused("a", &format!("/devices/{words}/refresh"), json!({}), (404, "unknown_device", None)).await;
    }
}

#[actix_web::test]
async fn an_inventory_is_shown_whole_once_there_is_one() {
    let world = with_inventory().await;
    let (status, answer) = world.get("a", "/devices/pc-1/inventory").await;
    let expected = json!({
        "device": id(1).to_string(), "collected_at": "2026-11-01T09:30:00.250Z",
        "last_contact": "2026-11-01T09:30:00.250Z", "digest": Hash::of(b"d").to_string(), "settings_version": 4,
        "differs": false, "clock_skew": false, "sections": {
            "hardware": {"cpu_model": "EPYC", "memory_bytes": 1024}, "os": {"pretty_name": "Debian 13"},
            "software": {"bash:amd64": {"version": "5"}}
        }
    });
    assert_eq!((status, answer), (200, expected));
    let (status, answer) = world.get("a", "/devices/pc-2/inventory").await;
    assert_eq!((status, &answer["code"]), (404, &json!("no_inventory")));
}

#[actix_web::test]
async fn a_list_of_any_length_is_whole_and_in_order() {
    let mut world = World::new().await;
    for length in [0, 1, 255, 256, 257, 1_000] {
        let offline = world_nodes().pop().unwrap();
        let row = |n: u128| {
            // Neither by id nor by number: by name.
            let node =
                NodeRow { id: id(10_000 - n), tenant: tenant("a"), name: format!("d{n}"), ..offline.node.clone() };
            NodeView { node, standing: offline.standing.clone() }
        };
        let mut names: Vec<String> = (0..length).map(|n| format!("d{n}")).collect();
        names.sort();
        let control = FakeControl { nodes: (0..length).map(row).collect(), ..FakeControl::new(world.store.clone()) };
        world.shared = web::Data::new(ApiState { control: Arc::new(control), ..ApiState::clone(&world.shared) });
        let (status, list) = world.get("a", "/devices").await;
        let told = list["devices"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap().to_owned());
        assert_eq!((status, told.collect::<Vec<_>>()), (200, names));
        assert_eq!(list.as_object().unwrap().len(), 1);
        let counts = json!({ "offline": length as u64, "online": 0, "suspended": 0, "unknown": 0 });
        assert_eq!(world.get("a", "/devices?results=none").await, (200, json!({ "counts": counts })));
        if length > 0 {
            let order = json!({ "on": "all", "verb": "run_script", "args": { "argv": ["true"] } });
            let (status, job) = world.post("a", "/jobs", order).await;
            let devices: BTreeSet<_> =
                job["results"].as_array().unwrap().iter().map(|r| r["device"].as_str()).collect();
            assert_eq!((status, devices.len() as u128, &job["counts"]["queued"]), (201, length, &json!(length as u64)));
            // The stand-in gives its orders their ids by their number, and is a new one each time.
            let path = format!("/jobs/{}", job["id"].as_str().unwrap());
            assert_eq!(world.get("a", &path).await, (200, job));
            world = World::new().await;
        }
    }
}

#[actix_web::test]
async fn devices_are_counted_for_who_asks_for_that() {
    let world = World::new().await;
    let counts = |offline: u64, online: u64| json!({ "counts": { "offline": offline, "online": online, "suspended": 0, "unknown": 0 } });
    assert_eq!(world.get("a", "/devices?results=none").await, (200, counts(2, 1)));
    assert_eq!(world.get("a", "/devices?on=device:pc-1&results=none").await, (200, counts(0, 1)));
    assert_eq!(world.get("b", "/devices?results=none").await, (200, counts(1, 0)));
    let (status, answer) = world.get("a", "/devices?results=few").await;
    assert_eq!((status, &answer["code"], &answer["field"]), (422, &json!("bad_value"), &json!("results")));
}

#[actix_web::test]
async fn a_refresh_is_a_job_of_one_device() {
    let world = World::new().await;
    let (status, job) = world.post("a", "/devices/pc-1/refresh?full=true", json!({})).await;
    assert_eq!((status, &job["verb"], &job["complete"]), (201, &json!("refresh_inventory"), &json!(true)));
    assert_eq!(job["results"][0]["device"], id(1).to_string());
    let args = world.control.jobs.lock().unwrap()[0].args.clone();
    assert!(rmp_serde::from_slice::<branchline_protocol::job::RefreshInventory>(&args).unwrap().full);
    let (status, _, _) = world.send(request("a", Method::POST, "/devices/pc-1/refresh")).await;
    assert_eq!(status, 201, "without a body, too");
    let refused = (422, "wrong_type", Some("full"));
    world.refused("a", "/devices/pc-1/refresh?full=maybe", json!({}), refused).await;
    world.refused("a", "/devices/pc-1/refresh", json!({"full": true}), (422, "unknown_field", Some("full"))).await;
}

#[actix_web::test]
async fn the_tree_shows_who_hangs_on_whom() {
    let world = World::new().await;
    let (status, tree) = world.get("system", "/tree?tenant=a").await;
    assert_eq!(status, 200);
    let nodes = tree["nodes"].as_array().unwrap();
    let brief = |n: &Value| {
        format!("{} {} {}", n["role"].as_str().unwrap(), n["name"].as_str().unwrap(), n["state"].as_str().unwrap())
    };
    let expected = [
        "server hq online",
        "gateway dmz online",
        "gateway dmz-2 offline",
        "relay osaka online",
        "agent PC-1 online",
        "agent PC-2 offline",
        "agent PC-3 offline",
    ];
    assert_eq!(nodes.iter().map(brief).collect::<Vec<_>>(), expected);
    let server = json!({
        "id": id(7).to_string(), "name": "hq", "role": "server", "parent": null, "state": "online",
        "unreachable_since": null, "slots": {"used": 2, "cap": 300, "peak": 2, "waiting": 0, "reserved": 0},
        "queues": {"spool_records": 0}, "links": 5, "restarts": 0
    });
    assert_eq!(nodes[0], server);
    assert_eq!((&nodes[4]["link"], &nodes[4]["slot"]), (&json!("persistent"), &json!(null)));
    let parents: Vec<_> = nodes[1..].iter().map(|n| n["parent"].as_str().unwrap().to_owned()).collect();
    assert_eq!(parents[..3], [id(7).to_string(), id(7).to_string(), id(7).to_string()]);
    assert_eq!(parents[3..5], [id(50).to_string(), id(7).to_string()]);
    assert_eq!(
        (&nodes[3]["slots"]["cap"], &nodes[3]["links"], &nodes[4]["slots"]),
        (&json!(300), &json!(1), &json!(null))
    );
}
