//! The office after a restore: nothing is issued, then everything anew (OPS-7).

use super::*;
use crate::{
    backup::Mark,
    dispatch::recovery::{Learned, LearnedOf, Progress, Why},
    domain::raise_term,
};
use branchline_protocol::{
    document::{Document, Revocations, Settings, TimeStatement, UpstreamList},
    time::Mono,
};
use std::collections::BTreeMap;

/// A restored office, which listens.
async fn restored(world: World) -> World {
    let mark = Mark { made_at: NOW, restored_at: NOW.plus(1) };
    raise_term(&*world.store, mark, NOW.plus(1)).await.unwrap();
    world.restarted().await
}

fn learned(term: u32, of: LearnedOf) -> Learned {
    let progress = Progress { heard: 1, awaited: 1, until: Mono(0) };
    Learned { term, tenants: BTreeMap::from([(acme(), of)]), progress, why: Why::Heard }
}

#[tokio::test]
async fn ops_7_a_restored_office_issues_nothing_until_it_has_listened() {
    let world = World::new().await;
    let bundle = world.agent_bundle().await;
    let node = world.enrol(&bundle, &new_key(), "pc-1").await.unwrap().id();
    let other = world.agent_bundle().await;
    world.office.add_gateway("admin", "https://known.example".into(), None).await.unwrap();
    let world = restored(world).await;
    let office = &world.office;
    assert_eq!(office.term(), 2);
    let (main, who) = (acme(), "admin");
    let wish = token_wish(Role::Agent, "osaka", "server");
    let settings = Settings { poll_normal_s: 77, ..office.settings(&main).unwrap() };
    refused_with(office.add_tenant(who, tenant("new"), vec![]).await, 503, "recovering");
    refused_with(office.add_site(&main, who, "lima".into()).await, 503, "recovering");
    refused_with(office.make_token(&main, who, &wish).await, 503, "recovering");
    refused_with(office.bundle(&main, who, &wish).await, 503, "recovering");
    refused_with(office.revoke(&main, who, node).await, 503, "recovering");
    refused_with(office.suspend(&main, who, node, true).await, 503, "recovering");
    refused_with(office.set_settings(&main, who, settings).await, 503, "recovering");
    refused_with(office.add_gateway(who, "https://gw.example".into(), None).await, 503, "recovering");
    assert_eq!(office.add_gateway(who, "https://known.example".into(), None).await, Ok(()), "nothing new");
    refused_with(world.enrol(&other, &new_key(), "pc-2").await, 503, "recovering");
    let no = office.may_issue().unwrap_err();
    assert!(no.retry_after_ms.is_some_and(|ms| (1_000..=10_000).contains(&ms)), "{no:?}");
    assert_eq!(office.time_statement(&main, NOW, 0), None);
    assert_eq!(world.node_count().await, 1, "nothing was stored");
    // Other addresses are kept, and told when it is over.
    let before = office.documents(&main, "hq");
    office.set_advertised(vec!["127.0.0.1:9".into()], vec!["127.0.0.1:8".into()]).await.unwrap();
    assert_eq!(office.documents(&main, "hq"), before);
    office.finish_recovery(&learned(0, LearnedOf::default())).await.unwrap();
    assert_eq!(office.may_issue(), Ok(()));
    world.enrol(&other, &new_key(), "pc-2").await.unwrap();
    let statement = office.time_statement(&main, NOW.plus(9), 0).unwrap();
    let statement: TimeStatement = rmp_serde::from_slice(&statement.payload).unwrap();
    assert_eq!((statement.term, statement.restored_from), (2, Some(NOW)));
}

