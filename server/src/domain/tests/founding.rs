//! Making, opening and repairing an installation.

use super::*;
use branchline_protocol::hash::Hash;
use rustls::pki_types::pem::PemObject;
use std::{fs, path::PathBuf};

fn read(world: &World, path: &str) -> Vec<u8> {
    fs::read(world.folder.path().join(path)).unwrap()
}

async fn init(folder: &Path, store: &Arc<FaultyStore>, wish: InitWish) -> Result<Office, OfficeFault> {
    Office::init(folder, store.clone(), ambient(&TestClock::at(NOW), 3), wish).await
}

#[tokio::test]
async fn an_installation_has_its_files_and_tenants() {
    let world = World::new().await;
    assert_eq!(world.office.tenants(), [acme(), tenant("other")]);
    assert_eq!(world.office.sites(&acme()).unwrap(), ["hq", "osaka"]);
    assert_eq!(read(&world, "server.id"), world.office.server_id().to_string().as_bytes());
    let system = world.office.tenant_tls(&TenantId::system()).unwrap();
    let shown = CertificateDer::from_pem_slice(&read(&world, "ca.pem")).unwrap();
    assert_eq!(shown, system.ca);
    for name in ["acme", "other", "system"] {
        let secret = String::from_utf8(read(&world, &format!("tokens/{name}"))).unwrap();
        let row = world.store.api_token(Hash::of(secret.as_bytes())).await.unwrap().unwrap();
        assert_eq!(row.tenant, tenant(name));
        let tls = world.office.tenant_tls(&tenant(name)).unwrap();
        let subject = &tls.identity.subject;
        assert_eq!((subject.node, subject.role, subject.epoch), (world.office.server_id(), Role::Server, 1));
        assert_eq!(tls.trust.server_keys(), [tls.signer.public()]);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn secrets_are_their_owners_only() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new().await;
    let mode = |path: PathBuf| fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    for tenant in ["acme", "system"] {
        let folder = world.folder.path().join("tenants").join(tenant);
        assert_eq!((mode(folder.clone()), mode(folder.join("ca"))), (0o700, 0o700));
        for secret in ["root.key", "signing.key", "key.pem", "ca/ca-key.pem"] {
            assert_eq!(mode(folder.join(secret)), 0o600, "{secret}");
        }
        assert_eq!(mode(world.folder.path().join("tokens").join(tenant)), 0o600);
    }
    assert_eq!(mode(world.folder.path().join("tokens")), 0o700);
}

#[tokio::test]
async fn initialising_again_keeps_keys_and_adds_what_is_missing() {
    let world = World::new().await;
    let before = world.office.tenant_tls(&acme()).unwrap();
    let bundle = world.agent_bundle().await;
    let secret = read(&world, "tokens/acme");
    let mut more = wish();
    more.tenants[0].1.push("nagoya".into());
    more.tenants.push((tenant("third"), vec!["kobe".into()]));
    let office = init(world.folder.path(), &world.store, more).await.unwrap();
    assert_eq!(office.server_id(), world.office.server_id());
    let after = office.tenant_tls(&acme()).unwrap();
    assert_eq!((after.ca, after.trust, after.identity.chain), (before.ca, before.trust, before.identity.chain));
    assert_eq!(office.sites(&acme()).unwrap(), ["hq", "nagoya", "osaka"]);
    assert_eq!(office.sites(&tenant("third")).unwrap(), ["kobe"]);
    assert_eq!(read(&world, "tokens/acme"), secret);
    let world = World { office, ..world };
    world.enrol(&bundle, &new_key(), "pc-1").await.unwrap();
}

#[tokio::test]
async fn the_office_works_without_the_root_key() {
    let world = World::new().await;
    for tenant in ["acme", "other", "system"] {
        fs::remove_file(world.folder.path().join("tenants").join(tenant).join("root.key")).unwrap();
    }
    let world = world.restarted().await;
    let (bundle, key) = (world.agent_bundle().await, new_key());
    let id = world.enrol(&bundle, &key, "pc-1").await.unwrap().id();
    world.office.revoke(&acme(), "admin", id).await.unwrap();
    assert!(init(world.folder.path(), &world.store, wish()).await.is_ok());
}

#[tokio::test]
async fn files_without_a_row_are_taken_over() {
    let world = World::new().await;
    world.store.set_failing(true);
    refused_with(
        world.office.add_tenant("admin", tenant("third"), vec!["kobe".into()]).await,
        503,
        "store_unavailable",
    );
    let (key, secret) = (read(&world, "tenants/third/root.pub"), read(&world, "tokens/third"));
    assert_eq!(world.office.tenants(), [acme(), tenant("other")]);
    world.store.set_failing(false);
    let world = world.restarted().await;
    assert_eq!(world.office.tenants(), [acme(), tenant("other")]);
    let told = world.office.add_tenant("admin", tenant("third"), vec!["kobe".into()]).await.unwrap();
    assert_eq!((read(&world, "tenants/third/root.pub"), told.as_bytes()), (key, &secret[..]));
    let world = world.restarted().await;
    assert_eq!(world.office.sites(&tenant("third")).unwrap(), ["kobe"]);
    assert_eq!(world.office.documents(&tenant("third"), "kobe").len(), 4);
}

#[tokio::test]
async fn a_first_start_that_failed_is_finished_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(folder.path()).await;
    store.set_failing(true);
    assert!(matches!(init(folder.path(), &store, wish()).await, Err(OfficeFault::Store(_))));
    let id = fs::read_to_string(folder.path().join("server.id")).unwrap();
    let half = folder.path().join("tenants/acme.new");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("root.key"), "half").unwrap();
    store.set_failing(false);
    let office = init(folder.path(), &store, wish()).await.unwrap();
    assert_eq!(office.server_id().to_string(), id);
    assert_eq!(office.tenants(), [acme(), tenant("other")]);
    assert!(!half.exists());
}

