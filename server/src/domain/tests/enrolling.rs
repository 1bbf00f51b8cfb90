//! ENR-1, 2, 3, 7, 9, 10 and TOP-15 over TLS.

use super::*;
use branchline_node::identity::peer_identity;

#[tokio::test]
async fn enr_1_a_token_enrols_one_device_once() {
    let world = World::new().await;
    let bundle = world.agent_bundle().await;
    let enrolled = world.enrol(&bundle, &new_key(), "pc-1").await.unwrap();
    let row = world.row(enrolled.id()).await;
    assert_eq!((row.tenant, row.role, &row.site[..], &row.name[..]), (acme(), Role::Agent, "osaka", "pc-1"));
    assert_eq!((&row.host_name[..], &row.kind[..], row.epoch), ("pc-1.example", "lan", 1));
    let subject = &enrolled.identity.subject;
    assert_eq!((subject.role, subject.epoch, &subject.tenant), (Role::Agent, 1, &acme()));
    assert_eq!(subject.not_after, NOW.plus(90 * DAY_MS as i64));

    refused_with(world.enrol(&bundle, &new_key(), "pc-2").await, 409, "token_used");
    let late = world.agent_bundle().await;
    world.clock.advance(DAY_MS as i64 + 1);
    refused_with(world.enrol(&late, &new_key(), "pc-3").await, 403, "token_expired");
    let mut stranger = late;
    stranger.token = Some("never made".into());
    refused_with(world.enrol(&stranger, &new_key(), "pc-4").await, 401, "unknown_token");
    assert_eq!(world.node_count().await, 1);
}

#[tokio::test]
async fn enr_1_of_ten_at_once_with_one_token_exactly_one_wins() {
    let world = Arc::new(World::new().await);
    let bundle = Arc::new(world.agent_bundle().await);
    let tries: Vec<_> = (0..10)
        .map(|i| {
            let (world, bundle) = (world.clone(), bundle.clone());
            tokio::spawn(async move { world.enrol(&bundle, &new_key(), &format!("pc-{i}")).await })
        })
        .collect();
    let mut won = 0;
    for one in tries {
        match soon(one).await.unwrap() {
            Ok(_) => won += 1,
            Err(no) => assert_eq!((no.status, &no.code[..]), (409, "token_used"), "{no}"),
        }
    }
    assert_eq!((won, world.node_count().await), (1, 1));
}

#[tokio::test]
async fn enr_3_of_ten_at_once_with_one_name_exactly_one_wins() {
    let world = Arc::new(World::new().await);
    let wish = TokenWish { uses: 10, ..token_wish(Role::Agent, "osaka", "server") };
    let bundle = Arc::new(world.bundle(&wish).await);
    let tries: Vec<_> = (0..10)
        .map(|i| {
            let (world, bundle) = (world.clone(), bundle.clone());
            let name = if i % 2 == 0 { "pc-1" } else { "PC-1" };
            tokio::spawn(async move { world.enrol(&bundle, &new_key(), name).await })
        })
        .collect();
    let mut won = 0;
    for one in tries {
        match soon(one).await.unwrap() {
            Ok(_) => won += 1,
            Err(no) => assert_eq!((no.status, &no.code[..]), (409, "duplicate_name"), "{no}"),
        }
    }
    assert_eq!((won, world.node_count().await), (1, 1));
    // What lost has used nothing up.
    for i in 2..=10 {
        world.enrol(&bundle, &new_key(), &format!("pc-{i}")).await.unwrap();
    }
    refused_with(world.enrol(&bundle, &new_key(), "pc-11").await, 409, "token_used");
}

#[tokio::test]
async fn enr_2_when_the_store_fails_nobody_is_answered_and_the_token_stays_good() {
    let world = World::new().await;
    let (bundle, key) = (world.agent_bundle().await, new_key());
    world.store.set_failing(true);
    let (answer, outcome) = world.ask(&bundle, &request_of(&bundle, &key, "pc-1")).await;
    assert_eq!(answer, None);
    assert!(matches!(outcome, Outcome::Unanswered(_)), "{outcome:?}");
    world.store.set_failing(false);
    assert_eq!(world.node_count().await, 0);
    world.enrol(&bundle, &key, "pc-1").await.unwrap();
    assert_eq!(world.node_count().await, 1);
}

