//! Settings: shown, changed, refused at their bounds (ADM-14, INV-8), and how far they have come.

use super::*;
use serde_json::json;

fn first() -> Value {
    json!({
        "version": 1, "poll_normal_s": 3600, "poll_urgent_s": 600, "poll_erase_s": 900, "collect": [],
        "schedule": "daily", "inventory_hour": 9, "catch_up_missed": false, "collect_on_return": false
    })
}

#[actix_web::test]
async fn adm_14_what_is_not_named_stays_as_it_was() {
    let world = World::new().await;
    assert_eq!(world.get("a", "/settings").await, (200, first()));
    let change = json!({
        "poll_normal_s": 60, "collect": ["os", "software"], "schedule": "monthly 31 10:00", "collect_on_return": true
    });
    let (status, answer) = world.put("a", "/settings", change).await;
    let mut expected = first();
    for (key, value) in [
        ("version", json!(2)),
        ("poll_normal_s", json!(60)),
        ("collect", json!(["os", "software"])),
        ("schedule", json!("monthly 31 10:00")),
        ("collect_on_return", json!(true)),
    ] {
        expected[key] = value;
    }
    assert_eq!((status, &answer), (200, &expected));
    assert_eq!(world.get("a", "/settings").await, (200, expected.clone()));
    assert!(world.control.said()[0].starts_with("settings a admin-a"));
    let (status, answer) = world.put("a", "/settings", expected).await;
    assert_eq!((status, &answer["version"]), (200, &json!(3)), "what was read can be written");
}

#[actix_web::test]
async fn adm_14_inv_8_bad_settings_have_one_answer_each_and_change_nothing() {
    let world = World::new().await;
    let cases = [
        (json!({"poll_normal_s": 59}), "out_of_range", "poll_normal_s"),
        (json!({"poll_normal_s": 604_801}), "out_of_range", "poll_normal_s"),
        (json!({"poll_urgent_s": 59}), "out_of_range", "poll_urgent_s"),
        (json!({"poll_urgent_s": 604_801}), "out_of_range", "poll_urgent_s"),
        (json!({"poll_erase_s": 59}), "out_of_range", "poll_erase_s"),
        (json!({"poll_erase_s": 604_801}), "out_of_range", "poll_erase_s"),
        (json!({"poll_normal_s": -1}), "wrong_type", "poll_normal_s"),
        (json!({"poll_normal_s": "1h"}), "wrong_type", "poll_normal_s"),
        (json!({"inventory_hour": 24}), "out_of_range", "inventory_hour"),
        (json!({"inventory_hour": 256}), "wrong_type", "inventory_hour"),
        (json!({"collect": ["os", "printers"]}), "unknown_item", "collect"),
        (json!({"collect": "os"}), "wrong_type", "collect"),
        (json!({"schedule": "monthly 0 10:00"}), "bad_schedule", "schedule"),
        (json!({"schedule": "monthly 32 10:00"}), "bad_schedule", "schedule"),
        (json!({"schedule": "monthly 3 24:00"}), "bad_schedule", "schedule"),
        (json!({"schedule": "cron 60 0 * * *"}), "bad_schedule", "schedule"),
        (json!({"schedule": "cron * * * * *"}), "bad_schedule", "schedule"),
        (json!({"schedule": "cron 0 0 30 2 *"}), "bad_schedule", "schedule"),
        (json!({"schedule": "weekly"}), "bad_schedule", "schedule"),
        (json!({"schedule": 3}), "wrong_type", "schedule"),
        (json!({"catch_up_missed": 1}), "wrong_type", "catch_up_missed"),
        (json!({"colour": "red"}), "unknown_field", "colour"),
    ];
    for (body, code, field) in cases {
        let (status, answer) = world.put("a", "/settings", body.clone()).await;
        let told = (status, answer["code"].as_str().unwrap(), answer["field"].as_str().unwrap());
        assert_eq!(told, (422, code, field), "{body}");
    }
    assert!(world.control.said().is_empty());
    for good in [json!({"poll_normal_s": 60}), json!({"poll_normal_s": 604_800}), json!({"inventory_hour": 23})] {
        assert_eq!(world.put("a", "/settings", good.clone()).await.0, 200, "{good}");
    }
    let (status, answer) = world.put("", "/settings", json!({})).await;
    assert_eq!((status, &answer["code"]), (401, &json!("no_identity")));
}

#[actix_web::test]
async fn adm_14_a_device_is_pending_until_it_has_the_version_in_force() {
    let world = World::new().await;
    let settings = async |device: &str| world.get("a", &format!("/devices/{device}")).await.1["settings"].clone();
    assert_eq!(settings("pc-1").await, json!({"wanted": 1, "acknowledged": 1, "pending": false}));
    assert_eq!(settings("pc-2").await, json!({"wanted": 1, "acknowledged": null, "pending": true}));
    world.put("a", "/settings", json!({"poll_normal_s": 60})).await;
    assert_eq!(settings("pc-1").await, json!({"wanted": 2, "acknowledged": 1, "pending": true}));
    // Inventory made under it says that the device has it, whatever the server remembers of the device.
    let inventory = |settings_version, clock_skew| Op::Inventory {
        tenant: tenant("a"),
        device: id(2),
        put: Default::default(),
        gone: vec![],
        digest: Hash::of(b"d"),
        collected_at: NOW,
        settings_version,
        need_full: false,
        clock_skew,
    };
    world.store.commit(vec![inventory(1, true)]).await.unwrap();
    let shown = world.get("a", "/devices/pc-2").await.1;
    assert_eq!(shown["settings"], json!({"wanted": 2, "acknowledged": 1, "pending": true}));
    let flags = |shown: &Value| (shown["differs"].clone(), shown["clock_skew"].clone());
    assert_eq!(flags(&shown["inventory"]), (json!(true), json!(true)), "INV-10, INV-13");
    assert_eq!(flags(&world.get("a", "/devices/pc-2/inventory").await.1), (json!(true), json!(true)));
    world.store.commit(vec![inventory(2, false)]).await.unwrap();
    let shown = world.get("a", "/devices/pc-2").await.1;
    assert_eq!(shown["settings"], json!({"wanted": 2, "acknowledged": 2, "pending": false}));
    assert_eq!(flags(&shown["inventory"]), (json!(false), json!(false)));
}
