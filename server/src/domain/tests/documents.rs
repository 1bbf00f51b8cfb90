//! Documents: their versions, their signatures, who is told.

use super::*;
use crate::domain::{documents::Change, upstreams::GatewayAddress};
use branchline_protocol::document::{self, Document, Revocations, Settings, TimeStatement, UpstreamList};

impl World {
    /// A document as a node of the site opens it.
    pub fn opened<D: Document>(&self, site: &str) -> D {
        let trust = self.office.tenant_tls(&acme()).unwrap().trust;
        let documents = self.office.documents(&acme(), site);
        let (_, envelope) = documents.iter().find(|(kind, _)| *kind == D::KIND).unwrap();
        document::open(envelope, &acme(), &trust.server_keys()).unwrap()
    }
}

#[tokio::test]
async fn the_first_documents_are_signed_and_in_order_of_application() {
    let world = World::new().await;
    let kinds = |tenant: &TenantId, site: &str| -> Vec<Kind> {
        world.office.documents(tenant, site).into_iter().map(|(kind, _)| kind).collect()
    };
    assert_eq!(kinds(&acme(), "hq"), [Kind::Revocations, Kind::Trust, Kind::Upstreams, Kind::Settings]);
    assert_eq!(kinds(&acme(), "nagoya"), [Kind::Revocations, Kind::Trust, Kind::Settings]);
    assert_eq!(kinds(&tenant("nobody"), "hq"), []);
    let settings: Settings = world.opened("hq");
    assert_eq!((settings.poll_normal_s, settings.poll_urgent_s, settings.poll_erase_s), (3600, 600, 900));
    assert_eq!((settings.version(), world.opened::<Revocations>("hq").version()), ((1, 1), (1, 1)));
}

#[tokio::test]
async fn enr_9_each_revocation_is_one_version_newer_and_told() {
    let world = World::new().await;
    let wish = TokenWish { uses: 2, ..token_wish(Role::Agent, "hq", "server") };
    let bundle = world.bundle(&wish).await;
    let one = world.enrol(&bundle, &new_key(), "pc-1").await.unwrap().id();
    let two = world.enrol(&bundle, &new_key(), "pc-2").await.unwrap().id();
    let mut changes = world.office.changes();
    let revoked = world.office.revoke(&acme(), "admin", one).await.unwrap();
    assert_eq!(revoked.epoch, 1);
    let change = Change { tenant: acme(), kind: Kind::Revocations, site: String::new() };
    assert_eq!(soon(changes.recv()).await.unwrap(), change);
    let list: Revocations = world.opened("hq");
    assert_eq!(
        (list.version(), list.covers(one, 1), list.covers(one, 2), list.covers(two, 1)),
        ((1, 2), true, false, false)
    );
    assert_eq!(world.row(one).await.revoked_at, Some(NOW));

    // Once more is no change.
    assert_eq!(world.office.revoke(&acme(), "admin", one).await.unwrap(), revoked);
    world.office.revoke(&acme(), "admin", two).await.unwrap();
    let world = world.restarted().await;
    let list = world.office.revocations(&acme()).unwrap();
    assert_eq!((list.version(), list.covers(one, 1), list.covers(two, 1)), ((1, 3), true, true));
    assert_eq!(world.office.revocations(&tenant("other")).unwrap().version(), (1, 1));
}