#[tokio::test]
async fn a_folder_and_a_store_of_different_servers_are_refused() {
    let (one, two) = (World::new().await, tempfile::tempdir().unwrap());
    let store = open_store(two.path()).await;
    let clock = TestClock::at(NOW);
    let open = Office::open(two.path(), store.clone(), ambient(&clock, 9)).await;
    assert!(matches!(open, Err(OfficeFault::NotInitialised)));
    Office::init(two.path(), store.clone(), ambient(&clock, 9), wish()).await.unwrap();
    let mixed = Office::open(one.folder.path(), store, ambient(&clock, 9)).await;
    assert!(matches!(mixed, Err(OfficeFault::OtherServer { .. })), "{mixed:?}");
}

#[tokio::test]
async fn keys_that_do_not_fit_are_refused() {
    let world = World::new().await;
    let tenants = world.folder.path().join("tenants");
    fs::copy(tenants.join("other/signing.key"), tenants.join("acme/signing.key")).unwrap();
    let open = Office::open(world.folder.path(), world.store.clone(), ambient(&world.clock, 2)).await;
    assert!(matches!(open, Err(OfficeFault::Damaged { .. })), "{open:?}");
}

#[tokio::test]
async fn the_apis_certificate_answers_to_the_hosts_it_is_told() {
    let world = World::new().await;
    let reaches = |office: &Office, name: &'static str| {
        let tls = office.tenant_tls(&TenantId::system()).unwrap();
        let certificate = rustls::server::ParsedCertificate::try_from(&tls.identity.chain[0]).unwrap();
        rustls::client::verify_server_name(&certificate, &name.try_into().unwrap()).is_ok()
    };
    for name in ["127.0.0.1", "localhost", "127.77.0.1"] {
        assert!(reaches(&world.office, name), "{name}");
    }
    assert!(!reaches(&world.office, "branchline.example"));
    let key = world.office.tenant_tls(&TenantId::system()).unwrap().identity.key.public();
    let renamed = InitWish { api_hosts: vec!["branchline.example".into()], ..wish() };
    init(world.folder.path(), &world.store, renamed).await.unwrap();
    let world = world.restarted().await;
    assert!(reaches(&world.office, "branchline.example") && reaches(&world.office, "localhost"));
    assert!(!reaches(&world.office, "127.77.0.1"));
    assert_eq!(world.office.tenant_tls(&TenantId::system()).unwrap().identity.key.public(), key);
    let bad = InitWish { api_hosts: vec!["not a host".into()], ..wish() };
    assert!(matches!(init(world.folder.path(), &world.store, bad).await, Err(OfficeFault::BadHost(_))));
}

#[tokio::test]
async fn tenants_and_sites_are_made_once_and_with_good_names() {
    let world = World::new().await;
    let office = &world.office;
    refused_with(office.add_tenant("admin", acme(), vec![]).await, 409, "duplicate_tenant");
    refused_with(office.add_tenant("admin", TenantId::system(), vec![]).await, 409, "duplicate_tenant");
    refused_with(office.add_tenant("admin", tenant("third"), vec!["a b".into()]).await, 422, "bad_name");
    let twice = vec!["kobe".into(), "kobe".into()];
    refused_with(office.add_tenant("admin", tenant("third"), twice).await, 422, "duplicate_site");
    assert!(!world.folder.path().join("tenants/third").exists());
    refused_with(office.add_site(&acme(), "admin", "hq".into()).await, 409, "duplicate_site");
    refused_with(office.add_site(&tenant("nobody"), "admin", "hq".into()).await, 404, "no_such_tenant");
    refused_with(office.add_site(&TenantId::system(), "admin", "hq".into()).await, 404, "no_such_tenant");
    office.add_site(&acme(), "admin", "nagoya".into()).await.unwrap();
    office.bundle(&acme(), "admin", &token_wish(Role::Agent, "nagoya", "server")).await.unwrap();
}

#[tokio::test]
async fn what_is_done_is_audited() {
    let world = World::new().await;
    let id = world.enrol(&world.agent_bundle().await, &new_key(), "pc-1").await.unwrap().id();
    world.office.revoke(&acme(), "alice", id).await.unwrap();
    let acts: Vec<_> = world.store.audit(&acme(), 10).await.unwrap();
    let shown: Vec<_> = acts.iter().rev().map(|act| (&act.what[..], &act.who[..])).collect();
    let node = id.to_string();
    let expected = [("tenant.make", "init"), ("token.make", "admin"), ("node.enrol", &node), ("node.revoke", "alice")];
    assert_eq!(shown, expected);
}
