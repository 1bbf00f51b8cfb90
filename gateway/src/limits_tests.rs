use super::*;

const UPGRADE: [(&str, &str); 4] = [
    ("connection", "keep-alive, Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

fn rule() -> PathRule {
    PathRule::new(&["gw.example.com".into(), "outside.example.com:8443".into()], "192.0.2.1:9443".parse().unwrap())
}

fn good() -> Request<'static> {
    Request { method: "GET", target: LINK_PATH, hosts: &["gw.example.com"], http_1_1: true, headers: &UPGRADE }
}

#[test]
fn gw_2_the_one_request_is_a_link() {
    let rule = rule();
    for host in ["gw.example.com", "GW.example.com", "gw.example.com:9443", "gw.example.com:443", "192.0.2.1:9443"] {
        assert_eq!(rule.judge(Request { hosts: &[host], ..good() }), Verdict::Link, "{host}");
    }
    assert_eq!(rule.judge(Request { hosts: &["outside.example.com:8443"], ..good() }), Verdict::Link);
    let absolute = format!("https://gw.example.com{LINK_PATH}");
    assert_eq!(rule.judge(Request { target: &absolute, ..good() }), Verdict::Link);
}

#[test]
fn gw_2_every_other_target_is_not_found() {
    let rule = rule();
    let long = format!("{LINK_PATH}?{}", "x".repeat(9_000));
    for target in [
        "/",
        "*",
        "",
        "/getstatus",
        "/metrics",
        "/branchline/v1/links",
        "/branchline/v1/link/",
        "/branchline/v1/link?",
        "/branchline/v1/link?x=1",
        "/branchline/v1/link;x",
        "/branchline/v1/x/../link",
        "/branchline/v1/./link",
        "/../branchline/v1/link",
        "/branchline/v1/%2e%2e/v1/link",
        "/branchline/v1/%6cink",
        "/branchline/v1/link%00",
        "//branchline/v1/link",
        "/branchline//v1/link",
        "/Branchline/v1/link",
        "/branchline/V1/LINK",
        "branchline/v1/link",
        "/branchline\\v1\\link",
        "https://gw.example.com",
        "https://gw.example.com//branchline/v1/link",
        "https://other.example.com/branchline/v1/link",
        "https://gw.example.com@other.example.com/branchline/v1/link",
        "https://user@gw.example.com/branchline/v1/link",
        "http://gw.example.com/branchline/v1/link",
        "HTTPS://gw.example.com/branchline/v1/link",
        &long,
    ] {
        assert_eq!(rule.judge(Request { target, ..good() }), Verdict::NotFound, "{target:.80}");
    }
}

#[test]
fn gw_2_every_other_method_host_and_version_is_not_found() {
    let rule = rule();
    for method in ["POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "TRACE", "DELETE", "PATCH", "get", "LINK"] {
        assert_eq!(rule.judge(Request { method, ..good() }), Verdict::NotFound, "{method}");
    }
    let hosts: [&[&str]; 12] = [
        &[],
        &[""],
        &["gw.example.com", "gw.example.com"],
        &["gw.example.com", "other.example.com"],
        &["other.example.com"],
        &["gw.example.com.evil.example"],
        &["xgw.example.com"],
        &["gw.example.com:1"],
        &["gw.example.com:"],
        &["outside.example.com"],
        &["192.0.2.1"],
        &["192.0.2.2:9443"],
    ];
    for hosts in hosts {
        assert_eq!(rule.judge(Request { hosts, ..good() }), Verdict::NotFound, "{hosts:?}");
    }
    assert_eq!(rule.judge(Request { http_1_1: false, ..good() }), Verdict::NotFound);
}

#[test]
fn gw_2_without_a_proper_upgrade_it_is_not_found() {
    let rule = rule();
    for left_out in 0..UPGRADE.len() {
        let mut headers = UPGRADE.to_vec();
        let (name, _) = headers.remove(left_out);
        assert_eq!(rule.judge(Request { headers: &headers, ..good() }), Verdict::NotFound, "without {name}");
    }
    for (name, value) in [
        ("upgrade", "h2c"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "8"),
        ("content-length", "5"),
        ("transfer-encoding", "chunked"),
        ("expect", "100-continue"),
    ] {
        let mut headers = UPGRADE.to_vec();
        headers.push((name, value));
        assert_eq!(rule.judge(Request { headers: &headers, ..good() }), Verdict::NotFound, "with {name}: {value}");
    }
}

#[test]
fn a_wildcard_listener_has_no_name_of_its_own() {
    let rule = PathRule::new(&[], "0.0.0.0:443".parse().unwrap());
    for host in ["0.0.0.0:443", "0.0.0.0", "127.0.0.1", ""] {
        assert_eq!(rule.judge(Request { hosts: &[host], ..good() }), Verdict::NotFound, "{host}");
    }
    let rule = PathRule::new(&["[2001:db8::1]".into()], "[2001:db8::2]:443".parse().unwrap());
    for host in ["[2001:db8::1]", "[2001:db8::1]:443", "[2001:db8::2]:443", "[2001:db8::2]"] {
        assert_eq!(rule.judge(Request { hosts: &[host], ..good() }), Verdict::Link, "{host}");
    }
}

#[test]
fn only_a_childs_prefaces_open_a_stream() {
    assert_eq!(Opening::of(b'L'), Opening::Open);
    assert_eq!(Opening::of(b'U'), Opening::Open);
    assert_eq!(Opening::of(b'B'), Opening::Open);
    assert_eq!(Opening::of(b'E'), Opening::Enrol);
    for other in (0..=255).filter(|b| !b"LUBE".contains(b)) {
        assert_eq!(Opening::of(other), Opening::Refused, "{other}");
    }
}

#[test]
fn an_allowance_at_the_bound_passes_and_one_byte_more_does_not() {
    let mut left = Allowance::of(65_536);
    assert!(left.take(65_000) && left.take(536) && left.take(0));
    assert!(!left.take(1));
    assert!(!Allowance::of(65_536).take(65_537));
    assert!(Allowance::unbounded().take(usize::MAX));
}