#[tokio::test]
async fn rolled_back_another_epoch_is_in_row_and_list_and_a_revocation_covers_every_epoch() {
    let world = World::new().await;
    let key = new_key();
    let wish = TokenWish { uses: 2, ..token_wish(Role::Agent, "hq", "server") };
    let bundle = world.bundle(&wish).await;
    let one = world.enrol(&bundle, &key, "pc-1").await.unwrap().id();
    let two = world.enrol(&bundle, &new_key(), "pc-2").await.unwrap().id();
    let mut changes = world.office.changes();
    world.office.raise_epochs(&acme(), &[(one, 2)]).await.unwrap();
    let change = Change { tenant: acme(), kind: Kind::Revocations, site: String::new() };
    assert_eq!(soon(changes.recv()).await.unwrap(), change);
    world.office.raise_epochs(&acme(), &[(one, 3)]).await.unwrap();
    for older in 1..=3 {
        world.office.raise_epochs(&acme(), &[(one, older)]).await.unwrap();
    }
    let world = world.restarted().await;
    let list: Revocations = world.opened("hq");
    assert_eq!((list.version(), &list.raised), ((1, 3), &vec![(one, 3)]), "an older epoch is no change");
    assert_eq!((list.epoch_of(one, 1), list.epoch_of(one, 4), list.epoch_of(two, 1)), (3, 4, 1));
    assert_eq!((world.row(one).await.epoch, world.row(one).await.attachment), (3, 0));
    world.office.raise_epochs(&tenant("other"), &[(one, 4)]).await.unwrap();
    assert_eq!(world.row(one).await.epoch, 3, "nobody of that tenant");
    let again = world.enrol(&bundle, &key, "pc-1").await.unwrap();
    assert_eq!((again.id(), world.row(one).await.epoch), (one, 3), "enrolled again with its key it keeps its epoch");

    world.office.revoke(&acme(), "admin", one).await.unwrap();
    let list: Revocations = world.opened("hq");
    assert!(list.covers(one, 1) && list.covers(one, 3) && list.raised.is_empty());
    let stranger = NodeId(uuid::Uuid::from_u128(7));
    world.office.raise_epochs(&acme(), &[(one, 4), (stranger, 2), (two, 6)]).await.unwrap();
    let both: Revocations = world.opened("hq");
    assert_eq!((both.version, &both.raised), (list.version + 1, &vec![(two, 6)]), "one list; a revoked one gets none");
    assert_eq!((world.row(two).await.epoch, world.row(one).await.epoch), (6, 3));
}

#[tokio::test]
async fn top_22_another_tenants_node_cannot_be_revoked() {
    let world = World::new().await;
    let id = world.enrol(&world.agent_bundle().await, &new_key(), "pc-1").await.unwrap().id();
    refused_with(world.office.revoke(&tenant("other"), "admin", id).await, 404, "no_such_node");
    refused_with(world.office.revoke(&acme(), "admin", NodeId(uuid::Uuid::nil())).await, 404, "no_such_node");
    assert_eq!(world.row(id).await.revoked_at, None);
}

#[tokio::test]
async fn a_revocation_that_is_not_stored_is_not_told() {
    let world = World::new().await;
    let id = world.enrol(&world.agent_bundle().await, &new_key(), "pc-1").await.unwrap().id();
    let mut changes = world.office.changes();
    world.store.set_failing(true);
    refused_with(world.office.revoke(&acme(), "admin", id).await, 503, "store_unavailable");
    assert!(changes.try_recv().is_err());
    assert!(!world.office.revocations(&acme()).unwrap().covers(id, 1));
    world.store.set_failing(false);
    world.office.revoke(&acme(), "admin", id).await.unwrap();
    assert_eq!(world.office.revocations(&acme()).unwrap().version(), (1, 2));
}

#[tokio::test]
async fn a_gateways_address_makes_newer_lists_and_the_same_one_none() {
    let world = World::new().await;
    let before: UpstreamList = world.opened("hq");
    assert_eq!(
        (&before.upstreams[0].direct[..], before.upstreams[0].gateways.len()),
        (&["127.0.0.1:13000".to_owned()][..], 0)
    );
    let mut changes = world.office.changes();
    let gateway = GatewayAddress { public: "https://gw.example:443".into(), outer_root: None };
    world.office.set_gateways("admin", vec![gateway.clone()]).await.unwrap();
    let told: Vec<_> = (0..3).map(|_| changes.try_recv().map(|c| (c.tenant, c.site)).unwrap()).collect();
    let expected = [(acme(), "hq"), (acme(), "osaka"), (tenant("other"), "osaka")];
    assert_eq!(told, expected.map(|(tenant, site)| (tenant, site.to_owned())));
    let after: UpstreamList = world.opened("hq");
    assert_eq!(after.version(), (1, before.version + 1));
    assert_eq!(after.upstreams[0].gateways, ["https://gw.example:443"]);

    world.office.add_gateway("admin", "https://gw.example:443/".into(), None).await.unwrap();
    world.office.set_advertised(vec!["127.0.0.1:13000".into()], vec!["127.0.0.1:8443".into()]).await.unwrap();
    assert!(changes.try_recv().is_err());
    let world = world.restarted().await;
    assert_eq!(world.office.gateways(), [gateway]);
    assert_eq!(world.opened::<UpstreamList>("hq"), after);
}

