use super::*;
use branchline_node::config::{Stamp, parse};

fn node(n: u128) -> NodeId {
    NodeId(uuid::Uuid::from_u128(n))
}

fn read(text: &str) -> Result<UpstreamSettings, Vec<(String, &'static str)>> {
    let table = parse(text).unwrap();
    let mut mistakes = Mistakes::default();
    let mut reader = Reader::new(&table, "", &mut mistakes);
    let settings = UpstreamSettings::read(&mut reader);
    reader.finish();
    mistakes.guard(settings).map_err(|m| m.iter().map(|m| (m.path.clone(), m.code)).collect())
}

fn listed() -> Vec<Upstream> {
    let one = |id, role, direct: &str, gateways: &[&str]| Upstream {
        id,
        role,
        name: "x".into(),
        direct: vec![direct.into()],
        gateways: gateways.iter().map(|g| g.to_string()).collect(),
        near: false,
    };
    vec![one(node(1), Role::Relay, "10.0.0.1:1", &[]), one(node(9), Role::Server, "10.0.0.9:1", &["https://gw"])]
}

#[test]
fn rly_2_settings_at_their_bounds_and_one_past_them() {
    let minimal = read("host = 'gw.example.com'").unwrap();
    assert_eq!((minimal.port, minimal.via_gateway, minimal.reach()), (443, true, Reach::Gateway));
    assert_eq!(minimal.route(), Route::Gateway("https://gw.example.com:443".into()));
    let direct = read("host = '::1'\nvia_gateway = false").unwrap();
    assert_eq!((direct.route(), direct.reach()), (Route::Direct("[::1]:13000".into()), Reach::Direct));
    for (text, path, code) in [
        ("", "host", "missing"),
        ("host = ''", "host", "empty"),
        ("host = 'https://gw'", "host", "bad_host"),
        ("host = 'gw:443'", "host", "bad_host"),
        ("host = 'a b'", "host", "bad_host"),
        ("host = 'gw'\nport = 0", "port", "out_of_range"),
        ("host = 'gw'\nport = 65536", "port", "out_of_range"),
        ("host = 'gw'\nport = 99999", "port", "out_of_range"),
        ("host = 'gw'\nport = 'x'", "port", "wrong_type"),
        ("host = 'gw'\nca = '/nonexistent/ca.pem'", "ca", "unreadable"),
        ("host = 'gw'\nupstream = 'osaka'", "upstream", "bad_id"),
        ("host = 'gw'\nprot = 443", "prot", "unknown_key"),
    ] {
        let told = read(text).unwrap_err();
        assert!(told.iter().any(|(p, _)| p == path), "{text}: {told:?}");
        if code != "bad_id" {
            assert_eq!(told, [(path.to_string(), code)], "{text}");
        }
    }
    assert_eq!(read("host = 'gw'\nport = 65535").unwrap().port, 65_535);
    let folder = tempfile::tempdir().unwrap();
    let no_pem = folder.path().join("ca.pem");
    std::fs::write(&no_pem, "no certificate").unwrap();
    let told = read(&format!("host = 'gw'\nca = '{}'", no_pem.display())).unwrap_err();
    assert_eq!(told, [("ca".to_string(), "bad_certificate")]);
}

#[test]
fn rly_2_what_is_kept_reads_back_and_a_second_replaces_it_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(UpstreamSettings::kept(folder.path()).unwrap(), None);
    let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let first = UpstreamSettings {
        host: "gw.example.com".into(),
        port: 8_443,
        via_gateway: true,
        upstream: Some(node(9)),
        ca_pem: Some(pem.into()),
    };
    first.keep(folder.path()).unwrap();
    assert_eq!(UpstreamSettings::kept(folder.path()).unwrap(), Some(first.clone()));
    let stamp = Stamp::of(&UpstreamSettings::file(folder.path()));
    let second = UpstreamSettings { via_gateway: false, ca_pem: None, upstream: None, ..first };
    second.keep(folder.path()).unwrap();
    assert_eq!(UpstreamSettings::kept(folder.path()).unwrap(), Some(second));
    assert_ne!(Stamp::of(&UpstreamSettings::file(folder.path())), stamp);
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(files, ["upstream.toml"], "no part is left behind");
}

#[test]
fn only_a_listed_parent_is_dialled_at_the_set_address() {
    let set = read("host = 'gw2'").unwrap();
    let over = set.over(&listed()).unwrap();
    assert_eq!((over[0].id, over[0].gateways.as_slice()), (node(9), &["https://gw2:443".to_string()][..]));
    assert!(over[0].direct.is_empty());
    assert_eq!(over[1], listed()[0], "the others stay behind it");
    let relay = UpstreamSettings { upstream: Some(node(1)), via_gateway: false, ..set.clone() };
    assert_eq!(relay.over(&listed()).unwrap()[0].direct, ["gw2:443"]);
    assert_eq!(UpstreamSettings { upstream: Some(node(5)), ..set }.over(&listed()), None);
}
