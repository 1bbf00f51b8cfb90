//! S-1, its inventory: a device out of contact over its schedule while the settings change.

use super::world::{World, local};

const ALL: [&str; 7] = ["disks", "hardware", "network", "os", "protection", "software", "users"];

/// Both devices collect on the 3rd at 10:00, and have for a while.
async fn may() -> (World, u64) {
    let mut world = World::new("05-20 08:00").await;
    for pc in 0..2 {
        world.start(pc).await;
        world.connect(pc).await;
    }
    let first = world.set(|s| s.schedule = "monthly 3 10:00".parse().expect("a schedule")).await;
    assert_eq!([world.versions(0), world.versions(1)], [(first, first); 2], "acknowledged over links that were up");
    (world, first)
}

async fn june(restart: Option<&str>) {
    let (mut world, first) = may().await;
    world.run_until("06-01 09:00").await;
    world.cut(0).await;

    world.run_until("06-02 12:00").await;
    let second = world.set(|s| s.collect = vec!["os".into(), "software".into()]).await;
    assert_eq!(world.versions(1), (second, second), "PC-002 acknowledges");
    assert_eq!(world.versions(0), (second, first), "PC-001 is pending");

    (0..2).for_each(|pc| world.install(pc));
    if let Some(at) = restart {
        world.run_until(at).await;
        world.start(0).await;
    }
    world.run_until("06-03 12:00").await;
    let folder = world.folder(0);
    assert_eq!(folder.len(), 1, "PC-001 has a record in its own folder");
    assert_eq!((folder[0].collected_at, folder[0].settings_version), (local("06-03 10:00"), first));
    let (at, version, differs, sections) = world.held(1).await;
    assert_eq!((at, version, differs), (local("06-03 10:00"), second, false), "PC-002's is there");
    assert_eq!(sections, ["os", "software"]);

    world.run_until("06-04 12:00").await;
    world.pcs[0].wire.clear();
    world.connect(0).await;
    let (at, version, differs, sections) = world.held(0).await;
    assert_eq!((at, version, differs), (local("06-03 10:00"), first, true), "its own time, flagged as differing");
    assert_eq!(sections, ALL);
    assert_eq!(world.versions(0), (second, second), "then the new settings are acknowledged");
    let expected = [format!("settings v{second}"), format!("record v{first}"), format!("has v{second}")];
    let mut wire = world.pcs[0].wire.clone();
    assert_eq!(wire.last(), Some(&expected[2]), "{wire:?}");
    wire.sort();
    let mut sorted = expected.to_vec();
    sorted.sort();
    assert_eq!(wire, sorted, "one record, one document, one acknowledgement");

    world.run_until("07-03 09:59").await;
    assert_eq!(world.pcs[0].wire.len(), 3, "no second collection happens");
    world.run_until("07-03 12:00").await;
    for pc in 0..2 {
        let (_, version, differs, sections) = world.held(pc).await;
        assert_eq!((version, differs), (second, false), "comparable again");
        assert_eq!(sections, ["os", "software"]);
    }
    assert_eq!(world.pcs[0].wire[3..], [format!("record v{second}")]);
    assert!(world.folder(0).is_empty(), "everything is settled");
}

#[tokio::test]
async fn s_1_a_device_out_of_contact_collects_by_old_settings_and_new_ones_count_from_contact() {
    june(None).await;
}

/// The same with the agent started again before its schedule's time, at it, and while the report waits for its moment.
#[tokio::test]
async fn s_1_a_restart_of_the_agent_changes_nothing() {
    for at in ["06-03 09:00", "06-03 10:00", "06-03 10:02", "06-03 11:00"] {
        june(Some(at)).await;
    }
}

#[tokio::test]
async fn inv_10_collect_on_return_brings_a_comparable_record_at_contact() {
    let (mut world, first) = may().await;
    world.run_until("06-01 09:00").await;
    world.cut(0).await;
    world.run_until("06-02 12:00").await;
    let second = world
        .set(|s| {
            s.collect = vec!["os".into()];
            s.collect_on_return = true;
        })
        .await;
    world.run_until("06-04 12:00").await;
    world.pcs[0].wire.clear();
    world.connect(0).await;
    let records = world.pcs[0].wire.iter().filter(|word| word.starts_with("record")).collect::<Vec<_>>();
    assert_eq!(records, [&format!("record v{first}"), &format!("record v{second}")]);
    let (at, version, differs, sections) = world.held(0).await;
    assert_eq!((at, version, differs), (local("06-04 12:00"), second, false));
    assert_eq!(sections, ["os"]);
}

#[tokio::test]
async fn inv_9_three_collections_offline_arrive_in_order_with_their_times() {
    let (mut world, first) = may().await;
    world.run_until("06-01 09:00").await;
    world.cut(0).await;
    for (month, restart) in [("06", true), ("07", false), ("08", true)] {
        world.run_until(&format!("{month}-03 09:00")).await;
        world.install(0);
        world.run_until(&format!("{month}-03 10:06")).await;
        if restart {
            world.start(0).await;
        }
    }
    let times: Vec<_> = world.folder(0).iter().map(|report| report.collected_at).collect();
    assert_eq!(times, ["06-03 10:00", "07-03 10:00", "08-03 10:00"].map(local));
    world.run_until("08-20 12:00").await;
    world.connect(0).await;
    let (at, version, ..) = world.held(0).await;
    assert_eq!((at, version), (local("08-03 10:00"), first));
    assert!(world.folder(0).is_empty());
    let records = world.pcs[0].wire.iter().filter(|word| word.starts_with("record")).count();
    assert_eq!(records, 1 + 3, "the first and the three");
}
