//! What `up` prints and keeps as `up.json` (DESIGN 9).

use super::{
    fleet::{Fault, NodeState},
    sequence::Done,
    state::State,
};
use crate::{
    answer::{Answer, print},
    failure::{Failure, exit_code},
    table::table,
    topology::Plan,
    verbs::{devices_text, job_text},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, rc::Rc};

/// The report of one run.
pub struct Report {
    plan: Option<Rc<Plan>>,
    json: Value,
    /// Why it failed before there was anything to show.
    failure: Option<Failure>,
}

impl Report {
    /// Nothing was started: the topology or the state is wrong.
    pub fn refused(failure: &Failure) -> Report {
        let json = json!({ "schema": 1, "ok": false, "error": failure.json(), "nodes": [] });
        Report { plan: None, json, failure: Some(failure.clone()) }
    }

    /// Something failed on the way.
    pub fn failed(plan: &Rc<Plan>, state: &State, fault: &Fault, nodes: &BTreeMap<String, NodeState>) -> Report {
        let mut error = fault.failure.json();
        if let Some(node) = &fault.node {
            error["node"] = json!(node);
        }
        let json = json!({
            "schema": 1,
            "ok": false,
            "topology": plan.name,
            "state_dir": state.folder(),
            "error": error,
            "nodes": nodes_json(plan, nodes),
        });
        // Whatever it was, it happened while working: 1, not the inner call's code.
        let failure = Failure { exit: exit_code::ENDED_BADLY, ..fault.failure.clone() };
        Report { plan: Some(plan.clone()), json, failure: Some(failure) }
    }

    /// The job was run; it may have ended badly.
    pub fn done(plan: &Rc<Plan>, state: &State, done: Done, nodes: &BTreeMap<String, NodeState>) -> Report {
        let ok = done.succeeded();
        let mut json = json!({
            "schema": 1,
            "ok": ok,
            "topology": plan.name,
            "state_dir": state.folder(),
            "ca_file": done.ca_file,
            "context_file": state.context_file(),
            "nodes": nodes_json(plan, nodes),
            "devices": done.devices,
            "job": done.jobs.first().map(|(_, job)| job.clone()),
            "elapsed_ms": { "ready": done.ready_ms, "job": done.job_ms },
        });
        if plan.tenants.len() > 1 {
            let named = |(tenant, mut job): (_, Value)| {
                job["tenant"] = json!(tenant);
                job
            };
            json["jobs"] = done.jobs.into_iter().map(named).collect();
        }
        if !ok {
            json["error"] = json!({ "code": "job_failed", "message": "the job did not succeed on every device" });
        }
        Report { plan: Some(plan.clone()), json, failure: None }
    }

    /// The exit code that goes with it.
    pub fn exit(&self) -> i32 {
        match &self.failure {
            Some(failure) => failure.exit,
            None if self.json["ok"] == true => exit_code::DONE,
            None => exit_code::ENDED_BADLY,
        }
    }

    /// Replaces the nodes after a restart.
    pub fn set_nodes(&mut self, nodes: &BTreeMap<String, NodeState>) {
        if let Some(plan) = &self.plan {
            self.json["nodes"] = nodes_json(plan, nodes);
        }
    }

    /// Keeps it as `up.json`.
    pub fn save(&self, state: &State) {
        if let Err(failure) = state.write(&state.folder().join("up.json"), &format!("{}\n", self.json)) {
            super::say::line(&failure.message);
        }
    }

    /// Prints it: one line of JSON, or tables.
    pub fn print(&self, json: bool, exit: i32) -> i32 {
        match (&self.failure, json) {
            (Some(failure), false) => print(Err(Failure { exit, ..failure.clone() }), false),
            _ => print(Ok(Answer { json: self.json.clone(), text: self.text(), exit }), json),
        }
    }

    fn text(&self) -> String {
        let list = |key: &str| self.json[key].as_array().cloned().unwrap_or_default();
        let text_of = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string).replace("null", "-");
        let nodes = list("nodes").into_iter().filter(|n| n["role"] != "agent").map(|n| {
            let addresses = n["addresses"].as_object().into_iter().flatten();
            let addresses: Vec<String> = addresses.map(|(k, v)| format!("{k} {}", text_of(v))).collect();
            [text_of(&n["name"]), text_of(&n["role"]), text_of(&n["parent"]), text_of(&n["pid"]), addresses.join(", ")]
        });
        let mut text = table(["NODE", "ROLE", "PARENT", "PID", "ADDRESSES"], nodes);
        let devices = list("devices");
        let name = |id: &str| {
            let device = devices.iter().find(|d| d["id"] == id)?;
            device["name"].as_str().map(str::to_string)
        };
        text += &format!("\n{}", devices_text(&devices));
        let jobs = if self.json["jobs"].is_array() { list("jobs") } else { vec![self.json["job"].clone()] };
        for job in jobs.iter().filter(|j| j.is_object()) {
            text += &format!("\n{}", job_text(job, &name));
        }
        let elapsed = &self.json["elapsed_ms"];
        text += &format!("\nall online after {} ms, job done after {} ms more\n", elapsed["ready"], elapsed["job"]);
        text
    }
}

