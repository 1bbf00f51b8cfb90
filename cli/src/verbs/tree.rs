//! `tree`

use super::text::{cell, list};
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
    table(["NAME", "ROLE", "STATE", "SLOTS", "PEAK", "WAITING", "SPOOL", "LINKS", "RESTARTS", "ID"], rows)
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
    rows: &mut Vec<[String; 10]>,
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
        cell(&node["id"]),
    ]);
    for child in nodes.iter().filter(|n| is(node, &n["parent"])) {
        below(nodes, child, depth + 1, seen, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