#[tokio::test]
async fn enr_2_a_lost_answer_is_given_again_for_the_same_token_and_key() {
    let world = World::new().await;
    let (bundle, key) = (world.agent_bundle().await, new_key());
    let (mut child, served) = world.knock(&bundle, |stream| stream).await.unwrap();
    write_message(&mut child, &request_of(&bundle, &key, "pc-1")).await.unwrap();
    drop(child);
    let Outcome::Enrolled(first) = soon(served).await.unwrap() else { panic!("it was not enrolled") };
    assert!(!first.again);

    let world = world.restarted().await;
    let again = world.enrol(&bundle, &key, "pc-1").await.unwrap();
    assert_eq!((again.id(), world.node_count().await), (first.node, 1));
    let third = world.enrol(&bundle, &key, "pc-1").await.unwrap();
    assert_ne!(third.identity.subject.serial_hex, again.identity.subject.serial_hex);
    refused_with(world.enrol(&bundle, &new_key(), "pc-2").await, 409, "token_used");
}

#[tokio::test]
async fn enr_2_a_stream_cut_during_the_write_leaves_no_half_made_device() {
    let world = World::new().await;
    let (bundle, key) = (world.agent_bundle().await, new_key());
    let mut written = world.store.written();
    let before = *written.borrow_and_update();
    let closed = world.store.gate.write().await;
    let (mut child, served) = world.knock(&bundle, |stream| stream).await.unwrap();
    write_message(&mut child, &request_of(&bundle, &key, "pc-1")).await.unwrap();
    soon(written.wait_for(|n| *n > before)).await.unwrap();
    served.abort();
    assert!(soon(served).await.unwrap_err().is_cancelled());
    drop(closed);
    let enrolled = world.enrol(&bundle, &key, "pc-1").await.unwrap();
    assert_eq!((world.node_count().await, world.row(enrolled.id()).await.epoch), (1, 1));
}

#[tokio::test]
async fn enr_7_an_agents_token_makes_no_relay() {
    let world = World::new().await;
    let mut bundle = world.agent_bundle().await;
    bundle.role = Role::Relay;
    refused_with(world.enrol(&bundle, &new_key(), "osaka").await, 403, "wrong_role");
    assert_eq!(world.node_count().await, 0);
}

#[tokio::test]
async fn enr_9_a_revoked_device_does_not_come_back_with_its_key() {
    let world = World::new().await;
    let (bundle, key) = (world.agent_bundle().await, new_key());
    let id = world.enrol(&bundle, &key, "pc-1").await.unwrap().id();
    world.office.revoke(&acme(), "admin", id).await.unwrap();
    let world = world.restarted().await;
    refused_with(world.enrol(&bundle, &key, "pc-1").await, 403, "revoked");
    refused_with(world.enrol(&world.agent_bundle().await, &key, "pc-1").await, 403, "revoked");
    let successor = world.enrol(&world.agent_bundle().await, &new_key(), "pc-1").await.unwrap();
    assert_ne!(successor.id(), id);
}

#[tokio::test]
async fn enr_10_a_reinstalled_device_with_its_key_keeps_id_epoch_and_history() {
    let world = World::new().await;
    let key = new_key();
    let id = world.enrol(&world.agent_bundle().await, &key, "pc-1").await.unwrap().id();
    let mut row = world.row(id).await;
    (row.attachment, row.tags) = (41, vec!["till".into()]);
    world.store.commit(vec![crate::store::Op::Node(row)]).await.unwrap();
    world.clock.advance(1_000);
    let elsewhere = world.bundle(&token_wish(Role::Agent, "hq", "server")).await;
    let again = world.enrol(&elsewhere, &key, "pc-1b").await.unwrap();
    assert_eq!((again.id(), world.node_count().await), (id, 1));
    let row = world.row(id).await;
    assert_eq!((row.epoch, row.attachment, row.tags, row.enrolled_at), (1, 41, vec!["till".to_owned()], NOW));
    assert_eq!((&row.site[..], &row.name[..]), ("hq", "pc-1b"));
    // The old name is free, the new one is not.
    refused_with(world.enrol(&world.agent_bundle().await, &new_key(), "PC-1B").await, 409, "duplicate_name");
    world.enrol(&world.agent_bundle().await, &new_key(), "pc-1").await.unwrap();
}

#[tokio::test]
async fn enr_4_a_long_name_uses_no_token_up() {
    let world = World::new().await;
    let (bundle, key) = (world.agent_bundle().await, new_key());
    refused_with(world.enrol(&bundle, &key, "sixteen-letters-").await, 422, "name_too_long");
    world.enrol(&bundle, &key, "fifteen-letters").await.unwrap();
}