/// Every node that was started, in the plan's order.
fn nodes_json(plan: &Plan, nodes: &BTreeMap<String, NodeState>) -> Value {
    let started = plan.nodes.iter().filter_map(|planned| Some((planned, nodes.get(&planned.name)?)));
    let json = started.map(|(planned, node)| {
        let addresses = node.started.iter().flat_map(|s| &s.addresses);
        let addresses: serde_json::Map<String, Value> = addresses
            .map(|(listener, address)| {
                let web = ["api", "public", "private"].contains(&listener.as_str());
                let text = if web { format!("https://{address}") } else { address.to_string() };
                (listener.clone(), json!(text))
            })
            .collect();
        json!({
            "id": node.started.as_ref().map(|s| s.id),
            "name": planned.name,
            "role": planned.role,
            "parent": planned.parent,
            "pid": node.pid,
            "restarts": node.restarts,
            "addresses": addresses,
        })
    });
    json.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology;
    use branchline_node::node::{Addresses, Started};

    fn plan(tenants: &str) -> Rc<Plan> {
        let text = format!(
            "{tenants}\n[topology]\nname='t'\n[server]\nname='hq'\n[[agents]]\nname='pc'\ntenant='main'\n[job]\nargv=['true']\n"
        );
        Rc::new(topology::read(&text.parse().unwrap()).unwrap())
    }

    fn nodes() -> BTreeMap<String, NodeState> {
        let id = "0190f0e0-0000-7000-8000-000000000001".parse().unwrap();
        let address = |port| std::net::SocketAddr::from(([127, 77, 1, 1], port));
        let addresses = Addresses::from([("api".to_string(), address(1)), ("link".to_string(), address(2))]);
        let started = Some(Started { id, name: "hq".into(), addresses });
        BTreeMap::from([("hq".into(), NodeState { pid: Some(7), restarts: 1, started, given_up: None })])
    }

    fn done(state: &str) -> Done {
        let job = json!({ "id": "j", "complete": true, "counts": { state: 1 }, "results": [] });
        Done {
            ca_file: "/ca.pem".into(),
            devices: vec![json!({ "id": "d", "name": "pc" })],
            jobs: vec![("main".parse().unwrap(), job)],
            ready_ms: 5,
            job_ms: 6,
        }
    }

    #[test]
    fn a_report_has_exactly_the_promised_keys() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path(), folder.path()).unwrap();
        let report = Report::done(&plan(""), &state, done("succeeded"), &nodes());
        let keys: Vec<&String> = report.json.as_object().unwrap().keys().collect();
        let promised = [
            "schema",
            "ok",
            "topology",
            "state_dir",
            "ca_file",
            "context_file",
            "nodes",
            "devices",
            "job",
            "elapsed_ms",
        ];
        assert_eq!(keys, promised);
        let node = json!([{
            "id": "0190f0e0-0000-7000-8000-000000000001", "name": "hq", "role": "server", "parent": null, "pid": 7,
            "restarts": 1, "addresses": { "api": "https://127.77.1.1:1", "link": "127.77.1.1:2" },
        }]);
        assert_eq!(report.json["nodes"], node);
        assert_eq!((report.exit(), &report.json["ok"]), (0, &json!(true)));
        report.save(&state);
        let kept = std::fs::read_to_string(folder.path().join("up.json")).unwrap();
        assert_eq!((kept.lines().count(), serde_json::from_str::<Value>(&kept).unwrap()), (1, report.json));
    }

    #[test]
    fn several_tenants_have_a_job_each() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path(), folder.path()).unwrap();
        let two = plan("[[tenant]]\nname='main'\nsites=['a']\n[[tenant]]\nname='other'\nsites=['a']");
        let report = Report::done(&two, &state, done("succeeded"), &nodes());
        assert_eq!(report.json["jobs"][0]["tenant"], "main");
        assert_eq!(report.json["job"]["id"], "j");
    }

    #[test]
    fn what_failed_is_named_with_its_node_and_exits_1() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path(), folder.path()).unwrap();
        let fault = Fault { failure: Failure::wrong("port_in_use", "m"), node: Some("hq".into()) };
        let report = Report::failed(&plan(""), &state, &fault, &nodes());
        assert_eq!(report.json["error"], json!({ "code": "port_in_use", "message": "m", "node": "hq" }));
        assert_eq!((report.exit(), &report.json["ok"]), (1, &json!(false)));
        let report = Report::done(&plan(""), &state, done("failed"), &nodes());
        assert_eq!((report.exit(), &report.json["error"]["code"]), (1, &json!("job_failed")));
        assert_eq!(Report::refused(&Failure::wrong("loop", "m")).exit(), 2);
    }
}
