//! A revoked device is out, at once and for good.

use super::*;
use branchline_tests::office::eventually;

#[test]
fn s_12_a_revoked_device_is_cut_off_within_a_minute_and_does_not_come_back() {
    let office = start("satellite-office");
    let ids = device_ids(&office);
    let slots = |office: &Office, node: &str| {
        let tree = office.json(&["tree"]);
        let node = list(&tree, "nodes").iter().find(|n| n["name"] == node).unwrap().clone();
        node["slots"]["used"].as_u64().unwrap()
    };
    // A relay tells its figures every other second.
    eventually("every slot is shown", 60, || {
        ((slots(&office, "osaka"), slots(&office, "hq")) == (20, 2)).then_some(())
    });
    // One behind the relay, one straight through the gateway.
    for (name, parent, used) in [("osaka-pc-05", "osaka", 19), ("roaming-02", "hq", 1)] {
        let id = &ids[name];
        let revoked = office.json(&["revoke", id]);
        assert_eq!((text(&revoked, "revoked"), &revoked["epoch"]), (id.as_str(), &1.into()));
        let device = office.device(id);
        assert_eq!((text(&device, "state"), text(&device, "state_reason")), ("offline", "revoked"), "{device}");
        eventually(&format!("{name}'s link to {parent} is closed"), 60, || {
            (slots(&office, parent) == used).then_some(())
        });
        // Nothing can be ordered for it any more, and selectors do not mean it.
        let ran = office.command(&[
            "--json",
            "run",
            "--on",
            &format!("device:{id}"),
            "--wait",
            "--timeout",
            "5s",
            "--",
            "true",
        ]);
        assert_ne!(ran.code, 0, "{ran:?}");
        assert!(!ran.stdout.contains("\"succeeded\":1"), "{ran:?}");
        // Neither by itself nor as a fresh process does it get in again.
        let old = office.kill(name);
        office.restarted(name, old);
        let refused = eventually(&format!("{name} is told why it stays out"), 90, || {
            let log = office.log(name);
            log.contains("revoked").then_some(log)
        });
        assert!(refused.contains("revoked"));
        assert_eq!(slots(&office, parent), used, "it is in again");
        assert_eq!(text(&office.device(id), "state_reason"), "revoked");
    }
    let job = office.json(&["run", "--on", "all", "--wait", "--timeout", "90s", "--", "true"]);
    assert_eq!(job["counts"]["succeeded"], 20, "{job}");
    assert!(
        list(&job, "results")
            .iter()
            .all(|r| r["device"] != ids["osaka-pc-05"].as_str() && r["device"] != ids["roaming-02"].as_str())
    );
    assert_eq!((slots(&office, "osaka"), slots(&office, "hq")), (19, 1));
}

#[test]
fn s_12_what_was_queued_for_a_revoked_device_is_cancelled() {
    let office = start("two-agents");
    office.hold_down("pc-01");
    let id = office.id("pc-01");
    let job = office.order(&format!("device:{id}"), &["true"]);
    assert_eq!(office.json(&["job", &job])["complete"], false);
    office.json(&["revoke", &id]);
    let done = office.completed(&job, 60);
    assert_eq!((&done["counts"]["cancelled"], text(&done["results"][0], "state")), (&1.into(), "cancelled"), "{done}");
}