#[tokio::test]
async fn a_request_with_a_strangers_key_is_refused() {
    let world = World::new().await;
    let (bundle, key) = (world.agent_bundle().await, new_key());
    for position in [0, 40, 80] {
        let mut request = request_of(&bundle, &key, "pc-1");
        let mut der = request.request.to_vec();
        let from_the_end = der.len() - 1 - position;
        der[from_the_end] ^= 1;
        request.request = der.into();
        let (answer, _) = world.ask(&bundle, &request).await;
        let Some(EnrolAnswer::Refused(no)) = answer else { panic!("{answer:?}") };
        assert_eq!((no.status, &no.code[..]), (400, "bad_request_certificate"), "{no}");
    }
    assert_eq!(world.node_count().await, 0);
}

#[tokio::test]
async fn what_is_no_request_is_told_so() {
    let world = World::new().await;
    let bundle = world.agent_bundle().await;
    let (mut child, served) = world.knock(&bundle, |stream| stream).await.unwrap();
    write_message(&mut child, &"hello").await.unwrap();
    let answer: EnrolAnswer = read_message(&mut child).await.unwrap();
    assert!(matches!(answer, EnrolAnswer::Refused(no) if (no.status, &no.code[..]) == (400, "malformed")));
    assert!(matches!(soon(served).await.unwrap(), Outcome::Refused(_)));
}

#[tokio::test]
async fn names_of_other_servers_and_tenants_get_no_handshake() {
    let world = World::new().await;
    let good = world.agent_bundle().await;
    let own = branchline_node::identity::server_name_text(good.server, &acme());
    assert!(world.office.enrol_config_for(&own).is_some() && world.office.link_config_for(&own).is_some());
    let mut wrong_server = good.clone();
    wrong_server.server = NodeId(uuid::Uuid::from_u128(7));
    let mut wrong_tenant = good;
    wrong_tenant.tenant = tenant("nobody");
    assert!(world.office.enrol_config_for("example.org").is_none());
    for bundle in [wrong_server, wrong_tenant] {
        let name = branchline_node::identity::server_name_text(bundle.server, &bundle.tenant);
        assert!(world.office.enrol_config_for(&name).is_none() && world.office.link_config_for(&name).is_none());
    }
}

#[tokio::test]
async fn an_enrolled_device_is_let_into_a_link_and_a_stranger_is_not() {
    let world = World::new().await;
    let bundle = world.agent_bundle().await;
    let enrolled = world.enrol(&bundle, &new_key(), "pc-1").await.unwrap();
    let time = || Arc::new(NodeTime::new(world.clock.clone()));
    let roots = [world.office.tenant_tls(&acme()).unwrap().ca];
    for (identity, welcome) in [(Some(&enrolled.identity), true), (None, false)] {
        let (near, far) = tokio::io::duplex(65_536);
        let up = child_config(identity, &roots, time()).unwrap();
        let name = server_name(bundle.server, &acme());
        let connector = TlsConnector::from(up);
        let (child, parent) = tokio::join!(connector.connect(name, near), world.office.accept_link(far));
        assert_eq!(parent.is_ok(), welcome);
        if let Ok(parent) = parent {
            let peer = peer_identity(parent.get_ref().1.peer_certificates().unwrap()).unwrap();
            assert_eq!(peer, enrolled.identity.subject);
        }
        drop(child);
    }
}

/// Everything that awaits must be able to move between threads: the API's trait demands it.
#[test]
fn the_offices_futures_can_be_sent() {
    fn sent<T: Send>(_: impl FnOnce(&Office, &TokenWish) -> T) {}
    sent(|office, wish| {
        let (office, wish) = (office.clone(), wish.clone());
        async move {
            let _ = office.bundle(&acme(), "", &wish).await;
            let _ = office.make_token(&acme(), "", &wish).await;
            let _ = office.revoke(&acme(), "", office.server_id()).await;
            let _ = office.add_tenant("", acme(), vec![]).await;
            let _ = office.add_site(&acme(), "", String::new()).await;
            let _ = office.add_gateway("", String::new(), None).await;
            let (stream, _) = tokio::io::duplex(1);
            if let Ok(stream) = office.accept_enrol(stream).await {
                office.enrol(stream, None).await;
            }
        }
    });
}
