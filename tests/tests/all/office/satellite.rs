//! The satellite office behind the gateway: the whole picture of S-2 on one machine. (Packages come with content.)

use super::*;
use branchline_tests::office::until;
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

#[test]
fn s_2_outside_relay_through_the_gateway() {
    let office = satellite_office();
    assert_as_expected("satellite-office", office.report());
    let osaka: Vec<&Value> = list(office.report(), "devices").iter().filter(|d| d["site"] == "osaka").collect();
    assert_eq!(osaka.len(), 20);
    assert!(osaka.iter().all(|d| d["path"] == serde_json::json!(["dmz", "osaka"])), "{osaka:?}");
    let gateway = format!("https://{}", office.address("dmz", "private"));
    let status: Value = serde_json::from_str(&office.web().text(&format!("{gateway}/getstatus"))).unwrap();
    assert_eq!(status["server"], "reachable");
    assert!(status["links"].as_u64() >= Some(3), "the relay and both roaming agents come through it: {status}");
}

#[test]
fn s_2_every_device_sends_a_full_inventory() {
    let office = satellite_office();
    let (api, token) = (office.api(), office.token("main"));
    for device in list(office.report(), "devices") {
        let summary = &device["inventory"];
        assert!(summary["packages"].as_u64() > Some(0), "{device}");
        assert!(summary["memory_bytes"].as_u64() > Some(0), "{device}");
        for key in ["os", "cpu", "digest", "collected_at"] {
            assert!(summary[key].as_str().is_some_and(|s| !s.is_empty()), "no {key}: {device}");
        }
        let (status, whole) =
            office.web().get(&format!("{api}/api/v1/devices/{}/inventory", text(device, "id")), &token);
        assert_eq!(status, 200, "{whole}");
        assert_eq!((&whole["device"], &whole["digest"]), (&device["id"], &summary["digest"]));
        let software = whole["sections"]["software"].as_object().map_or(0, |s| s.len());
        assert_eq!(software as u64, summary["packages"].as_u64().unwrap(), "the summary counts the packages");
        for section in ["os", "hardware", "network", "disks", "users"] {
            assert!(whole["sections"][section].is_object(), "no {section}: {whole}");
        }
    }
}

#[test]
fn s_2_refresh_all_reaches_every_device_behind_the_relay() {
    let office = satellite_office();
    for device in list(office.report(), "devices").iter().filter(|d| d["site"] == "osaka") {
        // Fails unless the device itself answered that it collected, and the whole of it is here.
        let fresh = office.json(&["inventory", text(device, "name"), "--refresh=full"]);
        assert!(!fresh["sections"]["software"].as_object().unwrap().is_empty());
    }
    let jobs = office.json(&["jobs"]);
    let refreshed = jobs.as_array().unwrap().iter().filter(|j| j["verb"] == "refresh_inventory");
    assert!(refreshed.filter(|j| j["counts"]["succeeded"] == 1).count() >= 20, "{jobs}");
}

#[test]
fn inv_4_an_equal_collection_moves_the_contact_and_not_the_collection_time() {
    let office = satellite_office();
    let before = office.device("roaming-01");
    let fresh = office.json(&["inventory", "roaming-01", "--refresh=full"]);
    let after = until("the contact is newer", 90, || {
        let after = office.device("roaming-01");
        if text(&after, "last_contact") > text(&before, "last_contact") { Ok(after) } else { Err(after.to_string()) }
    });
    // The machine itself may have changed between the two.
    let equal = fresh["digest"] == before["inventory"]["digest"];
    assert_eq!(fresh["collected_at"] == before["inventory"]["collected_at"], equal, "{before} {after}");
}

#[test]
fn rly_1_a_script_on_the_site_runs_on_its_twenty_devices_only() {
    let office = satellite_office();
    let script = office.folder().join("own-answer.sh");
    std::fs::write(&script, "printf '%s %s %s %s\\n' \"$BRANCHLINE_DEVICE\" \"$BRANCHLINE_AGENT_PID\" \"$(cat /proc/sys/kernel/random/uuid)\" \"$(uname -sr)\"\n").unwrap();
    let job = office.json(&["run", "--on", "site:osaka", "--wait", "--script", script.to_str().unwrap()]);
    assert_every_answer_is_its_devices_own(office.report(), &job);
    let answered: BTreeSet<&str> = list(&job, "results").iter().map(|r| text(r, "device")).collect();
    let osaka = list(office.report(), "devices").iter().filter(|d| d["site"] == "osaka");
    assert_eq!(answered, osaka.map(|d| text(d, "id")).collect());
    assert_eq!(answered.len(), 20);
}

#[test]
fn top_1_the_server_sees_no_peer_but_the_gateway() {
    let office = satellite_office();
    let server = |listener| office.address("hq", listener);
    let gateway = office.address("dmz", "public").ip();
    // What the kernel says of every connection of the two ports, now and, where the server closed, a minute ago.
    let peers = peers_of(&[server("link"), server("trunk")]);
    assert_eq!(peers, BTreeSet::from([gateway]), "somebody else spoke to the server");
    // The relay and the two roaming agents are the server's children, the twenty are the relay's.
    let (web, api) = (office.web(), office.api());
    assert!(web.metric(&api, "branchline_link_accepts_total", "peer_role=\"relay\"") >= 1.0);
    let agents = web.metric(&api, "branchline_link_accepts_total", "peer_role=\"agent\"");
    assert!((2.0..20.0).contains(&agents), "{agents} agents linked to the server itself");
    let tree = office.json(&["tree"]);
    let node = |name: &str| list(&tree, "nodes").iter().find(|n| n["name"] == name).unwrap();
    assert_eq!(node("osaka")["slots"]["used"], 20);
    // Only now do strangers come: the table above must be free of them.
    let link = server("link");
    // The same bytes from the gateway's address are answered: it is the address that decides.
    assert_eq!(said_to(gateway, link), b"+", "the port answers the gateway");
    for stranger in [office.address("osaka", "link").ip(), Ipv4Addr::LOCALHOST.into()] {
        assert_eq!(said_to(stranger, link), b"", "the server told {stranger} something");
    }
}

/// What a port tells somebody who connects from `source` and asks for a link.
fn said_to(source: IpAddr, port: SocketAddr) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(source, 0)).unwrap();
        tokio::time::timeout(Duration::from_secs(10), socket.connect(port)).await.unwrap().unwrap().into_std()
    });
    let mut stream = stream.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // A closed connection may already refuse this.
    let _ = stream.write_all(b"L");
    let mut said = vec![0; 1];
    match stream.read(&mut said) {
        Ok(n) => said.truncate(n),
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => said.clear(),
        Err(e) => panic!("neither closed nor answered: {e}"),
    }
    said
}

/// The addresses that the kernel knows connections of these ports from.
fn peers_of(ports: &[SocketAddr]) -> BTreeSet<IpAddr> {
    let address = |text: &str| -> Option<SocketAddr> {
        let (ip, port) = text.split_once(':')?;
        let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_le_bytes());
        Some(SocketAddr::from((ip, u16::from_str_radix(port, 16).ok()?)))
    };
    const LISTENS: &str = "0A";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|l| l.split_whitespace().collect::<Vec<_>>());
    let of_ports = rows.filter(|r| address(r[1]).is_some_and(|local| ports.contains(&local)) && r[3] != LISTENS);
    of_ports.filter_map(|r| Some(address(r[2])?.ip())).collect()
}
