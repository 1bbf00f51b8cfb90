//! Which crate may know which.

use super::{built, cargo, members, read, text};
use std::collections::{BTreeMap, BTreeSet};

const NODES: [&str; 4] = ["branchline-server", "branchline-gateway", "branchline-relay", "branchline-agent"];

/// The workspace's crates that are built for this one, itself included, without its tests'.
fn own(package: &str) -> BTreeSet<String> {
    let args =
        ["tree", "-p", package, "--target", "all", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"];
    let printed = cargo(&args);
    let names = printed.lines().filter_map(|l| l.split(' ').next());
    names.filter(|n| n.starts_with("branchline")).map(String::from).collect()
}

#[test]
fn top_23_the_workspace_has_the_parts_of_the_product() {
    let found: BTreeMap<&str, String> = members()
        .into_iter()
        .map(|p| {
            let manifest = text(p, "manifest_path");
            let folder = manifest.trim_end_matches("/Cargo.toml").trim_start_matches(super::root().to_str().unwrap());
            (text(p, "name"), folder.trim_start_matches('/').to_string())
        })
        .collect();
    let expected = [
        ("branchline", "cli"),
        ("branchline-agent", "agent"),
        ("branchline-gateway", "gateway"),
        ("branchline-node", "shared/node"),
        ("branchline-protocol", "shared/protocol"),
        ("branchline-relay", "relay"),
        ("branchline-server", "server"),
        ("branchline-tests", "tests"),
    ];
    assert_eq!(found, expected.map(|(name, folder)| (name, folder.to_string())).into());
    // `cargo run --release -- …` runs the operator's command.
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    assert_eq!(manifest["workspace"]["default-members"], toml::Value::from(vec!["cli"]));
    for (library, package) in
        [("actix", 0), ("actix-web", 1), ("tokio", 2), ("rustls", 3), ("serde", 4), ("rmp-serde", 5), ("tracing", 6)]
    {
        assert!(manifest["workspace"]["dependencies"].get(library).is_some(), "{library} ({package}) is not named");
    }
}

#[test]
fn nodes_never_know_one_another() {
    for node in NODES {
        let known = own(node);
        assert!(known.contains(node) && known.contains("branchline-protocol"), "{node}: {known:?}");
        for other in NODES.into_iter().filter(|other| *other != node) {
            assert!(!known.contains(other), "{node} depends on {other}");
        }
    }
}

#[test]
fn only_command_and_tests_know_several_nodes() {
    for package in members().into_iter().map(|p| text(p, "name")) {
        let nodes: Vec<String> = own(package).into_iter().filter(|n| NODES.contains(&n.as_str())).collect();
        match package {
            "branchline" | "branchline-tests" => assert_eq!(nodes.len(), 4, "{package}: {nodes:?}"),
            "branchline-node" | "branchline-protocol" => assert!(nodes.is_empty(), "{package}: {nodes:?}"),
            _ => assert_eq!(nodes, [package], "{package}"),
        }
    }
}

#[test]
fn the_protocol_knows_no_socket_actor_or_database() {
    let args = ["-p", "branchline-protocol"];
    let packages: BTreeSet<String> = built(&args).into_iter().map(|p| p.name).collect();
    assert!(packages.contains("rmp-serde"), "{packages:?}");
    for banned in ["tokio", "actix", "actix-rt", "actix-web", "rustls", "redb", "sqlx", "mio", "branchline-node"] {
        assert!(!packages.contains(banned), "the protocol depends on {banned}");
    }
}

/// The features of the shared node that a package asks for. The package alone: building the whole workspace unites the
/// features that each part asks for.
fn features(package: &str) -> BTreeSet<String> {
    let format = ["--edges", "normal", "--prefix", "none", "--format", "{p}\t{f}"];
    let printed = cargo(&[&["tree", "-p", package], &format[..]].concat());
    let line = printed.lines().find(|l| l.starts_with("branchline-node ")).expect("it depends on the shared node");
    let features = line.split_once('\t').expect("the format").1.trim_end_matches("(*)");
    features.trim().split(',').filter(|f| !f.is_empty()).map(String::from).collect()
}

#[test]
fn top_21_nothing_that_is_installed_carries_fault_points() {
    for package in NODES.into_iter().chain(["branchline"]) {
        assert!(!features(package).contains("fault_points"), "{package}");
    }
    assert!(features("branchline-tests").contains("fault_points"), "a renamed feature does not pass unseen");
}

#[test]
fn an_agent_never_compiles_downstream() {
    let agent = features("branchline-agent");
    assert!(agent.contains("uplink") && !agent.contains("downstream"), "{agent:?}");
    // The same look at a relay, so that a renamed feature does not pass unseen.
    assert!(features("branchline-relay").contains("downstream"));
}

#[test]
fn every_dependency_has_its_line_in_the_architecture() {
    let page = read("ARCHITECTURE.md");
    let table = page.split_once("## Dependencies").expect("ARCHITECTURE.md has a section Dependencies").1;
    let table = table.split("\n## ").next().unwrap_or_default();
    let named: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix('|')?.split('|').next())
        .flat_map(|cell| cell.split(','))
        .map(|name| name.trim().trim_matches('`'))
        .collect();
    let used: BTreeSet<&str> = members()
        .into_iter()
        .flat_map(|p| p["dependencies"].as_array().expect("dependencies"))
        .map(|d| text(d, "name"))
        .filter(|name| !name.starts_with("branchline"))
        .collect();
    assert!(used.len() > 20, "{used:?}");
    let missing: Vec<_> = used.difference(&named).collect();
    assert!(missing.is_empty(), "no line in ARCHITECTURE.md says what these are for: {missing:?}");
    let gone: Vec<_> = named.iter().filter(|n| !used.contains(*n) && **n != "Crate" && !n.starts_with('-')).collect();
    assert!(gone.is_empty(), "ARCHITECTURE.md names what no crate depends on: {gone:?}");
}