#[tokio::test]
async fn ops_7_after_listening_every_document_is_anew_in_a_term_above_all() {
    let world = World::new().await;
    let bundle = world.agent_bundle().await;
    let [one, two] = [world.enrol(&bundle, &new_key(), "pc-1").await.unwrap().id(), {
        let bundle = world.agent_bundle().await;
        world.enrol(&bundle, &new_key(), "pc-2").await.unwrap().id()
    }];
    let relay = world.bundle(&token_wish(Role::Relay, "osaka", "server")).await;
    let relay = world.enrol(&relay, &new_key(), "osaka").await.unwrap().id();
    // Devices of the site hang on the relay.
    world.bundle(&token_wish(Role::Agent, "osaka", &relay.to_string())).await;
    assert_eq!(world.opened::<UpstreamList>("osaka").upstreams[0].id, relay);
    world.office.suspend(&acme(), "admin", two, true).await.unwrap();
    let world = restored(world).await;
    let stranger = NodeId(uuid::Uuid::from_u128(99));
    let newer = Settings { version: 9, poll_normal_s: 123, ..world.office.settings(&acme()).unwrap() };
    let of = LearnedOf {
        // One that the backup knows, one that enrolled after it, the relay, and an older epoch of a node that came anew.
        revoked: BTreeMap::from([(one, 1), (stranger, 2), (relay, 1), (two, 0)]),
        // One that was revoked too, one whose disk was put back in the gap, one that the backup does not know.
        raised: BTreeMap::from([(one, 2), (two, 3), (stranger, 4)]),
        suspended: Some(((1, 8), vec![])),
        keep_connection: vec![(two, false), (one, true)],
        settings: Some(newer),
        trust: None,
        newest: 400,
    };
    let mut changes = world.office.changes();
    let (term, mut revoked) = world.office.finish_recovery(&learned(6, of)).await.unwrap();
    revoked.sort();
    let mut expected = vec![(acme(), one), (acme(), relay)];
    expected.sort();
    assert_eq!((term, revoked), (7, expected));
    assert!(soon(changes.recv()).await.is_ok(), "whoever watches is told");
    let world = world.restarted().await;
    assert_eq!((world.office.term(), world.office.recovery()), (7, None), "durable");
    let list = world.opened::<Revocations>("hq");
    assert_eq!(list.version(), (7, 9), "newer than every list that was told");
    assert!([(one, 1), (stranger, 2), (relay, 1)].iter().all(|(node, epoch)| list.covers(*node, *epoch)));
    assert!(!list.covers(two, 1), "a later epoch is not meant");
    assert_eq!([one, two, stranger].map(|node| list.epoch_of(node, 1)), [2, 3, 4]);
    assert_eq!((world.row(two).await.epoch, world.row(one).await.epoch), (3, 1), "a revoked one goes on in none");
    assert_eq!(list.suspended, vec![], "revived in the gap");
    assert_eq!(list.keep_connection, vec![(two, false)], "what the newest list says, but of nobody who is revoked");
    let settings = world.opened::<Settings>("osaka");
    assert_eq!((settings.version(), settings.poll_normal_s), ((7, 9), 123));
    let upstreams = world.opened::<UpstreamList>("osaka");
    assert_eq!((upstreams.term, upstreams.upstreams.iter().any(|u| u.id == relay)), (7, false));
    assert_eq!(world.opened::<UpstreamList>("hq").term, 7, "also one that did not change");
    assert!(world.row(one).await.revoked_at.is_some() && world.row(two).await.revoked_at.is_none());
    let stored = world.store.meta(&format!("order/{}", acme())).await.unwrap().unwrap();
    assert_eq!(stored[..], 400u64.to_be_bytes());
    let audit = world.store.audit(&acme(), 1).await.unwrap();
    assert_eq!(audit[0].what, "server.recovered");
    // The other tenant too, although nobody told anything of it.
    assert_eq!(world.office.settings(&tenant("other")).unwrap().term, 7);
}

#[tokio::test]
async fn ops_7_an_old_list_that_comes_late_revokes_what_it_names_and_only_once() {
    let world = World::new().await;
    let bundle = world.agent_bundle().await;
    let one = world.enrol(&bundle, &new_key(), "pc-1").await.unwrap().id();
    let before = world.opened::<Revocations>("hq").version;
    assert_eq!(world.office.revoke_again(&acme(), vec![(one, 1)]).await.unwrap(), [one]);
    assert_eq!(world.opened::<Revocations>("hq").version, before + 1);
    assert_eq!(world.office.revoke_again(&acme(), vec![(one, 1)]).await.unwrap(), []);
    assert_eq!(world.opened::<Revocations>("hq").version, before + 1);
    assert_eq!(world.office.revoke_again(&tenant("nobody"), vec![(one, 1)]).await.unwrap(), []);
    // One that enrolled after the backup is refused all the same.
    let gone = NodeId(uuid::Uuid::from_u128(99));
    assert_eq!(world.office.revoke_again(&acme(), vec![(gone, 3)]).await.unwrap(), []);
    assert!(world.opened::<Revocations>("hq").covers(gone, 3));
}

#[tokio::test]
async fn ops_7_a_store_that_was_put_back_by_hand_is_recovered_from_like_a_restore() {
    let world = World::new().await;
    let office = &world.office;
    let held = world.opened::<Revocations>("hq").version();
    assert!(!office.is_behind(&acme(), Kind::Revocations, held), "what is here is no proof");
    assert!(office.is_behind(&acme(), Kind::Revocations, (held.0, held.1 + 1)));
    assert!(office.is_behind(&acme(), Kind::Settings, (2, 0)));
    assert!(!office.is_behind(&acme(), Kind::Time, (1, 0)) && office.is_behind(&acme(), Kind::Time, (2, 0)));
    assert!(!office.is_behind(&tenant("nobody"), Kind::Revocations, (9, 9)));
    assert_eq!(office.fall_back().await.unwrap(), 2);
    assert!(office.recovery().is_some() && office.may_issue().is_err());
    let world = world.restarted().await;
    assert_eq!((world.office.term(), world.office.recovery().is_some()), (2, true), "durable");
}
