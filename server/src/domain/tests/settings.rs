//! Settings: versions, signatures, who is told (ADM-14, INV-8).

use super::*;
use crate::domain::documents::Change;
use branchline_protocol::document::{Document, Settings};

#[tokio::test]
async fn adm_14_each_change_is_one_version_newer_signed_told_audited_and_kept() {
    let world = World::new().await;
    let mut changes = world.office.changes();
    let first = world.office.settings(&acme()).unwrap();
    assert_eq!((first.version(), first.poll_interval_ms()), ((1, 1), None), "configuration holds until it is changed");
    let wanted = Settings { poll_normal_s: 7_200, schedule: "monthly 3 10:00".parse().unwrap(), ..first.clone() };
    let set = world.office.set_settings(&acme(), "admin", wanted.clone()).await.unwrap();
    assert_eq!((set.version(), set.poll_interval_ms()), ((1, 2), Some(7_200_000)));
    let change = Change { tenant: acme(), kind: Kind::Settings, site: String::new() };
    assert_eq!(soon(changes.recv()).await.unwrap(), change);
    assert_eq!(world.opened::<Settings>("hq"), set, "signed, for every site");
    assert_eq!(world.opened::<Settings>("osaka"), set);
    assert_eq!(world.office.settings(&tenant("other")).unwrap().version, 1, "TOP-22");
    let audit = world.store.audit(&acme(), 1).await.unwrap();
    assert_eq!((audit[0].who.as_str(), audit[0].what.as_str()), ("admin", "settings.change"));
    let detail = r#"version 2: poll_normal_s "3600" to "7200", schedule "daily" to "monthly 3 10:00""#;
    assert_eq!(audit[0].detail, detail);

    // Equal ones are no change, stale ones a conflict.
    assert_eq!(world.office.set_settings(&acme(), "admin", set.clone()).await.unwrap(), set);
    let stale = world.office.set_settings(&acme(), "admin", wanted).await.unwrap_err();
    assert_eq!((stale.status, stale.code.as_str()), (409, "conflict"));
    let world = world.restarted().await;
    assert_eq!(world.office.settings(&acme()).unwrap(), set);
    assert_eq!(world.opened::<Settings>("hq"), set);
}

#[tokio::test]
async fn adm_14_bad_settings_and_failed_writes_change_nothing() {
    let world = World::new().await;
    let first = world.office.settings(&acme()).unwrap();
    let bad = Settings { poll_normal_s: 59, ..first.clone() };
    assert_eq!(world.office.set_settings(&acme(), "admin", bad).await.unwrap_err().status, 422);
    let unknown = world.office.set_settings(&tenant("nobody"), "admin", first.clone()).await.unwrap_err();
    assert_eq!((unknown.status, unknown.code.as_str()), (404, "no_such_tenant"));
    world.store.set_failing(true);
    let good = Settings { poll_normal_s: 60, ..first.clone() };
    assert_eq!(world.office.set_settings(&acme(), "admin", good.clone()).await.unwrap_err().status, 503);
    assert_eq!(world.office.settings(&acme()).unwrap(), first, "not durable, not told");
    world.store.set_failing(false);
    assert_eq!(world.office.set_settings(&acme(), "admin", good).await.unwrap().version, 2);
}
