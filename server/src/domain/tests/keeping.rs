//! Which devices keep their connection.

use super::*;
use branchline_protocol::document::{Document, KEEP_MAX, Revocations};

#[tokio::test]
async fn adm_1_each_change_is_one_version_newer_and_a_revoked_device_is_named_no_more() {
    let world = World::new().await;
    let wish = TokenWish { uses: 2, ..token_wish(Role::Agent, "hq", "server") };
    let bundle = world.bundle(&wish).await;
    let one = world.enrol(&bundle, &new_key(), "pc-1").await.unwrap().id();
    let two = world.enrol(&bundle, &new_key(), "pc-2").await.unwrap().id();
    let set = async |device, keep| world.office.keep_connection(&acme(), "admin", device, keep).await;
    let shown = || {
        let list: Revocations = world.opened("hq");
        (list.version().1, list.keeps(one), list.keeps(two))
    };
    set(one, Some(true)).await.unwrap();
    set(one, Some(true)).await.unwrap();
    assert_eq!(shown(), (2, Some(true), None), "the same again is no change");
    set(two, Some(false)).await.unwrap();
    set(one, Some(false)).await.unwrap();
    assert_eq!(shown(), (4, Some(false), Some(false)));
    set(one, None).await.unwrap();
    assert_eq!(shown(), (5, None, Some(false)));
    world.office.revoke(&acme(), "admin", two).await.unwrap();
    assert_eq!(shown(), (6, None, None));
    for nobody in [two, NodeId(uuid::Uuid::from_u128(9))] {
        assert_eq!(set(nobody, Some(true)).await.unwrap_err().code, "no_such_node");
    }
    let audit = world.store.audit(&acme(), 100).await.unwrap();
    assert_eq!(audit.iter().filter(|row| row.what == "device.keep_connection").count(), 4);
}

#[tokio::test]
async fn adm_1_as_many_devices_as_the_list_may_name_and_one_more() {
    let world = World::new().await;
    let bundle = world.bundle(&TokenWish { uses: 2, ..token_wish(Role::Agent, "hq", "server") }).await;
    let one = world.enrol(&bundle, &new_key(), "pc-1").await.unwrap().id();
    let two = world.enrol(&bundle, &new_key(), "pc-2").await.unwrap().id();
    world.office.name_strangers(&acme(), KEEP_MAX - 1);
    world.office.keep_connection(&acme(), "admin", one, Some(true)).await.unwrap();
    let refusal = world.office.keep_connection(&acme(), "admin", two, Some(true)).await.unwrap_err();
    assert_eq!(
        (refusal.status, &*refusal.code, refusal.field.as_deref()),
        (422, "too_many_kept", Some("keep_connection"))
    );
    world.office.keep_connection(&acme(), "admin", one, Some(false)).await.unwrap();
    let list: Revocations = world.opened("hq");
    assert_eq!((list.keep_connection.len(), list.keeps(one), list.keeps(two)), (KEEP_MAX, Some(false), None));
}