#[tokio::test]
async fn bad_gateway_addresses_are_refused() {
    let world = World::new().await;
    for bad in ["http://gw.example", "gw.example:443", "https://", "https://gw.example/path", "https://gw example"] {
        refused_with(world.office.add_gateway("admin", bad.into(), None).await, 422, "bad_address");
    }
    let no_root = Some(bytes::Bytes::from_static(b"-----BEGIN CERTIFICATE-----\n"));
    refused_with(world.office.add_gateway("admin", "https://gw.example".into(), no_root).await, 422, "bad_certificate");
    let address = |n: usize| GatewayAddress { public: format!("https://gw{n}.example"), outer_root: None };
    world.office.set_gateways("admin", (0..64).map(address).collect()).await.unwrap();
    refused_with(world.office.set_gateways("admin", (0..65).map(address).collect()).await, 422, "too_many_gateways");
    refused_with(
        world.office.add_gateway("admin", "https://late.example".into(), None).await,
        422,
        "too_many_gateways",
    );
    world.office.add_gateway("admin", "https://gw1.example".into(), None).await.unwrap();
}

#[tokio::test]
async fn a_sites_list_names_what_its_bundles_lead_to() {
    let world = World::new().await;
    world.office.add_gateway("admin", "https://gw.example".into(), None).await.unwrap();
    let names = |list: &UpstreamList| list.upstreams.iter().map(|up| up.name.clone()).collect::<Vec<_>>();
    let relay = world.bundle(&token_wish(Role::Relay, "osaka", "gateway")).await;
    let relay = world.enrol(&relay, &new_key(), "relay-1").await.unwrap().id();
    world.bundle(&token_wish(Role::Agent, "osaka", "relay-1")).await;
    let list: UpstreamList = world.opened("osaka");
    assert_eq!(names(&list), ["relay-1", "main"]);
    assert_eq!((list.upstreams[1].direct.len(), list.upstreams[1].gateways.len()), (0, 1), "behind a gateway");
    assert_eq!(names(&world.opened("hq")), ["main"]);

    world.office.set_addresses(&acme(), relay, vec!["10.1.0.1:13000".into()]).await.unwrap();
    let moved: UpstreamList = world.opened("osaka");
    assert_eq!((&moved.upstreams[0].direct[..], moved.version), (&["10.1.0.1:13000".to_owned()][..], list.version + 1));
    refused_with(world.office.set_addresses(&acme(), NodeId(uuid::Uuid::nil()), vec![]).await, 404, "no_such_node");
    let world = world.restarted().await;
    assert_eq!(world.opened::<UpstreamList>("osaka"), moved);
    world.bundle(&token_wish(Role::Agent, "osaka", "relay-1")).await;
    assert_eq!(world.opened::<UpstreamList>("osaka"), moved);
    world.office.revoke(&acme(), "admin", relay).await.unwrap();
    assert_eq!(names(&world.opened("osaka")), ["main"]);
}

#[tokio::test]
async fn time_statements_rise_even_when_the_clock_goes_back() {
    let world = World::new().await;
    let trust = world.office.tenant_tls(&acme()).unwrap().trust;
    let state = |now: Millis| -> TimeStatement {
        let envelope = world.office.time_statement(&acme(), now, 17).unwrap();
        document::open(&envelope, &acme(), &trust.server_keys()).unwrap()
    };
    let first = state(NOW);
    assert_eq!((first.time, first.order_floor, first.term), (NOW, 17, 1));
    assert_eq!((first.trust_version, first.settings_version, first.revocations_version), (1, 1, 1));
    let (second, third) = (state(NOW), state(NOW.plus(-60_000)));
    assert!(first.version < second.version && second.version < third.version);
    assert!(state(NOW.plus(60_000)).version > third.version);
    assert_eq!(world.office.time_statement(&tenant("nobody"), NOW, 0), None);
}
