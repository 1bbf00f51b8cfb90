//! `tree`

use super::text::{cell, list, slot, within};
use crate::{answer::Answer, failure::Failure, session::Session, table::table};
use serde_json::Value;
use std::collections::BTreeSet;

/// It has no options.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Asks for the tree.
pub fn run(_: &Args, session: &Session) -> Result<Answer, Failure> {
    let tree = session.client()?.get("/tree", &[])?;
    let text = tree_text(list(&tree, "nodes"));
    Ok(Answer::done(tree, text))
}

/// Children stand below their parent, indented; a node whose parent is not listed stands at the left.
fn tree_text(nodes: &[Value]) -> String {
    let known = |parent: &Value| nodes.iter().any(|n| is(n, parent));
    let mut rows = vec![];
    let mut seen = BTreeSet::new();
    for node in nodes.iter().filter(|n| !known(&n["parent"])) {
        below(nodes, node, 0, &mut seen, &mut rows);
    }
    let titles =
        ["NAME", "ROLE", "STATE", "SLOTS", "PEAK", "WAITING", "SPOOL", "LINKS", "RESTARTS", "SLOT", "DELAY", "ID"];
    table(titles, rows)
}

/// Whether `reference`, a parent by id or name, means the node.
fn is(node: &Value, reference: &Value) -> bool {
    !reference.is_null() && (node["id"] == *reference || node["name"] == *reference)
}

fn below<'v>(
    nodes: &'v [Value],
    node: &'v Value,
    depth: usize,
    seen: &mut BTreeSet<String>,
    rows: &mut Vec<[String; 12]>,
) {
    if !seen.insert(cell(&node["id"])) {
        return;
    }
    let slots = &node["slots"];
    let used = if slots.is_object() { format!("{}/{}", cell(&slots["used"]), cell(&slots["cap"])) } else { "-".into() };
    let state = match node["unreachable_since"].as_str() {
        Some(since) => format!("{} since {since}", cell(&node["state"])),
        None => cell(&node["state"]),
    };
    rows.push([
        format!("{}{}", "  ".repeat(depth), cell(&node["name"])),
        cell(&node["role"]),
        state,
        used,
        cell(&slots["peak"]),
        cell(&slots["waiting"]),
        cell(&node["queues"]["spool_records"]),
        cell(&node["links"]),
        cell(&node["restarts"]),
        slot(&node["slot"]),
        delays(node),
        cell(&node["id"]),
    ]);
    for child in nodes.iter().filter(|n| is(node, &n["parent"])) {
        below(nodes, child, depth + 1, seen, rows);
    }
}

/// How soon a job reaches the device, or the devices below this node by how they are reached.
fn delays(node: &Value) -> String {
    if node["delay"].is_object() {
        return within(&node["delay"]["urgent_ms"]);
    }
    let links = node["delays"].as_object().into_iter().flatten();
    let of = |(link, delay): (&String, &Value)| {
        format!("{} {link} {}", cell(&delay["devices"]), within(&delay["urgent_ms"]))
    };
    let told: Vec<String> = links.map(of).collect();
    if told.is_empty() { "-".into() } else { told.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn con_4_who_holds_who_waits_and_how_soon_jobs_come_are_told() {
        let since = "2026-11-01T09:30:00.250Z";
        let nodes = [
            json!({ "id": "1", "name": "hq", "parent": null, "delays": {
                "persistent": { "devices": 2, "urgent_ms": 5000 }, "polling": { "devices": 1, "urgent_ms": 990_000 } } }),
            json!({ "id": "2", "name": "a", "parent": "1", "slot": { "since": since, "waiter": null },
                    "delay": { "urgent_ms": 5000 } }),
            json!({ "id": "3", "name": "b", "parent": "1", "slot": { "since": since, "waiter": 4 },
                    "delay": { "urgent_ms": null } }),
        ];
        let text = tree_text(&nodes);
        for part in [
            "2 persistent within 5 s, 1 polling within 16.5 min".to_owned(),
            format!("held since {since}"),
            format!("number 4 in line since {since}"),
        ] {
            assert!(text.contains(&part), "{part}: {text}");
        }
    }

    #[test]
    fn children_stand_below_their_parents_by_id_or_name_and_loops_end() {
        let nodes = [
            json!({ "id": "3", "name": "pc", "role": "agent", "parent": "osaka", "state": "online" }),
            json!({ "id": "2", "name": "osaka", "role": "relay", "parent": "1", "state": "online",
                    "slots": { "used": 1, "cap": 300, "peak": 1, "waiting": 0, "reserved": 0 } }),
            json!({ "id": "1", "name": "hq", "role": "server", "parent": null, "state": "online" }),
            json!({ "id": "8", "name": "a", "role": "relay", "parent": "b" }),
            json!({ "id": "9", "name": "b", "role": "relay", "parent": "a" }),
        ];
        let text = tree_text(&nodes);
        let names: Vec<&str> = text.lines().skip(1).map(|l| l.split("  ag").next().unwrap()).collect();
        assert!(names[0].starts_with("hq "), "{text}");
        assert!(names[1].starts_with("  osaka ") && names[1].contains("1/300"), "{text}");
        assert!(names[2].starts_with("    pc"), "{text}");
    }
}
