//! What does not start says why, in words an operator can use.

use super::*;
use base64::{Engine, prelude::BASE64_STANDARD};
use branchline_tests::office::{NotUp, Ran};
use std::process::{Command, Stdio};

/// `up` where it must not stay.
fn refused(topology: &Path, folder: tempfile::TempDir) -> NotUp {
    match Office::try_start(exe(), topology, folder) {
        Ok(office) => panic!("it came up: {}", office.report()),
        Err(not) => not,
    }
}

#[test]
fn top_23_every_wrong_topology_is_rejected_by_name() {
    let mut seen = 0;
    for file in std::fs::read_dir(examples().join("invalid")).unwrap().map(|f| f.unwrap().path()) {
        if file.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        let expected = std::fs::read_to_string(file.with_extension("expected")).unwrap();
        let not = refused(&file, tempfile::tempdir().unwrap());
        assert_eq!(not.code, Some(2), "{}: {not:?}", file.display());
        assert_eq!(not.report["ok"], false);
        let message = not.report["error"]["message"].as_str().unwrap_or_default();
        for line in expected.lines().filter(|l| !l.is_empty()) {
            assert!(message.contains(line), "{}: {message:?} lacks {line:?}", file.display());
        }
        seen += 1;
    }
    assert!(seen >= 10, "{seen} examples");
}

#[test]
fn ops_1_an_unknown_key_is_named_with_the_nearest_known_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("topology.toml");
    let text = std::fs::read_to_string(examples().join("two-agents/topology.toml")).unwrap();
    std::fs::write(&file, text.replace("parent =", "parnet =")).unwrap();
    let not = refused(&file, tempfile::tempdir().unwrap());
    assert_eq!(not.code, Some(2), "{not:?}");
    let message = not.report["error"]["message"].as_str().unwrap();
    assert!(message.contains("parnet") && message.contains("\"parent\""), "{message}");
    assert_eq!(not.report["nodes"], serde_json::json!([]), "nothing was started");
}

#[test]
fn a_second_up_on_a_live_state_names_the_first() {
    let office = start("two-agents");
    let second = office.command(&["--json", "up", examples().join("two-agents").to_str().unwrap(), "--state", "state"]);
    assert_eq!(second.code, 2, "{second:?}");
    let error = &second.json()["error"];
    assert_eq!(error["code"], "state_in_use");
    assert!(text(error, "message").contains(&format!("pid {}", office.up_pid())), "{error}");
    // The first one is unharmed.
    let job = office.json(&["run", "--on", "all", "--wait", "--", "true"]);
    assert_eq!(job["counts"]["succeeded"], 2);
}

#[test]
fn top_15_a_bundle_altered_by_one_byte_starts_no_agent() {
    let office = start("two-agents");
    let file = office.folder().join("bundle");
    office.json(&["bundle", "--role", "agent", "--site", "main", "--out", file.to_str().unwrap()]);
    let whole = std::fs::read_to_string(&file).unwrap();
    let (head, body) = whole.trim_end().split_once('\n').unwrap();
    let mut bytes = BASE64_STANDARD.decode(body).unwrap();
    for at in [0, bytes.len() / 2, bytes.len() - 1] {
        bytes[at] ^= 1;
        std::fs::write(&file, format!("{head}\n{}\n", BASE64_STANDARD.encode(&bytes))).unwrap();
        let ran = agent(&office, &format!("altered-{at}"), &file);
        assert_eq!(ran.code, 2, "it is the configuration that is wrong: {ran:?}");
        assert!(ran.stderr.contains("bad_bundle") && ran.stderr.contains(file.to_str().unwrap()), "{ran:?}");
        assert!(ran.stderr.contains("ask for a new bundle"), "it says what to do: {ran:?}");
        assert!(!office.folder().join(format!("altered-{at}/identity/cert.pem")).exists());
        bytes[at] ^= 1;
    }
    assert_eq!(office.json(&["devices"]).as_array().unwrap().len(), 2, "nobody new");
    // The same bundle as it was enrols: it was the byte.
    std::fs::write(&file, &whole).unwrap();
    let config = configured(&office, "fresh", &file);
    let mut fresh =
        Command::new(exe()).args(["node", "agent", "--config"]).arg(config).stderr(Stdio::null()).spawn().unwrap();
    let online = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| office.online("all", 3, 60)));
    fresh.kill().unwrap();
    fresh.wait().unwrap();
    assert!(online.is_ok(), "the unaltered bundle enrols");
}

/// Runs an agent of its own with a bundle until it ends.
fn agent(office: &Office, name: &str, bundle: &Path) -> Ran {
    let config = configured(office, name, bundle);
    office.command(&["node", "agent", "--config", config.to_str().unwrap()])
}

fn configured(office: &Office, name: &str, bundle: &Path) -> PathBuf {
    let state = office.folder().join(name);
    std::fs::create_dir(&state).unwrap();
    let config = office.folder().join(format!("{name}.toml"));
    let text = format!(
        "name = \"{name}\"\nstate_dir = \"{}\"\nbundle = \"{}\"\nreach = \"direct\"\n",
        state.display(),
        bundle.display()
    );
    std::fs::write(&config, text).unwrap();
    config
}

#[test]
fn ops_1_a_port_in_use_is_named() {
    let held = std::net::TcpListener::bind("127.77.1.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    // As if an earlier `up` had listened there.
    let book = serde_json::json!({
        "schema": 1, "octet": 77, "nodes": { "hq": { "ip": "127.77.1.1", "ports": { "link": address.port() } } }
    });
    std::fs::write(state.join("ports.json"), book.to_string()).unwrap();
    let not = refused(&examples().join("two-agents"), folder);
    assert_eq!(not.code, Some(1), "{not:?}");
    let error = &not.report["error"];
    assert_eq!((&error["code"], &error["node"]), (&"port_in_use".into(), &"hq".into()), "{not:?}");
    assert!(text(error, "message").contains(&address.to_string()), "{error}");
}
